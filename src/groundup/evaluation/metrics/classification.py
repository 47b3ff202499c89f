"""Scores of classes: accuracy, precision, recall and F1, correlation, log loss, Brier.

The statistics of precision, recall and F1 are, for every class, found-and-right, found and there, side
by side: counts_ES with S = 3 K. A class without examples or without answers scores 0 there, never NaN,
as scikit-learn's `zero_division=0`. The same counts serve entities (`tagging`) and several labels each.

Axes: E examples, K classes, S = 3 K statistics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.metrics.additive import Additive, Finish, Floats, Ints, divided, mean, ratio

EPSILON = float(np.finfo(np.float64).eps)
"""The least probability a logarithm is taken of, as in scikit-learn."""


def counts(truth_E: Ints, answers_E: Ints, n_classes: int) -> Floats:
    """Statistics (E, 3 K) of one class an example: right, answered, true. A class of -1 is none of them."""
    classes = np.arange(n_classes)
    true_EK = truth_E[:, None] == classes
    answered_EK = answers_E[:, None] == classes
    return set_counts(true_EK, answered_EK)


def set_counts(true_EK: NDArray[np.bool_], answered_EK: NDArray[np.bool_]) -> Floats:
    """Statistics (E, 3 K) of any number of labels an example."""
    return np.concatenate([true_EK & answered_EK, answered_EK, true_EK], axis=1).astype(np.float64)


def accuracy(truth_E: Ints, answers_E: Ints) -> Additive:
    """The share of examples answered right."""
    return mean("accuracy", truth_E == answers_E)


def exact_match(true_EK: NDArray[np.bool_], answered_EK: NDArray[np.bool_]) -> Additive:
    """The share of examples with exactly the right set of labels."""
    return mean("exact_match", (true_EK == answered_EK).all(1))


def label_accuracy(true_EK: NDArray[np.bool_], answered_EK: NDArray[np.bool_]) -> Additive:
    """The share of single yes-or-no decisions that are right: one minus the Hamming loss."""
    right_E = (true_EK == answered_EK).sum(1)
    return ratio("label_accuracy", right_E, np.full(len(right_E), true_EK.shape[1]))


def macro(counts_ES: Floats, what: str, *, name: str = "", every_class: bool = False) -> Additive:
    """The mean of `what` ("precision", "recall" or "f1") over classes.

    Over those that occur in the truth or the answers of the set scored; with `every_class` over all, as
    scikit-learn does for sets of labels.
    """

    def finish(sums: Floats) -> Floats:
        values = per_class(sums, what)
        _, answered, true = np.split(sums, 3, axis=-1)
        counted = np.ones_like(values) if every_class else ((answered + true) > 0).astype(np.float64)
        return divided((values * counted).sum(-1), counted.sum(-1))

    return Additive(name or f"macro_{what}", counts_ES, finish)


def micro(counts_ES: Floats, what: str, *, name: str = "") -> Additive:
    """`what` of all classes counted together."""

    def finish(sums: Floats) -> Floats:
        together = np.stack([part.sum(-1) for part in np.split(sums, 3, axis=-1)], axis=-1)
        return per_class(together, what)[..., 0]

    return Additive(name or f"micro_{what}", counts_ES, finish)


def of_class(counts_ES: Floats, index: int, what: str, *, name: str = "") -> Additive:
    """`what` of one class, by its number."""
    third = counts_ES.shape[1] // 3
    own_E3 = counts_ES[:, [index, third + index, 2 * third + index]]
    return Additive(name or what, own_E3, lambda sums: per_class(sums, what)[..., 0])


def per_class(sums: Floats, what: str) -> Floats:
    """From summed counts (…, 3 K) to `what` of every class (…, K). Raises ValueError for an unknown `what`."""
    right, answered, true = np.split(sums, 3, axis=-1)
    match what:
        case "precision":
            return divided(right, answered)
        case "recall":
            return divided(right, true)
        case "f1":
            return divided(2 * right, answered + true)
    raise ValueError(f"unknown score {what!r}; known: precision, recall, f1")


def matthews(counts_ES: Floats) -> Additive:
    """Matthews' correlation of truth and answers for any number of classes (Gorodkin 2004), -1 to 1.

    0 where one of the two is constant. Every example must have one class in both.
    """

    def finish(sums: Floats) -> Floats:
        right, answered, true = np.split(sums, 3, axis=-1)
        total = true.sum(-1)
        together = right.sum(-1) * total - (answered * true).sum(-1)
        spread = (total**2 - (answered**2).sum(-1)) * (total**2 - (true**2).sum(-1))
        return divided(together, np.sqrt(np.maximum(spread, 0)))

    return Additive("matthews", counts_ES, finish)


def log_loss(truth_E: Ints, probabilities_EK: Floats) -> Additive:
    """The mean surprise at the true class, in nats."""
    of_truth_E = np.clip(np.asarray(probabilities_EK)[np.arange(len(truth_E)), truth_E], EPSILON, 1.0)
    return mean("log_loss", -np.log(of_truth_E), higher_is_better=False)


def brier(truth_E: Ints, probabilities_EK: Floats) -> Additive:
    """The mean squared distance between probabilities and truth (Brier 1950).

    Summed over classes; for two classes halved, so that it is the usual (p - y)².
    """
    probabilities_EK = np.asarray(probabilities_EK)
    n_classes = probabilities_EK.shape[1]
    distance_E = ((probabilities_EK - np.eye(n_classes)[truth_E]) ** 2).sum(1)
    return mean("brier", distance_E / 2 if n_classes == 2 else distance_E, higher_is_better=False)


def confusion(truth_E: Ints, answers_E: Ints, n_classes: int) -> Ints:
    """How often each true class (rows) was given each answer (columns), (K, K)."""
    cells = np.bincount(truth_E * n_classes + answers_E, minlength=n_classes * n_classes)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def every_class(what: str) -> Finish:
    """The function that `Draws.table` needs for `what` of every class at once."""
    return lambda sums: per_class(sums, what)


def one_hot(labels: Any, n_classes: int) -> NDArray[np.bool_]:
    """Sets of class numbers, one an example, as (E, K) of yes and no."""
    made = np.zeros((len(labels), n_classes), bool)
    for row, chosen in enumerate(labels):
        made[row, list(chosen)] = True
    return made
