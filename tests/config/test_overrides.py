"""Single values of a config from the command line: every kind, written as people write it, and every mistake."""

import math

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.overrides import override
from iiblpo_jax.defaults import default_config


def changed(*arguments):
    return override(default_config(), [f"--config.{argument}" for argument in arguments])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("train.steps=7", 7),
        ("optim.lr=1", 1.0),
        ("psa.half_life=inf", math.inf),
        ("model.path=007", "007"),
        ("eval.greedy=False", False),
        ("eval.greedy=t", True),
        ("eval.k=1,2", (1, 2)),
        ("eval.k=(1,2)", (1, 2)),
        ("eval.k=[4]", (4,)),
        ("eval.k=4", (4,)),
        ("eval.tasks=math500,aime24", ("math500", "aime24")),
        ("eval.tasks='math500', 'aime24'", ("math500", "aime24")),
        ("eval.tasks=sums", ("sums",)),
        ("eval.tasks=", ()),
        ("objective.clip_low=0.2", 0.2),
        ("objective.clip_low=None", None),
        ("task.options={'k_max': 5, 'ks': [1, 2]}", {"k_max": 5, "ks": (1, 2)}),
        ("task.options={}", {}),
    ],
)
def test_a_value_of_every_kind(argument, value):
    section, name = argument.partition("=")[0].split(".")
    found = changed("task.options.k_min=3", argument)[section][name]
    assert (found if value is None or isinstance(value, tuple | str) else type(value)(found)) == value


def test_keys_of_free_form_dicts_take_whatever_stands_there():
    config = changed("task.options.k_max=5", "task.options.k_max=abc", "task.mix.sums=2", "task.options.sums.low=true")
    assert config.task.options.to_dict() == {"k_max": "abc", "sums": {"low": True}} and config.task.mix.sums == 2
    assert config.is_locked


def test_switches_need_no_value():
    config = override(default_config(), ["--noconfig.eval.greedy", "--config.train.memory_report", "-config.eval.k=1"])
    assert (config.eval.greedy, config.train.memory_report, config.eval.k) == (False, True, (1,))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.steps=", "--config.train.steps=: train.steps takes a whole number, 1 or more"),
        ("train.steps=1e3", "--config.train.steps=1e3: train.steps takes a whole number, 1 or more"),
        (f"train.steps={'9' * 5000}", "9...: train.steps takes a whole number, 1 or more"),
        ("eval.greedy=maybe", "--config.eval.greedy=maybe: eval.greedy takes True or False"),
        ("eval.k=1,x", "--config.eval.k=1,x: eval.k takes a list such as 1,2, each 1 or more"),
        ("objective.clip_low=half", "--config.objective.clip_low=half: objective.clip_low takes a number, 0 or"),
        ("task.options=5", "--config.task.options=5: task.options takes a dict such as {'name': 1}"),
        ("task.options={1: 2}", "--config.task.options={1: 2}: task.options takes a dict"),
        ("task.options.k_max", "--config.task.options.k_max has no value; write --config.task.options.k_max=VALUE"),
        ("optim.lr", "--config.optim.lr has no value; write --config.optim.lr=VALUE"),
        ("optim=1", "optim is a section of the config; set its keys one by one, such as --config.optim.lr=VALUE"),
        ("optm.lr=1", "unknown config key optm.lr; did you mean optim.lr?"),
    ],
)
def test_a_mistake_names_the_key_and_what_it_takes(argument, message):
    with pytest.raises(InputError) as caught:
        changed(argument)
    assert message in str(caught.value)
    with pytest.raises(InputError, match="--noconfig switches off and takes no value"):
        override(default_config(), ["--noconfig.eval.greedy=True"])
