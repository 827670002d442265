"""The tokenizer inside a GGUF file, rebuilt from its metadata.

transformers can read it too, but only where torch is installed, which this package does not ask for.
Byte-level BPE becomes a `tokenizers` pipeline; a SentencePiece vocabulary becomes a SentencePiece model again, so the
library itself applies its scores.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend, SentencePieceBackend
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # token types, the numbers that SentencePiece uses
BPE_TYPE = 2  # SentencePiece's number for its BPE model
NAMED = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# How text is cut before merging, by `tokenizer.ggml.pre`: a pattern, or None for GPT-2's own.
SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "tekken": _TEKKEN,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "tekken")  # a word that is in the vocabulary is not built by merges
BEGINS_TEXT = WHOLE_WORDS_FIRST  # a text begins with its token where `add_bos_token` does not say so, as in llama.cpp


def build(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata; InputError (naming `source`) if it is of a kind unknown here."""
    meta = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = meta.get("model")
    if not isinstance(kind, str) or kind not in ("gpt2", "llama"):
        raise InputError(f"{source}: tokenizer {kind!r} is not supported; use the Hugging Face directory of the model")
    template = metadata.get("tokenizer.chat_template")
    try:
        _check(meta, template)
        backend = _byte_level(meta, template, source) if kind == "gpt2" else _sentencepiece(meta, template)
        return Tokenizer(backend, stop_ids=[meta[key] for key in STOPS if key in meta])
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust side raises bare Exception, and its panics are not even that
        raise InputError(f"{source}: its tokenizer is incomplete ({error}); copy the file again") from error


def _check(meta: Mapping[str, Any], template: Any) -> None:
    """ValueError for an entry of another type than it should have, or an id beyond the vocabulary."""
    tokens = meta["tokens"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError("tokens")
    for key in {*NAMED.values(), *STOPS} & meta.keys():
        if type(meta[key]) is not int or not 0 <= meta[key] < len(tokens):
            raise ValueError(key)
    for key in {"token_type", "scores"} & meta.keys():
        if not isinstance(meta[key], np.ndarray) or len(meta[key]) != len(tokens):
            raise ValueError(key)
    if not isinstance(template, str | None):
        raise ValueError("chat_template")


def _named(meta: Mapping[str, Any]) -> dict[str, str]:
    return {f"{name}_token": meta["tokens"][meta[key]] for name, key in NAMED.items() if key in meta}


def _byte_level(meta, template, source) -> HuggingFaceBackend:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    pre = meta.get("pre", "gpt-2")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise InputError(f"{source}: pre-tokenizer {pre!r} is not supported; use the Hugging Face directory")
    vocab = {token: i for i, token in enumerate(meta["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["merges"]]
    bpe = tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_WORDS_FIRST)
    tokenizer = tokenizers.Tokenizer(bpe)
    if SPLITS[pre] is _QWEN2:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = meta.get("token_type", np.ones(len(vocab), int))
    named = _named(meta)
    for i in np.flatnonzero((types == CONTROL) | (types == USER_DEFINED)):
        special = bool(types[i] == CONTROL) or meta["tokens"][i] in named.values()
        token = tokenizers.AddedToken(meta["tokens"][i], normalized=False, special=special)
        tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    if meta.get("add_bos_token", pre in BEGINS_TEXT) and "bos_token" in named:
        bos = named["bos_token"]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **named)
    return HuggingFaceBackend(fast)


def _pre_tokenizer(pre: str):
    from tokenizers import Regex, pre_tokenizers

    pattern = SPLITS[pre]
    steps: list = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    return pre_tokenizers.Sequence(steps)


def _sentencepiece(meta, template) -> SentencePieceBackend:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # protobuf makes its classes when it is imported
    model = messages.ModelProto()
    for token, score, kind in zip(meta["tokens"], meta["scores"], meta["token_type"], strict=True):
        model.pieces.add(piece=token, score=float(score), type=int(kind))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = BPE_TYPE, True, len(meta["tokens"])
    for name, key in NAMED.items():
        setattr(trainer, f"{name}_id", int(meta.get(key, -1)))
        if key in meta:
            setattr(trainer, f"{name}_piece", meta["tokens"][meta[key]])
    normalizer.name, normalizer.add_dummy_prefix = "identity", bool(meta.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    config = _named(meta) | {"add_bos_token": bool(meta.get("add_bos_token", True))}
    return SentencePieceBackend(processor, config=config | ({"chat_template": template} if template else {}))
