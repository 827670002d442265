"""One GRPO step: trained tokens per second and bytes, packed against padded rows and against torch.

    python benchmarks/update.py [--json=PATH] [--shares=0,25,50,75]

Rows: P prompts of M = 4 roots with K = 3 branches each, prompt 64, responses 256; a branch inherits a share of its
root's response. `tokens` counts the response tokens of all rows, the same for every arm: what packing computes once
still counts once a trajectory. Before anything is timed, loss and gradient norm of all arms must agree to 1e-4.

Arms: `packed` (bins of as many nodes as a padded microbatch has), `padded` (whole rows), each with activations
recomputed (`remat`) or kept, and the same step in torch (peers/torch_peer.py, its rows padded), with gradient
checkpointing and without.
Bytes: `work_bytes` is what the step needs beyond weights and optimizer state: gradients, activations, logits. For ours
the compiled program's temporaries, for torch the growth of the process's peak (resident set on a CPU). `state_bytes` is
the arguments of the compiled program: weights, both moments, rows.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import sys
import tempfile
import time
import types
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import models
import numpy as np
from peers.protocol import Peer

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.packed.bins import PackSpec, make_packing
from iiblpo_jax.objectives import make_objective
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.epochs import make_update
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.optimizer import Schedule, make_optimizer
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import init_state

TORCH_PEER = Path(__file__).parent / "peers" / "torch_peer.py"
ROOTS, BRANCHES = 4, 3
OPTIM = types.SimpleNamespace(lr=1e-6, psa_lr=1e-6, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0)
AGREE = {"float32": 1e-4, "bfloat16": 3e-2}
COLUMNS = ("share", "arm", "tokens", "seconds", "tokens_per_s", "first_over_this", "work_bytes", "state_bytes", "mfu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Prompts, prompt and response tokens, padded rows a microbatch."""

    prompts: int
    prompt: int
    response: int
    microbatch: int


SIZES = {
    "tiny": Sizes(prompts=1, prompt=6, response=12, microbatch=4),
    "cpu": Sizes(prompts=1, prompt=64, response=256, microbatch=16),
    "gpu": Sizes(prompts=4, prompt=128, response=896, microbatch=4),
}
SMALL = dataclasses.replace(models.MODEL_54M, vocab_size=8192, n_layers=4, tied_embeddings=True)


def main():
    """Every share asked for."""
    options = parse()
    enable_compilation_cache()
    scale = "tiny" if options.tiny else "cpu" if jax.default_backend() == "cpu" else "gpu"
    config = trained_model(scale, options.model)
    params, rows = models.random_params(config), []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        torch = start_torch(stack, Path(folder), config, params, options)
        for share in options.shares:
            bench = Bench(config, params, options, SIZES[scale], share / 100, Path(folder), torch)
            arms = harness.chosen(bench.arms(), options)
            runs = first_runs(arms)
            check(runs, AGREE[options.dtype])
            arms = [dataclasses.replace(arm, warm=lambda: None) for arm in arms if arm.name in runs]
            found = harness.compare(arms, repetitions=options.repetitions)
            rows += [{"share": f"{share}%", **row, **bench.facts(row)} for row in found]
    harness.report(options, "update", rows, COLUMNS)


def trained_model(scale: str, preset: str) -> ModelConfig:
    """What is trained at each scale; `preset` on an accelerator."""
    fixed = {"tiny": dataclasses.replace(models.TINY, tied_embeddings=True), "cpu": SMALL}
    return fixed.get(scale) or models.architecture(preset)


def parse():
    """The command line."""
    parser = harness.arguments(__doc__)

    def numbers(text):
        return [int(word) for word in harness.words(text)]

    parser.add_argument("--shares", type=numbers, default=[0, 25, 50, 75], help="inherited share of a branch, percent")
    parser.add_argument("--pack-tokens", type=int, help="nodes of a bin (default: those of a padded microbatch)")
    parser.add_argument("--dtype", default="float32" if jax.default_backend() == "cpu" else "bfloat16")
    parser.add_argument("--model", default="qwen3-0.6b", help="preset for an accelerator (default %(default)s)")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch and transformers")
    return parser.parse_args()


def start_torch(stack, folder, config, params, options) -> Peer | None:
    """The torch peer with these weights, or None where torch is not installed."""
    if options.torch_python == sys.executable and importlib.util.find_spec("torch") is None:
        print("torch: skipped, it is not installed", file=sys.stderr)
        return None
    directory = models.export(folder / "model", config, params)
    return stack.enter_context(Peer(options.torch_python, str(TORCH_PEER), f"--model={directory}"))


class Bench:
    """The arms of one prefix share."""

    def __init__(self, config: ModelConfig, params, options, size: Sizes, share: float, folder: Path, torch):
        self.config, self.params, self.options, self.size, self.torch = config, params, options, size, torch
        self.cut = round(share * size.response)
        self.rows = shared_rows(config, size, self.cut)
        self.tokens = int(self.rows.mask_RT.sum())
        self.file = folder / f"rows-{self.cut}.npz"
        names = ("tokens_RC", "prompt_len_R", "mask_RT", "advantage_R")
        np.savez(self.file, **{name: np.asarray(getattr(self.rows, name)) for name in names})
        self.bytes = {}

    def arms(self) -> list[harness.Arm]:
        """`packed` first: ratios are over it."""
        size, group = self.size, ROOTS * (1 + BRANCHES)
        pack = self.options.pack_tokens or one_bin(self.rows, group, size.microbatch)
        settings = {
            "packed": UpdateSettings(pack_tokens=pack, group_size=group, remat=False, dtype=self.options.dtype),
            "packed remat": UpdateSettings(pack_tokens=pack, group_size=group, dtype=self.options.dtype),
            "padded": UpdateSettings(microbatch=size.microbatch, remat=False, dtype=self.options.dtype),
            "padded remat": UpdateSettings(microbatch=size.microbatch, dtype=self.options.dtype),
        }
        arms = [harness.Arm(name=name, run=self._ours(name, s)) for name, s in settings.items()]
        recomputed = "torch checkpointing"
        if self.torch:
            arms += [
                harness.Arm(name="torch", run=lambda: self._theirs("torch", checkpointing=False)),
                harness.Arm(name=recomputed, run=lambda: self._theirs(recomputed, checkpointing=True)),
            ]
        return arms

    def _ours(self, name: str, settings: UpdateSettings):
        optimizer = make_optimizer(OPTIM)
        objective = make_objective("grpo", max_tokens=self.size.response)
        gradient = MinibatchGradient(settings=settings, objective=objective, model_config=self.config)
        update = make_update(gradient, optimizer, Schedule(peak=OPTIM.lr))

        def fresh():
            return init_state({"policy": jax.tree.map(jnp.copy, self.params)}, optimizer)

        @functools.cache
        def program():
            compiled = update.lower(jax.eval_shape(fresh), self.rows, jax.random.key(0)).compile()
            memory = compiled.memory_analysis()
            self.bytes[name] = {"work": memory.temp_size_in_bytes, "state": memory.argument_size_in_bytes}
            return compiled

        def run():
            compiled = program()
            # A fresh state every time: kept, the states of all arms would fill the memory of one device.
            state = jax.block_until_ready(fresh())
            began = time.perf_counter()
            _, metrics = jax.block_until_ready(compiled(state, self.rows, jax.random.key(0)))
            seconds = time.perf_counter() - began
            return {
                "seconds": seconds,
                "tokens": self.tokens,
                "loss": float(metrics["update/loss"]),
                "grad_norm": float(metrics["update/grad_norm"]),
                "work_bytes": self.bytes[name]["work"],
            }

        return run

    def _theirs(self, name: str, *, checkpointing: bool):
        reply = self.torch.ask(
            "grpo",
            rows=str(self.file),
            microbatch=self.size.microbatch,
            learning_rate=0.0,
            clip=OPTIM.clip_norm,
            checkpointing=checkpointing,
            dtype=self.options.dtype,
            memory=name not in self.bytes,
        )
        self.bytes.setdefault(name, {"work": reply["peak_bytes"]})  # by the first call, which is not timed
        facts = {key: reply[key] for key in ("seconds", "loss", "grad_norm")}
        return {**facts, "tokens": self.tokens, "work_bytes": self.bytes[name]["work"]}

    def facts(self, row: dict) -> dict:
        """State bytes, and where the device's limits are known the share of its peak rate that useful FLOPs reach."""
        limits, ours = harness.device_limits(), not row["arm"].startswith("torch")
        facts = {"state_bytes": self.bytes[row["arm"]]["state"]} if ours else {}
        if limits and ours:
            flops = self.flops(shared=row["arm"].startswith("packed"))
            facts["mfu"] = flops / row["seconds"]["median"] / limits[self.options.dtype]
        return facts

    def flops(self, *, shared: bool) -> float:
        """Useful FLOPs of the step, recomputation not counted: 6 a weight and token, attention over the causal half.

        `shared`: every prefix of a group is computed once (packed rows), else once a row.
        """
        c, (s, t) = self.config, (self.size.prompt, self.size.response)
        layer = sum(x.size for x in jax.tree.leaves(self.params["layers"]))
        head = c.vocab_size * c.d_model

        def nodes(first):  # FLOPs of the positions from `first` to the end of one row
            count, keys = s + t - first, (s + t) * (s + t + 1) / 2 - first * (first + 1) / 2
            return 6 * layer * count + 12 * c.n_layers * c.n_heads * c.head_dim * keys + 6 * head * min(count, t)

        if not shared:
            return self.rows.tokens_RC.shape[0] * nodes(0)
        whole = nodes(0) + (ROOTS - 1) * nodes(s)  # the roots of a prompt share it
        return self.size.prompts * (whole + ROOTS * BRANCHES * nodes(s + self.cut))


def shared_rows(config: ModelConfig, size: Sizes, cut: int) -> Rows:
    """Rows of random tokens in Forest order: a branch repeats its root's first `cut` response tokens."""
    rng, n = np.random.default_rng(0), size.prompts * ROOTS * (1 + BRANCHES)

    # Not the last id: it is the padding of the exported model, whose embedding torch gives no gradient.
    def tokens(*shape):
        return rng.integers(1, config.vocab_size - 1, shape).astype(np.int32)

    response = tokens(size.prompts, ROOTS, 1 + BRANCHES, size.response)
    response[:, :, 1:, :cut] = response[:, :, :1, :cut]
    prompt = np.repeat(tokens(size.prompts, size.prompt), n // size.prompts, axis=0)
    j_R, rows_R = np.arange(n) % (1 + BRANCHES), np.arange(n)
    at_R = np.where(j_R > 0, cut, 0)
    ones_RT, zeros_R = np.ones((n, size.response), np.float32), np.zeros(n, np.float32)
    rows = Rows(
        tokens_RC=np.concatenate([prompt, response.reshape(n, -1)], axis=1),
        mask_RT=ones_RT,
        prompt_len_R=np.full(n, size.prompt, np.int32),
        own_mask_RT=(np.arange(size.response) >= at_R[:, None]).astype(np.float32),
        raw_logp_RT=-ones_RT,
        advantage_R=rng.normal(size=n).astype(np.float32),
        reward_R=zeros_R,
        correct_R=zeros_R,
        keep_R=np.ones(n, bool),
        ib_score_R=zeros_R,
        group_R=rows_R // (n // size.prompts),
        length_R=np.full(n, size.response, np.int32),
        trajectory_R=rows_R,
        parent_R=np.where(j_R > 0, rows_R - j_R, -1),
        branch_at_R=at_R,
    )
    return jax.tree.map(jnp.asarray, rows)


def one_bin(rows: Rows, group: int, count: int) -> int:
    """Nodes of the first `count` rows, rounded up to 64."""
    roomy = PackSpec(tokens=rows.tokens_RC.size, rows=count, block=64, blocks=rows.tokens_RC.size)
    length_R = rows.prompt_len_R + rows.length_R
    packing = make_packing(rows.tokens_RC[:count], length_R[:count], group=min(group, count), spec=roomy)
    return -(-int(packing.nodes) // 64) * 64


def first_runs(arms) -> dict[str, dict]:
    """One untimed run of every arm; one that does not fit into the device's memory is left out."""
    runs = {}
    for arm in arms:
        try:
            runs[arm.name] = arm.run()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{arm.name}: skipped, out of memory", file=sys.stderr)
    return runs


def check(runs: dict[str, dict], tolerance: float) -> None:
    """RuntimeError unless all arms have the same loss and gradient norm."""
    first = next(iter(runs.values()))
    for name, run in runs.items():
        for what in ("loss", "grad_norm"):
            if abs(run[what] - first[what]) > tolerance * max(abs(first[what]), 1e-3):
                raise RuntimeError(f"{name} computes another {what}: {run[what]} instead of {first[what]}")


if __name__ == "__main__":
    main()
