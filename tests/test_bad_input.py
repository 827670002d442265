"""Everything a user can get wrong: one line on stderr that names it and the mend, exit status 2, nothing compiled."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from iiblpo_jax import cli, evaluate, export, load_model, train
from iiblpo_jax.latents.storage import save_latents
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.loading import resolve
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA

ROOT = Path(__file__).parents[1]
EMBEDDED = resolve("package:iiblpo_jax/data/assets/arithmetic")
ARITHMETIC = f"--config={ROOT / 'configs' / 'arithmetic.py'}"
GSM8K = (ARITHMETIC, "--config.task.name=gsm8k", "--config.task.options={}")
PROGRAMS = ("rollout", "inform", "score", "_update", "_extract", "chunk", "hidden_states")


@pytest.fixture
def compiled(caplog):
    """compiled() -> names of the programs that jax compiled in this test."""
    caplog.set_level(logging.DEBUG, logger="jax._src.interpreters.pxla")

    def names():
        messages = [record.getMessage() for record in caplog.records]
        return [message.split()[1] for message in messages if message.startswith("Compiling ")]

    return names


@pytest.fixture
def refuse(monkeypatch, capsys, compiled):
    """refuse(verb, *arguments) -> the one line on stderr."""

    def call(verb, *arguments):
        monkeypatch.setenv(cli.CACHE, "")
        monkeypatch.setattr(sys, "argv", ["verb", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stopped:
                cli.run(verb.main)
        finally:
            signal.signal(signal.SIGTERM, handler)
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert not [name for name in compiled() if any(program in name for program in PROGRAMS)]
        return err

    return call


@pytest.fixture
def model_copy(tmp_path):
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


@pytest.fixture
def workdir(tmp_path):
    return f"--workdir={tmp_path / 'run'}"


BOTH = pytest.mark.parametrize("verb", [train, evaluate], ids=["train", "evaluate"])


def test_the_watch_on_compiling_sees_something(compiled):
    jax.jit(lambda x: x + 1)(jnp.zeros(77))
    assert any("lambda" in name for name in compiled())


# -- the config -------------------------------------------------------------------------------------------------------


@BOTH
def test_unknown_config_key(refuse, workdir, verb):
    line = refuse(verb, ARITHMETIC, workdir, "--config.train.stps=3")
    assert "train.stps" in line and "did you mean train.steps" in line


@BOTH
def test_every_mistake_of_a_config_is_named(refuse, workdir, verb):
    line = refuse(verb, ARITHMETIC, workdir, "--config.train.stps=3", "--config.optim.lr=nan", "--config.ib.keep=-1")
    assert line.startswith("error: 3 mistakes: (1) unknown config key train.stps;")
    assert "optim.lr = nan; use a number, 0 or more" in line and "ib.keep = -1; use 0 or more" in line


@BOTH
def test_a_workdir_of_an_earlier_version_with_a_knob_that_is_gone(refuse, workdir, tmp_path, verb):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"latent": {"free_bits": 0.3}, "train": {"steps": 2.5}}')
    line = refuse(verb, workdir)
    assert "latent.free_bits = 0.3, and there is no such knob any more" in line and "train.steps = 2.5" in line


@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_a_mistyped_command_line_does_not_wait_for_jax(verb):
    code = f"import sys, iiblpo_jax.{verb}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


# -- the model --------------------------------------------------------------------------------------------------------


@BOTH
def test_missing_model(refuse, workdir, tmp_path, verb):
    line = refuse(verb, ARITHMETIC, workdir, f"--config.model.path={tmp_path}/absent")
    assert f"{tmp_path}/absent" in line and "give a Hugging Face directory" in line


def cut_weights(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return "model.safetensors", "copy"


def no_config(directory):
    (directory / "config.json").unlink()
    return "no config.json", "copy the complete model directory"


def no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    return "no tokenizer.json", "copy the complete model directory"


def missing_shard(directory):
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00002-of-00002.safetensors is missing", "copy the complete model directory"


@BOTH
@pytest.mark.parametrize("damage", [cut_weights, no_config, no_tokenizer, missing_shard])
def test_half_copied_model(refuse, workdir, model_copy, verb, damage):
    named, mend = damage(model_copy)
    line = refuse(verb, ARITHMETIC, workdir, f"--config.model.path={model_copy}")
    assert str(model_copy) in line and named in line and mend in line


@BOTH
def test_tokenizer_of_another_model(refuse, workdir, model_copy, verb):
    path = model_copy / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"<{i}>": i for i in range(17, 90)}
    path.write_text(json.dumps(content))
    line = refuse(verb, ARITHMETIC, workdir, f"--config.model.path={model_copy}")
    assert "ids up to 89" in line and "vocabulary of 17" in line
    assert "use the tokenizer that came with the model" in line


# -- the data ---------------------------------------------------------------------------------------------------------


def gsm8k(tmp_path, *rows):
    (tmp_path / "data").mkdir()
    text = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows)
    (tmp_path / "data" / "train.jsonl").write_text(text)
    return f"--config.task.data_dir={tmp_path / 'data'}"


@BOTH
def test_empty_dataset(refuse, workdir, tmp_path, verb):
    line = refuse(verb, *GSM8K, workdir, gsm8k(tmp_path))
    assert "'gsm8k'" in line and str(tmp_path / "data") in line and "hold no rows; download the dataset again" in line


@BOTH
def test_gold_answer_that_does_not_parse(refuse, workdir, tmp_path, verb):
    rows = ("1+1?", "Two. #### 2"), ("1+2?", "Three. #### three")
    line = refuse(verb, *GSM8K, workdir, gsm8k(tmp_path, *rows))
    assert "train.jsonl row 2" in line and "'three'" in line and "correct or remove that row" in line


def test_a_task_that_only_evaluates(refuse, workdir, tmp_path):
    data = gsm8k(tmp_path, ("1+1?", "2"))
    line = refuse(train, ARITHMETIC, "--config.task.name=math500", "--config.task.options={}", workdir, data)
    assert "'math500' has no training problems" in line


@BOTH
def test_every_prompt_too_long(refuse, workdir, verb):
    line = refuse(verb, ARITHMETIC, workdir, "--config.rollout.max_prompt=3")
    assert "every prompt is longer than rollout.max_prompt=3" in line and "the longest has 8" in line
    assert "raise rollout.max_prompt" in line


@BOTH
def test_more_positions_than_the_model_has(refuse, workdir, verb):
    line = refuse(verb, ARITHMETIC, workdir, "--config.rollout.max_tokens=252")
    assert "rollout.max_prompt = 8 and rollout.max_tokens = 252" in line and "the model has 256" in line
    # Training appends the cue and the longest answer to a scored response: "#" and "36".
    assert f"lower one by {7 if verb is train else 4}" in line


def test_recorded_rollouts(refuse, workdir, tmp_path):
    line = refuse(train, ARITHMETIC, workdir, f"--config.data.recorded={tmp_path}/absent")
    assert f"{tmp_path}/absent" in line and "finds no file; give a rollouts/ folder" in line
    path = tmp_path / "step_000001.jsonl"
    path.write_text('{"prompt_id": "arith')
    line = refuse(train, ARITHMETIC, workdir, f"--config.data.recorded={path}")
    assert f"{path}:1 is not JSON" in line and "delete the lines of its prompt" in line


# -- the workdir ------------------------------------------------------------------------------------------------------


def test_latents_of_another_model(refuse, tmp_path, workdir):
    model, _ = load_model(EMBEDDED)
    other = {**params_of(model), "final_norm": params_of(model)["final_norm"] * 1.5}
    cvae, psa = CVAE(64, 16, 8, rngs=nnx.Rngs(0)), PSA(model.config, 16, 3, rngs=nnx.Rngs(1))
    save_latents(tmp_path / "run" / "latent", model.config, other, cvae, psa, settings={}, metrics={})
    line = refuse(train, ARITHMETIC, workdir)
    assert "latents of another model" in line and f"delete {tmp_path / 'run' / 'latent'}" in line
    assert not (tmp_path / "run" / "config.json").exists()  # a refused run leaves the workdir as it was


def test_nothing_to_export(refuse, tmp_path, workdir):
    assert "--out is missing" in refuse(export, ARITHMETIC, workdir, "--out=")
    line = refuse(export, ARITHMETIC, workdir, f"--out={tmp_path / 'out'}")
    assert "no checkpoint to export; train first" in line


# -- a process of its own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "argument", "named"),
    [("train", "--config.rollout.max_prompt=3", "every prompt"), ("evaluate", "--config.model.path=absent", "absent")],
)
def test_the_real_command_line(tmp_path, verb, argument, named):
    done = subprocess.run(
        [sys.executable, "-m", f"iiblpo_jax.{verb}", ARITHMETIC, f"--workdir={tmp_path / 'run'}", argument],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and named in done.stderr
