"""Where the cases of a step come from, P a step: a Source goes on exactly where its state was taken.

Fixed     cases that are there, every epoch of them in a new order
Sampled   right and wrong rollouts of a policy, drawn for the step
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.endless import Endless, epochs
from iiblpo_jax.data.pairs import right_and_wrong
from iiblpo_jax.data.pipeline import PromptPipeline
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.data.task import Task
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.offline.examples import Case, Encoder, Example, fingerprint
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rewards.together import make_scorer, score_together
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import response_tokens
from iiblpo_jax.rollout.publication import publisher
from iiblpo_jax.step import specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a config names and a source may need.

    Attributes:
      config: of the run.
      encode: texts to tokens.
      tokenizer, model: of the policy.
      mesh: devices.
    """

    config: Any
    encode: Encoder
    tokenizer: Tokenizer
    model: ModelConfig
    mesh: Mesh

    @functools.cached_property
    def tasks(self) -> list[tuple[Task, float]]:
        """(task, weight) pairs of the config, read once.

        Raises:
          InputError: whatever a task gets wrong.
        """
        return make_tasks(self.config.task, seed=self.config.data.seed)


class Source(abc.ABC):
    """Cases without end, the same in every process of a run.

    Attributes:
      group: G, examples of a case.
      of_start: it reads the policy that the run began with in place of the one as it is.
      said: what it is, for the user.
    """

    group: int
    of_start: bool = False
    said: str

    @abc.abstractmethod
    def draw(self, policy: dict, step: int) -> tuple[Sequence[Case], dict[str, float]]:
        """The P cases of a step, and metrics of how they came about. `policy`: weights."""

    @abc.abstractmethod
    def get_state(self) -> bytes:
        """The position."""

    @abc.abstractmethod
    def set_state(self, state: bytes) -> None:
        """Continues exactly where `get_state` was taken.

        Raises:
          InputError: the state was taken from other data.
        """

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Ends what it has started."""


class Fixed(Source):
    """Cases that are there.

    Args:
      cases: at least one.
      per_step: P.
      seed: of their order.
      said: what they are.
    """

    def __init__(self, cases: Sequence[Case], *, per_step: int, seed: int, said: str):
        self.group, self.said = len(cases[0]), f"{len(cases)} {said}"
        order = epochs(cases, seed=seed).batch(per_step, batch_fn=list)
        self._items = Endless(order, fingerprint(cases, f"{seed} {per_step}"))

    def draw(self, policy, step):
        return next(self._items), {}

    def get_state(self) -> bytes:
        return self._items.get_state()

    def set_state(self, state: bytes) -> None:
        self._items.set_state(state)


class Sampled(Source):
    """A right and a wrong rollout of each of P prompts; a prompt that has only one kind gives a case without tokens.

    Rollouts are independent samples, M a prompt (rollout.roots), and of each kind the first one is taken: so the pair
    is drawn from the policy's right and its wrong answers.

    Args:
      loaded: the config and what it names.
      of_start: the policy is the one that the run began with.

    Raises:
      InputError: whatever the task gets wrong.
    """

    group = 2

    def __init__(self, loaded: Loaded, *, of_start: bool):
        config = self._config = loaded.config
        tasks = loaded.tasks
        self._tokenizer, self._mesh, self._model, self.of_start = loaded.tokenizer, loaded.mesh, loaded.model, of_start
        self._prompts = PromptPipeline(
            tasks,
            loaded.tokenizer,
            prompts_per_step=config.train.prompts_per_step,
            max_prompt=config.rollout.max_prompt,
            max_answer=1,
            seed=config.data.seed,
        )
        specs.check_mesh(config, loaded.mesh)
        self._scorer = make_scorer(config, [task for task, _ in tasks])
        never = loaded.tokenizer.textless_ids(loaded.model.vocab_size)
        stops = loaded.tokenizer.stop_ids
        spec = specs.rollout_spec(config, loaded.model, stops, never_ids=never, mesh=loaded.mesh)
        self._spec = dataclasses.replace(spec, branching=Branching(k=0))
        self._publish = None
        self.said = f"pairs of {config.rollout.roots} rollouts a prompt"

    def draw(self, policy, step):
        batch = next(self._prompts)
        self._publish = self._publish or publisher(
            specs.publication_spec(self._config, self._model), policy, self._mesh
        )
        key = jax.random.fold_in(jax.random.key(self._config.train.seed), step)
        prompts = meshes.to_devices((batch.tokens_PS, batch.length_P), self._mesh, "batch")
        forest, _ = rollout(self._publish(policy), *prompts, key, spec=self._spec)
        texts = self._tokenizer.decode_batch(response_tokens(forest))
        asked = [problem for problem in batch.problems for _ in range(forest.group_size)]
        reward_PM = score_together(self._scorer, asked, texts).rewards.reshape(len(batch.problems), -1)
        tokens = response_tokens(forest, stop=True)
        prompts = [row[:n].tolist() for row, n in zip(batch.tokens_PS, batch.length_P, strict=True)]
        cases = [_pair(p, tokens[i * len(r) :], r) for i, (p, r) in enumerate(zip(prompts, reward_PM, strict=True))]
        mixed = sum(bool(case[0].response) for case in cases) / len(cases)
        return cases, {"reward/mean": float(reward_PM.mean()), "pairs/mixed": mixed}

    def get_state(self) -> bytes:
        return self._prompts.get_state()

    def set_state(self, state: bytes) -> None:
        self._prompts.set_state(state)

    def close(self) -> None:
        self._scorer.close()


def _pair(prompt: Sequence[int], responses: Sequence[Sequence[int]], reward_M: np.ndarray) -> Case:
    """(chosen, rejected) of one prompt's responses; both empty where not both kinds are there."""
    found = pairs_of(prompt, responses[: len(reward_M)], reward_M.tolist())
    return found[0] if found else (Example(tuple(prompt), ()), Example(tuple(prompt), ()))


def pairs_of(prompt: Sequence[int], responses: Sequence[Sequence[int]], rewards: Sequence[float]) -> list[Case]:
    """The first right response with the first wrong one, the second with the second, and so on."""
    found = right_and_wrong(responses, (reward >= CORRECT for reward in rewards))
    return [tuple(Example(tuple(prompt), tuple(response)) for response in pair) for pair in found]


def no_pairs(where: str) -> InputError:
    """The error of recorded rollouts that hold no right and wrong response to one prompt."""
    return InputError(f"{where} holds no prompt with a right and a wrong response; record more, or other problems")
