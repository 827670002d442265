"""The policy a workdir stands for: its newest checkpoint, or the model it would start from."""

import dataclasses
from pathlib import Path

from iiblpo_jax.checkpoints import Checkpoints
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.loading import load_model
from iiblpo_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Weights ready to use. `source` says in words where they come from; step 0 = never trained."""

    params: dict
    model_config: ModelConfig
    tokenizer: Tokenizer
    step: int
    source: str


def load_policy(config, workdir: Path) -> Policy:
    """The policy of the newest readable checkpoint, or of `model.path` where the workdir has none.

    Raises:
      InputError: the model cannot be loaded, or the checkpoint belongs to another model.
    """
    model, tokenizer = load_model(config.model.path)
    params, step, source = params_of(model), 0, f"model {config.model.path}"
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, every=0)
        found = checkpoints.restore_policy(params)
        checkpoints.close()
        if found is not None:
            step, params = found
            source = f"checkpoint of {workdir}"
    return Policy(params=params, model_config=model.config, tokenizer=tokenizer, step=step, source=source)
