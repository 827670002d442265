"""Text in, text out, against transformers on the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from iiblpo_jax import InputError, generate, load_model
from iiblpo_jax.model.files.loading import resolve
from iiblpo_jax.rollout.sampling import Sampling

EMBEDDED = resolve("package:iiblpo_jax/data/assets/arithmetic")
PROMPTS = ["7+8=", "2+3=", "9+8+7=", "1+2+3+4="]  # of three lengths: padding must not show
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED)


def test_greedy_equals_transformers_token_by_token(embedded):
    theirs = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    model, tokenizer = embedded
    texts = generate(model, tokenizer, PROMPTS, max_tokens=MAX_TOKENS)
    assert texts[1] == "2+3=5;#5"
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            row = theirs.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=list(tokenizer.stop_ids)
            )[0, len(ids) :].tolist()
        stopped = row[-1] in tokenizer.stop_ids
        assert tokenizer.encode(text) == (row[:-1] if stopped else row)  # one token a character
        assert stopped or len(row) == MAX_TOKENS


def test_ids_are_as_good_as_text_and_a_seed_decides_the_draw(embedded):
    model, tokenizer = embedded
    how = {"max_tokens": MAX_TOKENS, "sampling": Sampling(temperature=2.0)}
    texts = generate(model, tokenizer, PROMPTS, seed=3, **how)
    assert texts == generate(model, tokenizer, [tokenizer.encode(prompt) for prompt in PROMPTS], seed=3, **how)
    assert texts != generate(model, tokenizer, PROMPTS, seed=4, **how)


def test_a_code_stands_in_place_of_the_last_token(embedded):
    plus = embedded[1].encode("+")[-1]
    assert generate(*embedded, ["7+8=", "2+3="], max_tokens=4, code=plus) == generate(
        *embedded, ["7+8+", "2+3+"], max_tokens=4
    )


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "named"),
    [
        ([], 8, "at least one token"),
        (["2+3=", ""], 8, "at least one token"),
        ("2+3=", 8, "list of prompts"),
        ([[3, 17]], 8, "vocabulary of 17"),
        ([[-1]], 8, "vocabulary of 17"),
        (["2+3="], 253, "256 positions"),
    ],
)
def test_bad_prompts_are_refused(embedded, prompts, max_tokens, named):
    with pytest.raises(InputError, match=named):
        generate(*embedded, prompts, max_tokens=max_tokens)


def test_without_a_limit_it_fills_the_positions_that_are_left(embedded):
    """The embedded model has 256 positions, so 256 tokens would not fit behind any prompt."""
    assert generate(*embedded, ["2+3="]) == generate(*embedded, ["2+3="], max_tokens=MAX_TOKENS)
