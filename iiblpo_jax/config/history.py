"""What a workdir was started with: config.json, the last one, and config_history.jsonl, one line a start."""

import datetime
import json
from pathlib import Path

from rich.console import Console

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.config import files
from iiblpo_jax.config.defaults import KNOBS, RunConfig, default_config
from iiblpo_jax.config.knobs import shown

HISTORY = "config_history.jsonl"


def keep(config: RunConfig, workdir: Path, *, verb: str, step: int = 0, console: Console) -> None:
    """Writes config.json and a line of config_history.jsonl, and says what differs from the config.json before: keys,
    and code of the user's own.

    A line has `time` (UTC), `verb`, `step`, `changed` (key -> [before, now]) and the whole `config`.

    Args:
      config: of the start.
      workdir: made if needed.
      verb: what was started.
      step: finished steps that it goes on from.
      console: nothing is printed where nothing differs.
    """
    before, now = _stored(workdir), files.flatten(files.resolve(config))
    changed = {key: (before[key], now[key]) for key in KNOBS if before and before[key] != now[key]}
    for line in files.changed_code(config, workdir):
        warn(line)
    files.save(config, workdir)
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = {"time": time, "verb": verb, "step": step, "changed": changed, "config": files.resolve(config)}
    with (workdir / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if changed:
        parts = ", ".join(f"{key} {shown(old)} -> {shown(new)}" for key, (old, new) in changed.items())
        console.print(f"config differs from the last start: {parts}", markup=False, highlight=False, soft_wrap=True)


def _stored(workdir: Path) -> dict:
    """Key -> value of the config.json there, defaults for keys that it lacks; empty without one that can be read."""
    try:
        stored = json_input.load(workdir / "config.json", mend="", limit=files.MAX_CONFIG)
    except (FileNotFoundError, InputError):
        return {}
    defaults = files.flatten(files.resolve(default_config()))
    return defaults | files.surprise_as_weight(files.flatten(stored)) if isinstance(stored, dict) else {}
