"""The results of `iiblpo_jax.evaluate`, WORKDIR/eval/: a file an evaluation, and none replaces another."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from iiblpo_jax.common.jsonl import write_atomic
from iiblpo_jax.config import files
from iiblpo_jax.data.task import Task

SECTIONS = ("model", "data", "task", "rollout", "reward", "eval")  # of the config: what an evaluation depends on
LONGEST = 60  # characters of task names in a file's name


def described(config, tasks: Sequence[Task], *, step: int, weights: str) -> dict:
    """What is evaluated, as JSON: two evaluations are one where this is equal.

    Args:
      config: of the evaluation.
      tasks: evaluated on.
      step: the policy's.
      weights: fingerprint of the policy.
    """
    held_out = [{"task": task.name, "problems": len(task.heldout), "digest": _digest_of(task)} for task in tasks]
    named = (*SECTIONS, "codes") if config.codes.n else SECTIONS
    sections = {name: section for name, section in files.resolve(config).items() if name in named}
    return {"step": step, "weights": weights, "held_out": held_out, "config": sections}


def write_evaluation(workdir: Path, what: dict, *, source: str, metrics: dict, plans: dict | None = None) -> Path:
    """Writes `eval/step_NNNNNN.json`, or where that is another evaluation `eval/step_NNNNNN-TASKS-DIGEST.json`.

    The file holds `what` (see `described`), `source`, the section `eval` of the config once more, `metrics`, and where
    there are codes `plans`, Evaluator.plans. The same evaluation, made again, replaces its own file.

    Returns:
      Its path.
    """
    names = "+".join(entry["task"] for entry in what["held_out"])
    name = f"step_{what['step']:06d}"
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    folder = workdir / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if not _is_ours(path, what):
        path = folder / f"{name}-{re.sub(r'[^A-Za-z0-9_.+-]', '-', names)[:LONGEST]}-{digest}.json"
    content = what | {"source": source, "eval": what["config"]["eval"], "metrics": metrics}
    content |= {"plans": plans} if plans else {}
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return path


def write_disagreements(evaluation: Path, task: str, grader: str, lines: Sequence[str]) -> Path:
    """Writes what a second grader found of a task (results/second_grader.py) beside the file of its evaluation."""
    path = evaluation.with_name(f"{evaluation.stem}-{re.sub(r'[^A-Za-z0-9_.+-]', '-', task)}-{grader}.txt")
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return path


def _is_ours(path: Path, what: dict) -> bool:
    """Whether the file is free, and now taken, or holds the very evaluation."""
    try:
        path.open("x").close()
    except FileExistsError:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(stored, dict) and {key: stored.get(key) for key in what} == what
    return True


def _digest_of(task: Task) -> str:
    digest = hashlib.sha256()
    for problem in task.heldout:
        digest.update(json.dumps([problem.question, problem.answer]).encode())
    return digest.hexdigest()[:16]
