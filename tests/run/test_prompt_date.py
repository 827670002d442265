"""The day of a run: written down once, read ever after, and only where a template asks."""

import datetime
import json
import shutil

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.task import boxed_task, render
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.files.loading import resolve
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.run.prompt_date import FILE, keep_date
from iiblpo_jax.run.restored import load_policy
from iiblpo_jax.run.setup import set_up

DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
TODAY, TOMORROW = datetime.date(2026, 11, 30), datetime.date(2026, 12, 1)


@pytest.fixture
def tokenizer(letters):
    return lambda template, day: Tokenizer(HuggingFaceBackend(letters(template))).dated_on(day)


def prompt(tokenizer):
    problem = Problem(id="1", question="2+2?", answer="4", task="math")
    return "".join(map(chr, render(boxed_task("math", [problem], []), problem, tokenizer)))


def test_a_run_has_the_prompts_of_its_first_day(tokenizer, tmp_path):
    workdir = tmp_path / "runs" / "first"
    first = prompt(keep_date(tokenizer(DATED, TODAY), workdir))
    assert first.startswith("30 Nov 2026")
    assert prompt(keep_date(tokenizer(DATED, TOMORROW), workdir)) == first
    assert json.loads((workdir / FILE).read_text()) == {"date": "2026-11-30"}
    assert prompt(keep_date(tokenizer(DATED, TOMORROW), tmp_path / "second")).startswith("01 Dec 2026")


def test_every_stage_of_a_run_is_told_its_day(tmp_path):
    """Setting up, for training and the latent stage, and loading a policy, for evaluation."""
    shutil.copytree(resolve(default_config().model.path), tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(DATED)
    config = default_config()
    config.model.path = str(tmp_path / "model")
    config.task.options = {"train_size": 4, "heldout_size": 1}
    config.rollout.max_prompt, config.rollout.max_tokens = 8, 16
    (tmp_path / FILE).write_text('{"date": "2026-11-30"}')
    assert load_policy(config, tmp_path).tokenizer.date == TODAY
    assert set_up(config, tmp_path).tokenizer.date == TODAY != set_up(config).tokenizer.date


def test_nothing_is_written_where_no_template_asks(tokenizer, tmp_path):
    for template in (None, "{{ messages[0].content }}"):
        asked = tokenizer(template, TODAY)
        assert keep_date(asked, tmp_path) is asked
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{}", '{"date": "soon"}', '{"date": 5}', "["])
def test_a_damaged_file_is_refused(tokenizer, tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=r"prompts\.json .*write the day the run began into it, or use another"):
        keep_date(tokenizer(DATED, TODAY), tmp_path)
