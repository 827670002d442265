"""Seconds the compiler takes by depth, and the start that finds everything in the persistent cache.

    python benchmarks/compile.py [--json=PATH] [--depths=4,16,32]

Each depth starts two fresh processes on one empty cache folder: `cold` compiles, `warm` reads what the first one left.
A program's seconds are those of tracing, lowering and compiling; `start_seconds` is the whole process with its imports.
The layers are narrow (D = 128): the compiler's time depends on the number of operations, not on their sizes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time

import harness
import jax
import jax.numpy as jnp
import models
import update

from iiblpo_jax.objectives import make_objective
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.publication import PublicationSpec
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.update.epochs import make_update
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.optimizer import Schedule, make_optimizer
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import init_state

NARROW = dataclasses.replace(
    models.MODEL_54M, vocab_size=4096, d_model=128, d_ff=384, n_heads=4, n_kv_heads=2, head_dim=32
)
ROWS = update.Sizes(prompts=1, prompt=32, response=96, microbatch=4)
SLOTS = 8
COLUMNS = ("depth", "cache", "rollout_seconds", "padded_seconds", "packed_seconds", "start_seconds")


def main():
    """Every depth, cold and warm; repetitions start from new folders."""
    parser = harness.arguments(__doc__, repetitions=1)

    def numbers(text):
        return [int(word) for word in harness.words(text)]

    parser.add_argument("--depths", type=numbers, default=[4, 16, 32])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # a child process: this depth, once
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    rows = []
    for depth in [1] if options.tiny else options.depths:
        runs = {"cold": [], "warm": []}
        for _ in range(options.repetitions):
            with tempfile.TemporaryDirectory() as folder:
                for found in runs.values():
                    found.append(child(depth, folder))
        for cache, found in runs.items():
            spreads = {name: harness.spread([run[name] for run in found]) for name in found[0]}
            rows.append({"depth": depth, "cache": cache, **spreads})
    harness.report(options, "compile", rows, COLUMNS)


def child(depth: int, folder: str) -> dict:
    """One measurement in a process of its own, with `folder` as its compilation cache."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, f"--measure={depth}"]
    began = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **cache}, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "start_seconds": time.perf_counter() - began}


def measure(depth: int) -> dict:
    """Seconds until each program could run."""
    config = dataclasses.replace(NARROW, n_layers=depth)
    params = jax.eval_shape(lambda: models.random_params(config))
    spec = RolloutSpec(
        model=config,
        roots=ROWS.prompts,
        slots=SLOTS,
        max_tokens=ROWS.response,
        stop_ids=(models.STOP,),
        branching=Branching(k=update.BRANCHES),
    )
    published = PublicationSpec(model=config)
    prompts = jax.ShapeDtypeStruct((SLOTS, ROWS.prompt), jnp.int32)
    lengths = jax.ShapeDtypeStruct((SLOTS,), jnp.int32)

    def rollout():
        return models.lower_rollout(params, published, spec, prompts, lengths).compile()

    pack = ROWS.microbatch * (ROWS.prompt + ROWS.response)
    group = update.ROOTS * (1 + update.BRANCHES)
    return {
        "rollout_seconds": seconds(rollout),
        "padded_seconds": seconds(lambda: compile_update(config, params, UpdateSettings(microbatch=ROWS.microbatch))),
        "packed_seconds": seconds(
            lambda: compile_update(config, params, UpdateSettings(pack_tokens=pack, group_size=group))
        ),
    }


def compile_update(config, params, settings: UpdateSettings):
    """The compiled update."""
    optimizer = make_optimizer(update.OPTIM)
    objective = make_objective("grpo", max_tokens=ROWS.response)
    state = jax.eval_shape(lambda: init_state({"policy": params}, optimizer))
    rows = update.shared_rows(config, ROWS, ROWS.response // 2)
    gradient = MinibatchGradient(settings=settings, objective=objective, model_config=config)
    function = make_update(gradient, optimizer, Schedule(peak=update.OPTIM.lr))
    return function.lower(state, rows, jax.random.key(0)).compile()


def seconds(call) -> float:
    """Wall-clock seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
