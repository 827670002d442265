"""What is under way on the device: a rollout, and then the update made of it.

Both are handles: everything in them has been dispatched and nothing has been waited for, until someone asks.
"""

import dataclasses
import statistics
import time
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp

from iiblpo_jax.data.prompts import PromptBatch
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.rollout.conversation import Conversation
from iiblpo_jax.rollout.engine import RolloutStats
from iiblpo_jax.step.programs import Refill
from iiblpo_jax.step.sampled import Sampled
from iiblpo_jax.step.score import Scored


@dataclasses.dataclass(kw_only=True)
class PendingRollout:
    """A rollout that has been dispatched, and the reference forwards behind it.

    Attributes:
      step, batch: what it is for.
      rest: what is left of the step (StepPrograms.step); sampled: its first part, under way.
      update_key: of the update, should it turn out to be bad.
      began: time.monotonic() at which the device was free for it.
      talk: who answered its turns; None where a response is one.
    """

    step: int
    batch: PromptBatch
    rest: Generator[Any, Any, None]
    sampled: Sampled
    update_key: jax.Array
    began: float
    talk: Conversation | None = None
    _seconds: float | None = None

    def wait(self) -> float:
        """Blocks until the tokens are there; seconds from `began` to the first call that returned."""
        jax.block_until_ready(self.sampled.forest)
        if self._seconds is None:
            self._seconds = time.monotonic() - self.began
        return self._seconds

    def refill(self, batch: PromptBatch, refill: Refill) -> None:
        """Dispatches a further rollout of the step, which is the one that is waited for from here on."""
        self.batch, self.began, self._seconds = batch, time.monotonic(), None
        self.sampled = self.rest.send(refill)


@dataclasses.dataclass(kw_only=True)
class PendingUpdate:
    """A step whose update has been dispatched: what its metrics and its log will be made of.

    It holds no Forest: what the log needs of one are a few numbers a trajectory.

    Attributes:
      step: its number.
      rows, key: what the update took, should it turn out to be bad.
      counted: metrics that the host knows.
      scored, updated: metrics on the device; `updated` those of the update.
      sampled: with train.refills, `sampled_metrics` of every rollout; their means replace those of `scored`.
      log: columns of the rollout log as far as the host has them, {} where no log is due.
      per_row: the other columns, [R] on the device.
      rollout_s, reward_s: seconds of the phases that are over.
      dispatched: time.monotonic() when the device got all of it.
    """

    step: int
    rows: Rows
    key: jax.Array
    counted: dict
    scored: dict
    updated: dict
    sampled: list[dict]
    log: dict
    per_row: dict
    rollout_s: float
    reward_s: float
    dispatched: float

    def metrics(self) -> dict[str, float]:
        """Waits for the update; every metric of the step but the counters of the run."""
        jax.block_until_ready(self.scored)
        scored_at = time.monotonic()
        jax.block_until_ready(self.updated)
        seconds = {
            "rollout": self.rollout_s,
            "reward": self.reward_s,
            "score": scored_at - self.dispatched,
            "update": time.monotonic() - scored_at,
        }
        found = self.counted | _numbers(self.scored | self.updated) | _means(list(map(_numbers, self.sampled)))
        trained = found.pop("tokens_trained")
        return found | {
            "rollout/tokens_per_s": found["rollout/tokens"] / max(seconds["rollout"], 1e-9),
            "update/tokens_per_s": trained / max(seconds["score"] + seconds["update"], 1e-9),
            **{f"time/{name}_s": value for name, value in seconds.items()},
        }

    def columns(self) -> dict | None:
        """Columns of the rollout log (metrics.ROLLOUT_KEYS but `step`); None where no log is due."""
        return self.log | meshes.to_host(self.per_row) if self.log else None


def scored_metrics(scored: Scored, stats: RolloutStats) -> dict:
    """Metrics that are known, on the device, when the step has been scored."""
    found = {"rollout/tokens": stats.tokens, "rollout/slot_utilisation": stats.slot_utilisation}
    return scored.metrics | found | {"tokens_trained": _sum(scored.rows.mask_RT)}


def updated_metrics(updated: dict, params: dict) -> dict:
    """Metrics that are known, on the device, after the update: its own, and the gain of PSA, which RL may train."""
    return updated | ({"latent/gain_norm": _norm(params["psa"]["gain"])} if "psa" in params else {})


_sum, _norm = jax.jit(jnp.sum), jax.jit(jnp.linalg.norm)


def _means(rollouts: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(found[name] for found in rollouts) for name in (rollouts[0] if rollouts else ())}


def _numbers(metrics: dict) -> dict[str, float]:
    return {name: value.item() for name, value in jax.device_get(metrics).items()}
