"""Classical rivals of retrieval and of answering from a text: word overlap, weighted by rarity.

BM25 (Robertson & Walker 1994) ranks texts for a query. For a question on one text, the sentence that
shares the rarest words with the question is chosen (as the sliding window of Richardson et al. 2013),
and the answer is the run of words in it that stands nearest to the question's words without repeating
them; a number is preferred where the question asks for one, a name where it asks for a person or place.
Chinese answers are long and have no words to cut at, so there the sentence itself is the answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np

from groundup.evaluation.labelled import System

K1, B = 1.5, 0.75
"""How soon a repeated word stops counting, and how much long texts are held back."""
_HAN = "\u3400-\u9fff"
_PIECES = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+(?:[-.,'’][^\W_{_HAN}]+)*")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+")
_NUMBER_ASKED = re.compile(r"\b(when|how (many|much|old|long|far|large|tall)|what (year|date|percent\w*))\b")
_NAME_ASKED = re.compile(r"\b(who|whom|whose|where|which (city|country|team|person))\b")
_NUMERAL = re.compile(r"\d")
_WIDE = re.compile(f"[{_HAN}]")
_SMALL = {
    "a", "an", "the", "of", "in", "on", "at", "to", "for", "by", "with", "from", "and", "or", "as", "is", "are",
    "was", "were", "be", "been", "it", "its", "that", "this", "these", "those", "did", "do", "does", "has", "have",
    "had", "what", "which", "who", "whom", "when", "where", "why", "how", "not", "but", "he", "she", "they", "his",
    "her", "their",
    *"的了是在和与及或有为于被把这那也就都而且其之等",
}  # fmt: skip
"""Words that answer nothing by themselves."""
LONGEST_ANSWER = 8


def words(text: str) -> list[str]:
    """A text in small letters as words; texts in Chinese as single characters."""
    return [piece.lower() for piece in _PIECES.findall(text)]


def terms(text: str) -> list[str]:
    """What is looked up: words, and in Chinese pairs of neighbouring characters beside single ones."""
    single = words(text)
    pairs = [a + b for a, b in pairwise(single) if len(a) == len(b) == 1 and ord(a) > 0x33FF]
    return single + pairs


class BM25:
    """An index of texts by their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [Counter(terms(text)) for text in texts]
        lengths = np.array([counts.total() for counts in counted], np.float64)
        mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
        self.count = len(texts)
        raw: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, counts in enumerate(counted):
            for term, often in counts.items():
                raw[term].append((number, often))
        self.postings = {}
        for term, entries in raw.items():
            places, counts_there = (np.array(column) for column in zip(*entries, strict=True))
            weight = math.log(1 + (self.count - len(places) + 0.5) / (len(places) + 0.5))
            damped = counts_there * (K1 + 1) / (counts_there + K1 * (1 - B + B * lengths[places] / mean))
            self.postings[term] = (places, weight * damped)

    def scores(self, query: str) -> np.ndarray:
        """How well each text answers a query, (texts,) float64."""
        found = np.zeros(self.count)
        for term in terms(query):
            if term in self.postings:
                places, gains = self.postings[term]
                found[places] += gains
        return found


def ranker(queries: Sequence[str], items: Sequence[Hashable], texts: Sequence[str], *, best: int = 100) -> System:
    """BM25's ranking of the items for every query; `texts` are what the items say."""
    index = BM25(texts)
    answers = []
    for query in queries:
        scores = index.scores(query)
        # Equal scores in the order of the items, so that nothing is left to chance.
        answers.append([items[place] for place in np.argsort(-scores, kind="stable")[:best]])
    meaning = f"ranks by shared words, rare ones counting more (k1 = {K1}, b = {B}); nothing is learned"
    return System("BM25", answers, meaning=meaning)


def reader(questions: Sequence[str], texts: Sequence[str]) -> System:
    """Answers cut out of the texts by word overlap; `texts` gives each question's."""
    rarity = _rarity(list(dict.fromkeys(texts)))
    answers = [answer(question, text, rarity) for question, text in zip(questions, texts, strict=True)]
    meaning = "the sentence that shares the rarest words with the question, and in it the words nearest to them"
    return System("word overlap", answers, meaning=meaning)


def _rarity(texts: Sequence[str]) -> dict[str, float]:
    counts = Counter(word for text in texts for word in set(words(text)))
    return {word: math.log(1 + len(texts) / count) for word, count in counts.items()}


def answer(question: str, text: str, rarity: dict[str, float]) -> str:
    """The best run of words of a text for a question; empty for an empty text."""
    wanted = {word for word in words(question) if word not in _SMALL}
    default = max(rarity.values(), default=1.0)
    weight = {word: rarity.get(word, default) for word in wanted}
    sentences = [part for part in _SENTENCE_ENDS.split(text) if part.strip()]
    if not sentences:
        return ""
    marks = [sum(weight[word] for word in wanted & set(words(part))) for part in sentences]
    chosen, asked = sentences[int(np.argmax(marks))], question.lower()
    if _WIDE.search(chosen):
        return chosen.strip()
    return _nearest(chosen, weight, bool(_NUMBER_ASKED.search(asked)), bool(_NAME_ASKED.search(asked)))


def _nearest(sentence: str, weight: dict[str, float], number: bool, name: bool) -> str:
    """The run of words between words of the question that stands nearest to them."""
    found = list(_PIECES.finditer(sentence))
    shared = [(place, weight[m[0].lower()]) for place, m in enumerate(found) if m[0].lower() in weight]
    best, cut = -math.inf, sentence.strip()
    for start, stop in _runs(sentence, found, weight, name):
        near = sum(w / (1 + min(abs(p - start), abs(p - stop + 1))) for p, w in shared)
        shown = sentence[found[start].start() : found[stop - 1].end()]
        fits = (number and bool(_NUMERAL.search(shown))) or (name and shown[:1].isupper())
        score = near + (100 if fits else 0)
        if score > best:
            best, cut = score, shown
    return cut


def _runs(sentence: str, found: list[re.Match[str]], weight: dict[str, float], name: bool) -> list[tuple[int, int]]:
    """Runs of words without a mark, a small word at either end or a word of the question."""
    runs, start = [], None
    for place, match in enumerate([*found, None]):
        word = match[0].lower() if match else ""
        joined = start is not None and match is not None and place > 0
        gap = sentence[found[place - 1].end() : match.start()] if joined and match else ""
        small = word in _SMALL
        names_only = name and match is not None and match[0][0].isascii() and not match[0][0].isupper()
        stops = match is None or word in weight or small or names_only or bool(gap.strip())
        full = start is not None and place - start >= LONGEST_ANSWER
        if start is not None and (stops or full):
            runs.append((start, place))
            start = None
        if start is None and match is not None and word not in weight and not small and not names_only:
            start = place
    return runs
