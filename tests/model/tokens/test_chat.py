"""Chat templates as published models keep them: dated, named, in a file of their own, without a system message."""

import datetime
import json

import pytest
from transformers import AutoTokenizer

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens import chat
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend
from iiblpo_jax.model.tokens.tokenizer import Tokenizer, load_directory

DAY = datetime.date(2026, 3, 7)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
# How Llama 3.2 asks for the date, and how Gemma and the first Mistral refuse a system message.
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{{- 'Today: ' + date_string }}{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
)
SILENT = "{% for m in messages if m.role != 'system' %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
THINKS = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<no thoughts>' }}{% endif %}"
)


@pytest.fixture
def said(letters):
    def render(template, arguments=None, *, messages=ASKED):
        tokenizer = Tokenizer(HuggingFaceBackend(letters(template))).dated_on(DAY)
        return "".join(map(chr, tokenizer.render_chat(messages, arguments or {})))

    return render


def test_a_template_is_told_the_day_it_is_given(said):
    assert said(LLAMA) == "Today: 07 Mar 2026<system>Be brief.<user>2+2?"
    assert said(LLAMA, {"date_string": "never"}).startswith("Today: never<")
    codes = "{{ strftime_now('%-d.%-m.%y %A %B %H:%M, day %-j%') }}{{ messages[0].content }}"
    assert said(codes) == "7.3.26 Saturday March 00:00, day 66%Be brief."
    assert [chat.is_dated(template) for template in (LLAMA, GEMMA, None)] == [True, False, False]


def test_a_system_message_that_a_template_does_not_take_goes_to_the_user(said):
    for template in (GEMMA, SILENT):
        assert said(template) == "<user>Be brief.\n\n2+2?"
        assert said(template, messages=ASKED[1:]) == "<user>2+2?"
    later = [*ASKED, {"role": "assistant", "content": "4"}, {"role": "user", "content": "sure?"}]
    assert said(GEMMA, messages=later) == "<user>Be brief.\n\n2+2?<assistant>4<user>sure?"
    assert chat.into_user_turn(ASKED[:1]) == [{"role": "user", "content": "Be brief."}]


def test_arguments_of_a_template(said):
    assert said(THINKS) == "<system>Be brief.<user>2+2?"
    assert said(THINKS, {"enable_thinking": False}) == "<system>Be brief.<user>2+2?<no thoughts>"
    for arguments, message in [
        ({"enable_thinkin": False}, "task.template_args.enable_thinkin: the chat template reads no such argument"),
        ({"messages": []}, "task.template_args.messages is given to every chat template by itself"),
        ({"eos_token": "x"}, "task.template_args.eos_token is given to every chat template"),
    ]:
        with pytest.raises(InputError, match=message):
            said(THINKS, arguments)


@pytest.fixture
def directory(tmp_path, letters):
    letters().save_pretrained(str(tmp_path))
    return tmp_path


def configure(directory, **keys):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_default_of_named_templates(directory):
    """As Command R and Hermes have them; transformers renders the same text."""
    templates = [{"name": "tool_use", "template": GEMMA}, {"name": "default", "template": THINKS}]
    configure(directory, chat_template=templates)
    tokenizer = load_directory(directory)
    assert tokenizer.chat_template == THINKS
    theirs = AutoTokenizer.from_pretrained(str(directory)).apply_chat_template(ASKED, tokenize=False)
    assert "".join(map(chr, tokenizer.render_chat(ASKED))) == theirs
    configure(directory, chat_template=templates[:1])
    assert load_directory(directory).chat_template == GEMMA
    configure(directory, chat_template=[templates[0], {"name": "rag", "template": THINKS}])
    with pytest.raises(InputError, match="has the chat templates rag, tool_use and none is called default; rename"):
        load_directory(directory)
    for damaged in (5, [5], [{"name": "default"}], [{"name": "default", "template": 5}]):
        configure(directory, chat_template=damaged)
        with pytest.raises(InputError, match="chat_template is no template; copy the file again"):
            load_directory(directory)


def test_a_template_in_a_file_of_its_own(directory):
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": SILENT}))
    assert load_directory(directory).chat_template == SILENT
    configure(directory, chat_template=THINKS)
    assert load_directory(directory).chat_template == THINKS
    (directory / "chat_template.jinja").write_text(GEMMA)
    assert load_directory(directory).chat_template == GEMMA
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"chat_template\.jinja cannot be read"):
        load_directory(directory)
