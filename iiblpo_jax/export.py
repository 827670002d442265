"""Exports the trained policy as a standard Hugging Face directory that any other tool loads and serves.

    python -m iiblpo_jax.export --workdir=runs/first --out=runs/first/export [--checkpoint=best] [--dtype=bfloat16]
    python -m iiblpo_jax.export --workdir=runs/first --out=runs/first/adapter --adapter

Takes the newest checkpoint of the workdir, or the one that --checkpoint names. The weights are spread over all devices,
whatever mesh the run had, and written tensor by tensor. What was trained as an adapter (lora.rank) is merged into them;
--adapter writes the adapter alone, in the format of PEFT.

Of a run with codes (codes.n) --z=off writes the policy with z off, of the shape that it began with. --z=kept keeps the
rows of the codes: who gives token ids serves it under code z with V - N + z in place of the last token of a prompt. A
code cannot be folded into the other weights, for the token that it replaces stands elsewhere too.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from iiblpo_jax import cli
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import RunConfig

OUT = flags.DEFINE_string("out", "", "Directory to write; an earlier export there is replaced.")
CHECKPOINT = cli.checkpoint_flag()
Z = flags.DEFINE_enum(
    "z", "off", ["off", "kept"], "Of a run with codes; kept: their tokens too, the last codes.n of the vocabulary."
)
DTYPE = flags.DEFINE_string("dtype", "float32", "float32, bfloat16 or float16.")
ADAPTER = flags.DEFINE_bool("adapter", False, "Writes the LoRA adapter alone, as PEFT does, in float32.")


def main(config: RunConfig, workdir: Path) -> None:
    """Loads a checkpoint and writes it out."""
    import jax  # after the command line is checked

    from iiblpo_jax.devices.mesh import make_mesh
    from iiblpo_jax.model.adapters.peft import save_adapter
    from iiblpo_jax.model.files.loading import load_generation_config
    from iiblpo_jax.model.files.saving import check_target, save_model
    from iiblpo_jax.model.steering.code_tokens import without_codes
    from iiblpo_jax.run.restored import load_policy
    from iiblpo_jax.step import specs

    if not OUT.value:
        raise InputError("--out is missing; name the directory to write")
    if DTYPE.value not in ("float32", "bfloat16", "float16"):
        raise InputError(f"--dtype={DTYPE.value} is not known; use float32, bfloat16 or float16")
    spec = specs.lora(config)
    if ADAPTER.value and spec is None:
        raise InputError("--adapter, and this run has none (lora.rank = 0); leave it out to export the whole model")
    if not ADAPTER.value:
        check_target(OUT.value)
    everywhere = ConfigDict({"data": 1, "fsdp": -1, "sequence": 1, "tensor": 1})
    policy = load_policy(config, workdir, CHECKPOINT.value, mesh=make_mesh(everywhere))
    if not policy.step:
        raise InputError(f"{workdir} has no checkpoint to export; train first")
    if ADAPTER.value and spec is not None and policy.adapter is not None:
        save_adapter(OUT.value, policy.model_config, spec, policy.adapter, base=config.model.path)
    else:
        model, params = policy.model_config, policy.params
        if Z.value == "off":
            model, params = policy.plain, without_codes(params, policy.plain)
        generation = load_generation_config(config.model.path)
        save_model(OUT.value, model, params, policy.tokenizer, dtype=DTYPE.value, generation=generation)
    if jax.process_index() == 0:
        print(f"exported step {policy.step} of {workdir} to {OUT.value}")


if __name__ == "__main__":
    cli.run(main)
