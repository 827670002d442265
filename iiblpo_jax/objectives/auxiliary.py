"""Auxiliary terms, usable with every method: the entropy, A H, and the KL of the policy to the reference model.

Of a token that mu drew, with k = log pi - log pi_ref, r = pi / pi_old, w = pi_old / mu (Batch.importance_RT) and sg =
stop-gradient, the KL comes in one of three forms (update.kl_form):

    k3   a loss    w r (exp(-k) + k - 1)             Schulman, http://joschu.net/blog/kl-approx.html, weighed
    k2   a loss    w sg(r) k^2 / 2
    k1   off the reward: A_t - coef * sum_{s >= t} sg(k_s), which the policy loss turns into w r A_t

The expected gradient of each is that of KL(pi || pi_ref), whoever drew the tokens. It would not be without the weights:
under pi itself, k3 without r has the gradient of KL(pi_ref || pi), and k1 as a loss has none (Tang & Munos, arXiv
2506.09477, section 3). k3 and k2 have one and the same gradient, w r k grad log pi, and k3 has the value of the KL too.
Both take what stands before a token as given; k1 also credits a token with what it leads to, which makes it the
gradient of the KL of whole responses (section 4 there), at a larger variance.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives.clipping import MAX_LOG_RATIO, ratio
from iiblpo_jax.objectives.distillation import Distillation
from iiblpo_jax.objectives.interface import Batch, Objective


@dataclasses.dataclass(frozen=True)
class AdvantageEntropy:
    """-coef * A_t H_t: raises entropy where A > 0 and sharpens where A < 0 (IBRO, arXiv 2507.18391, J_IB).

    H carries the gradient, A is constant: d(A H) / d logit_v = -A p_v (log p_v + H).
    """

    coef: float

    def __call__(self, batch: Batch):
        return -self.coef * batch.rows.advantage_RT * batch.entropy_RT


@dataclasses.dataclass(frozen=True)
class Entropy:
    """-coef * H_t, which raises entropy everywhere (*Entropy-Reg* of arXiv 2601.05870; A3C, arXiv 1602.01783)."""

    coef: float

    def __call__(self, batch: Batch):
        return -self.coef * batch.entropy_RT


@dataclasses.dataclass(frozen=True)
class ReferenceKL:
    """coef * KL(pi || reference) as a loss [R,T]: the module's `k3` or `k2`."""

    coef: float
    form: str

    def __call__(self, batch: Batch):
        if self.form == "k3":
            return self.coef * reference_kl(batch)
        k_RT = log_ratio(batch)
        return self.coef * batch.importance_RT * jax.lax.stop_gradient(ratio(batch)) * jnp.square(k_RT) / 2.0


@dataclasses.dataclass(frozen=True)
class RewardKL:
    """An advantage transform [R,T]: the module's `k1` off what `transform` makes of the advantages.

    After their normalisation, so that coef means what it says however far apart the rewards of a group are.
    """

    coef: float
    transform: Callable[[Batch], jax.Array]

    def __call__(self, batch: Batch):
        k_RT = jnp.where(batch.rows.mask_RT > 0, jax.lax.stop_gradient(log_ratio(batch)), 0.0)
        return self.transform(batch) - self.coef * jax.lax.cumsum(k_RT, axis=1, reverse=True)


def reference_kl(batch: Batch) -> jax.Array:
    """The `k3` of the module [R,T]: its mean over tokens is an unbiased estimate of KL(pi || reference)."""
    return batch.importance_RT * ratio(batch) * k3(log_ratio(batch))


def k3(k: jax.Array) -> jax.Array:
    """exp(-k) + k - 1 of log-ratios k = log pi - log pi_ref: at least 0, and of mean KL(pi || pi_ref) under pi."""
    return jnp.expm1(-k) + k


def log_ratio(batch: Batch) -> jax.Array:
    """log pi - log pi_ref of every token [R,T], within MAX_LOG_RATIO."""
    assert batch.rows.ref_logp_RT is not None, "update.kl_coef makes `inform` read the reference"
    return jnp.clip(batch.logp_RT - batch.rows.ref_logp_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def with_distillation(objective: Objective, distillation: Distillation) -> Objective:
    """The objective plus a teacher's term; its rows hold what that reads. A coefficient of 0 adds nothing."""
    if not distillation.coef:
        return objective
    return dataclasses.replace(objective, distillation=distillation, needs=objective.needs + distillation.columns)


def with_auxiliary(
    objective: Objective,
    *,
    entropy_coef: float = 0.0,
    entropy_bonus: float = 0.0,
    kl_coef: float = 0.0,
    kl_form: str = "k3",
) -> Objective:
    """The objective plus the terms whose coefficient is not 0.

    Args:
      objective: the method.
      entropy_coef: of A H.
      entropy_bonus: of H.
      kl_coef, kl_form: of the KL.

    Raises:
      InputError: the KL is to go off the reward of a method that has a loss of whole groups in place of rewards.
    """
    terms = (AdvantageEntropy(entropy_coef),) * bool(entropy_coef) + (Entropy(entropy_bonus),) * bool(entropy_bonus)
    if kl_coef and kl_form == "k1":
        if objective.group_loss is not None:
            raise InputError(
                f"update.kl_form = k1 takes the KL off the advantages of tokens, and the loss of {objective.name} is "
                "one of whole groups; use update.kl_form=k3"
            )
        transform = RewardKL(kl_coef, objective.advantage_transform)
        objective = dataclasses.replace(objective, advantage_transform=transform)
    elif kl_coef:
        terms += (ReferenceKL(kl_coef, kl_form),)
    return dataclasses.replace(objective, aux_losses=objective.aux_losses + terms)
