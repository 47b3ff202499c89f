"""Questions with choices, and their scores from the likelihood of every choice.

Axes: Q questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundup.evaluation.metrics.additive import Additive, mean

DELIMITER = " "
"""What stands between a prompt and a choice."""


@dataclass(frozen=True)
class Question:
    """A prompt and the texts that may follow it."""

    id: str
    """Where it stands, such as test/anatomy_test.csv:7."""
    subject: str
    prompt: str
    choices: tuple[str, ...]
    right: tuple[int, ...]
    """Numbers of the right choices; one, but for tests of several truths."""

    @property
    def continuations(self) -> tuple[str, ...]:
        """The choices as they continue the prompt."""
        return tuple(DELIMITER + choice for choice in self.choices)


def scores(questions: Sequence[Question], likelihoods: Sequence[Sequence[float]]) -> dict[str, Additive]:
    """Accuracies by the likeliest choice, from the log-likelihood of each in nats.

    accuracy: as it is. accuracy_by_character: divided by the choice's length in characters, which
    lm-evaluation-harness calls acc_norm. accuracy_by_byte: by its length in UTF-8 bytes, acc_bytes there,
    which is fairer between languages. Of equals the first counts.
    """
    found = {}
    for name, length in (
        ("accuracy", lambda choice: 1.0),
        ("accuracy_by_character", len),
        ("accuracy_by_byte", lambda choice: len(choice.encode("utf-8"))),
    ):
        right = []
        for question, nats in zip(questions, likelihoods, strict=True):
            weighed = np.array(nats, np.float64) / [max(1.0, float(length(choice))) for choice in question.choices]
            right.append(int(weighed.argmax()) in question.right)
        found[name] = mean(name, right)
    return found


def truth_share(questions: Sequence[Question], likelihoods: Sequence[Sequence[float]]) -> Additive:
    """The mean share of probability that falls on true choices: TruthfulQA's MC2 (Lin et al. 2022)."""
    shares = []
    for question, nats in zip(questions, likelihoods, strict=True):
        # Relative to the likeliest, so that very unlikely choices do not all become zero.
        weights = [math.exp(one - max(nats)) for one in nats]
        shares.append(sum(weights[k] for k in question.right) / sum(weights))
    return mean("truth_share", shares)


def by_subject(questions: Sequence[Question], score: Additive) -> dict[str, float]:
    """The score of each subject."""
    subjects = np.array([question.subject for question in questions])
    return {str(name): score.take(np.flatnonzero(subjects == name)).value for name in np.unique(subjects)}
