"""`latent/` of a workdir: latent.safetensors (CVAE or codes, and PSA) and latent.json (what they were made for)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.experimental import multihost_utils

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.folders import replace_folder
from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.model.files.safetensors import SafetensorsFile
from iiblpo_jax.model.steering.codes import KINDS, Codes, bind_latent
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA, bind_psa

WEIGHTS, CARD, METRICS = "latent.safetensors", "latent.json", "metrics.json"
FORMAT = 2  # 1 had no kind: all latents were gaussian
MAX_CARD, MAX_SIZE = 1 << 20, 1 << 20  # bytes of latent.json; of each of its sizes


def save_latents(
    directory: Path, config: ModelConfig, params: dict, cvae: CVAE | Codes, psa: PSA, *, settings: dict, metrics: dict
) -> None:
    """Writes a whole latent directory at once: a killed process leaves the old one or none, never half of one.

    In a run of several processes all gather, the first one writes, and all return when it has.

    Args:
      directory: target, replaced if it exists.
      config, params: the model the latents were made for.
      cvae, psa: what is stored, float32, bit for bit.
      settings: how they were made; kept for the reader.
      metrics: diagnostics, written to metrics.json.
    """
    directory = Path(directory)
    tree = {"cvae": params_of(cvae), "psa": params_of(psa)}
    weights = {name: to_host(x) for name, x in traverse_util.flatten_dict(tree, sep="/").items()}
    card = {"format": FORMAT, **_shape(cvae, psa), "model": fingerprint(config, params), "settings": settings}
    if jax.process_index() == 0:
        replace_folder(directory, WEIGHTS, weights, {CARD: card, METRICS: metrics})
    multihost_utils.sync_global_devices("latents stored")


def load_latents(
    directory: Path,
    config: ModelConfig,
    params: dict,
    *,
    kind: str | None = None,
    z: int | None = None,
    n_injected: int | None = None,
) -> tuple[CVAE | Codes, PSA]:
    """Latents of this model from a directory.

    Args:
      directory: `latent/` of a workdir.
      config, params: the model they must have been made for.
      kind, z, n_injected: latent.kind, the latent width and the number of injected layers they must have; None
        accepts any.

    Raises:
      InputError: nothing there, a damaged file, latents of another model, or another latent.kind, z or psa.layers.
    """
    directory = Path(directory)
    card = _card(directory)
    mend = f"delete {directory} or use another --workdir"
    if card["model"] != fingerprint(config, params):
        raise InputError(f"{directory}: latents of another model; {mend}")
    for name, wanted in (("kind", kind), ("z", z), ("layers", n_injected)):
        if wanted is not None and card[name] != wanted:
            knob = {"kind": "latent.kind", "z": "latent.z", "layers": "psa.layers"}[name]
            raise InputError(f"{directory}: made with {knob} {card[name]}, the config says {wanted}; {mend}")
    try:
        file = SafetensorsFile(directory / WEIGHTS)
        wanted = _shapes(config, card)
        if {name: file.shape(name) for name in file.names()} != wanted:
            raise InputError(f"not the weights that {CARD} describes; delete them")
        weights = {name: jnp.array(file.tensor(name)) for name in wanted}
    except (OSError, InputError) as error:
        reason = str(error).rpartition(";")[0] or str(error)
        raise InputError(f"{directory / WEIGHTS}: cannot be read ({reason}); {mend}") from error
    tree = traverse_util.unflatten_dict(weights, sep="/")
    return bind_latent(tree["cvae"]), bind_psa(tree["psa"], config)


def _shapes(config: ModelConfig, card: dict) -> dict[str, tuple[int, ...]]:
    """Shape of every stored weight of latents with the card's sizes."""

    def trees():
        cvae = KINDS[card["kind"]](card["width"], card["z"], card["hidden"], rngs=nnx.Rngs(0))
        return {"cvae": params_of(cvae), "psa": params_of(PSA(config, card["z"], card["layers"], rngs=nnx.Rngs(0)))}

    flat: dict[str, Any] = traverse_util.flatten_dict(jax.eval_shape(trees), sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


def has_latents(directory: Path) -> bool:
    """A finished latent stage lies in the directory."""
    return (Path(directory) / CARD).exists()


def _card(directory: Path) -> dict:
    try:
        card = json_input.load(
            directory / CARD, mend=f"delete {directory} and run the latent stage again", limit=MAX_CARD
        )
    except FileNotFoundError:
        raise InputError(f"{directory}: no latents here; run `python -m iiblpo_jax.latent` with this workdir") from None
    sizes = ("width", "z", "hidden", "layers")
    if isinstance(card, dict) and card.get("format") == 1:
        card["kind"] = "gaussian"
    known = isinstance(card, dict) and "model" in card and card.get("kind") in tuple(KINDS)
    if not known or not all(_is_size(card.get(name)) for name in sizes):
        raise InputError(
            f"{directory / CARD}: not a card of latents; delete {directory} and run the latent stage again"
        )
    return card


def _is_size(value) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIZE


def _shape(cvae: CVAE | Codes, psa: PSA) -> dict:
    kind = next(name for name, kind in KINDS.items() if isinstance(cvae, kind))
    return {"kind": kind, "width": cvae.width, "z": cvae.latent, "hidden": cvae.hidden, "layers": psa.gain.shape[0]}
