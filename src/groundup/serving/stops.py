"""Stop strings in streamed text: found across token borders, never shown, nothing else held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches a text that grows piece by piece for the first of several stop strings.

    `push(piece)` gives back the text that is safe to show: all but a tail that may yet turn out to be
    the beginning of a stop string. Once one is complete, `found` is that string and everything from
    its first character on is dropped. `flush` gives back the held tail when the text ends otherwise.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self.strings = tuple(strings)
        self.held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The text to show now. Nothing comes after a stop string has been found."""
        if self.found is not None:
            return ""
        text = self.held + piece
        # The first to be complete ends the text, and of two complete at once the longer: what a
        # reader of single characters would do, so the size of the pieces makes no difference.
        hits = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self.strings if stop in text]
        if hits:
            _, start, self.found = min(hits)
            self.held = ""
            return text[:start]
        keep = _open_tail(text, self.strings)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The tail that was held back, when the text ends without a stop string."""
        tail, self.held = self.held, ""
        return tail


def _open_tail(text: str, strings: Sequence[str]) -> int:
    """The length of the longest tail of `text` that is a proper beginning of one of the strings."""
    longest = min(len(text), max((len(stop) - 1 for stop in strings), default=0))
    for length in range(longest, 0, -1):
        if any(len(stop) > length and stop.startswith(text[-length:]) for stop in strings):
            return length
    return 0
