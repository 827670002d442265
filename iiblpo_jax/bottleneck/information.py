"""The two information terms of S_IB (method: IIB-LPO, arXiv 2601.05870; entropy form: IBRO, arXiv 2507.18391).

`likelihood` asks the frozen reference model, `entropy_score` the rollout's own entropies.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.common import masked
from iiblpo_jax.common.padded import Padded, join, join_rows
from iiblpo_jax.model.decoder import Decoder
from iiblpo_jax.model.packed.bins import PackedRows
from iiblpo_jax.model.packed.forward import packed_logprobs
from iiblpo_jax.rollout.forest import Forest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a frozen model reads rows; static.

    Attributes:
      temperature: divides all logits: the rollout's, so that reference log-probs match the policy's in the KL term.
      never_ids: tokens that its distributions do not have, as those of the policy do not.
      start_id: the one token of context that stands for "no question".
      pack_tokens: nodes of one forward (model/packed/bins.py).
      attention: attention.impl of the config.
      shards: devices among which prompts are split.
    """

    temperature: float = 1.0
    never_ids: tuple[int, ...] = ()
    start_id: int = 0
    pack_tokens: int = 2**13
    attention: str = "blocks"
    shards: int = 1


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
    *,
    prompt: Padded,
    response: Padded,
    cut_R: jax.Array,
    cue: Padded,
    answer: Padded,
    reading: Reading,
    compression: str = "description",
) -> Information:
    """Both terms of the score under a frozen model.

    I(r; a) = mean over answer tokens of [log pi(a | q, r_cut, cue) - log pi(a | q, cue)]. What it is weighed against,
    `compression`, is a sum over response tokens divided by the mean length of the group:

    description  - log pi(o_t | o_<t), what r costs to write down: min H(r) - beta I(r; a), the deterministic
                 information bottleneck (Strouse and Schwab 2017, arXiv 1604.00268). H(r) = I(q; r) + H(r | q).
    information  log pi(o_t | q, o_<t) - log pi(o_t | o_<t), I(q; r) as the paper writes it. Text that follows from r
                 itself costs nothing, so this cannot tell a solution from its repetition.

    The divisor is one constant a group: a per-token mean would reward repetition.

    Four kinds of rows of one prompt are packed together (model/packed/): the responses, the cut responses with cue and
    answer, cue and answer alone, and the responses without the question. The second kind then costs its cue and answer
    only, and whatever two samples have in common is read once.

    Args:
        model: the reference. It must have S + T + Q + A positions.
        prompt: the P questions, as the policy saw them.
        response: R whole responses with their stop token; those of one prompt are contiguous.
        cut_R: tokens of the response before its final answer (`marker_cut`).
        cue: of each prompt, the text that asks for the answer, such as "The answer is ".
        answer: of each prompt, the gold answer; at least one token.
        reading: static.
        compression: see above.
    """
    length_R, p = response.length_N, prompt.length_N.shape[0]
    group = length_R.shape[0] // p
    texts = _texts(prompt, response, cut_R, cue, answer, start_id=reading.start_id)
    logp = packed_texts(model, texts, max(response.width, answer.width), reading)
    widths = (response.width, answer.width, answer.width, response.width)
    ref_logp_RT, with_reasoning_RA, without_PA, alone_RT = (
        x.reshape(-1, x.shape[-1])[:, :width] for x, width in zip(logp, widths, strict=True)
    )
    gain_R = jnp.sum(with_reasoning_RA, axis=1) - jnp.repeat(jnp.sum(without_PA, axis=1), group)
    mean_length_P = jnp.mean(length_R.reshape(p, group), axis=1)
    cost_RT = ref_logp_RT - alone_RT if compression == "information" else -alone_RT
    return Information(
        answer_R=gain_R / jnp.repeat(answer.length_N, group),
        prompt_R=jnp.sum(cost_RT, axis=1) / jnp.repeat(mean_length_P, group),
        ref_logp_RT=ref_logp_RT,
    )


def _texts(prompt: Padded, response: Padded, cut_R, cue: Padded, answer: Padded, *, start_id: int) -> list["Texts"]:
    """The four kinds of rows of `likelihood`, in the order of its docstring."""
    (tokens_RT, length_R), p = response, prompt.length_N.shape[0]
    prompt_R, cue_R, answer_R = (x.repeat(length_R.shape[0] // p) for x in (prompt, cue, answer))
    start = Padded(jnp.full((length_R.shape[0], 1), start_id, tokens_RT.dtype), jnp.ones_like(length_R))
    kinds = [
        ([prompt_R], response),
        ([prompt_R, Padded(tokens_RT, cut_R), cue_R], answer_R),
        ([prompt, cue], answer),
        ([start], response),
    ]
    width = sum(x.width for x in (prompt, response, cue, answer))
    return [join_texts(*kind, p=p, width=width) for kind in kinds]


def reference_logprobs(model: Decoder, forest: Forest, reading: Reading) -> jax.Array:
    """log pi_ref(o_t | q, o_<t) [R,T], 0 beyond the response."""
    prompt = Padded(forest.prompt_PS, forest.prompt_len_P).repeat(forest.group_size)
    texts = join_texts(
        [prompt],
        Padded(forest.tokens_RT, forest.length_R),
        p=forest.prompt_len_P.shape[0],
        width=forest.prompt_PS.shape[1] + forest.tokens_RT.shape[1],
    )
    (logp_PGT,) = packed_texts(model, [texts], forest.tokens_RT.shape[1], reading)
    return logp_PGT.reshape(forest.tokens_RT.shape)


def prompt_logprobs(model: Decoder, prompt: Padded, reading: Reading) -> jax.Array:
    """Mean over t of log pi(q_t | q_<t) [P], nats a token; 0 for a prompt of one token.

    The first token of a prompt has nothing before it that could predict it, so it is context here.
    """
    tokens_PS, length_P = prompt
    first, rest = Padded(tokens_PS[:, :1], jnp.ones_like(length_P)), Padded(jnp.roll(tokens_PS, -1, 1), length_P - 1)
    texts = join_texts([first], rest, p=length_P.shape[0], width=1 + prompt.width)
    (logp_P1S,) = packed_texts(model, [texts], prompt.width, reading)
    return masked.mean(logp_P1S[:, 0], jnp.arange(prompt.width) < rest.length_N[:, None], axis=1)


@struct.dataclass
class Texts:
    """Texts after their contexts, as rows of each prompt: tokens_PGC, context_len_PG, and length_PG of both."""

    tokens_PGC: jax.Array
    context_len_PG: jax.Array
    length_PG: jax.Array


def join_texts(context: Sequence[Padded], text: Padded, *, p: int, width: int) -> Texts:
    """Rows [context pieces, text] of P prompts, padded to `width` columns."""
    context_NC, context_len_N = join_rows(context)
    rows_NC = join(context_NC, context_len_N, *text)
    rows_NC = jnp.pad(rows_NC, [(0, 0), (0, width - rows_NC.shape[1])])

    def by_prompt(x):
        return x.reshape(p, -1, *x.shape[1:])

    return Texts(*map(by_prompt, (rows_NC, context_len_N, context_len_N + text[1])))


def pack_texts(texts: Texts, reading: Reading) -> tuple[PackedRows, jax.Array]:
    """The rows packed, and where the text of each begins, [W,N]."""
    p, group = texts.length_PG.shape
    packed = PackedRows(
        texts.tokens_PGC.reshape(p * group, -1),
        texts.length_PG.ravel(),
        tokens=reading.pack_tokens,
        group=group,
        shards=reading.shards,
    )
    return packed, texts.context_len_PG.reshape(reading.shards, -1)


def packed_reading(model: Decoder, texts: Texts, t: int, reading: Reading) -> tuple[PackedRows, Callable]:
    """The rows packed, and what reads their bins for it: (log-prob, entropy) of the first t tokens of every text."""
    packed, context_len_WN = pack_texts(texts, reading)
    read = functools.partial(
        packed_logprobs,
        model,
        packed.tokens_WNC,
        context_len_WN,
        t=t,
        block=packed.spec.block,
        attention=reading.attention,
        temperature=reading.temperature,
        never=reading.never_ids,
        remat=False,
    )
    return packed, read


def packed_texts(model: Decoder, kinds: Sequence[Texts], t: int, reading: Reading) -> list[jax.Array]:
    """log pi(text | context) per token [P,G,t] of every kind of rows, 0 beyond each text; no gradient."""
    every = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *kinds)
    p, group = every.length_PG.shape
    packed, read = packed_reading(model, every, t, reading)
    logp_PGT = packed.collect(lambda bins: read(bins=bins)[0]).reshape(p, group, t)
    ends = [0]
    for kind in kinds:
        ends.append(ends[-1] + kind.length_PG.shape[1])
    return [logp_PGT[:, a:b] for a, b in itertools.pairwise(ends)]


def entropy_score(advantage_RT: jax.Array, entropy_RT: jax.Array, mask_RT: jax.Array) -> jax.Array:
    """S_IB = mean over a trajectory's tokens of A_t H_t [R], in nats (IBRO's practical form). No forward.

    `advantage_RT` is normalised within the group of one prompt; [R, 1] serves an outcome reward.
    """
    return masked.mean(advantage_RT * entropy_RT, mask_RT, axis=1)
