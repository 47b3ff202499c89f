"""GSM8K: school sums in words (Cobbe et al. 2021). The model writes its way to a number; the number counts.

Two ways to find the number are published: *strict*, after the marks `####` that the examples end with,
and *flexible*, the last number of the text. Both are scored, since a model may reason well and forget the
marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup.errors import DataError
from groundup.evaluation.metrics.additive import Additive, mean
from groundup.evaluation.suites.reading import json_lines

STOPS = ("Question:", "</s>", "<|im_end|>")
"""Where a model's text ends: it begins a question of its own, or says that it is done."""
MAX_NEW_TOKENS = 256
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_BEFORE_MARK = re.compile(r"(?s).*#### ")
NONE = "[invalid]"


@dataclass(frozen=True)
class Sum:
    """A prompt, and the text that answers it."""

    id: str
    prompt: str
    answer: str


def gsm8k(path: Path, *, examples: Path | None = None, shots: int = 5) -> list[Sum]:
    """The sums of a file, each after the first `shots` of the file `examples`.

    Lines of JSON with question and answer. lm-evaluation-harness draws its examples at random.
    """
    before = ""
    if shots:
        if examples is None:
            raise DataError("examples are asked for but no file of them is given", fix="give the train file")
        rows = [_pair(row, f"{examples}:{number}") for number, row in json_lines(examples)][:shots]
        before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in rows)
    made = []
    for number, row in json_lines(path):
        question, answer = _pair(row, f"{path}:{number}")
        made.append(Sum(f"{path}:{number}", f"{before}Question: {question}\nAnswer:", answer))
    return made


def _pair(row: dict[str, object], where: str) -> tuple[str, str]:
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError("not a row of GSM8K", where=where, fix="keys: question, answer, both texts")
    return question, answer


def strict(text: str) -> str:
    """The first number after `####`, or a word that equals no number."""
    found = _MARKED.search(text)
    return found[1].strip() if found else NONE


def flexible(text: str) -> str:
    """The last number of a text, or a word that equals no number."""
    found = _NUMBER.findall(text)
    return found[-1].strip() if found else NONE


def normalise(answer: str) -> str:
    """A number without thousands separators, dollar signs and a last full stop; of a solution its end only."""
    return _BEFORE_MARK.sub("", answer.replace(",", "").replace("$", "")).removesuffix(".").lower()


def scores(sums: Sequence[Sum], texts: Sequence[str]) -> dict[str, Additive]:
    """The share of sums whose number is right, found strictly and flexibly."""
    found = {}
    for name, find in (("exact_match_strict", strict), ("exact_match_flexible", flexible)):
        pairs = zip(sums, texts, strict=True)
        found[name] = mean(name, [normalise(find(text)) == normalise(one.answer) for one, text in pairs])
    return found
