"""Whether a run may go on from the checkpoints of its workdir: asked before a latent is trained or a step compiled."""

from pathlib import Path

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import injected_layers
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.run.adapters import described
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.step import specs


def check_resumable(newest: dict, config, model: ModelConfig, began_with: str) -> None:
    """Raises InputError where the checkpoints are another model's, or were trained with another latent or
    another adapter.

    Deleting latent/ would not help: what the checkpoints hold of it (PSA, its optimizer moments) has its shape.

    Args:
      newest: of `Checkpoints.newest`.
      config, model: of the run.
      began_with: fingerprint of the model it starts from.
    """
    rows = newest["arrays"].get("params.policy.embed", [[model.vocab_size]])[0][0]
    if rows != model.vocab_size:
        raise InputError(
            f"checkpoint {newest['step']} of this workdir has a vocabulary of {rows}, codes included, and "
            f"{config.model.path} with codes.n = {config.codes.n} one of {model.vocab_size}; set codes.n back, use the "
            "model the run began with, or another --workdir"
        )
    if newest["extra"]["model"] != began_with:
        raise InputError(
            f"the checkpoints of this workdir grew from another model than {config.model.path}; use the model the run "
            f"began with{_named(newest['extra'].get('base', ''))}, or another --workdir"
        )
    adapted, adapts = newest["extra"].get("lora", "") or WHOLE, described(config) or WHOLE
    if adapted != adapts:
        raise InputError(
            f"checkpoint {newest['step']} of this workdir was trained with {adapted} and the config says {adapts}; a "
            "run keeps what it trains to the end: set it back, or use another --workdir"
        )
    gain = newest["arrays"].get("params.psa.gain")  # [N,Z,D]
    # A checkpoint of an earlier version says nothing of the kind.
    trained = _latent(newest["extra"].get("latent", config.latent.kind), *gain[0][:2][::-1]) if gain else NONE
    wanted = NONE
    if specs.uses_latents(config):
        wanted = _latent(config.latent.kind, config.latent.z, injected_layers(config, model.n_layers))
    if trained != wanted:
        raise InputError(
            f"checkpoint {newest['step']} of this workdir was trained with {trained} and the config says {wanted}; a "
            "run keeps its latent to the end: set it back, or use another --workdir"
        )


def check_workdir(workdir: Path, config, model: ModelConfig, policy: dict) -> bool:
    """`check_resumable` for a verb that takes no steps: whether there is a checkpoint, and an InputError as there."""
    if not (workdir / "checkpoints").is_dir():
        return False
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, every=0)
    try:
        newest = checkpoints.newest()
    finally:
        checkpoints.close()
    if newest is not None:
        check_resumable(newest, config, model, fingerprint(model, policy))
    return newest is not None


NONE = "no latent"
WHOLE = "no adapter"


def _named(path: str) -> str:
    return f" ({path})" if path else ""


def _latent(kind: str, z: int, layers: int) -> str:
    return f"latent.kind = {kind}, latent.z = {z}, psa.layers = {layers}"
