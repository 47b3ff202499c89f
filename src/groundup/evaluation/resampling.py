"""Drawing test examples again, many times over, for every score at once.

A draw is a row of weights: how often each unit was drawn. The scores of all draws are then one product
of weights and statistics. All scores of one `Draws` see the same draws, so their intervals, and the
difference of two systems, belong together.

Axes: N units, R resamples, S statistics, M scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.intervals import Interval, limits
from groundup.evaluation.metrics.additive import Additive, Finish, Floats, Ints, Score

_CHUNK = 2_000_000
_JACKKNIFE = 4_000_000


@dataclass(frozen=True)
class Draws:
    """Which units are drawn, how often; the same for all scores asked of it."""

    n: int
    """Examples that a score is made of."""
    seed: int
    resamples: int = 1000
    unit: str = "examples"
    level: float = 0.95
    groups: Ints | None = None
    """For each example the unit it belongs to, 0 to U - 1, if several are drawn together."""

    def of(self, rows: Ints) -> Draws:
        """The same for a part of the examples."""
        units = None if self.groups is None else np.unique(self.groups[rows], return_inverse=True)[1]
        return Draws(len(rows), self.seed, self.resamples, self.unit, self.level, units)

    @cached_property
    def count(self) -> int:
        """How many units are drawn."""
        return self.n if self.groups is None else int(self.groups.max()) + 1 if self.n else 0

    def weights(self) -> Iterator[NDArray[np.int64]]:
        """How often each unit was drawn, (resamples of a chunk, N), chunk by chunk."""
        rng, n = np.random.default_rng(self.seed), self.count
        step = max(1, _CHUNK // max(1, n))
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)

    def interval(self, score: Score) -> Interval:
        """The score with its interval: BCa for scores made of sums, percentiles for others."""
        if isinstance(score, Additive):
            found = self.table(score.statistics, lambda sums: score.finish(sums)[..., None])
            return found[0]
        replicates_R = self.replicates(score)
        return self._interval(score.value, replicates_R, np.empty(0), "percentile")

    def replicates(self, score: Score) -> Floats:
        """The score under every draw, (R,)."""
        if isinstance(score, Additive) and self.groups is not None:
            score = score.by(self.groups)
        elif self.groups is not None:
            return np.concatenate([score.weighted(weights[:, self.groups]) for weights in self.weights()])
        return np.concatenate([score.weighted(weights) for weights in self.weights()])

    def table(self, statistics_ES: Floats, finish: Finish) -> list[Interval]:
        """Intervals of M scores of the same statistics; `finish` maps sums (…, S) to scores (…, M)."""
        if self.groups is not None:
            statistics_ES = Additive("", statistics_ES, finish).by(self.groups).statistics
        if not self.count:
            raise ValueError("an interval of no examples")
        replicates_RM = np.concatenate([finish(w.astype(np.float64) @ statistics_ES) for w in self.weights()])
        total_S = statistics_ES.sum(0)
        estimate_M = finish(total_S)
        jackknife_NM = _leave_one_out(statistics_ES, total_S, finish)
        return [
            self._interval(float(estimate_M[m]), replicates_RM[:, m], jackknife_NM[:, m], "bca")
            for m in range(len(estimate_M))
        ]

    def _interval(self, estimate: float, replicates_R: Floats, jackknife_N: Floats, method: str) -> Interval:
        low, high = limits(estimate, replicates_R, jackknife_N, self.level, method) if self.count > 1 else _UNKNOWN
        return Interval(estimate, low, high, self.level, self.count, self.unit, self.resamples, method, self.seed)


_UNKNOWN = (-np.inf, np.inf)


def _leave_one_out(statistics_NS: Floats, total_S: Floats, finish: Finish) -> Floats:
    step = max(1, _JACKKNIFE // max(1, statistics_NS.shape[1]))
    pieces = [finish(total_S - statistics_NS[at : at + step]) for at in range(0, len(statistics_NS), step)]
    return np.concatenate(pieces)
