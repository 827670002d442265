"""Auxiliary per-token losses, usable with every method."""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.clipping import MAX_LOG_RATIO
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
class ReferenceKL:
    """coef * k3 estimate of KL(pi || reference) (see `k3`)."""

    coef: float

    def __call__(self, batch: Batch):
        assert batch.rows.ref_logp_RT is not None, "update.kl_coef makes `inform` read the reference"
        return self.coef * k3(batch.logp_RT, batch.rows.ref_logp_RT)


def k3(logp_RT: jax.Array, ref_logp_RT: jax.Array) -> jax.Array:
    """exp(d) - d - 1 with d = log pi_ref - log pi: at least 0 and unbiased under pi (Schulman 2020, "k3")."""
    d_RT = jnp.clip(ref_logp_RT - logp_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.exp(d_RT) - d_RT - 1.0


def with_auxiliary(objective: Objective, *, entropy_coef: float = 0.0, kl_coef: float = 0.0) -> Objective:
    """The objective plus the terms whose coefficient is not 0."""
    terms = (AdvantageEntropy(entropy_coef),) * bool(entropy_coef) + (ReferenceKL(kl_coef),) * bool(kl_coef)
    return dataclasses.replace(objective, aux_losses=objective.aux_losses + terms)
