"""The suites by name: how each is read, what guessing gives, and its result from what a model said.

`result` gives plain data that stands in a report as it is: scores with intervals from drawing the
questions again, the score of every subject, and the digest of the questions, so that figures of
different files are not taken for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from groundup.artifact import digest_data
from groundup.errors import UserError, nearest
from groundup.evaluation.metrics.additive import Additive
from groundup.evaluation.resampling import Draws
from groundup.evaluation.suites import arithmetic, code, multiple_choice, questions
from groundup.evaluation.suites.questions import Question

Way = Literal["choices", "text", "program"]


@dataclass(frozen=True)
class Suite:
    """A published test: how a model is asked, and how its files are read."""

    way: Way
    """How it answers: by the likelihood of choices, by a text it writes, or by a program."""
    main: str
    """The score that is usually published."""
    shots: int
    """Examples before each question, as usually published."""
    read: Callable[[Path, Path | None, int], Sequence[Any]]
    """From the file, the file of examples if it has one of its own, and how many of them."""
    stops: tuple[str, ...] = ()
    """Texts at which writing ends."""
    max_new_tokens: int = 0


SUITES: dict[str, Suite] = {
    "mmlu": Suite("choices", "accuracy", 5, lambda path, _, shots: multiple_choice.mmlu(path, shots=shots)),
    "cmmlu": Suite("choices", "accuracy", 5, lambda path, _, shots: multiple_choice.cmmlu(path, shots=shots)),
    "arc": Suite(
        "choices",
        "accuracy_by_character",
        0,
        lambda path, examples, shots: multiple_choice.arc(path, examples=examples, shots=shots),
    ),
    "truthfulqa_mc1": Suite("choices", "accuracy", 0, lambda path, _, shots: multiple_choice.truthfulqa(path)),
    "truthfulqa_mc2": Suite(
        "choices", "truth_share", 0, lambda path, _, shots: multiple_choice.truthfulqa(path, several=True)
    ),
    "gsm8k": Suite(
        "text",
        "exact_match_strict",
        5,
        lambda path, examples, shots: arithmetic.gsm8k(path, examples=examples, shots=shots),
        arithmetic.STOPS,
        arithmetic.MAX_NEW_TOKENS,
    ),
    "humaneval": Suite(
        "program", "pass_at_1", 0, lambda path, _, shots: code.humaneval(path), code.STOPS, code.MAX_NEW_TOKENS
    ),
}


def suite(name: str) -> Suite:
    """The suite of this name. Raises UserError for an unknown one."""
    if name not in SUITES:
        raise UserError(f"no suite named {name!r}", fix=nearest(name, SUITES))
    return SUITES[name]


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most so many of the items, evenly spread, so that every subject keeps its share."""
    if limit is None or limit >= len(items):
        return list(items)
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[place] for place in np.unique(places)]


def choice_scores(name: str, asked: Sequence[Question], likelihoods: Sequence[Sequence[float]]) -> dict[str, Additive]:
    """The scores of a suite with choices, the usually published one first."""
    if name == "truthfulqa_mc2":
        return {"truth_share": questions.truth_share(asked, likelihoods)}
    found = questions.scores(asked, likelihoods)
    main = suite(name).main
    return {main: found[main]} | found


def chance(asked: Sequence[Question]) -> float:
    """What guessing gives: the mean share of right choices."""
    return float(np.mean([len(question.right) / len(question.choices) for question in asked]))


def result(
    name: str,
    asked: Sequence[Any],
    scores: Mapping[str, Additive],
    *,
    shots: int,
    of: int,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Any]:
    """What a report says of one suite; see the module. `of` is how many questions the files hold."""
    draws = Draws(len(asked), seed, resamples, "questions")
    main = next(iter(scores))
    choices = isinstance(asked[0], Question)
    return {
        "suite": name,
        "main_metric": main,
        "questions": len(asked),
        "questions_in_files": of,
        "shots": shots,
        "digest": digest_data([[one.id.rsplit("/", 1)[-1], one.prompt] for one in asked]),
        "chance": chance(asked) if choices else 0.0,
        "scores": {key: draws.interval(score).as_dict() for key, score in scores.items()},
        "subjects": questions.by_subject(asked, scores[main]) if choices else {},
    }
