"""The policy a workdir stands for: one of its checkpoints, or the model it would start from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.prompts import prompt_end
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import merged
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.model.steering.code_tokens import with_codes
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.run.adapters import first_adapter, frozen_base, loaded_dtype
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.run.prompt_date import keep_date
from iiblpo_jax.step import specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Weights ready to use, an adapter merged into them and beside them. `source` says in words where they come from;
    step 0 = never trained.

    `plain` is the architecture without codes.
    """

    params: dict
    model_config: ModelConfig
    plain: ModelConfig
    tokenizer: Tokenizer
    step: int
    source: str
    adapter: dict | None = None


def load_policy(config, workdir: Path, which: str = "latest", *, mesh: Mesh | None = None) -> Policy:
    """The policy of a checkpoint.

    Args:
      config, workdir: of the run.
      which: `latest`, the newest readable one, or `model.path` where the workdir has none; `best`; or a step.
      mesh: devices over which the weights are spread (mesh.TRAIN); None = one.

    Raises:
      InputError: no such checkpoint, the model cannot be loaded, or the checkpoint belongs to another model.
    """
    plain, tokenizer = load_model(config.model.path, dtype=jnp.dtype(loaded_dtype(config)))
    tokenizer = keep_date(tokenizer, workdir)
    model, step, source = _coded(plain, config), 0, f"model {config.model.path}"
    params = _placed(model, mesh)
    spec = specs.lora(config)
    adapter = None if spec is None else first_adapter(config, model.config, spec, mesh=mesh)
    trained, part = (params, "policy") if adapter is None else (adapter, "lora")
    found = None
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, every=0)
        try:
            found = checkpoints.restore_policy(trained, which, part=part)
        finally:
            checkpoints.close()
    if found is not None:
        step, trained = found
        source = f"checkpoint of {workdir}"
    elif which != "latest":
        raise InputError(f"{workdir} has no checkpoint, so --checkpoint={which} names none; train first")
    elif config.codes.n:  # of a checkpoint they are a part; before it the tasks say what they begin as
        tasks = [task for task, _ in make_tasks(config.task, seed=config.data.seed)]
        trained = _placed(_coded(plain, config, end=prompt_end(tasks, tokenizer)), mesh)
    about: Any = {
        "model_config": model.config,
        "plain": plain.config,
        "tokenizer": tokenizer,
        "step": step,
        "source": source,
    }
    if spec is None:
        return Policy(params=trained, **about)
    whole = merged(frozen_base(config, model.config, spec, params).replace(adapter=trained))
    return Policy(params=_like(whole, params), adapter=trained, **about)


def _like(tree, placed):
    """The arrays, each where its counterpart in `placed` is."""
    return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), tree, placed)


def _coded(model: Decoder, config, *, end: int | None = None) -> Decoder:
    return with_codes(model, config.codes.n, end=end, noise=config.codes.noise)


def _placed(model: Decoder, mesh: Mesh | None) -> dict:
    params = params_of(model)
    return params if mesh is None else meshes.shard_params(params, meshes.param_shardings(model, mesh, meshes.TRAIN))
