"""Ids of words that have been seen before: the same ids as the library gives, several times sooner.

Text repeats its words. The library knows that too, but it looks a word up only after cutting the text with
its regular expression and noting where each piece came from, which is most of the work. Here Python's `re`
cuts, and a dictionary gives the ids of the pieces; only new ones go to the library.

This works for the two patterns below on characters whose class is beyond doubt: Latin, Greek and Cyrillic
letters, digits, common marks. A text with any other (rare spaces, numbers that are no digits, scripts that
grow with each version of Unicode) goes to the library whole, and so does Chinese, whose "words" are clauses
and hardly ever repeat.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

import tokenizers as library

from groundup.text.pipelines import WORDS

ENTRIES = 2**17
"""Words kept, about 30 MB; when there are more, all are forgotten."""
LONGEST = 256
"""Characters of the longest word kept: a line of base64 comes once and would fill the memory."""

_LETTER, _OTHER = r"[^\W\d_]", r"(?:[^\w\s]|_)"
_OURS = re.compile(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\w\r\n]|_)?{_LETTER}+|\d| ?{_OTHER}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""`pipelines.WORDS`, spelt for `re`."""
_GPT2 = re.compile(rf"'s|'t|'re|'ve|'m|'ll|'d| ?{_LETTER}+| ?\d+| ?{_OTHER}+|\s+(?!\S)|\s+")
"""The pattern built into the library's ByteLevel: Radford et al. 2019, encoder.py."""
_DOUBTFUL = re.compile(
    "[^\t\n\r -~\u00a1-\u00b1\u00b4-\u00b8\u00ba\u00bb\u00bf-\u017e\u0180-\u024f\u0391-\u03a1\u03a3-\u03ce\u0400-\u052f"
    "\u2010-\u2027\u2030-\u205e\u20a0-\u20b9\u2190-\u23f3\u2500-\u2775\u2794-\u27bf]"
)


class WordCache:
    """Encodes texts for one engine; see the module."""

    def __init__(self, engine: library.Tokenizer, pattern: re.Pattern[str]) -> None:
        self._engine, self._pattern = engine, pattern
        self._ids: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text without special tokens; None where the library has to do it."""
        if _DOUBTFUL.search(text):
            return None
        words = self._pattern.findall(text)
        if max(map(len, words), default=0) > LONGEST:
            return None
        known = self._ids  # other threads may use it too: it only grows, or is replaced
        missing = [word for word in set(words) if word not in known]
        if missing:
            if len(known) + len(missing) > ENTRIES:
                known = self._ids = {}
                missing = list(set(words))
            found = self._engine.encode_batch_fast(missing, add_special_tokens=False)
            known.update((word, tuple(each.ids)) for word, each in zip(missing, found, strict=True))
        return list(chain.from_iterable(map(known.__getitem__, words)))


def for_engine(engine: library.Tokenizer) -> WordCache | None:
    """A cache for an engine that cuts text in one of the ways known here, else None."""
    pipeline: dict[str, Any] = json.loads(engine.to_str())
    model = pipeline["model"]
    is_plain = model["type"] in ("BPE", "Unigram") and not model.get("dropout") and pipeline["normalizer"] is None
    # A special token inside a text is text; any other added token is found before words are cut.
    if not is_plain or not engine.encode_special_tokens or not all(t["special"] for t in pipeline["added_tokens"]):
        return None
    pattern = _pattern(pipeline["pre_tokenizer"] or {})
    return WordCache(engine, pattern) if pattern else None


def _pattern(cutting: dict[str, Any]) -> re.Pattern[str] | None:
    """The pattern an engine cuts with, if it is one of the two."""
    *before, last = cutting.get("pretokenizers", [cutting])
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return None if before else _GPT2
    ours = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    return _OURS if before == [ours] else None
