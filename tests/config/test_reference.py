"""docs/configuration.md is what the table of knobs says."""

import subprocess
import sys
from pathlib import Path

from iiblpo_jax.config import reference
from iiblpo_jax.config.defaults import KNOBS
from iiblpo_jax.config.knobs import knob

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_the_generated_one():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference.page(), "run python -m iiblpo_jax.config.reference > docs/configuration.md"
    assert all(page.count(f"| `{key}` |") == 1 for key in KNOBS)


def test_a_table_by_hand():
    knobs = {"a.b": knob(0.5, "x | y", unit="nats", above=0), "a.c": knob("", "z")}
    assert reference.table(knobs).splitlines() == [
        "| key | default | unit | range | what it does |",
        "| --- | --- | --- | --- | --- |",
        "| `a.b` | `0.5` | nats | a number above 0 | x \\| y |",
        "| `a.c` | empty |  |  | z |",
    ]


def test_it_is_made_without_jax():
    code = "import sys; from iiblpo_jax.config import reference, validation; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
