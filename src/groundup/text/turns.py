"""Where the assistant's turns are in a rendered chat, told from the rendering alone.

Stock templates do not say which part of their output the assistant wrote. So the chat is rendered
again with marks, characters that occur nowhere else, around what each message holds. If the text
without the marks is the same as before, the marks did not disturb the template and their places are
the contents' places. A turn then reaches from the end of the generation prompt, which is where a
model begins to write, to the end of the token that ends the turn, where it stops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from groundup.errors import UserError
from groundup.text.control_tokens import one_of, unused_marks

Message = Mapping[str, Any]
Draw = Callable[[Sequence[Message], bool], str]
"""Renders messages, with a generation prompt or without one."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message under which published templates look for what a model thought before it answered."""
PROBE = ("qzxaj", "qzxbj", "qzxcj", "qzxdj")


@dataclass(frozen=True)
class Span:
    """An assistant's turn in a rendered text."""

    message: int
    """Which message it is, counted from 0."""
    start: int
    """Its first character: what follows the generation prompt."""
    end: int
    """One past its last character, that of the token that ends the turn."""
    is_closed: bool
    """Whether something ends it. The last turn of some templates is left open."""


@dataclass(frozen=True)
class Frame:
    """What a template writes around plain messages."""

    header: str
    """What it adds to ask for an answer; nothing where the user's turn already ends that way."""
    closers: tuple[str, ...]
    """The tokens that end an assistant's turn."""
    plain_close: str
    """What ends a turn where no token does."""
    structural: frozenset[str]
    """The tokens that separate turns."""
    known: re.Pattern[str]
    """Finds every token that has an id of its own."""


def probe(draw: Draw, tokens: Sequence[str]) -> Frame:
    """The frame of a template, found by rendering a small chat. `tokens` have an id of their own.

    Raises UserError for a template that renders no plain chat of two rounds.
    """
    first = _probing(draw)
    known = one_of([token for token in tokens if not token.isspace()])
    text = draw([*first, *_plain(1, 4)], False)
    a, b, c, d = (_place(text, word) for word in PROBE)
    middle, tail = text[b + len(PROBE[1]) : c], text[d + len(PROBE[3]) :]
    asked, unasked = draw(first, True), draw(first, False)
    cut = _common(asked, unasked, known)
    closing = [known.search(part) for part in (middle, tail)]
    # What is written after an answer whether another message follows or not, before any token, ends turns by itself.
    shared = middle[: min(_common(middle, tail, known), closing[0].start() if closing[0] else len(middle))].rstrip()
    frame = text[:a] + text[a + len(PROBE[0]) : b] + middle
    return Frame(
        header=asked[cut:],
        closers=() if shared.strip() else tuple(dict.fromkeys(found[0] for found in closing if found)),
        plain_close=shared if shared.strip() else "",
        structural=frozenset(found[0] for found in known.finditer(frame)),
        known=known,
    )


def find(draw: Draw, messages: Sequence[Message], frame: Frame, tokens: Sequence[str]) -> tuple[str, list[Span]]:
    """The rendered text, and the span of every assistant's turn in it. `tokens` may end a turn.

    Raises UserError, naming the message, for a turn of which the template shows nothing, and for one
    whose place cannot be told.
    """
    text = draw(messages, False)
    places = _locate(draw, messages, text)
    spans: list[Span] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        found = places.get(number)
        if found is None:
            raise _unseen(messages, number)
        after = [begin for other, (begin, _) in places.items() if other > number and begin is not None]
        start = _begin(draw, messages[:number], text, frame, places, number)
        end, is_closed = _finish(text, found, min(after, default=len(text)), frame, tokens)
        if start is None or end <= start:
            raise _untold(number)
        if not text[start : found[1] or end].strip():
            raise _unseen(messages, number)
        spans.append(Span(number, start, end, is_closed))
    return text, spans


Place = tuple[int | None, int | None]


def _begin(
    draw: Draw, before: Sequence[Message], text: str, frame: Frame, places: Mapping[int, Place], number: int
) -> int | None:
    """Where the turn begins: after the generation prompt, as a model in use would go on."""
    content = places[number][0]
    limit = next(bound for bound in (*places[number], len(text)) if bound is not None)
    last, known = _latest(places, number, limit)
    at = text.find(frame.header, known, limit) if frame.header else -1
    if at >= 0:
        return at + len(frame.header)
    try:
        asked = draw(before, True) if before else ""
        anchored = _latest(_locate(draw, before, asked, ask=True), number, len(asked)) if before else (-1, 0)
    except UserError:  # a template may want a user's message first, and this chat begins otherwise
        return content
    # What a model in use is asked with goes on from the last message as the text does, up to its own answer.
    if anchored[0] != last:
        return content
    return known + _common(asked[anchored[1] :], text[known:limit], frame.known)


def _latest(places: Mapping[int, Place], number: int, limit: int) -> tuple[int, int]:
    """The last message before this one whose end is known, and that end; -1 and the beginning without one."""
    ends = [(other, end) for other, (_, end) in places.items() if other < number and end is not None and end <= limit]
    return max(ends, default=(-1, 0))


def _finish(text: str, place: Place, limit: int, frame: Frame, tokens: Sequence[str]) -> tuple[int, bool]:
    """Where the turn ends, and whether anything ends it."""
    content = place[1] if place[1] is not None else place[0]
    assert content is not None, "a message that was found has a place"
    plain = text.find(frame.plain_close, content, limit) if frame.plain_close else -1
    if plain >= 0:
        return plain + len(frame.plain_close), True
    for names in (frame.closers, tokens):
        found = one_of(names).search(text, content, limit) if names else None
        if found:
            return found.end(), True
    return content, False


def _locate(draw: Draw, messages: Sequence[Message], text: str, *, ask: bool = False) -> dict[int, Place]:
    """Where what each message holds begins and ends in the text; messages that show nothing are left out."""
    marks = unused_marks([*messages, text], 2 * len(messages))
    pairs = [(marks[2 * i], marks[2 * i + 1]) for i in range(len(messages))]
    everything = [_marked(message, *pair) for message, pair in zip(messages, pairs, strict=True)]
    found = _places(draw, everything, text, pairs, ask)
    if found is not None:
        return found
    places: dict[int, Place] = {}
    for number, pair in enumerate(pairs):  # some mark disturbs the template: one message and one way at a time
        for marked in _ways(messages[number], *pair):
            single = [*messages[:number], marked, *messages[number + 1 :]]
            one = _places(draw, single, text, pairs, ask)
            if one is not None and number in one:
                places[number] = one[number]
                break
    return places


def _places(
    draw: Draw, marked: Sequence[Message], text: str, pairs: Sequence[tuple[str, str]], ask: bool
) -> dict[int, Place] | None:
    """The places of marks in the text without them, or None where they changed it."""
    try:
        shown = draw(marked, ask)
    except UserError:
        return None
    owners = {mark: (number, side) for number, pair in enumerate(pairs) for side, mark in enumerate(pair)}
    pieces = re.split(f"([{''.join(owners)}])", shown)  # text, mark, text, mark, …, text
    seen = list(accumulate(len(piece) for piece in pieces[::2]))
    if seen[-1] != len(text) or "".join(pieces[::2]) != text:
        return None
    found: dict[int, list[int | None]] = {}
    for mark, place in zip(pieces[1::2], seen, strict=False):
        number, side = owners[mark]
        ends = found.setdefault(number, [None, None])
        if side == 1 or ends[0] is None:  # the first opening mark and the last closing one
            ends[side] = place
    return {number: (ends[0], ends[1]) for number, ends in found.items()}


def _ways(message: Message, opening: str, closing: str) -> Iterator[Message]:
    """The message marked in ever fewer places."""
    yield _marked(message, opening, closing)
    yield _marked(message, "", closing)
    yield _marked(message, opening, "")
    for keys in (("content",), ("tool_calls",), REASONING):
        yield _marked(message, opening, closing, keys)
        yield _marked(message, "", closing, keys)
        yield _marked(message, opening, "", keys)


def _marked(
    message: Message, opening: str, closing: str, keys: Sequence[str] = ("content", "tool_calls", *REASONING)
) -> Message:
    """A message with marks around the texts under these keys."""
    return {key: _mark(value, opening, closing) if key in keys else value for key, value in message.items()}


def _mark(value: Any, opening: str, closing: str) -> Any:
    """Marks around the text of a string, its outer spaces left outside, and around those in a list or mapping.

    What templates compare (a role, a type, an id) stays as it is.
    """
    if isinstance(value, str):
        inner = value.strip()
        if not inner:
            return value
        start = value.index(inner)
        end = start + len(inner)
        return f"{value[:start]}{opening}{inner}{closing}{value[end:]}"
    if isinstance(value, Mapping):
        kept = ("type", "id", "role")
        return {key: item if key in kept else _mark(item, opening, closing) for key, item in value.items()}
    return [_mark(item, opening, closing) for item in value] if isinstance(value, list) else value


def _plain(first: int, stop: int) -> list[Message]:
    roles = ("user", "assistant", "user", "assistant")
    return [{"role": roles[i], "content": PROBE[i]} for i in range(first, stop)]


def _probing(draw: Draw) -> list[Message]:
    """The messages a chat may begin with: a user's, after a system message where the template wants one."""
    try:
        draw(_plain(0, 4), False)
    except UserError:
        return [{"role": "system", "content": "qzxsj"}, *_plain(0, 1)]
    return _plain(0, 1)


def _place(text: str, word: str) -> int:
    place = text.find(word)
    if place < 0:
        raise UserError(
            "the chat template leaves out a message of a plain chat, so turns cannot be told from it",
            fix="use a template that shows every message, or none, which gives the default one",
        )
    return place


def _unseen(messages: Sequence[Message], number: int) -> UserError:
    held = messages[number].get("content")
    why = "it holds no text" if not held or not str(held).strip() else "the chat template leaves it out"
    return UserError(
        f"the assistant's turn (message {number + 1} of {len(messages)}) renders empty: {why}",
        fix="give it an answer or remove the row: an empty turn would train nothing but its end",
    )


def _untold(number: int) -> UserError:
    return UserError(
        f"the chat template changes message {number + 1} so much that its place in the text cannot be told",
        fix="train on `all`, or use another template",
    )


def _common(first: str, second: str, known: re.Pattern[str]) -> int:
    """How many characters two strings begin with in common, not counting half of a token of the first."""
    pairs = enumerate(zip(first, second, strict=False))
    common = next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
    return next((m.start() for m in known.finditer(first) if m.start() < common < m.end()), common)
