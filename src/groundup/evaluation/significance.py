"""Whether two systems differ, or only seem to: tests on the answers they gave to the same examples.

Three that assume little, each right for its own case. *Approximate randomisation* (Noreen 1989) asks how
often a difference as large comes up if every pair of answers is swapped by the toss of a coin; it serves
any score. *McNemar's exact test* (1947) asks the same of right and wrong answers without any draw. *Welch's
t test* compares means over several trainings, and is the one that knows about seeds. The paired bootstrap
gives the interval of the difference (Koehn 2004; Berg-Kirkpatrick et al. 2012 on what it can miss).

Axes: E examples, R rounds, S statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.intervals import Interval
from groundup.evaluation.metrics.additive import Additive, Score
from groundup.evaluation.resampling import Draws

_CHUNK = 2_000_000
ALPHA = 0.05
"""Below this a difference is called real; once in twenty comparisons of equals it is called so wrongly."""


@dataclass(frozen=True)
class Comparison:
    """One score of two systems on the same examples. `lead` is positive where the first is better."""

    metric: str
    first: float
    second: float
    lead: Interval
    p_value: float
    """The chance of a difference as large between equals."""
    test: str
    """How that chance was found."""

    @property
    def is_real(self) -> bool:
        """Whether the difference is more than chance, at the usual level."""
        return self.p_value < ALPHA

    def as_data(self) -> dict[str, Any]:
        """Plain data for reports."""
        return asdict(self) | {"lead": self.lead.as_dict(), "is_real": self.is_real}


def compare(first: Score, second: Score, draws: Draws) -> Comparison:
    """Two systems by one score: the paired interval of the lead, and a test.

    Both scores are made of the same examples in the same order; raises ValueError where they are not.
    """
    if len(first) != len(second) or first.name != second.name:
        raise ValueError(f"cannot pair {first.name} of {len(first)} with {second.name} of {len(second)} examples")
    lead = paired_lead(first, second, draws)
    if isinstance(first, Additive) and isinstance(second, Additive) and _pairs(first, second):
        chance, test = randomisation(first, second, draws), "approximate randomisation"
    else:
        chance, test = _bootstrap_chance(first, second, draws), "paired bootstrap"
    return Comparison(first.name, first.value, second.value, lead, chance, test)


def _pairs(first: Additive, second: Additive) -> bool:
    # A mean over three seeds and a single run cannot be swapped.
    return first.statistics.shape == second.statistics.shape


def paired_lead(first: Score, second: Score, draws: Draws) -> Interval:
    """How much better the first is than the second, with an interval from drawing the same examples of both."""
    sign = 1.0 if first.higher_is_better else -1.0
    if isinstance(first, Additive) and isinstance(second, Additive):
        edge = first.statistics.shape[1]
        both_ES = np.concatenate([first.statistics, second.statistics], axis=1)

        def finish(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return sign * (first.finish(sums[..., :edge]) - second.finish(sums[..., edge:]))

        return draws.interval(Additive("lead", both_ES, finish))
    gap_R = sign * (draws.replicates(first) - draws.replicates(second))
    low, high = (float(q) for q in np.quantile(gap_R, ((1 - draws.level) / 2, (1 + draws.level) / 2)))
    estimate = sign * (first.value - second.value)
    return Interval(
        estimate, low, high, draws.level, draws.count, draws.unit, draws.resamples, "percentile", draws.seed
    )


def randomisation(first: Additive, second: Additive, draws: Draws) -> float:
    """Two-sided p-value of approximate randomisation, over `draws.resamples` rounds; never 0.

    Where several examples belong to one unit, they are swapped together.
    """
    if draws.groups is not None:
        first, second = first.by(draws.groups), second.by(draws.groups)
    a_S, b_S = first.statistics.sum(0), second.statistics.sum(0)
    if not _pairs(first, second):
        raise ValueError("randomisation needs the same statistics of both systems")
    gap_ES = first.statistics - second.statistics
    observed = abs(first.value - second.value)
    rng, as_large = np.random.default_rng(draws.seed), 0
    step = max(1, _CHUNK // max(1, len(gap_ES)))
    for start in range(0, draws.resamples, step):
        swapped = rng.integers(0, 2, (min(step, draws.resamples - start), len(gap_ES)), dtype=np.int8)
        moved_RS = swapped.astype(np.float64) @ gap_ES
        gaps_R = np.abs(first.finish(a_S - moved_RS) - second.finish(b_S + moved_RS))
        as_large += int((gaps_R >= observed - 1e-12).sum())
    return (as_large + 1) / (draws.resamples + 1)


def _bootstrap_chance(first: Score, second: Score, draws: Draws) -> float:
    """Two-sided p-value by how often the draws turn the difference around."""
    gap_R = draws.replicates(first) - draws.replicates(second)
    below, above = int((gap_R <= 0).sum()), int((gap_R >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(gap_R) + 1))


def mcnemar(first_right_E: Any, second_right_E: Any) -> float:
    """Exact two-sided p-value that two systems are right equally often, from the examples they differ on."""
    first, second = np.asarray(first_right_E, bool), np.asarray(second_right_E, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, least = only_first + only_second, min(only_first, only_second)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    tail = sum(math.exp(log - n * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value that two sets of trainings have the same mean (Welch 1947); needs two runs of each."""
    if min(len(first), len(second)) < 2:
        raise ValueError("Welch's test needs at least two runs of each")
    from scipy.special import stdtr  # type: ignore[import-untyped]

    (mean, spread, n), (other_mean, other_spread, m) = (
        (float(np.mean(values)), float(np.var(values, ddof=1)) / len(values), len(values)) for values in (first, second)
    )
    if spread + other_spread == 0:  # no spread to measure a difference by
        return 1.0 if mean == other_mean else 0.0
    freedom = (spread + other_spread) ** 2 / (spread**2 / (n - 1) + other_spread**2 / (m - 1))
    return float(2 * stdtr(freedom, -abs(mean - other_mean) / math.sqrt(spread + other_spread)))
