"""The toy of the 3D-properties paper (Yan et al., arXiv 2406.07327): what DPO does to responses, seen and unseen.

    python benchmarks/three_effects.py        # writes results/three_effects.json and results/three_effects.svg

A network of three layers gives PROMPTS prompts a softmax over RESPONSES responses. Prompts are points in few
dimensions, so that they share what is learnt. It first learns a policy in which some responses are frequent and the
others rare; DPO and its relatives then learn one pair a prompt:

    on   both responses are frequent, as drawn from the policy itself
    off  both are rare, as another policy would give them

The three effects, as curves over the steps (mean over SEEDS seeds):

    drop         log pi of the rejected response falls much faster than that of the chosen one rises
    degradation  log pi of the chosen response falls too
    dispersion   the mass of all that is neither chosen nor rejected grows

What came of it (8 seeds): of DPO the drop in both cases, by 23 and 21 nats against a rise of the chosen by .3 and 2.8;
degradation with frequent pairs, where the chosen rises from -1.29 to -.49 and is back at -1.02 at the end, and hardly
with rare ones (-2.69 at best, -2.87 at the end, within the error); the mass elsewhere does not grow in this toy, it
falls, and least under DPO (to .23 and .49; .08 or less under Flex-DPO and SFT-DPO). So of the three effects the third
is not reproduced, and that pairs of the policy itself are spared them is not either: the second is theirs.

The sizes, the frequencies and the learning rates are ours. Losses and diagnostics are those of the verb preferences.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iiblpo_jax.offline.losses import make_loss
from iiblpo_jax.offline.losses.interface import Loss, Read
from iiblpo_jax.offline.measures import diagnostics

RESULTS = Path(__file__).parent / "results"
PROMPTS, FEATURES, RESPONSES, WIDTH, SEEDS = 24, 6, 10, 32, 8
FREQUENT = (0.4, 0.3, 0.2, 0.08)  # of the first responses in the order of each prompt; the others share the rest
TEACH, STEPS, EVERY, RATE = 2000, 600, 10, 1e-3
LOSSES = {
    "dpo": {"beta": 0.1},
    "flex_dpo": {"beta_chosen": 0.1, "beta_rejected": 0.03},
    "sft_dpo": {"beta": 0.1, "weight": 0.1},
}
CURVES = ("pairs/logp_chosen", "pairs/logp_rejected", "pairs/elsewhere", "pairs/log_gradient_ratio")


def network(key) -> dict:
    """Weights of three layers, and the prompts: `x`, which nothing trains."""
    sizes = (FEATURES, WIDTH, WIDTH, RESPONSES)
    *keys, last = jax.random.split(key, 4)
    return {"x": jax.random.normal(last, (PROMPTS, FEATURES))} | {
        f"w{n}": jax.random.normal(k, (a, b)) / a**0.5
        for n, (k, a, b) in enumerate(zip(keys, sizes, sizes[1:], strict=False))
    }


def log_policy(weights: dict) -> jax.Array:
    """log pi [PROMPTS, RESPONSES]."""
    x = jax.lax.stop_gradient(weights["x"])
    for n in range(2):
        x = jnp.tanh(x @ weights[f"w{n}"])
    return jax.nn.log_softmax(x @ weights["w2"])


def teach(weights: dict, target_PR) -> dict:
    """The network when it has learnt the frequencies."""
    return descend(weights, lambda w: -(target_PR * log_policy(w)).sum(1).mean(), TEACH, 3e-3)[0]


def descend(weights: dict, loss, steps: int, rate: float, seen=lambda w: ()) -> tuple[Any, Any]:
    """(weights after Adam, what was `seen` before each step)."""
    adam = optax.adam(rate)

    def step(state, _):
        weights, moments = state
        changes, moments = adam.update(jax.grad(loss)(weights), moments, weights)
        return (optax.apply_updates(weights, changes), moments), seen(weights)

    (last, _), found = jax.lax.scan(step, (weights, adam.init(weights)), length=steps)
    return last, found


def read_of(weights: dict, reference_PR, pair_P2) -> Read:
    """What a loss reads of one pair a prompt."""
    logp_P2, reference_P2 = (jnp.take_along_axis(x, pair_P2, axis=1) for x in (log_policy(weights), reference_PR))
    return Read(tokens_PG=jnp.ones((PROMPTS, 2)), logp_PG=logp_P2, shift_PG=0 * logp_P2, reference_PG=reference_P2)


@partial(jax.jit, static_argnames=("loss", "on"))
def curves(seed, *, loss: Loss, on: bool) -> dict:
    """The diagnostics of every step of one seed."""
    keys = jax.random.split(jax.random.key(seed), 4)
    order_PR = jax.vmap(lambda k: jax.random.permutation(k, RESPONSES))(jax.random.split(keys[0], PROMPTS))
    rare = RESPONSES - len(FREQUENT)
    frequency_R = jnp.array([*FREQUENT, *[(1 - sum(FREQUENT)) / rare] * rare])
    target_PR = jnp.zeros((PROMPTS, RESPONSES)).at[jnp.arange(PROMPTS)[:, None], order_PR].set(frequency_R)
    start = teach(network(keys[1]), target_PR)
    reference_PR = log_policy(start)

    # Two different responses a prompt among the frequent, drawn by their frequencies, or among the rare.
    mass_R = jnp.where((jnp.arange(RESPONSES) < len(FREQUENT)) == on, frequency_R, 0.0)
    pick = partial(jax.random.choice, a=RESPONSES, shape=(2,), replace=False, p=mass_R)
    place_P2 = jax.vmap(pick)(jax.random.split(keys[2], PROMPTS))
    pair_P2 = jnp.take_along_axis(order_PR, place_P2, axis=1)

    def of_weights(weights):
        return loss(read_of(weights, reference_PR, pair_P2))

    def seen(weights):
        read = read_of(weights, reference_PR, pair_P2)
        return diagnostics(read, jax.grad(lambda x: loss(read.replace(logp_PG=x)))(read.logp_PG))

    return descend(start, of_weights, STEPS, RATE, seen)[1]


def measure() -> dict:
    """Scenario -> curve -> mean over seeds at every EVERY-th step, and standard errors at the end."""
    found = {}
    for name, options in LOSSES.items():
        for on in (True, False):
            run = partial(curves, loss=make_loss(name, options), on=on)
            per_seed = jax.device_get(jax.vmap(run)(jnp.arange(SEEDS)))
            found[f"{name} {'on' if on else 'off'}"] = {
                curve: {
                    "mean": np.round(per_seed[curve].mean(0)[::EVERY], 4).tolist(),
                    "last": round(float(per_seed[curve].mean(0)[-1]), 4),
                    "last_error": round(float(per_seed[curve].std(0, ddof=1)[-1] / SEEDS**0.5), 4),
                }
                for curve in CURVES
            }
    return found


def draw(found: dict, path: Path) -> None:
    """The figure: a row of panels, one a curve."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "three effects", "font.size": 8})
    import matplotlib.pyplot as plt

    panels, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    titles = ("log π chosen", "log π rejected", "mass elsewhere")
    for axis, curve, title in zip(axes, CURVES, titles, strict=False):
        for number, name in enumerate(LOSSES):
            for source, style in (("on", "-"), ("off", "--")):
                values = found[f"{name} {source}"][curve]["mean"]
                axis.plot(np.arange(len(values)) * EVERY, values, style, color=f"C{number}", label=f"{name}, {source}")
        axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=6)
    panels.savefig(path, metadata={"Date": None})
    plt.close(panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(RESULTS), help="folder of three_effects.json and three_effects.svg")
    out, found = Path(parser.parse_args().out), measure()
    settings = {"seeds": SEEDS, "steps": STEPS, "every": EVERY, "rate": RATE, "losses": LOSSES, "frequent": FREQUENT}
    (out / "three_effects.json").write_text(json.dumps({"settings": settings, "curves": found}) + "\n")
    draw(found, out / "three_effects.svg")
    print(f"{'':14}" + "".join(f"{curve.removeprefix('pairs/'):>30}" for curve in CURVES))
    for name, of_curves in found.items():
        ends = (f"{c['mean'][0]:8.2f} -> {c['last']:7.2f} ± {c['last_error']:.2f}" for c in of_curves.values())
        print(f"{name:14}" + "".join(f"{end:>30}" for end in ends))


if __name__ == "__main__":
    main()
