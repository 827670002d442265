"""How well a model has forgotten, by TOFU's measure (Maini et al., arXiv 2401.06121, section 2.2.2).

The truth ratio of a question compares wrong answers with the right one, each by its probability per token:

    R = mean over wrong a of P(a | q)^(1 / |a|)  /  P(right | q)^(1 / |right|)

A model that knows has it near 0. Forget quality is the p-value of a two-sample Kolmogorov-Smirnov test between the
ratios of the model and those of one that was never taught what is to be forgotten: high = they cannot be told apart.
"""

from typing import Any

import numpy as np
from scipy import stats


def per_token(logp: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """P^(1 / |a|) of answers by their log-probs and tokens."""
    return np.exp(logp / tokens)


def truth_ratios(logp_NA: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
    """[N] truth ratios; of each question the first answer is the right one, the others are wrong."""
    likely_NA = per_token(logp_NA, tokens_NA)
    return likely_NA[:, 1:].mean(1) / likely_NA[:, 0]


def forget_quality(ratio_N: np.ndarray, untaught_N: np.ndarray) -> float:
    """p-value between the truth ratios of a model and those of one that was never taught."""
    found: Any = stats.ks_2samp(ratio_N, untaught_N)
    return float(found.pvalue)
