"""LoRA (Hu et al., arXiv 2106.09685): what is learnt of a matrix is a product of two thin ones.

    y = W x + (alpha / r) B A x,    A [r, in] uniform in +-1/sqrt(in),  B [out, r] zero at the start

W is frozen: no gradient is taken of it, and no optimizer state is kept. Weights of a layer are fused (model/layer.py)
and adapters are not: each projection that PEFT has a name for has its own A and B, which are put together along the
axis that the fused matrix has them on.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRASpec:
    """Everything static about an adapter; hashable.

    Attributes:
      rank: r.
      alpha: BA counts alpha / r times.
      targets: projections that have one, of LORA_TARGETS.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank


class Projection(NamedTuple):
    """A projection as part of a fused matrix.

    Attributes:
      leaf: the matrix, a name of layer.AXES.
      out, inside: shapes of its output and its input, as the fused matrix has them.
      out_axes, in_axes: their logical axes (mesh.py).
    """

    leaf: str
    out: tuple[int, ...]
    inside: tuple[int, ...]
    out_axes: tuple[str | None, ...]
    in_axes: tuple[str | None, ...]


def projections(config: ModelConfig) -> dict[str, Projection]:
    """Every projection of a layer by the name that PEFT has for it, those of a matrix in their order along axis -2."""
    d, f, g, e = (config.d_model,), (config.d_ff,), config.n_kv_heads, config.head_dim
    r, heads, wide = config.n_heads // g, ("kv_heads", None, "head"), ("embed",)
    return {
        "q_proj": Projection("qkv", (g, r, e), d, heads, wide),
        "k_proj": Projection("qkv", (g, 1, e), d, heads, wide),
        "v_proj": Projection("qkv", (g, 1, e), d, heads, wide),
        "o_proj": Projection("o", d, (g, r, e), wide, heads),
        "gate_proj": Projection("gate_up", (1, *f), d, (None, "mlp"), wide),
        "up_proj": Projection("gate_up", (1, *f), d, (None, "mlp"), wide),
        "down_proj": Projection("down", d, f, wide, ("mlp",)),
    }


def check_rank(spec: LoRASpec, config: ModelConfig) -> None:
    """Raises InputError where a product of rank r is no thinner than a matrix that it is beside."""
    known = projections(config)
    sizes = {name: min(math.prod(known[name].out), math.prod(known[name].inside)) for name in spec.targets}
    name = min(sizes, key=sizes.__getitem__)
    if spec.rank > sizes[name]:
        raise InputError(
            f"lora.rank = {spec.rank} exceeds {sizes[name]}, the rank of {name}; use at most {sizes[name]}, or leave "
            f"{name} out of lora.targets"
        )


class LoRA(nnx.Module):
    """The adapters of all layers, which start as nothing.

    Attributes:
      TARGET_a [L,r,*in], TARGET_b [L,*out,r]: nnx.Params of every target, such as q_proj_a.
    """

    def __init__(self, config: ModelConfig, spec: LoRASpec, *, rngs: nnx.Rngs):
        n, r, known = config.n_layers, spec.rank, projections(config)
        for name in sorted(spec.targets, key=LORA_TARGETS.index):
            one = known[name]
            bound = math.prod(one.inside) ** -0.5
            a = jax.random.uniform(rngs.params(), (n, r, *one.inside), minval=-bound, maxval=bound)
            setattr(self, f"{name}_a", nnx.Param(a, axes=("layers", None, *one.in_axes)))
            setattr(self, f"{name}_b", nnx.Param(jnp.zeros((n, *one.out, r)), axes=("layers", *one.out_axes, None)))


@struct.dataclass
class LowRank:
    """B A of one projection: a [r, *in], b [*out, r]."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [..., *out] of x [..., *in]."""
        inputs = self.a.ndim - 1
        over = list(range(x.ndim - inputs, x.ndim)), list(range(1, self.a.ndim))
        inner_r = jnp.tensordot(x, self.a, over, preferred_element_type=jnp.float32).astype(x.dtype)
        return jnp.tensordot(inner_r, self.b, ([-1], [-1]), preferred_element_type=jnp.float32)

    def weight(self) -> jax.Array:
        """[*out, *in]."""
        return jnp.tensordot(self.b, self.a, ([-1], [0]), preferred_element_type=jnp.float32)


@struct.dataclass
class LoRADelta:
    """What adapters add to the product of one fused matrix: a layer.Delta.

    Attributes:
      parts: of every projection in the matrix, in order; None where it has none.
      widths: of each along axis -2 of the output; not used where there is one part.
      scale: alpha / r.
    """

    parts: tuple[LowRank | None, ...]
    widths: tuple[int, ...] = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.scale * self._together([part and part(x) for part in self.parts], -2)

    def weight(self) -> jax.Array:
        some = next(part for part in self.parts if part is not None)
        return self.scale * self._together([part and part.weight() for part in self.parts], -2 - (some.a.ndim - 1))

    def _together(self, pieces: list, axis: int) -> jax.Array:
        """The pieces side by side along an axis counted from the last, zeros for those that are None."""
        if len(pieces) == 1:
            return pieces[0]
        like = next(piece for piece in pieces if piece is not None)
        before, after = like.shape[:axis], like.shape[axis + 1 :]

        def zeros(width):
            return jnp.zeros((*before, width, *after), like.dtype)

        whole = [zeros(n) if piece is None else piece for piece, n in zip(pieces, self.widths, strict=True)]
        return jnp.concatenate(whole, axis)


def deltas(config: ModelConfig, spec: LoRASpec, adapter: dict) -> dict[str, LoRADelta]:
    """What is added to each matrix that has an adapter, by its name in layer.AXES; stacked over layers as `adapter`."""
    found: dict[str, LoRADelta] = {}
    known = projections(config)
    for leaf in dict.fromkeys(one.leaf for one in known.values()):
        names = [name for name, one in known.items() if one.leaf == leaf]
        if not any(name in spec.targets for name in names):
            continue
        parts = tuple(
            LowRank(a=adapter[f"{name}_a"], b=adapter[f"{name}_b"]) if name in spec.targets else None for name in names
        )
        widths = tuple(known[name].out[-2] if len(names) > 1 else 1 for name in names)
        found[leaf] = LoRADelta(parts=parts, widths=widths, scale=spec.scale)
    return found
