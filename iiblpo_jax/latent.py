"""Stage 1 alone: trains the latent of a config and stores it in WORKDIR/latent.

    python -m iiblpo_jax.latent --config=configs/arithmetic.py --workdir=runs/first

`iiblpo_jax.train` does the same by itself when the workdir has no latent yet. A latent that is already there is loaded,
checked against the model, and its table shown again.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.config import files


def main(config: ConfigDict, workdir: Path) -> None:
    """Trains or finds the latents of a workdir."""
    import jax  # after the command line is checked

    from iiblpo_jax.data.pipeline import PromptPipeline
    from iiblpo_jax.data.registry import make_tasks
    from iiblpo_jax.latents import diagnostics, ensure_latents
    from iiblpo_jax.latents.continuations import training_questions
    from iiblpo_jax.latents.storage import METRICS, has_latents
    from iiblpo_jax.model.decoder import params_of
    from iiblpo_jax.model.files.loading import load_model
    from iiblpo_jax.step import specs

    leads, directory = jax.process_index() == 0, workdir / "latent"
    console = Console(quiet=not leads)

    # --- model and prompts
    model, tokenizer = load_model(config.model.path)
    specs.check_positions(config, model.config, (), tokenizer)

    def questions():
        pipeline = PromptPipeline(
            make_tasks(config.task, seed=config.data.seed),
            tokenizer,
            prompts_per_step=config.train.prompts_per_step,
            max_prompt=config.rollout.max_prompt,
            max_answer=1,
            seed=config.data.seed,
        )
        return training_questions(pipeline, tokenizer, config.latent.prompts)

    # --- train, or load and check
    found = has_latents(directory)
    ensure_latents(
        config, directory, model.config, params_of(model), questions, stop_ids=tokenizer.stop_ids, console=console
    )
    if leads:
        files.save(config, workdir)
    if found:
        console.print(f"found in {directory}; delete it to train again")
        diagnostics.show(json.loads((directory / METRICS).read_text()), console)


if __name__ == "__main__":
    cli.run(main)
