"""One self-contained HTML page about a run: held-out results, curves, example trees, the config.

    python -m iiblpo_jax.report --workdir=DIR        # writes DIR/report.html

It reads metrics.jsonl, config.json and rollouts/ of the workdir, also while the run is still going.
"""

from pathlib import Path

from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.config.defaults import RunConfig
from iiblpo_jax.results.report import load_metrics, terminal_table, write_report


def main(_: RunConfig, workdir: Path) -> None:
    """Writes the page, prints the table."""
    path = write_report(workdir)
    console = Console()
    console.print(terminal_table(load_metrics(workdir)))
    console.print(f"report: {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    cli.run(main)
