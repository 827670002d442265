"""A policy that is a frozen base with an adapter beside it (lora.py): one copy of the base serves policy and reference.

    update     y = W x + (alpha / r) B A x, W in the dtype it is stored in, cast or dequantised a layer at a time
    rollout    the merged weights W + (alpha / r) B A, which its publication is made of anyhow
    reference  the base with the adapter off

The base is stored in float32, in bfloat16, or with the matrices of its layers in int8 (quantised.py) and all else in
bfloat16: QLoRA (arXiv 2305.14314) with 8 bits, of which the hardware multiplies, in place of its 4-bit NormalFloat.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import NamedSharding, PartitionSpec

from iiblpo_jax.model.adapters.lora import LoRASpec, deltas
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, bind, cast
from iiblpo_jax.model.layer import AXES, INPUTS, Layer, LayerStack, Matrix, layer_of
from iiblpo_jax.model.quantised import dequantised, quantise


class Adapted(struct.PyTreeNode):
    """Weights of a policy: a base, and what was learnt beside it.

    Attributes:
      base: as a Decoder's weights, of `stored`.
      adapter: of a LoRA; None = off, the reference.
      model, spec: static.
      dtype: name of that of the computation.
    """

    base: dict
    adapter: dict | None
    model: ModelConfig = struct.field(pytree_node=False)
    spec: LoRASpec = struct.field(pytree_node=False)
    dtype: str = struct.field(pytree_node=False, default="float32")

    @property
    def stacked(self) -> Layer:
        """All layers, matrices as they are stored and everything else in the dtype of the computation."""
        names = self.base["layers"].items()
        layer = layer_of({name: w if name in INPUTS else w.astype(self.dtype) for name, w in names})
        found = {} if self.adapter is None else deltas(self.model, self.spec, cast(self.adapter, self.dtype))
        return layer.replace(**{name: getattr(layer, name).replace(delta=delta) for name, delta in found.items()})

    @property
    def top(self) -> dict:
        """All but the layers."""
        return {name: w for name, w in self.base.items() if name != "layers"}


Weights = dict | Adapted  # of a policy or a reference


def stored(params: dict, kind: str) -> dict:
    """A base of a Decoder's weights, nested alike.

    Args:
      params: of `decoder.params_of`.
      kind: lora.base: `float32`, `bfloat16` or `int8`, in which a matrix of layers becomes a Matrix.
    """
    dtype = jnp.float32 if kind == "float32" else jnp.bfloat16
    matrices = INPUTS if kind == "int8" else {}
    layers = {name: w for name, w in params["layers"].items() if name not in matrices}
    whole = cast({**params, "layers": layers}, dtype)
    small = {name: quantise(params["layers"][name], inputs) for name, inputs in matrices.items()}
    return {**whole, "layers": whole["layers"] | small}


def base_shardings(shardings: dict, base: dict) -> dict:
    """Where a base (or its shapes) lies, from where the weights do that it is made of: a scale as its channels do."""

    def place(where: NamedSharding, weight):
        return jax.tree.map(lambda leaf: NamedSharding(where.mesh, PartitionSpec(*where.spec[: leaf.ndim])), weight)

    return jax.tree.map(place, shardings, base)


def policy_of(params: dict, base: Adapted | None) -> Weights:
    """The policy of a state's params: its own weights, or the base with the adapter that they are."""
    return params["policy"] if base is None else base.replace(adapter=params["lora"])


def bound(config: ModelConfig, weights: Weights, dtype: Any = None) -> Decoder:
    """A decoder over weights (works inside jit).

    Args:
      config: architecture.
      weights: of a policy or a reference.
      dtype: of the computation; None = of the weights. Adapted ones bring theirs.
    """
    if isinstance(weights, Adapted):
        return _AdaptedDecoder(weights)
    return bind(config, weights if dtype is None else cast(weights, dtype))


def stacked_layers(weights: Weights):
    """A pytree with a leading axis of all L layers, of which `whole_layer` takes one."""
    return weights.stacked if isinstance(weights, Adapted) else weights["layers"]


def whole_layer(layer: Layer | dict) -> dict:
    """The arrays of one layer by name, those of an adapter merged into its matrices, in float32."""
    if isinstance(layer, dict):
        return layer
    return {name: _whole(part) for name in AXES if (part := getattr(layer, name)) is not None}


def top_weights(weights: Weights) -> dict:
    """What is not in layers: embed, final_norm and, where it is not tied, head."""
    return weights.top if isinstance(weights, Adapted) else weights


@jax.jit
def merged(weights: Adapted) -> dict:
    """A Decoder's weights in float32: the base, dequantised, with the adapter added."""
    layers = jax.vmap(whole_layer)(weights.stacked)
    return cast({**weights.top, "layers": layers}, jnp.float32)


def _whole(part: Matrix | jax.Array) -> jax.Array:
    if not isinstance(part, Matrix):
        return part
    weight = dequantised(part)
    return weight if part.delta is None else weight + part.delta.weight()


class _Layers(LayerStack):
    """Layers that are there already."""

    def __init__(self, layers: Layer):
        self._layers = nnx.data(layers)

    def stacked(self) -> Layer:
        return self._layers


class _AdaptedDecoder(Decoder):
    """A decoder over adapted weights. Embedding and head are cast whole, which is nothing in the dtype they have."""

    def __init__(self, weights: Adapted):
        self.config = weights.model
        for name, w in weights.top.items():
            setattr(self, name, nnx.Param(w.astype(weights.dtype)))
        self.layers = _Layers(weights.stacked)
