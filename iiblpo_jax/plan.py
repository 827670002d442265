"""Compiles a run for devices that need not be there, and says whether it fits, what it moves and what it costs.

    python -m iiblpo_jax.plan --config=configs/qwen2_5_7b_v5p_64.py --topology=v5p:4x4x4 [--json=PATH]
    python -m iiblpo_jax.plan --config=configs/arithmetic.py --topology=cpu:8

All programs of a step (publish, rollout, inform, score, update) are compiled from shapes: no weights, tokenizer or data
are read. TPU topologies need libtpu, not a TPU: pip install iiblpo_jax[plan]. The architecture comes from model.path
where it is there, from --model, or from the preset (model/presets.py) that the last part of model.path names.
Exit status 1: it does not fit.
"""

import json
import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import RunConfig
from iiblpo_jax.planning.topology import architecture, topology_devices

TOPOLOGY = flags.DEFINE_string("topology", "", "v4, v5e, v5p or v6e with the shape of the slice, such as v5p:4x4x4.")
MODEL = flags.DEFINE_string("model", "", "A preset such as qwen2.5-7b, in place of model.path.")
JSON = flags.DEFINE_string("json", "", "Writes the plan here as well.")
MEMORY = flags.DEFINE_float("memory", 0, "GiB of a device; 0 = what the chip has.")
PROMPT = flags.DEFINE_float("prompt", 0.5, "Mean tokens of a prompt, as a part of rollout.max_prompt.")
RESPONSE = flags.DEFINE_float("response", 0.5, "Mean tokens of a response, as a part of rollout.max_tokens.")
LAYERS = flags.DEFINE_integer("layers", 0, "Compiles a model of so many layers instead; 0 = all.")
FORMULAS = flags.DEFINE_bool("formulas", False, "Compiles nothing: only what lives through a step, and least times.")


def main(config: RunConfig, _: Path | None) -> None:
    """Compiles, prints, writes."""
    devices = topology_devices(TOPOLOGY.value)
    for flag in (PROMPT, RESPONSE):
        if not 0 < flag.value <= 1:
            raise InputError(f"--{flag.name}={flag.value}; use a part above 0 and at most 1, such as 0.5")

    from iiblpo_jax.planning.plan import make_plan  # after jax knows its devices
    from iiblpo_jax.planning.roofline import Lengths

    model = architecture(config.model.path, MODEL.value, layers=LAYERS.value)
    lengths = Lengths(
        prompt=PROMPT.value * config.rollout.max_prompt, response=RESPONSE.value * config.rollout.max_tokens
    )
    console = Console(stderr=True)
    plan = make_plan(
        config,
        model,
        devices,
        topology=TOPOLOGY.value,
        lengths=lengths,
        memory=int(MEMORY.value * 2**30),
        formulas=FORMULAS.value,
        progress=lambda text: console.print(text, highlight=False),
    )
    if JSON.value:
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(JSON.value).write_text(json.dumps(plan.as_dict(), indent=1) + "\n")
    plan.show(Console())
    if plan.refusal:
        print(f"does not fit: {plan.refusal}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, needs_workdir=False)
