"""Environments of the user's own: any object with `turn_end`, `reset(problem)` and `step(state, text)`.

`step` returns a Reply, or a tuple of its first two, three or four entries. They run in worker processes
(rewards/pool.py), each turn under a time-out, with the rights of the user. What travels is text: a state is pickled
where it is made and read only there, so whatever an answer does to a worker stays out of the trainer.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.environments.interface import Environment, Reply
from iiblpo_jax.rewards.own import Recipe, unpickled
from iiblpo_jax.rewards.verifier import Problem

WORKER = "iiblpo_jax.environments.own:worker"
Told = dict[str, float | str]


def is_environment(value: Any) -> bool:
    """Whether an object can be asked."""
    return isinstance(value, Environment) or (
        not isinstance(value, type)
        and all(callable(getattr(value, name, None)) for name in ("reset", "step"))
        and isinstance(getattr(value, "turn_end", None), str)
    )


def recipe(environment: Any, *, task: str) -> Recipe:
    """What `worker` makes it of in another process.

    Raises:
      InputError: it cannot be had there.
    """
    try:
        pickled = pickle.dumps(environment)
    except Exception as error:  # whatever a user's object raises
        raise InputError(
            f"task {task!r}: its environment {environment!r} cannot be taken into a worker process "
            f"({str(error)[:120]}); define its class at the top of a file, not in a function or a notebook"
        ) from None
    return "made", WORKER, pickled, own_code.loaded_files()


def worker(pickled: bytes, files: Mapping[str, str]) -> Callable[[Sequence[Problem], Sequence[Any]], list[Told]]:
    """What a worker answers with: `ask` of the environment."""
    environment = unpickled(pickled, files)
    return lambda problems, turns: [
        ask(environment, problem, *turn) for problem, turn in zip(problems, turns, strict=True)
    ]


def ask(environment: Any, problem: Problem, state: str | None, text: str | None) -> Told:
    """A reply as names and values. Without a text the conversation begins; a state is text, None before that.

    Raises:
      ValueError: what came back is no reply.
    """
    if text is None:
        return told(Reply(environment.reset(problem), ""))
    assert state is not None
    return told(checked(environment.step(pickle.loads(base64.b64decode(state)), text)))


def checked(value: Any) -> Reply:
    """What `step` returned, as a Reply.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(value, tuple) or not 2 <= len(value) <= 4:
        raise ValueError(f"step returned a {type(value).__name__}; return (state, observation, reward, done)")
    reply = Reply(*value)
    if not isinstance(reply.observation, str):
        raise ValueError(f"step returned a {type(reply.observation).__name__} as its observation; return a text")
    return reply._replace(reward=float(reply.reward), done=bool(reply.done))


def told(reply: Reply) -> Told:
    """A reply as it travels."""
    state = base64.b64encode(pickle.dumps(reply.state)).decode()
    return {"state": state, "observation": reply.observation, "reward": reply.reward, "done": float(reply.done)}
