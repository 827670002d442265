"""Trains a language model with IIB-LPO (or, with its pieces switched off, plain GRPO).

    python -m iiblpo_jax.train --config=configs/arithmetic.py --workdir=runs/first [--config.optim.lr=1e-4 ...]

Running the same line again resumes. One step (step/programs.py):

    prompts -> rollout (Forest) -> rewards on the host, information terms on the device
            -> scores, kept set, advantages -> update
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import history
from iiblpo_jax.config.defaults import RunConfig

REPLAY = flags.DEFINE_string("replay", "", "A bad_step_NNNNNN.npz of the workdir: say what is wrong with it, and end.")


def main(config: RunConfig, workdir: Path) -> int:
    """The whole run, from nothing or from the last checkpoint to the report; the exit status."""
    import jax  # after the command line is checked

    from iiblpo_jax.results import report
    from iiblpo_jax.run import tracking
    from iiblpo_jax.run.metrics import MetricWriter, Progress
    from iiblpo_jax.run.stopping import StopRequest
    from iiblpo_jax.run.trainer import Trainer

    leads, total = jax.process_index() == 0, config.train.steps
    console = Console(quiet=not leads)

    # --- model, data, latent, optimizer, checkpoint: everything a user can get wrong fails here
    track = tracking.prepare(config, workdir)
    trainer = Trainer(config, workdir, console=console)
    start = trainer.restore()
    _check_steps(workdir, start or 0, total)
    if REPLAY.value:
        trainer.replay(REPLAY.value, console)
        return 0
    if config.train.memory_report:
        trainer.memory_report(console)
    if leads:
        history.keep(config, workdir, verb="train", step=start or 0, console=console)

    # --- start or resume
    step = done = start or 0
    writer = MetricWriter(workdir, resume_step=start, track=track)
    if start is None:
        console.print("evaluating the model as it is")
        writer.write(0, {"data/dropped": trainer.source.dropped} | trainer.latent_metrics() | trainer.evaluate())
    elif start == total:
        console.print(f"all {total} steps are done; raise train.steps to go on")
    else:
        console.print(f"resuming after step {start}")

    # --- loop: the rollout of the next step is under way while this one is written down
    with StopRequest() as stop, writer, Progress(total, start=done, console=console) as progress:
        for step, metrics, columns in trainer.steps(done + 1, total, stop=stop.reached):
            evaluates = step == total or (config.eval.every and step % config.eval.every == 0)
            if evaluates:
                metrics |= trainer.evaluate()
            if evaluates or step % config.log.every == 0:
                writer.write(step, metrics)
            if columns is not None:
                writer.rollouts(step, columns)
            trainer.save(step, force=stop.received or step == total)
            progress.update(step, reward=metrics["reward/root_mean"], tokens_per_s=metrics["rollout/tokens_per_s"])
        saved = trainer.close()
    if saved != step:
        raise InputError(f"step {step} is not saved, see above; make room in {workdir}, then the same command resumes")

    # --- what came of it
    if stop.received:
        console.print(f"{stop.signal.name}: saved after step {step}; the same command resumes")
        return stop.status
    if leads:
        console.print(report.terminal_table(report.load_metrics(workdir)))
        console.print(f"report: {report.write_report(workdir)}", soft_wrap=True)
    return 0


def _check_steps(workdir: Path, done: int, total: int) -> None:
    if done > total:
        raise InputError(
            f"{workdir} has {done} steps done and train.steps = {total}; raise it, or use another --workdir"
        )


if __name__ == "__main__":
    cli.run(main)
