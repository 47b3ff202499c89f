"""Where sentences begin, in English, Chinese and text that mixes them.

Rules, no model: fast enough for a corpus, the same everywhere, and good enough for what it serves
(spans for next-sentence prediction). A Chinese stop ends a sentence at once; a Latin one only before
white space, unless a known abbreviation or an initial stands before it or a small letter follows. A
blank line always ends one, and so does a line break after Chinese, which is not wrapped at spaces.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Ranges of characters that are written without spaces: kana and ideographs."""
_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st mt rev gen capt lt sgt hon gov sen rep pres inc ltd co corp dept univ "
    "vs etc al cf ca approx figs eq eqs vol vols nos pp ed eds trans jan feb apr "
    "jun jul aug sep sept oct nov dec tue thu e.g i.e a.m p.m u.s u.k"
)
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_CLOSING = "\"'”’»」』）》】)\\]"
_END = re.compile(
    rf"(?P<chinese>(?:[。！？；]|……)[。！？；…]*[{_CLOSING}]*\s*)"
    rf"|(?P<latin>[.!?…]+)[{_CLOSING}]*\s+"
    rf"|\s*\n[^\S\n]*\n\s*"
    rf"|(?<=[{CJK}，、：])\s*\n\s*"
)
_IS_CJK = re.compile(f"[{CJK}]")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]*\Z")
_LONGEST_ABBREVIATION = 8


def sentence_starts(text: str) -> list[int]:
    """The characters at which sentences begin, ascending, the first at 0; none for an empty text.

    White space after a sentence belongs to it, so the sentences put together are the text.
    """
    return [0, *_later_starts(text)] if text else []


def _later_starts(text: str) -> Iterator[int]:
    for end in _END.finditer(text):
        if 0 < end.end() < len(text) and not (end["latin"] and _goes_on(text, end)):
            yield end.end()


def _goes_on(text: str, end: re.Match[str]) -> bool:
    """Whether a Latin stop does not end the sentence: after an abbreviation, or before a small letter."""
    if text[end.end()].islower():
        return True
    if end["latin"] != ".":
        return False
    stop = end.start("latin")
    found = _LAST_WORD.search(text[max(0, stop - _LONGEST_ABBREVIATION) : stop])
    word = found[0] if found else ""
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return is_initial or word.lower() in ABBREVIATIONS


def word_starts(text: str, word_ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token that begins a word, else 0, from the tokenizer's words and characters.

    A token that begins with a Chinese or kana character begins a word as well, because pre-tokenizers
    that cut at spaces take a whole clause of such text for one word; unless the token before it holds
    a part of the same character.
    """
    found, last_word, last_end = [], None, 0
    for word, (start, end) in zip(word_ids, offsets, strict=True):
        begins_cjk = start >= last_end and start < end and _IS_CJK.match(text, start) is not None
        found.append(int(word != last_word or begins_cjk))
        last_word, last_end = word, end
    return found


def token_starts(characters: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens that hold these characters or, where none does, come next: ascending, without repeats.

    The first token is always one of them, so that sentences put together are all tokens.
    """
    ends = [end for _, end in offsets]
    found = {bisect_right(ends, character) for character in characters}
    return sorted({0, *found} - {len(ends)}) if ends else []
