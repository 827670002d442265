"""The adapter of a run: what it is trained beside, and what it begins with."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Adapted, base_shardings, stored
from iiblpo_jax.model.adapters.lora import LoRA, LoRASpec
from iiblpo_jax.model.adapters.peft import load_adapter
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import params_of


def loaded_dtype(config) -> str:
    """Dtype in which the model is read: no finer than it is stored."""
    return "bfloat16" if config.lora.base != "float32" else "float32"


def frozen_base(config, model: ModelConfig, spec: LoRASpec, policy: dict) -> Adapted:
    """The base of an adapter, which is off, made of a model's weights; it lies where they do."""
    kind, place = config.lora.base, jax.tree.map(lambda w: w.sharding, policy)
    base = stored(policy, kind)
    if any(isinstance(where, jax.sharding.NamedSharding) for where in jax.tree.leaves(place)):
        base = jax.device_put(base, base_shardings(place, base))
    return Adapted(base=base, adapter=None, model=model, spec=spec, dtype=config.model.dtype)


def first_adapter(config, model: ModelConfig, spec: LoRASpec, *, mesh: Mesh | None) -> dict:
    """The weights that an adapter begins with: those of lora.path, or what adds nothing; a function of train.seed.

    Raises:
      InputError: lora.path is no adapter of this model and these settings.
    """
    make = functools.partial(LoRA, model, spec)
    if config.lora.path:
        weights = load_adapter(config.lora.path, model, spec)
    else:
        weights = params_of(make(rngs=nnx.Rngs(config.train.seed)))
    if mesh is None:
        return jax.tree.map(jnp.asarray, weights)
    shardings = meshes.param_shardings(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), mesh, meshes.TRAIN)
    return meshes.shard_params(weights, shardings)


def described(config) -> str:
    """What may not change from one start of a run to the next; empty where the policy itself is trained."""
    lora = config.lora
    if not lora.rank:
        return ""
    targets = ",".join(sorted(lora.targets, key=LORA_TARGETS.index))
    return f"lora.rank = {lora.rank}, lora.alpha = {lora.alpha:g}, lora.targets = {targets}, lora.base = {lora.base}"


def absolute(path: str) -> str:
    """A path that means the same in another working directory; that of a package stays."""
    return path if not path or path.startswith(("package:", "preset:")) else str(Path(path).expanduser().absolute())
