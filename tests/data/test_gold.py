import time

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import gold
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.task import boxed_task
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.verifier import Problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", "72"),
        (" 1,234,567 ", "1234567"),
        ("$1,200.50", "1200.50"),
        (r"\$5", "5"),
        ("$12$", "12"),
        ("-3", "-3"),
        ("3/4", "3/4"),
        (r"336^\circ", "336"),
        ("073", "073"),
        ("1,2", None),  # two numbers, not one with a separator
        ("12 apples", None),
        ("", None),
        ("x", None),
    ],
)
def test_number(text, value):
    assert gold.number(text) == value


def test_bare():
    assert gold.bare(r" $\frac{1}{2}$ ") == r"\frac{1}{2}"
    assert gold.bare("$$x$$") == "x"
    assert gold.bare("$") == ""
    assert gold.bare("$69$,$84$") == "69,84"  # OlympiadBench
    assert gold.bare("$f(x)=-1$,$f(x)=x+1$") == "f(x)=-1,f(x)=x+1"
    assert gold.bare(r"\$5") == r"\$5"


def test_check_names_the_place_of_a_gold_answer_that_does_not_parse():
    good = Problem(id="a", question="?", answer=r"\frac{1}{2}", task="math")
    bad = Problem(id="b", question="?", answer=r"\frac{1}{", task="math", metadata={"place": "train.jsonl row 2"})
    gold.check_gold(boxed_task("math", [good], []))
    with pytest.raises(InputError, match=r"train.jsonl row 2: gold answer .* does not parse; correct or remove"):
        gold.check_gold(boxed_task("math", [good], [bad]))


def test_generated_answers_pass():
    gold.check_gold(make_arithmetic(seed=0, train_size=10, heldout_size=10))


def test_an_answer_that_hangs_the_parser_is_not_readable(monkeypatch):
    monkeypatch.setattr(gold, "PARSE_SECONDS", 0.5)
    gold._reader.cache_clear()
    start = time.monotonic()
    assert not gold.readable(Math(), "(" * 450 + "1" + ")" * 450)
    assert gold.readable(Math(), "\\frac{22}{7}")
    assert time.monotonic() - start < 20
    gold._reader(Math()).close()
    gold._reader.cache_clear()


def test_a_long_answer_that_is_almost_a_number_is_refused_at_once():
    start = time.monotonic()
    assert gold.number("1" * 1_000_000 + "x") is None and not gold.readable(Math(), "1" * 1_000_000 + "x")
    assert time.monotonic() - start < 1
