"""A training text in other words: synonyms, words left out, words that change places.

Wei & Zou 2019 (EDA): one of these is drawn for each text that is changed, and touches a share of its words.
Synonyms come from the user's own file. The draw is handed in, so what becomes of a text is a function of
(seed, epoch, index) alone. Chinese, which has no spaces, is cut at the words that the synonyms know, and else
into characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from pydantic import model_validator

from groundup.config import Section
from groundup.errors import DataError
from groundup.units import Share

_HAN = "\u3400-\u9fff\uf900-\ufaff"
_PIECES = re.compile(rf"(\s*)([{_HAN}]+|[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*|\S)")
_IS_HAN = re.compile(f"[{_HAN}]")
_CODE = re.compile(r"[A-Z][a-z]\d{2}[A-Z]\d{2}([=#@])")
"""How lines of the Chinese thesaurus Cilin begin; only `=` says that what follows means the same."""
LONGEST_WORD = 8
"""Characters of a Chinese word looked for among the synonyms."""

Synonyms = Mapping[str, Sequence[str]]


class Augment(Section):
    """Changes to training texts, drawn anew for each text in every epoch."""

    share: Share = 0.5
    """Share of the training texts that are changed in an epoch; the others stay as they are."""
    synonyms: str | None = None
    """A file of synonyms: words that mean the same on one line, divided by commas or tabs, or the lines of Cilin."""
    replace: Share = 0.1
    """Share of the words that are replaced when synonyms are drawn; without a file they never are."""
    delete: Share = 0.1
    """Share of the words that are left out when leaving out is drawn; 0 for never."""
    swap: Share = 0.1
    """Share of the words that change places when that is drawn; 0 for never."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.kinds:
            raise ValueError("nothing is left to change texts by: give `synonyms`, or a share to `delete` or `swap`")
        return self

    @property
    def kinds(self) -> list[str]:
        """What may be drawn for a text."""
        wanted = {"replace": self.replace if self.synonyms else 0.0, "delete": self.delete, "swap": self.swap}
        return [kind for kind, share in wanted.items() if share]


class _Word(NamedTuple):
    """A word or a mark, and the space before it."""

    gap: str
    text: str

    @property
    def is_word(self) -> bool:
        return self.text[0].isalnum()


def read_synonyms(path: str | Path) -> dict[str, list[str]]:
    """For each word, in small letters, the others of its lines. Raises DataError for a file without any."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the synonyms cannot be read ({error})", where=str(path), fix="give a UTF-8 text file"
        ) from error
    found: dict[str, list[str]] = {}
    for line in lines:
        coded = _CODE.match(line)
        if coded and coded[1] != "=":
            continue
        words = line[coded.end() :].split() if coded else re.split(r"[,，\t]", line)
        words = [word.strip() for word in words if word.strip()]
        for word in words:
            others = found.setdefault(word.lower(), [])
            others += [other for other in words if other.lower() != word.lower() and other not in others]
    found = {word: others for word, others in found.items() if others}
    if not found:
        fix = "write words that mean the same on one line, divided by commas: car, automobile"
        raise DataError("the file has no line with two words", where=str(path), fix=fix)
    return found


def augmented(text: str, how: Augment, synonyms: Synonyms, draw: np.random.Generator) -> str:
    """The text, changed as drawn, or as it is: of `share` of the texts, and of one with fewer than two words."""
    if draw.random() >= how.share:
        return text
    words = _cut(text, synonyms)
    places = [place for place, word in enumerate(words) if word.is_word]
    if len(places) < 2:
        return text
    match how.kinds[int(draw.integers(len(how.kinds)))]:
        case "replace":
            _replace(words, places, how.replace, synonyms, draw)
        case "delete":
            kept = _kept(places, how.delete, draw)
            words = [word for place, word in enumerate(words) if place not in places or place in kept]
        case _:
            _swap(words, places, how.swap, draw)
    tail = text[len(text.rstrip()) :]
    changed = "".join(word.gap + word.text for word in words)
    return (changed if text[:1].isspace() else changed.lstrip()) + tail


def _cut(text: str, synonyms: Synonyms) -> list[_Word]:
    """The words and marks of a text; all its characters are in them but the space at its end."""
    found: list[_Word] = []
    for gap, piece in _PIECES.findall(text):
        parts = _chinese(piece, synonyms) if _IS_HAN.match(piece) else [piece]
        found += [_Word(gap if i == 0 else "", part) for i, part in enumerate(parts)]
    return found


def _chinese(run: str, synonyms: Synonyms) -> list[str]:
    """Chinese characters cut at the longest words that are known, from the left."""
    found: list[str] = []
    start = 0
    while start < len(run):
        sizes = range(min(LONGEST_WORD, len(run) - start), 1, -1)
        size = next((size for size in sizes if run[start : start + size] in synonyms), 1)
        found.append(run[start : start + size])
        start += size
    return found


def _some(places: Sequence[int], share: float, count: int, draw: np.random.Generator) -> list[int]:
    """So many of the places as are a share of `count`, at least one."""
    wanted = min(len(places), max(1, round(share * count)))
    return sorted(int(place) for place in draw.choice(places, wanted, replace=False))


def _replace(
    words: list[_Word], places: Sequence[int], share: float, synonyms: Synonyms, draw: np.random.Generator
) -> None:
    known = [place for place in places if words[place].text.lower() in synonyms]
    for place in _some(known, share, len(places), draw) if known else []:
        word = words[place].text
        others = synonyms[word.lower()]
        other = others[int(draw.integers(len(others)))]
        words[place] = words[place]._replace(text=other[:1].upper() + other[1:] if word[:1].isupper() else other)


def _kept(places: Sequence[int], share: float, draw: np.random.Generator) -> set[int]:
    """The places that stay when each goes with a probability; one at least."""
    stays = draw.random(len(places)) >= share
    if not stays.any():
        stays[int(draw.integers(len(places)))] = True
    return {place for place, stay in zip(places, stays.tolist(), strict=True) if stay}


def _swap(words: list[_Word], places: Sequence[int], share: float, draw: np.random.Generator) -> None:
    for _ in range(max(1, round(share * len(places) / 2))):
        one, two = (int(place) for place in draw.choice(places, 2, replace=False))
        left, right = words[one].text, words[two].text
        words[one], words[two] = words[one]._replace(text=right), words[two]._replace(text=left)
