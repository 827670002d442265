"""The devices of a plan, which nobody needs to have, and the architecture that it is for."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

from iiblpo_jax.common.errors import InputError

_CPU = re.compile(r"cpu:([1-9]\d*)")


_TPU = re.compile(r"(v4|v5e|v5p|v6e):\d+x\d+(x\d+)?")


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
    from iiblpo_jax.model.files.loading import load_config
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
