"""What cleaning does to a row: to its text, and to every string of the columns that are kept.

A chat, a question or a token says as much about a person as the text does, so strings in kept columns
are normalised and redacted like it, at any depth. Where that moves the characters of a passage, the
places of its answers move along. Names of columns and of keys are left as they are, and so are short numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from groundup.text.identifiers import Identifier, redact
from groundup.text.normalise import Normalise, normalise

SHORTEST_NUMBER = 10
"""Digits from which a whole number may be somebody's telephone, card or identity number."""


class Treatment:
    """Normalising and redacting as a recipe asks for it."""

    def __init__(self, how: Normalise, identifiers: Sequence[Identifier]) -> None:
        self.how, self.identifiers = how, list(identifiers)

    def text(self, text: str) -> tuple[str, list[str], dict[str, int]]:
        """The clean text, what normalising changed, and how many identifiers of each kind were replaced."""
        text, changed = normalise(text, self.how)
        text, found = self.redacted(text)
        return text, changed, found

    def redacted(self, text: str) -> tuple[str, dict[str, int]]:
        """The text without identifiers, and how many of each kind were replaced."""
        return redact(text, self.identifiers) if self.identifiers else (text, {})

    def value(self, value: Any, found: Counter[str]) -> Any:
        """A value with every string in it clean; `found` counts the identifiers that were replaced."""
        if isinstance(value, str):
            if value.isascii() and value.isalpha():
                return value  # most tokens and labels
            text, _, counts = self.text(value)
            found.update(counts)
            return text
        if isinstance(value, bool) or value is None or isinstance(value, float):
            return value
        if isinstance(value, int):
            return self._number(value, found)
        if isinstance(value, Mapping):
            return {key: self.value(item, found) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, found) for item in value]
        return value

    def _number(self, value: int, found: Counter[str]) -> int | str:
        if not self.identifiers or len(str(abs(value))) < SHORTEST_NUMBER:
            return value
        text, counts = self.redacted(str(value))
        found.update(counts)
        return text if counts else value

    def runs_over(self, value: Any) -> bool:
        """Whether an identifier runs over several strings of a list, where no single one can be redacted.

        `value` has been treated. Tokens are the case in point: a telephone number may be three of them.
        """
        if not self.identifiers or not isinstance(value, list) or len(value) < 2:
            return False
        if not all(isinstance(item, str) for item in value):
            return False
        return any(self.redacted(joint.join(value))[1] for joint in (" ", ""))

    def moved(self, value: Any, before: str, after: str) -> Any:
        """Answers (`text`, `start`) of a passage at their places after it was cleaned; other values unchanged.

        An answer whose text is there more than once is the one nearest to where it stood. One that is
        nowhere keeps its place: the task that reads it will name the row.
        """
        if not _are_answers(value):
            return value
        return [answer | {"start": self._place(answer, before, after)} for answer in value]

    def _place(self, answer: Mapping[str, Any], before: str, after: str) -> int:
        text, start = answer["text"], int(answer["start"])
        if before != after and start > 0:
            start = len(self.text(before[:start])[0])
        if not text or after.startswith(text, max(0, start)):
            return start
        places = _places(text, after)
        return min(places, key=lambda place: abs(place - start)) if places else start


def _are_answers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, Mapping) and isinstance(item.get("text"), str) and isinstance(item.get("start"), int)
        for item in value
    )


def _places(piece: str, text: str) -> list[int]:
    """Every place where a piece begins in a text."""
    found, place = [], text.find(piece)
    while place >= 0:
        found.append(place)
        place = text.find(piece, place + 1)
    return found
