"""The information bottleneck: S_IB(r) = beta * I(r; a) - I(q; r), and the ranking it gives.

Read in this order: `information` (the two terms), `selection` (standardise, score, keep the N best), `diagnostics` (the
`ib/*` metrics). All of it runs inside jit. Where a response's reasoning ends: rollout/marker.py. Trajectories of one
prompt are contiguous, so R = P * G reshapes to [P, G] with G = M * (1 + K).
"""

from iiblpo_jax.bottleneck.diagnostics import bottleneck_metrics
from iiblpo_jax.bottleneck.information import (
    Information,
    Reading,
    entropy_score,
    likelihood,
    prompt_logprobs,
    reference_logprobs,
)
from iiblpo_jax.bottleneck.selection import (
    Selection,
    first_of_its_kind,
    likelihood_score,
    select,
    standardise,
)

__all__ = [
    "Information",
    "Reading",
    "Selection",
    "bottleneck_metrics",
    "entropy_score",
    "first_of_its_kind",
    "likelihood",
    "likelihood_score",
    "prompt_logprobs",
    "reference_logprobs",
    "select",
    "standardise",
]
