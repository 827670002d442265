"""What is compared: an arm is a name, a config file and what it changes; a run is an arm with a seed, a rate, a budget.

A new method is one line of INDEPENDENT or TREES.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import group_size
from iiblpo_jax.config.files import flatten, load_file
from iiblpo_jax.config.methods import METHODS
from iiblpo_jax.config.overrides import override
from iiblpo_jax.config.validation import validate
from iiblpo_jax.defaults import RunConfig, dapo, fr3e, kepo, paper, released, treepo, treerl

ROOT = Path(__file__).parents[1]
# Every testbed T is configs/T.py and, for plain GRPO, configs/T_grpo.py; what follows are the changes that make an arm.
TESTBEDS = ("arithmetic", "arithmetic_long", "arithmetic_longer", "countdown", "smollm2_gym", "smollm2_sums")


def sized(preset: Callable[[RunConfig], RunConfig], share: float) -> Callable[[RunConfig], RunConfig]:
    """A preset that grows many trajectories a prompt, with the lengths of a testbed, and with `share` of its prompts a
    step, in fours: a step generates about as many tokens as that of the other arms."""

    def made(c: RunConfig) -> RunConfig:
        c = preset(c)
        c.train.prompts_per_step = 4 * max(1, round(share * c.train.prompts_per_step / 4))
        c.branch.segment, c.reward.overlong_buffer = (max(1, c.rollout.max_tokens // n) for n in (6, 5))
        return c

    return made


# `preset=NAME` among the changes comes before all of them, and changes neither the sampler nor the learning rate.
PRESETS = {
    "dapo": lambda c: dapo(c, samples=c.rollout.roots),
    "fr3e": sized(fr3e, 1 / 2),
    "kepo": lambda c: kepo(c, samples=c.rollout.roots),
    "paper": paper,
    "released": released,
    "treepo": sized(treepo, 1 / 4),
    "treerl": sized(treerl, 1 / 4),
}
TESTBEDS_OWN = ("rollout.temperature", "rollout.top_k", "rollout.top_p", "rollout.min_p", "optim.lr")

# Responses of several turns, on configs/calculator.py whatever the testbed: only there anybody answers them.
OF_TURNS = {"tspo": (), "grpo_turns": ("objective.name=grpo",), "tspo_roots": ("branch.k=0", "rollout.roots=6")}

# Independent samples, on configs/T_grpo.py: every method by its name and as published, then its variants, then weights
# of prompts by difficulty. `dapo` is the whole method, `dapo_no_refills` only drops equal groups (their tokens count).
# int8 decodes with rounded weights and corrects nothing; int8_tis corrects as everything does where it has to:
# truncated importance sampling (update.importance).
INDEPENDENT = {
    name: (f"objective.name={name}",) if name != "grpo" else () for name in ("grpo", *METHODS) if name not in OF_TURNS
} | {
    "dapo": ("preset=dapo",),
    "kepo": ("preset=kepo", "teacher.kind=average", "hint.tokens=8"),
    "kepo_no_hints": ("preset=kepo", "teacher.kind=average", "hint.attempts=0"),
    "dapo_no_refills": ("objective.name=dapo", "ib.filter=contrast"),
    "mara": ("objective.name=mara", "update.kl_coef=0.001"),  # which weighs nothing without a KL
    "dppo_kl": ("objective.name=dppo", "objective.options.divergence=kl"),
    "dppo_top_k": ("objective.name=dppo", "objective.options.top_k=8"),
    "disco_logp": ("objective.name=disco", "objective.options.score=logp"),
    "disco_mean": ("objective.name=disco", "objective.options.negatives=mean"),
    "grpo_reference": ("objective.aggregate=seq-mean-token-mean", "update.kl_coef=0.04"),  # GRPO's own paper
    "grpo_entropy": ("ib.entropy_coef=0.005",),  # A H, of IBRO
    "entropy_reg": ("update.entropy_bonus=0.001",),
    "grpo_surprise_half": ("advantage.weight=surprise", "advantage.power=0.5"),
    "grpo_surprise": ("advantage.weight=surprise", "advantage.power=1.0"),
    "grpo_maxrl": ("advantage.weight=maxrl",),
    "maxrl": ("objective.name=dr_grpo", "advantage.weight=maxrl"),
    "f_grpo": ("advantage.weight=f_grpo", "advantage.power=1.0"),
    "grpo_pass_at_4": ("advantage.weight=pass_at_k", "advantage.power=4.0"),
    "int8": ("rollout.weights=int8", "update.importance_cap=0.0"),
    "int8_tis": ("rollout.weights=int8",),
}
ALONE = ("latent.z=0", "ib.estimator=none")
PLAIN = (*ALONE, "branch.replace=True")
# Trees, on configs/T.py. The paper's latent is 128 wide; 16 is what the models of the testbeds can fill. The code
# that its authors released comes to branches at the most hesitant token and A H.
TREES = {
    "branches": (*PLAIN, "advantage.weight=none"),
    "branches_weight": PLAIN,
    "branches_no_replacement_weight": (*ALONE, "branch.replace=False"),
    "branches_released": ("preset=released",),
    "treerl": ("preset=treerl",),
    "treepo": ("preset=treepo",),
    "fr3e": ("preset=fr3e",),
    "ib_tpo": (*PLAIN, "advantage.weight=none", "branch.credit=ib_tpo"),
    "iib_lpo": ("preset=paper", "latent.z=16"),
}
COMPARED = (*INDEPENDENT, *TREES)

CODES = (
    "branch.replace=True",
    "latent.kind=codes",
    "latent.z=8",
    "latent.window=4",
    "latent.psa_lr=1e-2",
    "latent.psa_steps=600",
    "latent.prompts=3072",
    "latent.samples=4",
    "psa.half_life=4.0",
)
# Pieces put in and taken out, on configs/T.py as it ships, and the last one on configs/T_grpo.py: GRPO with the weight
# and the filter of the branching configs, so that branches are all that is left between them.
ABLATIONS = {
    "as_shipped": (),
    "no_branches": ("branch.k=0", "rollout.roots=8", "train.prompts_per_step=20"),
    "no_latent": ("latent.z=0",),  # which only arithmetic has
    "quiet_codes": (*CODES, "latent.prior_weight=0.8", "latent.prior_power=0.0"),  # codes_mixed_flat of latents.py
    "loud_codes": (*CODES, "latent.prior_power=0.3"),  # codes_follow_flat
    "tree_credit": ("branch.credit=tree",),
    "unsolved": ("branch.replace=True", "branch.k=3", "branch.solved=False", "branch.credit=siblings"),
    "self_reward": ("ib.estimator=likelihood", "ib.reward_coef=0.1", "ib.entropy_coef=0.005"),
    "no_filter": ("ib.filter=none",),
    "half": ("ib.estimator=likelihood", "ib.keep=4"),
    "random_half": ("ib.filter=random", "ib.keep=4"),
    "score_half": ("ib.estimator=likelihood", "ib.filter=score", "ib.keep=4"),
    "branches_only": (
        *PLAIN,
        "ib.filter=none",
        "ib.reward_coef=0.0",
        "ib.entropy_coef=0.0",
        "advantage.weight=none",
    ),
}
# Codes of whole responses, on configs/T.py: without branches, against no_branches, and on weighed branches, against
# branches_no_replacement_weight.
NO_BRANCHES = (*ALONE, "branch.k=0", "rollout.roots=8", "train.prompts_per_step=20")
HEARD = {
    "codes_4": (*NO_BRANCHES, "codes.n=4", "codes.dependence=0.25"),
    "codes_8": (*NO_BRANCHES, "codes.n=8", "codes.dependence=1.0"),
    "codes_4_weighed_branches": (*ALONE, "branch.replace=False", "codes.n=4", "codes.dependence=0.25"),
}
WEIGHED = {"grpo_weight": ("advantage.weight=surprise", "ib.filter=contrast")}
# Hints that are the first half of a solution, on the configs of testbeds that have solutions of several steps.
SOLUTIONS = ("hint.source=solution", "hint.tokens=5")  # of responses of as few as 6
HINTED = {
    "kepo_solution": ("preset=kepo", "teacher.kind=average", *SOLUTIONS),
    "hints": ("hint.attempts=5", *SOLUTIONS),
}
NAMED = (*COMPARED, *ABLATIONS, *HEARD, *WEIGHED, *HINTED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One contestant.

    Attributes:
      name: row of the table.
      file: config file; a relative path is one of this repository.
      overrides: `section.key=value`, applied in order, after `preset=NAME` where that is among them.
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
          InputError: the file, a preset, an override or the whole is wrong.
        """
        config = load_file(str(ROOT / self.file))
        presets = [text for text in self.overrides if text.startswith("preset=")]
        own = flatten(config)
        for text in presets:
            config = _preset(text)(config)
        for section, name in (key.split(".") for key in TESTBEDS_OWN):
            config[section][name] = own[f"{section}.{name}"]
        rest = [text for text in self.overrides if text not in presets]
        last = [f"train.seed={seed}", f"data.seed={seed}", *changes]
        config = override(config, [f"--config.{change}" for change in (*rest, *last)])
        validate(config)
        check_name(self.name, config)
        return config


def _preset(text: str):
    name = text.removeprefix("preset=")
    if name not in PRESETS:
        raise InputError(f"{text}: no preset is called so; use one of {', '.join(PRESETS)}")
    return PRESETS[name]


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

    def part(self, share: float) -> "Budget":
        """A budget of `share` of this one."""
        return Budget(unit=self.unit, amount=type(self.amount)(self.amount * share) or 1)

    def __str__(self):
        return f"{self.amount:,.0f} {WORDS[self.unit]}"


WORDS = {
    "tokens": "generated tokens",
    "trajectories": "trajectories",
    "update_tokens": "update tokens",
    "seconds": "seconds of training",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
      arm, seed, budget: of the run.
      rate: its learning rate; None = that of the arm's config.
      sweep: it is there to choose the rate, and its result stands in no comparison.
    """

    arm: Arm
    seed: int
    budget: Budget
    rate: float | None = None
    sweep: bool = False

    def config(self, changes: Sequence[str] = ()) -> RunConfig:
        """The checked config."""
        rate = () if self.rate is None else (f"optim.lr={self.rate}",)
        return self.arm.config(self.seed, (*rate, *changes))

    def __str__(self):
        rate = "" if self.rate is None else f" lr {self.rate:g}"
        return f"{self.arm.family}/{self.arm.name}{rate} seed {self.seed}{' (sweep)' * self.sweep}"


def check_name(name: str, config: RunConfig) -> None:
    """Raises InputError where a run would be called by what it has not: IIB-LPO is branches, latents and the score."""
    branches = config.branch.k > 0
    latents = branches and config.latent.z > 0 and config.psa.strength > 0
    scored = config.ib.estimator != "none"
    if name.startswith("iib_lpo") and not (latents and scored):
        raise InputError(
            f"the arm {name} needs branches, a latent and the score, and here not all are on; see branches_weight"
        )
    if name.startswith("codes_") and not config.codes.n:
        raise InputError(f"the arm {name} is drawn under codes, and here there are none; set codes.n=4")
    weighed = {"branches": False, "branches_weight": True}
    if name.startswith("branches_no_replacement") and (config.branch.replace or not branches):
        raise InputError(f"the arm {name} has branches without replacement, and here they are not; see branches_weight")
    whole = branches and config.branch.replace
    if name in weighed and (latents or scored or not whole or (config.advantage.weight != "none") != weighed[name]):
        raise InputError(
            f"the arm {name} has branches {'and the weight ' * weighed[name]}alone, and here something else is on, or "
            "they are not"
        )


def named_arm(name: str, testbed: str) -> Arm:
    """An arm of a shipped testbed; those of OF_TURNS have their own.

    Raises:
      InputError: no such arm.
    """
    if name in OF_TURNS:
        return Arm(name=name, file="configs/calculator.py", overrides=OF_TURNS[name])
    if name not in NAMED:
        known = ", ".join((*NAMED, *OF_TURNS))
        raise InputError(f"no arm is called {name!r}; use one of {known}, or --arm=NAME:FILE:KEY=VALUE")
    independent = INDEPENDENT | WEIGHED | HINTED
    suffix = "_grpo" if name in independent else ""
    return Arm(
        name=name, file=f"configs/{testbed}{suffix}.py", overrides=(independent | TREES | ABLATIONS | HEARD)[name]
    )


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


def trajectories_of(config: RunConfig, metrics: dict) -> int:
    """Sampled in the step of `metrics`, those that a filter drops and those that gave way to others included."""
    further = sum(int(metrics.get(name, 0)) for name in ("rollout/refills", "hint/rollouts"))
    return config.train.prompts_per_step * group_size(config) * (1 + further)
