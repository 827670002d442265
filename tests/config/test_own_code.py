"""The user's own code in a config: absolute once it is read, digested where it is written down."""

import json

import pytest

from iiblpo_jax import cli
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import files, validation
from iiblpo_jax.defaults import default_config

CONFIG = """
from iiblpo_jax.defaults import default_config
def get_config():
    c = default_config()
    c.task.path = "mine.py:make"
    c.task.options = {"verifier": "mine.py:judge", "a": {"verifier": "math"}, "b": {"verifier": "sub/deep.py:judge"}}
    c.objective.path = "package.module:make"
    return c
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.py").write_text(CONFIG)
    for name in ("mine.py", "sub/deep.py", "tracker.py"):
        (tmp_path / name).write_text("def make(): pass")
    return tmp_path


def test_a_config_files_paths_count_from_its_folder(folder):
    expected = {
        "task.path": f"{folder}/mine.py:make",
        "objective.path": "package.module:make",
        "task.options.verifier": f"{folder}/mine.py:judge",
        "task.options.b.verifier": f"{folder}/sub/deep.py:judge",
    }
    config = files.load_file(folder / "config.py")
    assert files.own_code_of(config) == expected
    files.make_absolute(config, "/elsewhere")
    assert files.own_code_of(config) == expected


def test_those_of_the_command_line_count_from_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder / "sub")
    arguments = ["verb", "--config=../config.py", "--config.tracker.path=../tracker.py:make", "--workdir=w"]
    config, _ = cli.parse(arguments)
    assert config.task.path == f"{folder}/mine.py:make"
    assert config.tracker.path == f"{folder}/tracker.py:make"


def test_config_json_has_digests_and_says_what_changed(folder):
    config = files.load_file(folder / "config.py")
    files.save(config, folder / "run")
    digests = json.loads((folder / "run" / "config.json").read_text())["digests"]
    assert set(digests) == set(files.own_code_of(config)) and len(digests["task.path"]) == 16
    assert files.resolve(files.load(folder / "run")) == files.resolve(config)
    assert files.changed_code(config, folder / "run") == []
    (folder / "sub" / "deep.py").write_text("def make(): return 1")
    [line] = files.changed_code(config, folder / "run")
    assert line.startswith(f"task.options.b.verifier = {folder}/sub/deep.py:judge has changed since")
    assert files.changed_code(config, folder / "no_run") == []
    files.save(default_config(), folder / "plain")
    assert "digests" not in json.loads((folder / "plain" / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.path": "mine.py"}, r"task\.path = 'mine\.py': use file\.py:name or package\.module:name"),
        ({"tracker.path": "/x/absent.py:T"}, r"tracker\.path = '/x/absent\.py:T': there is no file /x/absent\.py"),
        ({"task.options": {"verifier": "no.py:f"}}, r"task\.options\.verifier = 'no\.py:f': there is no file"),
        ({"reward.max_failures": 2.0}, r"reward\.max_failures = 2\.0; use a number from 0 to 1"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(changes, message):
    config = default_config()
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(InputError, match=message):
        validation.validate(config)


def test_with_a_path_neither_the_name_nor_the_methods_options_are_asked():
    config = default_config()
    config.task.path = config.objective.path = "package.module:make"
    config.task.name = ""
    config.objective.options = {"anything": 1}
    config.objective.clip_low = 1.0
    validation.validate(config)
