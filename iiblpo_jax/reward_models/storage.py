"""A reward model on disk: reward.safetensors (head, what is typical, a trained backbone), reward.json (what it is for)
and metrics.json."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.experimental import multihost_utils

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.folders import replace_folder
from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.model.files.safetensors import SafetensorsFile
from iiblpo_jax.model.reward import RewardHead, RewardModel, typical
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

WEIGHTS, CARD, METRICS = "reward.safetensors", "reward.json", "metrics.json"
FORMAT = 1
KINDS = ("trained", "frozen")
MAX_CARD, MAX_SIZE = 1 << 20, 1 << 20  # bytes of reward.json; of z


class Made(NamedTuple):
    """What a reward model was made of: architecture and weights of the policy, and its tokenizer."""

    model: ModelConfig
    params: dict
    tokenizer: Tokenizer


class Fitted(NamedTuple):
    """What the stage found: the head, m [Z] and C [Z,Z] of `model.reward.moments`, and a trained backbone or None."""

    head: RewardHead
    mean_Z: np.ndarray
    covariance_ZZ: np.ndarray
    backbone: dict | None


def save_reward_model(folder: Path, made: Made, fitted: Fitted, *, settings: dict, metrics: dict) -> None:
    """Writes the whole folder at once, float32. All processes gather, the first one writes, all return when it has."""
    tree = {
        "head": {"encode": fitted.head.encode_YD, "value": fitted.head.value_Z},
        "typical": {"mean": fitted.mean_Z, "covariance": fitted.covariance_ZZ},
    } | ({} if fitted.backbone is None else {"backbone": fitted.backbone})
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    weights = {name: np.ascontiguousarray(to_host(x), np.float32) for name, x in flat.items()}
    card = {
        "format": FORMAT,
        "backbone": KINDS[fitted.backbone is None],
        "z": len(fitted.mean_Z),
        "architecture": dataclasses.asdict(made.model),
        "model": fingerprint(made.model, made.params),
        "tokenizer": tokenizer_digest(made.tokenizer),
        "settings": settings,
    }
    if jax.process_index() == 0:
        replace_folder(folder, WEIGHTS, weights, {CARD: card, METRICS: metrics})
    multihost_utils.sync_global_devices("reward model stored")


def load_reward_model(folder: Path, made: Made, *, z: int, backbone: str, dtype: str = "float32") -> RewardModel:
    """A reward model for a policy, its arrays on the host or, of a frozen backbone, those of the policy.

    Args:
      folder: of `save_reward_model`.
      made: the policy it is to pay; a frozen backbone is `made.params`.
      z, backbone: the reward_model.z and reward_model.backbone that it must have.
      dtype: of a trained backbone's weights.

    Raises:
      InputError: nothing there, a damaged file, a reward model of another tokenizer, architecture or (frozen) model, or
        with other knobs.
    """
    card = _card(folder)
    _check(folder, card, made, {"z": z, "backbone": backbone})
    try:
        file = SafetensorsFile(folder / WEIGHTS)
        wanted = _shapes(made.model, z, backbone)
        if {name: file.shape(name) for name in file.names()} != wanted:
            raise InputError(f"not the weights that {CARD} describes; make it again")
        flat = {name: np.array(file.tensor(name)) for name in wanted}
    except (OSError, InputError) as error:
        reason = str(error).rpartition(";")[0] or str(error)
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({reason}); make it again") from error
    tree: dict[str, Any] = traverse_util.unflatten_dict(flat, sep="/")
    trained = jax.tree.map(lambda w: w.astype(jnp.dtype(dtype)), tree.get("backbone"))
    return RewardModel(
        backbone=made.params if backbone == "frozen" else trained,
        head=RewardHead(encode_YD=jnp.array(tree["head"]["encode"]), value_Z=jnp.array(tree["head"]["value"])),
        typical=typical(tree["typical"]["mean"], tree["typical"]["covariance"]),
    )


def has_reward_model(folder: Path) -> bool:
    """A finished one lies in the folder."""
    return (folder / CARD).exists()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Digest of what every id adds to a text and of what ends one: the same for two tokenizers that write alike."""
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.stop_ids)).encode())
    for text in tokenizer.token_bytes():
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()


def _check(folder: Path, card: dict, made: Made, knobs: dict[str, Any]) -> None:
    mend = "make one for this model (python -m iiblpo_jax.reward_model), or correct reward.model"
    if card["tokenizer"] != tokenizer_digest(made.tokenizer):
        raise InputError(f"{folder}: a reward model of another tokenizer than the policy's; {mend}")
    mine = json.loads(json.dumps(dataclasses.asdict(made.model)))
    for name, value in mine.items():
        if card["architecture"].get(name) != value:
            raise InputError(
                f"{folder}: a reward model of another architecture ({name} {card['architecture'].get(name)}, the "
                f"policy has {value}); {mend}"
            )
    if card["backbone"] == "frozen" and card["model"] != fingerprint(made.model, made.params):
        raise InputError(f"{folder}: a head for another model than this policy began as; {mend}")
    for name, wanted in knobs.items():
        if card[name] != wanted:
            raise InputError(
                f"{folder}: made with reward_model.{name} = {card[name]} and the config says {wanted}; set "
                f"reward_model.{name}={card[name]}"
            )


def _shapes(model: ModelConfig, z: int, backbone: str) -> dict[str, tuple[int, ...]]:
    """Shape of every stored weight."""
    shapes = {"head/encode": (2 * z, model.d_model), "head/value": (z,)}
    shapes |= {"typical/mean": (z,), "typical/covariance": (z, z)}
    if backbone == "frozen":
        return shapes
    tree = jax.eval_shape(lambda: params_of(Decoder(model, rngs=nnx.Rngs(0))))
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return shapes | {f"backbone/{name}": leaf.shape for name, leaf in flat.items()}


def _card(folder: Path) -> dict:
    mend = "make it again with python -m iiblpo_jax.reward_model"
    try:
        card = json_input.load(folder / CARD, mend=mend, limit=MAX_CARD)
    except FileNotFoundError:
        raise InputError(f"{folder}: no reward model here; {mend}, or correct reward.model") from None
    known = isinstance(card, dict) and card.get("format") == FORMAT and card.get("backbone") in KINDS
    if not known or not (type(card.get("z")) is int and 1 <= card["z"] <= MAX_SIZE):
        raise InputError(f"{folder / CARD}: not a card of a reward model; {mend}")
    if not isinstance(card.get("architecture"), dict) or not {"model", "tokenizer"} <= card.keys():
        raise InputError(f"{folder / CARD}: not a card of a reward model; {mend}")
    return card
