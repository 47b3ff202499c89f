"""Which documents to leave out: too short, too long, in another language, or repeating themselves.

The rules on repetition are those of Gopher (Rae et al. 2021, appendix A.1.1, table A1) with the paper's
thresholds: shares of repeated lines and paragraphs, of the commonest n-gram, and of all repeated
n-grams, measured in characters. Chinese has no spaces, so there a character stands for a word and
n-grams are twice as long: an average Chinese word has about two characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from groundup.config import Section
from groundup.errors import nearest
from groundup.text.languages import LANGUAGES, language_of
from groundup.units import PositiveCount, Share

_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
"""n, and the largest share of characters that the commonest n-gram may cover."""
_REPEATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
"""n, and the largest share of characters that all repeated n-grams may cover."""
_FEWEST_UNITS = 40
"""Below this many words the shares are noise: one repeated phrase would decide."""
_MOST_UNITS = 20_000
"""Words looked at; a document that repeats itself does so early."""


class Filters(Section):
    """Which documents are left out."""

    min_characters: PositiveCount = 1
    """Shortest document, in characters after cleaning."""
    max_characters: PositiveCount | None = None
    """Longest document, in characters after cleaning; no limit by default."""
    languages: list[str] = Field(default=[])
    """Languages to keep, as two-letter codes (`en`, `zh`); all by default."""
    language_share: Share = 0.5
    """How sure the language must be, from 0 to 1."""
    repetition: bool = False
    """Leave out documents that repeat lines, paragraphs or phrases (the rules of Gopher)."""

    @field_validator("languages", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        for name in names if isinstance(names, list) else []:
            if name not in LANGUAGES:
                raise ValueError(f"no language {name!r}; {nearest(str(name), LANGUAGES)}")
        return names


def reason_to_drop(text: str, filters: Filters) -> str:
    """Why a document is left out, or an empty string for one that stays."""
    if not text or text.isspace():
        return "empty"
    if len(text) < filters.min_characters:
        return "too short"
    if filters.max_characters is not None and len(text) > filters.max_characters:
        return "too long"
    if filters.languages:
        language, sure = language_of(text)
        if language not in filters.languages or sure < filters.language_share:
            return "language"
    return repetition(text) if filters.repetition else ""


def repetition(text: str) -> str:
    """Which rule on repetition a text breaks (`repetition: lines`, …), or an empty string."""
    for name, mark, limit, limit_characters in (("paragraphs", r"\n{2,}", 0.30, 0.20), ("lines", r"\n+", 0.30, 0.20)):
        pieces = [piece for piece in re.split(mark, text.strip()) if piece.strip()]
        count, characters = repeated_share(pieces)
        if count > limit or characters > limit_characters:
            return f"repetition: {name}"
    return _phrases(text)


def repeated_share(pieces: Sequence[str]) -> tuple[float, float]:
    """The share of pieces that occurred before, by number and by characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    total = sum(map(len, pieces))
    return count / max(1, len(pieces)), characters / max(1, total)


def _phrases(text: str) -> str:
    units = _UNITS.findall(text.lower())[:_MOST_UNITS]
    if len(units) < _FEWEST_UNITS:
        return ""
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], np.uint64)
    lengths = np.array([len(unit) for unit in units], np.int64)
    wide = 2 if sum(map(_is_han, units)) > len(units) / 2 else 1
    for n, limit in _TOP:
        if _top_share(codes, lengths, n * wide) > limit:
            return f"repetition: {n}-grams"
    for n, limit in _REPEATED:
        if _covered_share(codes, lengths, n * wide) > limit:
            return f"repetition: {n}-grams"
    return ""


def _is_han(unit: str) -> bool:
    return len(unit) == 1 and unit >= "\u3040"


def _number_grams(codes: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """For each position the number of its n-gram, equal n-grams sharing one."""
    hashes = np.zeros(len(codes) - n + 1, np.uint64)
    for place in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[place : len(codes) - n + 1 + place] + np.uint64(1)
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64)


def _top_share(codes: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> float:
    """Characters in occurrences of the commonest n-gram, over all characters; 0 if none occurs twice."""
    grams = _number_grams(codes, n)
    counts = np.bincount(grams)
    top = int(counts.argmax())
    if counts[top] < 2:
        return 0.0
    place = int((grams == top).argmax())
    return float(counts[top] * lengths[place : place + n].sum() / lengths.sum())


def _covered_share(codes: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> float:
    """Characters inside n-grams that occur more than once, over all characters, none counted twice."""
    grams = _number_grams(codes, n)
    repeated = np.bincount(grams)[grams] > 1
    edges = np.zeros(len(codes) + 1, np.int64)
    places = np.flatnonzero(repeated)
    np.add.at(edges, places, 1)
    np.add.at(edges, places + n, -1)
    return float(lengths[np.cumsum(edges[:-1]) > 0].sum() / lengths.sum())
