"""How far a figure can be trusted: bootstrap confidence intervals.

A test set is a sample. Drawing as many documents again, with replacement, many times over shows how
much a score would move with another sample of the same size. The unit that is drawn must be
independent of its neighbours, so it is a document, or a block of text where documents are few.
Two systems scored on the same units are compared by the interval of their difference, which is much
narrower than either's own, because both find the same documents hard.

Axes: N units, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NORMAL = NormalDist()
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, and how that interval was made."""

    estimate: float
    low: float
    high: float
    level: float
    """Share of such intervals that hold the true value, as far as the bootstrap's assumptions hold."""
    n: int
    """Units that were drawn again."""
    unit: str
    """What a unit is: documents, blocks of 4096 bytes, …"""
    resamples: int
    method: str
    seed: int

    @property
    def margin(self) -> float:
        """Half the width: the ± of a sentence."""
        return (self.high - self.low) / 2

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the estimate, such as exp for perplexity."""
        moved = {name: function(getattr(self, name)) for name in ("estimate", "low", "high")}
        return Interval(**(asdict(self) | moved))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for reports; an unknown limit is None, since JSON has no infinity."""
        return {key: None if value in (np.inf, -np.inf) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.estimate:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio_interval(
    above_N: Floats,
    below_N: Floats,
    *,
    seed: int,
    unit: str = "documents",
    resamples: int = 1000,
    level: float = 0.95,
    method: str = "bca",
) -> Interval:
    """The interval of sum(above) / sum(below), such as nats over bytes, by drawing units again.

    above_N, below_N: one entry per unit, below ≥ 0 with a positive sum. With one unit nothing can be
    said and the interval is infinite. `method` is "bca" (Efron 1987: corrects bias and skew; the
    default) or "percentile". Raises ValueError for empty or unequal inputs.
    """
    above_N, below_N = np.asarray(above_N, np.float64), np.asarray(below_N, np.float64)
    if above_N.shape != below_N.shape or above_N.ndim != 1 or below_N.sum() <= 0:
        raise ValueError(f"need equally long, non-empty inputs, got {above_N.shape} and {below_N.shape}")
    n, estimate = len(above_N), float(above_N.sum() / below_N.sum())
    replicates_R = np.empty(resamples)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        draws = rng.integers(0, n, (min(step, resamples - start), n))
        below = below_N[draws].sum(1)
        # Every unit drawn may be an empty document; the estimate then stands in for no information.
        filled = np.where(below > 0, below, 1.0)
        replicates_R[start : start + step] = np.where(below > 0, above_N[draws].sum(1) / filled, estimate)
    left_below = below_N.sum() - below_N
    left_above = above_N.sum() - above_N
    jackknife_N = np.where(left_below > 0, left_above / np.where(left_below > 0, left_below, 1.0), estimate)
    low, high = limits(estimate, replicates_R, jackknife_N, level, method)
    return Interval(estimate, low, high, level, n, unit, resamples, method, seed)


def mean_interval(values_N: Floats, *, seed: int, unit: str = "documents", resamples: int = 1000) -> Interval:
    """The BCa interval of a mean over units."""
    return ratio_interval(values_N, np.ones(len(values_N)), seed=seed, unit=unit, resamples=resamples)


def statistic_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    seed: int,
    unit: str = "documents",
    resamples: int = 1000,
    level: float = 0.95,
    method: str = "bca",
) -> Interval:
    """The interval of any statistic of n units: `statistic(indices)` is called for every resample.

    For scores that are no ratio of sums, such as macro F1. BCa adds n calls for the jackknife.
    """
    everything = np.arange(n)
    rng = np.random.default_rng(seed)
    replicates_R = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])
    estimate = float(statistic(everything))
    needs_jackknife = method == "bca" and n > 1
    jackknife = [statistic(np.delete(everything, i)) for i in range(n)] if needs_jackknife else [estimate]
    low, high = limits(estimate, replicates_R, np.array(jackknife), level, method)
    return Interval(estimate, low, high, level, n, unit, resamples, method, seed)


def limits(
    estimate: float, replicates_R: Floats, jackknife_N: Floats, level: float, method: str
) -> tuple[float, float]:
    """Lower and upper limit by the percentile method, or by BCa (Efron 1987, eq. 2.3 to 2.6)."""
    if method not in ("bca", "percentile"):
        raise ValueError(f"unknown method {method!r}; known: bca, percentile")
    if len(jackknife_N) < 2 and method == "bca":
        return -np.inf, np.inf
    tails = (1 - level) / 2, (1 + level) / 2
    if np.ptp(replicates_R) == 0:
        return estimate, estimate
    if method == "bca":
        tails = _corrected(tails, estimate, replicates_R, jackknife_N)
    low, high = np.quantile(replicates_R, tails)
    return float(low), float(high)


def _corrected(
    tails: tuple[float, float], estimate: float, replicates_R: Floats, jackknife_N: Floats
) -> tuple[float, float]:
    """The tails to read off instead: shifted for bias (z0) and for skew (acceleration)."""
    # Half of those equal to the estimate count as below it, so that a discrete score is not biased.
    below = (np.sum(replicates_R < estimate) + np.sum(replicates_R == estimate) / 2) / len(replicates_R)
    edge = 0.5 / len(replicates_R)
    bias = _NORMAL.inv_cdf(float(np.clip(below, edge, 1 - edge)))
    centred_N = jackknife_N.mean() - jackknife_N
    spread = float((centred_N**2).sum())
    acceleration = float((centred_N**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def moved(tail: float) -> float:
        z = bias + _NORMAL.inv_cdf(tail)
        return _NORMAL.cdf(bias + z / (1 - acceleration * z))

    return moved(tails[0]), moved(tails[1])


def runs_interval(values: Sequence[float], *, level: float = 0.95, unit: str = "runs") -> Interval:
    """The interval of the mean over runs, such as seeds, by Student's t.

    It says how much another set of seeds would move the mean, on the same test. With one run nothing
    can be said and the interval is infinite. Raises ValueError for none.
    """
    values_N = np.asarray(values, np.float64)
    n = len(values_N)
    if not n:
        raise ValueError("the mean of no runs")
    mean, margin = float(values_N.mean()), np.inf
    if n > 1:
        from scipy.special import stdtrit  # type: ignore[import-untyped]

        margin = float(stdtrit(n - 1, (1 + level) / 2)) * float(values_N.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - margin, mean + margin, level, n, unit, 0, "t", 0)
