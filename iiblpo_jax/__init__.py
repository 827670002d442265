"""iiblpo_jax: post-training of language models with verifiable rewards by IIB-LPO (arXiv 2601.05870), in JAX and Flax.

The command line is `python -m iiblpo_jax.{train,latent,evaluate,export,report}`. From Python:

    model, tokenizer = iiblpo_jax.load_model("path/to/hf_directory")
    logits_BTV = iiblpo_jax.logits(model, tokens_BT)
    texts = iiblpo_jax.generate(model, tokenizer, ["2+3="])

`Task`, `Problem` and `one_by_one` are for tasks of your own (docs/your_own.md); none of them needs jax.
"""

_PUBLIC = {
    "load_model": "iiblpo_jax.model.files.loading",
    "logits": "iiblpo_jax.model.decoder",
    "generate": "iiblpo_jax.rollout.generate",
    "InputError": "iiblpo_jax.common.errors",
    "Task": "iiblpo_jax.data.task",
    "Problem": "iiblpo_jax.rewards.verifier",
    "one_by_one": "iiblpo_jax.rewards.own",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # Lazy: a mistyped command line must be refused before jax is imported.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'iiblpo_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
