"""A run as shapes: the programs of its step for devices that need not exist. No weights, tokenizer or data are read.

What a Trainer learns from its tokenizer and its data has stand-ins here, chosen for what they do to shapes:

    stop tokens   two, ids 0 and 1
    start token   id 0
    marker        `\\boxed{`, 7 bytes, a table for every task of the mix
    cue, answer   CUE and specs.MAX_ANSWER tokens, the widest answer that is scored
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iiblpo_jax.config.derived import injected_layers
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, cast, params_of
from iiblpo_jax.model.steering.codes import KINDS
from iiblpo_jax.model.steering.psa import PSA
from iiblpo_jax.rollout.marker import MarkerTable
from iiblpo_jax.rollout.publication import publisher
from iiblpo_jax.step import specs
from iiblpo_jax.step.programs import StepPrograms
from iiblpo_jax.update.epochs import make_update
from iiblpo_jax.update.optimizer import make_optimizer
from iiblpo_jax.update.state import init_state

MARKER_BYTES = 7
CUE = 16
STOP_IDS = (0, 1)


class _StandIn(NamedTuple):
    """What scoring asks of a tokenizer."""

    start_id: int = 0


class AbstractRun(NamedTuple):
    """programs: of a step; update: the jitted update that follows them."""

    programs: StepPrograms
    update: object


def abstract_run(config, model: ModelConfig, mesh: Mesh) -> AbstractRun:
    """The step of a config on a mesh, put together as a Trainer does.

    Args:
      config: of the run.
      model: architecture, in place of model.path.
      mesh: of `mesh.make_mesh`; its devices may be those of a topology.

    Raises:
      InputError: what a Trainer refuses before it compiles anything, but for what depends on tokenizer or data.
    """
    # --- what a Trainer checks
    specs.check_mesh(config, mesh)
    specs.check_positions(config, model, (), None)
    specs.check_attention(config, model, mesh)
    method = specs.objective(config)
    settings = specs.update_settings(config, method, mesh=mesh)

    # --- weights
    policy = _weights(lambda: Decoder(model, rngs=nnx.Rngs(0)), mesh)
    params, cvae = {"policy": policy}, None
    if specs.uses_latents(config):
        z, injected = config.latent.z, injected_layers(config, model.n_layers)
        params["psa"] = _weights(lambda: PSA(model, z, injected, rngs=nnx.Rngs(0)), mesh)
        kind, hidden = KINDS[config.latent.kind], config.latent.hidden
        cvae = _everywhere(_shapes(lambda: kind(model.d_model, z, hidden, rngs=nnx.Rngs(0))), mesh)
    reference = _like(jax.eval_shape(lambda p: cast(p, config.model.dtype), policy), policy)
    optimizer = make_optimizer(config.optim, total_steps=1)
    state = abstract_state(params, optimizer, mesh)

    # --- programs
    programs = StepPrograms(
        state=state,
        reference=reference,
        cvae=cvae,
        inputs=_inputs(config, mesh),
        markers=_markers(config, model),
        rollout_spec=specs.rollout_spec(config, model, STOP_IDS, mesh=mesh),
        score_spec=specs.score_spec(config, model, _StandIn(), method, mesh=mesh),
        publish=publisher(specs.publication_spec(config, model), policy, mesh),
    )
    placement = jax.tree.map(lambda x: x.sharding, state)
    return AbstractRun(programs, make_update(settings, method, model, optimizer, state_shardings=placement))


def abstract_state(params: dict, optimizer, mesh: Mesh):
    """A fresh TrainState; what the optimizer keeps of a weight lies where the weight lies, the rest on every device."""
    state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    place = {path: leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def placed(path, leaf):
        tails = (path[i:] for i in range(len(path)))
        found = next((place[tail] for tail in tails if tail in place), everywhere)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=found)

    return jax.tree_util.tree_map_with_path(placed, state)


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


def _inputs(config, mesh: Mesh) -> dict:
    """Arrays of a batch as Trainer._inputs places them."""
    p = config.train.prompts_per_step

    def of_prompts(*shape):
        place = meshes.sharding(mesh, ("batch", *[None] * len(shape)), meshes.TRAIN, shape=(p, *shape))
        return jax.ShapeDtypeStruct((p, *shape), jnp.int32, sharding=place)

    return {
        "prompt": (of_prompts(config.rollout.max_prompt), of_prompts()),
        "marker_P": of_prompts(),
        "cue": (of_prompts(CUE), of_prompts()),
        "answer": (of_prompts(specs.MAX_ANSWER), of_prompts()),
    }


def _markers(config, model: ModelConfig) -> tuple[MarkerTable, ...]:
    def array(*shape):
        return jax.ShapeDtypeStruct((*shape, model.vocab_size), jnp.int32)

    table = MarkerTable(next_WV=array(MARKER_BYTES), end_WV=array(MARKER_BYTES), bytes_V=array(), word_V=array())
    return (table,) * max(1, len(config.task.mix))
