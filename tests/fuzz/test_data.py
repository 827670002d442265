"""Damaged data files and configs: read, or refused in one line."""

import json

import damage
import numpy as np
import pytest
from hypothesis import strategies as st

from iiblpo_jax.config import files as config_files
from iiblpo_jax.data import files, rows
from iiblpo_jax.defaults import default_config

ROWS = [
    {"question": "1+1?", "answer": "One and one. #### 2", "solution": "\\boxed{2}", "level": 3},
    {"problem": "1+2?", "answer": "3", "context": "Numbers.", "final_answer": ["3"], "type": {"a": [1]}},
    {"prompt": [{"role": "user", "content": "1+3?"}], "reward_model": {"ground_truth": "4"}, "year": 2024},
]


def read_problems(path):
    """All rows through all formats, as the loaders do it."""
    for place, row in files.read_rows(path):
        for name, form in rows.FORMATS.items():
            try:
                problem = rows.problem_of(name, form, place, "id", row)
            except rows.InputError:
                continue
            if isinstance(problem, rows.Problem):
                assert problem.question and problem.answer
                problem.question.encode()


@pytest.fixture(autouse=True)
def no_worker(monkeypatch):
    """Golds that are no plain numbers count as readable: the parser is fuzzed in test_verifiers.py."""
    monkeypatch.setattr("iiblpo_jax.data.gold.readable", lambda verifier, answer: bool(answer.strip()))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_rows(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    lines = suffix == ".jsonl"

    def text(values):
        return b"\n".join(map(damage.json_bytes, values)) if lines else damage.json_bytes(values)

    def read(drawn):
        path.write_bytes(drawn)
        read_problems(path)

    spoiled = st.tuples(*map(damage.damaged_json, ROWS)).map(list).map(text)
    damage.hammer(spoiled | damage.damaged_bytes(text(ROWS)), read, name=f"rows {suffix}", examples=200)


def test_recorded_rollouts(tmp_path):
    from iiblpo_jax.run import recorded

    form = recorded.Form(parent_G=(-1, 0), max_tokens=4, vocab=17, logprobs=True)
    root = {"prompt_id": "a", "trajectory": 2, "parent": None, "branch_at": None, "tokens": [3, 4, 2], "finish": "eos"}
    branch = root | {"trajectory": 3, "parent": 2, "branch_at": 1, "tokens": [3, 5], "finish": "length"}
    lines = root | {"logp": [-0.5, 0.0, -2]}, branch | {"logp": [-0.5, -1e-3]}
    path = tmp_path / "step_000001.jsonl"

    def text(values):
        return b"\n".join(map(damage.json_bytes, values))

    def read(drawn):
        path.write_bytes(drawn)
        for group in recorded.read_groups(path, form):
            for line, parent in zip(group, form.parent_G, strict=True):
                assert line.parent == parent and 0 <= line.branch_at <= len(line.tokens) == len(line.logp) <= 4
                assert (line.tokens < 17).all() and np.isfinite(line.logp).all()

    read(text(lines))
    spoiled = st.tuples(*map(damage.damaged_json, lines)).map(list).map(text)
    damage.hammer(spoiled | damage.damaged_bytes(text(lines)), read, name="recorded rollouts", examples=200)


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "train.parquet"
    table = pyarrow.Table.from_pylist(
        [{"question": f"{i}+1?", "answer": f"#### {i + 1}", "level": i} for i in range(20)]
    )
    pyarrow.parquet.write_table(table, path)
    whole = path.read_bytes()
    read_problems(path)

    def read(drawn):
        path.write_bytes(drawn)
        read_problems(path)

    damage.hammer(damage.damaged_bytes(whole), read, name="parquet", examples=200)


def test_workdir_config(tmp_path):
    whole = config_files.resolve(default_config())
    path = tmp_path / "config.json"

    def read(drawn):
        path.write_bytes(drawn)
        config_files.load(tmp_path)

    spoiled = damage.damaged_json(whole).map(damage.json_bytes)
    damage.hammer(spoiled | damage.damaged_bytes(json.dumps(whole).encode()), read, name="workdir config", examples=100)
