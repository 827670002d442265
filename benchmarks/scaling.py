"""The tables of docs/scaling.md: a step at its best on 8 to 1,024 chips, by the formulas of planning/roofline.py.

    python benchmarks/scaling.py [--config=configs/qwen2_5_7b_v5p_64.py]

Nothing is compiled or run, so no column knows of collectives, activations or idle slots. `same batch`: the config's
prompts on more and more chips, which split a prompt's work further (tensor, then sequence). `batch grows`: 4 prompts
for each shard, which is fsdp 8 x data.
"""

import argparse
from pathlib import Path

from iiblpo_jax.config import derived, files
from iiblpo_jax.planning import topology
from iiblpo_jax.planning.plan import MIB, make_plan
from iiblpo_jax.planning.roofline import Lengths

ROOT = Path(__file__).parents[1]
SLICES = ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
ARMS = ("base", "T x 2", "K x 2", "prompts x 2")


def main():
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "qwen2_5_7b_v5p_64.py"))
    path = parser.parse_args().config
    columns = (
        "chips",
        "data x fsdp x sequence x tensor",
        "prompts",
        "resident MiB",
        "rollout s",
        "inform s",
        "update s",
        "tokens/s",
        "tokens/s a chip",
    )
    for title, mesh_of in (("same batch", same_batch), ("batch grows", growing_batch)):
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * 9}")
        for chips, slice_ in zip((2**n for n in range(3, 11)), SLICES, strict=True):
            print(row(*planned(path, slice_, *mesh_of(chips))))
    print(f"\n64 chips\n\n| | rollout s | inform s | update s | tokens |\n|{'---|' * 5}")
    for arm in ARMS:
        found, _ = planned(path, "4x4x4", (1, 8, 2, 4), 64 if arm == "prompts x 2" else 32, arm)
        seconds = " | ".join(f"{found.seconds[name]:.2f}" for name in ("rollout", "inform", "update"))
        print(f"| {arm} | {seconds} | {found.tokens:,.0f} |")


def same_batch(chips: int):
    """((data, fsdp, sequence, tensor), prompts)."""
    tensor = min(4, chips // 8)
    return (1, 8, chips // 8 // tensor, tensor), 32


def growing_batch(chips: int):
    """The same with prompts in proportion to chips, from 32 chips on; fewer split layers less."""
    tensor = min(4, chips // 8)
    data = chips // 8 // tensor
    return (data, 8, 1, tensor), 32 * data


def planned(path: str, slice_: str, mesh: tuple[int, ...], prompts: int, arm: str = "base"):
    """(plan without programs, prompts); there are slots for every trajectory."""
    config = files.load_file(path)
    config.mesh.data, config.mesh.fsdp, config.mesh.sequence, config.mesh.tensor = mesh
    config.train.prompts_per_step = prompts
    config.rollout.max_tokens *= 2 if arm == "T x 2" else 1
    config.branch.k *= 2 if arm == "K x 2" else 1
    config.rollout.slots = prompts * derived.group_size(config)
    model = topology.architecture(config.model.path)
    lengths = Lengths(prompt=config.rollout.max_prompt / 2, response=config.rollout.max_tokens / 2)
    devices, name = topology.tpu_devices(f"v5p:{slice_}"), f"v5p:{slice_}"
    return make_plan(config, model, devices, topology=name, lengths=lengths, formulas=True), prompts


def row(found, prompts: int) -> str:
    """A line of a table."""
    shape = " x ".join(map(str, found.shape.values()))
    seconds = " | ".join(f"{found.seconds[name]:.2f}" for name in ("rollout", "inform", "update"))
    rate, resident = found.tokens_per_s, sum(found.resident.values()) / MIB
    return (
        f"| {found.devices:,} | {shape} | {prompts:,} | {resident:,.0f} | {seconds} | {rate:,.0f} | "
        f"{rate / found.devices:,.0f} |"
    )


if __name__ == "__main__":
    main()
