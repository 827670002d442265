"""The rollout: prompts in, a finished Forest out, in one jitted call.

    1. Prefill every prompt once. A queue holds P*M trees; B slots work on them.
    2. Refill (outer loop, rare): an idle slot starts its tree's next branch, or takes the next tree, or steals the last
       pending branch of a busy slot (copying that slot's keys and values). A branch starts where its parent's keys and
       values already are: the cursor goes back to the branch point, the last prefix token is fed once as a probe (its
       hidden state gives the prior of z) and once more with z on.
    3. Decode (inner loop): one token for every live slot, until enough slots are idle.

Decoding over the stale suffix of the parent copies nothing. The key of a token is folded from (trajectory, position),
so the Forest does not depend on the number of slots or on when they are refilled. Left out: prefill in chunks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.forest import LENGTH, STOP, Forest
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.cvae import bind_cvae
from iiblpo_jax.model.decoder import bind, output_weights, prefill, unstack
from iiblpo_jax.model.psa import bind_psa, gamma
from iiblpo_jax.rollout.branching import Branching, candidate_mask, choose_points
from iiblpo_jax.rollout.cache import (
    Injection,
    LayerCache,
    decode_step,
    empty_cache,
    fill_prompts,
    injections,
)
from iiblpo_jax.rollout.sampling import Sampling, sample

NO_BRANCHES = Branching()
AS_IT_IS = Sampling()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """Everything static about a rollout; hashable, one compilation for each.

    Attributes:
      model: architecture.
      roots: M trees a prompt.
      branching: how branches grow.
      slots: B sequences decoded at once.
      refill_at: idle slots with work waiting that end the inner loop.
      max_tokens: T.
      min_tokens: response length before a stop token may be drawn.
      sampling: how tokens are drawn.
      stop_ids: token ids that end a response.
      half_life, strength: decay and strength of z (psa.gamma).
    """

    model: ModelConfig
    roots: int
    branching: Branching = NO_BRANCHES
    slots: int
    refill_at: int = 1
    max_tokens: int
    min_tokens: int = 0
    sampling: Sampling = AS_IT_IS
    stop_ids: tuple[int, ...]
    half_life: float = 256.0
    strength: float = 1.0


@struct.dataclass
class Slots:
    """What each slot is doing.

    Attributes:
      trajectory_B: the trajectory being decoded or just finished; -1 before the first.
      prompt_B, prompt_len_B: its prompt.
      live_B: a token is to be decoded.
      token_B: token to feed next, at response index index_B - 1 (the last prompt token for index 0).
      index_B: response index of the token to be drawn.
      branch_at_B: t* of a branch, 0 for a root.
      last_B: number of the last branch of its tree that is still this slot's; K until one is stolen.
      z_on_B: z acts on this trajectory.
      cache, injected: per-layer keys and values, and what z adds.
    """

    trajectory_B: jax.Array
    prompt_B: jax.Array
    prompt_len_B: jax.Array
    live_B: jax.Array
    token_B: jax.Array
    index_B: jax.Array
    branch_at_B: jax.Array
    last_B: jax.Array
    z_on_B: jax.Array
    cache: list[LayerCache]
    injected: list[Injection | None] | None


@struct.dataclass
class State:
    """Carry of both loops: slots, the growing Forest, the head of the queue, and counts of slot-steps."""

    slots: Slots
    forest: Forest
    next_tree: jax.Array
    steps: jax.Array
    tokens: jax.Array


@struct.dataclass
class RolloutStats:
    """tokens: generated in total; slot_utilisation: tokens / (steps * B), the probe steps not counted."""

    tokens: jax.Array
    slot_utilisation: jax.Array


@functools.partial(jax.jit, static_argnames="spec")
def rollout(
    params: dict,
    prompt_PS: jax.Array,
    prompt_len_P: jax.Array,
    key: jax.Array,
    *,
    spec: RolloutSpec,
    latents: dict | None = None,
) -> tuple[Forest, RolloutStats]:
    """Samples M*(1+K) trajectories for every prompt.

    Args:
      params: the policy; its dtype is the dtype of decoding and of the caches.
      prompt_PS, prompt_len_P: right-padded prompts.
      key: PRNG key of this rollout.
      spec: static.
      latents: {"psa": params, "cvae": params} to steer branches, or None for plain resampling.
    """
    engine = _Engine(spec, bind(spec.model, params), latents, key)
    k_LPGSE, v_LPGSE = prefill(engine.model, prompt_PS)
    refill = functools.partial(engine.refill, k_LPGSE=k_LPGSE, v_LPGSE=v_LPGSE)
    state = engine.initial(prompt_PS, prompt_len_P)
    state = jax.lax.while_loop(engine.unfinished, lambda s: engine.decode(refill(s)), state)
    utilisation = state.tokens / jnp.maximum(state.steps * spec.slots, 1)
    return state.forest, RolloutStats(tokens=state.tokens, slot_utilisation=utilisation)


class _Engine:
    """The loop bodies of one rollout, closed over its traced weights."""

    def __init__(self, spec: RolloutSpec, model, latents: dict | None, key: jax.Array):
        self.spec, self.model, self.layers = spec, model, unstack(model)
        self.psa = self.cvae = None
        if latents is not None and spec.branching.k > 0 and spec.strength > 0:
            self.psa, self.cvae = bind_psa(latents["psa"], spec.model), bind_cvae(latents["cvae"])
        self.token_key, self.point_key, self.latent_key = jax.random.split(key, 3)
        self.tree_size = 1 + spec.branching.k
        self.embed_VD, self.final_norm_D = model.embed[...], model.final_norm[...]
        self.step = functools.partial(decode_step, self.layers, self.embed_VD, self.final_norm_D)

    def initial(self, prompt_PS, prompt_len_P) -> State:
        spec, (p, s), b = self.spec, prompt_PS.shape, self.spec.slots
        r, t = p * spec.roots * self.tree_size, spec.max_tokens
        z_width = 0 if self.cvae is None else self.cvae.latent
        int_B, int_R, float_RT = jnp.zeros(b, jnp.int32), jnp.zeros(r, jnp.int32), jnp.zeros((r, t))
        dtype = self.embed_VD.dtype
        injected = None
        if self.psa is not None:
            injected = injections(self.psa, jnp.zeros((b, z_width)), spec.model.n_layers, dtype)
        slots = Slots(
            trajectory_B=int_B - 1, prompt_B=int_B, prompt_len_B=int_B + 1, live_B=int_B > 0, token_B=int_B,
            index_B=int_B, branch_at_B=int_B, last_B=int_B, z_on_B=int_B > 0, injected=injected,
            cache=empty_cache(spec.model, b, s + t, dtype),
        )  # fmt: skip
        forest = Forest(
            prompt_PS=prompt_PS, prompt_len_P=prompt_len_P, tokens_RT=jnp.zeros((r, t), jnp.int32), logp_RT=float_RT,
            raw_logp_RT=float_RT, entropy_RT=float_RT, length_R=int_R, finish_R=int_R + LENGTH,
            parent_R=self._parents(r),
            branch_at_R=int_R, z_RZ=jnp.zeros((r, z_width)), fallback_R=int_R > 0,
        )  # fmt: skip
        zero = jnp.zeros((), jnp.int32)
        return State(slots=slots, forest=forest, next_tree=zero, steps=zero, tokens=zero)

    def _parents(self, r):
        j = jnp.arange(r) % self.tree_size
        back = j if self.spec.branching.parent == "root" else 1
        return jnp.where(j == 0, -1, jnp.arange(r) - back)

    # -- what is left to do -------------------------------------------------------------------------------------------

    def _pending(self, slots: Slots):
        """Branches [B] that a slot still has to grow after the trajectory it is at."""
        return jnp.where(slots.trajectory_B >= 0, slots.last_B - slots.trajectory_B % self.tree_size, 0)

    def _owes(self, slots: Slots):
        """Idle slots whose tree still has branches to grow."""
        return ~slots.live_B & (self._pending(slots) > 0)

    def _donates(self, slots: Slots):
        """Slots with a branch to give away: the root is finished, and one is left after the slot's own next.

        Branches are grown latest t* first, so what a slot has overwritten lies behind the branch point of its last one.
        In a chain nothing can be given away: a branch grows on the one before.
        """
        if self.spec.branching.parent != "root":
            return jnp.zeros_like(slots.live_B)
        at_branch_B = slots.trajectory_B % self.tree_size > 0
        return jnp.where(slots.live_B, at_branch_B & (self._pending(slots) > 0), self._pending(slots) > 1)

    def _refillable(self, s: State):
        """How many idle slots could start something now."""
        owes_B, trees = self._owes(s.slots), s.forest.length_R.shape[0] // self.tree_size
        on_offer = trees - s.next_tree + self._donates(s.slots).sum()
        return owes_B.sum() + jnp.minimum((~s.slots.live_B & ~owes_B).sum(), on_offer)

    def unfinished(self, s: State):
        return s.slots.live_B.any() | (self._refillable(s) > 0)

    # -- outer loop ---------------------------------------------------------------------------------------------------

    def refill(self, s: State, *, k_LPGSE, v_LPGSE) -> State:
        """Gives idle slots their next trajectory: a branch of their own tree, the root of the next, a stolen branch."""
        slots, forest = s.slots, s.forest
        owes_B, trees = self._owes(slots), forest.length_R.shape[0] // self.tree_size
        free_B = ~slots.live_B & ~owes_B
        tree_B = s.next_tree + jnp.cumsum(free_B) - 1
        take_B = free_B & (tree_B < trees)
        root_B = jnp.where(take_B, tree_B, 0) * self.tree_size
        prompt_B = jnp.where(take_B, tree_B // self.spec.roots, slots.prompt_B)
        end_B = jnp.maximum(forest.prompt_len_P[prompt_B] - 1, 0)
        zero_where = lambda x_B: jnp.where(take_B, 0, x_B)  # noqa: E731
        slots = slots.replace(
            trajectory_B=jnp.where(take_B, root_B, slots.trajectory_B + owes_B),
            prompt_B=prompt_B,
            prompt_len_B=forest.prompt_len_P[prompt_B],
            token_B=jnp.where(take_B, forest.prompt_PS[prompt_B, end_B], slots.token_B),
            index_B=zero_where(slots.index_B),
            branch_at_B=zero_where(slots.branch_at_B),
            last_B=jnp.where(take_B, self.spec.branching.k, slots.last_B),
            z_on_B=slots.z_on_B & ~take_B,
            live_B=slots.live_B | take_B | owes_B,
            cache=fill_prompts(slots.cache, take_B, prompt_B, k_LPGSE, v_LPGSE),
        )
        s = s.replace(slots=slots, next_tree=s.next_tree + take_B.sum())
        if self.spec.branching.k == 0:
            return s
        slots, stolen_B = self._steal(s.slots)
        return self._start_branches(s.replace(slots=slots), owes_B | stolen_B)

    def _steal(self, slots: Slots) -> tuple[Slots, jax.Array]:
        """Idle slots take the last pending branch of a donor each, and copy its keys and values."""
        free_B, donor_B = ~slots.live_B, self._donates(slots)
        donors_B = jnp.argsort(~donor_B, stable=True)  # donors first
        rank_B = jnp.cumsum(free_B) - 1
        stolen_B = free_B & (rank_B < donor_B.sum())
        from_B = jnp.where(stolen_B, donors_B[rank_B], jnp.arange(free_B.shape[0]))
        gives_B = jnp.zeros_like(free_B).at[jnp.where(stolen_B, from_B, free_B.shape[0])].set(True, mode="drop")
        root_B = slots.trajectory_B - slots.trajectory_B % self.tree_size
        slots = slots.replace(
            trajectory_B=jnp.where(stolen_B, (root_B + slots.last_B)[from_B], slots.trajectory_B),
            last_B=jnp.where(stolen_B, slots.last_B[from_B], slots.last_B - gives_B),
            prompt_B=slots.prompt_B[from_B],
            prompt_len_B=slots.prompt_len_B[from_B],
            live_B=slots.live_B | stolen_B,
            cache=jax.tree.map(lambda x: x[from_B], slots.cache),
        )
        return slots, stolen_B

    def _start_branches(self, s: State, start_B) -> State:
        """Puts the cursor of starting slots at their branch point, inherits the prefix, draws z."""
        forest, slots = s.forest, s.slots
        trajectory_B = slots.trajectory_B
        parent_B = jnp.maximum(forest.parent_R[trajectory_B], 0)
        at_B, fallback_B = self._branch_points(forest, parent_B, trajectory_B % self.tree_size - 1)
        write_B = jnp.where(start_B, trajectory_B, forest.length_R.shape[0])
        inherited_BT = jnp.arange(self.spec.max_tokens) < at_B[:, None]

        def inherit(x_RT):
            return x_RT.at[write_B].set(jnp.where(inherited_BT, x_RT[parent_B], 0), mode="drop")

        forest = forest.replace(
            tokens_RT=inherit(forest.tokens_RT),
            logp_RT=inherit(forest.logp_RT),
            raw_logp_RT=inherit(forest.raw_logp_RT),
            entropy_RT=inherit(forest.entropy_RT),
            branch_at_R=forest.branch_at_R.at[write_B].set(at_B, mode="drop"),
            fallback_R=forest.fallback_R.at[write_B].set(fallback_B, mode="drop"),
        )
        before_B = jnp.maximum(at_B - 1, 0)
        prompt_end_B = forest.prompt_PS[slots.prompt_B, jnp.maximum(slots.prompt_len_B - 1, 0)]
        token_B = jnp.where(at_B > 0, forest.tokens_RT[parent_B, before_B], prompt_end_B)
        choose = lambda new_B, old_B: jnp.where(start_B, new_B, old_B)  # noqa: E731
        slots = slots.replace(
            token_B=choose(token_B, slots.token_B),
            index_B=choose(at_B, slots.index_B),
            branch_at_B=choose(at_B, slots.branch_at_B),
            z_on_B=choose(~fallback_B & (self.psa is not None), slots.z_on_B),
        )
        s = s.replace(slots=slots, forest=forest)
        return s if self.psa is None else self._draw_latents(s, start_B & ~fallback_B)

    def _branch_points(self, forest: Forest, parent_B, nth_B):
        """t* of the nth branch, and whether its parent had no candidate (then t* = 1, or 0 for a whole resample)."""
        spec, branching = self.spec, self.spec.branching
        length_B, stopped_B = forest.length_R[parent_B], forest.finish_R[parent_B] == STOP
        candidates_BT = candidate_mask(forest.entropy_RT[parent_B], length_B, stopped_B, branching)
        keys_B = jax.vmap(lambda r: jax.random.fold_in(self.point_key, r))(parent_B)
        points_BK = choose_points(candidates_BT, keys_B, branching)
        nth_B = jnp.clip(nth_B, 0, branching.k - 1) if branching.parent == "root" else jnp.zeros_like(nth_B)
        fallback_B = ~candidates_BT.any(-1)
        restart_B = ((length_B - stopped_B > 0) & (spec.max_tokens > 1)).astype(jnp.int32)
        at_B = jnp.take_along_axis(points_BK, nth_B[:, None], axis=1)[:, 0]
        return jnp.where(fallback_B, restart_B, at_B).astype(jnp.int32), fallback_B

    def _draw_latents(self, s: State, start_B) -> State:
        """The probe: feeds the last prefix token without z; its hidden state gives the prior that z is drawn from."""
        slots, forest = s.slots, s.forest
        hidden_BD, cache = self.step(
            slots.cache, slots.token_B, self._position(slots), start_B, slots.injected, jnp.zeros(self.spec.slots)
        )
        keys_B = jax.vmap(lambda r: jax.random.fold_in(self.latent_key, r))(slots.trajectory_B)
        z_BZ = self.cvae.sample_prior(hidden_BD, keys_B)
        new = injections(self.psa, z_BZ, self.spec.model.n_layers, hidden_BD.dtype)
        pick = lambda a, b: jnp.where(start_B.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        write_B = jnp.where(start_B, slots.trajectory_B, forest.length_R.shape[0])
        slots = slots.replace(cache=cache, injected=jax.tree.map(pick, new, slots.injected))
        return s.replace(slots=slots, forest=forest.replace(z_RZ=forest.z_RZ.at[write_B].set(z_BZ, mode="drop")))

    # -- inner loop ---------------------------------------------------------------------------------------------------

    def decode(self, s: State) -> State:
        """Decodes until `refill_at` slots could be refilled, or as many as are still busy if those are fewer."""

        def enough(s: State):
            busy = (s.slots.live_B | self._owes(s.slots)).sum()
            return self._refillable(s) >= jnp.clip(busy, 1, self.spec.refill_at)

        return jax.lax.while_loop(lambda s: s.slots.live_B.any() & ~enough(s), self._decode_token, s)

    def _position(self, slots: Slots):
        return slots.prompt_len_B + slots.index_B - 1

    def _decode_token(self, s: State) -> State:
        spec, slots = self.spec, s.slots
        since_B = slots.index_B - slots.branch_at_B
        gamma_B = jnp.where(slots.z_on_B, gamma(since_B, half_life=spec.half_life, strength=spec.strength), 0.0)
        hidden_BD, cache = self.step(
            slots.cache, slots.token_B, self._position(slots), slots.live_B, slots.injected, gamma_B
        )
        head_VD = output_weights(self.model)
        logits_BV = jnp.einsum("bd,vd->bv", hidden_BD, head_VD, preferred_element_type=jnp.float32)
        draw = sample(logits_BV, self._token_keys(slots), spec.sampling, self._forbidden(slots))
        stop_B = jnp.isin(draw.token_B, jnp.array(spec.stop_ids, jnp.int32))
        ends_B = slots.live_B & (stop_B | (slots.index_B + 1 >= spec.max_tokens))
        forest = self._record(s.forest, slots, draw, stop_B, ends_B)
        slots = slots.replace(
            cache=cache,
            token_B=jnp.where(slots.live_B, draw.token_B, slots.token_B),
            index_B=slots.index_B + slots.live_B,
            live_B=slots.live_B & ~ends_B,
        )
        return s.replace(slots=slots, forest=forest, steps=s.steps + 1, tokens=s.tokens + s.slots.live_B.sum())

    def _token_keys(self, slots: Slots):
        fold = lambda r, t: jax.random.fold_in(jax.random.fold_in(self.token_key, r), t)  # noqa: E731
        return jax.vmap(fold)(slots.trajectory_B, slots.index_B)

    def _forbidden(self, slots: Slots):
        """Stop tokens [B,V] while the response is shorter than min_tokens."""
        if self.spec.min_tokens <= 0:
            return None
        stops_V = jnp.zeros(self.spec.model.vocab_size, bool).at[jnp.array(self.spec.stop_ids, jnp.int32)].set(True)
        return (slots.index_B + 1 < self.spec.min_tokens)[:, None] & stops_V

    def _record(self, forest: Forest, slots: Slots, draw, stop_B, ends_B) -> Forest:
        """Writes the drawn tokens of live slots, and the length and finish reason of trajectories that end."""
        out_of_range = forest.length_R.shape[0]
        row_B = jnp.where(slots.live_B, slots.trajectory_B, out_of_range)
        end_B = jnp.where(ends_B, slots.trajectory_B, out_of_range)
        put = lambda x_RT, x_B: x_RT.at[row_B, slots.index_B].set(x_B, mode="drop")  # noqa: E731
        return forest.replace(
            tokens_RT=put(forest.tokens_RT, draw.token_B),
            logp_RT=put(forest.logp_RT, draw.logp_B),
            raw_logp_RT=put(forest.raw_logp_RT, draw.raw_logp_B),
            entropy_RT=put(forest.entropy_RT, draw.entropy_B),
            length_R=forest.length_R.at[end_B].set(slots.index_B + 1, mode="drop"),
            finish_R=forest.finish_R.at[end_B].set(jnp.where(stop_B, STOP, LENGTH), mode="drop"),
        )
