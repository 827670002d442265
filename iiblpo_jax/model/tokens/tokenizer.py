"""Text to token ids and back: one class over Hugging Face tokenizer files, SentencePiece models and GGUF metadata."""

import copy
import datetime
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens import chat
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend, SentencePieceBackend
from iiblpo_jax.model.tokens.quoting import Controls, is_quoted

# Stand for messages when a chat template is asked what it does with them.
SYSTEM, QUESTION, REPLY = "zqs", "zqu", "zqx"
NO_ARGUMENTS: Mapping[str, Any] = {}


class Backend(Protocol):
    """What a tokenizer library must offer.

    Attributes:
      bos_id, eos_id, pad_id, unk_id: named tokens, None where the tokenizer has none.
      specials: text -> id of the tokens that are control, not text.
      added: text -> id of all tokens that are found in a text before it is cut into pieces; the specials among them.
      chat_template: Jinja source, or None.
    """

    bos_id: Any  # int | None
    eos_id: Any
    pad_id: Any
    unk_id: Any
    specials: Any  # Mapping[str, int]
    added: Any
    chat_template: Any  # str | None

    def encode(self, text: str, *, add_special: bool) -> list[int]: ...
    def encode_quoted(self, text: str, controls: Controls, *, add_special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str: ...
    def names(self) -> dict[str, str]: ...
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
      date: today, for a chat template that asks (`dated_on`).
    """

    def __init__(self, backend: Backend, *, stop_ids: Iterable[int] = ()):
        """`stop_ids` are those of the model's generation config.

        Raises:
          InputError: no token can end a response.
        """
        self.backend = backend
        self.bos_id, self.eos_id, self.chat_template = backend.bos_id, backend.eos_id, backend.chat_template
        self.date = datetime.date.today()
        ends = [self.eos_id, *stop_ids, self._end_of_turn()]
        self.stop_ids = tuple(dict.fromkeys(i for i in ends if i is not None))
        if not self.stop_ids:
            raise InputError("the tokenizer names no end-of-text token; set eos_token in its tokenizer_config.json")
        last = self.stop_ids[0] if self.eos_id is None else self.eos_id
        self.pad_id = last if backend.pad_id is None else backend.pad_id
        self.start_id = last if self.bos_id is None else self.bos_id
        self._token_bytes = backend.pieces()
        self.vocab_size = len(self._token_bytes)
        ends_turns = {text: i for text, i in backend.added.items() if i in self.stop_ids}
        self._controls = Controls(backend.specials | ends_turns)
        self._says_system: dict[str, bool] = {}  # template arguments -> whether the template writes system messages

    def dated_on(self, date: datetime.date) -> "Tokenizer":
        """The same tokenizer, but for the day that its chat template is told."""
        dated = copy.copy(self)
        dated.date = date
        return dated

    @property
    def is_dated(self) -> bool:
        """Whether what the chat template writes may depend on the day."""
        return chat.is_dated(self.chat_template)

    def quote(self, text: str) -> str:
        """Text out of data, to be put into a prompt: control tokens in it are text to `encode` and `render_chat`.

        It holds stand-ins (quoting.py) and is not for reading.
        """
        return self._controls.quote(text)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids; `add_special` adds what the tokenizer puts around a text by itself (Llama's beginning of text).

        Raises:
          InputError: the tokenizer cannot write what was `quote`d without control tokens, or not at all.
        """
        if not is_quoted(text):
            return self.backend.encode(text, add_special=add_special)
        controls, backend = self._controls, self.backend
        ids = backend.encode_quoted(text, controls, add_special=False)
        control_ids = set(controls.ids.values()) - {backend.unk_id}
        if sum(i in control_ids for i in ids) > controls.meant(text):
            shown = repr(controls.unquote(text)[-80:])
            raise InputError(f"the tokenizer has no text for the control tokens in {shown}; reword that row")
        return backend.encode_quoted(text, controls, add_special=True) if add_special else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; ids that only the model knows (padding of its vocabulary) have none."""
        return self.backend.decode([int(i) for i in ids], skip_special=skip_special)

    def decode_batch(self, batch: Iterable[Iterable[int]], *, skip_special: bool = True) -> list[str]:
        """`decode` of every row."""
        return [self.decode(ids, skip_special=skip_special) for ids in batch]

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> list[int]:
        """Token ids of a conversation (dicts with `role` and `content`), up to where the assistant speaks next.

        A system message that the template refuses or leaves out goes before the words of the user.

        Args:
          messages: what comes out of data has been `quote`d.
          arguments: what the template is told besides, such as `enable_thinking`.

        Raises:
          InputError: no chat template, one that refuses this conversation, or one that reads no such argument.
        """
        self._check_arguments(arguments)
        if messages and messages[0]["role"] == "system" and not self._writes_system(arguments):
            messages = chat.into_user_turn(messages)
        return self.encode(self._render(messages, arguments))

    def _check_arguments(self, arguments: Mapping[str, Any]) -> None:
        if self.chat_template is None:
            raise InputError("the tokenizer has no chat template; use plain prompts, or a model that was tuned to chat")
        for name in arguments:
            if name in (*chat.RESERVED, *self.backend.names()):
                raise InputError(f"task.template_args.{name} is given to every chat template by itself; leave it out")
            if not re.search(rf"\b{re.escape(name)}\b", self.chat_template):
                raise InputError(f"task.template_args.{name}: the chat template reads no such argument; leave it out")

    def _render(self, messages, arguments: Mapping[str, Any] = NO_ARGUMENTS, *, generation_prompt: bool = True) -> str:
        return chat.render(
            self.chat_template or "",
            messages,
            generation_prompt=generation_prompt,
            names=self.backend.names(),
            date=self.date,
            arguments=arguments,
        )

    def _writes_system(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a system message stands in what the template makes of a conversation that begins with one."""
        key = json.dumps(arguments, sort_keys=True, default=str)
        if key not in self._says_system:
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
            try:
                self._says_system[key] = SYSTEM in self._render(turns, arguments)
            except InputError:
                self._says_system[key] = False
        return self._says_system[key]

    def _end_of_turn(self) -> int | None:
        """The special token that directly follows an assistant's words in the chat template."""
        if self.chat_template is None:
            return None
        turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": REPLY}]
        try:
            tail = self._render(turns, generation_prompt=False).rpartition(REPLY)[2].lstrip()
        except InputError:
            return None  # a template for other conversations than this; the generation config has to name the token
        specials = self.backend.specials
        found = [text for text in specials if text and tail.startswith(text)]
        return specials[max(found, key=len)] if found else None

    def textless_ids(self, vocab_size: int) -> tuple[int, ...]:
        """The ids below `vocab_size`, the model's, that no response has: they are never sampled.

        Rows that pad the vocabulary, padding, beginning of text, the unknown token, and control tokens that neither end
        a response nor stand in the chat template, which may ask for them (`[THINK]` in Magistral's).
        """
        template, named = self.chat_template or "", {self.pad_id, self.bos_id, self.backend.unk_id}
        asked_for = {i for text, i in self.backend.specials.items() if text in template} - named
        speaks = {i for i, text in enumerate(self._token_bytes) if text} - named
        return tuple(sorted(set(range(vocab_size)) - speaks - asked_for - set(self.stop_ids)))

    def token_bytes(self) -> list[bytes]:
        """The bytes each id adds to a text, [vocab_size]; empty for special tokens.

        Concatenated over a response they are `decode(...)` in UTF-8, except that some tokenizers drop the first space.
        """
        return list(self._token_bytes)

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the tokenizer's files, in the form that transformers reads, into an existing directory."""
        self.backend.save(pathlib.Path(directory))


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
