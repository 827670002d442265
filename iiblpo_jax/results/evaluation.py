"""Held-out evaluation: samples from the rollout engine, graded, and read as pass@k, maj@k, length and diversity."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from iiblpo_jax.data.pipeline import heldout_batches
from iiblpo_jax.data.prompts import PromptBatch
from iiblpo_jax.data.registry import make_tasks, named, names_of
from iiblpo_jax.data.task import Task
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.results import passk
from iiblpo_jax.results.diversity import diversity
from iiblpo_jax.results.voting import parties
from iiblpo_jax.rewards.scorer import CORRECT, Scorer
from iiblpo_jax.rewards.together import score_together, settle_together
from iiblpo_jax.rewards.verifier import Job
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import LENGTH, response_tokens
from iiblpo_jax.rollout.publication import Published
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.spec import RolloutSpec

TRAJECTORIES_PER_CALL = 1024  # bounds the Forest and the prompt caches of one rollout call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Everything sampled for the N problems of a task.

    Attributes:
      reward_Nn: float32.
      truncated_Nn: bool; cut at the longest response allowed.
      answers, plans, tokens: [N][n] extracted answers, plans and token lists.
    """

    reward_Nn: np.ndarray
    truncated_Nn: np.ndarray
    answers: list[list[str | None]]
    plans: list[list[str | None]]
    tokens: list[list[list[int]]]

    @property
    def correct_Nn(self) -> np.ndarray:
        """bool; right."""
        return self.reward_Nn >= CORRECT


def evaluation_tasks(config, training: Sequence[Task] = ()) -> list[Task]:
    """The tasks named by eval.tasks, or those trained on; `training` saves making the latter again."""
    training = training or [task for task, _ in make_tasks(config.task, seed=config.data.seed)]
    known = dict(zip(names_of(config.task), training, strict=True))
    return [
        known.get(name) or named(config.task, name, data_dir=_folder(config.task.data_dir, name), seed=config.data.seed)
        for name in config.eval.tasks or known
    ]


def _folder(data_dir: str, name: str) -> Path | None:
    """Files of an evaluation task: data_dir/name where that exists, else data_dir."""
    own = Path(data_dir) / name
    return (own if own.is_dir() else Path(data_dir)) if data_dir else None


class Evaluator:
    """Evaluates policies on the held-out problems of some tasks, always the same problems with the same random keys.

    Args:
      config: the run's config; sections eval and rollout.
      tasks: what to evaluate on.
      model_config, tokenizer: of the policy.
      scorer: knows the verifiers of all tasks.
      mesh: devices to sample on; None = one.

    Raises:
      InputError: a task without held-out problems, or none that fits rollout.max_prompt.
    """

    def __init__(
        self,
        config,
        tasks: Sequence[Task],
        model_config: ModelConfig,
        tokenizer: Tokenizer,
        scorer: Scorer,
        *,
        mesh: Mesh | None = None,
    ):
        self._mesh = mesh
        self._config, self._tokenizer, self._scorer = config, tokenizer, scorer
        self._model_config = model_config
        per_call = max(1, min(config.eval.problems, TRAJECTORIES_PER_CALL // config.eval.samples))
        per_call += -per_call % meshes.shards(mesh)
        self._batches = {
            task.name: (
                task,
                heldout_batches(
                    task,
                    tokenizer,
                    batch_size=per_call,
                    max_prompt=config.rollout.max_prompt,
                    max_answer=1,
                    limit=config.eval.problems,
                ),
            )
            for task in tasks
        }

    def __call__(self, policy: Published) -> dict[str, float]:
        """Metrics `eval/<task>/...` of a policy: those of `summary`, and greedy."""
        knobs, metrics = self._config.eval, {}
        sampled = Sampling(temperature=knobs.temperature, top_p=knobs.top_p)
        for name, (task, batches) in self._batches.items():
            answers = self._sample(policy, task, batches, sampled, knobs.samples)
            if max(knobs.k) > 1:
                answers = dataclasses.replace(answers, answers=parties(task.verifier, answers.answers, self._settle))
            found = summary(answers, knobs.k)
            if knobs.greedy:
                greedy = self._sample(policy, task, batches, Sampling(temperature=0.0), 1)
                found["greedy"] = float(greedy.correct_Nn.mean())
            metrics |= {f"eval/{name}/{key}": value for key, value in found.items()}
        return metrics

    def _settle(self, decisions: Sequence[float | Job]) -> np.ndarray:
        found = settle_together(self._scorer, decisions)
        badly = np.isfinite(found.columns["seconds"]) & np.isnan(found.columns["verdict"])
        return np.where(badly, np.nan, found.rewards)

    def _sample(
        self, policy: Published, task: Task, batches: Sequence[PromptBatch], sampling: Sampling, samples: int
    ) -> Answers:
        rollout_config = self._config.rollout
        spec = RolloutSpec(
            model=self._model_config,
            roots=samples,
            slots=rollout_config.slots,
            refill_at=rollout_config.refill_at,
            max_tokens=rollout_config.max_tokens,
            sampling=sampling,
            stop_ids=self._tokenizer.stop_ids,
            never_ids=self._tokenizer.textless_ids(self._model_config.vocab_size),
            kv_dtype=rollout_config.kv_dtype,
            mesh=self._mesh,
        )
        reward, truncated, answers, plans, tokens = [], [], [], [], []
        for index, batch in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(self._config.eval.seed), index)
            prompts = meshes.to_devices((batch.tokens_PS, batch.length_P), self._mesh, "batch")
            forest, _ = rollout(policy, *prompts, key, spec=spec)
            responses, cut_R = response_tokens(forest), meshes.to_host(forest.finish_R) == LENGTH
            texts = self._tokenizer.decode_batch(responses)
            problems = [problem for problem in batch.problems for _ in range(samples)]
            reward_R = score_together(self._scorer, problems, texts).rewards
            for p in np.flatnonzero(batch.valid_P):
                mine = slice(p * samples, (p + 1) * samples)
                reward.append(reward_R[mine])
                truncated.append(cut_R[mine])
                answers.append([task.verifier.answer(text) for text in texts[mine]])
                plans.append([task.plan(text) for text in texts[mine]])
                tokens.append(responses[mine])
        return Answers(
            reward_Nn=np.array(reward), truncated_Nn=np.array(truncated), answers=answers, plans=plans, tokens=tokens
        )


def summary(answers: Answers, ks: Sequence[int]) -> dict[str, float]:
    """pass@1, pass@k and maj@k for every k, mean reward and tokens (stop token not counted), `truncated`, diversity.

    The reward tells more than pass@1 where there is partial credit. `truncated` is the share of samples that were cut
    at the longest response allowed.

    Diversity is the four measures of `diversity` and `unique_correct`: different plans among the right samples of a
    problem, mean over problems. It grows with the number of samples.
    """
    found = {f"pass@{k}": passk.pass_at_k(answers.correct_Nn, k) for k in sorted({1, *ks})}
    found |= {f"maj@{k}": passk.maj_at_k(answers.answers, answers.correct_Nn, k) for k in ks if k > 1}
    found["reward"] = float(answers.reward_Nn.mean())
    found["tokens"] = float(np.mean([len(sample) for group in answers.tokens for sample in group]))
    found["truncated"] = float(answers.truncated_Nn.mean())
    if answers.correct_Nn.shape[1] > 1:
        found |= diversity(answers.tokens) | {"unique_correct": _unique_correct(answers)}
    return found


def _unique_correct(answers: Answers) -> float:
    kinds = [
        {plan for plan, right in zip(plans, right_n, strict=True) if right} - {None}
        for plans, right_n in zip(answers.plans, answers.correct_Nn, strict=True)
    ]
    return float(np.mean([len(found) for found in kinds]))
