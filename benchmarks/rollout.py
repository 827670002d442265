"""Useful generated tokens per second: our engine against static batches and against re-prefilled branches.

    python benchmarks/rollout.py [--json=PATH] [--tunix-python=TUNIX_VENV/bin/python]

Cases, each with the same prompts, response lengths and sampling (temperature 1, whole vocabulary) for every arm:
  equal     all responses equally long: nothing to win but the price of a step
  ragged    lognormal lengths, cap 8 x the median: static batches wait for their longest row
  branches  every root grows 3 branches at its t*; the peers prefill each branch's prefix again

Arms: `ours` (this package), `ours int8` (weights published as int8), `host loop` (peers/host_loop.py), `transformers`
and `tunix` (processes of their own, skipped where not installed), and for branches `ours re-prefill` (two calls of our
engine), `transformers batched` and `transformers one by one`. Every arm decodes B sequences at a time and is checked
token by token (models.py says how lengths are imposed). Useful tokens are those of the responses; a static batch also
decodes rows that have stopped.
"""

import contextlib
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import models
import numpy as np
from peers.host_loop import HostLoop
from peers.protocol import Peer, PeerError

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.publication import PublicationSpec
from iiblpo_jax.rollout.spec import RolloutSpec

PEERS = Path(__file__).parent / "peers"
BUCKET = 64  # prefixes of re-prefilled branches are padded to a multiple of this
CAP = 8  # longest response of the ragged cases, in medians
COLUMNS = ("model", "dtype", "case", "arm", "tokens", "seconds", "tokens_per_s", "first_over_this")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much one run does: B slots, prompts of S tokens, the equal case, medians of the others, trees and their B."""

    slots: int
    prompt: int
    equal: tuple[int, int]  # sequences, tokens each
    ragged: tuple[int, int]  # sequences, median
    trees: tuple[int, int]  # roots, median
    tree_slots: int


SIZES = {
    "tiny": Sizes(slots=2, prompt=8, equal=(4, 6), ragged=(4, 4), trees=(2, 6), tree_slots=2),
    "cpu": Sizes(slots=8, prompt=32, equal=(16, 48), ragged=(48, 16), trees=(8, 24), tree_slots=8),
    "gpu": Sizes(slots=64, prompt=128, equal=(128, 256), ragged=(512, 128), trees=(128, 192), tree_slots=64),
}


def main():
    """Every model, dtype and case asked for."""
    options = parse()
    enable_compilation_cache()
    size = SIZES["tiny" if options.tiny else "cpu" if jax.default_backend() == "cpu" else "gpu"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            config, params = models.counting_model(name)
            for dtype in options.dtypes:
                with contextlib.ExitStack() as stack:
                    peers = start_peers(stack, options, Path(folder) / f"{name}-{dtype}", config, params, dtype)
                    peers = {"host loop": HostLoop(config, params, dtype, models.STOP).generate, **peers}
                    bench = Bench(config, params, dtype, size, peers)
                    for case in options.cases:
                        arms = harness.chosen(getattr(bench, case)(), options)
                        found = harness.compare(arms, repetitions=options.repetitions)
                        rows += [{"model": name, "dtype": dtype, "case": case, **row} for row in found]
    harness.report(options, "rollout", rows, COLUMNS)


def parse():
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument(
        "--models", type=harness.words, help="54m, smollm2, preset:NAME (default 54m,smollm2; tiny with --tiny)"
    )
    parser.add_argument("--dtypes", type=harness.words, default=["float32", "bfloat16"])
    parser.add_argument("--cases", type=harness.words, default=["equal", "ragged", "branches"])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch and transformers")
    parser.add_argument("--tunix-python", default="", help="interpreter that has google-tunix; empty = leave it out")
    options = parser.parse_args()
    options.models = options.models or (["tiny"] if options.tiny else ["54m", "smollm2"])
    return options


def start_peers(stack, options, directory, config, params, dtype) -> dict[str, Callable]:
    """The peer processes that can run here: name -> generate(prompts, batch, max_tokens)."""
    wanted = {"transformers": (options.torch_python, "torch_peer.py")}
    if options.torch_python == sys.executable and importlib.util.find_spec("torch") is None:
        print("transformers: skipped, torch is not installed", file=sys.stderr)
        del wanted["transformers"]
    if options.tunix_python and config.family == "qwen3":
        wanted["tunix"] = (options.tunix_python, "tunix_peer.py")
    if wanted:
        models.export(directory, config, params, dtype)
    found = {}
    for name, (python, script) in wanted.items():
        try:
            peer = stack.enter_context(Peer(python, str(PEERS / script), f"--model={directory}", f"--dtype={dtype}"))
        except (PeerError, OSError) as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
            continue
        found[name] = lambda prompts, batch, max_tokens, peer=peer: peer.ask(
            "generate", prompts=[list(map(int, p)) for p in prompts], batch=batch, max_tokens=max_tokens
        )
    return found


class Bench:
    """The arms of every case for one model in one dtype."""

    def __init__(self, config, params, dtype: str, size: Sizes, peers: dict[str, Callable]):
        self.config, self.params, self.dtype, self.size, self.peers = config, params, dtype, size, peers

    def equal(self) -> list[harness.Arm]:
        """Responses of one length."""
        n, length = self.size.equal
        return self._plain(models.equal_lengths(n, length), length)

    def ragged(self) -> list[harness.Arm]:
        """Lognormal responses."""
        n, median = self.size.ragged
        return self._plain(models.ragged_lengths(n, median, cap=CAP), CAP * median)

    def _plain(self, lengths_N, cap) -> list[harness.Arm]:
        prompts_NS, short_NS = self._prompts(lengths_N), self._prompts(np.full_like(lengths_N, 2))
        engines = {"ours": self._engine(max_tokens=cap), "ours int8": self._engine(max_tokens=cap, weights="int8")}

        def ours(engine):
            forest, seconds = run_engine(engine, prompts_NS)
            check(own_tokens(forest), lengths_N)
            return {"seconds": seconds, "tokens": int(lengths_N.sum())}

        def theirs(generate):
            reply = generate(prompts_NS, self.size.slots, cap)
            check(reply["responses"], lengths_N)
            return {"seconds": reply["seconds"], "tokens": int(lengths_N.sum())}

        arms = [
            harness.Arm(name=name, run=lambda e=engine: ours(e), warm=lambda e=engine: run_engine(e, short_NS))
            for name, engine in engines.items()
        ]
        for name, generate in self.peers.items():
            arms.append(
                harness.Arm(
                    name=name,
                    run=lambda g=generate: theirs(g),
                    warm=lambda g=generate: g(short_NS, self.size.slots, cap),
                )
            )
        return arms

    def branches(self) -> list[harness.Arm]:
        """Roots and three branches each; where a branch starts is decided by our engine, once, for everybody."""
        n, median = self.size.trees
        cap, slots = CAP * median, self.size.tree_slots
        lengths_N = models.ragged_lengths(n, median, cap=CAP)
        prompts_NS = self._prompts(lengths_N)
        engine = self._engine(max_tokens=cap, slots=slots, branching=Branching(k=3, points="distinct"))
        roots, suffixes = (self._engine(max_tokens=cap, slots=slots) for _ in range(2))
        schedule = run_engine(engine, prompts_NS)[0]
        at_NK = np.asarray(schedule.branch_at_R).reshape(n, -1)[:, 1:]
        expected = [length - at for length, ats in zip(lengths_N, at_NK, strict=True) for at in ats]
        width = self.size.prompt + -(-int(at_NK.max()) // BUCKET) * BUCKET
        tokens = int(lengths_N.sum() + np.sum(expected))

        def prefixes(responses):
            return [[*p, *r[:at]] for p, r, ats in zip(prompts_NS, responses, at_NK, strict=True) for at in ats]

        def ours():
            forest, seconds = run_engine(engine, prompts_NS)
            check(own_tokens(forest), np.insert(np.reshape(expected, (n, -1)), 0, lengths_N, axis=1).ravel())
            return {"seconds": seconds, "tokens": tokens}

        def two_calls():
            first, seconds = run_engine(roots, prompts_NS)
            second, more = run_engine(suffixes, *pad_rows(prefixes(own_tokens(first)), width))
            check(own_tokens(second), expected)
            return {"seconds": seconds + more, "tokens": tokens}

        def transformers(batch):
            generate = self.peers["transformers"]
            first = generate(prompts_NS, slots, cap)
            second = generate(prefixes(first["responses"]), batch, cap)
            check(second["responses"], expected)
            return {"seconds": first["seconds"] + second["seconds"], "tokens": tokens}

        arms = [harness.Arm(name="ours", run=ours), harness.Arm(name="ours re-prefill", run=two_calls)]
        if "transformers" in self.peers:
            # Nothing to compile: one batch warms it up.
            def warm():
                return self.peers["transformers"](prompts_NS[:slots], slots, 2)

            arms += [
                harness.Arm(name="transformers batched", run=lambda: transformers(slots), warm=warm),
                harness.Arm(name="transformers one by one", run=lambda: transformers(1), warm=warm),
            ]
        return arms

    def _prompts(self, lengths_N):
        return models.counting_prompts(lengths_N, self.size.prompt, self.config.vocab_size)

    def _engine(self, *, weights="", slots=0, **spec):
        publication = PublicationSpec(model=self.config, dtype=self.dtype, weights=weights)
        spec = RolloutSpec(model=self.config, roots=1, slots=slots or self.size.slots, stop_ids=(models.STOP,), **spec)
        return models.rollout_of(self.params, publication, spec)


def run_engine(engine, prompts_NS, length_N=None) -> tuple[Forest, float]:
    """(Forest, seconds) of one call of the engine."""
    prompts_NS = np.asarray(prompts_NS)
    length_N = np.full(len(prompts_NS), prompts_NS.shape[1]) if length_N is None else length_N
    (forest, _), seconds = harness.timed(
        lambda: engine(jnp.asarray(prompts_NS), jnp.asarray(length_N, jnp.int32), jax.random.key(0))
    )
    return forest, seconds


def own_tokens(forest: Forest) -> list[list[int]]:
    """The tokens each trajectory generated itself."""
    tokens_RT, length_R, at_R = (np.asarray(x) for x in (forest.tokens_RT, forest.length_R, forest.branch_at_R))
    return [row[at:end].tolist() for row, at, end in zip(tokens_RT, at_R, length_R, strict=True)]


def check(responses, lengths) -> None:
    """RuntimeError unless every response counts down from its length to STOP: an arm did other work than the others."""
    for i, (response, length) in enumerate(zip(responses, lengths, strict=True)):
        if response != list(range(length - 1, models.STOP - 1, -1)):
            raise RuntimeError(f"response {i} should count down {length} tokens to {models.STOP}; got {response}")


if __name__ == "__main__":
    main()
