"""A question and a passage cut into inputs of a model: the passage in windows that overlap.

Every window begins with the whole question. The places of its tokens in the passage's characters are
kept, so that a span of tokens can be told back as text, unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

from groundup.errors import DataError
from groundup.text.framing import Frame
from groundup.text.tokenizers import Tokenizer

FEWEST = 8
"""Tokens of the passage that a window must have room for at least."""


class Window(NamedTuple):
    """One input: ids and types, and where the passage's tokens stand in it."""

    ids: list[int]
    types: list[int]
    first: int
    """The position of its first token of the passage."""
    offsets: list[tuple[int, int]]
    """The characters of the passage that each of its tokens covers, as (start, end)."""

    shown: tuple[int, int]
    """The characters of the passage that it shows, as (start, end)."""

    def span(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and last position of the tokens that cover characters [start, end); None if not all are here."""
        inside = [place for place, (begin, stop) in enumerate(self.offsets) if begin < end and stop > start]
        if not inside or start < self.shown[0] or end > self.shown[1]:
            return None
        return self.first + inside[0], self.first + inside[-1]


class Cutter:
    """Cuts questions on passages for one tokenizer and one context. Can be sent to other processes."""

    def __init__(self, tokenizer: Tokenizer, context: int, *, overlap: int, question: int) -> None:
        """`overlap` is how many tokens of the passage neighbouring windows share, `question` how many tokens
        of a question are read. Raises DataError for a context that leaves too little room for a passage."""
        self.tokenizer, self.frame = tokenizer, Frame.of(tokenizer, pair=True, context=context)
        self.overlap, self.question = overlap, min(question, self.frame.room - FEWEST)
        if self.question < 1:
            what = f"a context of {context} tokens leaves no room for a question and a passage"
            raise DataError(what, fix="set a longer max_length")
        parts = [token for token, _ in self.frame.parts]
        second = max(place for place, token in enumerate(parts) if token is None)
        self._before = sum(token is not None for token in parts[:second])

    def __call__(self, question: str, passage: str) -> list[Window]:
        """The windows on a passage, in order; one even for a passage without a single token."""
        asked = self.tokenizer.encode(question)[: self.question]
        found = self.tokenizer.encode_with_offsets(passage)
        room = self.frame.room - len(asked)
        step = max(1, room - min(self.overlap, room // 2))
        windows, start = [], 0
        while True:
            stop = min(start + room, len(found.ids))
            framed = self.frame(asked, found.ids[start:stop])
            first = self._before + len(asked)
            is_last = stop == len(found.ids)
            shown = found.offsets[start][0] if start else 0, len(passage) if is_last else found.offsets[stop - 1][1]
            windows.append(Window(framed.ids, framed.types, first, found.offsets[start:stop], shown))
            if is_last:
                return windows
            start += step

    def cropped(self, question: str) -> int:
        """Tokens of a question that are not read."""
        return max(0, len(self.tokenizer.encode(question)) - self.question)
