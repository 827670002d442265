"""Text to token ids and back: one class over Hugging Face tokenizer files, SentencePiece models and GGUF metadata."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend, SentencePieceBackend

REPLY = "zqx"  # stands for an assistant's words when a chat template is asked how it ends a turn


class Backend(Protocol):
    """What a tokenizer library must offer.

    Attributes:
      bos_id, eos_id, pad_id: named tokens, None where the tokenizer has none.
      specials: text -> id of the tokens that are control, not text.
      chat_template: Jinja source, or None.
    """

    bos_id: Any  # int | None
    eos_id: Any
    pad_id: Any
    specials: Any  # Mapping[str, int]
    chat_template: Any  # str | None

    def encode(self, text: str, *, add_special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str: ...
    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str: ...
    def pieces(self) -> list[bytes]: ...
    def save(self, directory: pathlib.Path) -> None: ...


class Tokenizer:
    """A tokenizer with the ids that generation needs.

    Attributes:
      backend: the library underneath.
      vocab_size: one more than the largest id; a model may have more rows, never fewer.
      bos_id, eos_id: beginning and end of text, or None.
      stop_ids: every id that ends a response: the tokenizer's end of text, those of the generation config, and the
        token with which the chat template ends an assistant's turn. Never empty.
      pad_id: for positions that do not count; the end of text where the tokenizer names no padding.
      start_id: the empty context: beginning of text, or the end of text where there is none.
      chat_template: Jinja source, or None.
    """

    def __init__(self, backend: Backend, *, stop_ids: Iterable[int] = ()):
        """`stop_ids` are those of the model's generation config.

        Raises:
          InputError: no token can end a response.
        """
        self.backend = backend
        self.bos_id, self.eos_id, self.chat_template = backend.bos_id, backend.eos_id, backend.chat_template
        ends = [self.eos_id, *stop_ids, _end_of_turn(backend)]
        self.stop_ids = tuple(dict.fromkeys(i for i in ends if i is not None))
        if not self.stop_ids:
            raise InputError("the tokenizer names no end-of-text token; set eos_token in its tokenizer_config.json")
        last = self.stop_ids[0] if self.eos_id is None else self.eos_id
        self.pad_id = last if backend.pad_id is None else backend.pad_id
        self.start_id = last if self.bos_id is None else self.bos_id
        self._token_bytes = backend.pieces()
        self.vocab_size = len(self._token_bytes)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids; `add_special` adds what the tokenizer puts around a text by itself (Llama's beginning of text)."""
        return self.backend.encode(text, add_special=add_special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; ids that only the model knows (padding of its vocabulary) have none."""
        return self.backend.decode([int(i) for i in ids], skip_special=skip_special)

    def decode_batch(self, batch: Iterable[Iterable[int]], *, skip_special: bool = True) -> list[str]:
        """`decode` of every row."""
        return [self.decode(ids, skip_special=skip_special) for ids in batch]

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation (dicts with `role` and `content`), up to where the assistant speaks next.

        Raises:
          InputError: no chat template, or one that refuses this conversation.
        """
        if self.chat_template is None:
            raise InputError("the tokenizer has no chat template; use plain prompts, or a model that was tuned to chat")
        return self.encode(self.backend.render(messages, generation_prompt=True))

    def token_bytes(self) -> list[bytes]:
        """The bytes each id adds to a text, [vocab_size]; empty for special tokens.

        Concatenated over a response they are `decode(...)` in UTF-8, except that some tokenizers drop the first space.
        """
        return list(self._token_bytes)

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the tokenizer's files, in the form that transformers reads, into an existing directory."""
        self.backend.save(pathlib.Path(directory))


def _end_of_turn(backend: Backend) -> int | None:
    """The special token that directly follows an assistant's words in the chat template."""
    if backend.chat_template is None:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": REPLY}]
    try:
        tail = backend.render(turns, generation_prompt=False).rpartition(REPLY)[2].lstrip()
    except InputError:
        return None  # a template for other conversations than this; the generation config has to name the token
    found = [text for text in backend.specials if text and tail.startswith(text)]
    return backend.specials[max(found, key=len)] if found else None


def load_directory(directory: pathlib.Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json, a SentencePiece model, or vocab.json with merges.txt.

    Raises:
      InputError: none of them there, or damaged.
    """
    if (directory / "tokenizer.json").is_file() or (directory / "vocab.json").is_file():
        backend: Backend = HuggingFaceBackend.load(directory)
    elif (directory / "tokenizer.model").is_file():
        backend = SentencePieceBackend.load(directory)
    else:
        raise InputError(f"{directory} has no tokenizer.json or tokenizer.model; copy the complete model directory")
    return Tokenizer(backend, stop_ids=_configured_stops(directory))


def _configured_stops(directory: pathlib.Path) -> list[int]:
    """`eos_token_id` (a number or a list) of generation_config.json and config.json."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            stops += _ids(path)
    return stops


def _ids(path: pathlib.Path) -> list[int]:
    value: Any = json_input.load_object(path).get("eos_token_id")
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
