"""How the rows of a minibatch are taken a piece at a time: padded rows, or bins of packed nodes (model/packed/bins.py).

A piece is what one forward and backward pass holds. Both kinds give the same numbers; objectives see [rows, T] arrays
either way.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.decoder import Decoder, hidden_states
from iiblpo_jax.model.divergence import Teacher
from iiblpo_jax.model.logprobs import response_logprobs, response_positions
from iiblpo_jax.model.packed.bins import PackedRows
from iiblpo_jax.model.packed.forward import packed_logprobs, packed_states
from iiblpo_jax.model.steering.psa import PSA, steer_nodes, steer_rows
from iiblpo_jax.objectives.rows import TOP_TOKEN, Rows
from iiblpo_jax.update.settings import UpdateSettings


def make_pieces(rows: Rows, settings: UpdateSettings) -> "PaddedPieces | PackedPieces":
    """The pieces of a minibatch (or of any number of whole minibatches)."""
    return PackedPieces(rows, settings) if settings.pack_tokens else PaddedPieces(rows, settings)


class PaddedPieces:
    """settings.microbatch rows a piece, each with its own copy of whatever it shares with others.

    Attributes:
      count: pieces.
      one: there is one piece, known when the program is traced.
      latent: rows carry latents.
      nodes: input positions of the rows with a counted token.
      positions: input positions that a forward of all pieces computes, padding included.
    """

    def __init__(self, rows: Rows, settings: UpdateSettings):
        n = rows.prompt_len_R.shape[0]
        self._rows, self._settings, self._size = rows, settings, settings.microbatch or n
        self.count = n // self._size
        self.one, self.latent = self.count == 1, rows.latent is not None
        self.nodes, self.positions = rows.inputs_R.sum(), rows.tokens_RC.size

    def cut(self, tree, i):
        """Piece i of arrays with the N rows leading."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * self._size, self._size), tree)

    def rows(self, i) -> Rows:
        """The rows of piece i."""
        return self.cut(self._rows, i)

    def counted(self, tree, i):
        """Arrays of `cut`, zeroed where a row is only there to fill the piece: here none is."""
        del i
        return tree

    def log_probs(
        self, model: Decoder, i, *, psa: PSA | None = None, others: bool = False, teacher: Teacher | None = None
    ):
        """(logp, entropy) of the response tokens of piece i, [rows, T]; with `psa`, z is injected.

        With a teacher, whose columns are those of all N rows, and the divergence from it, [rows, T].
        With `others` and the log-probs of the tokens that rows have as TOP_TOKEN, [rows, T, K].
        """
        rows, settings = self.rows(i), self._settings
        return response_logprobs(
            model,
            rows.tokens_RC,
            rows.prompt_len_R,
            rows.mask_RT.shape[1],
            temperature=settings.temperature,
            never=settings.never_ids,
            inject=None if psa is None or rows.latent is None else steer_rows(psa, model.config.n_layers, rows.latent),
            remat=settings.remat,
            teacher=teacher and teacher.replace(columns=self.cut(teacher.columns, i)),
            others_NTK=rows.extras[TOP_TOKEN] if others else None,
        )

    def collect_log_probs(self, model: Decoder, **how):
        """`log_probs` of all N rows."""
        outputs = jax.lax.map(lambda i: self.log_probs(model, i, **how), jnp.arange(self.count))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

    def collect_states(self, model: Decoder) -> jax.Array:
        """Final hidden states [N,T,D] that emit the response tokens of all N rows."""

        def states(i):
            rows = self.rows(i)
            at_RT = response_positions(rows.prompt_len_R, rows.t)
            return jnp.take_along_axis(hidden_states(model, rows.tokens_RC), at_RT[..., None], axis=1, mode="clip")

        x_NTD = jax.lax.map(states, jnp.arange(self.count))
        return x_NTD.reshape(-1, *x_NTD.shape[2:])


class PackedPieces:
    """One bin a piece and data shard; every node once. Rows past the last of a bin are there with a mask of zeros.

    Attributes:
      count: bins of the fullest shard, data-dependent.
      one: False: the number of bins is not known when the program is traced.
      latent: rows carry latents.
      nodes: those of the rows with a counted token; what rows of a bin have in common is there once.
      positions: nodes that a forward of all bins computes, unused ones included.
    """

    one = False

    def __init__(self, rows: Rows, settings: UpdateSettings):
        self._rows, self._settings = rows, settings
        self.latent = rows.latent is not None
        private_R = None
        if settings.condition == "conditioned" and rows.latent is not None:
            on_RC = (rows.latent.segment_BT >= 0) & (rows.latent.gamma_BT > 0)
            private_R = jnp.where(on_RC.any(-1), on_RC.argmax(-1), on_RC.shape[1])
        # Rows of which no token counts (fillers of a group that kept too few) need no forward.
        length_R = jnp.where(rows.mask_RT.any(-1), rows.prompt_len_R + rows.length_R, 0)
        self._packed = PackedRows(
            rows.tokens_RC,
            length_R,
            tokens=settings.pack_tokens,
            group=settings.group_size,
            shards=settings.shards,
            private_N=private_R,
        )
        self.count, self.nodes = self._packed.count, self._packed.nodes
        self.positions = self.count * settings.shards * self._packed.spec.tokens

    def cut(self, tree, i):
        """The rows of bin i of every shard, out of arrays with the N rows leading."""
        return self._packed.cut(tree, self._packed.bins(i))

    def rows(self, i) -> Rows:
        """The rows of bin i of every shard; no token of a place without a row counts."""
        rows = self.cut(self._rows, i)
        mask_RT, own_mask_RT = self.counted((rows.mask_RT, rows.own_mask_RT), i)
        return rows.replace(mask_RT=mask_RT, own_mask_RT=own_mask_RT)

    def counted(self, tree, i):
        """Arrays [rows, T] of `cut`, zeroed where a place holds no row."""
        valid = self._packed.bins(i).valid_J.ravel()
        return jax.tree.map(lambda x: jnp.where(valid[:, None], x, 0.0), tree)

    def log_probs(self, model: Decoder, i, **how):
        """As of PaddedPieces, of `rows(i)`."""
        outputs = self._log_probs(model, self._packed.bins(i), **how)
        return tuple(x.reshape(-1, *x.shape[2:]) for x in outputs)

    def _log_probs(self, model, bins, *, psa=None, others=False, teacher=None):
        rows, settings = self._rows, self._settings
        by_shard = self._packed.by_shard
        inject = None
        if psa is not None:
            inject = steer_nodes(psa, model.config.n_layers, jax.tree.map(by_shard, rows.latent), bins)
        return packed_logprobs(
            model,
            self._packed.tokens_WNC,
            by_shard(rows.prompt_len_R),
            bins,
            rows.mask_RT.shape[1],
            block=self._packed.spec.block,
            attention=settings.attention,
            temperature=settings.temperature,
            never=settings.never_ids,
            inject=inject,
            remat=settings.remat,
            teacher=teacher and teacher.replace(columns=tuple(map(by_shard, teacher.columns))),
            others_WNTK=by_shard(rows.extras[TOP_TOKEN]) if others else None,
        )

    def collect_log_probs(self, model: Decoder, **how):
        """`log_probs` of all N rows."""
        return self._packed.collect(lambda bins: self._log_probs(model, bins, **how))

    def collect_states(self, model: Decoder) -> jax.Array:
        """As of PaddedPieces."""
        packed, rows, spec = self._packed, self._rows, self._packed.spec
        attention = self._settings.attention

        def states(bins):
            length_WN = packed.by_shard(rows.prompt_len_R)
            return packed_states(
                model, packed.tokens_WNC, length_WN, bins, rows.t, block=spec.block, attention=attention
            )

        return packed.collect(states)
