"""Tokens of annotated text joined to running text, as its language writes it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def join_tokens(tokens: Sequence[str]) -> str:
    """The tokens as one text: a space between two of them, none between characters of Chinese or Japanese."""
    return "".join(piece for start, token in zip(starts(tokens), tokens, strict=True) for piece in (start[1], token))


def spans(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where each token stands in the text that `join_tokens` makes of them, as (start, end)."""
    return [(start, start + len(token)) for (start, _), token in zip(starts(tokens), tokens, strict=True)]


def starts(tokens: Sequence[str]) -> list[tuple[int, str]]:
    """For each token its start in the joined text, and what stands before it: a space or nothing."""
    found: list[tuple[int, str]] = []
    place, before = 0, ""
    for token in tokens:
        gap = " " if before and token and not _closes_up(before[-1], token[0]) else ""
        found.append((place + len(gap), gap))
        place += len(gap) + len(token)
        before = token or before
    return found


def _closes_up(left: str, right: str) -> bool:
    """Whether nothing stands between two characters: both wide, or one wide and one of no fixed width.

    Quotation marks and dashes are as wide as the text they stand in (Unicode's class A).
    """
    widths = {unicodedata.east_asian_width(left), unicodedata.east_asian_width(right)}
    return widths <= {"W", "F", "A"} and widths != {"A"}
