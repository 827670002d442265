"""Plans by code, counted by hand."""

import numpy as np

from iiblpo_jax.results import plans
from iiblpo_jax.results.plans import plan_table


def test_counts_by_hand(monkeypatch):
    monkeypatch.setattr(plans, "COLUMNS", 2)
    said = [["9-4+3", "7-1+2", None, "12+5+1"], ["1+2+3", "8-8-8", "3-2+1", "3-2+1"]]
    table = plan_table(said, np.array([[0, 1, 0, 1], [2, 0, 2, 0]]), 3)
    assert table == {
        "plans": ["n-n+n", "n+n+n", "other", "malformed"],
        "counts": [[2, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]],
    }


def test_without_malformed_ones_there_is_no_column():
    assert plan_table([["1+1"]], np.array([[1]]), 2) == {"plans": ["n+n"], "counts": [[0], [1]]}
