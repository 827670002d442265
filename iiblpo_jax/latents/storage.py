"""`latent/` of a workdir: latent.safetensors (CVAE and PSA) and latent.json (what they were made for)."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from iiblpo_jax.errors import InputError
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.cvae import CVAE, bind_cvae
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.psa import PSA, bind_psa

WEIGHTS, CARD, METRICS = "latent.safetensors", "latent.json", "metrics.json"
PROBES = 64  # elements of each weight that enter the fingerprint


def fingerprint(config: ModelConfig, params: dict) -> str:
    """Hex digest of an architecture and of PROBES evenly spaced elements of every weight.

    Elements are rounded to bfloat16 first: one checkpoint loaded in float32 and in bfloat16 is one model.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, weight in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        # indices per axis rather than a ravel: a sharded weight is gathered element by element, never whole
        at = np.unravel_index(np.linspace(0, weight.size - 1, PROBES).astype(np.int64), weight.shape)
        digest.update(path.encode() + np.asarray(weight[at].astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()


def save_latents(
    directory: Path, config: ModelConfig, params: dict, cvae: CVAE, psa: PSA, *, settings: dict, metrics: dict
) -> None:
    """Writes a whole latent directory at once: a killed process leaves the old one or none, never half of one.

    Args:
      directory: target, replaced if it exists.
      config, params: the model the latents were made for.
      cvae, psa: what is stored, float32, bit for bit.
      settings: how they were made; kept for the reader.
      metrics: diagnostics, written to metrics.json.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    tree = {"cvae": params_of(cvae), "psa": params_of(psa)}
    weights = {name: np.asarray(x) for name, x in traverse_util.flatten_dict(tree, sep="/").items()}
    card = {"format": 1, **_shape(cvae, psa), "model": fingerprint(config, params), "settings": settings}
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        save_file(weights, temporary / WEIGHTS)
        for name, content in ((CARD, card), (METRICS, metrics)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n")
        if directory.exists():
            os.rename(directory, temporary / "replaced")
        os.rename(temporary, directory)
        shutil.rmtree(directory / "replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_latents(
    directory: Path, config: ModelConfig, params: dict, *, z: int | None = None, n_injected: int | None = None
) -> tuple[CVAE, PSA]:
    """Latents of this model from a directory.

    Args:
      directory: `latent/` of a workdir.
      config, params: the model they must have been made for.
      z, n_injected: the latent width and the number of injected layers they must have; None accepts any.

    Raises:
      InputError: nothing there, a damaged file, latents of another model, or another z or psa.layers.
    """
    directory = Path(directory)
    card = _card(directory)
    mend = f"delete {directory} or use another --workdir"
    if card["model"] != fingerprint(config, params):
        raise InputError(f"{directory}: latents of another model; {mend}")
    for name, wanted in (("z", z), ("layers", n_injected)):
        if wanted is not None and card[name] != wanted:
            knob = {"z": "latent.z", "layers": "psa.layers"}[name]
            raise InputError(f"{directory}: made with {knob} {card[name]}, the config says {wanted}; {mend}")
    try:
        tree = traverse_util.unflatten_dict(load_file(directory / WEIGHTS), sep="/")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory / WEIGHTS}: cannot be read ({error}); {mend}") from error
    tree = jax.tree.map(jnp.asarray, tree)
    return bind_cvae(tree["cvae"]), bind_psa(tree["psa"], config)


def has_latents(directory: Path) -> bool:
    """A finished latent stage lies in the directory."""
    return (Path(directory) / CARD).exists()


def _card(directory: Path) -> dict:
    try:
        return json.loads((directory / CARD).read_text())
    except FileNotFoundError:
        raise InputError(f"{directory}: no latents here; run `python -m iiblpo_jax.latent` with this workdir") from None
    except json.JSONDecodeError:
        raise InputError(f"{directory / CARD}: not JSON; delete {directory} and run the latent stage again") from None


def _shape(cvae: CVAE, psa: PSA) -> dict:
    return {"width": cvae.width, "z": cvae.latent, "hidden": cvae.hidden, "layers": psa.gain.shape[0]}
