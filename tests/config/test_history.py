"""What a start writes of its config, and says of the one before."""

import io
import json

from rich.console import Console

from iiblpo_jax.config import files, history
from iiblpo_jax.defaults import default_config


def start(workdir, config, **how):
    out = io.StringIO()
    history.keep(config, workdir, verb="train", console=Console(file=out, width=40), **how)
    return out.getvalue()


def lines(workdir):
    return [json.loads(line) for line in (workdir / history.HISTORY).read_text().splitlines()]


def test_a_resume_says_what_differs_and_every_start_is_kept(tmp_path):
    config = default_config()
    assert start(tmp_path / "run", config) == ""
    config.optim.lr, config.task.options = 1e-3, {"k_max": 5}
    said = start(tmp_path / "run", config, step=7)
    assert said == "config differs from the last start: task.options {} -> {'k_max': 5}, optim.lr 1e-06 -> 0.001\n"
    assert start(tmp_path / "run", config, step=9) == ""
    first, second, third = lines(tmp_path / "run")
    assert [row["step"] for row in (first, second, third)] == [0, 7, 9]
    assert first["changed"] == third["changed"] == {} and first["verb"] == "train"
    assert second["changed"] == {"optim.lr": [1e-6, 1e-3], "task.options": [{}, {"k_max": 5}]}
    assert second["config"] == json.loads((tmp_path / "run" / "config.json").read_text()) == files.resolve(config)


def test_a_config_of_an_earlier_version_differs_only_where_it_does(tmp_path):
    """A knob that it lacks had its default; one that is gone is no difference; what cannot be read is none at all."""
    stored = files.resolve(default_config())
    del stored["log"]["entropies"]
    stored["latent"]["free_bits"] = 0.1
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = default_config()
    config.log.entropies = True
    assert start(tmp_path, config) == "config differs from the last start: log.entropies False -> True\n"
    (tmp_path / "config.json").write_text("{half")
    assert start(tmp_path, config) == "" and files.load(tmp_path).log.entropies is True
