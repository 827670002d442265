"""The rollout: prompts in, a finished Forest out, in one jitted call.

    1. Prefill every prompt once (prefill.py). A queue holds P*M trees; B slots (slots.py) work on them.
    2. Refill (outer loop, rare): an idle slot starts its tree's next branch, depth first, or takes the next tree, or
       steals the last branch that a busy slot's root is still to grow (copying that slot's keys and values), with all
       that is to grow on it. A branch starts where its parent's keys and values already are: the cursor goes back to
       the branch point (branching.py says why nothing in front of it has been overwritten).
    3. Decode (inner loop): one token for every live slot (decoding.py), until enough slots are idle. The first step of
       a branch is a probe: the last prefix token is fed without z, its hidden state gives the prior that z is drawn
       from, and the same token is fed again with z on.

Decoding over the stale suffix of the parent copies nothing. Every token has its own random number, a function of
(trajectory, position), so the Forest does not depend on the number of slots or on when they are refilled.

Where turns are answered (RolloutSpec.turns), slots wait when theirs has ended, and the loops leave when none can go on:
conversing.py carries their state from there through the host's answer.

On a mesh every part of the devices (mesh.rollout_axes) is an engine of its own, with its share of prompts and slots: no
keys or values travel, and one that has finished waits for nobody until the end. What is left of the mesh, `tensor`,
splits heads, MLP and vocabulary of each engine.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.logprobs import without
from iiblpo_jax.model.steering.psa import Projected
from iiblpo_jax.rollout.branch_points import branch_points, branches_due
from iiblpo_jax.rollout.cache import Cache, copy_slots, empty_cache, fill_prompts
from iiblpo_jax.rollout.decoding import decode_step
from iiblpo_jax.rollout.draws import Draws, Origin, draws_for, in_order, shared_out
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.grown import Grown, nothing_grown, put
from iiblpo_jax.rollout.marker import MarkerTable
from iiblpo_jax.rollout.prefill import prefill
from iiblpo_jax.rollout.publication import Published, logits
from iiblpo_jax.rollout.sampling import Another, nobody, sample_on_mesh
from iiblpo_jax.rollout.slots import Slots, idle_slots, owes, refillable, steal_from, take_trees
from iiblpo_jax.rollout.solved import Gold, Heard, is_right, listen, nothing_heard
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.rollout.steering import Steering, steering_of
from iiblpo_jax.rollout.turns import no_turns


class State(struct.PyTreeNode):
    """Carry of both loops: slots, their caches and latents, what has grown, head of the queue, steps taken."""

    slots: Slots
    cache: Cache
    projected: Projected | None
    grown: Grown
    next_tree: jax.Array
    steps: jax.Array


@struct.dataclass
class Prompts:
    """Right-padded prompts: tokens_PS, length_P."""

    tokens_PS: jax.Array
    length_P: jax.Array

    def last_token(self, prompt_B: jax.Array) -> jax.Array:
        """The last token of prompts."""
        return self.tokens_PS[prompt_B, jnp.maximum(self.length_P[prompt_B] - 1, 0)]


@struct.dataclass
class RolloutStats:
    """tokens: generated in total; slot_utilisation: tokens / (steps * B), so that a probe counts as a wasted step."""

    tokens: jax.Array
    slot_utilisation: jax.Array


@functools.partial(jax.jit, static_argnames="spec")
def rollout(
    published: Published,
    prompt_PS: jax.Array,
    prompt_len_P: jax.Array,
    key: jax.Array | Origin,
    *,
    spec: RolloutSpec,
    latents: dict | None = None,
    gold: Gold | None = None,
) -> tuple[Forest, RolloutStats]:
    """Samples M trees of trajectories for every prompt (forest.py says how they are numbered).

    Args:
      published: the policy (`publication.publish`); it decides dtypes and whether layers are unrolled.
      prompt_PS, prompt_len_P: right-padded prompts.
      key: PRNG key of this rollout; or, where a prompt is to have the same random numbers in whatever company it is
        asked, an Origin.
      spec: static.
      latents: {"psa": params, "cvae": params of a CVAE or of Codes} to steer branches, or None for plain resampling.
      gold: answers of the prompts; wanted where solved roots have no branches (Branching.solved).
    """
    with meshes.using(spec.mesh):
        axes = meshes.rollout_axes(spec.mesh, prompt_PS.shape[0])
        origin = key if isinstance(key, Origin) else in_order(key, prompt_PS.shape[0], spec.group_size)
        engine = functools.partial(_rollout, spec=spec, axes=axes)
        shared, markers = (published, latents), gold and gold.markers
        of_prompts = (prompt_PS, prompt_len_P, origin, gold and gold.replace(markers=()))
        if not axes:
            return engine(shared, markers, of_prompts)
        whole, split = PartitionSpec(), PartitionSpec(axes)
        return jax.shard_map(
            engine, in_specs=(whole, whole, split), out_specs=(split, whole), axis_names=set(axes), check_vma=False
        )(shared, markers, of_prompts)


def _rollout(shared, markers, of_prompts, *, spec: RolloutSpec, axes: tuple[str, ...]):
    """The rollout of this device's prompts, one part of a mesh split along `axes`."""
    engine = make_engine(shared, markers, of_prompts, spec=spec, axes=axes)
    state = engine.run(engine.initial(), prefill(engine.published, of_prompts[0], spec.model, engine.spec.kv_dtype))
    return engine.result(state, axes=axes)


def make_engine(
    shared, markers, of_prompts, *, spec: RolloutSpec, axes: tuple[str, ...] = (), turn_end: MarkerTable | None = None
) -> "_Engine":
    """The engine of this device's prompts; arguments as `rollout` sorts them."""
    parts, part = (jax.lax.axis_size(axes), jax.lax.axis_index(axes)) if axes else (1, 0)
    published, latents = shared
    prompt_PS, prompt_len_P, origin, answers = of_prompts
    spec = dataclasses.replace(
        spec,
        slots=max(1, spec.slots // parts),
        refill_at=max(1, spec.refill_at // parts),
        kv_dtype=spec.kv_dtype or published.dtype,
    )
    return _Engine(
        spec=spec,
        published=published,
        prompts=Prompts(tokens_PS=prompt_PS, length_P=prompt_len_P),
        gold=answers and answers.replace(markers=markers),
        steering=steering_of(spec, published, latents),
        draws=draws_for(origin, spec.group_size, spec.max_tokens),
        codes_PN=spec.codes and spec.codes.first + shared_out(origin, spec.codes.count),
        part=part,
        turn_end=turn_end,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Engine:
    """The loop bodies of one rollout, closed over what does not change in it. Weights, prompts and draws are traced.

    Attributes:
      spec: with the slots of this part of the mesh.
      published: the policy.
      prompts: P of them; M trees each.
      gold: their answers; None where no branch depends on them.
      steering: latents; None where no branch has one.
      draws: random numbers.
      codes_PN: of Forest; None without codes.
      part: number of this part of the mesh.
      turn_end: automaton of the text that ends a turn; None where a response is one.
    """

    spec: RolloutSpec
    published: Published
    prompts: Prompts
    gold: Gold | None
    steering: Steering | None
    draws: Draws
    codes_PN: jax.Array | None
    part: jax.Array | int
    turn_end: MarkerTable | None = None

    @property
    def trees(self) -> int:
        """P*M; every one is a unit of the queue."""
        return self.prompts.length_P.shape[0] * self.spec.roots

    @property
    def rows(self) -> int:
        """R, trajectories of this part."""
        return self.prompts.length_P.shape[0] * self.spec.group_size

    def initial(self) -> State:
        """Empty slots before a full queue."""
        spec, layout, b = self.spec, self.published, self.spec.slots
        capacity = self.prompts.tokens_PS.shape[1] + spec.max_tokens
        z_width = 0 if self.steering is None else self.steering.width
        return State(
            slots=idle_slots(b).replace(
                heard_B=nothing_heard(b) if self.gold else None,
                another=None if spec.branching.with_replacement else nobody(b, spec.branching.at_a_point),
                turns=no_turns(b, spec.turns.observation) if spec.turns else None,
            ),
            cache=empty_cache(
                spec.model, b, capacity, spec.kv_dtype, unrolled=layout.unrolled, kv_copies=layout.kv_copies
            ),
            projected=self.steering and self.steering.project(jnp.zeros((b, z_width))),
            grown=nothing_grown(
                self.rows, spec.max_tokens, z_width, noted=spec.sampling.record, turns=spec.turns is not None
            ),
            next_tree=jnp.zeros((), jnp.int32),
            steps=jnp.zeros((), jnp.int32),
        )

    def forest(self, grown: Grown) -> Forest:
        """What has grown, with parents numbered as in the whole Forest."""
        parent_R = self.spec.branching.grows_on(jnp.arange(self.rows))
        return Forest(
            prompt_PS=self.prompts.tokens_PS,
            prompt_len_P=self.prompts.length_P,
            parent_R=jnp.where(parent_R < 0, -1, self.part * self.rows + parent_R),
            codes_PN=self.codes_PN,
            **grown.columns(),
        )

    def prompt_end(self, trajectory_B: jax.Array) -> jax.Array:
        """The token that a root is fed first: the last one of its prompt, or its code in place of that.

        Decoding begins by feeding it again, so prefill keeps no hidden state, and what it stored of it is written over.
        """
        prompt_B = self.spec.prompt(trajectory_B)
        if self.codes_PN is None:
            return self.prompts.last_token(prompt_B)
        tree_B = jnp.maximum(trajectory_B, 0) // self.spec.branching.tree_size % self.spec.roots
        return self.codes_PN[prompt_B, tree_B % self.codes_PN.shape[1]]

    def run(self, state: State, prefilled) -> State:
        """Decodes until nothing is left to do, or to do before somebody is answered."""
        refill = functools.partial(self.refill, prefilled=prefilled)
        return jax.lax.while_loop(self.unfinished, lambda s: self.decode(refill(s)), state)

    def result(self, state: State, *, axes: tuple[str, ...] = ()) -> tuple[Forest, RolloutStats]:
        """The Forest of a state in which nothing is left to do; observations are no generated tokens."""
        forest = self.forest(self.harvest(state).grown)
        own_R = forest.length_R - forest.branch_at_R
        tokens, steps = (own_R if forest.turn_RT is None else forest.own_RT).sum(), state.steps
        tokens, steps = jax.lax.psum((tokens, steps), axes) if axes else (tokens, steps)
        return forest, RolloutStats(tokens=tokens, slot_utilisation=tokens / jnp.maximum(steps * self.spec.slots, 1))

    # -- outer loop ---------------------------------------------------------------------------------------------------

    def unfinished(self, s: State) -> jax.Array:
        """Whether a slot is decoding or could start something."""
        waiting = refillable(s.slots, self.trees - s.next_tree, self.spec.branching)
        return s.slots.moves_B.any() | (waiting > 0)

    def refill(self, s: State, *, prefilled) -> State:
        """Gives idle slots their next trajectory: a branch of their own tree, the root of the next, a stolen branch."""
        s = self.harvest(s)
        owes_B = owes(s.slots, self.spec.branching)
        s = self._start_roots(s, prefilled)
        if self.spec.branching.k == 0:
            return s
        slots = s.slots.replace(trajectory_B=s.slots.trajectory_B + owes_B, live_B=s.slots.live_B | owes_B)
        s, stolen_B = self._steal(s.replace(slots=slots))
        start_B = owes_B | stolen_B
        return jax.lax.cond(start_B.any(), self._start_branches, lambda s, _: s, s, start_B)

    def harvest(self, s: State) -> State:
        """Notes how the trajectories ended at which idle slots stand, and how many branches their roots are due."""
        slots = s.slots
        ended_B = False if slots.turns is None else slots.turns.ended_B
        grown = s.grown.end(slots.stands_B, slots.trajectory_B, slots.index_B, slots.stopped_B, ended_B)
        if self.spec.branching.may_skip:
            slots = slots.replace(last_B=self._branches_due(slots, grown))
        return s.replace(slots=slots, grown=grown)

    def _branches_due(self, slots: Slots, grown: Grown) -> jax.Array:
        """last_B, with the branches that roots at which idle slots stand are sure enough to do without taken off."""
        root_B = slots.stands_B & (self.spec.branching.place(slots.trajectory_B) == 0)
        right_B = jnp.zeros_like(root_B)
        if self.gold and slots.heard_B:
            right_B = is_right(slots.heard_B, self.gold, self.spec.prompt(slots.trajectory_B))
        record = grown.of(jnp.maximum(slots.trajectory_B, 0)).record
        due_B = branches_due(record, right_B, self.spec.branching)
        # The smaller one: a slot may stand at its root while others steal from it, and these branches stay gone.
        return jnp.where(root_B, jnp.minimum(slots.last_B, due_B), slots.last_B)

    def _start_roots(self, s: State, prefilled) -> State:
        """Free slots take the next trees of the queue, with the keys and values of their prompts."""
        branching = self.spec.branching
        tree_B = take_trees(s.slots, s.next_tree, self.trees, branching)
        take_B, prompt_B = tree_B >= 0, jnp.maximum(tree_B, 0) // self.spec.roots
        slots = s.slots.set(
            take_B,
            trajectory_B=tree_B * branching.tree_size,
            prompt_len_B=self.prompts.length_P[prompt_B],
            token_B=self.prompt_end(tree_B * branching.tree_size),
            index_B=0,
            branch_at_B=0,
            last_B=branching.branches,
            z_on_B=False,
            live_B=True,
        )
        if self.gold:
            slots = slots.set(take_B, heard_B=nothing_heard(self.spec.slots))
        if self.spec.turns:
            slots = slots.set(take_B, turns=no_turns(self.spec.slots, self.spec.turns.observation))
        cache = fill_prompts(s.cache, take_B, prompt_B, prefilled)
        return s.replace(slots=slots, cache=cache, next_tree=s.next_tree + take_B.sum())

    def _steal(self, s: State) -> tuple[State, jax.Array]:
        """Idle slots take the last branch of a donor's root each, with its subtree, and copy keys and values."""
        slots, b, branching = s.slots, self.spec.slots, self.spec.branching
        donor_B = steal_from(slots, branching)
        stolen_B = donor_B >= 0
        from_B = jnp.where(stolen_B, donor_B, jnp.arange(b))
        gives_B = jnp.zeros_like(stolen_B).at[jnp.where(stolen_B, from_B, b)].set(True, mode="drop")
        root_B = slots.trajectory_B - branching.place(slots.trajectory_B)
        first_B = root_B + slots.last_B - branching.subtree + 1
        slots = slots.replace(
            trajectory_B=jnp.where(stolen_B, first_B[from_B], slots.trajectory_B),
            last_B=jnp.where(stolen_B, slots.last_B[from_B], slots.last_B - branching.subtree * gives_B),
            prompt_len_B=slots.prompt_len_B[from_B],
            live_B=slots.live_B | stolen_B,
        )
        return s.replace(slots=slots, cache=copy_slots(s.cache, stolen_B, from_B)), stolen_B

    def _start_branches(self, s: State, start_B) -> State:
        """Puts the cursor of starting slots at their branch point and inherits the prefix."""
        slots, branching = s.slots, self.spec.branching
        trajectory_B = slots.trajectory_B
        parent_B = jnp.maximum(branching.grows_on(trajectory_B), 0)
        parents = s.grown.of(parent_B)
        at_B, fallback_B, elder_B = branch_points(
            parents.record, branching.nth(trajectory_B), self.draws.point_keys(parent_B), branching
        )
        # Fed first is the token before t*: drawing t* anew needs the hidden state that it was drawn from.
        before_B = parents.tokens_RT[jnp.arange(self.spec.slots), jnp.maximum(at_B - 1, 0)]
        slots = slots.set(
            start_B,
            token_B=jnp.where(at_B > 0, before_B, self.prompt_end(trajectory_B)),
            index_B=at_B,
            branch_at_B=at_B,
            probe_B=~fallback_B & (self.steering is not None),
            z_on_B=False,
        )
        if self.spec.turns and parents.turns is not None:
            turn_B, state_B = parents.turns.at(at_B)
            fresh = no_turns(self.spec.slots, self.spec.turns.observation)
            slots = slots.set(start_B, turns=fresh.replace(turn_B=turn_B, state_B=state_B))
        if slots.another is not None:
            slots = slots.set(start_B, another=self._another(parents.token_at(at_B), elder_B, parent_B, at_B))
        return s.replace(slots=slots, grown=s.grown.inherit(start_B, trajectory_B, parents, at_B, fallback_B))

    def _another(self, first_B, elder_B, parent_B, at_B) -> Another:
        """What the first own tokens of branches have to differ from."""
        keys_B = jax.vmap(jax.random.fold_in)(self.draws.point_keys(parent_B), at_B)
        draws = (self.spec.branching.at_a_point,)
        uniform_BN = jax.vmap(lambda key: jax.random.uniform(key, draws))(keys_B)
        return Another(jnp.zeros(first_B.shape, bool), first_B, elder_B, uniform_BN)

    # -- inner loop ---------------------------------------------------------------------------------------------------

    def decode(self, s: State) -> State:
        """Decodes until `refill_at` slots could be refilled, or as many as are still busy if those are fewer."""
        branching, refill_at = self.spec.branching, self.spec.refill_at

        def enough(s: State):
            busy = (s.slots.live_B | owes(s.slots, branching)).sum()
            return refillable(s.slots, self.trees - s.next_tree, branching) >= jnp.clip(busy, 1, refill_at)

        return jax.lax.while_loop(lambda s: s.slots.moves_B.any() & ~enough(s), self._decode_token, s)

    def _decode_token(self, s: State) -> State:
        """One token for every live slot, or the answer to its probe. Idle slots are fed too; nobody looks at it."""
        spec, slots = self.spec, s.slots
        inject = self.steering.inject(s.projected, slots) if self.steering and s.projected else None
        longest = jnp.where(slots.live_B, slots.position_B, 0).max()
        hidden_BD, cache = decode_step(
            self.published, spec.model, s.cache, slots.token_B, slots.position_B, longest, inject
        )
        uniform_B = self.draws.uniform_RT[slots.trajectory_B, slots.index_B]
        # A probe draws a token as well, without z, and throws it away: the step is the same for all slots.
        emits_B = slots.moves_B & ~slots.probe_B
        begins_B = emits_B & (spec.branching.place(slots.trajectory_B) > 0) & (slots.index_B == slots.branch_at_B)
        another = slots.another and slots.another.replace(due_B=begins_B)
        logits_BV = without(logits(self.published, hidden_BD), spec.never_ids)
        draw = sample_on_mesh(logits_BV, uniform_B, spec.sampling, self._forbidden(slots), another)
        grown = s.grown
        if slots.turns is not None:
            draw = slots.turns.dictate(draw, logits_BV, slots.index_B, spec.sampling.temperature)
            grown = grown.write_turns(emits_B, slots.trajectory_B, slots.index_B, slots.turns)
        grown = grown.write(emits_B, slots.trajectory_B, slots.index_B, draw)
        if another is not None:
            grown = grown.replace(left_R=put(grown.left_R, begins_B, slots.trajectory_B, draw.left_B))
        s = s.replace(cache=cache, grown=grown, steps=s.steps + 1)
        if self.steering is not None:
            s = self._draw_latents(s, self.steering, hidden_BD)
        return s.replace(slots=self._advance(slots, draw.token_B, emits_B))

    def _advance(self, slots: Slots, token_B, emits_B) -> Slots:
        """The next token to feed: the one just drawn, or the same again after a probe."""
        stop_B = jnp.isin(token_B, jnp.array(self.spec.stop_ids, jnp.int32))
        if slots.turns is not None:
            stop_B &= ~slots.turns.given(slots.index_B)
        ends_B = emits_B & (stop_B | (slots.index_B + 1 >= self.spec.max_tokens))
        if self.gold and slots.heard_B:
            drawn_B = emits_B if slots.turns is None else emits_B & ~slots.turns.given(slots.index_B)
            slots = self._listen(slots, slots.heard_B, self.gold, token_B, drawn_B)
        if slots.turns is not None and self.spec.turns and self.turn_end:
            most = self.spec.turns.most
            slots = slots.replace(
                turns=slots.turns.heard(self.turn_end, token_B, slots.index_B, emits_B, ~ends_B, most)
            )
        return slots.set(emits_B, token_B=token_B, stopped_B=stop_B).replace(
            index_B=slots.index_B + emits_B,
            live_B=slots.live_B & ~ends_B,
            z_on_B=slots.z_on_B | slots.probe_B,
            probe_B=jnp.zeros_like(slots.probe_B),
        )

    def _listen(self, slots: Slots, heard_B: Heard, gold: Gold, token_B, emits_B) -> Slots:
        """Looks for the gold answer in what roots say; nothing depends on whether a branch is right."""
        heard_B = listen(heard_B, gold, self.spec.prompt(slots.trajectory_B), token_B)
        return slots.set(emits_B & (self.spec.branching.place(slots.trajectory_B) == 0), heard_B=heard_B)

    def _draw_latents(self, s: State, steering: Steering, hidden_BD) -> State:
        """Draws the z of slots that have just probed, from the prior given the last prefix token's hidden state."""
        probe_B, trajectory_B = s.slots.probe_B, s.slots.trajectory_B

        def draw(projected: Projected, z_RZ):
            z_BZ = steering.draw(hidden_BD, trajectory_B, self.draws)

            def pick(new, old):
                return jnp.where(probe_B.reshape(1, -1, *[1] * (old.ndim - 2)), new, old)

            projected = jax.tree.map(pick, steering.project(z_BZ), projected)
            return projected, put(z_RZ, probe_B, trajectory_B, z_BZ)

        def keep(projected, z_RZ):
            return projected, z_RZ

        # Few steps have a probe, so prior and projections are behind a cond; only what they change goes through it.
        projected, z_RZ = jax.lax.cond(probe_B.any(), draw, keep, s.projected, s.grown.z_RZ)
        return s.replace(projected=projected, grown=s.grown.replace(z_RZ=z_RZ))

    def _forbidden(self, slots: Slots) -> jax.Array | None:
        """Stop tokens [B,V] of responses shorter than min_tokens; None where all tokens may be drawn."""
        spec = self.spec
        if spec.min_tokens <= 0:
            return None
        early_B = slots.index_B + 1 < spec.min_tokens
        return early_B[:, None] & np.isin(np.arange(spec.model.vocab_size), spec.stop_ids)
