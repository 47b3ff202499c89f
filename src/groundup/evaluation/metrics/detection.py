"""Telling examples that belong to none of the known classes, by a score that should be higher for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.metrics.additive import Floats, Ints, Recomputed
from groundup.evaluation.metrics.regression import ranks


def auroc(outside_E: NDArray[np.bool_], strangeness_E: Floats) -> Recomputed:
    """The chance that an outsider looks stranger than an insider, ties counting half (0.5 is guessing)."""

    def compute(rows: Ints) -> float:
        outside, strange = outside_E[rows], strangeness_E[rows]
        n_out = int(outside.sum())
        n_in = len(rows) - n_out
        if not n_out or not n_in:
            return 0.5
        above = float(ranks(strange)[outside].sum()) - n_out * (n_out + 1) / 2
        return above / (n_out * n_in)

    return Recomputed("out_of_scope_auroc", len(outside_E), compute)


def false_alarms(outside_E: NDArray[np.bool_], strangeness_E: Floats, *, caught: float = 0.95) -> Recomputed:
    """The share of insiders taken for outsiders when the bar is set so that `caught` of the outsiders are found.

    The bar is the highest that finds at least that share (FPR at 95 % TPR, Hendrycks & Gimpel 2017, with
    the outsiders as the positive class).
    """

    def compute(rows: Ints) -> float:
        outside, strange = outside_E[rows], strangeness_E[rows]
        found = np.sort(strange[outside])[::-1]
        inside = strange[~outside]
        if not len(found) or not len(inside):
            return 0.0
        bar = found[int(np.ceil(caught * len(found))) - 1]
        return float(np.mean(inside >= bar))

    return Recomputed(f"false_alarms_at_{caught:.0%}".rstrip("%"), len(outside_E), compute, higher_is_better=False)
