"""Classical rivals of a translator: copying the source, and a table of words learned from the same pairs.

The table is IBM's first model (Brown et al. 1993): how likely each target word is for each source word,
by expectation and maximisation over all pairs, every target word free to come from any source word.
Each source word is then replaced by its likeliest translation, in the order of the source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundup.evaluation.labelled import System
from groundup.evaluation.metrics.additive import Floats, Ints

ROUNDS = 5
MAX_PAIRS = 40_000
LONGEST = 40
"""Words of a sentence that are read."""
SUPPORT = 2
"""A source word must occur this often to be translated; a rarer one is copied."""
_WIDE = "\u3040-\u30ff\u3400-\u9fff"
_WORDS = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+(?:['’-][^\W{_WIDE}]+)*|[^\w\s]")
_BEFORE = re.compile(r"\s+([.,!?;:%)\]}’”»])")
_AFTER = re.compile(r"([(\[{“«])\s+")
_BETWEEN_WIDE = re.compile(rf"(?<=[{_WIDE}，。！？、；：]) (?=[{_WIDE}，。！？、；：])")
NOTHING = "\0"
"""The source word that target words without a source come from."""


def translators(sources: Sequence[str], targets: Sequence[str], inputs: Sequence[str]) -> list[System]:
    """The rivals' translations of `inputs`, having read the pairs of sources and targets."""
    copied = System("a copy of the source", list(inputs), meaning="gives the source text itself back")
    if not sources:
        return [copied]
    table = learn(sources[:MAX_PAIRS], targets[:MAX_PAIRS])
    answers = [table.translate(text) for text in inputs]
    read = min(len(sources), MAX_PAIRS)
    meaning = f"replaces each word by its likeliest translation (IBM model 1, {ROUNDS} rounds), in the source's order"
    return [copied, System("a word table", answers, meaning=meaning, trained_rows=read)]


@dataclass(frozen=True)
class WordTable:
    """The likeliest translation of every source word that was seen often enough."""

    best: dict[str, str]

    def translate(self, text: str) -> str:
        """A text word by word; unknown words are copied, words that mean nothing are left out."""
        found = [self.best.get(word.lower(), word) for word in split(text)]
        joined = " ".join(word for word in found if word != NOTHING)
        spaced = _AFTER.sub(r"\1", _BEFORE.sub(r"\1", joined))
        closed = _BETWEEN_WIDE.sub("", spaced)
        return closed[:1].upper() + closed[1:]


def split(text: str) -> list[str]:
    """Words and marks of a text; Chinese and Japanese characters one by one."""
    return _WORDS.findall(text)[:LONGEST]


def learn(sources: Sequence[str], targets: Sequence[str]) -> WordTable:
    """The table of IBM model 1, learned in both directions.

    The best translation is the one likeliest both ways: one way alone, a common word is explained by the
    full stop that ends every sentence.
    """
    pairs = [([NOTHING, *map(str.lower, split(a))], split(b)) for a, b in zip(sources, targets, strict=True)]
    source_numbers, target_numbers = (_numbered(side) for side in zip(*pairs, strict=True))
    source_names, target_names = list(source_numbers), list(target_numbers)
    beside = _cells(pairs, source_numbers, target_numbers)
    forth_C = _chances(beside.cell, beside.target_place, beside.source)
    back_C = _chances(beside.cell, beside.source_place, beside.target)
    often = np.bincount(np.concatenate([[source_numbers[word] for word in pair[0]] for pair in pairs]).astype(np.int64))
    order = np.lexsort((beside.target, -forth_C * back_C, beside.source))
    firsts = order[np.r_[True, np.diff(beside.source[order]) > 0]] if len(order) else order
    best = {
        source_names[beside.source[cell]]: target_names[beside.target[cell]]
        for cell in firsts
        if often[beside.source[cell]] >= SUPPORT
    }
    best.pop(NOTHING, None)
    return WordTable(best)


def _chances(cell_N: Ints, place_N: Ints, given_C: Ints) -> Floats:
    """How likely each cell's one word is, given its other: expectation and maximisation, a few rounds.

    cell_N: the cell of each meeting of two words in a pair; place_N: which single word it explains there;
    given_C: the word of each cell that it is explained by.
    """
    chance_C = np.ones(len(given_C))
    for _ in range(ROUNDS):
        # E: each word divides itself among those it may come from. M: count, and normalise by the other.
        share_N = chance_C[cell_N]
        share_N /= np.bincount(place_N, share_N)[place_N]
        count_C = np.bincount(cell_N, share_N, len(given_C))
        chance_C = count_C / np.bincount(given_C, count_C)[given_C]
    return chance_C


def _numbered(sentences: Sequence[Sequence[str]]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for sentence in sentences:
        for word in sentence:
            numbers.setdefault(word, len(numbers))
    return numbers


@dataclass(frozen=True)
class _Meetings:
    """Every source word beside every target word of its pair: N meetings, of C different pairs of words."""

    cell: Ints
    source_place: Ints
    target_place: Ints
    source: Ints
    target: Ints


def _cells(
    pairs: Sequence[tuple[list[str], list[str]]], source_numbers: dict[str, int], target_numbers: dict[str, int]
) -> _Meetings:
    empty = np.empty(0, np.int64)
    columns: list[list[Ints]] = [[empty], [empty], [empty], [empty]]
    source_at = target_at = 0
    for source, target in pairs:
        left = np.array([source_numbers[word] for word in source], np.int64)
        right = np.array([target_numbers[word] for word in target], np.int64)
        rows, places = np.arange(source_at, source_at + len(left)), np.arange(target_at, target_at + len(right))
        tiled = (np.tile(left, len(right)), np.repeat(right, len(left)))
        for column, part in zip(
            columns, (*tiled, np.tile(rows, len(right)), np.repeat(places, len(left))), strict=True
        ):
            column.append(part)
        source_at, target_at = source_at + len(left), target_at + len(right)
    sources, targets, source_place_N, target_place_N = (np.concatenate(column) for column in columns)
    cells, cell_N = np.unique(sources * max(1, len(target_numbers)) + targets, return_inverse=True)
    source_C, target_C = np.divmod(cells, max(1, len(target_numbers)))
    return _Meetings(cell_N, source_place_N, target_place_N, source_C, target_C)
