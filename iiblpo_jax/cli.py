"""The command line of every verb: flags, config overrides, one-line errors, the compilation cache.

A verb ends with

    if __name__ == "__main__":
        cli.run(main)

where `main(config, workdir)` is the whole program. Flags of its own are absl flags defined at the top of its module.
Whatever the user got wrong ends in one line on stderr that names it and the mend, with exit status 2.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import files, overrides, validation
from iiblpo_jax.config.defaults import RunConfig
from iiblpo_jax.data import registry
from iiblpo_jax.devices import processes as distributed

CACHE = "IIBLPO_CACHE"  # environment variable: folder of compiled programs; empty switches the cache off

flags.DEFINE_string("workdir", "", "Folder of the run: config.json, metrics.jsonl, checkpoints/, report.html.")
flags.DEFINE_string("config", "", "Config file with get_config(); without it, the config.json of the workdir.")


def run(main: Callable[[RunConfig, Any], int | None], *, needs_workdir: bool = True) -> None:
    """Parses sys.argv, checks the config, calls `main(config, workdir)` and exits.

    Args:
      main: the verb; what it returns is the exit status, None = 0. InputError raised anywhere inside it is printed as
        one line.
      needs_workdir: --workdir must be given (`plan` writes nothing and does without).

    Raises:
      SystemExit: status 2 after bad input, 130 after an interruption, else the verb's.
    """
    try:
        config, workdir = parse(sys.argv, needs_workdir=needs_workdir)
        enable_compilation_cache()
        with distributed.initialize():
            status = main(config, workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if status:
        sys.exit(status)


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
    plain, changes = overrides.split(argv[1:])
    _parse_flags([argv[0], *plain])
    workdir = _workdir(flags.FLAGS.workdir, needs_workdir)
    if flags.FLAGS.config:
        config = files.load_file(flags.FLAGS.config)
    elif workdir:
        config = files.load(workdir)
    else:
        raise InputError("no config; pass --config=FILE, such as --config=configs/arithmetic.py")
    found = overrides.apply(config, changes)
    files.make_absolute(config, Path.cwd())
    found += validation.mistakes(config) + registry.mistakes(config)
    if found:
        raise InputError.of(found)
    return config, workdir


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless jax was already told where: the next start of the same run is instant."""
    folder = os.environ.get(CACHE, str(Path.home() / ".cache" / "iiblpo_jax"))
    if not folder or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax  # here, so that a wrong command line is refused without it

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".").replace("flag --", "--")
