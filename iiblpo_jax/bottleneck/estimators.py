"""The two information terms of S_IB (method: IIB-LPO, arXiv 2601.05870; entropy form: IBRO, arXiv 2507.18391).

`likelihood` asks the frozen reference model, `entropy_score` the rollout's own entropies.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax import masked
from iiblpo_jax.forest import join
from iiblpo_jax.logprobs import response_logprobs
from iiblpo_jax.model.decoder import Decoder


@struct.dataclass(kw_only=True)
class Evidence:
    """What `likelihood` reads. Every array is right padded; Q = cue length, A = answer length.

    prompt_PS, prompt_len_P: the questions, as the policy saw them.
    response_RT, length_R: whole responses with their stop token; trajectories of one prompt are contiguous.
    cut_R: tokens of the response before its final answer (`marker_cut`).
    cue_PQ, cue_len_P: the text that asks for the answer, such as "The answer is ".
    answer_PA, answer_len_P: the gold answer; at least one token.
    """

    prompt_PS: jax.Array
    prompt_len_P: jax.Array
    response_RT: jax.Array
    length_R: jax.Array
    cut_R: jax.Array
    cue_PQ: jax.Array
    cue_len_P: jax.Array
    answer_PA: jax.Array
    answer_len_P: jax.Array


@struct.dataclass(kw_only=True)
class Information:
    """The `likelihood` terms of every trajectory, before standardisation.

    answer_R: I(r; a), nats per answer token. prompt_R: I(q; r), nats per token of the group's mean length.
    ref_logp_RT: log pi_ref(o_t | q, o_<t), 0 beyond the response; the update's KL term reuses it.
    """

    answer_R: jax.Array
    prompt_R: jax.Array
    ref_logp_RT: jax.Array


def join_rows(pieces: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Concatenates right-padded pieces row by row: [(x_NW, len_N), ...] -> (rows_NC, len_N), C = sum of the widths."""
    (rows_NC, len_N), *rest = pieces
    for x_NW, x_len_N in rest:
        rows_NC, len_N = join(rows_NC, len_N, x_NW, x_len_N), len_N + x_len_N
    return rows_NC, len_N


def map_chunks(function: Callable, *arrays: jax.Array, chunk: int):
    """Applies a row-wise function to `chunk` rows at a time, so that memory does not grow with the number of rows."""
    n = arrays[0].shape[0]
    count = -(-n // chunk)
    if count == 1:
        return function(*arrays)
    take = jnp.minimum(jnp.arange(count * chunk), n - 1)  # the last row fills up the last chunk
    # Chunk i takes rows i, i + count, ...: every chunk then spans all devices among which the rows are sharded.
    split = [x[take].reshape(chunk, count, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
    out = jax.lax.map(lambda xs: function(*xs), tuple(split))
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(count * chunk, *y.shape[2:])[:n], out)


def _masked_logprobs(
    model: Decoder,
    context: list[tuple[jax.Array, jax.Array]],
    text_NW: jax.Array,
    len_N: jax.Array,
    *,
    temperature: float,
    chunk: int,
) -> jax.Array:
    """log pi(text | context) per token [N, W], 0 beyond each text."""
    context_NC, context_len_N = join_rows(context)
    rows_NC = join(context_NC, context_len_N, text_NW, len_N)
    width = text_NW.shape[1]

    def forward(rows, context_len):
        return response_logprobs(model, rows, context_len, width, temperature=temperature)[0]

    logp_NW = map_chunks(forward, rows_NC, context_len_N, chunk=chunk)
    return jnp.where(jnp.arange(width) < len_N[:, None], logp_NW, 0.0)


def likelihood(
    model: Decoder, evidence: Evidence, *, start_id: int, temperature: float = 1.0, chunk: int = 16
) -> Information:
    """Both information terms under a frozen model, from three forwards a trajectory and one a prompt.

    I(r; a) = mean over answer tokens of [log pi(a | q, r_cut, cue) - log pi(a | q, cue)];
    I(q; r) = sum over response tokens of [log pi(o_t | q, o_<t) - log pi(o_t | o_<t)] / (mean length of the group).
    The divisor is one constant a group: a per-token mean would reward repetition.

    Args:
        model: the reference. It must have S + T + Q + A positions.
        start_id: the one token of context that stands for "no question".
        temperature: divides all logits, so that `ref_logp_RT` matches the policy's log-probs in the KL term.
        chunk: rows a forward.
    """
    e = evidence
    group = e.length_R.shape[0] // e.prompt_len_P.shape[0]
    prompt, cue, answer = (
        [jnp.repeat(x, group, axis=0) for x in pair]
        for pair in ((e.prompt_PS, e.prompt_len_P), (e.cue_PQ, e.cue_len_P), (e.answer_PA, e.answer_len_P))
    )
    start_R1 = jnp.full((e.length_R.shape[0], 1), start_id, jnp.int32)
    start = (start_R1, jnp.ones_like(e.length_R))

    def logprobs(context, text, length):
        return _masked_logprobs(model, context, text, length, temperature=temperature, chunk=chunk)

    with_reasoning_RA = logprobs([prompt, (e.response_RT, e.cut_R), cue], *answer)
    without_PA = logprobs([(e.prompt_PS, e.prompt_len_P), (e.cue_PQ, e.cue_len_P)], e.answer_PA, e.answer_len_P)
    ref_logp_RT = logprobs([prompt], e.response_RT, e.length_R)
    alone_RT = logprobs([start], e.response_RT, e.length_R)

    gain_R = jnp.sum(with_reasoning_RA, axis=1) - jnp.repeat(jnp.sum(without_PA, axis=1), group)
    mean_length_P = jnp.mean(e.length_R.reshape(-1, group), axis=1)
    return Information(
        answer_R=gain_R / answer[1],
        prompt_R=jnp.sum(ref_logp_RT - alone_RT, axis=1) / jnp.repeat(mean_length_P, group),
        ref_logp_RT=ref_logp_RT,
    )


def entropy_score(advantage_RT: jax.Array, entropy_RT: jax.Array, mask_RT: jax.Array) -> jax.Array:
    """S_IB = mean over a trajectory's tokens of A_t H_t [R], in nats (IBRO's practical form). No forward.

    `advantage_RT` is normalised within the group of one prompt; [R, 1] serves an outcome reward.
    """
    return masked.mean(advantage_RT * entropy_RT, mask_RT, axis=1)
