"""Which continuations the latent stage sees, and that own samples are the policy's."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.defaults import default_config
from iiblpo_jax.latents.continuations import Question, gather, policy_sampler, training_questions
from iiblpo_jax.latents.features import Continuation
from iiblpo_jax.model.decoder import bind, logits

STOP = 1


def problem(i, rationale):
    return SimpleNamespace(task="t", id=f"t/{i}", rationale=rationale)


class Letters:
    stop_ids = (9, 8)

    @staticmethod
    def quote(text):
        return text

    @staticmethod
    def encode(text):
        return [ord(c) - ord("a") for c in text]


def batch(*items):
    tokens = [[i, i + 1, 0] for i, _ in items]
    problems = tuple(problem(*item) for item in items)
    return SimpleNamespace(tokens_PS=np.array(tokens), length_P=np.array([2] * len(items)), problems=problems)


def test_questions_are_distinct_unpadded_and_end_in_a_stop_token():
    batches = [batch((1, "ab"), (2, None)), batch((1, "ab"), (3, "c")), batch((4, "d"), (5, "e"))]
    questions = training_questions(iter(batches), Letters, 5)
    assert questions == [
        Question([1, 2], [0, 1, 9]),
        Question([2, 3], None),
        Question([3, 4], [2, 9]),
        Question([4, 5], [3, 9]),
    ]


def test_gold_and_own_samples_are_half_and_half_where_there_is_gold():
    questions = [Question([1], [7, 9]), Question([2], None)]

    def own(prompts):
        return [[Continuation(i, p, [3, s], False) for s in range(3)] for i, p in enumerate(prompts)]

    got = gather(questions, own)
    gold = [c for c in got if c.stopped]
    assert len(got) == 9 and gold == [Continuation(0, [1], [7, 9], True)] * 3
    assert [c.prompt_id for c in got if not c.stopped] == [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def sampled(tiny_config, tiny_params):
    config = default_config()
    config.rollout.update(
        {"slots": 4, "refill_at": 1, "max_tokens": 6, "max_prompt": 4, "temperature": 1.0, "top_p": 1.0, "top_k": 1}
    )
    config.train.prompts_per_step, config.latent.samples = 2, 2
    prompts = [[3, 4, 5], [6], [7, 8]]  # three prompts in steps of two: the last step is filled up
    own = policy_sampler(config, tiny_config, tiny_params, (STOP, 2), jax.random.key(0))
    return prompts, own(prompts)


def test_own_samples_are_the_policys(tiny_config, tiny_params, sampled):
    """top_k = 1 makes sampling greedy: every sample is the argmax chain of its own prompt."""
    prompts, samples = sampled
    greedy = jax.jit(lambda row_C: logits(bind(tiny_config, tiny_params), row_C[None])[0].argmax(-1))
    for i, prompt in enumerate(prompts):
        chain = []
        while len(chain) < 6 and (not chain or chain[-1] not in (STOP, 2)):
            row = prompt + chain
            chain.append(int(greedy(jnp.array(row + [0] * (9 - len(row))))[len(row) - 1]))  # one shape for all
        assert samples[i] == [Continuation(i, prompt, chain, chain[-1] in (STOP, 2))] * 2
