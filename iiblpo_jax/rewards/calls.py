"""From responses to calls of the user's own verifiers, and back: in batches, and one by one where a batch fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from iiblpo_jax.rewards.own import Own
from iiblpo_jax.rewards.pool import Pool, Reply
from iiblpo_jax.rewards.verifier import Problem

SHOWN = 300  # characters of a question or response in a message


class Asked(NamedTuple):
    """One response to be judged."""

    verifier: Own
    problem: Problem
    response: str


def judge(pool: Pool, asked: Sequence[Asked], *, batch: int, most_bad: float) -> list[Reply]:
    """What the verifiers say of each response; a reply that is ok has its parts, alone in a tuple.

    A call that raises, hangs, or returns what is no reward for one of its responses, is made again for each of them
    alone, so that a bad response costs no other its reward.

    Args:
      pool: has the verifiers, by the names of their tasks.
      asked: the responses.
      batch: of how many responses a call has at most; those of OneByOne have one.
      most_bad: after so many bad ends the rest is skipped.
    """
    calls = _calls(asked, batch)
    replies: dict[int, Reply] = {}
    alone: list[list[int]] = []
    for indices, reply in zip(calls, _made(pool, asked, calls, most_bad), strict=True):
        if len(reply.parts) == len(indices):
            share = reply.seconds / len(indices)
            replies |= {i: reply._replace(parts=(p,), seconds=share) for i, p in zip(indices, reply.parts, strict=True)}
        elif len(indices) == 1:
            replies[indices[0]] = reply
        else:
            alone += [[index] for index in indices]
    replies |= {i: reply for [i], reply in zip(alone, _made(pool, asked, alone, most_bad), strict=True)}
    return [replies[index] for index in range(len(asked))]


def failure(problem: Problem, response: str, reply: Reply, *, limit: str) -> str:
    """A bad end in words: what happened, on which problem, to which response; `limit` is the time-out and its knob."""
    what = f"it took longer than {limit} s" if reply.outcome == "timeout" else reply.error or "its process failed"
    return (
        f"the verifier of task {problem.task!r} failed on problem {problem.id!r} ({_cut(problem.question)}) with the "
        f"response {_cut(response)}: {what}"
    )


def _calls(asked: Sequence[Asked], batch: int) -> list[list[int]]:
    """Indices of `asked`, those of one verifier together, cut into calls."""
    by_task: dict[str, list[int]] = {}
    for index, one in enumerate(asked):
        by_task.setdefault(one.problem.task, []).append(index)
    calls = []
    for indices in by_task.values():
        size = 1 if asked[indices[0]].verifier.single else batch
        calls += [indices[start : start + size] for start in range(0, len(indices), size)]
    return calls


def _made(pool: Pool, asked: Sequence[Asked], calls: Sequence[Sequence[int]], most_bad: float) -> list[Reply]:
    jobs = []
    for indices in calls:
        mine = [asked[index] for index in indices]
        jobs.append(mine[0].verifier.call([one.problem for one in mine], [one.response for one in mine]))
    return pool.grade(jobs, most_bad=most_bad)


def _cut(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
