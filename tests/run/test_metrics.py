"""Metric files: format, resume, and what survives a kill; the progress display."""

import io
import json
import resource
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from tensorboardX.proto import event_pb2

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import plain, read_jsonl
from iiblpo_jax.model.steering.codes import Codes
from iiblpo_jax.run import metrics
from iiblpo_jax.run.metrics import MetricWriter, Progress
from iiblpo_jax.run.rollout_log import ROLLOUT_KEYS, _steered


def lines(workdir):
    # parse_constant is called for NaN and Infinity only, which JSON does not have
    return [json.loads(line, parse_constant=pytest.fail) for line in (workdir / "metrics.jsonl").open()]


def scalars(workdir):
    """(file, step, tag, value) of every TensorBoard scalar, by walking the record format."""
    found = []
    for path in sorted(workdir.glob("tensorboard/events*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[12 + size + 4 :]
    return found


def columns(**changes):
    base = {
        "prompt_id": ["a", "a"],
        "trajectory": np.arange(2),
        "parent": np.array([-1, 0]),
        "branch_at": np.array([0, 3]),
        "text": ["6+5", "6<\n→"],
        "tokens": [[1, 2, 3, 4], [1, 2, 3, 9, 9]],
        "reward": jnp.array([1.0, 0.0]),
        "correct": np.array([True, False]),
        "entropy_mean": np.array([0.1, 0.2], np.float32),
        "ib_answer": [None, None],
        "ib_prompt": np.array([np.nan, 1.0]),
        "ib_score": np.array([0.5, -0.5]),
        "kept": np.array([True, True]),
        "advantage": np.array([1.0, -1.0]),
        "finish": np.array([1, 0]),
        "question": ["6+5=", "6+5="],
        "gold": ["11", "11"],
        "z": np.array([[np.nan, np.nan], [0.5, -1.0]], np.float32),
        "code": np.array([-1, 0]),
    }
    return base | changes


def test_one_flat_object_a_step(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(0, {"eval/sums/pass@1": 0.5})
        writer.write(1, {"reward/mean": jnp.float32(0.1), "ib/n": np.int32(3), "bad": jnp.nan, "huge": float("inf")})
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert text[0] == '{"step": 0, "eval/sums/pass@1": 0.5}'
    assert text[1] == '{"step": 1, "reward/mean": 0.1, "ib/n": 3, "bad": null, "huge": null}'


def test_tensorboard_has_the_same_numbers(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(7, {"reward/mean": 0.25, "bad": np.nan})
    assert scalars(tmp_path) == [(7, "reward/mean", 0.25)]


def test_a_step_is_written_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(3, {})
        with pytest.raises(ValueError, match="step 3"):
            writer.write(3, {"late": 1.0})


def test_resume_drops_what_follows_the_checkpoint(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"x": step})
            writer.rollouts(step, columns())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "x"')  # killed in the middle of a line
    with MetricWriter(tmp_path, resume_step=2) as writer:
        assert [row["step"] for row in lines(tmp_path)] == [0, 1, 2]
        with pytest.raises(ValueError, match="step 2"):
            writer.write(2, {"x": 0})
        writer.write(3, {"x": 30})
    assert [(row["step"], row["x"]) for row in lines(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    assert [p.name for p in sorted((tmp_path / "rollouts").iterdir())] == [f"step_{s:06d}.jsonl" for s in range(3)]


def test_a_fresh_start_forgets_the_old_run(tmp_path):
    for value in (1.0, 2.0):
        with MetricWriter(tmp_path) as writer:
            writer.write(1, {"x": value})
    assert lines(tmp_path) == [{"step": 1, "x": 2.0}]
    assert scalars(tmp_path) == [(1, "x", 2.0)]


def test_rows_wait_for_room_on_a_full_disk(tmp_path, capsys):
    """Cut in the middle of a line, and whole once there is room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"x": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
        try:
            writer.write(2, {"x": 2})
            writer.write(3, {"x": 3})
            writer.rollouts(3, columns())
            assert len((tmp_path / "metrics.jsonl").read_bytes()) == 30
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.write(4, {"x": 4})
    assert lines(tmp_path) == [{"step": step, "x": step} for step in (1, 2, 3, 4)]
    assert not any((tmp_path / "rollouts").iterdir())
    loud = capsys.readouterr().err
    assert loud.count("metrics.jsonl cannot be written") == 2 and loud.count("step_000003.jsonl is left out") == 1


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run") as writer:
        writer.write(1, {"x": 1})
        assert writer.rollouts(1, columns()) is None
    assert not (tmp_path / "run").exists()


def test_rollout_lines(tmp_path):
    with MetricWriter(tmp_path) as writer:
        path = writer.rollouts(12, columns())
    assert path.name == "step_000012.jsonl"
    root, branch = read_jsonl(path)
    assert tuple(root) == tuple(branch) == ROLLOUT_KEYS
    assert (root["parent"], root["branch_at"], branch["parent"], branch["branch_at"]) == (None, None, 0, 3)
    assert (root["finish"], branch["finish"], branch["text"]) == ("eos", "length", "6<\n→")
    assert (root["correct"], branch["tokens"], root["ib_prompt"], branch["ib_prompt"]) == (
        True,
        [1, 2, 3, 9, 9],
        None,
        1.0,
    )
    assert branch["entropy_mean"] == 0.2
    assert (branch["question"], branch["gold"], branch["z"], branch["code"]) == ("6+5=", "11", [0.5, -1.0], 0)
    assert root["z"] is None and root["code"] is None


def test_rows_without_latents_have_none(tmp_path):
    """No latent at all, and one that stands for no code."""
    with MetricWriter(tmp_path) as writer:
        for line in read_jsonl(writer.rollouts(1, columns(z=[None, None], code=[None, None]))):
            assert line["z"] is None and line["code"] is None
        _, branch = read_jsonl(writer.rollouts(2, columns(code=[None, None])))
        assert branch["z"] == [0.5, -1.0] and branch["code"] is None


def test_a_code_is_read_off_its_z():
    """Of a branch that has one: not of a root, of a resample without z, or of a branch that was not grown."""
    codes = Codes(2, 3, 4, rngs=nnx.Rngs(0))
    codes.offset[...] = jnp.array([0.7, 0.2, 0.1])
    forest = types.SimpleNamespace(
        parent_R=jnp.array([-1, 0, 0, 0, 0]),
        fallback_R=jnp.array([False, False, False, True, False]),
        left_R=jnp.ones(5),
        length_R=jnp.array([3, 3, 3, 3, 0]),
        z_RZ=codes.vector(jnp.array([2, 0, 1, 0, 1])),
    )
    z_RZ, code_R = _steered.__wrapped__(forest)
    assert code_R.tolist() == [-1, 0, 1, -1, -1]
    assert np.isnan(z_RZ).all(1).tolist() == [True, False, False, True, True]
    np.testing.assert_allclose(z_RZ[1], np.sqrt(3) * np.array([0.3, -0.2, -0.1]), rtol=1e-6)


def test_entropies_are_one_more_key(tmp_path):
    with MetricWriter(tmp_path) as writer:
        root, _ = read_jsonl(writer.rollouts(1, columns(entropies=[np.float32([0.1, 0.2]), np.float32([])])))
    assert tuple(root) == (*ROLLOUT_KEYS, "entropies") and root["entropies"] == [0.1, 0.2]


def test_logprobs_are_one_more_key(tmp_path):
    """Written so that float32 comes back to the bit."""
    logp = [np.float32([-0.1, -1 / 3]), np.float32([])]
    with MetricWriter(tmp_path) as writer:
        root, branch = read_jsonl(writer.rollouts(1, columns(logp=logp)))
    assert tuple(root) == tuple(branch) == (*ROLLOUT_KEYS, "logp")
    np.testing.assert_array_equal(np.float32(root["logp"]), logp[0])
    assert root["logp"][0] == -0.1 and branch["logp"] == []


def test_rollouts_refuse_other_keys_and_ragged_columns(tmp_path):
    with MetricWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="colour"):
            writer.rollouts(1, columns(colour=[1, 2]))
        with pytest.raises(ValueError, match="shorter"):
            writer.rollouts(1, columns(reward=[1.0]))
    assert not list(tmp_path.glob("rollouts/*"))


def test_plain():
    assert plain([np.float32(0.1), jnp.int32(2), np.bool_(True), "s", None]) == [0.1, 2, True, "s", None]
    assert plain(np.array([[1.5, np.inf]])) == [[1.5, None]]
    assert plain(jnp.bfloat16(0.5)) == 0.5


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2"):
        list(read_jsonl(path))


def test_progress_writes_plain_lines_without_a_terminal():
    out = io.StringIO()
    with Progress(10, start=2, console=Console(file=out)) as progress:
        progress._began -= 8  # 2 steps in 8 s: the other 6 take 24
        progress.update(4, reward=0.51234, tokens_per_s=12345.6)
        progress.print("[eval] pass@1 0.6")
    assert out.getvalue() == "step 4/10  reward 0.512  12,346 tokens/s  ETA 0:24\n[eval] pass@1 0.6\n"


def test_progress_bar_on_a_terminal():
    out = io.StringIO()
    with Progress(10, console=Console(file=out, force_terminal=True, width=100)) as progress:
        progress.update(4, reward=0.5, tokens_per_s=1000)
    assert "4/10" in out.getvalue()
    assert "reward 0.500  1,000 tokens/s" in out.getvalue()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_module_comes_without_torch_unless_that_is_there_already(loaded, tmp_path, monkeypatch):
    (tmp_path / "takes_it_along.py").write_text(
        "try:\n    import torch\n    found = True\nexcept ImportError:\n    found = False\n"
    )
    (tmp_path / "torch.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "takes_it_along", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert metrics._without_torch("takes_it_along").found == loaded == ("torch" in sys.modules)
    monkeypatch.delitem(sys.modules, "takes_it_along")
