"""The only renderer of chats: messages become text and token ids here, for training, evaluation and serving alike.

A tokenizer carries its chat template, so a model directory is sealed: whoever opens it renders the
same ids. Three things are made sure of here that a template alone does not give: special tokens typed
inside a message stay text, nothing is added around what the template wrote (no second start token),
and the assistant's turns are marked from the rendering itself, the token that ends them included, so
that any stock template can be trained on.
"""

from __future__ import annotations

import datetime
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import UserError
from groundup.text import templates, turns
from groundup.text.control_tokens import GUARDS, ControlTokens, Sealed, unused_marks

if TYPE_CHECKING:
    from groundup.text.tokenizers import Tokenizer

Message = Mapping[str, Any]
ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Turn:
    """An assistant's turn among the ids of a rendering: tokens `first` up to, not including, `stop`."""

    message: int
    """Which message it is, counted from 0."""
    first: int
    stop: int
    is_closed: bool
    """Whether it ends with a token (or text) that says so; some templates leave the last turn open."""


@dataclass(frozen=True)
class Rendered:
    """A chat as a model reads it."""

    text: str
    ids: list[int]
    turns: tuple[Turn, ...] = ()
    """The assistant's turns, where they were asked for."""

    @property
    def trained(self) -> list[bool]:
        """For each id, whether an assistant wrote it: its answer and the token that ends it."""
        marked = [False] * len(self.ids)
        for turn in self.turns:
            marked[turn.first : turn.stop] = [True] * (turn.stop - turn.first)
        return marked


class Prompt:
    """Renders chats with one tokenizer and its template. Picklable."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        variables: Mapping[str, Any] | None = None,
        today: datetime.date | None = None,
    ) -> None:
        """`variables` are handed to the template beside the messages (`enable_thinking: false`, …).

        `today` is what a template that asks for the date is told; the actual date unless given.
        Raises UserError for a tokenizer without a chat template.
        """
        if tokenizer.chat_template is None:
            raise UserError(
                "the tokenizer has no chat template, so it does not say how messages become text",
                fix="use a model that was trained to chat, or tune this one for it with the task `chat`",
            )
        self.tokenizer, self.variables, self.today = tokenizer, dict(variables or {}), today
        self.template: templates.Template = tokenizer.chat_template
        self.added: tuple[str, ...] = ()
        """Special tokens that were added to the tokenizer for the default template."""

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> Prompt:
        """The renderer of a model directory. Raises UserError if it has no chat template."""
        from groundup.text.tokenizers import Tokenizer as Opened

        return cls(tokenizer or Opened.load(folder))

    @classmethod
    def settled(
        cls,
        tokenizer: Tokenizer,
        *,
        variables: Mapping[str, Any] | None = None,
        today: datetime.date | None = None,
    ) -> Prompt:
        """The renderer of a tokenizer, given the default template (ChatML) where it has none.

        The tokens that the template needs and the tokenizer lacks are added to a copy, `tokenizer`
        of the result, and named in its `added`: the model's embeddings have to grow by as many.
        """
        if tokenizer.chat_template is not None:
            return cls(tokenizer, variables=variables, today=today)
        added = tuple(token for token in templates.DEFAULT_TOKENS if tokenizer.token_id(token) is None)
        extended = tokenizer.with_chat(templates.DEFAULT_TEMPLATE, templates.DEFAULT_TOKENS)
        prompt = cls(extended, variables=variables, today=today)
        prompt.added = added
        return prompt

    def __getstate__(self) -> dict[str, Any]:
        kept = ("tokenizer", "variables", "today", "template", "added")
        return {name: getattr(self, name) for name in kept}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        mark_turns: bool = False,
    ) -> Rendered:
        """The text and ids of a chat: those of transformers' `apply_chat_template`.

        They differ only where a message holds the text of a special token, which stays text here.
        `tools` are JSON schemas of functions. With `mark_turns` the assistant's turns are found too.
        Raises UserError for messages that the template refuses, and when turns are to be marked for
        one that renders empty, naming it.
        """
        chat, schemas = _checked(messages), templates.plain(tools)
        mark = unused_marks([chat, schemas, self.variables], 1, GUARDS)[0]
        guarded, shielded = self._control.guard(chat, mark), self._control.guard(schemas, mark)

        def draw(some: Sequence[Message], ask: bool) -> str:
            return self._text(some, shielded, ask).replace(mark, "")

        shown = self._text(guarded, shielded, add_generation_prompt)
        sealed = self._control.encode(shown, mark)
        if not mark_turns:
            return Rendered(sealed.text, sealed.ids)
        if add_generation_prompt:
            raise ValueError("a chat that asks for an answer is not one to train on")
        _, spans = turns.find(draw, guarded, self._frame, self._closing)
        return Rendered(sealed.text, sealed.ids, tuple(self._turn(sealed, span) for span in spans))

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids after which an assistant's turn is over: for generation, and for generation_config.json.

        The token that the template ends a turn with, and the tokenizer's own (`Tokenizer.stop_ids`).
        """
        found = (self.tokenizer.token_id(token) for token in self._frame.closers)
        return sorted({*self.tokenizer.stop_ids, *(token for token in found if token is not None)})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What ends an assistant's turn where the template has no token for it."""
        return (self._frame.plain_close,) if self._frame.plain_close else ()

    def _turn(self, sealed: Sealed, span: turns.Span) -> Turn:
        """The tokens of a span of characters.

        A token over its beginning belongs to it (a line break of the template's may share a token with
        one of the answer), unless it is a special one, which may only have taken spaces in.
        """
        starts = [start for start, _ in sealed.offsets]
        first, stop = bisect_left(starts, span.start), bisect_left(starts, span.end)
        special = self._control.special_ids
        while first and sealed.offsets[first - 1][1] > span.start and sealed.ids[first - 1] not in special:
            first -= 1
        return Turn(span.message, first, stop, span.is_closed)

    def _text(self, messages: Sequence[Message], tools: Any, ask: bool) -> str:
        variables = {
            **{f"{role}_token": token for role, token in self.tokenizer.specials.named().items()},
            **self.variables,
            "messages": [_with_reasoning(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": ask,
        }
        template = templates.choose(self.template, has_tools=tools is not None)
        return templates.run(template, variables, today=self.today)

    @cached_property
    def _frame(self) -> turns.Frame:
        every = ControlTokens(self.tokenizer, self.tokenizer.added_tokens).names
        return turns.probe(lambda messages, ask: self._text(messages, None, ask), every)

    @cached_property
    def _control(self) -> ControlTokens:
        try:
            structural = self._frame.structural
        except UserError:  # a template that shows no plain chat can be read, if not be trained on
            structural = frozenset()
        return ControlTokens(self.tokenizer, structural)

    @cached_property
    def _closing(self) -> list[str]:
        """Tokens that may end a turn where none of the usual ones does."""
        return self._control.names


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain data, keys without a value left out.

    Raises UserError, naming the message, for what no template could render.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise UserError("a chat is a list of messages", fix="[{'role': 'user', 'content': 'Hello'}]")
    found = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise UserError(f"message {number} is no mapping but {message!r}", fix="{'role': …, 'content': …}")
        role = message.get("role")
        if not isinstance(role, str) or not ROLE.fullmatch(role):
            raise UserError(
                f"message {number} has the role {role!r}", fix="a role is a word: system, user, assistant or tool"
            )
        found.append({key: templates.plain(value) for key, value in message.items() if value is not None})
        _require_text(found[-1], number)
    if not found:
        raise UserError("a chat needs at least one message", fix="[{'role': 'user', 'content': 'Hello'}]")
    return found


def _require_text(message: Message, number: int) -> None:
    """Raise UserError for half of a pair that stands for one character: no tokenizer can encode it."""
    try:
        json.dumps(message, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"message {number} holds U+{ord(str(error.object)[error.start]):04X}, half of a character",
            fix="it was cut or decoded wrongly on its way here: read it as UTF-8, and cut between characters",
        ) from error


def _with_reasoning(message: Message) -> dict[str, Any]:
    """A message whose thoughts are found under every name that published templates use for them."""
    thoughts = next((message[key] for key in turns.REASONING if message.get(key) is not None), None)
    if thoughts is None:
        return dict(message)
    return {"thinking": thoughts, **message, "reasoning_content": thoughts}
