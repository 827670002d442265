"""Log-probs and entropies of given tokens, forward and backward: in chunks against the whole [tokens, V] at once.

    python benchmarks/logprobs.py [--json=PATH] [--vocabularies=32000,152000] [--tokens=1024]

`chunked` is model.logprobs.chunked_logprobs, `naive` projects everything and lets autodiff keep what it wants.
Loss and both gradients must agree before anything is timed. `work_bytes` are the temporaries of the compiled program.
"""

import functools

import harness
import jax
import jax.numpy as jnp

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.model.logprobs import chunked_logprobs

COLUMNS = ("vocabulary", "arm", "tokens", "seconds", "tokens_per_s", "first_over_this", "work_bytes", "logits_bytes")


def main():
    """Every vocabulary asked for."""

    def numbers(text):
        return [int(word) for word in harness.words(text)]

    parser = harness.arguments(__doc__)
    parser.add_argument("--vocabularies", type=numbers, default=[32_000, 152_000])
    parser.add_argument("--tokens", type=int, default=1024, help="4 rows of a quarter each (default %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="D (default %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        options.vocabularies, options.tokens, options.width = [3000, 7000], 64, 16
    enable_compilation_cache()
    rows = []
    for v in options.vocabularies:
        arms, logits_bytes = arms_of(v, options.tokens, options.width, tiny=options.tiny), 4 * options.tokens * v
        found = harness.compare(harness.chosen(arms, options), repetitions=options.repetitions)
        rows += [{"vocabulary": v, "logits_bytes": logits_bytes, **row} for row in found]
    harness.report(options, "logprobs", rows, COLUMNS)


def arms_of(v: int, tokens: int, width: int, *, tiny: bool) -> list[harness.Arm]:
    """Both ways on the same random numbers."""
    keys = jax.random.split(jax.random.key(0), 4)
    h_BTD = jax.random.normal(keys[0], (4, tokens // 4, width))
    w_VD = jax.random.normal(keys[1], (v, width)) * width**-0.5
    targets_BT = jax.random.randint(keys[2], h_BTD.shape[:2], 0, v)
    weights_BT = jax.random.normal(keys[3], h_BTD.shape[:2])
    ways = {"chunked": functools.partial(chunked_logprobs, chunk=16 if tiny else None), "naive": naive_logprobs}
    arms, results = [], {}
    for name, way in ways.items():
        program = jax.jit(jax.value_and_grad(functools.partial(loss, way), argnums=(0, 1)))
        program = program.lower(h_BTD, w_VD, targets_BT, weights_BT).compile()
        results[name] = program(h_BTD, w_VD, targets_BT, weights_BT)
        facts = {"tokens": tokens, "work_bytes": program.memory_analysis().temp_size_in_bytes}
        arms.append(
            harness.Arm(
                name=name,
                run=lambda program=program, facts=facts: {
                    "seconds": harness.timed(lambda: program(h_BTD, w_VD, targets_BT, weights_BT))[1],
                    **facts,
                },
            )
        )
    check(results)
    return arms


def loss(way, h_BTD, w_VD, targets_BT, weights_BT):
    """A number that depends on every log-prob and every entropy."""
    logp_BT, entropy_BT = way(h_BTD, w_VD, targets_BT)
    return jnp.mean(weights_BT * logp_BT + 0.01 * entropy_BT)


def naive_logprobs(h_BTD, w_VD, targets_BT):
    """The definition: every logit at once."""
    logp_BTV = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", h_BTD, w_VD))
    entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0], entropy_BT


def check(results: dict) -> None:
    """RuntimeError unless loss and gradients agree to 1e-3 of their size (TF32 on an accelerator)."""
    for a, b in zip(jax.tree.leaves(results["chunked"]), jax.tree.leaves(results["naive"]), strict=True):
        if float(jnp.abs(a - b).max()) > 1e-3 * float(jnp.abs(b).max()) + 1e-6:
            raise RuntimeError(f"chunked and naive differ by {float(jnp.abs(a - b).max())}")


if __name__ == "__main__":
    main()
