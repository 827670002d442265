"""The two tokenizer libraries behind `tokenizers.Tokenizer`: Hugging Face's, and Google's SentencePiece."""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens import chat
from iiblpo_jax.model.tokens import files as tokenizer_files
from iiblpo_jax.model.tokens.quoting import Controls, marked

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
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of named tokens
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
        names = (fast.bos_token, fast.eos_token, fast.pad_token, fast.unk_token)
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = map(vocab.get, names)
        added = self._rust.get_added_tokens_decoder()
        self.added = {token.content: i for i, token in added.items()}
        self.specials = {token.content: i for i, token in added.items() if token.special}
        self.chat_template = chat.named(fast.chat_template, "the tokenizer")
        self._quoting: tuple[Any, dict[Any, int]] | None = None

    @classmethod
    def load(cls, directory: pathlib.Path) -> "HuggingFaceBackend":
        """From a directory; InputError if its files cannot be read."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # A tokenizer.json is the whole pipeline. AutoTokenizer would rebuild it by the model's family, which is wrong
        # for a vocabulary of one's own; it is only needed where there are nothing but vocab.json and merges.txt.
        kind = PreTrainedTokenizerFast if (directory / "tokenizer.json").is_file() else AutoTokenizer
        tokenizer_files.check(directory)
        template = chat.template_in(directory, _json_of(directory, "tokenizer_config.json"))
        try:
            fast = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            fast.chat_template = template
            return cls(fast, source=directory)
        except (InputError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the Rust side raises bare Exception, and its panics are not even that
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"the tokenizer in {directory} cannot be read ({reason}); copy its files again") from error

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        try:
            return self._rust.encode(text, add_special_tokens=add_special).ids
        except Exception as error:  # a word that a vocabulary without an unknown token does not have
            raise InputError(f"the tokenizer cannot read {text[:40]!r} ({error}); use another tokenizer") from error

    def encode_quoted(self, text: str, controls: Controls, *, add_special: bool) -> list[int]:
        if self._quoting is None:  # a copy of the pipeline, made when data first need it
            self._quoting = _where_marked(self._rust, controls)
        rust, meant = self._quoting
        ids: list[int] = rust.encode(controls.unquote(controls.mark(text)), add_special_tokens=add_special).ids
        return [meant.get(i, i) for i in ids]

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return self._rust.decode(ids, skip_special_tokens=skip_special)

    def names(self) -> dict[str, str]:
        return {f"{name}_token": getattr(self._fast, f"{name}_token") or "" for name in ("bos", "eos", "pad", "unk")}

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


def _json_of(directory: pathlib.Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a tokenizer; empty where there is no such file."""
    return json_input.load_object(directory / name) if (directory / name).is_file() else {}


def _where_marked(rust: Any, controls: Controls) -> tuple[Any, dict[Any, int]]:
    """The pipeline with control tokens only where `controls.mark` put them, and (id there -> id) of these."""
    from tokenizers import AddedToken, Tokenizer

    state = json.loads(rust.to_str())
    kinds = {token["content"]: token for token in state["added_tokens"]}
    for text in controls.ids.keys() & kinds.keys():
        kinds[text]["special"] = True  # only those can be switched off
    literal = Tokenizer.from_str(json.dumps(state))
    literal.encode_special_tokens = True
    for text, i in controls.ids.items():
        strips = {side: kinds[text][side] for side in ("lstrip", "rstrip") if text in kinds}
        literal.add_tokens([AddedToken(marked(i), normalized=False, special=False, **strips)])
    return literal, {literal.token_to_id(marked(i)): i for i in controls.ids.values()}


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
        self.unk_id = processor.unk_id() if processor.unk_id() >= 0 else None
        self.bos_id, self.eos_id, self.pad_id = (self._named(n) for n in ("bos", "eos", "pad"))
        self.chat_template = chat.named(self._config.get("chat_template"), "the tokenizer")
        whole = sorted({*self.specials, *self._added.values()}, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, whole)) + ")") if whole else None
        self.added = {text: i for i, text in self._added.items()} | self.specials

    @classmethod
    def load(cls, directory: pathlib.Path) -> "SentencePieceBackend":
        """From a directory with a tokenizer.model; InputError if it cannot be read."""
        import sentencepiece

        path = directory / "tokenizer.model"
        tokenizer_files.check(directory)
        config = _named_in(directory) | _json_of(directory, "tokenizer_config.json")
        if template := chat.template_in(directory, config):
            config["chat_template"] = template
        try:
            config["added_tokens_decoder"] = _added_in(directory, config) | config.get("added_tokens_decoder", {})
            return cls(sentencepiece.SentencePieceProcessor(model_file=str(path)), config=config)
        except (RuntimeError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{path} is not a readable SentencePiece model; copy the file again") from error

    def _named(self, name: str) -> int | None:
        content = _content(self._config.get(f"{name}_token"))
        if content in self.specials:
            return self.specials[content]
        i = getattr(self._sp, f"{name}_id")()
        return None if i < 0 else i

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        return self._encode(text, lambda part: part, add_special=add_special)

    def encode_quoted(self, text: str, controls: Controls, *, add_special: bool) -> list[int]:
        return self._encode(text, controls.unquote, add_special=add_special)

    def _encode(self, text: str, read: Callable[[str], str], *, add_special: bool) -> list[int]:
        """Ids; `read` is applied to what is between added tokens."""
        begins = add_special and self._config.get("add_bos_token") is not False
        ids = [self.bos_id] if begins and self.bos_id is not None else []
        for part in self._split.split(text) if self._split else [text]:
            if part in self.added:
                ids.append(self.added[part])
            elif part:
                ids += self._sp.encode(read(part))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        text, run, names = "", [], {i: t for t, i in self.specials.items()} | self._added
        for i in ids:
            if i not in names:
                run += [i] if 0 <= i < self._sp.get_piece_size() else []
            elif not (skip_special and names[i] in self.specials):
                text, run = text + self._sp.decode(run) + names[i], []
        return text + self._sp.decode(run)

    def names(self) -> dict[str, str]:
        return {name: text or "" for name, text in self._named_tokens().items()}

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


def _content(token: Any) -> Any:
    """The text of a token that a JSON file names, alone or as an object with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _named_in(directory: pathlib.Path) -> dict[str, Any]:
    """The texts of the tokens that a special_tokens_map.json names, by role; empty without the file."""
    return {
        role: [_content(token) for token in tokens] if isinstance(tokens, list) else _content(tokens)
        for role, tokens in _json_of(directory, "special_tokens_map.json").items()
    }


def _added_in(directory: pathlib.Path, config: Mapping[str, Any]) -> dict[str, dict]:
    """An added_tokens.json as an `added_tokens_decoder`; its control tokens are those that have a role in `config`."""
    named = [_content(config.get(f"{role}_token")) for role in ROLES]
    named += map(_content, config.get("additional_special_tokens") or ())
    added = _json_of(directory, "added_tokens.json")
    return {str(i): {"content": text, "special": text in named} for text, i in added.items()}
