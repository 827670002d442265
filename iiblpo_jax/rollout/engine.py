"""The rollout: prompts in, a finished Forest out, in one jitted call.

    1. Prefill every prompt once (prefill.py). A queue holds P*M trees; B slots (slots.py) work on them.
    2. Refill (outer loop, rare): an idle slot starts its tree's next branch, or takes the next tree, or steals the last
       pending branch of a busy slot (copying that slot's keys and values). A branch starts where its parent's keys and
       values already are: the cursor goes back to the branch point.
    3. Decode (inner loop): one token for every live slot (decoding.py), until enough slots are idle. The first step of
       a branch is a probe: the last prefix token is fed without z, its hidden state gives the prior that z is drawn
       from, and the same token is fed again with z on.

Decoding over the stale suffix of the parent copies nothing. Every token has its own random number, a function of
(trajectory, position), so the Forest does not depend on the number of slots or on when they are refilled.

On a mesh every part of the devices (mesh.rollout_axes) is an engine of its own, with its share of prompts and slots: no
keys or values travel, and one that has finished waits for nobody until the end. What is left of the mesh, `tensor`,
splits heads, MLP and vocabulary of each engine.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.steering.codes import bind_latent, stratified
from iiblpo_jax.model.steering.psa import Projected, bind_psa, gamma, project_latents, steer_slots
from iiblpo_jax.rollout.branching import branch_points, branches_due
from iiblpo_jax.rollout.cache import Cache, copy_slots, empty_cache, fill_prompts
from iiblpo_jax.rollout.decoding import decode_step
from iiblpo_jax.rollout.forest import LENGTH, STOP, Forest
from iiblpo_jax.rollout.grown import Grown
from iiblpo_jax.rollout.prefill import prefill
from iiblpo_jax.rollout.publication import Published, logits
from iiblpo_jax.rollout.sampling import sample_on_mesh
from iiblpo_jax.rollout.slots import Slots, idle_slots, owes, refillable, steal_from, take_trees
from iiblpo_jax.rollout.solved import Gold, is_right, listen, nothing_heard
from iiblpo_jax.rollout.spec import RolloutSpec


@struct.dataclass
class State:
    """Carry of both loops: slots, their caches and latents, what has grown, head of the queue, steps taken."""

    slots: Slots
    cache: Cache
    projected: Projected | None
    grown: Grown
    next_tree: jax.Array
    steps: jax.Array


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
    key: jax.Array,
    *,
    spec: RolloutSpec,
    latents: dict | None = None,
    gold: Gold | None = None,
) -> tuple[Forest, RolloutStats]:
    """Samples M*(1+K) trajectories for every prompt.

    Args:
      published: the policy (`publication.publish`); it decides dtypes and whether layers are unrolled.
      prompt_PS, prompt_len_P: right-padded prompts.
      key: PRNG key of this rollout.
      spec: static.
      latents: {"psa": params, "cvae": params of a CVAE or of Codes} to steer branches, or None for plain resampling.
      gold: answers of the prompts; wanted where solved roots have no branches (Branching.solved).
    """
    with meshes.using(spec.mesh):
        axes = meshes.rollout_axes(spec.mesh, prompt_PS.shape[0])
        engine = functools.partial(_rollout, spec=spec, axes=axes)
        shared, markers = (published, latents, key), gold and gold.markers
        of_prompts = (prompt_PS, prompt_len_P, gold and (gold.marker_P, gold.answer_PA, gold.answer_len_P))
        if not axes:
            return engine(shared, markers, of_prompts)
        whole, split = PartitionSpec(), PartitionSpec(axes)
        return jax.shard_map(
            engine, in_specs=(whole, whole, split), out_specs=(split, whole), axis_names=set(axes), check_vma=False
        )(shared, markers, of_prompts)


def _rollout(shared, markers, of_prompts, *, spec: RolloutSpec, axes: tuple[str, ...]):
    """The rollout of this device's prompts, one part of a mesh split along `axes`."""
    parts, part = (jax.lax.axis_size(axes), jax.lax.axis_index(axes)) if axes else (1, 0)
    spec = dataclasses.replace(spec, slots=max(1, spec.slots // parts), refill_at=max(1, spec.refill_at // parts))
    published, latents, key = shared
    prompt_PS, prompt_len_P, answers = of_prompts
    gold = None if answers is None else Gold(markers, *answers)
    engine = _Engine(spec, published, prompt_PS, prompt_len_P, latents, key, part, gold)
    prompts = prefill(published, prompt_PS, spec.model, engine.kv_dtype)
    refill = functools.partial(engine.refill, prompts=prompts)
    state = jax.lax.while_loop(engine.unfinished, lambda s: engine.decode(refill(s)), engine.initial())
    forest = engine.forest(engine.harvest(state).grown)
    tokens, steps = (forest.length_R - forest.branch_at_R).sum(), state.steps
    tokens, steps = jax.lax.psum((tokens, steps), axes) if axes else (tokens, steps)
    return forest, RolloutStats(tokens=tokens, slot_utilisation=tokens / jnp.maximum(steps * spec.slots, 1))


class _Engine:
    """The loop bodies of one rollout, closed over its traced weights and prompts; one of several: number `part`."""

    def __init__(
        self,
        spec: RolloutSpec,
        published: Published,
        prompt_PS,
        prompt_len_P,
        latents: dict | None,
        key,
        part,
        gold: Gold | None,
    ):
        self.spec, self.branching, self.published = spec, spec.branching, published
        self.prompt_PS, self.prompt_len_P = prompt_PS, prompt_len_P
        self.gold = gold
        self.kv_dtype = spec.kv_dtype or published.dtype
        self.psa = self.cvae = None
        if latents is not None and spec.branching.k > 0 and spec.strength > 0:
            self.psa, self.cvae = bind_psa(latents["psa"], spec.model), bind_latent(latents["cvae"])
        self.trees = prompt_PS.shape[0] * spec.roots
        self.rows = self.trees * self.branching.tree_size  # R
        self.first_row = part * self.rows  # in the whole Forest
        token_key, self.point_key, self.latent_key = jax.random.split(key, 3)

        def numbers(key):
            return jax.random.uniform(key, (spec.max_tokens,))

        self.uniform_RT = jax.vmap(numbers)(self._keys(token_key, jnp.arange(self.rows)))

    def initial(self) -> State:
        spec, b, r = self.spec, self.spec.slots, self.rows
        z_width = 0 if self.cvae is None else self.cvae.latent
        int_R, zero = jnp.zeros(r, jnp.int32), jnp.zeros((), jnp.int32)
        grown = Grown(
            record_RTX=jnp.zeros((r, spec.max_tokens, 4)),
            length_R=int_R,
            finish_R=int_R + LENGTH,
            branch_at_R=int_R,
            fallback_R=int_R > 0,
            z_RZ=jnp.zeros((r, z_width)),
        )
        capacity, layout = self.prompt_PS.shape[1] + spec.max_tokens, self.published
        cache = empty_cache(
            spec.model, b, capacity, self.kv_dtype, unrolled=layout.unrolled, kv_copies=layout.kv_copies
        )
        projected = None if self.psa is None else self._project(jnp.zeros((b, z_width)))
        slots = idle_slots(b).replace(heard_B=nothing_heard(b) if self.gold else None)
        return State(slots=slots, cache=cache, projected=projected, grown=grown, next_tree=zero, steps=zero)

    def forest(self, grown: Grown) -> Forest:
        tokens_RT, logp_RT, raw_logp_RT, entropy_RT = jnp.moveaxis(grown.record_RTX, 2, 0)
        parent_R = self._parent(jnp.arange(self.rows))
        return Forest(
            prompt_PS=self.prompt_PS,
            prompt_len_P=self.prompt_len_P,
            tokens_RT=tokens_RT.astype(jnp.int32),
            logp_RT=logp_RT,
            raw_logp_RT=raw_logp_RT,
            entropy_RT=entropy_RT,
            length_R=grown.length_R,
            finish_R=grown.finish_R,
            parent_R=jnp.where(parent_R < 0, -1, self.first_row + parent_R),
            branch_at_R=grown.branch_at_R,
            z_RZ=grown.z_RZ,
            fallback_R=grown.fallback_R,
        )

    def _keys(self, key, row):
        """A key a trajectory, the same on whatever device it grows."""
        return jax.vmap(lambda r: jax.random.fold_in(key, r))(self.first_row + row)

    def _parent(self, trajectory):
        j = trajectory % self.branching.tree_size
        return jnp.where(j == 0, -1, trajectory - (j if self.branching.parent == "root" else 1))

    # -- outer loop ---------------------------------------------------------------------------------------------------

    def unfinished(self, s: State):
        return s.slots.live_B.any() | (refillable(s.slots, self.trees - s.next_tree, self.branching) > 0)

    def refill(self, s: State, *, prompts) -> State:
        """Gives idle slots their next trajectory: a branch of their own tree, the root of the next, a stolen branch."""
        s = self.harvest(s)
        owes_B = owes(s.slots, self.branching)
        s = self._start_roots(s, prompts)
        if self.branching.k == 0:
            return s
        slots = s.slots.replace(trajectory_B=s.slots.trajectory_B + owes_B, live_B=s.slots.live_B | owes_B)
        s, stolen_B = self._steal(s.replace(slots=slots))
        start_B = owes_B | stolen_B
        return jax.lax.cond(start_B.any(), self._start_branches, lambda s, _: s, s, start_B)

    def harvest(self, s: State) -> State:
        """Notes length and finish reason of the trajectories at which idle slots stand."""
        slots, grown = s.slots, s.grown
        row_B = self._rows(~slots.live_B & (slots.trajectory_B >= 0), slots.trajectory_B)
        grown = grown.replace(
            length_R=grown.length_R.at[row_B].set(slots.index_B, mode="drop"),
            finish_R=grown.finish_R.at[row_B].set(jnp.where(slots.stopped_B, STOP, LENGTH), mode="drop"),
        )
        if self.branching.may_skip:
            slots = slots.replace(last_B=self._branches_due(slots, grown))
        return s.replace(slots=slots, grown=grown)

    def _branches_due(self, slots: Slots, grown: Grown) -> jax.Array:
        """last_B, with the branches that roots at which idle slots stand are sure enough to do without taken off."""
        root_B = ~slots.live_B & (slots.trajectory_B >= 0) & (slots.trajectory_B % self.branching.tree_size == 0)
        entropy_BT = grown.record_RTX[jnp.maximum(slots.trajectory_B, 0), :, 3]
        right_B = is_right(slots.heard_B, self.gold, self._prompt(slots)) if self.gold else jnp.zeros_like(root_B)
        due_B = branches_due(entropy_BT, slots.index_B, slots.stopped_B, right_B, self.branching)
        return jnp.where(root_B, jnp.minimum(slots.last_B, due_B), slots.last_B)

    def _prompt(self, slots: Slots):
        """The prompt that each slot works on; 0 before its first."""
        return jnp.maximum(slots.trajectory_B, 0) // (self.spec.roots * self.branching.tree_size)

    def _rows(self, where_B, trajectory_B):
        """Rows to write: the trajectories where where_B, elsewhere a row that does not exist."""
        return jnp.where(where_B, trajectory_B, self.rows)

    def _start_roots(self, s: State, prompts) -> State:
        slots = s.slots
        tree_B = take_trees(slots, s.next_tree, self.trees, self.branching)
        take_B, prompt_B = tree_B >= 0, jnp.maximum(tree_B, 0) // self.spec.roots

        def choose(new_B, old_B):
            return jnp.where(take_B, new_B, old_B)

        prompt_len_B = self.prompt_len_P[prompt_B]
        slots = slots.replace(
            trajectory_B=choose(tree_B * self.branching.tree_size, slots.trajectory_B),
            prompt_len_B=choose(prompt_len_B, slots.prompt_len_B),
            token_B=choose(self._prompt_end(prompt_B), slots.token_B),
            index_B=choose(0, slots.index_B),
            branch_at_B=choose(0, slots.branch_at_B),
            last_B=choose(self.branching.k, slots.last_B),
            z_on_B=slots.z_on_B & ~take_B,
            live_B=slots.live_B | take_B,
        )
        if self.gold:
            slots = slots.replace(heard_B=jax.tree.map(choose, nothing_heard(self.spec.slots), slots.heard_B))
        cache = fill_prompts(s.cache, take_B, prompt_B, prompts)
        return s.replace(slots=slots, cache=cache, next_tree=s.next_tree + take_B.sum())

    def _prompt_end(self, prompt_B):
        return self.prompt_PS[prompt_B, jnp.maximum(self.prompt_len_P[prompt_B] - 1, 0)]

    def _steal(self, s: State) -> tuple[State, jax.Array]:
        """Idle slots take the last pending branch of a donor each, and copy its keys and values."""
        slots, b = s.slots, self.spec.slots
        donor_B = steal_from(slots, self.branching)
        stolen_B = donor_B >= 0
        from_B = jnp.where(stolen_B, donor_B, jnp.arange(b))
        gives_B = jnp.zeros_like(stolen_B).at[jnp.where(stolen_B, from_B, b)].set(True, mode="drop")
        root_B = slots.trajectory_B - slots.trajectory_B % self.branching.tree_size
        slots = slots.replace(
            trajectory_B=jnp.where(stolen_B, (root_B + slots.last_B)[from_B], slots.trajectory_B),
            last_B=jnp.where(stolen_B, slots.last_B[from_B], slots.last_B - gives_B),
            prompt_len_B=slots.prompt_len_B[from_B],
            live_B=slots.live_B | stolen_B,
        )
        return s.replace(slots=slots, cache=copy_slots(s.cache, stolen_B, from_B)), stolen_B

    def _start_branches(self, s: State, start_B) -> State:
        """Puts the cursor of starting slots at their branch point and inherits the prefix."""
        grown, slots, branching = s.grown, s.slots, self.branching
        trajectory_B, parent_B = slots.trajectory_B, jnp.maximum(self._parent(slots.trajectory_B), 0)
        record_BTX = grown.record_RTX[parent_B]
        keys_B = self._keys(self.point_key, parent_B)
        at_B, fallback_B = branch_points(
            record_BTX[..., 3],
            grown.length_R[parent_B],
            grown.finish_R[parent_B] == STOP,
            trajectory_B % branching.tree_size - 1,
            keys_B,
            branching,
        )
        row_B = self._rows(start_B, trajectory_B)
        inherited_BT = jnp.arange(self.spec.max_tokens) < at_B[:, None]
        grown = grown.replace(
            record_RTX=grown.record_RTX.at[row_B].set(jnp.where(inherited_BT[..., None], record_BTX, 0), mode="drop"),
            branch_at_R=grown.branch_at_R.at[row_B].set(at_B, mode="drop"),
            fallback_R=grown.fallback_R.at[row_B].set(fallback_B, mode="drop"),
        )
        before_B = record_BTX[jnp.arange(self.spec.slots), jnp.maximum(at_B - 1, 0), 0].astype(jnp.int32)
        prompt_B = self._prompt(slots)
        token_B = jnp.where(at_B > 0, before_B, self._prompt_end(prompt_B))

        def choose(new_B, old_B):
            return jnp.where(start_B, new_B, old_B)

        slots = slots.replace(
            token_B=choose(token_B, slots.token_B),
            index_B=choose(at_B, slots.index_B),
            branch_at_B=choose(at_B, slots.branch_at_B),
            probe_B=choose(~fallback_B & (self.psa is not None), slots.probe_B),
            z_on_B=slots.z_on_B & ~start_B,
        )
        return s.replace(slots=slots, grown=grown)

    # -- inner loop ---------------------------------------------------------------------------------------------------

    def decode(self, s: State) -> State:
        """Decodes until `refill_at` slots could be refilled, or as many as are still busy if those are fewer."""

        def enough(s: State):
            busy = (s.slots.live_B | owes(s.slots, self.branching)).sum()
            return refillable(s.slots, self.trees - s.next_tree, self.branching) >= jnp.clip(
                busy, 1, self.spec.refill_at
            )

        return jax.lax.while_loop(lambda s: s.slots.live_B.any() & ~enough(s), self._decode_token, s)

    def _decode_token(self, s: State) -> State:
        spec, slots = self.spec, s.slots
        inject = None
        if self.psa is not None:
            since_B = slots.index_B - slots.branch_at_B
            gamma_B = jnp.where(slots.z_on_B, gamma(since_B, half_life=spec.half_life, strength=spec.strength), 0.0)
            inject = steer_slots(s.projected, gamma_B)
        longest = jnp.where(slots.live_B, slots.position_B, 0).max()
        hidden_BD, cache = decode_step(
            self.published, spec.model, s.cache, slots.token_B, slots.position_B, longest, inject
        )
        uniform_B = self.uniform_RT[slots.trajectory_B, slots.index_B]
        draw = sample_on_mesh(logits(self.published, hidden_BD), uniform_B, spec.sampling, self._forbidden(slots))
        emits_B = slots.live_B & ~slots.probe_B
        record_BX = jnp.stack([draw.token_B.astype(jnp.float32), draw.logp_B, draw.raw_logp_B, draw.entropy_B], axis=-1)
        row_B = self._rows(emits_B, slots.trajectory_B)
        record_RTX = s.grown.record_RTX.at[row_B, slots.index_B].set(record_BX, mode="drop")
        s = s.replace(cache=cache, grown=s.grown.replace(record_RTX=record_RTX), steps=s.steps + 1)
        if self.psa is not None:
            s = self._draw_latents(s, hidden_BD)
        return s.replace(slots=self._advance(slots, draw.token_B, emits_B))

    def _advance(self, slots: Slots, token_B, emits_B) -> Slots:
        """The next token to feed: the one just drawn, or the same again after a probe."""
        stop_B = jnp.isin(token_B, jnp.array(self.spec.stop_ids, jnp.int32))
        ends_B = emits_B & (stop_B | (slots.index_B + 1 >= self.spec.max_tokens))
        if self.gold:
            heard = listen(slots.heard_B, self.gold, self._prompt(slots), token_B)
            root_B = emits_B & (slots.trajectory_B % self.branching.tree_size == 0)

            def keep(new, old):
                return jnp.where(root_B, new, old)

            slots = slots.replace(heard_B=jax.tree.map(keep, heard, slots.heard_B))
        return slots.replace(
            token_B=jnp.where(emits_B, token_B, slots.token_B),
            index_B=slots.index_B + emits_B,
            live_B=slots.live_B & ~ends_B,
            stopped_B=jnp.where(emits_B, stop_B, slots.stopped_B),
            z_on_B=slots.z_on_B | slots.probe_B,
            probe_B=jnp.zeros_like(slots.probe_B),
        )

    def _draw_latents(self, s: State, hidden_BD) -> State:
        """Draws the z of slots that have just probed, from the prior given the last prefix token's hidden state."""
        probe_B, trajectory_B = s.slots.probe_B, s.slots.trajectory_B

        def draw(projected: Projected, z_RZ):
            z_BZ = self._prior_draw(hidden_BD, trajectory_B)

            def pick(new, old):
                return jnp.where(probe_B.reshape(1, -1, *[1] * (old.ndim - 2)), new, old)

            projected = jax.tree.map(pick, self._project(z_BZ), projected)
            return projected, z_RZ.at[self._rows(probe_B, trajectory_B)].set(z_BZ, mode="drop")

        def keep(projected, z_RZ):
            return (projected, z_RZ)

        projected, z_RZ = jax.lax.cond(probe_B.any(), draw, keep, s.projected, s.grown.z_RZ)
        return s.replace(projected=projected, grown=s.grown.replace(z_RZ=z_RZ))

    def _prior_draw(self, hidden_BD, trajectory_B):
        """z [B,Z] from the prior, independent or stratified among the branches of a tree."""
        if not self.spec.stratified:
            return self.cvae.sample_prior(hidden_BD, self._keys(self.latent_key, trajectory_B), self.spec.prior_power)
        nth_B = trajectory_B % self.branching.tree_size
        keys_B = self._keys(self.latent_key, trajectory_B - nth_B)
        uniform_BZ = stratified(keys_B, jnp.maximum(nth_B - 1, 0), self.branching.k, self.cvae.latent)
        return self.cvae.from_uniform(hidden_BD, uniform_BZ, self.spec.prior_power)

    def _project(self, z_BZ) -> Projected:
        layers = self.psa.gain.shape[0] if self.published.unrolled else self.spec.model.n_layers
        return project_latents(self.psa, z_BZ, layers, self.published.kv_copies)

    def _forbidden(self, slots: Slots):
        """Stop tokens [B,V] while the response is shorter than min_tokens."""
        if self.spec.min_tokens <= 0:
            return None
        stops_V = jnp.zeros(self.spec.model.vocab_size, bool).at[jnp.array(self.spec.stop_ids, jnp.int32)].set(True)
        return (slots.index_B + 1 < self.spec.min_tokens)[:, None] & stops_V
