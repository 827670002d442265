"""`--config.SECTION.KEY=VALUE`: single values of a config, as a command line writes them."""

import re

from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import files
from iiblpo_jax.config.defaults import KNOBS, RunConfig
from iiblpo_jax.config.knobs import SHOWN, literal

_OVERRIDE = re.compile(r"^--?(no)?config\.")


def override(config: RunConfig, arguments: list[str]) -> RunConfig:
    """Applies `--config.section.key=value` arguments to `config` in place and returns it.

    A switch may go without a value (`--config.x.y`, `--noconfig.x.y`). A key of a free-form dict may be new, and its
    value is a Python literal or else a text.

    Raises:
      InputError: keys that the config does not have, or values of another type: all of them.
    """
    if found := apply(config, arguments):
        raise InputError.of(found)
    return config


def apply(config: RunConfig, arguments: list[str]) -> list[str]:
    """Applies what can be applied, in place; the other arguments' mistakes."""
    found = []
    for argument in arguments:
        try:
            _apply(config, argument)
        except InputError as error:
            found.append(str(error))
    return found


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
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


def _apply(config: RunConfig, argument: str) -> None:
    key, given, text = _OVERRIDE.sub("", argument).partition("=")
    free = next((name for name in files.FREE_FORM if key.startswith(f"{name}.")), None)
    if free is None:
        _check_key(key)
    switch = free is None and KNOBS[key].kind is bool
    if not given and switch:
        text = str(not argument.lstrip("-").startswith("no"))
    elif not given:
        raise InputError(f"--config.{key} has no value; write --config.{key}=VALUE")
    elif argument.lstrip("-").startswith("no"):
        raise InputError(f"{argument}: --noconfig switches off and takes no value; write --config.{key}=VALUE")
    if free is not None:
        return _set_free(config, key, literal(text))
    _set(config, key, text)


def _check_key(key: str) -> None:
    if key in KNOBS:
        return
    if inside := next((name for name in KNOBS if name.startswith(f"{key}.")), None):
        raise InputError(f"{key} is a section of the config; set its keys one by one, such as --config.{inside}=VALUE")
    raise files.unknown_key(key, KNOBS)


def _set(config: RunConfig, key: str, text: str) -> None:
    section, name = key.split(".")
    try:
        value = KNOBS[key].parse(text)
        config[section][name] = ConfigDict(value) if KNOBS[key].kind is dict else value
    except (TypeError, ValueError, AttributeError, KeyError):  # keys of a dict that are no names
        text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise InputError(f"--config.{key}={text}: {key} takes {KNOBS[key].wanted_kind}") from None


def _set_free(config: RunConfig, key: str, value) -> None:
    *path, last = key.split(".")
    with config.unlocked():
        node = config
        for step in path:
            if not isinstance(node.get(step), ConfigDict):
                _put(node, step, ConfigDict())
            node = node[step]
        _put(node, last, value)


def _put(node: ConfigDict, name: str, value) -> None:
    """Sets a key whose value may have been of another type."""
    if name in node:
        del node[name]
    node[name] = value
