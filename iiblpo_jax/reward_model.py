"""A reward model of preferences, in WORKDIR/reward_model: InfoRM (arXiv 2402.09345).

    python -m iiblpo_jax.reward_model --config=configs/arithmetic_grpo.py --workdir=runs/judge

It learns from right and wrong responses of the model to one prompt, or from a file of pairs (reward_model.pairs).
Training then learns from it with --config.reward.model=runs/judge/reward_model. One that is there is checked against
the model, and its table shown again; the same line again goes on where a killed one was.
"""

from pathlib import Path

from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.config import history
from iiblpo_jax.config.defaults import RunConfig


def main(config: RunConfig, workdir: Path) -> int:
    """Makes or finds the reward model of a workdir; the exit status."""
    import jax  # after the command line is checked

    from iiblpo_jax.run import reward_model as stage
    from iiblpo_jax.run.checkpoints import check_writable
    from iiblpo_jax.run.lock import WorkdirLock
    from iiblpo_jax.run.setup import set_up
    from iiblpo_jax.run.stopping import StopRequest

    leads, folder = jax.process_index() == 0, workdir / "reward_model"
    console = Console(quiet=not leads)

    # --- model, prompts, devices, as training has them
    check_writable(workdir)
    with WorkdirLock(workdir), StopRequest() as stop:
        setup = set_up(config, workdir)
        if leads:
            history.keep(config, workdir, verb="reward_model", console=console)

        # --- train, or load and check
        metrics = stage.ensure_reward_model(setup, folder, console=console, stop=stop.reached)
    if metrics is None:
        console.print(f"{stop.signal.name}: saved; the same command resumes")
        return stop.status
    stage.show(metrics, console)
    console.print(f"in {folder}; learn from it with --config.reward.model={folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
