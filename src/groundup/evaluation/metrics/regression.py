"""Scores of numbers: Pearson's and Spearman's correlation, errors, explained variance."""

from __future__ import annotations

from typing import Any

import numpy as np

from groundup.evaluation.metrics.additive import Additive, Floats, Ints, Recomputed, divided, mean


def mean_squared_error(truth_E: Any, answers_E: Any) -> Additive:
    """The mean squared distance."""
    return mean("mean_squared_error", (_floats(truth_E) - _floats(answers_E)) ** 2, higher_is_better=False)


def mean_absolute_error(truth_E: Any, answers_E: Any) -> Additive:
    """The mean distance."""
    return mean("mean_absolute_error", np.abs(_floats(truth_E) - _floats(answers_E)), higher_is_better=False)


def pearson(truth_E: Any, answers_E: Any) -> Additive:
    """Pearson's correlation, -1 to 1; 0 where one of the two is constant."""
    # Centred first: the correlation is the same and sums of squares keep their digits.
    x, y = (values - values.mean() for values in (_floats(truth_E), _floats(answers_E)))
    statistics = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1)

    def finish(sums: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = (sums[..., place] for place in range(6))
        spread = (n * sxx - sx**2) * (n * syy - sy**2)
        return divided(n * sxy - sx * sy, np.sqrt(np.maximum(spread, 0)))

    return Additive("pearson", statistics, finish)


def explained_variance(truth_E: Any, answers_E: Any) -> Additive:
    """R²: one minus the squared error over that of always giving the mean of the truth; may be negative."""
    truth, answers = _floats(truth_E), _floats(answers_E)
    centred = truth - truth.mean()
    statistics = np.stack([np.ones(len(truth)), centred, centred**2, (truth - answers) ** 2], 1)

    def finish(sums: Floats) -> Floats:
        n, s, ss, error = (sums[..., place] for place in range(4))
        spread = ss - divided(s**2, n)
        return np.where(spread > 0, 1 - divided(error, spread), 0.0)

    return Additive("r_squared", statistics, finish)


def spearman(truth_E: Any, answers_E: Any) -> Recomputed:
    """Spearman's rank correlation; ranks depend on the set, so every draw is ranked anew."""
    truth, answers = _floats(truth_E), _floats(answers_E)

    def compute(rows: Ints) -> float:
        return pearson(ranks(truth[rows]), ranks(answers[rows])).value

    return Recomputed("spearman", len(truth), compute)


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle: Floats = (last - (count - 1) / 2)[place]
    return middle


def _floats(values: Any) -> Floats:
    return np.asarray(values, np.float64)
