"""How well one rollout tells a fixed policy where to go: signal and noise of its gradient, at equal generated tokens.

    python benchmarks/variance.py --testbed=countdown --path=DIR --json=PATH \
        --arms=grpo_weight,branches_weight,branches_no_replacement_weight

Arms are those of compare.py (compare_arms.py), and `--arm=NAME:FILE:KEY=VALUE:...` is a further one. A repetition is
one rollout of the policy as it is, with the gradient that its update would begin with; no step is taken. With g_i the
gradients of n rollouts,

    signal   mean over i != j of g_i . g_j      what all rollouts agree on: |E g|^2, unbiased
    noise    mean |g_i|^2 - signal              the trace of the covariance of one

`snr` is signal / noise of a million generated tokens: twice as high, half as many tokens tell as much. It is the same
for an arm whose gradients are all twice as long. `along` is the cosine of the mean gradients of an arm and of the first
one: whether they point the same way, noise taken out of both. `--path` is the policy, such as an export in the middle
of a run; without it the model that the testbed begins with.
"""

import tempfile
from pathlib import Path

import harness
import jax
import numpy as np
from compare_arms import TESTBEDS, Arm, named_arm, parse_arm
from compare_run import QUIET
from jax.flatten_util import ravel_pytree
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step.programs import Judged

COLUMNS = ("arm", "tokens", "suffix", "informative", "signal", "noise", "snr", "along")
SEED = 2000


class Moments:
    """Sums over the gradients of an arm, from which signal and noise follow; no gradient is kept."""

    def __init__(self):
        self.n, self.squares, self.sum = 0, 0.0, np.zeros(0)

    def add(self, gradient: np.ndarray) -> None:
        """One more gradient, flat."""
        self.n += 1
        self.squares += float(gradient @ gradient)
        self.sum = gradient if self.n == 1 else self.sum + gradient

    @property
    def signal(self) -> float:
        """|E g|^2, unbiased; may be below 0 where there is none."""
        return (float(self.sum @ self.sum) - self.squares) / (self.n * (self.n - 1))

    @property
    def noise(self) -> float:
        """Trace of the covariance of one gradient, unbiased."""
        return self.squares / self.n - self.signal

    def along(self, other: "Moments") -> float:
        """Cosine of both means; NaN where one has no signal. Their noise is taken for independent."""
        both = max(self.signal, 0.0) * max(other.signal, 0.0)
        return float(self.sum @ other.sum) / (self.n * other.n) / both**0.5 if both else float("nan")


def main():
    """A row an arm."""
    parser = harness.arguments(__doc__, repetitions=200)
    parser.add_argument("--testbed", choices=TESTBEDS, default="countdown")
    parser.add_argument("--path", default="", help="the policy; empty = the testbed's model")
    parser.add_argument("--arm", action="append", default=[], help="NAME:FILE:KEY=VALUE:...; may be given again")
    options = parser.parse_args()
    cli.enable_compilation_cache()
    rows, first = [], None
    names = options.arms or ["grpo_weight", "branches_weight", "branches_no_replacement_weight"]
    for arm in [*(named_arm(name, options.testbed) for name in names), *map(parse_arm, options.arm)]:
        found, facts = measure(config_of(arm, options), max(options.repetitions, 2))
        first = found if first is None else first
        rows.append(row(arm.name, found, facts) | {"along": 1.0 if found is first else found.along(first)})
        print(f"{arm.name}: {facts}", flush=True)
    harness.report(options, "variance", rows, COLUMNS)


def config_of(arm: Arm, options):
    """The config of an arm, whose policy stays where it is."""
    changes = [*QUIET, *[f"model.path={options.path}"] * bool(options.path)]
    changes += ["train.prompts_per_step=4", "rollout.slots=4"] * options.tiny
    return arm.config(SEED, changes)


def measure(config, repetitions: int) -> tuple[Moments, dict]:
    """Moments of the gradients of so many rollouts; mean tokens of a rollout, share of its tokens that a branch
    generates, and share of prompts with something to teach."""
    found, told = Moments(), []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), console=Console(quiet=True))
        programs, params = trainer._programs, trainer.state.params
        flat = jax.jit(lambda rows, key: ravel_pytree(programs.gradient(params, rows, None, step=0, key=key)[1])[0])
        for step in range(1, repetitions + 1):
            done = trainer._start(step)
            kept, _ = trainer._refilled(done)
            judged = meshes.to_devices(Judged(kept.rewards, kept.columns), trainer._mesh, "batch")
            scored = done.rest.send(judged)
            found.add(np.asarray(flat(scored.rows, jax.random.key(step)), np.float64))
            suffix = float(scored.metrics.get("rollout/branch_suffix", np.nan))
            told.append((int(done.sampled.stats.tokens), suffix, float(kept.informative_P.mean())))
        trainer.close()
    return found, dict(zip(("tokens", "suffix", "informative"), np.mean(told, axis=0).tolist(), strict=True))


def row(name: str, found: Moments, facts: dict) -> dict:
    """What the table shows of an arm."""
    per_million = 1e6 / facts["tokens"]
    snr = per_million * found.signal / found.noise
    return {"arm": name, **facts, "signal": found.signal, "noise": found.noise, "snr": snr}


if __name__ == "__main__":
    main()
