"""Evaluates a run on held-out problems: pass@1, unbiased pass@k, maj@k, greedy accuracy, tokens, diversity.

    python -m iiblpo_jax.evaluate --workdir=runs/first [--config.eval.samples=16 ...]

Takes the newest checkpoint of the workdir; where there is none, the model that `model.path` names. Prints a table and
writes WORKDIR/eval/step_NNNNNN.json.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from iiblpo_jax import cli
from iiblpo_jax.configuration import resolve


def main(config: ConfigDict, workdir: Path) -> None:
    """Loads, samples, grades, writes."""
    import jax  # after the command line is checked

    from iiblpo_jax import specs
    from iiblpo_jax.evaluation import Evaluator, evaluation_tasks, make_scorer
    from iiblpo_jax.metrics import write_atomic
    from iiblpo_jax.policy import load_policy
    from iiblpo_jax.publication import publish

    leads = jax.process_index() == 0
    console = Console(quiet=not leads)

    # --- policy and problems
    policy = load_policy(config, workdir)
    specs.check_positions(config, policy.model_config, (), policy.tokenizer)
    tasks = evaluation_tasks(config)
    console.print(f"{policy.source}, step {policy.step}: {', '.join(task.name for task in tasks)}")

    # --- sample and grade
    with make_scorer(config, tasks) as scorer:
        published = publish(policy.params, spec=specs.publication_spec(config, policy.model_config))
        metrics = Evaluator(config, tasks, policy.model_config, policy.tokenizer, scorer)(published)

    # --- table and file
    table = Table("held-out", "value")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("eval/"), f"{value:.4f}")
    console.print(table)
    if not leads:
        return
    path = workdir / "eval" / f"step_{policy.step:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"step": policy.step, "source": policy.source, "eval": resolve(config)["eval"], "metrics": metrics}
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    console.print(f"written to {path}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
