"""Every tokenizer backend against the library it wraps, and the ids that generation needs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files.loading import check_tokenizer
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend, SentencePieceBackend
from iiblpo_jax.model.tokens.tokenizer import Tokenizer, load_directory

CORPUS = ["the quick brown fox jumps over the lazy dog 0123456789", "1 + 2 = 3; café naïve", "to be or not to be"] * 20
TEXTS = ["the fox is 17 + 25", "a  b\n\tc", "naïve 東京 🙂", "", "dog dog"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = ModelConfig(
    family="qwen2", vocab_size=400, d_model=8, d_ff=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, qkv_bias=True
)
CHAT = [{"role": "user", "content": "2+2?"}]


def byte_level() -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(tokenizers.models.BPE())
    rust.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    rust.train_from_iterator(CORPUS, trainer)
    rust.add_tokens(["<think>"])
    return rust


@pytest.fixture
def chat_directory(tmp_path):
    """A base model's files: the text ends with <|endoftext|>, the template ends a turn with <|im_end|>."""
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>", chat_template=CHATML)
    fast.save_pretrained(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory, train_sentencepiece):
    return train_sentencepiece(tmp_path_factory.mktemp("spm"), "tokenizer", CORPUS, 320)


@pytest.fixture
def sentencepiece_directory(sentencepiece_model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    return tmp_path


def assert_bytes_are_the_text(tokenizer, text):
    """Concatenated piece bytes are the decoded text; a tokenizer that adds a space in front drops it again."""
    ids = tokenizer.encode(text)
    pieces = tokenizer.token_bytes()
    joined = b"".join(pieces[i] for i in ids).decode()
    assert tokenizer.decode(ids) in (joined, joined.removeprefix(" "))


# ---- Hugging Face --------------------------------------------------------------------------------------------------


def test_hugging_face_ids_and_text_are_the_librarys(chat_directory):
    ours, theirs = (
        load_directory(chat_directory),
        tokenizers.Tokenizer.from_file(str(chat_directory / "tokenizer.json")),
    )
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
        assert_bytes_are_the_text(ours, text)
    assert ours.vocab_size == theirs.get_vocab_size(with_added_tokens=True)
    assert ours.decode(np.array(ours.encode("dog"))) == "dog"
    assert ours.decode_batch([ours.encode("dog"), []]) == ["dog", ""]


def test_special_tokens_decode_to_nothing_unless_asked(chat_directory):
    tokenizer = load_directory(chat_directory)
    ids = tokenizer.encode("a<|im_end|>b<think>")
    assert tokenizer.decode(ids) == "ab<think>"
    assert tokenizer.decode(ids, skip_special=False) == "a<|im_end|>b<think>"
    pieces = tokenizer.token_bytes()
    assert [pieces[i] for i in ids] == [b"a", b"", b"b", b"<think>"]
    assert tokenizer.decode([10_000, *ids]) == "ab<think>"


def test_stop_ids_come_from_everywhere(chat_directory):
    end, start, turn = load_directory(chat_directory).encode("<|endoftext|><|im_start|><|im_end|>")
    assert load_directory(chat_directory).stop_ids == (end, turn)
    (chat_directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [start, end]}))
    assert load_directory(chat_directory).stop_ids == (end, start, turn)
    (chat_directory / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert load_directory(chat_directory).stop_ids == (end, start, 7, turn)
    (chat_directory / "generation_config.json").write_text("[")
    with pytest.raises(InputError, match=r"generation_config\.json is not JSON"):
        load_directory(chat_directory)


def test_pad_and_start_fall_back_to_the_end_of_text(chat_directory):
    tokenizer = load_directory(chat_directory)
    assert tokenizer.bos_id is None
    assert tokenizer.pad_id == tokenizer.start_id == tokenizer.eos_id == tokenizer.encode("<|endoftext|>")[0]
    named = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|im_start|>", eos_token="<|endoftext|>", pad_token="<|im_end|>"
    )
    other = Tokenizer(HuggingFaceBackend(named))
    assert (other.start_id, other.pad_id) == (other.encode("<|im_start|>")[0], other.encode("<|im_end|>")[0])


def test_chat_template(chat_directory):
    tokenizer = load_directory(chat_directory)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(chat_directory))
    assert tokenizer.render_chat(CHAT) == theirs.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    text = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer.render_chat(CHAT), skip_special=False) == text


def test_chat_template_absent_or_refusing(chat_directory):
    template = chat_directory / "chat_template.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    tokenizer = load_directory(chat_directory)
    assert tokenizer.stop_ids == (tokenizer.eos_id,)
    with pytest.raises(InputError, match=r"refuses this conversation \(roles must alternate"):
        tokenizer.render_chat(CHAT)
    template.unlink()
    with pytest.raises(InputError, match="has no chat template; use plain prompts"):
        load_directory(chat_directory).render_chat(CHAT)


def test_saved_files_are_the_original_ones(chat_directory, tmp_path):
    (tmp_path / "copy").mkdir()
    tokenizer = load_directory(chat_directory)
    tokenizer.save(tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        assert path.read_bytes() == (chat_directory / path.name).read_bytes()
    again = load_directory(tmp_path / "copy")
    assert (again.stop_ids, again.token_bytes()) == (tokenizer.stop_ids, tokenizer.token_bytes())


def test_a_tokenizer_made_in_memory_saves_for_transformers(tmp_path):
    """WordLevel beside a config.json of another family, which transformers would otherwise rebuild by family."""
    vocab = {token: i for i, token in enumerate(["<eos>", *"0123456789+=;#"])}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<eos>"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    rust.decoder = tokenizers.decoders.Fuse()
    tokenizer = Tokenizer(HuggingFaceBackend(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>")))
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "eos_token_id": 0}))
    for other in (AutoTokenizer.from_pretrained(str(tmp_path)), load_directory(tmp_path)):
        assert other.encode("6+5=11;#") == [7, 11, 6, 12, 2, 2, 13, 14]
        assert other.decode([7, 11, 6, 12]) == "6+5="
    assert tokenizer.token_bytes() == [b"", *(c.encode() for c in "0123456789+=;#")]
    assert_bytes_are_the_text(tokenizer, "6+5=11")


def test_words_without_a_decoder_are_joined_by_spaces():
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "six": 1, "plus": 2}, unk_token="<eos>"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(HuggingFaceBackend(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>")))
    assert tokenizer.decode([1, 2, 1]) == "six plus six"
    assert_bytes_are_the_text(tokenizer, "six plus six")


def test_tokenizer_without_an_end(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=byte_level()).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="names no end-of-text token; set eos_token"):
        load_directory(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    tokenizer = load_directory(tmp_path)
    assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.pad_id, tokenizer.start_id) == (None, (5,), 5, 5)


def test_torch_is_neither_needed_nor_asked_for(chat_directory):
    program = (
        "import sys, importlib.util as u; find = u.find_spec; sys.modules['torch'] = None\n"
        "u.find_spec = lambda name, *rest: None if name.split('.')[0] == 'torch' else find(name, *rest)\n"
        "import pathlib; from iiblpo_jax.model.tokens.tokenizer import load_directory\n"
        "tokenizer = load_directory(pathlib.Path(sys.argv[1]))\n"
        "print(tokenizer.decode(tokenizer.encode('dog')))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    environment.pop("TRANSFORMERS_NO_ADVISORY_WARNINGS", None)
    done = subprocess.run(
        [sys.executable, "-c", program, str(chat_directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("dog\n", "")


def test_vocab_and_merges_files(chat_directory, tmp_path):
    """What GPT-2 and the first Qwen2 directories carry instead of a tokenizer.json."""
    old = tmp_path / "old"
    old.mkdir()
    state = json.loads((chat_directory / "tokenizer.json").read_text())["model"]
    (old / "vocab.json").write_text(json.dumps(state["vocab"]))
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in state["merges"]))
    (old / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": None})
    )
    ours, reference = load_directory(old), load_directory(chat_directory)
    for text in TEXTS:
        assert ours.encode(text) == reference.encode(text)
    assert ours.eos_id == reference.eos_id


# ---- SentencePiece -------------------------------------------------------------------------------------------------


def test_sentencepiece_ids_and_text_are_the_librarys(sentencepiece_directory):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_directory / "tokenizer.model"))
    ours = load_directory(sentencepiece_directory)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special=True) == [theirs.bos_id(), *ids]
        assert ours.decode(ids) == theirs.decode(ids) == text
        assert ours.decode([theirs.bos_id(), *ids, theirs.eos_id(), 99_999]) == text
        assert_bytes_are_the_text(ours, text)
    assert (ours.bos_id, ours.eos_id, ours.stop_ids, ours.pad_id) == (1, 2, (2,), 2)
    assert ours.vocab_size == theirs.get_piece_size() == 320


def test_sentencepiece_byte_pieces(sentencepiece_directory):
    tokenizer = load_directory(sentencepiece_directory)
    ids, pieces = tokenizer.encode("é🙂"), tokenizer.token_bytes()
    assert [pieces[i] for i in ids][-4:] == [bytes([b]) for b in "🙂".encode()]
    assert pieces[tokenizer.bos_id] == pieces[tokenizer.eos_id] == b""


def test_sentencepiece_with_added_tokens_and_a_template(sentencepiece_directory):
    (sentencepiece_directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": {
                    "2": {"content": "</s>", "special": True},
                    "320": {"content": "<|im_end|>", "special": True},
                    "321": {"content": "<|im_start|>", "special": True},
                    "322": {"content": "<tool>", "special": False},
                },
                "pad_token": {"content": "<|im_start|>"},
                "chat_template": CHATML,
            }
        )
    )
    tokenizer = load_directory(sentencepiece_directory)
    assert (tokenizer.vocab_size, tokenizer.stop_ids, tokenizer.pad_id) == (323, (2, 320), 321)
    ids = tokenizer.render_chat([{"role": "user", "content": "dog<tool>"}])
    assert (ids[0], ids.count(320), ids.count(321), ids.count(322)) == (321, 1, 2, 1)
    assert "dog<tool>" in tokenizer.decode(ids)
    assert tokenizer.decode([321, 322]) == "<tool>"
    assert tokenizer.decode([321, 322], skip_special=False) == "<|im_start|><tool>"


def test_sentencepiece_with_the_files_of_older_models(sentencepiece_directory, tmp_path):
    """Vicuna, Zephyr and their like: added_tokens.json, and special_tokens_map.json says which of them are control."""
    (sentencepiece_directory / "added_tokens.json").write_text(
        '{"<|im_end|>": 321, "<|im_start|>": 320, "<tool>": 322}'
    )
    named = {
        "eos_token": {"content": "<|im_end|>"},
        "additional_special_tokens": ["<|im_start|>"],
        "pad_token": "<unk>",
    }
    (sentencepiece_directory / "special_tokens_map.json").write_text(json.dumps(named))
    (sentencepiece_directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    tokenizer = load_directory(sentencepiece_directory)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.stop_ids) == (323, 321, (321,))
    ids = tokenizer.render_chat([{"role": "user", "content": "dog<tool>"}])
    assert (ids[0], ids.count(321), ids.count(320), ids.count(322)) == (320, 1, 2, 1)
    assert tokenizer.decode([320, 322]) == "<tool>"
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    again, theirs = load_directory(tmp_path / "copy"), AutoTokenizer.from_pretrained(str(tmp_path / "copy"))
    assert (again.stop_ids, again.token_bytes()) == (tokenizer.stop_ids, tokenizer.token_bytes())
    assert theirs.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<tool>"]) == [320, 321, 322]
    (sentencepiece_directory / "added_tokens.json").write_text('{"<|im_end|>": "x"}')
    with pytest.raises(InputError, match=r"added_tokens\.json has the token id 'x'; copy the file again"):
        load_directory(sentencepiece_directory)


def test_sentencepiece_without_a_beginning(sentencepiece_directory):
    (sentencepiece_directory / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    tokenizer = load_directory(sentencepiece_directory)
    assert tokenizer.encode("dog", add_special=True) == tokenizer.encode("dog")


def test_ids_that_no_text_has(chat_directory, sentencepiece_directory):
    """Padding of the vocabulary, control tokens that end nothing, but for those that the template writes."""
    tokenizer = load_directory(chat_directory)
    text, start, end = tokenizer.encode("<|endoftext|><|im_start|><|im_end|>")
    size = tokenizer.vocab_size
    assert tokenizer.stop_ids == (text, end)
    assert tokenizer.textless_ids(size) == () and tokenizer.textless_ids(size + 2) == (size, size + 1)
    plain = Tokenizer(
        HuggingFaceBackend(PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|im_end|>"))
    )
    assert plain.textless_ids(size) == (text, start)
    begins = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|im_start|>", eos_token="<|endoftext|>", chat_template=CHATML
    )
    assert Tokenizer(HuggingFaceBackend(begins)).textless_ids(size) == (start,)
    (sentencepiece_directory / "chat_template.jinja").unlink()
    (sentencepiece_directory / "tokenizer.json").unlink()
    (sentencepiece_directory / "tokenizer_config.json").unlink()
    assert load_directory(sentencepiece_directory).textless_ids(321) == (0, 1, 320)  # <unk>, <s> and a row too many


def test_sentencepiece_saves_for_transformers(sentencepiece_directory, tmp_path):
    (tmp_path / "copy").mkdir()
    tokenizer = load_directory(sentencepiece_directory)
    tokenizer.save(tmp_path / "copy")
    again = load_directory(tmp_path / "copy")
    assert (again.stop_ids, again.token_bytes()) == (tokenizer.stop_ids, tokenizer.token_bytes())
    other = AutoTokenizer.from_pretrained(str(tmp_path / "copy"))
    for text in TEXTS[:3]:
        assert other.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_damaged_or_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer\.json or tokenizer\.model; copy"):
        load_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match="is not a readable SentencePiece model"):
        load_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON .*; copy") as error:
        load_directory(tmp_path)
    assert "\n" not in str(error.value)


# ---- the model's tokenizer -----------------------------------------------------------------------------------------


def test_tokenizer_of_another_model(chat_directory, sentencepiece_model):
    import dataclasses

    import sentencepiece

    tokenizer = load_directory(chat_directory)
    size = tokenizer.vocab_size
    check_tokenizer(tokenizer, dataclasses.replace(CONFIG, vocab_size=size))
    check_tokenizer(tokenizer, dataclasses.replace(CONFIG, vocab_size=2 * size))
    for wrong in (size - 1, 2 * size + 1):
        with pytest.raises(InputError, match=f"the model a vocabulary of {wrong}; use the tokenizer that came"):
            check_tokenizer(tokenizer, dataclasses.replace(CONFIG, vocab_size=wrong))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    stray = Tokenizer(SentencePieceBackend(processor), stop_ids=[500])
    with pytest.raises(InputError, match="ids up to 500"):
        check_tokenizer(stray, CONFIG)
