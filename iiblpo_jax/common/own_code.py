"""Code of the user's own that a config names: `file.py:name` or `package.module:name`.

A file is run as a module of its own; modules that stand beside it can be imported from it. It is a program and runs
with the rights of the user, like a config file. Nothing here imports jax: worker processes load verifiers with it.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iiblpo_jax.common.errors import InputError

FORM = "file.py:name or package.module:name"
PREFIX = "own_code_"  # of the names of modules that are files


def absolute(reference: str, folder: Path | str) -> str:
    """The reference with the absolute path of its file, which counts from `folder`; modules stay as they are."""
    source, name = _split(reference)
    return f"{os.path.abspath(Path(folder, Path(source).expanduser()))}:{name}" if _is_file(source) else reference


def mistake(reference: str) -> str:
    """What is wrong with a reference as far as one can tell without running anything; empty if nothing is."""
    source, name = _split(reference)
    if not (source and name.isidentifier()):
        return f"use {FORM}"
    if not _is_file(source) or Path(source).is_file():
        return ""
    path = Path(source)
    near = difflib.get_close_matches(path.name, [other.name for other in path.absolute().parent.glob("*.py")], n=1)
    return f"there is no file {path.absolute()}{f'; did you mean {near[0]}?' if near else '; correct the path'}"


def load(reference: str, *, key: str) -> Any:
    """What a reference names.

    Args:
      reference: `file.py:name` (a relative file counts from the working directory) or `package.module:name`.
      key: the knob it stands in, for the messages.

    Raises:
      InputError: no such file or module, an error inside it, or no such name in it.
    """
    if wrong := mistake(reference):
        raise InputError(f"{key} = {reference!r}: {wrong}")
    source, name = _split(reference)
    try:
        module = load_file(source) if _is_file(source) else importlib.import_module(source)
    except Exception as error:
        raise error_inside(error, reference, key=key) from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        hint = f"did you mean {near[0]}?" if near else "define it there"
        raise InputError(f"{key} = {reference!r}: {source} has no {name}; {hint}")
    return getattr(module, name)


def call(reference: str, offered: Mapping[str, Any], options: Mapping[str, Any], *, key: str) -> Any:
    """Calls the function that a reference names.

    Args:
      reference: see `load`.
      offered: arguments that it gets where it has a parameter of that name.
      options: arguments that it must have a parameter for: those that the user wrote.
      key: the knob, for the messages.

    Raises:
      InputError: see `load`; or the name is no function, an option is unknown or missing, or it raised.
    """
    function = load(reference, key=key)
    if not callable(function):
        raise InputError(f"{key} = {reference!r} is a {type(function).__name__}; name a function")
    arguments = arguments_of(function, offered, options, what=f"{key} = {reference!r}")
    try:
        return function(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise error_inside(error, reference, key=key) from error


def arguments_of(function: Callable, offered: Mapping[str, Any], options: Mapping[str, Any], *, what: str) -> dict:
    """`offered` as far as the function has parameters for it, and all of `options`.

    Raises:
      InputError: an option that there is no parameter for, or a parameter that nobody gives.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in ones have none
        raise InputError(f"{what} does not say what it takes; name a function written in Python") from None
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = sorted(set(options) - set(named))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        listed = ", ".join(sorted(set(named) - set(offered))) or "no options"
        raise InputError(f"{what} has no parameter {', '.join(unknown)}; it has {listed}")
    given = {name: value for name, value in offered.items() if name in named} | dict(options)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in given]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}; give defaults, or set them among its options")
    return given


def load_file(path: Path | str) -> types.ModuleType:
    """A file as a module, run again where its text has changed since.

    It is compiled from its text: Python's own cache goes by the second, and a file may be edited twice in one.
    """
    path = Path(path).absolute()
    text = path.read_bytes()
    name, digest = module_name(path), hashlib.sha256(text).hexdigest()
    found = sys.modules.get(name)
    if found is not None and vars(found)["__digest__"] == digest:
        return found
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that no file hides an installed module
    module = types.ModuleType(name)
    vars(module).update(__file__=str(path), __digest__=digest)
    sys.modules[name] = module  # before it runs: pickles and dataclasses look their module up
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def module_name(path: Path) -> str:
    """The name of a file as a module: the same in every process, and that of no other module."""
    return f"{PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"


def loaded_files() -> dict[str, str]:
    """Module name -> path of every file that has been loaded."""
    return {n: str(m.__file__) for n, m in list(sys.modules.items()) if n.startswith(PREFIX)}


def digest(reference: str) -> str:
    """A digest of the text behind a reference: of its file, and of the modules beside it that it imports; empty where
    there is no text, as for a module that is not there."""
    found = hashlib.sha256()
    for path in sorted(sources(reference)):
        found.update(path.read_bytes())
        found.update(b"\0")
    return found.hexdigest()[:16] if sources(reference) else ""


def sources(reference: str) -> set[Path]:
    """The files behind a reference: a file with the modules in its folder that it imports, a module with those of its
    own package; what they import in turn included."""
    source, _ = _split(reference)
    if _is_file(source):
        first, root, inside = Path(source).absolute(), Path(source).absolute().parent, ""
    else:
        try:
            spec = importlib.util.find_spec(source)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is None or not spec.has_location or not spec.origin:
            return set()
        package = spec.origin.endswith("__init__.py")
        first, inside = Path(spec.origin), source.partition(".")[0]
        root = first.parents[source.count(".") + package]
    found, waiting = set(), [first]
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += [p for name in _imported(path, root) if (p := _beside(root, name, inside)) is not None]
    return found


def error_inside(error: Exception, reference: str, *, key: str) -> InputError:
    """An exception out of the user's code as one line with its place."""
    if isinstance(error, InputError):
        return error
    return InputError(f"{key} = {reference!r}: {described(error)}; mend the code")


def described(error: BaseException) -> str:
    """`ValueError: no (my_task.py line 12)`: the error, and where: in the user's own file, or else where it arose."""
    frames = list(traceback.walk_tb(error.__traceback__))
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    mine = [place for place in places if place[0] in loaded_files().values()]
    filename, line = (mine or places or [("", None)])[-1]
    text = str(error)
    if isinstance(error, SyntaxError):
        filename, line, text = error.filename or filename, error.lineno, error.msg
    where = f" ({Path(filename).name} line {line})" if filename else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def _split(reference: str) -> tuple[str, str]:
    source, _, name = reference.rpartition(":")
    return source.strip(), name.strip()


def _is_file(source: str) -> bool:
    return source.endswith(".py") or "/" in source


def _imported(path: Path, root: Path) -> Iterator[str]:
    """Dotted names that a file imports, relative ones counted from `root`; none where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    own = path.relative_to(root).parent.parts if path.is_relative_to(root) else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = own[: len(own) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from filter(None, [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)])


def _beside(root: Path, name: str, inside: str) -> Path | None:
    """The file of a module below `root`; None where it is none of the user's own (`inside`: of this package alone)."""
    top, path = name.partition(".")[0], root.joinpath(*name.split("."))
    if top == "iiblpo_jax" or (inside and top != inside):
        return None
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
