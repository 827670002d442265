"""A teacher beside the reward: the distillation term of KEPO (arXiv 2602.00400), usable with every method.

    L = L_RL + coef * mean over tokens of trajectories with R >= min_reward of JSD_beta(teacher || student)

over the whole vocabulary (model/divergence.py), on the student's own trajectories and at the rollout's temperature. The
mean is over these tokens alone, whatever the method's aggregate, and its denominator is the minibatch's.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.rows import TEACHER_LOGP, TEACHER_STATE, TEACHER_TOKEN, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """The term; hashable.

    Attributes:
      coef: of the term.
      beta: of the divergence: 0 = KL(teacher || student), 1 = KL(student || teacher).
      min_reward: least verified reward of a trajectory that is distilled.
      top_k: likeliest tokens of the teacher that are told apart; 0 = the whole vocabulary.
      teacher: whose output weights the update reads: `answer`, the policy as it sampled; `average`, of its past ones;
        `model`, another model's, which it is given.
    """

    coef: float
    beta: float
    min_reward: float
    top_k: int
    teacher: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what rows hold of the teacher, as `divergence.Teacher.columns` has them."""
        return (TEACHER_TOKEN, TEACHER_LOGP) if self.top_k else (TEACHER_STATE,)

    def counted(self, rows: Rows) -> jax.Array:
        """1 on the tokens that are distilled [R,T]."""
        return rows.mask_RT * (rows.reward_R >= self.min_reward)[:, None]

    def weights(self, rows: Rows) -> jax.Array:
        """[R,T] of every token's divergence, the coefficient included; `rows` are the whole minibatch."""
        counted_RT = self.counted(rows)
        return self.coef * counted_RT / jnp.maximum(counted_RT.sum(), 1.0)
