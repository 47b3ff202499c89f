"""Bootstrap intervals: they cover as often as they say, agree with scipy's BCa, and repeat by seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.evaluation.intervals import mean_interval, ratio_interval, statistic_interval

units = st.lists(st.tuples(st.floats(0, 100), st.floats(0.5, 50)), min_size=2, max_size=40)


@settings(deadline=None, max_examples=60)
@given(units, st.sampled_from(["bca", "percentile"]))
def test_limits_lie_among_the_units_and_follow_the_scale(pairs: list[tuple[float, float]], method: str) -> None:
    above, below = np.array(pairs).T
    one = ratio_interval(above, below, seed=1, resamples=200, method=method)
    assert one.low <= one.high
    ratios = above / below
    assert ratios.min() - 1e-9 <= one.low and one.high <= ratios.max() + 1e-9
    double = ratio_interval(2 * above, below, seed=1, resamples=200, method=method)
    assert (double.estimate, double.low, double.high) == pytest.approx((2 * one.estimate, 2 * one.low, 2 * one.high))


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_an_interval_covers_as_often_as_it_says(method: str) -> None:
    """400 samples of 60 skewed documents: 95 % intervals hold the true ratio 95 ± 4 % of the time."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(400):
        sizes = rng.lognormal(5, 0.7, 60)
        nats = sizes * rng.gamma(8, 1 / 8, 60)
        interval = ratio_interval(nats, sizes, seed=trial, resamples=400, method=method)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.985, hits / 400


def test_the_general_form_agrees_with_the_ratio_form_and_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here")
    values = np.random.default_rng(2).exponential(2.0, 50)
    ours = mean_interval(values, seed=0, resamples=20_000)
    general = statistic_interval(lambda index: float(values[index].mean()), 50, seed=3, resamples=5_000)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    for one in (ours, general):
        assert one.low == pytest.approx(theirs.low, abs=0.05)
        assert one.high == pytest.approx(theirs.high, abs=0.05)


def test_a_paired_difference_is_narrower_than_the_two_scores() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(100, 1000, 80).astype(float)
    hard = sizes * rng.gamma(5, 0.3, 80)
    easier = hard - 0.1 * sizes + rng.normal(0, 1, 80)
    difference = ratio_interval(hard - easier, sizes, seed=0)
    assert difference.margin < 0.2 * ratio_interval(hard, sizes, seed=0).margin
    assert difference.low > 0


def test_one_seed_one_interval_and_one_unit_says_nothing() -> None:
    values = np.arange(30.0)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4) != mean_interval(values, seed=5)
    alone = mean_interval(np.array([2.0]), seed=0)
    assert (alone.estimate, alone.low, alone.high, alone.n) == (2.0, -math.inf, math.inf, 1)
    assert alone.as_dict()["low"] is None, "JSON has no infinity"
    same = mean_interval(np.full(9, 3.0), seed=0)
    assert (same.low, same.high) == (3.0, 3.0)


def test_map_moves_all_three_figures_and_bad_input_is_refused() -> None:
    moved = mean_interval(np.arange(10.0), seed=0).map(math.exp)
    assert moved.estimate == pytest.approx(math.exp(4.5))
    assert moved.low < moved.estimate < moved.high
    with pytest.raises(ValueError, match="equally long"):
        ratio_interval(np.ones(3), np.ones(2), seed=0)
    with pytest.raises(ValueError, match="equally long"):
        ratio_interval(np.ones(0), np.ones(0), seed=0)
    with pytest.raises(ValueError, match="unknown method"):
        ratio_interval(np.ones(3), np.ones(3), seed=0, method="magic")
