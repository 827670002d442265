"""References to code of the user's own: found, loaded, digested, and refused in one line."""

import pickle
import sys

import pytest

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def test_a_file_and_the_module_beside_it(write):
    write("beside_mine.py", "FACTOR = 3")
    path = write("mine.py", "from beside_mine import FACTOR\ndef triple(x): return FACTOR * x\n")
    triple = own_code.load(f"{path}:triple", key="task.path")
    assert triple(2) == 6
    assert own_code.load("math:sqrt", key="task.path")(9.0) == 3.0
    assert pickle.loads(pickle.dumps(triple)) is triple


def test_a_file_that_is_called_like_a_module_hides_none(write):
    path = write("math.py", "def sqrt(x): return -1")
    assert own_code.load(f"{path}:sqrt", key="k")(9.0) == -1
    assert own_code.load("math:sqrt", key="k")(9.0) == 3.0


def test_an_edited_file_is_run_again_even_within_a_second(write):
    for value in (1, 2):
        path = write("edited.py", f"VALUE = {value}")
        assert own_code.load(f"{path}:VALUE", key="k") == value
    assert own_code.load(f"{path}:VALUE", key="k") == 2


def test_relative_files_count_from_a_folder_and_modules_do_not():
    assert own_code.absolute("a/b.py:f", "/x") == "/x/a/b.py:f"
    assert own_code.absolute("/a/b.py:f", "/x") == "/a/b.py:f"
    assert own_code.absolute("a.b:f", "/x") == "a.b:f"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent", None, "k = 'absent': use file.py:name or package.module:name"),
        ("{}/absent.py:f", None, r"there is no file .*/absent\.py; correct the path"),
        ("{}/mnie.py:f", "", r"there is no file .*/mnie\.py; did you mean mine\.py\?"),
        ("{}/mine.py:graed", "def grade(): pass", r"mine\.py has no graed; did you mean grade\?"),
        ("{}/mine.py:f", "\n1 +", r"SyntaxError: invalid syntax \(mine\.py line 2\); mend the code"),
        ("{}/mine.py:f", "\n\nimport absent_module", r"ModuleNotFoundError: .* \(mine\.py line 3\); mend the code"),
        ("absent_package.module:f", None, "ModuleNotFoundError: No module named 'absent_package'"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(write, tmp_path, name, text, message):
    if text is not None:
        write("mine.py", text)
    with pytest.raises(InputError, match=message):
        own_code.load(name.format(tmp_path), key="k")


def test_a_function_gets_what_it_has_parameters_for(write):
    path = write("mine.py", "def f(seed, *, size=1, **rest): return seed, size, rest\ndef g(size): return size\nH = 3")
    offered = {"seed": 7, "data_dir": None}
    assert own_code.call(f"{path}:f", offered, {"size": 2, "more": 3}, key="k") == (7, 2, {"more": 3})
    assert own_code.call(f"{path}:g", offered, {"size": 2}, key="k") == 2
    with pytest.raises(InputError, match=r"k = .*:g' has no parameter length; it has size"):
        own_code.call(f"{path}:g", offered, {"length": 2}, key="k")
    with pytest.raises(InputError, match=r"k = .*:g' needs size; give defaults, or set them among its options"):
        own_code.call(f"{path}:g", offered, {}, key="k")
    with pytest.raises(InputError, match=r"k = .*:H' is a int; name a function"):
        own_code.call(f"{path}:H", offered, {}, key="k")


def test_an_error_inside_has_the_line_of_the_users_own_file(write):
    path = write("mine.py", "import json\n\ndef f():\n    return json.loads('{')\n")
    with pytest.raises(InputError, match=r"k = .*:f': JSONDecodeError: .* \(mine\.py line 4\); mend the code"):
        own_code.call(f"{path}:f", {}, {}, key="k")


def test_the_digest_is_of_the_file_and_of_what_it_imports_from_beside(write):
    write("pack/__init__.py", "")
    write("pack/deep.py", "from . import deeper")
    write("pack/deeper.py", "X = 1")
    write("unused.py", "X = 1")
    path = write("mine.py", "import numpy, iiblpo_jax.cli\nfrom pack import deep\ndef f(): pass\n")
    first = own_code.digest(f"{path}:f")
    assert {p.name for p in own_code.sources(f"{path}:f")} == {"mine.py", "__init__.py", "deep.py", "deeper.py"}
    write("unused.py", "X = 2")
    assert own_code.digest(f"{path}:f") == first
    write("pack/deeper.py", "X = 2")
    assert own_code.digest(f"{path}:f") != first


def test_the_digest_of_a_module_is_that_of_its_package(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("own_package/__init__.py", "")
    write("own_package/one.py", "from own_package import two\nimport json")
    write("own_package/two.py", "X = 1")
    names = {path.name for path in own_code.sources("own_package.one:f")}
    assert names == {"one.py", "two.py", "__init__.py"}
    assert own_code.digest("absent_package.one:f") == ""
