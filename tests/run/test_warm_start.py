"""The embedded checkpoints: they load, and are right as often as they were made to be."""

import random
from pathlib import Path

import jax
import numpy as np
import pytest

from iiblpo_jax.data import countdown
from iiblpo_jax.model.files.loading import load_params
from iiblpo_jax.model.tokens import tokenizer as tokenizers
from iiblpo_jax.run import warm_start

ASSETS = Path(warm_start.__file__).parents[1] / "data" / "assets"


def test_every_shipped_checkpoint_can_be_made_again_and_is_small():
    assert set(warm_start.CHECKPOINTS) == {folder.name for folder in ASSETS.iterdir()}
    assert all((folder / "model.safetensors").stat().st_size < 4 * 2**20 for folder in ASSETS.iterdir())


def test_the_command_line_knows_their_names():
    assert warm_start.arguments([]).name == "arithmetic"
    for name in warm_start.CHECKPOINTS:
        assert warm_start.arguments(["--name", name]).name == name
    with pytest.raises(SystemExit):
        warm_start.arguments(["--name", "algebra"])


@pytest.mark.parametrize(
    ("name", "problems", "low", "high"),
    [
        ("arithmetic", 64, 0.4, 0.56),
        ("arithmetic_long", 64, 0.3, 0.56),
        ("arithmetic_longer", 16, 0.1, 0.56),
        ("countdown", 64, 0.03, 0.17),
    ],
)
def test_sampled_accuracy(name, problems, low, high):
    """4 samples each: within three standard errors of what was measured on 512 problems."""
    kind = warm_start.CHECKPOINTS[name]
    model, params = load_params(ASSETS / name)
    tokenizer = tokenizers.load_directory(ASSETS / name)
    task = kind.task(seed=0, train_size=1)
    length = max(len(tokenizer.encode(problem.rationale or "")) for problem in task.heldout) + 1
    rewards = warm_start.sampled_accuracy(
        params, model, task, task.heldout[:problems], tokenizer, length, 4, jax.random.key(0)
    )
    assert rewards.shape == (problems, 4)
    assert low < rewards.mean() < high


def test_countdown_is_taught_on_true_chains_of_which_most_miss():
    problems = countdown.make_countdown(seed=0, train_size=2000, heldout_size=1).train
    rng, reached = random.Random(0), []
    for problem in problems:
        steps, _, final = warm_start.some_miss(problem, rng).rpartition("#")
        value = None
        for step in steps.removesuffix(";").split(";"):
            left, _, result = step.partition("=")
            assert value is None or left.startswith(value)
            assert eval(left) == int(result)
            value = result
        assert final == value
        reached.append(final == problem.answer)
    assert 0.1 < np.mean(reached) < 0.35


def test_one_row_in_ten_has_no_question():
    folder = ASSETS / "countdown"
    tokenizer = tokenizers.load_directory(folder)
    problems = countdown.make_countdown(seed=0, train_size=20, heldout_size=1).train
    tokens_NC, prompt_N, response_N = warm_start.rows_of(problems, [p.rationale for p in problems], tokenizer)
    for i, (row, prompt, response) in enumerate(zip(tokens_NC, prompt_N, response_N, strict=True)):
        asked = tokenizer.decode(row[:prompt].tolist())
        assert asked == problems[i].question if i % 10 else prompt == 1
        assert tokenizer.decode(row[prompt : prompt + response - 1].tolist()) == problems[i].rationale
        assert row[prompt + response - 1] == tokenizer.eos_id and (row[prompt + response :] == 0).all()
