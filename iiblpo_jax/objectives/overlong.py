"""Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13): what comes near the longest response is paid less.

    R' = R - penalty * min(1, max(0, (|o| - (T - buffer)) / buffer)),   T = longest response allowed

Up to T - buffer tokens, the stop token among them, a response keeps its reward; at T, where it is cut, the whole
penalty is off. The filter and the share of right answers go by R.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlong:
    """Shaped rewards (Rows, step) -> R' [R]: those of `before`, less what the length costs."""

    before: Callable[[Rows, jax.Array | None], jax.Array]
    max_tokens: int
    buffer: int
    penalty: float

    def __call__(self, rows: Rows, step: jax.Array | None) -> jax.Array:
        over_R = (rows.length_R - (self.max_tokens - self.buffer)) / self.buffer
        return self.before(rows, step) - self.penalty * jnp.clip(over_R, 0.0, 1.0)


def with_overlong(objective: Objective, *, buffer: int, penalty: float) -> Objective:
    """The method with rewards that fall over the last `buffer` of its max_tokens tokens by up to `penalty`."""
    shaping = Overlong(before=objective.reward_shaping, max_tokens=objective.max_tokens, buffer=buffer, penalty=penalty)
    return dataclasses.replace(objective, reward_shaping=shaping)
