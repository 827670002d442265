"""What a teacher says of a Forest, against a forward of whole rows; who may be a teacher at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax import InputError
from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.config.validation import mistakes
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.prompts import collate, tokenize
from iiblpo_jax.data.sums import make_sums
from iiblpo_jax.data.task import boxed_task, conversation
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import bind, hidden_states, logits
from iiblpo_jax.model.files.loading import load_config, load_model
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.step import specs
from iiblpo_jax.step.teacher import TeacherReader, check_teacher

P, G, S, T, K = 2, 2, 3, 4, 3
SHOWN = [[9, 8, 7, 6], [5, 4]]  # a longer and a shorter prompt than those that were asked
PROMPTS = [[1, 2], [3, 1, 2]]
RESPONSES = [[4, 5, 6, 7], [4, 5], [8, 9, 1], [8, 2, 2, 2]]
NEVER = (0, 22)


@pytest.fixture(scope="module")
def columns(tiny_config, tiny_params):
    """(reader settings) -> what it reads of RESPONSES."""

    def padded(rows, width):
        return jnp.asarray([[*row, *[0] * (width - len(row))] for row in rows]), jnp.asarray(list(map(len, rows)))

    tokens_RT, length_R = padded(RESPONSES, T)
    (prompt_PS, prompt_len_P), (shown_PS, shown_len_P) = padded(PROMPTS, S), padded(SHOWN, 5)
    zero_R = jnp.zeros(P * G, jnp.int32)
    forest = Forest(
        prompt_PS=prompt_PS,
        prompt_len_P=prompt_len_P,
        tokens_RT=tokens_RT,
        raw_logp_RT=tokens_RT * 0.0,
        entropy_RT=tokens_RT * 0.0,
        length_R=length_R,
        finish_R=zero_R + 1,
        parent_R=zero_R - 1,
        branch_at_R=zero_R,
        z_RZ=jnp.zeros((P * G, 0)),
        fallback_R=zero_R > 0,
        left_R=zero_R + 1.0,
    )
    gold = Gold((), *[zero_R] * 5, shown_PS, shown_len_P)
    reading = Reading(temperature=0.7, never_ids=NEVER, pack_tokens=16)

    def read(**how):
        reader = TeacherReader(model=tiny_config, reading=reading, dtype="float32", vocab_size=23, **how)
        return jax.jit(reader)(tiny_params, forest, gold)

    return read


def test_states_are_those_of_a_forward_after_the_prompt_with_the_answer(tiny_config, tiny_params, columns):
    found_RTD = columns(shown=True)["teacher_state"]
    prompts, lengths = [SHOWN[r // G] for r in range(P * G)], list(map(len, RESPONSES))
    rows = [[*prompt, *response, *[0] * 8][:8] for prompt, response in zip(prompts, RESPONSES, strict=True)]
    h_RCD = hidden_states(bind(tiny_config, tiny_params), jnp.asarray(rows))
    for r, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        np.testing.assert_allclose(found_RTD[r, :n], h_RCD[r, len(prompt) - 1 :][:n], atol=2e-5)
        assert not found_RTD[r, n:].any()


def test_likeliest_tokens_are_those_of_the_whole_softmax(tiny_config, tiny_params, columns):
    found = columns(top_k=K)
    prompts = [PROMPTS[r // G] for r in range(P * G)]
    rows = [[*prompt, *response, *[0] * 7][:7] for prompt, response in zip(prompts, RESPONSES, strict=True)]
    logits_RCV = np.float64(logits(bind(tiny_config, tiny_params), rows)) / 0.7
    for r, (prompt, response) in enumerate(zip(prompts, RESPONSES, strict=True)):
        logits_CV = logits_RCV[r]
        logits_CV[:, NEVER] = -np.inf
        p_TV = np.exp(logits_CV[len(prompt) - 1 :][: len(response)])
        p_TV /= p_TV.sum(-1, keepdims=True)
        tokens = np.asarray(found["teacher_token"][r, : len(response)])
        np.testing.assert_array_equal(tokens, np.argsort(-p_TV, -1)[:, :K])
        mine = np.exp(found["teacher_logp"][r, : len(response)])
        np.testing.assert_allclose(mine, np.take_along_axis(p_TV, tokens, -1), rtol=1e-4)


def test_a_prompt_with_its_answer():
    model = load_model(default_config().model.path)
    task = make_arithmetic(seed=0, k_min=3, k_max=3, train_size=4, heldout_size=2)
    prompts, _ = tokenize(task, task.train, model[1], 16, 8, shown=True)
    for prompt in prompts:
        assert model[1].decode(prompt.shown) == f"#{prompt.problem.answer};{prompt.problem.question}"
    batch = collate(prompts, (16, 8, 1), shown=20)
    assert batch.shown_PS.shape == (4, 20) and batch.shown_length_P.tolist() == [len(p.shown) for p in prompts]
    assert collate(prompts, (16, 8, 1)).shown_PS is None

    def turn(task, problem, hint):
        return conversation(task, problem, quote=lambda text: f"<{text}>", hint=hint)[-1]["content"]

    sums = make_sums(seed=0)
    problem = dataclasses.replace(sums.train[0], question="1 + 2", answer="3")
    assert turn(sums, problem, sums.answer_hint(problem)) == "Hint: <3>\nQ: <1 + 2> = ?\nA:"
    assert turn(sums, problem, "") == "Q: <1 + 2> = ?\nA:"
    boxed, asked = boxed_task("t", [], []), Problem(id="1", question="Why {hint}?", answer="6", task="t")
    assert turn(boxed, asked, boxed.answer_hint(asked)).endswith("\\boxed{}.\n\nHint: <The final answer is \\boxed{6}>")
    assert turn(boxed, asked, "x").startswith("<Why {hint}?>")
    assert not boxed.answer_hint(dataclasses.replace(asked, answer=""))


ARITHMETIC = "package:iiblpo_jax/data/assets/arithmetic"
COUNTDOWN = "package:iiblpo_jax/data/assets/countdown"


def test_a_teacher_reads_the_same_tokens():
    (model, tokenizer), (other, theirs) = load_model(ARITHMETIC), load_model(COUNTDOWN)
    check_teacher("here", model.config, tokenizer, model.config, tokenizer)
    with pytest.raises(InputError, match=r"^teacher\.path = there has another tokenizer than model\.path"):
        check_teacher("there", other.config, theirs, model.config, tokenizer)
    shorter = dataclasses.replace(model.config, vocab_size=model.config.vocab_size - 1)
    with pytest.raises(InputError, match="another tokenizer"):  # without a token that texts have
        check_teacher("here", shorter, tokenizer, model.config, tokenizer)


def with_teacher(**sections):
    config = default_config()
    config.train.prompts_per_step, config.rollout.max_prompt, config.rollout.max_tokens = 4, 8, 16
    config.distill.coef = 1.0
    for name, values in sections.items():
        config[name].update(values)
    return config


def test_who_reads_what(tiny_config):
    for kind, name, shown in (("answer", "policy", True), ("average", "average", False), ("model", "teacher", False)):
        config = with_teacher(teacher={"kind": kind, "path": ARITHMETIC * (kind == "model")})
        [(weights, reader)] = specs.inform_spec(config, tiny_config, 0).readers
        assert (weights, reader.shown, specs.averages(config)) == (name, shown, kind == "average")
        assert reader.model == (load_config(ARITHMETIC) if kind == "model" else tiny_config)
        assert specs.objective(config).needs == ("teacher_state",)
    config.distill.coef = 0.0
    assert not specs.inform_spec(config, tiny_config, 0).readers and not specs.objective(config).needs


def test_what_a_teacher_cannot_be():
    def lines(**sections):
        return [line for line in mistakes(with_teacher(**sections)) if "teacher" in line]

    assert not lines() and not lines(teacher={"kind": "model", "path": ARITHMETIC})
    assert lines(teacher={"kind": "model"})[0].startswith("teacher.kind = model needs teacher.path")
    assert lines(teacher={"path": "x"})[0].startswith("teacher.path = 'x' is read by nobody with teacher.kind = answer")
    config = with_teacher(distill={"top_k": 99})
    model = load_config(config.model.path)
    with pytest.raises(InputError, match=r"^distill\.top_k = 99 and the vocabulary has"):
        specs.check_distillation(config, model)
    config = with_teacher(teacher={"kind": "model", "path": ARITHMETIC}, rollout={"max_tokens": 10**6})
    with pytest.raises(InputError, match="positions and the teacher has"):
        specs.check_distillation(config, model)
