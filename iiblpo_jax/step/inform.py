"""What models say about a Forest: named readers, named columns. Needs no reward: the host verifies meanwhile.

Most read under the frozen reference; what a method asks of the policy is read under the policy's own weights.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iiblpo_jax import bottleneck
from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.bottleneck.dependence import dependence
from iiblpo_jax.common.padded import Padded
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Weights, bound
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.objectives.novelty import Novelty, errors
from iiblpo_jax.objectives.rows import NOVELTY, PROMPT_LOGP, REF_LOGP
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import marker_cut
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.step.proxy import ProxyReward
from iiblpo_jax.step.teacher import TeacherReader

Columns = dict[str, jax.Array]  # [R] or [R,T] arrays of a Forest by name
DEPENDENCE = "dependence"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InformationTerms:
    """Reads `ib_answer`, `ib_prompt` [R] and `ref_logp` [R,T]: both terms of S_IB (bottleneck.likelihood).

    Attributes:
      model: architecture.
      reading: how rows are read.
      compression: `description` or `information`.
    """

    model: ModelConfig
    reading: Reading
    compression: str

    def __call__(self, weights: Weights, forest: Forest, gold: Gold) -> Columns:
        """The columns, under these weights."""
        found = bottleneck.likelihood(
            bound(self.model, weights),
            prompt=Padded(forest.prompt_PS, forest.prompt_len_P),
            response=Padded(forest.tokens_RT, forest.length_R),
            cut_R=cuts(forest, gold),
            cue=Padded(gold.cue_PQ, gold.cue_len_P),
            answer=Padded(gold.answer_PA, gold.answer_len_P),
            reading=self.reading,
            compression=self.compression,
        )
        return {"ib_answer": found.answer_R, "ib_prompt": found.prompt_R, REF_LOGP: found.ref_logp_RT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Reads `ref_logp` [R,T] alone: what the KL term asks for."""

    model: ModelConfig
    reading: Reading

    def __call__(self, weights: Weights, forest: Forest, gold: Gold) -> Columns:
        """The column, under these weights."""
        return {REF_LOGP: bottleneck.reference_logprobs(bound(self.model, weights), forest, self.reading)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLogProbs:
    """Reads `prompt_logp` [R], the mean log-prob of each trajectory's prompt; a prompt is read once.

    Attributes:
      model, reading: as above.
      dtype: of the forward; the weights may be finer.
    """

    model: ModelConfig
    reading: Reading
    dtype: str = "float32"

    def __call__(self, weights: Weights, forest: Forest, gold: Gold) -> Columns:
        """The column, under these weights."""
        prompt = Padded(forest.prompt_PS, forest.prompt_len_P)
        logp_P = bottleneck.prompt_logprobs(bound(self.model, weights, self.dtype), prompt, self.reading)
        return {PROMPT_LOGP: logp_P[forest.group_R]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dependence:
    """Reads `dependence` [R]: how much a response says of the code that it was drawn under (bottleneck/dependence.py).

    Attributes:
      model, reading, dtype: as above.
      trees: M, of a prompt.
      others: codes that each is compared with.
    """

    model: ModelConfig
    reading: Reading
    trees: int
    others: int
    dtype: str = "float32"

    def __call__(self, weights: Weights, forest: Forest, gold: Gold) -> Columns:
        """The column, under these weights."""
        model = bound(self.model, weights, self.dtype)
        found_R = dependence(model, forest, trees=self.trees, others=self.others, reading=self.reading)
        return {DEPENDENCE: found_R}


@dataclasses.dataclass(frozen=True)
class Errors:
    """Reads `novelty` [R]: how new every trajectory is to the networks that are its weights."""

    def __call__(self, weights: Novelty, forest: Forest, gold: Gold) -> Columns:
        """The column, under these weights."""
        length_R = forest.prompt_len_P[forest.group_R] + forest.length_R
        return {NOVELTY: errors(weights, forest.sequences_RC, length_R)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InformSpec:
    """Who reads a Forest; hashable.

    Attributes:
      readers: (name of the weights, reader); a reader is a hashable (weights, Forest, Gold) -> Columns. Two readers
        give no column of the same name.
      mesh: devices among which prompts are split; None = one.
    """

    readers: tuple[
        tuple[str, InformationTerms | LogProbs | PromptLogProbs | Dependence | Errors | TeacherReader | ProxyReward],
        ...,
    ]
    mesh: Mesh | None = None


@functools.partial(jax.jit, static_argnames="spec")
def inform(weights: Mapping[str, Any], forest: Forest, gold: Gold, *, spec: InformSpec) -> Columns:
    """The columns of all readers; empty where nobody reads.

    Args:
      weights: by the names that the readers have: `reference`; `policy`, `average`, `teacher`, `novelty` and `reward`
        where somebody reads under them.
      forest: finished trajectories.
      gold: answers of the prompts, and how they are asked for.
      spec: static.
    """
    columns: Columns = {}
    with meshes.using(spec.mesh):
        for name, reader in spec.readers:
            columns |= reader(weights[name], forest, gold)
    return columns


def cuts(forest: Forest, gold: Gold) -> jax.Array:
    """Tokens [R] of every response before its final answer, by the marker of its task."""
    # Tasks are few: every marker is looked for in every response, and each response takes that of its own task.
    cut_NR = jnp.stack([marker_cut(m, forest.tokens_RT, forest.length_R, forest.finish_R) for m in gold.markers])
    return jnp.take_along_axis(cut_NR, gold.marker_P[forest.group_R][None], axis=0)[0]
