"""Next-token sampling: temperature, then top-k, top-p, min-p, as in Hugging Face's order of warpers."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.rollout.kth_largest import bits, least_with_room

LANES = 1024  # partial sums of a row
FARTHEST = 70.0  # nats by which a forbidden token may exceed every allowed one and still be weighed rightly
CDF_BLOCK = 128  # the inverse-CDF search looks at V/128 block sums, then inside one block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from logits.

    Attributes:
      temperature: divides the logits; 0 = greedy.
      top_k: keep the k likeliest tokens; 0 = all.
      top_p: keep the smallest set of likeliest tokens that holds this probability; 1 = all.
      min_p: drop tokens below this fraction of the likeliest one's probability; 0 = none.
      record: likeliest tokens that are noted with every draw; 0 = none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    record: int = 0


class Draw(struct.PyTreeNode):
    """One sampled token a slot: id, log-prob and entropy (nats), both at the temperature and before truncation.

    left_B: share of what could be drawn that was left to draw from: 1 but for `Another`; 0 = nothing was, and it drew
    like anybody else.
    With Sampling.record the likeliest tokens and their log-probs too, in the same way, likeliest first.
    """

    token_B: jax.Array
    raw_logp_B: jax.Array
    entropy_B: jax.Array
    left_B: jax.Array
    top_token_BK: jax.Array | None = None
    top_logp_BK: jax.Array | None = None


class Another(struct.PyTreeNode):
    """Who is to draw another token than those drawn before it from the same distribution, one entry a slot.

    Attributes:
      due_B: the slot's next token is to be another; elsewhere nothing below is looked at.
      first_B: the token that was drawn first.
      elder_B: how many were drawn after that, each another one.
      uniform_BN: a random number for each of these draws, by their order. What was drawn is worked out again from them,
        so that nobody has to wait for anybody.
    """

    due_B: jax.Array
    first_B: jax.Array
    elder_B: jax.Array
    uniform_BN: jax.Array


def nobody(slots: int, draws: int) -> Another:
    """Another of slots of which none is due, with as many draws from one distribution as there may be."""
    zero_B = jnp.zeros(slots, jnp.int32)
    return Another(zero_B > 0, zero_B, zero_B, jnp.zeros((slots, draws)))


def sample(
    logits_BV: jax.Array,
    uniform_B: jax.Array,
    sampling: Sampling,
    forbidden_BV: jax.Array | None = None,
    another: Another | None = None,
) -> Draw:
    """Draws one token a row.

    Args:
      logits_BV: float32.
      uniform_B: one random number in [0, 1) a row, so that a draw does not depend on its neighbours.
      sampling: static. At temperature 0 the entropy and the log-prob are those of temperature 1.
      forbidden_BV: tokens that may not be drawn yet (min_tokens); it counts as truncation: the log-prob and the entropy
        are those of the whole vocabulary.
      another: who draws without replacement; None = nobody.
    """
    greedy = sampling.temperature == 0
    scaled_BV = logits_BV if greedy else logits_BV / sampling.temperature
    if forbidden_BV is None:
        shifted_BV = scaled_BV - scaled_BV.max(-1, keepdims=True)
    else:  # a forbidden token may be so likely that all others would vanish beside it
        largest_B1 = jnp.where(forbidden_BV, -jnp.inf, scaled_BV).max(-1, keepdims=True)
        shifted_BV = jnp.minimum(scaled_BV - largest_B1, FARTHEST)
    p_BV = jnp.exp(shifted_BV)  # up to a factor, which nothing below minds
    total_B = _row_sum(p_BV)
    q_BV = p_BV if forbidden_BV is None else jnp.where(forbidden_BV, 0.0, p_BV)
    q_BV = truncate(q_BV, sampling)
    token_B = q_BV.argmax(-1) if greedy else _inverse_cdf(q_BV, uniform_B)
    left_B = jnp.ones_like(total_B)
    if another is not None:
        token_B, left_B = jax.lax.cond(another.due_B.any(), _draw_another, _as_drawn, q_BV, token_B, another)
    at_token_B = jnp.take_along_axis(shifted_BV, token_B[:, None], axis=1)[:, 0]
    draw = Draw(
        token_B=token_B,
        raw_logp_B=at_token_B - jnp.log(total_B),
        entropy_B=jnp.log(total_B) - _row_sum(p_BV * shifted_BV) / total_B,
        left_B=left_B,
    )
    if not sampling.record:
        return draw
    shifted_BK, top_token_BK = jax.lax.top_k(shifted_BV, sampling.record)
    return draw.replace(top_token_BK=top_token_BK, top_logp_BK=shifted_BK - jnp.log(total_B)[:, None])


def _as_drawn(q_BV, token_B, another: Another):
    del another
    return token_B, jnp.ones_like(q_BV[:, 0])


def _draw_another(q_BV, token_B, another: Another):
    """(token_B, left_B) with those that are due drawn again; where nothing is left, the token stays."""
    rows, total_B = jnp.arange(token_B.shape[0]), _row_sum(q_BV)

    def draw(n, carry):
        rest_BV, token_B, left_B = carry
        share_B = _row_sum(rest_BV) / total_B
        drawn_B = _inverse_cdf(rest_BV, another.uniform_BN[:, n])
        mine_B = another.due_B & (another.elder_B == n)
        token_B = jnp.where(mine_B & (share_B > 0), drawn_B, token_B)
        return rest_BV.at[rows, drawn_B].set(0.0), token_B, jnp.where(mine_B, share_B, left_B)

    carry = q_BV.at[rows, another.first_B].set(0.0), token_B, jnp.ones_like(total_B)
    return jax.lax.fori_loop(0, another.uniform_BN.shape[1], draw, carry)[1:]


def sample_on_mesh(logits_BV, uniform_B, sampling: Sampling, forbidden_BV=None, another=None) -> Draw:
    """`sample` on the devices of the program being traced, each with its part of the vocabulary.

    Sampling looks at whole rows. They are handed around once, so that each device has all logits of some slots.
    """
    mesh, tensor = meshes.current(), meshes.TRAIN["vocab"]
    parts = meshes.shards(mesh, "vocab")
    if parts == 1 or logits_BV.shape[0] % parts or logits_BV.shape[1] % parts:
        return sample(logits_BV, uniform_B, sampling, forbidden_BV, another)

    def local(logits_BV, uniform_B, forbidden_BV, another):
        logits_bV = jax.lax.all_to_all(logits_BV, tensor, split_axis=0, concat_axis=1, tiled=True)
        b = logits_bV.shape[0]

        def mine(x_B):
            return jax.lax.dynamic_slice_in_dim(x_B, jax.lax.axis_index(tensor) * b, b)

        uniform_b, forbidden_bV, due = jax.tree.map(mine, (uniform_B, forbidden_BV, another))
        draw = sample(logits_bV, uniform_b, sampling, forbidden_bV, due)
        return jax.tree.map(lambda x_b: jax.lax.all_gather(x_b, tensor, tiled=True), draw)

    # All but the logits comes and goes whole: what the slots are doing is not to be split over `tensor`.
    whole = PartitionSpec()
    return jax.shard_map(
        local,
        in_specs=(PartitionSpec(None, tensor), whole, whole, whole),
        out_specs=whole,
        axis_names={tensor},
        check_vma=False,
    )(logits_BV, uniform_B, forbidden_BV, another)


def _row_sum(x_BV: jax.Array) -> jax.Array:
    """Sums [B] of long rows, LANES partial sums first: one accumulator a row would not use a CPU's vector units."""
    b, v = x_BV.shape
    if v <= LANES:
        return x_BV.sum(-1)
    return jnp.pad(x_BV, [(0, 0), (0, -v % LANES)]).reshape(b, -1, LANES).sum(1).sum(-1)


def truncate(p_BV: jax.Array, s: Sampling) -> jax.Array:
    """Zeroes what top-k, top-p and min-p cut off; each looks at what the one before left, renormalised."""
    if 0 < s.top_k < p_BV.shape[1]:
        p_BV = _keep_likeliest(p_BV, lambda above_BV: _row_sum(above_BV.astype(jnp.float32)) < s.top_k)
    if s.top_p < 1:
        goal_B = s.top_p * _row_sum(p_BV)
        p_BV = _keep_likeliest(p_BV, lambda above_BV: _row_sum(jnp.where(above_BV, p_BV, 0.0)) < goal_B)
    if s.min_p > 0:
        p_BV = jnp.where(p_BV >= s.min_p * p_BV.max(-1, keepdims=True), p_BV, 0.0)
    return p_BV


def _keep_likeliest(p_BV: jax.Array, room) -> jax.Array:
    """Zeroes every token i without room(tokens likelier than i), bool [B] of bool [B,V]; equals share their fate."""
    bits_BV = bits(p_BV)
    return jnp.where(bits_BV >= least_with_room(bits_BV, room)[:, None], p_BV, 0.0)


def _inverse_cdf(p_BV: jax.Array, u_B: jax.Array) -> jax.Array:
    """First token whose cumulative probability exceeds u * total: one random number a token instead of V of them."""
    b, v = p_BV.shape
    if v <= CDF_BLOCK:
        return _first_above(p_BV, u_B * p_BV.sum(-1))
    p_BNC = jnp.pad(p_BV, [(0, 0), (0, -v % CDF_BLOCK)]).reshape(b, -1, CDF_BLOCK)
    blocks_BN = p_BNC.sum(-1)
    upto_BN = jnp.cumsum(blocks_BN, axis=-1)
    target_B = u_B * upto_BN[:, -1]
    block_B = jnp.argmax(upto_BN > target_B[:, None], axis=-1)
    rows = jnp.arange(b)
    rest_B = target_B - (upto_BN[rows, block_B] - blocks_BN[rows, block_B])
    return (block_B * CDF_BLOCK + _first_above(p_BNC[rows, block_B], rest_B)).astype(jnp.int32)


def _first_above(p_BC: jax.Array, target_B: jax.Array) -> jax.Array:
    """First possible entry of each row whose cumulative sum exceeds the target, int32.

    Rounding may leave the target just above the row's own sum: then its likeliest entry is taken, never a zero one.
    """
    above_BC = (jnp.cumsum(p_BC, axis=-1) > target_B[:, None]) & (p_BC > 0)
    return jnp.where(above_BC.any(-1), above_BC.argmax(-1), p_BC.argmax(-1)).astype(jnp.int32)
