"""What each decode slot is doing, and what it could do next."""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.sampling import Another
from iiblpo_jax.rollout.solved import Heard
from iiblpo_jax.rollout.turns import Turns


class Slots(struct.PyTreeNode):
    """Attributes, one entry a slot:

    trajectory_B: the trajectory being decoded or just finished; -1 before the first.
    prompt_len_B: tokens of its prompt.
    live_B: it is being decoded.
    token_B: token to feed next, at response index index_B - 1 (the last prompt token for index 0).
    index_B: response index of the token to be drawn.
    branch_at_B: t* of a branch, 0 for a root.
    probe_B: the token is fed without z to see which z to draw; it is fed again afterwards.
    z_on_B: z acts on this trajectory.
    stopped_B: it ended with a stop token.
    last_B: number within its tree of the last branch that is still this slot's; that of the tree until one is stolen.
    heard_B: how much of its root's answer has been read (solved.Heard); None where nobody asks.
    another: what its first own token has to differ from (sampling.Another); None with replacement.
    turns: whose turn it is (turns.Turns); None where a response is one.
    """

    trajectory_B: jax.Array
    prompt_len_B: jax.Array
    live_B: jax.Array
    token_B: jax.Array
    index_B: jax.Array
    branch_at_B: jax.Array
    probe_B: jax.Array
    z_on_B: jax.Array
    stopped_B: jax.Array
    last_B: jax.Array
    heard_B: Heard | None = None
    another: Another | None = None
    turns: Turns | None = None

    @property
    def position_B(self) -> jax.Array:
        """Where token_B stands in its sequence.

        A slot that has finished stands at its last token, which no branch inherits: what it writes there is not missed.
        """
        return self.prompt_len_B + self.index_B - 1

    @property
    def moves_B(self) -> jax.Array:
        """Slots whose next token can be decided: live, and not waiting for an observation."""
        return self.live_B if self.turns is None else self.live_B & ~self.turns.waits_B

    @property
    def stands_B(self) -> jax.Array:
        """Slots that stand idle at a trajectory which they have finished."""
        return ~self.live_B & (self.trajectory_B >= 0)

    def set(self, where_B: jax.Array, **new) -> "Slots":
        """These fields where where_B, and elsewhere as they were."""

        def of_slots(old_B):
            return where_B.reshape(-1, *[1] * (old_B.ndim - 1))

        def choose(new, old_B):
            return jax.tree.map(lambda new, old_B: jnp.where(of_slots(old_B), new, old_B), new, old_B)

        return self.replace(**{name: choose(value, getattr(self, name)) for name, value in new.items()})


def idle_slots(slots: int) -> Slots:
    """Slots before the first trajectory."""
    zero_B, no_B = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, bool)
    return Slots(
        trajectory_B=zero_B - 1,
        prompt_len_B=zero_B + 1,
        live_B=no_B,
        token_B=zero_B,
        index_B=zero_B,
        branch_at_B=zero_B,
        probe_B=no_B,
        z_on_B=no_B,
        stopped_B=no_B,
        last_B=zero_B,
    )


def pending(slots: Slots, branching: Branching) -> jax.Array:
    """Branches [B] that a slot still has to grow after the trajectory it is at."""
    return jnp.where(slots.trajectory_B >= 0, slots.last_B - branching.place(slots.trajectory_B), 0)


def owes(slots: Slots, branching: Branching) -> jax.Array:
    """Idle slots [B] whose tree still has branches to grow."""
    return ~slots.live_B & (pending(slots, branching) > 0)


def donates(slots: Slots, branching: Branching) -> jax.Array:
    """Slots [B] with a branch of their root to give away, and all that is to grow on it.

    The root is finished, and a branch of it is left after the one that the slot is at, or is to be at next.

    Branches of a root are grown latest t* first, and what grows on one lies behind its t* (branching.py). So what a
    slot has overwritten lies behind the branch point of its root's last one, whose prefix can be copied as it stands.
    Smaller subtrees stay where their parent grew.
    """
    place_B = branching.place(slots.trajectory_B)
    ahead_B = _branch_of_root(slots.last_B, branching) - _branch_of_root(place_B + ~slots.live_B, branching)
    return (pending(slots, branching) > 0) & (ahead_B > 0) & ~(slots.live_B & (place_B == 0))


def _branch_of_root(place_B, branching: Branching):
    """Which of its root's branches a trajectory is or grows on, from 0; -1 for the root."""
    return (place_B - 1) // max(branching.subtree, 1)


def refillable(slots: Slots, trees_left, branching: Branching) -> jax.Array:
    """How many idle slots could start something now: branches of their own, waiting trees, branches of others."""
    owes_B = owes(slots, branching)
    on_offer = trees_left + donates(slots, branching).sum()
    return owes_B.sum() + jnp.minimum((~slots.live_B & ~owes_B).sum(), on_offer)


def take_trees(slots: Slots, next_tree, trees: int, branching: Branching) -> jax.Array:
    """The tree that each free slot takes from the queue, -1 where it takes none."""
    free_B = ~slots.live_B & ~owes(slots, branching)
    tree_B = next_tree + jnp.cumsum(free_B) - 1
    return jnp.where(free_B & (tree_B < trees), tree_B, -1)


def steal_from(slots: Slots, branching: Branching) -> jax.Array:
    """The slot whose root's last branch each idle slot takes over, -1 where it takes none."""
    donor_B = donates(slots, branching)
    donors_B = jnp.flatnonzero(donor_B, size=donor_B.shape[0], fill_value=0)
    free_B = ~slots.live_B & ~owes(slots, branching)
    rank_B = jnp.cumsum(free_B) - 1
    return jnp.where(free_B & (rank_B < donor_B.sum()), donors_B[rank_B], -1)
