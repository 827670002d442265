"""Supervised fine-tuning: teaches a model responses that are there.

    python -m iiblpo_jax.sft --config=configs/arithmetic_sft.py --workdir=runs/sft [--config.optim.lr=1e-5 ...]

Learns the responses of offline.data, a file of {prompt, response} rows, or the gold solutions of the config's task. A
step is one optimiser step on train.prompts_per_step of them; optimiser, microbatches, mesh and checkpoints are those
of training. Running the same line again resumes. WORKDIR/model is what comes of it: another run's model.path.
"""

from pathlib import Path

from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.config.defaults import RunConfig


def main(config: RunConfig, workdir: Path) -> int:
    """The whole run, from nothing or from the last checkpoint to the model; the exit status."""
    import jax  # after the command line is checked

    from iiblpo_jax.offline import demonstrations
    from iiblpo_jax.offline.losses.sft import sft
    from iiblpo_jax.offline.stage import Stage, learn

    console = Console(quiet=jax.process_index() != 0)
    stage = Stage(config, workdir, verb="sft", loss=sft(), find=demonstrations.find)
    console.print(f"{stage.source.said}, {len(stage.heldout)} held out")
    return learn(stage, verb="sft", workdir=workdir, console=console)


if __name__ == "__main__":
    cli.run(main)
