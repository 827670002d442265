"""Compiles a run for devices that need not be there, and says whether it fits, what it moves and what it costs.

    python -m iiblpo_jax.plan --config=configs/qwen2_5_7b_v5p_64.py --topology=v5p:4x4x4 [--json=PATH]
    python -m iiblpo_jax.plan --config=configs/arithmetic.py --topology=cpu:8

All programs of a step (publish, rollout, inform, score, update) are compiled from shapes: no weights, tokenizer or data
are read. TPU topologies need libtpu, not a TPU: pip install iiblpo_jax[plan]. The architecture comes from model.path
where it is there, from --model, or from the preset (model/presets.py) that the last part of model.path names.
Exit status 1: it does not fit.
"""

import dataclasses
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.defaults import RunConfig
from iiblpo_jax.errors import InputError

TOPOLOGY = flags.DEFINE_string("topology", "", "v4, v5e, v5p or v6e with the shape of the slice, such as v5p:4x4x4.")
MODEL = flags.DEFINE_string("model", "", "A preset such as qwen2.5-7b, in place of model.path.")
JSON = flags.DEFINE_string("json", "", "Writes the plan here as well.")
MEMORY = flags.DEFINE_float("memory", 0, "GiB of a device; 0 = what the chip has.")
PROMPT = flags.DEFINE_float("prompt", 0.5, "Mean tokens of a prompt, as a part of rollout.max_prompt.")
RESPONSE = flags.DEFINE_float("response", 0.5, "Mean tokens of a response, as a part of rollout.max_tokens.")
LAYERS = flags.DEFINE_integer("layers", 0, "Compiles a model of so many layers instead; 0 = all.")
FORMULAS = flags.DEFINE_bool("formulas", False, "Compiles nothing: only what lives through a step, and least times.")

_CPU = re.compile(r"cpu:([1-9]\d*)")
_TPU = re.compile(r"(v4|v5e|v5p|v6e):\d+x\d+(x\d+)?")


def main(config: RunConfig, _: Path | None) -> None:
    """Compiles, prints, writes."""
    devices = topology_devices(TOPOLOGY.value)
    for flag in (PROMPT, RESPONSE):
        if not 0 < flag.value <= 1:
            raise InputError(f"--{flag.name}={flag.value}; use a part above 0 and at most 1, such as 0.5")

    from iiblpo_jax.planning import make_plan  # after jax knows its devices
    from iiblpo_jax.roofline import Lengths

    model = architecture(config.model.path, MODEL.value, layers=LAYERS.value)
    lengths = Lengths(
        prompt=PROMPT.value * config.rollout.max_prompt, response=RESPONSE.value * config.rollout.max_tokens
    )
    console = Console(stderr=True)
    plan = make_plan(
        config, model, devices, topology=TOPOLOGY.value, lengths=lengths, memory=int(MEMORY.value * 2**30),
        formulas=FORMULAS.value, progress=lambda text: console.print(text, highlight=False),
    )  # fmt: skip
    if JSON.value:
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(JSON.value).write_text(json.dumps(plan.as_dict(), indent=1) + "\n")
    plan.show(Console())
    if plan.refusal:
        print(f"does not fit: {plan.refusal}", file=sys.stderr)
        sys.exit(1)


def topology_devices(topology: str) -> list:
    """The devices of `cpu:N` or of a TPU slice; jax must not have looked for devices yet.

    Raises:
      InputError: no such topology, or libtpu is missing.
    """
    import jax

    cpus = _CPU.fullmatch(topology)
    if not cpus and not _TPU.fullmatch(topology):
        raise InputError(
            f"--topology={topology!r} is not known; use one such as v5p:4x4x4, v5e:16x16, v6e:8x8 or cpu:8"
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache has no text
    if cpus:
        jax.config.update("jax_num_cpu_devices", int(cpus[1]))
        return jax.devices()
    return tpu_devices(topology)


def tpu_devices(topology: str) -> list:
    """The devices of a slice, such as v5p:4x4x4, of which nobody needs to have one.

    Raises:
      InputError: libtpu is missing, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("compiling for TPUs needs libtpu; pip install iiblpo_jax[plan]")
    # libtpu would ask the machine which TPU it is, and let no second process do the same.
    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.update(alone | {"TPU_ACCELERATOR_TYPE": "v5p-8"})  # any
    import jax
    from jax.experimental import topologies

    whole_chips = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **whole_chips).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--topology={topology} is no slice of a TPU ({reason}); use one such as v5p:4x4x4") from None


def architecture(path: str, preset: str = "", *, layers: int = 0):
    """The ModelConfig of a plan; weights are not read.

    Args:
      path: model.path; where nothing lies there, the preset of the same name.
      preset: name of a preset, in place of `path`.
      layers: depth instead of the model's own; 0 = its own.

    Raises:
      InputError: neither a model nor a preset.
    """
    from iiblpo_jax.model.loading import load_config
    from iiblpo_jax.model.presets import PRESETS

    named = path.rstrip("/").rpartition("/")[2].lower()
    there = path.startswith(("package:", "preset:")) or Path(path).expanduser().exists()
    if preset:
        model = load_config(f"preset:{preset.removeprefix('preset:')}")
    elif there or named not in PRESETS:
        if not there:
            raise InputError(f"no model at {path} and no preset {named}; pass --model, one of {', '.join(PRESETS)}")
        model = load_config(path)
    else:
        model = PRESETS[named]
    return dataclasses.replace(model, n_layers=layers) if layers else model


if __name__ == "__main__":
    cli.run(main, needs_workdir=False)
