"""Stage 1 alone: trains the latent of a config and stores it in WORKDIR/latent.

    python -m iiblpo_jax.latent --config=configs/arithmetic.py --workdir=runs/first

`iiblpo_jax.train` does the same by itself, on the same devices, when the workdir has no latent yet. A latent that is
already there is loaded, checked against the model, and its table shown again.
"""

import json
from pathlib import Path

from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.config import history
from iiblpo_jax.config.defaults import RunConfig


def main(config: RunConfig, workdir: Path) -> None:
    """Trains or finds the latents of a workdir."""
    import jax  # after the command line is checked

    from iiblpo_jax.latents import diagnostics
    from iiblpo_jax.latents.storage import METRICS, has_latents
    from iiblpo_jax.run.checkpoints import check_writable
    from iiblpo_jax.run.lock import WorkdirLock
    from iiblpo_jax.run.resumable import check_workdir
    from iiblpo_jax.run.setup import set_up

    leads, directory = jax.process_index() == 0, workdir / "latent"
    console = Console(quiet=not leads)

    # --- model, prompts, devices, as training has them
    check_writable(workdir)
    with WorkdirLock(workdir):
        setup = set_up(config, workdir)
        resumed = check_workdir(workdir, config, setup.model, setup.policy)

        # --- train, or load and check
        found = has_latents(directory)
        setup.latents(directory, setup.reference(), console)
        if leads:
            history.keep(config, workdir, verb="latent", console=console)
    if found:
        mend = "the checkpoints belong to it" if resumed else "delete it to train again"
        console.print(f"found in {directory}; {mend}")
        diagnostics.show(json.loads((directory / METRICS).read_text()), console)


if __name__ == "__main__":
    cli.run(main)
