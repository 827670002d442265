"""The record of a rollout while it grows: the rows of the Forest to be, written by the slots."""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.rollout.branch_points import Record
from iiblpo_jax.rollout.forest import DONE, LENGTH, STOP
from iiblpo_jax.rollout.sampling import Draw
from iiblpo_jax.rollout.turns import TurnRecord, Turns

TOKEN, RAW_LOGP, ENTROPY = range(3)  # columns of packed_RTX
TOP = ENTROPY + 1  # and from here on the likeliest tokens, then their log-probs, where the rollout notes them
COLUMNS = "tokens_RT raw_logp_RT entropy_RT length_R finish_R branch_at_R fallback_R left_R z_RZ".split()  # of Forest


class Grown(struct.PyTreeNode):
    """The trajectories of a Forest, each filled in from the left.

    What is known of a token stands side by side, so that a decode step scatters once, not three times, and a branch
    inherits its prefix with one gather. Who reads goes by the names below; who writes says which slots do, and for
    every slot its row.

    Attributes:
      packed_RTX: token, log-prob and entropy of every position, and its likeliest tokens where they are noted. A token
        id is exact in float32 below 2^24.
      length_R, finish_R, branch_at_R, fallback_R, left_R, z_RZ: as in Forest.
      turns: whose turn every position is; None where a response is one.
    """

    packed_RTX: jax.Array
    length_R: jax.Array
    finish_R: jax.Array
    branch_at_R: jax.Array
    fallback_R: jax.Array
    left_R: jax.Array
    z_RZ: jax.Array
    turns: TurnRecord | None = None

    @property
    def tokens_RT(self) -> jax.Array:
        """Token ids, 0 where there is none yet."""
        return self.packed_RTX[..., TOKEN].astype(jnp.int32)

    @property
    def raw_logp_RT(self) -> jax.Array:
        """Log-probability before truncation, nats."""
        return self.packed_RTX[..., RAW_LOGP]

    @property
    def entropy_RT(self) -> jax.Array:
        """Entropy of the emitting distribution, nats."""
        return self.packed_RTX[..., ENTROPY]

    def token_at(self, index_R: jax.Array) -> jax.Array:
        """The token at one response index of every row."""
        return jnp.take_along_axis(self.packed_RTX[..., TOKEN], index_R[:, None], axis=1)[:, 0].astype(jnp.int32)

    @property
    def top_token_RTK(self) -> jax.Array:
        """The likeliest tokens of every position."""
        return self.packed_RTX[..., TOP : TOP + self._noted].astype(jnp.int32)

    @property
    def top_logp_RTK(self) -> jax.Array:
        """Their log-probabilities before truncation, nats."""
        return self.packed_RTX[..., TOP + self._noted :]

    @property
    def _noted(self) -> int:
        """K."""
        return (self.packed_RTX.shape[-1] - TOP) // 2

    @property
    def stopped_R(self) -> jax.Array:
        """Whether the last token is a stop token; of finished rows."""
        return self.finish_R == STOP

    @property
    def record(self) -> Record:
        """What decides where these rows branch; of finished rows."""
        return Record(
            entropy_BT=self.entropy_RT,
            logp_BT=self.raw_logp_RT,
            length_B=self.length_R,
            stopped_B=self.stopped_R,
            begin_B=self.branch_at_R,
            given_BT=None if self.turns is None else self.turns.turn_RT < 0,
        )

    def of(self, row_B: jax.Array) -> "Grown":
        """The rows that slots ask for; R is B in what comes back."""
        return jax.tree.map(lambda x_R: x_R[row_B], self)

    def write(self, where_B: jax.Array, row_B: jax.Array, index_B: jax.Array, draw: Draw) -> "Grown":
        """One more token, at response index index_B."""
        token_B = draw.token_B.astype(jnp.float32)
        packed_BX = jnp.stack([token_B, draw.raw_logp_B, draw.entropy_B], axis=-1)
        if draw.top_token_BK is not None and draw.top_logp_BK is not None:
            packed_BX = jnp.concatenate([packed_BX, draw.top_token_BK, draw.top_logp_BK], axis=-1)
        row_B = _only(where_B, row_B, self.length_R)
        return self.replace(packed_RTX=self.packed_RTX.at[row_B, index_B].set(packed_BX, mode="drop"))

    def write_turns(self, where_B: jax.Array, row_B: jax.Array, index_B: jax.Array, turns: Turns) -> "Grown":
        """Whose turn that token is."""
        assert self.turns is not None
        return self.replace(turns=self.turns.write(_only(where_B, row_B, self.length_R), index_B, turns))

    def inherit(self, where_B: jax.Array, row_B: jax.Array, parents: "Grown", at_B, fallback_B) -> "Grown":
        """Begins branches: the first at_B tokens are those of their parents (from `of`), and nothing behind them."""
        inherited_BT1 = (jnp.arange(self.packed_RTX.shape[1]) < at_B[:, None])[..., None]
        turns = self.turns
        if turns is not None and parents.turns is not None:
            turns = turns.inherit(_only(where_B, row_B, self.length_R), parents.turns, inherited_BT1[..., 0])
        return self.replace(
            turns=turns,
            packed_RTX=put(self.packed_RTX, where_B, row_B, jnp.where(inherited_BT1, parents.packed_RTX, 0)),
            branch_at_R=put(self.branch_at_R, where_B, row_B, at_B),
            fallback_R=put(self.fallback_R, where_B, row_B, fallback_B),
        )

    def end(
        self,
        where_B: jax.Array,
        row_B: jax.Array,
        length_B: jax.Array,
        stopped_B: jax.Array,
        ended_B: jax.Array | bool = False,
    ) -> "Grown":
        """Notes how long finished trajectories are and why they ended: with a stop token, or by their environment;
        saying it twice does no harm."""
        unstopped_B = jnp.where(ended_B, DONE, LENGTH)
        return self.replace(
            length_R=put(self.length_R, where_B, row_B, length_B),
            finish_R=put(self.finish_R, where_B, row_B, jnp.where(stopped_B, STOP, unstopped_B)),
        )

    def columns(self) -> dict[str, jax.Array]:
        """The fields of a Forest that are recorded here, by their names there."""
        noted = ["top_token_RTK", "top_logp_RTK"] if self._noted else []
        turns = {} if self.turns is None else {"turn_RT": self.turns.turn_RT}
        return {name: getattr(self, name) for name in [*COLUMNS, *noted]} | turns


def nothing_grown(rows: int, max_tokens: int, z_width: int, *, noted: int = 0, turns: bool = False) -> Grown:
    """Before the first token: R rows of T tokens, `noted` likeliest ones each, and latents of z_width numbers; and with
    `turns` whose turn it is."""
    nobodys_RT = jnp.zeros((rows, max_tokens), jnp.int32)
    zero_R = jnp.zeros(rows, jnp.int32)
    return Grown(
        packed_RTX=jnp.zeros((rows, max_tokens, TOP + 2 * noted)),
        length_R=zero_R,
        finish_R=zero_R + LENGTH,
        branch_at_R=zero_R,
        fallback_R=zero_R > 0,
        left_R=jnp.ones(rows),
        z_RZ=jnp.zeros((rows, z_width)),
        turns=TurnRecord(turn_RT=nobodys_RT, state_RT=nobodys_RT) if turns else None,
    )


def put(x_R: jax.Array, where_B: jax.Array, row_B: jax.Array, new_B: jax.Array) -> jax.Array:
    """x_R [R,...] with new_B[b] in row row_B[b] for every slot b where where_B[b]."""
    return x_R.at[_only(where_B, row_B, x_R)].set(new_B, mode="drop")


def _only(where_B, row_B, x_R):
    """row_B where where_B, and elsewhere a row that does not exist: a scatter drops what is meant for it."""
    return jnp.where(where_B, row_B, x_R.shape[0])
