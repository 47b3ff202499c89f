"""Chat templates: how a tokenizer's Jinja template is found, compiled and run without trusting it.

A chat template comes with a checkpoint, so it is a stranger's program. It runs in Jinja's immutable
sandbox and sees plain data only: strings, numbers, lists and mappings, made anew for each rendering.
What published templates call (`raise_exception`, `strftime_now`, `tojson` that escapes nothing, loop
controls, and the `generation` tags, which mean nothing here) is provided.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from groundup.errors import DataError, UserError

Template = str | Mapping[str, str]
"""One template, or several by name."""

TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"

_PRIVATE = re.compile(r"\\udb[89a-f][0-9a-f]\\ud[c-f][0-9a-f]{2}")
"""A private-use character of the last two planes, as JSON in ASCII escapes it."""
START, END = "<|im_start|>", "<|im_end|>"
DEFAULT_TOKENS = (START, END)
"""The special tokens that the default template needs."""
DEFAULT_TEMPLATE = r"""
{%- macro words(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}{%- for part in content or [] -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set system = messages[0].role == 'system' -%}
{%- if tools or system -%}
{{- '<|im_start|>system\n' -}}
{%- if system -%}{{- words(messages[0].content) -}}{%- endif -%}
{%- if tools -%}
{{- ('\n\n' if system else '') + 'Functions to call by writing <tool_call>{"name": …, "arguments": …}</tool_call>:' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in (messages[1:] if system else messages) -%}
{{- '<|im_start|>' + message.role + '\n' + words(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{{- ('\n' if message.content else '') + '<tool_call>' + ((call.function or call) | tojson) + '</tool_call>' -}}
{%- if not loop.last -%}{{- '\n' -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".strip()
"""What a tokenizer without a template gets when a chat model is made of it: the ChatML layout."""


def read_templates(folder: Path, config: Mapping[str, Any]) -> Template | None:
    """The chat template that a model directory carries, by name where it has several; None without one.

    Files win over `chat_template` in tokenizer_config.json, as they do in transformers.
    """
    given = config.get("chat_template")
    if isinstance(given, list):
        given = {str(entry["name"]): str(entry["template"]) for entry in given}
    files = {file.stem: _read(file) for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).is_file():
        files["default"] = _read(folder / TEMPLATE_FILE)
    if files:
        return files["default"] if list(files) == ["default"] else files
    return given if isinstance(given, str | Mapping) else None


def choose(template: Template, *, has_tools: bool) -> str:
    """The template to use: with tools the one named tool_use where there is one, otherwise the default."""
    if isinstance(template, str):
        return template
    name = "tool_use" if has_tools and "tool_use" in template else "default"
    if name not in template:
        known = ", ".join(sorted(template)) or "none"
        raise UserError("the tokenizer has no chat template named 'default'", fix=f"it has: {known}")
    return template[name]


def run(template: str, variables: Mapping[str, Any], *, today: datetime.date | None = None) -> str:
    """The text a template makes of these variables. `today` is the date it is told, unless the actual one.

    Raises UserError with the template's own words where it refuses the messages, and for a template
    that cannot be read or fails on them.
    """
    compiled = _compile(template)
    try:
        given = {key: plain(value) for key, value in variables.items()}
        return compiled.render(given | {"strftime_now": _clock(today)})
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template refuses these messages: {error.message or error}",
            fix="change the messages as it says, or use a model whose template allows them",
        ) from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"the chat template fails on these messages: {error}",
            fix="it expects other keys or types: look at what each message holds beside role and content",
        ) from error


def plain(value: Any) -> Any:
    """A copy of nested data that holds nothing but plain strings, numbers, lists and mappings.

    Raises UserError for anything else: a template must not reach the methods of a stranger's object.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):  # a subclass, which may have methods of its own
        return "".join(value)
    raise UserError(
        f"messages hold strings, numbers, lists and mappings, and one holds a {type(value).__name__}",
        fix="convert it to text first",
    )


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"the chat template cannot be read: line {error.lineno}: {error.message}",
            fix="it is damaged or written for another engine: take it from the published model again",
        ) from error


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _clock(today: datetime.date | None) -> Any:
    """`strftime_now` as templates call it: the time of day, or midnight of a fixed day."""

    def strftime_now(form: str) -> str:
        now = datetime.datetime.now() if today is None else datetime.datetime.combine(today, datetime.time())
        return now.strftime(form)

    return strftime_now


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would write `<` as an escape, which no model was trained on."""
    pair = None if separators is None else (str(separators[0]), str(separators[1]))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)
    # Private-use characters stay as they are: the marks of `text/control_tokens.py` are among them.
    return _PRIVATE.sub(lambda found: str(json.loads(f'"{found[0]}"')), text) if ensure_ascii else text


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` as its content: the turns are found without it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` in a template: makes one, and is not the class itself, whose attributes lead further."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` in a template, which keeps no name that begins with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        for name in dict(*rest, **values):
            _require_plain(name)
        jinja2.utils.Namespace.__init__(self, *rest, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace keeps no name such as {name!r}")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
