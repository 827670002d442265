"""The verb sft: it learns, resumes to the bit, makes a model that can be loaded, and refuses what it cannot use."""

import json

import jax
import numpy as np
import pytest

from iiblpo_jax import sft
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.loading import load_model

ROWS = [{"prompt": f"{a}+{b}=", "response": f"{a + b}"} for a in range(1, 4) for b in range(1, 4)]


def metrics(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: {k: v for k, v in row.items() if not k.endswith(("_s", "/tokens_per_s"))} for row in lines}


def weights(workdir):
    return jax.tree.map(np.asarray, params_of(load_model(str(workdir / "model"))[0]))


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_it_learns_and_leaves_a_model(make_config, lines, tmp_path):
    files = {"offline__data": lines, "offline__heldout": lines, "rollout__max_tokens": 4, "optim__lr": 3e-3}
    config = make_config(**files, train__steps=8)
    assert sft.main(config, tmp_path) == 0
    found, learnt = metrics(tmp_path), weights(tmp_path)
    assert sorted(found) == list(range(9))
    assert found[8]["heldout/loss"] < found[0]["heldout/loss"] - 0.2  # about 3 nats at random
    assert all(found[step]["update/loss"] > 0 and found[step]["update/skipped"] == 0 for step in range(1, 9))

    before = load_model(make_config().model.path)[0]
    assert not np.array_equal(learnt["embed"], params_of(before)["embed"])


def test_what_a_run_cannot_use_is_named(make_config, write_lines, tmp_path):
    def refused(message, rows=ROWS, **changes):
        path = write_lines("bad.jsonl", rows)
        with pytest.raises(InputError, match=message):
            sft.main(make_config(offline__data=path, **changes), tmp_path / "run")

    refused("row 2: no column response", [ROWS[0], {"prompt": "1"}])
    refused("row 1: prompt is a int", [{"prompt": 1, "response": "1"}])
    refused("bad.jsonl holds no demonstrations", [])
    refused(r"row 1: the prompt has 4 tokens and rollout\.max_prompt = 3", rollout__max_prompt=3)
    refused("update.microbatch = 3 does not divide", update__packed=False, update__microbatch=3)
    refused("positions", rollout__max_tokens=100)
    refused(r"codes\.n = 4 is for train, and sft knows no codes; set codes\.n=0", codes__n=4)
    refused("lora.rank = 4, and sft trains whole weights; set lora.rank=0", lora__rank=4)
    with pytest.raises(InputError, match=r"no problem of the task gym:.* has a gold solution"):
        sft.main(make_config(task__name="gym:chain_sum", task__options={}), tmp_path / "run")
