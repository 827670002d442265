"""The policy as decoding wants it: one jitted program from training weights to a Published.

Training keeps layers stacked, in float32. Decoding reads every weight once a token, so a publication casts them and, by
default, unstacks the layers (a scan would slice every weight at every token). It may quantise the matrices to int8.
Made once a step, reused by every rollout.

Of int8 (model/quantised.py) the embedding is quantised too, a row a token, so that a tied head stays one table. Norms
and biases are not. An adapter is merged into its matrices, in float32, before anything else is done with them.

On a mesh a publication is also the one reshard between training and rollout (mesh.ROLLOUT). Where there are fewer kv
heads than parts of the axis `tensor`, each is held several times, every copy with its share of the query heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Weights, stacked_layers, top_weights, whole_layer
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import AXES, INPUTS, Layer, Matrix, layer_of, multiply
from iiblpo_jax.model.quantised import quantise


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicationSpec:
    """Everything static about a publication; hashable.

    Attributes:
      model: architecture.
      dtype: of the computation, and of the weights unless they are quantised.
      weights: `` = dtype, or `int8`.
      unroll: layers as a list, which decoding unrolls; False = stacked, which decoding scans: slower, but compile time
        does not grow with depth.
      kv_copies: C, of every kv head, each with H / (G C) of its query heads; `publisher` fits it to a mesh.
    """

    model: ModelConfig
    dtype: str = "float32"
    weights: str = ""
    unroll: bool = True
    kv_copies: int = 1


# Logical axes of every array, for mesh.ROLLOUT. Those of a Matrix are its weight's; its scale has the first of them.
_AXES = AXES | {"embed": ("vocab", "embed"), "head": ("vocab", "embed"), "final_norm_D": ("norm",)}


@struct.dataclass
class Published:
    """A policy ready to decode.

    Attributes:
      embed: [V] of [D], a row a token. head: likewise, None where it is the embedding.
      layers: a list of L layers, or one stacked Layer.
      final_norm_D: weight of the last RMSNorm.
      dtype: name of the dtype of activations.
      kv_copies: of PublicationSpec.
    """

    embed: Matrix
    head: Matrix | None
    layers: list[Layer] | Layer
    final_norm_D: jax.Array
    dtype: str = struct.field(pytree_node=False)
    kv_copies: int = struct.field(pytree_node=False)

    @property
    def unrolled(self) -> bool:
        """Layers are a list."""
        return isinstance(self.layers, list)

    def stacked(self) -> Layer:
        """Layers with a leading axis of all L: what a full forward scans. A copy where they are a list."""
        if not isinstance(self.layers, list):
            return self.layers
        return jax.tree.map(lambda *x: jnp.stack(x), *self.layers)


@functools.partial(jax.jit, static_argnames="spec")
def publish(params: Weights, *, spec: PublicationSpec) -> Published:
    """The publication of a policy.

    Args:
      params: weights of a Decoder (`decoder.params_of`), or adapted ones; not donated, training goes on with them.
      spec: static.
    """
    matrix, stacked, params = functools.partial(_matrix, spec=spec), stacked_layers(params), top_weights(params)

    def layer(one) -> Layer:
        return _layer(whole_layer(one), spec)

    if spec.unroll:
        layers = [layer(jax.tree.map(lambda w, i=i: w[i], stacked)) for i in range(spec.model.n_layers)]
    elif isinstance(stacked, dict):
        layers = jax.vmap(layer)(stacked)
    else:  # one at a time: all of them merged at once would be the whole model in float32
        layers = jax.lax.map(layer, stacked)
    return Published(
        embed=matrix(params["embed"]),
        head=None if spec.model.tied_embeddings else matrix(params["head"]),
        layers=layers,
        final_norm_D=params["final_norm"],
        dtype=spec.dtype,
        kv_copies=spec.kv_copies,
    )


def publisher(spec: PublicationSpec, params: Weights, mesh: Mesh | None = None) -> Callable[[Weights], Published]:
    """`publish` with its static argument bound, jitted: params -> Published.

    Args:
      spec: static; its kv_copies are chosen here.
      params: weights, or their shapes.
      mesh: where the publication is to lie (mesh.ROLLOUT); None = where the compiler likes.
    """
    copies = kv_copies(spec.model, meshes.shards(mesh, "kv_heads"))
    program = functools.partial(publish, spec=dataclasses.replace(spec, kv_copies=copies))
    if mesh is None:
        return jax.jit(program)
    return jax.jit(program, out_shardings=_shardings(jax.eval_shape(program, params), mesh))


def kv_copies(model: ModelConfig, parts: int) -> int:
    """C: the fewest copies of every kv head that `parts` divides; 1 if the query heads cannot be shared out so."""
    copies = parts // math.gcd(parts, model.n_kv_heads)
    return copies if model.n_heads // model.n_kv_heads % copies == 0 else 1


def kv_heads_held(model: ModelConfig, parts: int) -> int:
    """Kv heads, copies included, whose keys and values each of `parts` devices holds in a rollout."""
    heads = model.n_kv_heads * kv_copies(model, parts)
    return heads if heads % parts else heads // parts


def _shardings(published: Published, mesh: Mesh) -> Published:
    """A NamedSharding for every array of a publication (or of its shapes)."""

    def place(path, leaf):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        axes = next(_AXES[name] for name in names if name in _AXES)
        stacked = ("layers",) if "layers" in names and not published.unrolled else ()
        return meshes.sharding(mesh, (*stacked, *axes)[: leaf.ndim], meshes.ROLLOUT, shape=leaf.shape)

    return jax.tree_util.tree_map_with_path(place, published)


def _layer(weights: dict, spec: PublicationSpec) -> Layer:
    copied = {name: _copy_heads(name, w, spec.kv_copies) for name, w in weights.items()}
    if spec.model.qkv_bias:
        copied["qkv_bias"] = copied["qkv_bias"].astype(spec.dtype)
    layer = layer_of(copied)
    return layer.replace(**{name: _matrix(copied[name], n, spec=spec) for name, n in INPUTS.items()})


def _copy_heads(name: str, weight: jax.Array, copies: int) -> jax.Array:
    """A weight of one layer with every kv head `copies` times, each copy with its share of the query heads."""
    if copies == 1 or "kv_heads" not in AXES[name]:
        return weight
    if name == "o":
        d, g, r, e = weight.shape
        return weight.reshape(d, g * copies, r // copies, e)
    g, r, *rest = weight.shape[0], weight.shape[1] - 2, *weight.shape[2:]
    q = weight[:, :r].reshape(g * copies, r // copies, *rest)
    return jnp.concatenate([q, jnp.repeat(weight[:, r:], copies, axis=0)], axis=1)


def _matrix(weight: jax.Array, inputs: int = 1, *, spec: PublicationSpec) -> Matrix:
    if spec.weights == "int8":
        return quantise(weight, inputs)
    return Matrix(weight=weight.astype(spec.dtype), inputs=inputs)


def look_up(published: Published, tokens: jax.Array) -> jax.Array:
    """Embeddings [..., D] of token ids [...]."""
    table = published.embed
    x = table.weight[tokens].astype(published.dtype)
    return x if table.scale is None else (x * table.scale[tokens][..., None]).astype(published.dtype)


def logits(published: Published, hidden_ND: jax.Array) -> jax.Array:
    """float32 logits [N, V] of final hidden states."""
    return multiply(hidden_ND, published.embed if published.head is None else published.head)
