"""Configs in files: Python files that a user writes, config.json that a run leaves in its workdir.

A config file is a program: `load_file` runs it with the rights of the user, so it is read like any other code before it
is used. The config.json of a workdir is data: `load` parses it, compares every key and type with the defaults, and runs
nothing.
"""

import difflib
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from iiblpo_jax.common import json_input, own_code
from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.common.jsonl import write_atomic
from iiblpo_jax.config.defaults import KNOBS, REMOVED, RunConfig, default_config
from iiblpo_jax.config.knobs import SHOWN, shown

MAX_CONFIG = 1 << 20  # bytes of a config.json
OWN_CODE_KEYS = ("task.path", "objective.path", "tracker.path")
DIGESTS = "digests"  # the key of config.json that is no section
FREE_FORM = tuple(key for key in KNOBS if KNOBS[key].kind is dict)  # their keys are named by the task or the method


def flatten(tree, prefix: str = "") -> dict:
    """Dotted key -> value of nested dicts; free-form dicts stay whole."""
    flat = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict | dict) and key not in FREE_FORM:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def unknown_key(key: str, known: Iterable[str]) -> InputError:
    """The error for a key that no config has, with the nearest one that exists."""
    known = list(known)
    if key in REMOVED:
        return InputError(f"config key {key} is no more: {REMOVED[key][1]}")
    names = {name.rsplit(".", 1)[-1] for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:
        last = difflib.get_close_matches(key.rsplit(".", 1)[-1], names, n=1, cutoff=0.7)
        near = [name for name in known if name.rsplit(".", 1)[-1] in last]
    near += difflib.get_close_matches(key, {name.split(".")[0] for name in known}, n=1, cutoff=0.75)  # a section
    if near:
        return InputError(f"unknown config key {key}; did you mean {' or '.join(near)}?")
    section = [name for name in known if name.split(".")[0] == key.split(".")[0]]
    listed = section or sorted({name.split(".")[0] for name in known})
    return InputError(f"unknown config key {key}; known {'keys' if section else 'sections'}: {', '.join(listed)}")


def resolve(config: RunConfig) -> dict:
    """The config as plain JSON: lists for tuples, "inf" for infinity (strict JSON has none)."""

    def plain(value) -> Any:
        if isinstance(value, ConfigDict | dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(config)


def own_code_of(config: RunConfig) -> dict[str, str]:
    """Key -> reference of all code of the user's own that a config names (common/own_code.py)."""
    return {key: holder[name] for key, holder, name in _own_code(config)}


def make_absolute(config: RunConfig, folder: Path | str) -> None:
    """Counts relative files of `own_code_of` from a folder, in place: that of the config file which names them, or the
    working directory for what the command line says. So they are found again wherever a run goes on."""
    for _, holder, name in _own_code(config):
        holder[name] = own_code.absolute(holder[name], folder)


def _own_code(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """(key, section or dict, name in it) of every reference to the user's own code."""
    for key in OWN_CODE_KEYS:
        section, name = key.split(".")
        held = config.get(section, {})
        if isinstance(held.get(name), str) and held[name]:
            yield key, held, name
    options = config.get("task", {}).get("options", {})
    for key, held in [("task.options", options), *((f"task.options.{name}", options[name]) for name in options)]:
        verifier = held.get("verifier") if isinstance(held, ConfigDict | dict) else None
        if isinstance(verifier, str) and ":" in verifier:
            yield f"{key}.verifier", held, "verifier"


def save(config: RunConfig, workdir: Path | str) -> None:
    """Writes `workdir`/config.json: the config, and digests of the user's own code that it names."""
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    digests = {key: own_code.digest(reference) for key, reference in own_code_of(config).items()}
    content = resolve(config) | ({DIGESTS: digests} if digests else {})
    write_atomic(path, json.dumps(content, indent=2) + "\n")


def changed_code(config: RunConfig, workdir: Path | str) -> list[str]:
    """A line for all of the user's own code that is another text than when config.json of a workdir was written; none
    where there is no config.json that can be read."""
    try:
        stored = _stored(Path(workdir) / "config.json")
    except InputError:
        return []
    if not isinstance(stored, dict) or not isinstance(digests := stored.get(DIGESTS), dict):
        return []
    return [
        f"{key} = {reference} has changed since {workdir}/config.json was written; what it says now counts"
        for key, reference in own_code_of(config).items()
        if key in digests and digests[key] != own_code.digest(reference)
    ]


def _stored(path: Path) -> Any:
    """What a config.json holds, None where there is none."""
    try:
        return json_input.load(path, mend="pass --config=FILE instead", limit=MAX_CONFIG)
    except FileNotFoundError:
        return None


def load(workdir: Path | str) -> RunConfig:
    """The config that `save` wrote, by this version or an earlier one: keys that it lacks have their defaults.

    A key that this version has no more is dropped, with a line on stderr, if it had its default.

    Raises:
      InputError: there is none, it is not JSON, or it names keys or values that this version does not have; all of
        them are named.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; give the workdir of a run, or --config=FILE")
    stored = _stored(path)
    if not isinstance(stored, dict):
        raise InputError(f"{path} holds no config; pass --config=FILE instead")
    stored.pop(DIGESTS, None)
    config, found = default_config(), []
    for key, value in surprise_as_weight(_chain_as_tree(flatten(stored), path)).items():
        try:
            _restore(config, path, key, value)
        except InputError as error:
            found.append(str(error))
    if found:
        raise InputError.of(found)
    return config


def _chain_as_tree(stored: dict, path: Path) -> dict:
    """Before there was branch.depth, branch.parent = previous grew a chain of k: now one branch a parent, k deep."""
    k = stored.get("branch.k")
    if "branch.depth" in stored or stored.get("branch.parent") != "previous" or not isinstance(k, int) or k < 1:
        return stored
    warn(
        f"{path}: a chain of {k} branches (branch.parent=previous without branch.depth) is read as branch.k=1 "
        f"branch.depth={k}, the same tree; each branches off among its parent's own tokens now"
    )
    return stored | {"branch.k": 1, "branch.depth": k}


def surprise_as_weight(stored: dict) -> dict:
    """ib.surprise was the power of what now is advantage.weight = surprise; 0 was none. Another value stays, and is
    refused."""
    power = stored.get("ib.surprise")
    if "advantage.weight" in stored or not isinstance(power, int | float) or not 0 <= power < math.inf:
        return stored
    rest = {key: value for key, value in stored.items() if key != "ib.surprise"}
    return rest | (
        {"advantage.weight": "surprise", "advantage.power": power} if power else {"advantage.weight": "none"}
    )


def _restore(config: RunConfig, path: Path, key: str, value) -> None:
    """Sets one key of a stored config."""
    if key in REMOVED:
        default, did = REMOVED[key]
        if value != default:
            raise InputError(
                f"{path}: {key} = {shown(value)}, and there is no such knob any more: {did}; delete the key, or go on "
                "with the version that wrote it"
            )
        warn(f"{path}: {key} is dropped: {did}")
        return
    if key not in KNOBS:
        raise unknown_key(key, KNOBS)
    wrong = InputError(f"{path}: {key} = {shown(value)}; use {KNOBS[key].wanted_kind}")
    if not KNOBS[key].is_kind(restored := KNOBS[key].restored(value)):  # its range is a matter of `validate`
        raise wrong
    section, name = key.split(".")
    try:
        config[section][name] = restored
    except (TypeError, ValueError, AttributeError, KeyError):  # keys of a dict that are no names
        raise wrong from None


def load_file(path: Path | str) -> RunConfig:
    """The config that a Python file's `get_config()` returns.

    Raises:
      InputError: no such file, no get_config, an error inside it, or something else than a ConfigDict.
    """
    path = str(path)
    if not Path(path).is_file():
        raise _absent(Path(path))
    spec = importlib.util.spec_from_file_location("run_config", path)
    if spec is None:
        raise InputError(f"config file {path} is no Python file; give one that ends in .py and defines get_config()")
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"config file {path} has no get_config(); add one that returns default_config(), changed")
        config = module.get_config()
    except InputError:
        raise
    except Exception as error:
        raise _file_error(error, path) from error
    if not isinstance(config, RunConfig):
        raise InputError(f"get_config() of {path} returned a {type(config).__name__}; return default_config(), changed")
    make_absolute(config, Path(path).absolute().parent)
    return config.lock()


def _absent(path: Path) -> InputError:
    """The error for a config file that does not exist: the nearest name, beside it or among those in configs/."""
    found = sorted({*map(str, path.parent.glob("*.py")), *map(str, Path("configs").glob("*.py"))})
    stems = {Path(name).stem: name for name in found}
    if near := difflib.get_close_matches(path.stem, stems, n=1):
        return InputError(f"config file {path} does not exist; did you mean {stems[near[0]]}?")
    shipped = ", ".join(name for name in found if name.startswith("configs"))
    return InputError(f"config file {path} does not exist; give {shipped or 'a Python file with get_config()'}")


def _file_error(error: Exception, path: str) -> InputError:
    where = f"config file {path}{_line_of(error, path)}"
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace and trace.tb_frame.f_globals.get("__name__") == ConfigDict.__module__:
        return InputError(f"{where}: {_refusal(str(error))}")
    return InputError(f"{where}: {type(error).__name__}: {error}; mend the file")


def _refusal(text: str) -> str:
    """What a ConfigDict means by the text of its exception, in our words."""
    if absent := re.search(r'Key "(\w+)" does not exist', text) or re.match(r"\W*(\w+)\\?'", text):
        return str(unknown_key(absent[1], flatten(default_config())))
    if kind := re.match(r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type ", text, re.DOTALL):
        keys = [key for key in KNOBS if key.endswith(f".{kind[1]}")]
        if not keys:
            return f"{kind[1]} is a section of the config; set its keys one by one"
        takes = " and ".join(f"{key} takes {KNOBS[key].wanted_kind}" for key in keys)
        return f"{kind[1]} = {kind[2][:SHOWN]}; {takes}"
    return "keys can be set, not added, deleted or named with a dot in a string; write c.SECTION.KEY = VALUE"


def _line_of(error: Exception, path: str) -> str:
    """ " line N" of the config file in which an exception arose."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(Path(path).absolute()):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" line {line}" if line else ""
