"""Evaluates a run on held-out problems: pass@1, unbiased pass@k, avg@k, maj@k, greedy accuracy, tokens, diversity.

    python -m iiblpo_jax.evaluate --workdir=runs/first [--checkpoint=best] [--config.eval.samples=16 ...]
    python -m iiblpo_jax.evaluate --config=configs/math_benchmarks.py --workdir=runs/first --config.task.data_dir=DIR

Takes the newest checkpoint of the workdir, or the one that --checkpoint names; where there is none at all, the model
that `model.path` names. Prints a table and writes WORKDIR/eval/step_NNNNNN.json, beside it under a longer name where
that is another evaluation's (results/stored.py). With several devices the weights and the problems are spread over them
as the section mesh of the config says.

Every problem is written to WORKDIR/eval/problems/ as soon as it is answered (results/attempts.py). The same command
goes on after a kill, and only what is not there is sampled.
"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from iiblpo_jax import cli
from iiblpo_jax.config.defaults import RunConfig
from iiblpo_jax.config.files import changed_code

CHECKPOINT = cli.checkpoint_flag()
SECOND = flags.DEFINE_string(
    "second_grader", "", "Another grader of all samples, such as math_verify; where it differs is written down."
)


def main(config: RunConfig, workdir: Path) -> None:
    """Loads, samples, grades, writes."""
    import jax  # after the command line is checked

    from iiblpo_jax.common.errors import warn
    from iiblpo_jax.devices.mesh import make_mesh
    from iiblpo_jax.model.files.fingerprint import fingerprint
    from iiblpo_jax.results import second_grader, stored
    from iiblpo_jax.results.attempts import FOLDER
    from iiblpo_jax.results.evaluation import Evaluator, Kept, evaluation_tasks
    from iiblpo_jax.rewards.together import make_scorer
    from iiblpo_jax.rollout.publication import publisher
    from iiblpo_jax.run.restored import load_policy
    from iiblpo_jax.step import specs

    leads = jax.process_index() == 0
    console = Console(quiet=not leads)
    second_grader.check_grader(SECOND.value)

    # --- policy and problems
    mesh = make_mesh(config.mesh) if jax.device_count() > 1 else None
    policy = load_policy(config, workdir, CHECKPOINT.value, mesh=mesh)
    specs.check_positions(config, policy.model_config, (), policy.tokenizer)
    for line in changed_code(config, workdir) if leads else ():
        warn(line)
    tasks = evaluation_tasks(config)
    console.print(f"{policy.source}, step {policy.step}: {', '.join(task.name for task in tasks)}")

    weights = fingerprint(policy.model_config, policy.params)  # all processes take part

    # --- sample and grade
    kept = Kept(workdir / FOLDER, {"step": policy.step, "weights": weights}, say=lambda line: console.print(line))
    with make_scorer(config, tasks) as scorer:
        publication = specs.publication_spec(config, policy.model_config)
        published = publisher(publication, policy.params, mesh)(policy.params)
        evaluator = Evaluator(config, tasks, policy.model_config, policy.tokenizer, scorer, mesh=mesh)
        metrics = evaluator(published, kept=kept)

    # --- table and file
    table = Table("held-out", "value")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("eval/"), f"{value:.4f}")
    console.print(table)
    if leads:
        what = stored.described(config, tasks, step=policy.step, weights=weights)
        path = stored.write_evaluation(workdir, what, source=policy.source, metrics=metrics, plans=evaluator.plans)
        console.print(f"written to {path}", soft_wrap=True)

    # --- a second opinion
    pool = {"workers": config.data.verifiers, "timeout_s": config.data.verifier_timeout}
    for task, prompts, attempts in evaluator.attempts(kept) if SECOND.value else ():
        if leads:
            listed, counts = second_grader.disagreements(task, prompts, attempts, SECOND.value, **pool)
            where = stored.write_disagreements(path, task.name, SECOND.value, [*listed, *counts])
            console.print(f"{task.name}: {' '.join(counts)} ({where})", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
