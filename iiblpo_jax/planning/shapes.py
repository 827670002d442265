"""A run as shapes: the programs of its step for devices that need not exist. No weights, tokenizer or data are read.

What a Trainer learns from its tokenizer and its data has stand-ins here, chosen for what they do to shapes:

    stop tokens   two, ids 0 and 1
    start token   id 0
    never drawn   id 2
    marker        `\\boxed{`, 7 bytes, a table for every task of the mix
    cue, answer   CUE and specs.MAX_ANSWER tokens, the widest answer that is scored
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iiblpo_jax.config.derived import group_size, injected_layers, shows_answer, teacher_model
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Adapted, base_shardings, stored
from iiblpo_jax.model.adapters.lora import LoRA, LoRASpec
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, cast, params_of
from iiblpo_jax.model.files.loading import load_config
from iiblpo_jax.model.reward import RewardModel, Typical, make_head
from iiblpo_jax.model.steering.code_tokens import coded_config
from iiblpo_jax.model.steering.codes import KINDS
from iiblpo_jax.model.steering.psa import PSA
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import MarkerTable
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.step import specs
from iiblpo_jax.step.programs import AbstractStep, Asked, Frozen, make_programs
from iiblpo_jax.update.state import init_state

MARKER_BYTES = 7
CUE = 16
STOP_IDS = (0, 1)
START_ID = 0
NEVER_IDS = (2,)


def abstract_step(config, model: ModelConfig, mesh: Mesh) -> AbstractStep:
    """The step of a config on a mesh.

    Args:
      config: of the run.
      model: architecture, in place of model.path.
      mesh: of `mesh.make_mesh`; its devices may be those of a topology.

    Raises:
      InputError: what a Trainer refuses before it compiles anything, but for what depends on tokenizer or data.
    """
    model = coded_config(model, config.codes.n)
    specs.check(config, model, mesh)
    policy = _weights(lambda: Decoder(model, rngs=nnx.Rngs(0)), mesh)
    params, cvae, base = {"policy": policy}, None, None
    if adapter := specs.lora(config):
        base = _base(config, model, adapter, policy)
        params = {"lora": _weights(lambda: LoRA(model, adapter, rngs=nnx.Rngs(0)), mesh)}
    if specs.uses_latents(config):
        z, injected = config.latent.z, injected_layers(config, model.n_layers)
        params["psa"] = _weights(lambda: PSA(model, z, injected, rngs=nnx.Rngs(0)), mesh)
        kind, hidden = KINDS[config.latent.kind], config.latent.hidden
        cvae = _everywhere(_shapes(lambda: kind(model.d_model, z, hidden, rngs=nnx.Rngs(0))), mesh)
    reference = base or _like(jax.eval_shape(lambda p: cast(p, config.model.dtype), policy), policy)
    optimizer = specs.optimizer(config)
    averages = specs.averages(config)
    state = abstract_state(params, optimizer, mesh, novelty=lambda: specs.novelty(config, model), averages=averages)
    tokens = {"stop_ids": STOP_IDS, "start_id": START_ID, "never_ids": NEVER_IDS}
    programs = make_programs(config, model, state, optimizer, mesh=mesh, base=base, **tokens)
    paying = _reward_model(config, model, reference, policy, mesh)
    frozen = Frozen(readers={specs.REFERENCE: reference} | _teacher(config, mesh) | paying, cvae=cvae)
    return AbstractStep(programs, state, frozen, _asked(config, model, mesh))


def _teacher(config, mesh: Mesh) -> dict:
    """A teacher that is another model: only its architecture is read."""
    if not (path := teacher_model(config)):
        return {}
    theirs = load_config(path)
    weights = _weights(lambda: Decoder(theirs, rngs=nnx.Rngs(0)), mesh)
    return {specs.TEACHER: _like(jax.eval_shape(lambda p: cast(p, config.model.dtype), weights), weights)}


def abstract_state(params: dict, optimizer, mesh: Mesh, *, novelty=lambda: None, averages: bool = False):
    """A fresh TrainState; what the optimizer keeps of a weight lies where the weight lies, the rest on every device."""
    state = jax.eval_shape(lambda p: init_state(p, optimizer, novelty=novelty(), averages=averages), params)
    place = {path: leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def placed(path, leaf):
        tails = (path[i:] for i in range(len(path)))
        found = next((place[tail] for tail in tails if tail in place), everywhere)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=found)

    return jax.tree_util.tree_map_with_path(placed, state)


def _base(config, model: ModelConfig, adapter: LoRASpec, policy: dict) -> Adapted:
    """Shapes of the frozen weights beneath an adapter."""
    shapes = jax.eval_shape(lambda p: stored(p, config.lora.base), policy)
    shardings = base_shardings(jax.tree.map(lambda x: x.sharding, policy), shapes)

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    base = jax.tree.map(place, shapes, shardings)
    return Adapted(base=base, adapter=None, model=model, spec=adapter, dtype=config.model.dtype)


def _shapes(make) -> dict:
    return jax.eval_shape(lambda: params_of(make()))


def _weights(make, mesh: Mesh) -> dict:
    """Shapes of a module's weights with their shardings in training."""
    shardings = meshes.param_shardings(nnx.eval_shape(make), mesh, meshes.TRAIN)

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, _shapes(make), shardings)


def _like(shapes, placed):
    """The shapes, each where its counterpart in `placed` is."""
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding), shapes, placed)


def _everywhere(shapes, mesh: Mesh):
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _reward_model(config, model: ModelConfig, reference, policy: dict, mesh: Mesh) -> dict:
    """A reward model by its reader's name, {} without one; a trained backbone lies as the policy does, and a frozen
    one is the reference."""
    if not config.reward.model:
        return {}
    backbone = reference
    if config.reward_model.backbone == "trained":
        backbone = _like(jax.eval_shape(lambda p: cast(p, config.model.dtype), policy), policy)
    z = config.reward_model.z

    def make():
        mean_Z, numbers_ZZ = jnp.zeros(z), jnp.zeros((z, z))
        head = make_head(jax.random.key(0), width=model.d_model, latent=z)
        return head, Typical(mean_Z=mean_Z, white_ZZ=numbers_ZZ, freedom=jnp.float32(0))

    head, typical = _everywhere(jax.eval_shape(make), mesh)
    return {specs.REWARD: RewardModel(backbone=backbone, head=head, typical=typical)}


def _asked(config, model: ModelConfig, mesh: Mesh) -> Asked:
    """Arrays of a batch where a Trainer places them."""
    p = config.train.prompts_per_step

    def of_prompts(*shape) -> Any:
        return _rows(mesh, p, *shape)

    return Asked(
        prompt_PS=of_prompts(config.rollout.max_prompt),
        prompt_len_P=of_prompts(),
        gold=Gold(
            markers=_markers(config, model),
            marker_P=of_prompts(),
            answer_PA=of_prompts(specs.MAX_ANSWER),
            answer_len_P=of_prompts(),
            cue_PQ=of_prompts(CUE),
            cue_len_P=of_prompts(),
            **_shown(config, mesh),
        ),
        forest=_forest(config, mesh) if config.data.recorded else None,
        turn_end=_markers(config, model)[0] if config.turns.most else None,
    )


def _shown(config, mesh: Mesh) -> dict:
    """Prompts with their answers, where somebody reads them."""
    if not shows_answer(config):
        return {}
    p, width = config.train.prompts_per_step, config.rollout.max_prompt + CUE + specs.MAX_ANSWER
    return {"shown_PS": _rows(mesh, p, width), "shown_len_P": _rows(mesh, p)}


def _forest(config, mesh: Mesh) -> Forest:
    """Recorded rollouts where a Trainer places them."""
    p, s, t = config.train.prompts_per_step, config.rollout.max_prompt, config.rollout.max_tokens
    r = p * group_size(config)
    numbers, logp_RT = _rows(mesh, r), _rows(mesh, r, t, dtype=jnp.float32)
    return Forest(
        prompt_PS=_rows(mesh, p, s),
        prompt_len_P=_rows(mesh, p),
        tokens_RT=_rows(mesh, r, t),
        raw_logp_RT=logp_RT,
        entropy_RT=logp_RT,
        length_R=numbers,
        finish_R=numbers,
        parent_R=numbers,
        branch_at_R=numbers,
        z_RZ=_rows(mesh, r, 0, dtype=jnp.float32),
        fallback_R=_rows(mesh, r, dtype=jnp.bool_),
        left_R=_rows(mesh, r, dtype=jnp.float32),
    )


def _rows(mesh: Mesh, *shape: int, dtype=jnp.int32) -> Any:
    """An array whose first axis is split as prompts are."""
    place = meshes.sharding(mesh, ("batch", *[None] * (len(shape) - 1)), meshes.TRAIN, shape=shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _markers(config, model: ModelConfig) -> tuple[MarkerTable, ...]:
    def array(*shape) -> Any:
        return jax.ShapeDtypeStruct((*shape, model.vocab_size), jnp.int32)

    table = MarkerTable(next_WV=array(MARKER_BYTES), end_WV=array(MARKER_BYTES), bytes_V=array(), word_V=array())
    return (table,) * max(1, len(config.task.mix))
