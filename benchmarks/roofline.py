"""How close to the machine's own limits: decode to bandwidth or matmul rate, prefill and update to matmul rate.

    python benchmarks/roofline.py [--json=PATH] [--model=54m] [--batches=1,16,64] [--dtypes=float32,bfloat16]

`limit` rows are measured here, by plain large matmuls and by sums over an array larger than any cache, not taken from a
data sheet; the data sheet's number stands beside them (`sheet`) where the device is known. Other rows say which part of
the limit of the same dtype they reach.

Decode: a step's limit is the longer of reading weights and filled keys and values (what the engine reads of the empty
part of its caches does not count) and of its FLOPs, 2 a weight and sequence. Its seconds are the difference of a long
and a short rollout of equal lengths over the difference of their steps, so prefill and set-up cancel. Prefill: 2 FLOPs
a weight of the layers and token, attention over the causal half. Update: update.py's padded rows, 6 a weight and token,
recomputation not counted.
"""

import dataclasses
import statistics
import tempfile
import types
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import models
import numpy as np
import update

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.rollout.prefill import prefill
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.spec import RolloutSpec

COLUMNS = ("what", "dtype", "seconds", "rate", "unit", "fraction", "sheet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Matmul edge, bytes of the array that is read, prompt tokens, short and long response, prefill rows and tokens."""

    edge: int
    array: int
    prompt: int
    response: tuple[int, int]
    prefill: tuple[int, int]


SIZES = {
    "tiny": Sizes(edge=128, array=2**20, prompt=8, response=(4, 12), prefill=(2, 16)),
    "cpu": Sizes(edge=2048, array=2**29, prompt=32, response=(32, 160), prefill=(8, 256)),
    "gpu": Sizes(edge=8192, array=2**32, prompt=128, response=(64, 576), prefill=(32, 1024)),
}


def main():
    """Limits first, then what reaches how much of them."""
    options = parse()
    enable_compilation_cache()
    scale = "tiny" if options.tiny else "cpu" if jax.default_backend() == "cpu" else "gpu"
    size, rows = SIZES[scale], []
    bandwidth = read_bandwidth(size, options)
    rows.append({"what": "limit: read", "dtype": "", **bandwidth, "sheet": sheet("bandwidth")})
    config, params = models.counting_model(options.model)
    for dtype in options.dtypes:
        matmul = matmul_rate(size, dtype, options)
        rows.append({"what": "limit: matmul", "dtype": dtype, **matmul, "sheet": sheet(dtype)})
        for batch in options.batches:
            found = decode(config, params, dtype, batch, size, options)
            found["bandwidth_fraction"] = found["rate"] / bandwidth["rate"]
            bound = max(found["bytes_per_step"] / bandwidth["rate"], found["flops_per_step"] / matmul["rate"])
            found["fraction"] = bound / found["seconds"]["median"]
            rows.append({"what": f"decode, B = {batch}", "dtype": dtype, **found})
        found = of(prefill_rate(config, params, dtype, size, options), matmul)
        rows.append({"what": "prefill", "dtype": dtype, **found})
        found = of(update_rate(scale, dtype, options), matmul)
        rows.append({"what": "update", "dtype": dtype, **found})
    harness.report(options, "roofline", rows, COLUMNS)


def parse():
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--model", default="54m", help="54m, smollm2 or a preset (default %(default)s)")
    parser.add_argument("--batches", type=lambda text: list(map(int, harness.words(text))), default=[1, 16, 64])
    parser.add_argument("--dtypes", type=harness.words, default=["float32", "bfloat16"])
    options = parser.parse_args()
    if options.tiny:
        options.model, options.batches = "tiny", [1, 2]
    return options


def of(found: dict, limit: dict) -> dict:
    """With the fraction of a limit that was reached."""
    return {**found, "fraction": found["rate"] / limit["rate"]}


def sheet(what: str) -> float | str:
    """The data sheet's limit of this device, where it is known."""
    return (harness.device_limits() or {}).get(what, "")


def rated(seconds: dict, work: float, unit: str) -> dict:
    """A row: work per second at the median."""
    return {"seconds": seconds, "rate": work / seconds["median"], "unit": unit}


def read_bandwidth(size: Sizes, options) -> dict:
    """Bytes a second of reading one large array once."""
    x = jax.block_until_ready(jnp.ones(size.array // 4, jnp.float32))
    total = jax.jit(lambda x: jnp.sum(x.reshape(-1, 1024), axis=1).max())
    return rated(harness.median_seconds(lambda: total(x), repetitions=options.repetitions), size.array, "B/s")


def matmul_rate(size: Sizes, dtype: str, options) -> dict:
    """FLOP/s of a square matmul with float32 accumulation."""
    a, b = (jax.random.normal(jax.random.key(i), (size.edge, size.edge)).astype(dtype) for i in range(2))
    dot = jax.jit(lambda a, b: jnp.einsum("ij,kj->ik", a, b, preferred_element_type=jnp.float32))
    return rated(harness.median_seconds(lambda: dot(a, b), repetitions=options.repetitions), 2 * size.edge**3, "FLOP/s")


def decode(config, params, dtype: str, batch: int, size: Sizes, options) -> dict:
    """Bytes a second that decoding B sequences uses."""
    short, long = size.response
    spec = RolloutSpec(model=config, roots=1, slots=batch, max_tokens=long, stop_ids=(models.STOP,))
    engine = models.rollout_of(params, PublicationSpec(model=config, dtype=dtype), spec)
    prompt_len_P = jnp.full(batch, size.prompt, jnp.int32)

    def seconds(length):
        lengths_P = models.equal_lengths(batch, length)
        prompts_PS = jnp.asarray(models.counting_prompts(lengths_P, size.prompt, config.vocab_size))
        (forest, _), took = harness.timed(lambda: engine(prompts_PS, prompt_len_P, jax.random.key(0)))
        if not np.array_equal(forest.length_R, lengths_P):
            raise RuntimeError(f"lengths {forest.length_R}, wanted {length}")
        return took

    seconds(1)
    step = [(seconds(long) - seconds(short)) / (long - short) for _ in range(options.repetitions)]
    filled = batch * (size.prompt + (short + long) / 2)
    weights = models.read_bytes_per_step(config, params, dtype)
    moved = weights + filled * models.kv_bytes_per_token(config, dtype)
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * filled
    flops = 2 * batch * weights // jnp.dtype(dtype).itemsize + attention
    row = rated(harness.spread(step), moved, "B/s")
    return {**row, "bytes_per_step": moved, "flops_per_step": flops, "tokens_per_s": batch / statistics.median(step)}


def prefill_rate(config, params, dtype: str, size: Sizes, options) -> dict:
    """FLOP/s of prefilling a batch of prompts."""
    rows, width = size.prefill
    tokens = jnp.asarray(models.counting_prompts(models.equal_lengths(rows, 1), width, config.vocab_size))
    published = publish(params, spec=PublicationSpec(model=config, dtype=dtype))
    program = jax.jit(lambda published, tokens: prefill(published, tokens, config, dtype))
    seconds = harness.median_seconds(lambda: program(published, tokens), repetitions=options.repetitions)
    layers = models.parameter_count(params["layers"])
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * width * (width + 1) / 2
    return rated(seconds, rows * (2 * layers * width + attention), "FLOP/s")


def update_rate(scale: str, dtype: str, options) -> dict:
    """FLOP/s of the update on padded rows, the model that update.py trains."""
    config = update.trained_model(scale, "qwen3-0.6b")
    settings, size = types.SimpleNamespace(dtype=dtype, pack_tokens=None), update.SIZES[scale]
    with tempfile.TemporaryDirectory() as folder:
        bench = update.Bench(config, models.random_params(config), settings, size, 0.5, Path(folder), None)
        arm = next(arm for arm in bench.arms() if arm.name == "padded remat")
        runs = [arm.run()["seconds"] for _ in range(options.repetitions + 1)][1:]
    return rated(harness.spread(runs), bench.flops(shared=False), "FLOP/s")


if __name__ == "__main__":
    main()
