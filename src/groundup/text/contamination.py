"""Whether a training document contains evaluation data.

Evaluation texts are cut into runs of words (13 by default, as in GPT-3: Brown et al. 2020, appendix C)
and, where a script has no spaces, into runs of characters. A document that contains one of these runs
is contaminated; so is one that equals an evaluation text too short for a run. Case, punctuation and
spacing are put aside.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np

from groundup.text.duplicates import Hashes, mix

_WIDE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff"
_WORDS = re.compile(rf"[^\W_{_WIDE}]+")
_CHARACTERS = re.compile(rf"[{_WIDE}]+")
_STEP = np.uint64(0x9E3779B97F4A7C15)
_WHOLE, _RUN_OF_WORDS, _RUN_OF_CHARACTERS = np.uint64(1), np.uint64(2), np.uint64(3)


def runs(text: str, words: int, characters: int) -> Hashes:
    """Hashes of all runs of `words` words and of `characters` unspaced characters in a text."""
    lowered = text.lower()
    found = [
        _rolled(_word_codes(lowered), words, _RUN_OF_WORDS),
        _rolled(_character_codes(lowered), characters, _RUN_OF_CHARACTERS),
    ]
    return np.concatenate(found)


def whole(text: str) -> Hashes:
    """One hash of all words and characters of a text, in an array; empty for a text without any."""
    lowered = text.lower()
    codes = np.concatenate([_word_codes(lowered), _character_codes(lowered)])
    if not len(codes):
        return codes
    # The polynomial of `_rolled`, without a turn for each code of a long text.
    powers = np.multiply.accumulate(np.full(len(codes), _STEP))
    return mix(_WHOLE * powers[-1:] + (codes[:-1] * powers[-2::-1]).sum(keepdims=True) + codes[-1:])


def index_of(texts: Iterable[str], words: int, characters: int) -> Hashes:
    """The sorted hashes by which evaluation texts are recognised."""
    parts = [np.empty(0, np.uint64)]
    for text in texts:
        found = runs(text, words, characters)
        parts.append(found if len(found) else whole(text))
    return np.unique(np.concatenate(parts))


def is_contaminated(text: str, index: Hashes, words: int, characters: int) -> bool:
    """Whether a text shares a run with the evaluation texts of `index`, or is one of them."""
    hashes = np.concatenate([runs(text, words, characters), whole(text)])
    if not len(index) or not len(hashes):
        return False
    place = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
    return bool((index[place] == hashes).any())


def _word_codes(lowered: str) -> Hashes:
    words = [word.encode() for word in _WORDS.findall(lowered)]
    codes = [zlib.crc32(word) | zlib.adler32(word) << 32 for word in words]
    return np.array(codes, np.uint64)


def _character_codes(lowered: str) -> Hashes:
    text = "".join(_CHARACTERS.findall(lowered))
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)


def _rolled(codes: Hashes, n: int, salt: np.uint64) -> Hashes:
    """A hash of every n codes in a row: a polynomial in `_STEP`, modulo 2^64, with the codes as coefficients."""
    if len(codes) < n:
        return np.empty(0, np.uint64)
    hashes = np.full(len(codes) - n + 1, salt)
    for place in range(n):
        hashes = hashes * _STEP + codes[place : len(codes) - n + 1 + place]
    return mix(hashes)
