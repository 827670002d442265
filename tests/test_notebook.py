"""The quickstart notebook: it is committed clean, it runs from a fresh kernel, and what it shows is true."""

import base64
import json
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
SMALL = "STEPS, EVAL_PROBLEMS, LATENT_STEPS, PSA_STEPS, LATENT_PROMPTS, SEED = 2, 8, 20, 4, 16, 0"
# What the last cell of the executed copy prints, for the assertions below.
RESULTS = """
import json
R = {name: getattr(forest, f"{name}_R").tolist() for name in ("length", "parent", "branch_at", "finish")}
R |= {name: getattr(scored, f"{name}_R").tolist() for name in ("score", "kept", "advantage")}
R |= {name: columns[f"ib_{name}"].tolist() for name in ("answer", "prompt")}
R |= {"tokens": forest.tokens_RT.tolist(), "reward": rewards.tolist(), "texts": texts}
print(json.dumps(R | {"same": same, "steps": len(history), "workdir": str(workdir)}))
"""


def run_small():
    """The notebook after a run with small settings, and its results."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells[_parameters(notebook)].source = SMALL
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS, id="results"))
    root = str(NOTEBOOK.parents[1])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute(env=env)
    printed = [output.text for output in notebook.cells[-1].outputs if output.output_type == "stream"]
    return notebook, json.loads("".join(printed))


def _parameters(notebook) -> int:
    [index] = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    return index


def test_it_is_committed_without_outputs_and_with_readable_cell_ids():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(name.replace("-", "").isalpha() for name in ids)


@pytest.mark.slow
def test_it_runs_and_what_it_shows_is_true():
    # One test, not four with a shared fixture: parallel workers would each run the notebook.
    notebook, results = run_small()
    check_the_tree(results)
    check_the_scores(results)
    check_the_outputs(notebook)
    assert results["steps"] == 2 and results["same"] is True
    assert not Path(results["workdir"]).exists()  # a temporary folder that goes with the kernel


def check_the_tree(r):
    """Two roots with three branches each, whose prefixes are their roots'."""
    assert r["parent"] == [-1, 0, 0, 0, -1, 4, 4, 4]
    for branch, parent in enumerate(r["parent"]):
        at = r["branch_at"][branch]
        assert (at == 0) == (parent < 0)
        assert r["tokens"][branch][:at] == r["tokens"][max(parent, 0)][:at]


def check_the_scores(r):
    """Rewards, scores, kept half and advantages against a second computation from what they are made of."""
    gold = str(8 + 9 + 7 + 5)
    assert r["reward"] == [float("#" in text and text.rpartition("#")[2] == gold) for text in r["texts"]]

    def standard(x):
        return (x - np.mean(x)) / (np.std(x) + 1e-4)

    length = np.array(r["length"])
    cost = np.array(r["prompt"]) + 0.5 * length / length.mean()  # ib.length_cost, nats a token
    score = standard(np.array(r["answer"])) - standard(cost)
    np.testing.assert_allclose(r["score"], score, atol=1e-3)

    kept, advantage = np.array(r["kept"]), np.array(r["advantage"])
    assert kept.sum() == 4 and (advantage[~kept] == 0).all()
    reward = np.array(r["reward"])[kept]
    expected = np.zeros(4)
    if np.ptp(reward):
        expected = (reward - reward.mean()) / reward.std(ddof=1) + 0.1 * np.clip(score[kept], -1, 1)
    np.testing.assert_allclose(advantage[kept], expected, atol=1e-3)
    assert (np.ptp(r["reward"]) > 0) == (np.ptp(reward) > 0)  # ib.keep_contrast


def check_the_outputs(notebook):
    """Both figures, and nothing on stderr."""
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    pictures = {
        name: [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        for name, cell in cells.items()
    }
    assert {name for name, found in pictures.items() if found} == {"draw", "curves"}
    for name in ("draw", "curves"):
        [png] = pictures[name]
        assert base64.b64decode(png).startswith(b"\x89PNG")
    assert not any(o.get("name") == "stderr" for cell in cells.values() for o in cell.outputs)
