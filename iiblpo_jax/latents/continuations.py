"""What the latent stage learns from: the model's own samples, and gold rationales where a task has them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.prompts import distinct_prompts
from iiblpo_jax.devices.mesh import to_devices, to_host
from iiblpo_jax.latents.features import Continuation
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import STOP
from iiblpo_jax.rollout.publication import publisher
from iiblpo_jax.step import specs

Sampler = Callable[[list[list[int]]], list[list[Continuation]]]


class Question(NamedTuple):
    """A prompt as token ids, and its gold response as token ids with the stop token, or None."""

    prompt: list[int]
    gold: list[int] | None


def training_questions(batches: Iterable, tokenizer, count: int) -> list[Question]:
    """The distinct questions among the first `count` prompts of a prompt pipeline, each with its gold rationale.

    Args:
      batches: `PromptBatch`es, such as a fresh `PromptPipeline`.
      tokenizer: encodes rationales; its first stop id ends them.
      count: prompts drawn. A small data set repeats itself before that, and then gives fewer questions.
    """
    questions = []
    for problem, prompt in distinct_prompts(batches, count):
        gold = None
        if problem.rationale is not None:
            gold = [*tokenizer.encode(tokenizer.quote(problem.rationale)), tokenizer.stop_ids[0]]
        questions.append(Question(prompt, gold))
    return questions


def gather(questions: Sequence[Question], own: Sampler) -> list[Continuation]:
    """Own samples of every question and, half and half, its gold response as often (each copy is cut elsewhere).

    With gold alone the PSA projections would learn a constant fine-tuning on gold instead of a latent.
    """
    continuations = []
    for i, (question, samples) in enumerate(zip(questions, own([q.prompt for q in questions]), strict=True)):
        continuations += samples
        if question.gold is not None:
            continuations += [Continuation(i, question.prompt, question.gold, True)] * len(samples)
    return continuations


def policy_sampler(
    config,
    model_config: ModelConfig,
    params: dict,
    stop_ids: Sequence[int],
    key,
    *,
    samples: int = 0,
    never_ids: Sequence[int] = (),
    mesh: Mesh | None = None,
) -> Sampler:
    """A Sampler that draws responses from the rollout engine, without branches.

    Args:
      config: the run's config; sampling as in its rollouts.
      model_config, params: the frozen model.
      stop_ids: token ids that end a response.
      key: PRNG key of all samples.
      samples: responses a prompt; 0 = latent.samples.
      never_ids: token ids that are never drawn.
      mesh: devices that hold the weights; None = one.
    """
    training = specs.rollout_spec(config, model_config, stop_ids, never_ids=never_ids, mesh=mesh)
    spec = dataclasses.replace(training, roots=samples or config.latent.samples, branching=Branching(k=0))
    published = publisher(specs.publication_spec(config, model_config), params, mesh)(params)
    at_once = config.train.prompts_per_step

    def own(prompts: list[list[int]]) -> list[list[Continuation]]:
        width, result = max(map(len, prompts)), []
        for start in range(0, len(prompts), at_once):
            mine = (prompts[start : start + at_once] + prompts[-1:] * at_once)[:at_once]  # one shape, one compile
            prompts_here = to_devices(pad_rows(mine, width), mesh, "batch")
            forest, _ = rollout(published, *prompts_here, jax.random.fold_in(key, start), spec=spec)
            result += _by_prompt(forest, prompts, start, min(at_once, len(prompts) - start))
        return result

    return own


def _by_prompt(forest, prompts, start: int, count: int) -> list[list[Continuation]]:
    tokens_RT, length_R, finish_R = to_host((forest.tokens_RT, forest.length_R, forest.finish_R))
    size = forest.group_size
    return [
        [
            Continuation(start + p, prompts[start + p], tokens_RT[r, : length_R[r]].tolist(), bool(finish_R[r] == STOP))
            for r in range(p * size, (p + 1) * size)
        ]
        for p in range(count)
    ]
