"""What a learning curve compares: an arm is a name, a config file and overrides; runs are arms x seeds at a budget."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import group_size
from iiblpo_jax.config.files import load_file
from iiblpo_jax.config.overrides import override
from iiblpo_jax.config.validation import validate
from iiblpo_jax.defaults import RunConfig

ROOT = Path(__file__).parents[1]
# Every testbed T is configs/T.py and, for plain GRPO, configs/T_grpo.py; these are the changes that make an arm of it.
TESTBEDS = ("arithmetic", "arithmetic_long", "countdown", "smollm2_sums")
CODES = (
    "latent.kind=codes",
    "latent.z=8",
    "latent.window=4",
    "latent.psa_lr=1e-2",
    "latent.psa_steps=600",
    "latent.prompts=3072",
    "latent.samples=4",
    "psa.half_life=4.0",
)
# An arm is named by what is on. `iib_lpo` and `branches_weight` both are a testbed's config as it ships, and each may
# only be asked for where it is true (`check_name`).
PIECES = {
    "iib_lpo": (),
    "branches_weight": (),
    "branches": ("advantage.weight=none",),
    "no_branches": ("branch.k=0", "rollout.roots=8", "train.prompts_per_step=20"),
    "no_latent": ("latent.z=0",),  # which only arithmetic has
    "quiet_codes": (*CODES, "latent.prior_weight=0.8", "latent.prior_power=0.0"),  # codes_mixed_flat of latents.py
    "loud_codes": (*CODES, "latent.prior_power=0.3"),  # codes_follow_flat
    "tree_credit": ("branch.credit=tree",),
    "unsolved": ("branch.k=3", "branch.solved=False", "branch.credit=siblings"),
    "self_reward": ("ib.estimator=likelihood", "ib.reward_coef=0.1", "ib.entropy_coef=0.005"),
    "no_filter": ("ib.filter=none",),
    "half": ("ib.estimator=likelihood", "ib.keep=4"),
    "random_half": ("ib.filter=random", "ib.keep=4"),
    "score_half": ("ib.estimator=likelihood", "ib.filter=score", "ib.keep=4"),
    "branches_only": (
        "latent.z=0",
        "ib.filter=none",
        "ib.estimator=none",
        "ib.reward_coef=0.0",
        "ib.entropy_coef=0.0",
        "advantage.weight=none",
    ),
}
# GRPO; GRPO as DAPO has it: clip-higher, and groups of equal rewards dropped (their tokens count); GRPO with the weight
# of prompts and the filter that the branching configs have, so that branches are all that is left between them.
BASELINES = {
    "grpo": (),
    "dapo": ("objective.name=dapo", "ib.filter=contrast"),
    "grpo_weight": ("advantage.weight=surprise", "ib.filter=contrast"),
}
NAMED = (*PIECES, *BASELINES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One contestant.

    Attributes:
      name: row of the table.
      file: config file; a relative path is one of this repository.
      overrides: `section.key=value`, applied in order.
    """

    name: str
    file: str
    overrides: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The table that the arm belongs to: configs/T.py and configs/T_grpo.py are both T."""
        return Path(self.file).stem.removesuffix("_grpo")

    def config(self, seed: int, changes: Sequence[str] = ()) -> RunConfig:
        """The checked config of one run; `changes` come last.

        Raises:
          InputError: the file, an override or the whole is wrong.
        """
        last = [f"train.seed={seed}", f"data.seed={seed}", *changes]
        config = load_file(str(ROOT / self.file))
        config = override(config, [f"--config.{change}" for change in (*self.overrides, *last)])
        validate(config)
        check_name(self.name, config)
        return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """When a run ends.

    Attributes:
      unit: `tokens` generated (a prefix shared with a parent counts once) | `trajectories` | `seconds` of training.
      amount: of them; the step that reaches it is the last one.
    """

    unit: str
    amount: float

    def share(self, spent: dict) -> float:
        """Part of the budget that is used up."""
        return spent[self.unit] / self.amount

    def __str__(self):
        return f"{self.amount:,.0f} {WORDS[self.unit]}"


WORDS = {"tokens": "generated tokens", "trajectories": "trajectories", "seconds": "seconds of training"}


def check_name(name: str, config: RunConfig) -> None:
    """Raises InputError where a run would be called by what it has not: IIB-LPO is branches, latents and the score."""
    latents = config.branch.k > 0 and config.latent.z > 0 and config.psa.strength > 0
    scored = config.ib.estimator != "none"
    if name == "iib_lpo" and not (latents and scored):
        raise InputError(
            "the arm iib_lpo needs branches, a latent and the score, and here not all are on; see branches_weight"
        )
    if name == "branches_weight" and (latents or scored or not config.branch.k or config.advantage.weight == "none"):
        raise InputError(
            "the arm branches_weight has branches and the weight alone, and here a latent or a score is on"
        )


def named_arm(name: str, testbed: str) -> Arm:
    """An arm of a shipped testbed.

    Raises:
      InputError: no such arm.
    """
    if name not in NAMED:
        raise InputError(f"no arm is called {name!r}; use one of {', '.join(NAMED)}, or --arm=NAME:FILE:KEY=VALUE")
    suffix = "_grpo" if name in BASELINES else ""
    return Arm(name=name, file=f"configs/{testbed}{suffix}.py", overrides=(PIECES | BASELINES)[name])


def parse_arm(text: str) -> Arm:
    """`NAME:FILE:KEY=VALUE:...`; a piece without `=` belongs to the value before it (`task.name=gym:chain_sum`).

    Raises:
      InputError: no name or no file.
    """
    name, _, rest = text.partition(":")
    file, *pieces = rest.split(":")
    if not name or not file or (pieces and "=" not in pieces[0]):
        raise InputError(f"--arm={text} is not NAME:FILE:KEY=VALUE, such as hot:configs/arithmetic.py:optim.lr=1e-3")
    overrides = []
    for piece in pieces:
        if "=" in piece:
            overrides.append(piece)
        else:
            overrides[-1] += f":{piece}"
    return Arm(name=name, file=file, overrides=tuple(overrides))


def trajectories_per_step(config: RunConfig) -> int:
    """Sampled a step, those that a filter drops included."""
    return config.train.prompts_per_step * group_size(config)
