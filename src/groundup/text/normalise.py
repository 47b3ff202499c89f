"""Text brought into one form, so that what looks equal is equal.

Line ends become `\\n`, control characters and invisible marks go, composed characters get one
spelling (NFC, or NFKC on request), full-width Latin letters and digits become half-width or the
reverse on request, and spaces at the ends of lines go. Nothing that a reader would miss is removed.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, Self

from pydantic import model_validator

from groundup.config import Section

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufff9-\uffff\ud800-\udfff]")
"""Control codes, zero-width space and joiner of words, byte order marks, non-characters, lone surrogates."""
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SPACED_END = re.compile(r"[^\S\n]\n")
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
_TO_HALF = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_TO_FULL = {half: full for full, half in _TO_HALF.items()}


class Normalise(Section):
    """How text is brought into one form."""

    unicode: Literal["nfc", "nfkc", "keep"] = "nfc"
    """Unicode normal form: `nfc` composes accents, `nfkc` also unfolds ligatures and width variants."""
    width: Literal["keep", "half", "full"] = "keep"
    """Turn full-width letters, digits, signs and spaces into ASCII (`half`), or the reverse (`full`)."""
    trailing_space: Literal["strip", "keep"] = "strip"
    """Spaces at the ends of lines, and empty lines at both ends of a document."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.unicode == "nfkc" and self.width == "full":
            raise ValueError("`unicode: nfkc` makes letters half-width and `width: full` undoes it; use `unicode: nfc`")
        return self


def normalise(text: str, how: Normalise) -> tuple[str, list[str]]:
    """The text in its one form, and what was changed: line_ends, control, unicode, width, space.

    Doing it twice changes nothing more. Order matters: control characters go first, because they can
    stand between a letter and its accent.
    """
    changed: list[str] = []
    if "\r" in text or not text.isascii():
        text = _note(text, _LINE_ENDS.sub("\n", text), "line_ends", changed)
    control = _ASCII_CONTROL if text.isascii() else _CONTROL
    if control.search(text):
        text = _note(text, control.sub("", text), "control", changed)
    if not text.isascii():
        text = _note(text, _compose(text, how), "unicode", changed)
    if how.width != "keep":
        text = _note(text, text.translate(_TO_HALF if how.width == "half" else _TO_FULL), "width", changed)
    if how.trailing_space == "strip":
        text = _note(text.strip("\n"), _strip(text), "space", changed)
    return text, changed


def _note(before: str, after: str, name: str, changed: list[str]) -> str:
    if after != before:
        changed.append(name)
    return after


def _compose(text: str, how: Normalise) -> str:
    match how.unicode:
        case "nfc":
            return unicodedata.normalize("NFC", text)
        case "nfkc":
            return unicodedata.normalize("NFKC", text)
        case "keep":
            return text


def _strip(text: str) -> str:
    """The text without spaces at line ends and without empty lines at its ends; indents stay."""
    if " \n" in text or "\t\n" in text or (not text.isascii() and _SPACED_END.search(text)):
        text = "\n".join([line.rstrip() for line in text.split("\n")])
    return text.rstrip().lstrip("\n")
