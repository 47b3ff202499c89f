"""Calls of functions in a model's answer, in whichever form its own chat template writes them.

The form is read off the template: a chat in which an assistant calls a function is rendered, and what stands
around the function's name and arguments is how this model writes a call. ChatML (`<tool_call>{…}</tool_call>`),
Llama 3 (a bare object with `parameters`) and Mistral (`[TOOL_CALLS] [{…}]`) all come out of that one look, and so
does a form that nobody has published yet, as long as a call is JSON. What a model was shown in training is what is
looked for in its answers.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any

from groundup.errors import UserError
from groundup.text.control_tokens import one_of
from groundup.text.prompt import Prompt

NAME, KEY, VALUE, ID = "qzxnj", "qzxkj", "qzxvj", "qzxij0000"
"""What the probing call holds; the id is as long as Mistral's templates want it."""
ALPHABET = string.ascii_letters + string.digits
ID_LENGTH = 9
"""Characters of a call's id: templates of Mistral refuse any other number, all others take any."""
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A function with its arguments as JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH)))

    def as_data(self, index: int | None = None) -> dict[str, Any]:
        """OpenAI's `tool_calls` entry, with its place among them in a stream."""
        place = {} if index is None else {"index": index}
        return {
            **place,
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class CallForm:
    """How one template writes calls."""

    opening: str
    """What begins a call, or all of them; empty where a call is bare JSON."""
    closing: str
    """What ends it."""
    name_key: str
    arguments_key: str
    is_list: bool
    """Whether the calls of a turn are one list."""
    specials: Mapping[str, int] = field(default_factory=dict)
    """The special tokens among opening and closing, with their ids."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The special tokens that must stay visible in an answer with calls."""
        return frozenset(self.specials.values())

    def calls(self, value: Any, names: Collection[str]) -> list[Call] | None:
        """The calls that a JSON value stands for; None if it is anything else, or names a function nobody offered."""
        found = []
        for entry in value if self.is_list and isinstance(value, list) else [value]:
            if not isinstance(entry, Mapping) or entry.get(self.name_key) not in names:
                return None
            arguments = entry.get(self.arguments_key, {})
            if not isinstance(arguments, Mapping):
                return None
            found.append(Call(str(entry[self.name_key]), json.dumps(arguments, ensure_ascii=False)))
        return found or None

    def grammar(self, tools: Sequence[Mapping[str, Any]], *, several: bool) -> str:
        """A grammar in Lark's form, as llguidance reads it, of nothing but calls of these functions."""
        options = [self._schema(tool["function"]) for tool in tools]
        one: dict[str, Any] = options[0] if len(options) == 1 else {"anyOf": options}
        if self.is_list:
            one = {"type": "array", "items": one, "minItems": 1} | ({} if several else {"maxItems": 1})
        opening, closing = self._literal(self.opening), self._literal(self.closing)
        # ChatML's templates set the object on a line of its own, Mistral's put a space before it.
        parts = [part for part in (opening, "blank", "call", "blank", closing) if part]
        repeated = "+" if several and self.opening and not self.is_list else ""
        rules = [f"start: (group){repeated}", f"group: {' '.join(parts)} blank", 'blank: (" " | "\\n")?']
        return "\n".join([*rules, f"call: %json {json.dumps(one)}"])

    def _literal(self, text: str) -> str:
        """A text in Lark's form: special tokens by their ids, as llguidance wants them, and the rest as it is."""
        parts = one_of(self.specials).split(text) if self.specials else [text]
        marks = one_of(self.specials).findall(text) if self.specials else []
        written = [f"<[{self.specials[mark]}]>" for mark in marks]
        texts = [json.dumps(part) if part else "" for part in parts]
        mixed = [one for pair in zip_longest(texts, written, fillvalue="") for one in pair]
        return " ".join(one for one in mixed if one)

    def _schema(self, function: Mapping[str, Any]) -> dict[str, Any]:
        arguments = function.get("parameters") or {"type": "object"}
        return {
            "type": "object",
            "properties": {self.name_key: {"const": function["name"]}, self.arguments_key: arguments},
            "required": [self.name_key, self.arguments_key],
            "additionalProperties": False,
        }


def form_of(prompt: Prompt) -> CallForm | None:
    """How the template of a tokenizer writes calls, or None if it writes none, or none in JSON."""
    asked = [{"role": "user", "content": "qzxuj"}]
    call = {"id": ID, "type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}}
    parameters = {"type": "object", "properties": {KEY: {"type": "string"}}}
    schema = {"type": "function", "function": {"name": NAME, "description": "qzxdj", "parameters": parameters}}
    try:
        before = prompt.render(asked, [schema], add_generation_prompt=True).text
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        whole = prompt.render([*asked, turn], [schema]).text
    except UserError:
        return None
    same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    return _read_off(prompt, whole[same:])


def _read_off(prompt: Prompt, turn: str) -> CallForm | None:
    """The form of the one call in a rendered turn."""
    for start, letter in enumerate(turn):
        if letter not in "[{":
            continue
        try:
            value, end = _DECODER.raw_decode(turn, start)
        except ValueError:
            continue
        entry = value[0] if isinstance(value, list) and value else value
        keys = {_kind(item): key for key, item in entry.items()} if isinstance(entry, Mapping) else {}
        if {"name", "arguments"} <= keys.keys():
            # One mark before and one after: what else a turn begins with (thoughts, empty here) is not the call's.
            opening = "".join(turn[:start].split()[-1:])
            closing = "".join(_before_the_end(prompt, turn[end:]).split()[:1])
            specials = _specials(prompt, opening + closing)
            return CallForm(opening, closing, keys["name"], keys["arguments"], isinstance(value, list), specials)
    return None


def _kind(item: Any) -> str:
    if item == NAME:
        return "name"
    return "arguments" if isinstance(item, Mapping) and item.get(KEY) == VALUE else ""


def _before_the_end(prompt: Prompt, text: str) -> str:
    """What follows a call, up to the token that ends the turn."""
    ends = [prompt.tokenizer.token(token) or "" for token in prompt.stop_ids]
    places = [text.find(end) for end in (*ends, *prompt.stop_strings) if end and end in text]
    return text[: min(places, default=len(text))].strip()


def _specials(prompt: Prompt, text: str) -> dict[str, int]:
    """The special tokens that occur in a text."""
    tokens = {prompt.tokenizer.token(token) or "": token for token in prompt.tokenizer.special_ids}
    return {name: tokens[name] for name in one_of([name for name in tokens if name]).findall(text)}


class CallReader:
    """Tells calls from ordinary text in an answer that grows piece by piece.

    `push(piece)` gives the text to show and the calls that are complete; what may be the beginning of a call waits.
    What began like a call and is none is text after all.
    """

    def __init__(self, form: CallForm, names: Collection[str], *, several: bool = True) -> None:
        self.form, self.names, self.several = form, names, several
        self.found: list[Call] = []
        self._held = ""
        self._tried = 0
        """Characters of what is held inside an opening that were read before, and are no whole value yet."""
        self._is_inside = False
        """Whether what is held follows an opening."""
        self._is_plain = False
        """Whether this has turned out to be ordinary text, where only the beginning tells."""

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """The text that is certainly no call, and the calls that this piece completed."""
        self._held += piece
        shown: list[str] = []
        calls: list[Call] = []
        while self._step(shown, calls):
            pass
        return "".join(shown), calls

    def flush(self) -> str:
        """What was held back and is no call, when the answer has ended."""
        opening = self.form.opening if self._is_inside else ""
        rest, self._held, self._is_inside = opening + self._held, "", False
        return rest if rest.strip() or not self.found else ""

    def _step(self, shown: list[str], calls: list[Call]) -> bool:
        """Take one more part of what is held; False when more has to arrive first."""
        if not self._is_inside:
            return self._outside(shown)
        text = self._held.lstrip()
        # Tried only when something ended since the last time: a long call is not read anew for each of its tokens.
        if not any(mark in text[self._tried :] for mark in "]}"):
            return False
        try:
            value, end = _DECODER.raw_decode(text)
        except ValueError:
            self._tried = len(text)
            return False
        self._tried = 0
        made = self.form.calls(value, self.names)
        if made is None or (self.found and not self.several):
            shown.append(self.form.opening + self._held[: len(self._held) - len(text) + end])
        else:
            kept = made if self.several else made[:1]
            self.found += kept
            calls += kept
        self._held, self._is_inside = text[end:], False
        return True

    def _outside(self, shown: list[str]) -> bool:
        form = self.form
        if self.found:  # between calls, and after the last, there is nothing but marks and spaces
            self._held = self._held.lstrip()
            if form.closing and self._held.startswith(form.closing):
                self._held = self._held[len(form.closing) :]
                return True
            if self._held and form.closing.startswith(self._held) and self._held != form.closing:
                return False
        if not form.opening:
            return self._bare(shown)
        start = self._held.find(form.opening)
        if start >= 0:
            self._show(shown, self._held[:start])
            self._held, self._is_inside = self._held[start + len(form.opening) :], True
            return True
        keep = self._open_tail
        self._show(shown, self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _bare(self, shown: list[str]) -> bool:
        """Without an opening, a turn is calls if it begins like JSON."""
        text = self._held.lstrip()
        if text and not self._is_plain and text[0] in ("[{" if self.form.is_list else "{;"):
            self._held, self._is_inside = text.lstrip("; \n"), True
            return bool(self._held)
        if text:
            self._is_plain = True
            shown.append(self._held)
            self._held = ""
        return False

    def _show(self, shown: list[str], text: str) -> None:
        if text and (text.strip() or not self.found):
            shown.append(text)

    @property
    def _open_tail(self) -> int:
        """The length of the longest end of what is held that is a beginning of the opening."""
        most = min(len(self._held), len(self.form.opening) - 1)
        return next((n for n in range(most, 0, -1) if self.form.opening.startswith(self._held[-n:])), 0)


@dataclass(frozen=True)
class Offered:
    """The functions that one request offers, and what it asks of the model about them."""

    tools: Sequence[Mapping[str, Any]]
    form: CallForm
    is_forced: bool
    several: bool

    @cached_property
    def names(self) -> frozenset[str]:
        """The functions that may be called."""
        return frozenset(str(tool["function"]["name"]) for tool in self.tools)

    def reader(self) -> CallReader:
        """A reader for one answer."""
        return CallReader(self.form, self.names, several=self.several)

    def grammar(self) -> str | None:
        """What the answer is held to, where a call is asked for; in Lark's form."""
        return self.form.grammar(self.tools, several=self.several) if self.is_forced else None
