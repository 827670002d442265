"""Trains a language model with IIB-LPO (or, with its pieces switched off, plain GRPO).

    python -m iiblpo_jax.train --config=configs/arithmetic.py --workdir=runs/first [--config.optim.lr=1e-4 ...]

Running the same line again resumes. One step (trainer.py):

    prompts -> rollout (Forest) -> rewards on the host, information terms on the device
            -> scores, kept set, advantages -> update
"""

import signal
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from iiblpo_jax import cli, configuration


class StopRequest:
    """Turns SIGTERM into a flag, so that the step under way is finished and saved."""

    def __init__(self):
        self.received = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._before)

    def _receive(self, *_):
        self.received = True


def main(config: ConfigDict, workdir: Path) -> None:
    """The whole run, from nothing or from the last checkpoint to the report."""
    from iiblpo_jax import report  # jax: after the command line is checked
    from iiblpo_jax.metrics import MetricWriter, Progress
    from iiblpo_jax.trainer import Trainer

    console, total = Console(), config.train.steps

    # --- model, data, latent, optimizer, checkpoint: everything a user can get wrong fails here
    trainer = Trainer(config, workdir, console=console)
    start = trainer.restore()
    configuration.save(config, workdir)

    # --- start or resume
    step = done = start or 0
    writer = MetricWriter(workdir, resume_step=start)
    if start is None:
        console.print("evaluating the model as it is")
        writer.write(0, {"data/dropped": trainer.pipeline.dropped} | trainer.latent_metrics() | trainer.evaluate())
    else:
        console.print(f"resuming after step {start}")

    # --- loop
    with StopRequest() as stop, writer, Progress(total, start=done, console=console) as progress:
        for step in range(done + 1, total + 1):
            metrics, columns = trainer.step(step)
            evaluates = step == total or (config.eval.every and step % config.eval.every == 0)
            if evaluates:
                metrics |= trainer.evaluate()
            if evaluates or step % config.log.every == 0:
                writer.write(step, metrics)
            if columns is not None:
                writer.rollouts(step, columns)
            trainer.save(step, force=stop.received or step == total)
            progress.update(step, reward=metrics["reward/mean"], tokens_per_s=metrics["rollout/tokens_per_s"])
            if stop.received:
                break
    trainer.close()

    # --- what came of it
    if stop.received:
        console.print(f"SIGTERM: saved after step {step}; the same command resumes")
        return
    console.print(report.terminal_table(report.load_metrics(workdir)))
    console.print(f"report: {report.write_report(workdir)}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
