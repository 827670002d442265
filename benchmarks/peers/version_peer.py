"""The arms of one checkout, run on request: decode by case and one GRPO step. Started by benchmarks/versions.py.

    PYTHONPATH=CHECKOUT:CHECKOUT/benchmarks python benchmarks/peers/version_peer.py [--tiny] [--share=PERCENT]

Both sides of a comparison run this file, so it uses of a checkout only what changes rarely: the arms that its own
benchmarks/rollout.py and benchmarks/update.py make.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import models  # benchmarks/ of the checkout: its folder is on the path
import rollout
import update

from iiblpo_jax.cli import enable_compilation_cache


def arms(options, folder: Path) -> dict:
    """Name -> Arm."""
    scale = "tiny" if options.tiny else "cpu"
    config, params = models.counting_model("tiny" if options.tiny else "54m")
    bench = rollout.Bench(config, params, "float32", rollout.SIZES[scale], {})
    found = {}
    for case in ("equal", "ragged", "branches"):
        found[f"decode {case}"] = next(arm for arm in getattr(bench, case)() if arm.name == "ours")
    settings = argparse.Namespace(pack_tokens=None, dtype="float32", torch_python="", arms=[])
    trained = update.trained_model(scale, "")
    step = update.Bench(
        trained, models.random_params(trained), settings, update.SIZES[scale], options.share / 100, folder, None
    )
    return found | {f"update {arm.name}": arm for arm in step.arms()}


def cpu_seconds() -> float:
    """Of this process so far, all its threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    """Serves requests until the input ends."""
    from peers.protocol import serve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--share", type=int, default=50)
    options = parser.parse_args()
    enable_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        known = arms(options, Path(folder))

        def warm(arm: str) -> dict:
            began = time.perf_counter()
            (known[arm].warm or known[arm].run)()
            return {"seconds": time.perf_counter() - began}

        def run(arm: str) -> dict:
            began = cpu_seconds()
            return {**known[arm].run(), "cpu_seconds": cpu_seconds() - began}

        serve({"arms": list(known)}, {"warm": warm, "run": run})


if __name__ == "__main__":
    main()
