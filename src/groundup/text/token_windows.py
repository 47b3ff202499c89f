"""Sentences of given tokens cut into inputs of a model, each token spelled by itself.

A sentence that fits is one window. A longer one is read in several that overlap, and each token belongs
to one of them: where two overlap, to the one that shows more around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from groundup.text.framing import Frame
from groundup.text.joining import starts
from groundup.text.tokenizers import Tokenizer


class Window(NamedTuple):
    """One input: ids, their types, and where the sentence's tokens are; the lists are equally long."""

    ids: list[int]
    types: list[int]
    tokens: list[int | None]
    """The token whose first id stands here and which belongs to this window, or None."""
    begins: bool
    """Whether the first token of the sentence belongs to it."""
    ends: bool
    """Whether the last one does."""


class Cut(NamedTuple):
    """A sentence as windows, and how many ids of overlong tokens no window shows."""

    windows: list[Window]
    cropped: int


class Cutter:
    """Cuts sentences for one tokenizer and one context. Can be sent to other processes."""

    def __init__(self, tokenizer: Tokenizer, context: int, overlap: int) -> None:
        """`overlap` is how many ids neighbouring windows share at most.

        Raises DataError for a context that leaves no room for a token.
        """
        self.tokenizer, self.frame = tokenizer, Frame.of(tokenizer, pair=False, context=context)
        self.overlap = min(overlap, self.frame.room // 2)
        self._lead = next(place for place, (token, _) in enumerate(self.frame.parts) if token is None)
        fallback = tokenizer.unk_id if tokenizer.unk_id is not None else tokenizer.pad_id
        self._unspellable = [fallback if fallback is not None else tokenizer.eos_id or 0]

    def __call__(self, tokens: Sequence[str]) -> Cut:
        """The windows of a sentence. A token that the vocabulary cannot spell at all is one unknown token."""
        gaps = (gap for _, gap in starts(tokens))
        spelled = self.tokenizer.encode_batch([gap + token for gap, token in zip(gaps, tokens, strict=True)])
        room = self.frame.room
        pieces = [(ids or self._unspellable)[:room] for ids in spelled]
        return Cut(self._windows(pieces), sum(max(0, len(ids) - room) for ids in spelled))

    def _windows(self, pieces: Sequence[Sequence[int]]) -> list[Window]:
        found: list[Window] = []
        start = own = 0
        while own < len(pieces):
            stop = self._reach(pieces, start)
            following = end = stop
            if stop < len(pieces):
                following = self._back(pieces, stop, own)
                end = max(own + 1, (following + stop + 1) // 2)
            found.append(self._window(pieces, start, stop, range(own, end)))
            start, own = min(following, end), end
        return found

    def _reach(self, pieces: Sequence[Sequence[int]], start: int) -> int:
        """The token after the last that fits into a window from `start`."""
        stop, used = start, 0
        while stop < len(pieces) and used + len(pieces[stop]) <= self.frame.room:
            used, stop = used + len(pieces[stop]), stop + 1
        return stop

    def _back(self, pieces: Sequence[Sequence[int]], stop: int, own: int) -> int:
        """Where the next window begins, so that it shares no more than `overlap` ids with this one."""
        start, shared = stop, 0
        while start - 1 > own and shared + len(pieces[start - 1]) <= self.overlap:
            start, shared = start - 1, shared + len(pieces[start - 1])
        return start

    def _window(self, pieces: Sequence[Sequence[int]], start: int, stop: int, own: range) -> Window:
        ids: list[int] = []
        places: list[int | None] = []
        for token in range(start, stop):
            ids += pieces[token]
            places += [token if token in own else None, *[None] * (len(pieces[token]) - 1)]
        framed = self.frame(ids)
        after = len(framed.ids) - self._lead - len(ids)
        tokens = [*[None] * self._lead, *places, *[None] * after]
        return Window(framed.ids, framed.types, tokens, own.start == 0, own.stop == len(pieces))
