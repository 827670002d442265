"""Learns from pairs: a response that is preferred, and one that is not (DPO and its relatives, unlearning).

    python -m iiblpo_jax.preferences --config=configs/arithmetic_dpo.py --workdir=runs/dpo [--config.offline.loss=npo]

Pairs are those of a file of {prompt, chosen, rejected} rows (offline.data), or right and wrong rollouts of one prompt:
of the policy as it is (offline.source=policy), of the one that the run began with (start), or of a rollout log
(recorded). A step is one optimiser step on train.prompts_per_step of them. Running the same line again resumes.
WORKDIR/model is what comes of it: another run's model.path.
"""

from pathlib import Path

from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.config.defaults import RunConfig


def main(config: RunConfig, workdir: Path) -> int:
    """The whole run, from nothing or from the last checkpoint to the model; the exit status."""
    import jax  # after the command line is checked

    from iiblpo_jax.offline import pairs
    from iiblpo_jax.offline.losses import make_loss
    from iiblpo_jax.offline.stage import Stage, learn

    console, offline = Console(quiet=jax.process_index() != 0), config.offline
    retain = offline.retain_coef if offline.retain else 0.0
    loss = make_loss(offline.loss, offline.options.to_dict(), retain=retain)
    stage = Stage(config, workdir, verb="preferences", loss=loss, find=pairs.find)
    console.print(f"{offline.loss}: {stage.source.said}, {len(stage.heldout)} cases held out")
    return learn(stage, verb="preferences", workdir=workdir, console=console)


if __name__ == "__main__":
    cli.run(main)
