"""The two tokenizer libraries behind `tokenizers.Tokenizer`: Hugging Face's, and Google's SentencePiece."""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens import files as tokenizer_files

# transformers, imported where it is needed because that takes a second, would advise everybody to install torch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

FILES = (  # what a Hugging Face tokenizer may consist of
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"  # SentencePiece's visible space


class HuggingFaceBackend:
    """A `tokenizers` pipeline with the names that transformers keeps beside it."""

    def __init__(self, fast: Any, *, source: pathlib.Path | None = None):
        """Wraps a transformers.PreTrainedTokenizerFast; `source` is the directory its files can be copied from."""
        self._fast, self._source = fast, source
        self._rust = fast.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()
        vocab = self._rust.get_vocab(with_added_tokens=True)
        self.bos_id, self.eos_id, self.pad_id = (vocab.get(t) for t in (fast.bos_token, fast.eos_token, fast.pad_token))
        added = self._rust.get_added_tokens_decoder()
        self.specials = {token.content: i for i, token in added.items() if token.special}
        self.chat_template = fast.chat_template if isinstance(fast.chat_template, str) else None

    @classmethod
    def load(cls, directory: pathlib.Path) -> "HuggingFaceBackend":
        """From a directory; InputError if its files cannot be read."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # A tokenizer.json is the whole pipeline. AutoTokenizer would rebuild it by the model's family, which is wrong
        # for a vocabulary of one's own; it is only needed where there are nothing but vocab.json and merges.txt.
        kind = PreTrainedTokenizerFast if (directory / "tokenizer.json").is_file() else AutoTokenizer
        tokenizer_files.check(directory)
        try:
            fast = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            return cls(fast, source=directory)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the Rust side raises bare Exception, and its panics are not even that
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"the tokenizer in {directory} cannot be read ({reason}); copy its files again") from error

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        try:
            return self._rust.encode(text, add_special_tokens=add_special).ids
        except Exception as error:  # a word that a vocabulary without an unknown token does not have
            raise InputError(f"the tokenizer cannot read {text[:40]!r} ({error}); use another tokenizer") from error

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return self._rust.decode(ids, skip_special_tokens=skip_special)

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str:
        assert self.chat_template is not None, "Tokenizer.render_chat asks first"
        names = {f"{name}_token": getattr(self._fast, f"{name}_token") or "" for name in ("bos", "eos", "pad", "unk")}
        return render_chat(self.chat_template, messages, generation_prompt=generation_prompt, names=names)

    def pieces(self) -> list[bytes]:
        spell = _speller(json.loads(self._rust.to_str())["decoder"])
        added = self._rust.get_added_tokens_decoder()
        vocab = self._rust.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocab.values()) + 1)
        for token, i in vocab.items():
            if i not in added:
                pieces[i] = spell(token)
            elif not added[i].special:
                pieces[i] = token.encode()
        return pieces

    def save(self, directory: pathlib.Path) -> None:
        if self._source is not None:
            for name in FILES:
                if (self._source / name).is_file():
                    shutil.copyfile(self._source / name, directory / name)
            return
        self._fast.save_pretrained(str(directory))
        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the one name that every version of transformers knows
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _speller(decoder: dict | None):
    """token -> bytes, as the decoder of a tokenizer.json would write it."""
    kinds = list(_decoders(decoder))
    if any(kind["type"] == "ByteLevel" for kind in kinds):
        alphabet = _byte_level_alphabet()
        return lambda token: bytes(alphabet[c] for c in token) if set(token) <= alphabet.keys() else token.encode()
    if not kinds:
        return lambda token: b" " + token.encode()  # without a decoder, tokens are joined by spaces
    fallback = any(kind["type"] == "ByteFallback" for kind in kinds)
    spaces = any(kind["type"] == "Metaspace" or (kind["type"] == "Replace" and SPACE in str(kind)) for kind in kinds)

    def spell(token: str) -> bytes:
        if fallback and (match := BYTE_PIECE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return (token.replace(SPACE, " ") if spaces else token).encode()

    return spell


def _decoders(decoder: dict | None) -> Iterator[dict]:
    if decoder is not None:
        yield decoder
        for inner in decoder.get("decoders", ()):
            yield from _decoders(inner)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable bytes stand for themselves, the others for code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


class SentencePieceBackend:
    """A SentencePiece model, with the extra tokens and the chat template of a tokenizer_config.json."""

    def __init__(self, processor: Any, *, config: Mapping[str, Any] | None = None):
        """Wraps a sentencepiece.SentencePieceProcessor; `config` is a tokenizer_config.json."""
        self._sp, self._config = processor, dict(config or {})
        size = processor.get_piece_size()
        self.specials = {processor.id_to_piece(i): i for i in range(size) if processor.is_control(i)}
        self._added = {}  # id -> token beyond the model, or made special by the config
        for i, token in self._config.get("added_tokens_decoder", {}).items():
            if int(i) >= size:
                self._added[int(i)] = token["content"]
            if token.get("special"):
                self.specials[token["content"]] = int(i)
        self.specials.pop(processor.id_to_piece(processor.unk_id()), None)
        self.bos_id, self.eos_id, self.pad_id = (self._named(n) for n in ("bos", "eos", "pad"))
        template = self._config.get("chat_template")
        self.chat_template = template if isinstance(template, str) else None
        whole = sorted({*self.specials, *self._added.values()}, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, whole)) + ")") if whole else None
        self._ids = {text: i for i, text in self._added.items()} | self.specials

    @classmethod
    def load(cls, directory: pathlib.Path) -> "SentencePieceBackend":
        """From a directory with a tokenizer.model; InputError if it cannot be read."""
        import sentencepiece

        path, config = directory / "tokenizer.model", directory / "tokenizer_config.json"
        tokenizer_files.check(directory)
        try:
            settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            if (template := directory / "chat_template.jinja").is_file():
                settings["chat_template"] = template.read_text(encoding="utf-8")
            return cls(sentencepiece.SentencePieceProcessor(model_file=str(path)), config=settings)
        except (RuntimeError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{path} is not a readable SentencePiece model; copy the file again") from error

    def _named(self, name: str) -> int | None:
        token = self._config.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if content in self.specials:
            return self.specials[content]
        i = getattr(self._sp, f"{name}_id")()
        return None if i < 0 else i

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        ids = [self.bos_id] if add_special and self.bos_id is not None else []
        for part in self._split.split(text) if self._split else [text]:
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids += self._sp.encode(part)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        text, run, names = "", [], {i: t for t, i in self.specials.items()} | self._added
        for i in ids:
            if i not in names:
                run += [i] if 0 <= i < self._sp.get_piece_size() else []
            elif not (skip_special and names[i] in self.specials):
                text, run = text + self._sp.decode(run) + names[i], []
        return text + self._sp.decode(run)

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str:
        assert self.chat_template is not None, "Tokenizer.render_chat asks first"
        names = {name: text or "" for name, text in self._named_tokens().items()}
        return render_chat(self.chat_template, messages, generation_prompt=generation_prompt, names=names)

    def _named_tokens(self) -> dict[str, str | None]:
        texts = {i: text for text, i in self.specials.items()}
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        return {f"{name}_token": None if i is None else texts.get(i) for name, i in ids.items()}

    def pieces(self) -> list[bytes]:
        size = self._sp.get_piece_size()
        pieces = [self._piece(i) for i in range(size)]
        pieces += [b""] * (max(self._added, default=size - 1) + 1 - size)
        for i, text in self._added.items():
            pieces[i] = b"" if text in self.specials else text.encode()
        return pieces

    def _piece(self, i: int) -> bytes:
        piece = self._sp.id_to_piece(i)
        if piece in self.specials or self._sp.is_unused(i):
            return b""
        if self._sp.is_byte(i):
            byte = BYTE_PIECE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else b""
        return self._sp.decode([i]).encode() if self._sp.is_unknown(i) else piece.replace(SPACE, " ").encode()

    def save(self, directory: pathlib.Path) -> None:
        (directory / "tokenizer.model").write_bytes(self._sp.serialized_model_proto())
        named = self._named_tokens() | {"unk_token": self._sp.id_to_piece(self._sp.unk_id())}
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": True} | named | self._config
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def render_chat(
    template: str, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool, names: Mapping[str, str]
) -> str:
    """The text of a conversation; InputError if the template refuses it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        conversation: Any = list(messages)
        named: dict[str, Any] = dict(names)
        rendered, _ = render_jinja_template(
            conversations=[conversation], chat_template=template, add_generation_prompt=generation_prompt, **named
        )
    except Exception as error:  # a template is a program: it may raise anything, and its sandbox stops it from more
        raise InputError(f"the chat template refuses this conversation ({error}); change its roles") from error
    return rendered[0]
