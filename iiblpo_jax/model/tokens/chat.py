"""Chat templates: where a directory keeps them, and the text of a conversation.

A template is a program of somebody else's, which transformers runs in a sandbox. It may ask for today's date (Llama
3.2 does): here that is a date it is given, so that a prompt is the same tomorrow.
"""

import datetime
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError

CLOCK = "strftime_now"  # the function by which a template asks for the time
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", CLOCK)  # what a template is given anyway
# The sandbox passes no functions on, so the one that tells the date is a macro over texts. It shadows their clock.
DATED = (
    "{%- macro strftime_now(format) -%}{%- set told = namespace(text=format) -%}"
    "{%- for code, text in date_codes.items() -%}{%- set told.text = told.text.replace(code, text) -%}{%- endfor -%}"
    "{{- told.text -}}{%- endmacro -%}"
)


def template_in(directory: pathlib.Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a model directory: the default one, or None.

    It is in chat_template.jinja, else in tokenizer_config.json, else in chat_template.json.

    Args:
      directory: of the model.
      config: its tokenizer_config.json.

    Raises:
      InputError: a file that cannot be read, or several templates of which none is the default.
    """
    jinja, other = directory / "chat_template.jinja", directory / "chat_template.json"
    try:
        if jinja.is_file():
            return jinja.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{jinja} cannot be read ({error}); copy the file again") from error
    found = named(config.get("chat_template"), str(directory / "tokenizer_config.json"))
    if found is None and other.is_file():
        return named(json_input.load_object(other).get("chat_template"), str(other))
    return found


def named(templates: Any, source: str) -> str | None:
    """The default among named templates, `[{"name", "template"}, ...]` or {name: template}; a text is the only one.

    Raises:
      InputError: there are several, and none is called default.
    """
    if templates is None or isinstance(templates, str):
        return templates
    try:
        pairs = templates.items() if isinstance(templates, Mapping) else [(t["name"], t["template"]) for t in templates]
        by_name = {str(name): template for name, template in pairs}
    except (TypeError, KeyError) as error:
        raise InputError(f"{source}: its chat_template is no template; copy the file again") from error
    if not all(isinstance(template, str) for template in by_name.values()):
        raise InputError(f"{source}: its chat_template is no template; copy the file again")
    if len(by_name) > 1 and "default" not in by_name:
        raise InputError(
            f"{source} has the chat templates {', '.join(sorted(by_name))} and none is called default; rename the one "
            "that is meant"
        )
    return by_name.get("default", next(iter(by_name.values()), None))


def is_dated(template: str | None) -> bool:
    """Whether what a template writes may depend on the day."""
    return template is not None and CLOCK in template


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    generation_prompt: bool,
    names: Mapping[str, str],
    date: datetime.date,
    arguments: Mapping[str, Any],
) -> str:
    """The text of a conversation.

    Args:
      template: Jinja source.
      messages: dicts with `role` and `content`.
      generation_prompt: up to where the assistant speaks next.
      names: texts of the tokenizer's named tokens, such as `bos_token`.
      date: today, for a template that asks.
      arguments: what the template is told besides, such as `enable_thinking`.

    Raises:
      InputError: the template refuses the conversation.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    given: dict[str, Any] = dict(names)
    if is_dated(template):
        template, given["date_codes"] = DATED + template, _date_codes(date)
    try:
        conversation: Any = list(messages)
        rendered, _ = render_jinja_template(
            conversations=[conversation],
            chat_template=template,
            add_generation_prompt=generation_prompt,
            **(given | dict(arguments)),
        )
    except Exception as error:  # a template is a program: it may raise anything, and its sandbox stops it from more
        raise InputError(f"the chat template refuses this conversation ({error}); change its roles") from error
    return rendered[0]


def _date_codes(date: datetime.date) -> dict[str, str]:
    """What every code of strftime says of a day, with `%-d` for a number without its zero."""
    codes = {letter: date.strftime(f"%{letter}") for letter in string.ascii_letters}
    bare = {f"%-{letter}": text.lstrip("0") or "0" for letter, text in codes.items()}
    return {f"%{letter}": text for letter, text in codes.items()} | bare


def into_user_turn(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The conversation with its system message before the words of the first user, a blank line between them."""
    system, *rest = messages
    first = next((i for i, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": system["content"]}, *rest]
    rest[first] = {**rest[first], "content": f"{system['content']}\n\n{rest[first]['content']}"}
    return rest
