"""Telling examples that belong to none of the known classes, by a score that should be higher for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.metrics.additive import Floats, Ints, Weighted, divided, ties

Bools = NDArray[np.bool_]


def auroc(outside_E: Bools, strangeness_E: Floats, *, name: str = "out_of_scope_auroc") -> Weighted:
    """The chance that an outsider looks stranger than an insider, ties counting half (0.5 is guessing).

    0.5 too where there are no outsiders or no insiders. The same of any two classes: the area under the curve of
    hits over false alarms (Hanley & McNeil 1982).
    """
    order, begins = ties(strangeness_E)
    outside = outside_E[order].astype(np.float64)

    def weigh(weights_RE: NDArray[Any]) -> Floats:
        out_RG, in_RG = _by_tie(weights_RE, order, begins, outside)
        below_RG = np.cumsum(in_RG, axis=1) - in_RG / 2
        pairs_R = out_RG.sum(1) * in_RG.sum(1)
        return np.where(pairs_R > 0, divided((out_RG * below_RG).sum(1), pairs_R), 0.5)

    def part(rows: Ints) -> Weighted:
        return auroc(outside_E[rows], strangeness_E[rows], name=name)

    return Weighted(name, len(outside_E), weigh, part)


def false_alarms(outside_E: Bools, strangeness_E: Floats, *, caught: float = 0.95) -> Weighted:
    """The share of insiders taken for outsiders when the bar is set so that `caught` of the outsiders are found.

    The bar is the highest that finds at least that share (FPR at 95 % TPR, Hendrycks & Gimpel 2017, with
    the outsiders as the positive class). 0 where there are no outsiders or no insiders.
    """
    order, begins = ties(-strangeness_E)  # the strangest first
    outside = outside_E[order].astype(np.float64)

    def weigh(weights_RE: NDArray[Any]) -> Floats:
        out_RG, in_RG = _by_tie(weights_RE, order, begins, outside)
        found_RG = np.cumsum(out_RG, axis=1)
        enough_R = np.ceil(caught * found_RG[:, -1])
        bar_R = (found_RG >= enough_R[:, None]).argmax(1)
        alarms_R = np.cumsum(in_RG, axis=1)[np.arange(len(bar_R)), bar_R]
        return np.where(found_RG[:, -1] > 0, divided(alarms_R, in_RG.sum(1)), 0.0)

    def part(rows: Ints) -> Weighted:
        return false_alarms(outside_E[rows], strangeness_E[rows], caught=caught)

    name = f"false_alarms_at_{100 * caught:.0f}"
    return Weighted(name, len(outside_E), weigh, part, higher_is_better=False)


def bar(confidence_E: Floats, right_E: Bools, outside_E: Bools) -> float:
    """The confidence below which an example is best taken for an outsider; 0 where there are none.

    Best is the mean of two shares: insiders answered right, and outsiders found. They count alike, since how
    often outsiders come is not known beforehand. To be chosen on validation examples, never on the test's.
    """
    confidence_E, outside_E = np.asarray(confidence_E, np.float64), np.asarray(outside_E, bool)
    if not outside_E.any() or outside_E.all():
        return 0.0
    order = np.argsort(confidence_E, kind="stable")
    sure, outside, right = confidence_E[order], outside_E[order], np.asarray(right_E, bool)[order] & ~outside_E[order]
    # Entry k: the k least sure are rejected.
    found = np.concatenate([[0], np.cumsum(outside)]) / outside.sum()
    answered = (right.sum() - np.concatenate([[0], np.cumsum(right)])) / (~outside).sum()
    between = np.concatenate([[True], sure[1:] > sure[:-1], [False]])  # equally sure examples go together
    best = int(np.where(between, found + answered, -1.0).argmax())
    return float((sure[best - 1] + sure[best]) / 2) if best else 0.0


def _by_tie(weights_RE: NDArray[Any], order: Ints, begins: Ints, outside: Floats) -> tuple[Floats, Floats]:
    """How many outsiders and insiders each run of equal values holds, (R, runs) each."""
    ordered_RE = weights_RE[:, order].astype(np.float64)
    return (
        np.add.reduceat(ordered_RE * outside, begins, axis=1),
        np.add.reduceat(ordered_RE * (1 - outside), begins, axis=1),
    )
