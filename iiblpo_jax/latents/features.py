"""Training pairs (context, rest of the response) from the frozen model, cut where rollouts will branch.

A continuation is cut at a response index t, a candidate branch point of the rollout engine or anywhere. Then c =
final-norm hidden state of the last prefix token (index t - 1). The target is the mean final-norm hidden state of tokens
t .. length - 1, the stop token included (method: LaRS embeds the rationale with a second encoder; here the policy
itself is the encoder), or, for codes, how the next tokens surprise the policy.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.devices.mesh import spread, whole
from iiblpo_jax.model.decoder import bind, hidden_states, output_weights, project
from iiblpo_jax.model.logprobs import chunked_logprobs, response_positions
from iiblpo_jax.rollout.branch_points import Record, candidate_mask
from iiblpo_jax.rollout.branching import Branching

MIN_LENGTH = 2  # one token of prefix, one of rest
TOKENS_PER_CHUNK = 2**14  # row positions whose hidden states exist at the same time on a device


class Continuation(NamedTuple):
    """One response to one prompt, as token ids; `stopped`: its last token is a stop token."""

    prompt_id: int
    prompt: list[int]
    response: list[int]
    stopped: bool


@struct.dataclass
class Rows:
    """Continuations as right-padded rows [prompt, response].

    Attributes:
      tokens_NC: token ids.
      prompt_len_N: tokens of each prompt.
      length_N: tokens of each response.
      stopped_N: the last token of the response is a stop token.
      prompt_id_N: which prompt a row continues.
      t: T, the longest response (static).
    """

    tokens_NC: jax.Array
    prompt_len_N: jax.Array
    length_N: jax.Array
    stopped_N: jax.Array
    prompt_id_N: jax.Array
    t: int = struct.field(pytree_node=False)

    def mask_from(self, start_N):
        """[N,T] True at response tokens start .. length - 1."""
        index_T = jnp.arange(self.t)
        return (index_T >= start_N[:, None]) & (index_T < self.length_N[:, None])


@struct.dataclass
class Pairs:
    """Rows, where they are cut, and what the CVAE learns from.

    Attributes:
      rows: N continuations.
      cut_N: response index t of the first token of the rest, 1 <= t < length.
      context_ND: hidden state of the last prefix token.
      target_ND: mean hidden state of the rest, or of its first tokens.
    """

    rows: Rows
    cut_N: jax.Array
    context_ND: jax.Array
    target_ND: jax.Array

    def __getitem__(self, index):
        return jax.tree.map(lambda x: x[index], self)


def rows_of(continuations: list[Continuation]) -> Rows:
    """Rows of every continuation that can be cut; host work.

    Raises:
      InputError: no response has two tokens.
    """
    usable = [c for c in continuations if len(c.response) >= MIN_LENGTH]
    if not usable:
        raise InputError("latent stage: no response has two tokens to cut between; raise rollout.max_tokens")
    lengths = [len(c.prompt) + len(c.response) for c in usable]
    tokens_NC = np.zeros((len(usable), max(lengths)), np.int32)
    for row, length, c in zip(tokens_NC, lengths, usable, strict=True):
        row[:length] = c.prompt + c.response
    return Rows(
        tokens_NC=jnp.asarray(tokens_NC),
        prompt_len_N=jnp.array([len(c.prompt) for c in usable], jnp.int32),
        length_N=jnp.array([len(c.response) for c in usable], jnp.int32),
        stopped_N=jnp.array([c.stopped for c in usable], bool),
        prompt_id_N=jnp.array([c.prompt_id for c in usable], jnp.int32),
        t=max(len(c.response) for c in usable),
    )


def extract(
    config,
    params,
    rows: Rows,
    key,
    *,
    temperature: float,
    branching: Branching,
    window: int = 0,
    anywhere: float = 0.5,
    mesh: Mesh | None = None,
) -> Pairs:
    """Cuts every row and computes its features, chunk by chunk.

    Args:
      config, params: the frozen model.
      rows: N continuations.
      key: row n draws with fold_in(key, n), so the result does not depend on the chunks.
      temperature: sampling temperature of the entropies.
      branching: the rollout engine's rule for branch points.
      window: tokens from the cut on whose `embedding_residual` is the target; 0 = the mean hidden state of the rest.
      anywhere: share of the rows that are cut anywhere; the others are cut at candidate branch points.
      mesh: devices that hold the model, among which rows are split; None = one.
    """
    static = {"temperature": temperature, "branching": branching, "window": window, "anywhere": anywhere, "mesh": mesh}
    keys_N = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows.length_N.shape[0]))
    parts = [
        jax.tree.map(lambda x, keep=keep: x[:keep], _extract(config, params, *mine, **static))
        for mine, keep in chunks((rows, keys_N), rows.tokens_NC.shape[1], mesh)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def chunks(tree, width: int, mesh: Mesh | None = None):
    """Slices a tree of [N, ...] arrays into blocks of TOKENS_PER_CHUNK / width rows a device: (block, rows that count).

    The last block repeats the last row, so that every block has one shape and needs one compile, and so that the
    devices of a mesh have as many rows each.
    """
    n, shards = jax.tree.leaves(tree)[0].shape[0], meshes.shards(mesh)
    size = min(-(-n // shards), max(1, TOKENS_PER_CHUNK // width)) * shards
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)
        yield jax.tree.map(lambda x, index=index: x[index], tree), min(size, n - start)


@functools.partial(jax.jit, static_argnames=("config", "temperature", "branching", "window", "anywhere", "mesh"))
def _extract(config, params, rows, keys_N, *, mesh, **static):
    with meshes.using(mesh):
        return whole(_pairs(config, params, *spread((rows, keys_N)), **static))


def _pairs(config, params, rows, keys_N, *, temperature, branching, window, anywhere):
    model = bind(config, params)
    h_NCD = hidden_states(model, rows.tokens_NC)
    at_NT = response_positions(rows.prompt_len_N, rows.t)
    h_NTD = jnp.take_along_axis(h_NCD, at_NT[..., None], axis=1, mode="clip")  # [:, i] emits response token i
    targets_NT = jnp.take_along_axis(rows.tokens_NC, at_NT + 1, axis=1, mode="clip")
    logp_NT, entropy_NT = chunked_logprobs(h_NTD, output_weights(model), targets_NT, temperature=temperature)
    record = Record(
        entropy_BT=entropy_NT,
        logp_BT=logp_NT,
        length_B=rows.length_N,
        stopped_B=rows.stopped_N,
        begin_B=jnp.zeros_like(rows.length_N),
    )
    cut_N = _draw_cut(candidate_mask(record, branching), rows, keys_N, anywhere)
    context_ND = jnp.take_along_axis(h_NTD, cut_N[:, None, None], axis=1)[:, 0]
    if window:
        target_ND = embedding_residual(model, h_NTD, targets_NT, rows.mask_from(cut_N), cut_N, window, temperature)
    else:
        rest_NC = _rest_mask(rows, cut_N)
        target_ND = jnp.einsum("ncd,nc->nd", h_NCD, rest_NC.astype(h_NCD.dtype)) / rest_NC.sum(-1, keepdims=True)
    return Pairs(
        rows=rows, cut_N=cut_N, context_ND=context_ND.astype(jnp.float32), target_ND=target_ND.astype(jnp.float32)
    )


def _rest_mask(rows, cut_N):
    """[N,C] True at the row positions of response tokens cut .. length - 1"""
    index_NC = jnp.arange(rows.tokens_NC.shape[1])[None] - rows.prompt_len_N[:, None]
    return (index_NC >= cut_N[:, None]) & (index_NC < rows.length_N[:, None])


def embedding_residual(model, h_NTD, tokens_NT, mask_NT, cut_N, window: int, temperature: float):
    """What the model did not expect of the next tokens: sum_i 2^(-i/(window/2)) (w[token] - E_pi w) over i < window.

    w are the output embeddings. Each term is the gradient of the token's log-probability with respect to the hidden
    state (times the temperature), and its mean given all that comes before is zero: nothing of it can be predicted.
    """
    head_VD = output_weights(model)

    def of_token(i):  # one at a time: logits of a whole vocabulary
        at_N1 = cut_N[:, None] + i
        h_ND = jnp.take_along_axis(h_NTD, at_N1[..., None], axis=1, mode="clip")[:, 0]
        token_N, mask_N = (jnp.take_along_axis(x, at_N1, axis=1, mode="clip")[:, 0] for x in (tokens_NT, mask_NT))
        mask_N &= at_N1[:, 0] < mask_NT.shape[1]
        p_NV = jax.nn.softmax(project(model, h_ND) / temperature)
        return mask_N[:, None] * 0.5 ** (2 * i / window) * (head_VD[token_N] - p_NV @ head_VD)

    return jax.lax.map(of_token, jnp.arange(window)).sum(0)


def _draw_cut(candidates_NT, rows, keys_N, anywhere):
    """[N] a candidate branch point or, with probability `anywhere`, a uniform index in [1, length - 1].

    A response without candidates is cut uniformly.
    """
    index_T = jnp.arange(rows.t)
    anywhere_NT = (index_T >= 1) & (index_T < rows.length_N[:, None])
    keys_N2 = jax.vmap(jax.random.split)(keys_N)
    heads_N = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - anywhere))(keys_N2[:, 0])
    use_N = heads_N & candidates_NT.any(-1)
    choices_NT = jnp.where(use_N[:, None], candidates_NT, anywhere_NT)
    return jax.vmap(lambda key, ok_T: jax.random.categorical(key, jnp.where(ok_T, 0.0, -jnp.inf)))(
        keys_N2[:, 1], choices_NT
    ).astype(jnp.int32)


def split_by_prompt(rows: Rows, *, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) row indices; no prompt is on both sides, each side has at least one prompt if there are two.

    Prompts at even distances are held out: where small problems repeat, the later prompts are all large ones.
    """
    ids_N = np.asarray(rows.prompt_id_N)
    ids = np.unique(ids_N)
    held_out = ids[:: max(2, round(1 / fraction))]
    train = np.flatnonzero(~np.isin(ids_N, held_out)) if len(ids) > 1 else np.arange(len(ids_N))
    return train, np.flatnonzero(np.isin(ids_N, held_out))
