"""Held-out evaluation: samples from the rollout engine, graded, and read as pass@k, maj@k, length and diversity."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.files import own_code_of
from iiblpo_jax.config.knobs import nearest
from iiblpo_jax.data.pipeline import batches_of, heldout_prompts
from iiblpo_jax.data.prompts import Prompt
from iiblpo_jax.data.registry import make_tasks, named, names_of
from iiblpo_jax.data.task import Task
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.environments.asked import Environments
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.steering.code_tokens import code_tokens
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.results import passk
from iiblpo_jax.results.attempts import AttemptFile, Attempts, attempts_of
from iiblpo_jax.results.diversity import diversity
from iiblpo_jax.results.plans import plan_table
from iiblpo_jax.results.voting import parties
from iiblpo_jax.rewards.scorer import CORRECT, Scorer
from iiblpo_jax.rewards.together import score_together, settle_together
from iiblpo_jax.rewards.verifier import Job
from iiblpo_jax.rollout.conversation import Conversation, make_environments, turn_end_table
from iiblpo_jax.rollout.conversing import Conversing, rollout_in_turns
from iiblpo_jax.rollout.draws import Origin, shared_out
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import LENGTH, Forest, response_tokens
from iiblpo_jax.rollout.publication import Published
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.step import specs

TRAJECTORIES_PER_CALL = 1024  # bounds the Forest and the prompt caches of one rollout call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Everything sampled for the N problems of a task.

    Attributes:
      reward_Nn: float32.
      length_Nn: tokens, the stop token not counted.
      truncated_Nn: bool; cut at the longest response allowed.
      answers, plans: [N][n] extracted answers and plans.
      heads: token lists of the first samples, as far as diversity reads them.
      code_Nn: the code of each sample; None where z was off.
    """

    reward_Nn: np.ndarray
    length_Nn: np.ndarray
    truncated_Nn: np.ndarray
    answers: list[list[str | None]]
    plans: list[list[str | None]]
    heads: list[list[list[int]]]
    code_Nn: np.ndarray | None = None

    @property
    def correct_Nn(self) -> np.ndarray:
        """bool; right."""
        return self.reward_Nn >= CORRECT


def answers_of(task: Task, attempts: Sequence[Attempts]) -> Answers:
    """The Answers of N problems of a task."""
    return Answers(
        reward_Nn=np.array([one.rewards for one in attempts], np.float32),
        length_Nn=np.array([one.lengths for one in attempts]),
        truncated_Nn=np.array([one.truncated for one in attempts]),
        answers=[[task.verifier.answer(text) for text in one.texts] for one in attempts],
        plans=[[task.plan(text) for text in one.texts] for one in attempts],
        heads=[one.heads for one in attempts],
    )


class Kept:
    """Where an evaluation keeps its Attempts, and what it finds there.

    Args:
      folder: for the files; see results/attempts.py.
      policy: as JSON, what tells one policy from another: step and fingerprint.
      say: told how far the evaluation is.
    """

    def __init__(self, folder: Path, policy: Mapping, *, say: Callable[[str], None] = lambda line: None):
        self._folder, self._policy, self.say = folder, policy, say

    def open(self, task: Task, protocol: Mapping, prompts: Sequence[Prompt]) -> AttemptFile:
        """The file of a task under a protocol.

        Raises:
          InputError: as AttemptFile.
        """
        return AttemptFile(self._folder, task.name, {"policy": self._policy, **protocol}, prompts)


def evaluation_tasks(config, training: Sequence[Task] = ()) -> list[Task]:
    """The tasks named by eval.tasks, or those trained on; `training` saves making the latter again."""
    names = names_of(config.task)
    if not training and not (config.eval.tasks and set(names).isdisjoint(config.eval.tasks)):
        training = [task for task, _ in make_tasks(config.task, seed=config.data.seed)]
    known = dict(zip(names, training, strict=True)) if training else {}
    return [
        known.get(name) or named(config.task, name, data_dir=_folder(config.task.data_dir, name), seed=config.data.seed)
        for name in config.eval.tasks or known
    ]


def _folder(data_dir: str, name: str) -> Path | None:
    """Files of an evaluation task: data_dir/name where that exists, else data_dir."""
    own = Path(data_dir) / name
    return (own if own.is_dir() else Path(data_dir)) if data_dir else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The problems of a task, and how often each is asked.

    Attributes:
      task, prompts: N problems.
      samples: of each.
      block: problems that have one random key and are told apart by their number.
      codes: that the samples of a problem share out; 0 = z is off.
    """

    task: Task
    prompts: list[Prompt]
    samples: int
    block: int
    codes: int = 0

    def codes_of(self, seed: int, samples: int) -> np.ndarray | None:
        """The code of each of so many samples of every problem [N,n]; None with z off."""
        if not self.codes:
            return None
        order_NZ = shared_out(self.origin(np.arange(len(self.prompts)), seed, samples), self.codes)
        return np.asarray(order_NZ)[:, np.arange(samples) % self.codes]

    def origin(self, index_P: np.ndarray, seed: int, samples: int) -> Origin:
        """What the random numbers of problems are drawn from, whatever others are asked with them."""
        key_P = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index_P // self.block)
        return Origin(key_P=key_P, row_P=jnp.asarray(index_P % self.block * samples))


class Evaluator:
    """Evaluates policies on the held-out problems of some tasks, always the same problems with the same random keys.

    Args:
      config: the run's config; sections eval and rollout.
      tasks: what to evaluate on.
      model_config, tokenizer: of the policy.
      scorer: knows the verifiers of all tasks.
      mesh: devices to sample on; None = one.
      environments: of the tasks, where turns.most asks them; None = they are made here.

    Attributes:
      plans: task -> `plans.plan_table` of the last call; empty without codes.

    Raises:
      InputError: a task without held-out problems, or none that fits rollout.max_prompt; samples of a task that is not
        evaluated.
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
        environments: Environments | None = None,
    ):
        self._mesh = mesh
        self._environments = environments or make_environments(config, tasks)
        self._turn_end = None
        if self._environments:
            self._turn_end = turn_end_table(self._environments, tokenizer, model_config.vocab_size)
        self._config, self._tokenizer, self._scorer = config, tokenizer, scorer
        self._model_config = model_config
        _check_task_samples(config, tasks)
        self._asked = [self._ask(task) for task in tasks]
        self.plans: dict[str, dict] = {}

    def __call__(self, policy: Published, *, kept: Kept | None = None) -> dict[str, float]:
        """Metrics `eval/<task>/...` of a policy: those of `summary`, and greedy.

        With codes the samples of a problem share them out, and beside them stand those with z off,
        `eval/<task>/z_off/...`.

        `kept`: where every problem is written down as soon as it is answered, and where those that are there already
        are taken from.

        Raises:
          InputError: what is there is damaged or cannot be written.
        """
        codes, metrics = self._config.codes.n, {}
        for asked in self._asked:
            ways = {"": dataclasses.replace(asked, codes=codes), "z_off/": asked} if codes else {"": asked}
            for way, asked_so in ways.items():
                found = self._of_task(policy, asked_so, kept)
                metrics |= {f"eval/{asked.task.name}/{way}{key}": value for key, value in found.items()}
        return metrics

    def _of_task(self, policy: Published, asked: Asked, kept: Kept | None) -> dict[str, float]:
        knobs, task = self._config.eval, asked.task
        sampled = Sampling(temperature=knobs.temperature, top_p=knobs.top_p)
        answers = answers_of(task, self._attempts(policy, asked, sampled, asked.samples, kept))
        answers = dataclasses.replace(answers, code_Nn=asked.codes_of(knobs.seed, asked.samples))
        if answers.code_Nn is not None:
            self.plans[task.name] = plan_table(answers.plans, answers.code_Nn, asked.codes)
        ks = [k for k in knobs.k if k <= asked.samples]
        if max(ks, default=1) > 1:
            answers = dataclasses.replace(answers, answers=parties(task.verifier, answers.answers, self._settle))
        found = summary(answers, ks, avg=[k for k in knobs.avg if k <= asked.samples])
        if knobs.greedy:
            greedy = answers_of(task, self._attempts(policy, asked, Sampling(temperature=0.0), 1, kept))
            found["greedy"] = float(greedy.correct_Nn.mean())
        return found

    def attempts(self, kept: Kept) -> Iterator[tuple[Task, list[Prompt], list[Attempts]]]:
        """What an evaluation that is over has kept of each task: its problems, and the samples of each."""
        for asked in self._asked:
            asked = dataclasses.replace(asked, codes=self._config.codes.n)
            sampling = Sampling(temperature=self._config.eval.temperature, top_p=self._config.eval.top_p)
            with kept.open(asked.task, self._protocol(asked, sampling, asked.samples), asked.prompts) as file:
                yield asked.task, asked.prompts, [file.done[index] for index in range(len(asked.prompts))]

    def _ask(self, task: Task) -> Asked:
        config = self._config
        samples = config.eval.task_samples.get(task.name, config.eval.samples)
        widths = {"max_prompt": config.rollout.max_prompt, "max_answer": 1}
        prompts = heldout_prompts(task, self._tokenizer, limit=config.eval.problems, **widths)
        block = max(1, min(config.eval.problems, TRAJECTORIES_PER_CALL // samples))
        return Asked(task=task, prompts=prompts, samples=samples, block=block)

    def _settle(self, decisions: Sequence[float | Job]) -> np.ndarray:
        found = settle_together(self._scorer, decisions)
        badly = np.isfinite(found.columns["seconds"]) & np.isnan(found.columns["verdict"])
        return np.where(badly, np.nan, found.rewards)

    def _attempts(
        self, policy: Published, asked: Asked, sampling: Sampling, samples: int, kept: Kept | None
    ) -> list[Attempts]:
        """The Attempts of all problems of a task."""
        if kept is None:
            return [one for found in self._sample(policy, asked, sampling, samples, {}) for one in found.values()]
        answer, total = asked.task.verifier.answer, len(asked.prompts)
        with kept.open(asked.task, self._protocol(asked, sampling, samples), asked.prompts) as file:
            if file.done:
                kept.say(f"{asked.task.name}: {len(file.done)} of {total} problems are there, in {file.path}")
            for found in self._sample(policy, asked, sampling, samples, file.done):
                for index, attempts in found.items():
                    file.add(index, attempts, [answer(text) for text in attempts.texts])
                kept.say(f"{asked.task.name}: {len(file.done)} of {total} problems, {samples} samples each")
            return [file.done[index] for index in range(total)]

    def _sample(
        self, policy: Published, asked: Asked, sampling: Sampling, samples: int, done: Mapping[int, Attempts]
    ) -> Iterator[dict[int, Attempts]]:
        """Attempts of the problems that are not done, by their index: call by call of the engine."""
        rollout_config, widths = self._config.rollout, {"max_prompt": self._config.rollout.max_prompt, "max_answer": 1}
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
            codes=code_tokens(self._model_config, asked.codes),
            turns=specs.turns(self._config),
            mesh=self._mesh,
        )
        waiting = [index for index in range(len(asked.prompts)) if index not in done]
        per_call = min(asked.block, len(asked.prompts))  # whatever is waiting: one shape, one rounding
        per_call += -per_call % meshes.shards(self._mesh)
        batches = batches_of([asked.prompts[index] for index in waiting], batch_size=per_call, **widths)
        for number, batch in enumerate(batches):
            indices = waiting[number * per_call : (number + 1) * per_call]
            index_P = np.array(indices + indices[:1] * (per_call - len(indices)))  # as the last batch is filled
            prompts = meshes.to_devices((batch.tokens_PS, batch.length_P), self._mesh, "batch")
            origin = asked.origin(index_P, self._config.eval.seed, samples)
            forest, paid_R = self._grown(policy, prompts, origin, batch.problems, spec)
            responses, cut_R = response_tokens(forest, observations=False), meshes.to_host(forest.finish_R) == LENGTH
            texts = self._tokenizer.decode_batch(responses)
            problems = [problem for problem in batch.problems for _ in range(samples)]
            reward_R = np.clip(score_together(self._scorer, problems, texts).rewards + paid_R, 0.0, 1.0)
            rows = [slice(p * samples, (p + 1) * samples) for p in range(len(indices))]
            yield {
                index: attempts_of(texts[mine], responses[mine], reward_R[mine], cut_R[mine])
                for index, mine in zip(indices, rows, strict=True)
            }

    def _grown(self, policy, prompts, origin, problems, spec: RolloutSpec) -> tuple[Forest, np.ndarray | float]:
        """The responses, and what the environment has paid for them."""
        if self._environments is None or self._turn_end is None:
            return rollout(policy, *prompts, origin, spec=spec)[0], 0.0
        talk = Conversation(self._environments, self._tokenizer, problems, spec)
        prompt_PS, length_P = prompts
        made_of = Conversing(policy, prompt_PS, length_P, origin, self._turn_end)
        forest, _ = rollout_in_turns(made_of, talk, spec=spec)
        return forest, talk.heard(forest).reward_R

    def _protocol(self, asked: Asked, sampling: Sampling, samples: int) -> dict:
        """What decides the samples of a problem and their grades, but for policy and problem, as JSON."""
        config, r = self._config, self._config.rollout
        turns = {"turns": [config.turns.most, config.turns.observation]} if config.turns.most else {}
        names = ("max_prompt", "max_tokens", "dtype", "weights", "kv_dtype", "unroll")
        return {
            "version": 1,
            "sampling": dataclasses.asdict(sampling),
            "samples": samples,
            "seed": config.eval.seed,
            "block": asked.block,
            "rollout": {name: r[name] for name in names},
            "verifier": type(asked.task.verifier).__name__,
            "timeout": config.data.verifier_timeout,
            **turns,
            "own_code": {key: own_code.digest(reference) for key, reference in own_code_of(config).items()},
        } | ({"codes": asked.codes} if asked.codes else {})


def _check_task_samples(config, tasks: Sequence[Task]) -> None:
    known = [task.name for task in tasks]
    for name in config.eval.task_samples:
        if name not in known:
            raise InputError(
                f"eval.task_samples names {name}{nearest(name, known)}, which is not evaluated; the tasks are "
                f"{', '.join(known)}"
            )


def summary(answers: Answers, ks: Sequence[int], *, avg: Sequence[int] = ()) -> dict[str, float]:
    """pass@1, pass@k and maj@k for every k, avg@k for those of `avg`, mean reward and tokens (stop token not counted),
    `truncated`, diversity. Where samples were drawn under codes pass@k is that of k samples which share them out.

    The reward tells more than pass@1 where there is partial credit. `truncated` is the share of samples that were cut
    at the longest response allowed.

    Diversity is the four measures of `diversity` and `unique_correct`: different plans among the right samples of a
    problem, mean over problems. It grows with the number of samples.
    """
    found = {f"pass@{k}": passk.pass_at_k(answers.correct_Nn, k, code_PN=answers.code_Nn) for k in sorted({1, *ks})}
    found |= {f"maj@{k}": passk.maj_at_k(answers.answers, answers.correct_Nn, k) for k in ks if k > 1}
    found |= {f"avg@{k}": passk.avg_at_k(answers.correct_Nn, k) for k in avg}
    found["reward"] = float(answers.reward_Nn.mean())
    found["tokens"] = float(answers.length_Nn.mean())
    found["truncated"] = float(answers.truncated_Nn.mean())
    if answers.correct_Nn.shape[1] > 1:
        found |= diversity(answers.heads) | {"unique_correct": _unique_correct(answers)}
    return found


def _unique_correct(answers: Answers) -> float:
    kinds = [
        {plan for plan, right in zip(plans, right_n, strict=True) if right} - {None}
        for plans, right_n in zip(answers.plans, answers.correct_Nn, strict=True)
    ]
    return float(np.mean([len(found) for found in kinds]))
