"""Scores of answers cut from a text: exact match and F1, as SQuAD and, for Chinese, CMRC 2018 define them.

English (SQuAD 1.1 and 2.0): letter case, punctuation, articles and spacing are put aside, and F1 counts
the words in common. Chinese (CMRC 2018): a fixed set of marks is put aside, every Chinese character
stands alone, and F1 counts the longest run in common. The best of several accepted answers counts. No
accepted answer means that the text holds none; the empty answer is then right and any other wrong.

CMRC's script cuts the words of other scripts with NLTK; here they are cut at spaces and around marks.

Axes: E questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from groundup.evaluation.metrics.additive import Additive, mean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The marks that CMRC 2018 puts aside, one character each; its list has no other Chinese marks.
_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_PIECES = re.compile(r"[\u4e00-\u9fa5]|[^\W_\u4e00-\u9fa5]+|[^\w\s]")

Accepted = Sequence[Sequence[str]]


def normalise_words(answer: str) -> str:
    """An answer as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def normalise_characters(answer: str) -> str:
    """An answer as CMRC 2018 compares it."""
    return "".join(character for character in answer.lower().strip() if character not in _MARKS)


def pieces(answer: str) -> list[str]:
    """What CMRC 2018 counts: Chinese characters, and words and marks of other scripts."""
    return _PIECES.findall(normalise_characters(answer))


def exact(accepted_E: Accepted, answers_E: Sequence[str], *, characters: bool = False) -> Additive:
    """The share of answers that equal an accepted one."""
    normal = normalise_characters if characters else normalise_words

    def same(accepted: str, answer: str) -> float:
        return float(normal(accepted) == normal(answer))

    return mean("exact_match", [_best(same, a, b) for a, b in zip(accepted_E, answers_E, strict=True)])


def f1(accepted_E: Accepted, answers_E: Sequence[str], *, characters: bool = False) -> Additive:
    """The mean overlap with the nearest accepted answer."""
    overlap = overlap_of_characters if characters else overlap_of_words
    return mean("f1", [_best(overlap, a, b) for a, b in zip(accepted_E, answers_E, strict=True)])


def _best(score: Callable[[str, str], float], accepted: Sequence[str], answer: str) -> float:
    # SQuAD 2.0 passes over accepted answers that are nothing but articles and marks.
    some = [text for text in accepted if normalise_words(text)]
    return max(score(text, answer) for text in some) if some else float(not normalise_words(answer))


def overlap_of_words(accepted: str, answer: str) -> float:
    """F1 of the words two answers have in common, each as often as in both."""
    there, found = normalise_words(accepted).split(), normalise_words(answer).split()
    if not there or not found:
        return float(there == found)
    return _f1(sum((Counter(there) & Counter(found)).values()), len(there), len(found))


def overlap_of_characters(accepted: str, answer: str) -> float:
    """F1 of the longest run of pieces that two answers have in common."""
    there, found = pieces(accepted), pieces(answer)
    if not there or not found:
        return float(there == found)
    return _f1(longest_run(there, found), len(there), len(found))


def _f1(common: int, there: int, found: int) -> float:
    return 2 * common / (there + found)


def longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest contiguous sequence that both contain."""
    best, ends = 0, [0] * (len(right) + 1)
    for item in left:
        row = [0] * (len(right) + 1)
        for place, other in enumerate(right, start=1):
            if item == other:
                row[place] = ends[place - 1] + 1
                best = max(best, row[place])
        ends = row
    return best


def answered(accepted_E: Accepted, answers_E: Sequence[str]) -> Additive:
    """The share of questions rightly answered or rightly left: whether there is an answer, not which."""
    pairs = zip(accepted_E, answers_E, strict=True)
    return mean("answerable_told", [any(map(normalise_words, a)) == bool(normalise_words(b)) for a, b in pairs])
