"""What a teacher says of a Forest: the columns that the distillation term reads (objectives/distillation.py)."""

from __future__ import annotations

import dataclasses

import jax

from iiblpo_jax.bottleneck.information import Reading, join_texts, pack_texts
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import Padded
from iiblpo_jax.model.adapters.adapted import Weights, bound
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, output_weights
from iiblpo_jax.model.divergence import over_vocabulary
from iiblpo_jax.model.logprobs import likeliest
from iiblpo_jax.model.packed.forward import packed_states
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.objectives.rows import TEACHER_LOGP, TEACHER_STATE, TEACHER_TOKEN
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.solved import Gold


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherReader:
    """Reads `teacher_state` [R,T,D]; or, with `top_k`, `teacher_token` and `teacher_logp` [R,T,K].

    States are kept, not distributions: those would be [tokens, vocabulary].

    Attributes:
      model: architecture of the teacher.
      reading: how rows are read.
      dtype: of the forward; the weights may be finer.
      vocab_size: V of the policy.
      top_k: K; 0 = states.
      shown: the teacher's prompts are those with the answers (Gold.shown_PS).
    """

    model: ModelConfig
    reading: Reading
    dtype: str
    vocab_size: int
    top_k: int = 0
    shown: bool = False

    def __call__(self, weights: Weights, forest: Forest, gold: Gold) -> dict[str, jax.Array]:
        """The columns, under these weights."""
        model, reading = bound(self.model, weights, self.dtype), self.reading
        states_RTD = response_states(model, self._prompt(forest, gold), forest, reading)
        if not self.top_k:
            return {TEACHER_STATE: states_RTD}
        how = {"temperature": reading.temperature, "never": reading.never_ids}
        w_VD = over_vocabulary(output_weights(model), self.vocab_size)
        token_RTK, logp_RTK = likeliest(states_RTD, w_VD, self.top_k, **how)
        return {TEACHER_TOKEN: token_RTK, TEACHER_LOGP: logp_RTK}

    def _prompt(self, forest: Forest, gold: Gold) -> Padded:
        if not self.shown:
            return Padded(forest.prompt_PS, forest.prompt_len_P)
        assert gold.shown_PS is not None and gold.shown_len_P is not None, "batches have them where a reader is shown"
        return Padded(gold.shown_PS, gold.shown_len_P)


def response_states(model: Decoder, prompt: Padded, forest: Forest, reading: Reading) -> jax.Array:
    """Final hidden states [R,T,D] that emit the responses of a Forest after P prompts, which need not be its own; zeros
    beyond the responses, no gradient."""
    texts = join_texts(
        [prompt.repeat(forest.group_size)],
        Padded(forest.tokens_RT, forest.length_R),
        p=prompt.length_N.shape[0],
        width=prompt.width + forest.tokens_RT.shape[1],
    )
    packed, context_len_WN = pack_texts(texts, reading)

    def forward(bins):
        how = {"block": packed.spec.block, "attention": reading.attention}
        return packed_states(model, packed.tokens_WNC, context_len_WN, bins, forest.tokens_RT.shape[1], **how)

    return packed.collect(forward)


def check_teacher(path: str, teacher: ModelConfig, theirs: Tokenizer, model: ModelConfig, ours: Tokenizer) -> None:
    """Raises InputError where a teacher reads other tokens than the policy.

    Args:
      path: teacher.path.
      teacher, theirs: the teacher's architecture and tokenizer.
      model, ours: those of the policy.
    """
    same = theirs.token_bytes() == ours.token_bytes() and set(theirs.stop_ids) == set(ours.stop_ids)
    never = set(ours.textless_ids(model.vocab_size))
    lacks = [i for i in range(teacher.vocab_size, model.vocab_size) if i not in never]
    if not same or lacks:
        raise InputError(
            f"teacher.path = {path} has another tokenizer than model.path, so its distributions are over other tokens; "
            "use a teacher of the same family, or teacher.kind=answer or average"
        )
