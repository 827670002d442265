"""The two information terms of S_IB (method: IIB-LPO, arXiv 2601.05870; entropy form: IBRO, arXiv 2507.18391).

`likelihood` asks the frozen reference model, `entropy_score` the rollout's own entropies.
"""

import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.common import masked
from iiblpo_jax.common.padded import join, join_rows
from iiblpo_jax.model.decoder import Decoder
from iiblpo_jax.model.packed.bins import PackedRows
from iiblpo_jax.model.packed.forward import packed_logprobs
from iiblpo_jax.rollout.forest import Forest


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

    answer_R: I(r; a), nats per answer token. prompt_R: the compression term, nats per token of the group's mean length:
    the description length of r, or I(q; r).
    ref_logp_RT: log pi_ref(o_t | q, o_<t), 0 beyond the response; the update's KL term reuses it.
    """

    answer_R: jax.Array
    prompt_R: jax.Array
    ref_logp_RT: jax.Array


def likelihood(
    model: Decoder,
    evidence: Evidence,
    *,
    start_id: int,
    compression: Literal["description", "information"] = "description",
    temperature: float = 1.0,
    pack_tokens: int = 2**13,
    attention: str = "blocks",
    shards: int = 1,
) -> Information:
    """Both terms of the score under a frozen model.

    I(r; a) = mean over answer tokens of [log pi(a | q, r_cut, cue) - log pi(a | q, cue)]. What it is weighed against,
    `compression`, is a sum over response tokens divided by the mean length of the group:

    description  - log pi(o_t | o_<t), what r costs to write down: min H(r) - beta I(r; a), the deterministic
                 information bottleneck (Strouse and Schwab 2017, arXiv 1604.00268). H(r) = I(q; r) + H(r | q).
    information  log pi(o_t | q, o_<t) - log pi(o_t | o_<t), I(q; r) as the paper writes it. Text that follows from r
                 itself costs nothing, so this cannot tell a solution from its repetition.

    The divisor is one constant a group: a per-token mean would reward repetition.

    Four kinds of rows of one prompt are packed together (packing.py): the responses, the cut responses with cue and
    answer, cue and answer alone, and the responses without the question. The second kind then costs its cue and answer
    only, and whatever two samples have in common is read once.

    Args:
        model: the reference. It must have S + T + Q + A positions.
        start_id: the one token of context that stands for "no question".
        compression: see above.
        temperature: divides all logits, so that `ref_logp_RT` matches the policy's log-probs in the KL term.
        pack_tokens: nodes of one forward.
        attention: attention.impl of the config.
        shards: devices among which prompts are split.
    """
    e = evidence
    p, r = e.prompt_len_P.shape[0], e.length_R.shape[0]
    group = r // p

    def of_row(x_P):
        return jnp.repeat(x_P, group, axis=0)

    prompt, cue = (of_row(e.prompt_PS), of_row(e.prompt_len_P)), (of_row(e.cue_PQ), of_row(e.cue_len_P))
    start = (jnp.full((r, 1), start_id, e.response_RT.dtype), jnp.ones(r, e.length_R.dtype))
    response, answer = (e.response_RT, e.length_R), (of_row(e.answer_PA), of_row(e.answer_len_P))
    bare = [(e.prompt_PS, e.prompt_len_P), (e.cue_PQ, e.cue_len_P)]
    kinds = [
        ([prompt], response),
        ([prompt, (e.response_RT, e.cut_R), cue], answer),
        (bare, (e.answer_PA, e.answer_len_P)),
        ([start], response),
    ]
    width = e.prompt_PS.shape[1] + e.response_RT.shape[1] + e.cue_PQ.shape[1] + e.answer_PA.shape[1]
    logp = packed_texts(
        model,
        [join_texts(*kind, p=p, width=width) for kind in kinds],
        max(e.response_RT.shape[1], answer[0].shape[1]),
        temperature=temperature,
        pack_tokens=pack_tokens,
        attention=attention,
        shards=shards,
    )
    ref_logp_RT, with_reasoning_RA, without_PA, alone_RT = (
        x.reshape(-1, x.shape[-1])[:, : text.shape[1]] for x, (_, (text, _)) in zip(logp, kinds, strict=True)
    )
    gain_R = jnp.sum(with_reasoning_RA, axis=1) - of_row(jnp.sum(without_PA, axis=1))
    mean_length_P = jnp.mean(e.length_R.reshape(p, group), axis=1)
    cost_RT = ref_logp_RT - alone_RT if compression == "information" else -alone_RT
    return Information(
        answer_R=gain_R / answer[1],
        prompt_R=jnp.sum(cost_RT, axis=1) / of_row(mean_length_P),
        ref_logp_RT=ref_logp_RT,
    )


def reference_logprobs(
    model: Decoder, forest: Forest, *, temperature: float, pack_tokens: int, attention: str, shards: int = 1
) -> jax.Array:
    """log pi_ref(o_t | q, o_<t) [R,T], 0 beyond the response."""
    prompt = (forest.prompt_PS[forest.group_R], forest.prompt_len_P[forest.group_R])
    texts = join_texts(
        [prompt],
        (forest.tokens_RT, forest.length_R),
        p=forest.prompt_len_P.shape[0],
        width=forest.prompt_PS.shape[1] + forest.tokens_RT.shape[1],
    )
    (logp_PGT,) = packed_texts(
        model,
        [texts],
        forest.tokens_RT.shape[1],
        temperature=temperature,
        pack_tokens=pack_tokens,
        attention=attention,
        shards=shards,
    )
    return logp_PGT.reshape(forest.tokens_RT.shape)


@struct.dataclass
class Texts:
    """Texts after their contexts, as rows of each prompt: tokens_PGC, context_len_PG, and length_PG of both."""

    tokens_PGC: jax.Array
    context_len_PG: jax.Array
    length_PG: jax.Array


def join_texts(context: list, text: tuple[jax.Array, jax.Array], *, p: int, width: int) -> Texts:
    """Rows [context pieces, text] of P prompts, padded to `width` columns."""
    context_NC, context_len_N = join_rows(context)
    rows_NC = join(context_NC, context_len_N, *text)
    rows_NC = jnp.pad(rows_NC, [(0, 0), (0, width - rows_NC.shape[1])])

    def by_prompt(x):
        return x.reshape(p, -1, *x.shape[1:])

    return Texts(*map(by_prompt, (rows_NC, context_len_N, context_len_N + text[1])))


def packed_texts(
    model: Decoder, kinds: list[Texts], t: int, *, temperature: float, pack_tokens: int, attention: str, shards: int
) -> list[jax.Array]:
    """log pi(text | context) per token [P,G,t] of every kind of rows, 0 beyond each text; no gradient."""
    every = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *kinds)
    p, group = every.length_PG.shape
    packed = PackedRows(
        every.tokens_PGC.reshape(p * group, -1), every.length_PG.ravel(), tokens=pack_tokens, group=group, shards=shards
    )
    context_len_WN = every.context_len_PG.reshape(shards, -1)

    def forward(bins):
        logp_WJT, _ = packed_logprobs(
            model,
            packed.tokens_WNC,
            context_len_WN,
            bins,
            t,
            block=packed.spec.block,
            attention=attention,
            temperature=temperature,
            remat=False,
        )
        return logp_WJT

    logp_PGT = packed.collect(forward).reshape(p, group, t)
    ends = [0]
    for kind in kinds:
        ends.append(ends[-1] + kind.length_PG.shape[1])
    return [logp_PGT[:, a:b] for a, b in itertools.pairwise(ends)]


def entropy_score(advantage_RT: jax.Array, entropy_RT: jax.Array, mask_RT: jax.Array) -> jax.Array:
    """S_IB = mean over a trajectory's tokens of A_t H_t [R], in nats (IBRO's practical form). No forward.

    `advantage_RT` is normalised within the group of one prompt; [R, 1] serves an outcome reward.
    """
    return masked.mean(advantage_RT * entropy_RT, mask_RT, axis=1)
