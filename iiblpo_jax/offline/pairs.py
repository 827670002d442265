"""The cases of preference learning: of a file, of recorded rollouts, or of rollouts of the policy."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import group_size
from iiblpo_jax.data.pairs import read_pairs
from iiblpo_jax.data.task import render
from iiblpo_jax.offline.demonstrations import of_file, of_heldout_problems
from iiblpo_jax.offline.examples import Case, Encoder, Example
from iiblpo_jax.offline.sources import Fixed, Loaded, Sampled, Source, no_pairs, pairs_of
from iiblpo_jax.rewards.together import make_scorer, score_together
from iiblpo_jax.rollout.forest import STOP
from iiblpo_jax.run import recorded
from iiblpo_jax.step import specs

NOTHING = Example((0,), ())


def find(loaded: Loaded, workdir: Path) -> tuple[Source, list[Case]]:
    """(the source that the offline section names, held-out cases).

    Raises:
      InputError: a file that does not fit, rollouts without a pair, a setting that does not go with the source.
    """
    config, offline = loaded.config, loaded.config.offline
    if offline.source != "file" and config.turns.most:  # observations are not what a policy chose between
        raise InputError(f"turns.most = {config.turns.most}, and pairs are of responses of one turn; set turns.most=0")
    if offline.source in ("policy", "start"):
        if offline.retain:
            raise InputError(f"offline.retain goes with pairs that are there, not with offline.source={offline.source}")
        return Sampled(loaded, of_start=offline.source == "start"), _heldout(loaded, group=2)
    if offline.source == "recorded":
        pairs = of_recorded(loaded, workdir)
    elif not offline.data:
        raise InputError("offline.data is empty; name a file of {prompt, chosen, rejected}, or another offline.source")
    else:
        pairs = of_pairs(offline.data, loaded.encode)
    cases = with_retained(pairs, of_file(offline.retain, loaded.encode)) if offline.retain else pairs
    how = {"per_step": config.train.prompts_per_step, "seed": config.data.seed}
    return Fixed(cases, **how, said="pairs to learn from"), _heldout(loaded, group=len(cases[0]))


def of_pairs(path: str | Path, encode: Encoder) -> list[Case]:
    """The pairs of a file, (chosen, rejected) each."""
    pairs = enumerate(read_pairs(path), start=1)
    return [tuple(encode.text(f"{path} row {n}", p.prompt, text) for text in (p.chosen, p.rejected)) for n, p in pairs]


def with_retained(pairs: Sequence[Case], kept: Sequence[Case]) -> list[Case]:
    """Every pair with an example to be kept beside it: as many cases as the longer of both has, the other repeated."""
    count = max(len(pairs), len(kept))
    both = zip(itertools.cycle(pairs), itertools.cycle(kept), range(count), strict=False)
    return [(*pair, *retained) for pair, retained, _ in both]


def of_recorded(loaded: Loaded, workdir: Path) -> list[Case]:
    """Right and wrong responses of the groups that data.recorded names; they are graded anew.

    Raises:
      InputError: no file, one that does not fit (run/recorded.py), a prompt that the task does not have, no pair.
    """
    config, tokenizer = loaded.config, loaded.tokenizer
    if not config.data.recorded:
        raise InputError("offline.source = recorded and data.recorded is empty; name files of a run's rollouts/")
    parent_J = specs.branching(config).shape.parent_J
    begins = range(0, group_size(config), len(parent_J))
    form = recorded.Form(
        parent_G=tuple(-1 if parent < 0 else begin + parent for begin in begins for parent in parent_J),
        max_tokens=config.rollout.max_tokens,
        vocab=loaded.model.vocab_size,
        logprobs=False,
        left=config.branch.k > 0 and not config.branch.replace,
    )
    files = recorded.find(config.data.recorded, workdir)
    groups = [group for path in files for group in recorded.read_groups(path, form)]
    tasks = [task for task, _ in loaded.tasks]
    problems = {problem.id: (task, problem) for task in tasks for problem in task.train}
    cases = []
    with make_scorer(config, tasks) as scorer:
        for group in groups:
            if group[0].prompt_id not in problems:
                raise InputError(
                    f"{group[0].where}: prompt_id {group[0].prompt_id!r} is no training problem of this config's task; "
                    "set task.* and data.seed as in the run that was recorded"
                )
            task, problem = problems[group[0].prompt_id]
            grown = [line for line in group if line.tokens.size]
            texts = tokenizer.decode_batch(line.tokens[: len(line.tokens) - (line.finish == STOP)] for line in grown)
            rewards = score_together(scorer, [problem] * len(texts), texts).rewards.tolist()
            cases += pairs_of(render(task, problem, tokenizer), [line.tokens.tolist() for line in grown], rewards)
    if not cases:
        raise no_pairs(config.data.recorded)
    return cases


def _heldout(loaded: Loaded, *, group: int) -> list[Case]:
    """Pairs of offline.heldout; without it, where pairs are a task's, its held-out gold solutions, which are unseen."""
    offline = loaded.config.offline
    if offline.heldout:
        found = of_pairs(offline.heldout, loaded.encode)
    else:
        found = of_heldout_problems(loaded) if offline.source != "file" else []
    return [(case + (NOTHING,) * group)[:group] for case in found]
