"""The command line of every verb: flags, config overrides, one-line errors, the compilation cache.

A verb ends with

    if __name__ == "__main__":
        cli.run(main)

where `main(config, workdir)` is the whole program. Flags of its own are absl flags defined at the top of its module.
Whatever the user got wrong ends in one line on stderr that names it and the mend, with exit status 2.
"""

import ast
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import files, validation
from iiblpo_jax.config.defaults import KNOBS, RunConfig
from iiblpo_jax.config.knobs import KINDS
from iiblpo_jax.devices import processes as distributed

CACHE = "IIBLPO_CACHE"  # environment variable: folder of compiled programs; empty switches the cache off

flags.DEFINE_string("workdir", "", "Folder of the run: config.json, metrics.jsonl, checkpoints/, report.html.")
flags.DEFINE_string("config", "", "Config file with get_config(); without it, the config.json of the workdir.")
_OVERRIDE = re.compile(r"^--?(no)?config\.")


def run(main: Callable[[RunConfig, Any], None], *, needs_workdir: bool = True) -> None:
    """Parses sys.argv, checks the config, calls `main(config, workdir)` and exits.

    Args:
      main: the verb. InputError raised anywhere inside it is printed as one line.
      needs_workdir: --workdir must be given (`plan` writes nothing and does without).

    Raises:
      SystemExit: status 2 after bad input, 130 after an interruption, 0 otherwise.
    """
    try:
        config, workdir = parse(sys.argv, needs_workdir=needs_workdir)
        enable_compilation_cache()
        with distributed.initialize():
            main(config, workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@functools.cache
def checkpoint_flag() -> flags.FlagHolder:
    """The flag --checkpoint, of the verbs that take one of a workdir."""
    which = "Which checkpoint of the workdir: latest, best (by mean pass@1), or the number of a step."
    return flags.DEFINE_string("checkpoint", "latest", which)


def parse(argv: list[str], *, needs_workdir: bool = True) -> tuple[RunConfig, Path | None]:
    """The checked, locked config and the workdir that a command line asks for.

    Raises:
      InputError: unknown flag, no usable config file; or all that is wrong with the config: unknown keys, values of the
        wrong type or outside their range, an impossible combination.
      SystemExit: status 0 after --help.
    """
    plain, overrides = _split_overrides(argv[1:])
    _parse_flags([argv[0], *plain])
    workdir = _workdir(flags.FLAGS.workdir, needs_workdir)
    if flags.FLAGS.config:
        config = files.load_file(flags.FLAGS.config)
    elif workdir:
        config = files.load(workdir)
    else:
        raise InputError("no config; pass --config=FILE, such as --config=configs/arithmetic.py")
    found = _override(config, overrides) + validation.mistakes(config)
    if found:
        raise InputError.of(found)
    return config, workdir


def override(config: RunConfig, arguments: list[str]) -> RunConfig:
    """Applies `--config.section.key=value` arguments to `config` in place and returns it.

    Raises:
      InputError: keys that the config does not have, or values of another type: all of them.
    """
    if found := _override(config, arguments):
        raise InputError.of(found)
    return config


def _override(config: RunConfig, arguments: list[str]) -> list[str]:
    """Applies what can be applied; the other arguments' mistakes."""
    found = []
    for argument in arguments:
        try:
            _apply(config, argument)
        except InputError as error:
            found.append(str(error))
    return found


def _apply(config: RunConfig, argument: str) -> None:
    _check_key(config, argument, files.flatten(config))
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", argument])
        values(["", argument])
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise _override_error(error, config) from None


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless jax was already told where: the next start of the same run is instant."""
    folder = os.environ.get(CACHE, str(Path.home() / ".cache" / "iiblpo_jax"))
    if not folder or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax  # here, so that a wrong command line is refused without it

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.x=1` (and `--config.x 1`, which becomes `--config.x=1`) from the other flags."""
    plain, overrides, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if not _OVERRIDE.match(argument):
            plain.append(argument)
            continue
        apart = "=" not in argument and not argument.lstrip("-").startswith("no")
        if apart and rest and not rest[0].startswith("--"):
            argument += f"={rest.pop(0)}"
        overrides.append(argument)
    return plain, overrides


def _parse_flags(argv: list[str]) -> None:
    if {"--help", "-help", "-h"} & set(argv):
        doc = sys.modules["__main__"].__doc__ or ""
        print(f"{doc.strip()}\n\n{flags.FLAGS.main_module_help()}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        print("\nAny knob of the config: --config.SECTION.KEY=VALUE (docs/configuration.md lists them all).")
        sys.exit(0)
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("iiblpo_jax."):  # a second command line in one process starts from nothing
            for flag in defined:
                flag.unparse()
    try:
        left = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise InputError(f"{_reason(error)}; --help lists the flags") from None
    if left:
        raise InputError(f"unexpected argument {left[0]!r}; every argument is a flag, such as --workdir=runs/first")


def _workdir(path: str, needed: bool) -> Path | None:
    if not path:
        if needed:
            raise InputError("no workdir; pass --workdir=DIR, such as --workdir=runs/first")
        return None
    if Path(path).exists() and not Path(path).is_dir():
        raise InputError(f"workdir {path} is a file; give a folder")
    return Path(path)


def _check_key(config: RunConfig, argument: str, known: dict) -> None:
    key = _OVERRIDE.sub("", argument).split("=", 1)[0]
    if key in known:
        return
    inside = next((name for name in known if name.startswith(f"{key}.")), None)
    if inside:
        raise InputError(f"{key} is a section of the config; set its keys one by one, such as --config.{inside}=VALUE")
    free = next((name for name in files.FREE_FORM if key.startswith(f"{name}.")), None)
    if free is None:
        raise files.unknown_key(key, known)
    if "=" not in argument:
        raise InputError(f"--config.{key} has no value; write --config.{key}=VALUE")
    _set_free(config, key, argument.split("=", 1)[1])


def _set_free(config: RunConfig, key: str, text: str) -> None:
    """A key of a free-form dict may be new, and then its type is that of the Python literal."""
    *path, last = key.split(".")
    with config.unlocked():
        node = config
        for step in path:
            if not isinstance(node.get(step), ConfigDict):
                node[step] = ConfigDict()
            node = node[step]
        if last not in node:
            node[last] = _literal(text)


def _literal(text: str):
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (SyntaxError, ValueError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _override_error(error: Exception, config: RunConfig) -> InputError:
    named = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if named is None:
        return InputError(f"{_reason(error)}; write overrides as --config.SECTION.KEY=VALUE")
    key, value = named.groups()
    if key in KNOBS:
        wanted = KNOBS[key].wanted_kind
    else:  # of a free-form dict
        wanted = KINDS.get(config_flags.config_flags.GetType(key, config), KINDS[dict])
    return InputError(f"--config.{key}={value}: {key} takes {wanted}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".").replace("flag --", "--")
