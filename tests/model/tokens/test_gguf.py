"""Tokenizers rebuilt from GGUF metadata against the ones the metadata was taken from."""

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens.gguf import build

CORPUS = ["the quick brown fox  jumps over 0123456789 1 + 2 = 3", "don't CAN'T 12345 + 678 = 13023; café"] * 20
TEXTS = ["the fox can't jump 12345", "a  b \n\n\tc", "naïve 東京 🙂", "x = 17+25;  done", ""]
QWEN2 = (  # from the tokenizer.json of Qwen2.5
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (  # from the tokenizer.json of Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PIPELINES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
}
TEMPLATE = "{% for m in messages %}{{ '<|start|>' + m.content + '<|end|>' }}{% endfor %}"


def metadata_of(rust: tokenizers.Tokenizer, pre: str) -> dict:
    import json

    model = json.loads(rust.to_str())["model"]
    tokens = sorted(rust.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    types = [3 if token.startswith("<|") else 4 if token == "<think>" else 1 for token, _ in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": np.array(types),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.fixture(params=PIPELINES)
def trained(request):
    rust = tokenizers.Tokenizer(models.BPE(ignore_merges=request.param == "llama-bpe"))
    rust.normalizer = normalizers.NFC() if request.param == "qwen2" else None
    rust.pre_tokenizer, rust.decoder = PIPELINES[request.param], decoders.ByteLevel()
    special = ["<|text|>", "<|stop|>", "<|start|>", "<|end|>"]
    rust.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=BYTES.alphabet())
    )
    rust.add_tokens(["<think>"])
    return rust, request.param


def test_byte_level_vocabularies(trained):
    rust, pre = trained
    ours = build(metadata_of(rust, pre), "m.gguf")
    for text in [*TEXTS, "a<|end|><think> b", "cafe\u0301"]:
        ids = ours.encode(text)
        assert ids == rust.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == rust.decode(ids)
        assert ours.encode(text, add_special=True) == [0, *ids]
    assert (ours.bos_id, ours.eos_id, ours.stop_ids, ours.pad_id) == (0, 1, (1, 3), 1)
    chat = ours.render_chat([{"role": "user", "content": "dog"}])
    assert ours.decode(chat, skip_special=False) == "<|start|>dog<|end|>"


def test_a_text_begins_as_in_llama_cpp_where_the_file_does_not_say(trained):
    """Llama 3 and Tekken begin with their token, the others do not."""
    rust, pre = trained
    silent = {key: value for key, value in metadata_of(rust, pre).items() if not key.endswith("add_bos_token")}
    for named in [pre, "tekken"] if pre == "llama-bpe" else [pre]:
        ids = build(silent | {"tokenizer.ggml.pre": named}, "m.gguf").encode("a fox", add_special=True)
        assert ids[:1] == [0] if named in ("llama-bpe", "tekken") else ids[0] != 0
    told = build(silent | {"tokenizer.ggml.add_bos_token": False}, "m.gguf")
    assert told.encode("a fox", add_special=True) == told.encode("a fox")


def test_saved_for_transformers(trained, tmp_path):
    from transformers import AutoTokenizer

    rust, pre = trained
    build(metadata_of(rust, pre), "m.gguf").save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == rust.encode(text, add_special_tokens=False).ids
    assert theirs.chat_template == TEMPLATE and theirs.eos_token_id == 1


def test_sentencepiece_vocabularies(tmp_path, train_sentencepiece):
    import sentencepiece

    model = train_sentencepiece(tmp_path, "t", CORPUS, 330)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    size = theirs.get_piece_size()
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in range(size)
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": np.array([theirs.get_score(i) for i in range(size)]),
        "tokenizer.ggml.token_type": np.array(kinds),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    ours = build(metadata, "m.gguf")
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids) == text
    assert (ours.bos_id, ours.stop_ids, ours.vocab_size) == (1, (2,), 330)
    assert ours.encode("fox", add_special=True) == [1, *ours.encode("fox")]
    without = build(metadata | {"tokenizer.ggml.add_bos_token": False}, "m.gguf")
    assert without.encode("fox", add_special=True) == without.encode("fox")


def test_refusals(trained):
    rust, pre = trained
    good = metadata_of(rust, pre)
    for change, message in [
        ({"tokenizer.ggml.model": "rwkv"}, "m.gguf: tokenizer 'rwkv' is not supported; use the Hugging Face"),
        ({"tokenizer.ggml.pre": "chameleon"}, "m.gguf: pre-tokenizer 'chameleon' is not supported; use"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "m.gguf: its tokenizer is incomplete .*copy the file again"),
    ]:
        with pytest.raises(InputError, match=message):
            build(good | change, "m.gguf")
    with pytest.raises(InputError, match=r"tokenizer is incomplete .'merges'"):
        build({k: v for k, v in good.items() if not k.endswith("merges")}, "m.gguf")
