"""What draws and tests must do whatever the answers: agree with slow ways, be fair to equals, see differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from groundup.evaluation import significance
from groundup.evaluation.intervals import mean_interval, runs_interval
from groundup.evaluation.metrics import calibration, classification, detection, regression
from groundup.evaluation.metrics.additive import Additive, averaged, mean
from groundup.evaluation.resampling import Draws

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 4, 300)


def answers(share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(300) < share, TRUTH, rng.integers(0, 4, 300))


def f1(given: np.ndarray) -> Additive:
    return classification.macro(classification.counts(TRUTH, given, 4), "f1")


@pytest.mark.smoke
def test_a_draw_by_weights_is_the_score_of_the_drawn_examples() -> None:
    given = answers(0.7, 1)
    draws = Draws(300, seed=3, resamples=20)
    (weights,) = draws.weights()
    assert (weights.sum(1) == 300).all()
    for row, score in zip(weights, draws.replicates(f1(given)), strict=True):
        index = np.repeat(np.arange(300), row)
        slow = classification.macro(classification.counts(TRUTH[index], given[index], 4), "f1").value
        assert score == pytest.approx(slow, abs=1e-12)
    numbers = regression.spearman(TRUTH.astype(float), given.astype(float))
    assert len(draws.replicates(numbers)) == 20


def test_intervals_agree_with_those_of_means_and_are_repeatable() -> None:
    values = RNG.exponential(1.0, 200)
    ours = Draws(200, seed=1, resamples=4000).interval(mean("x", values))
    known = mean_interval(values, seed=2, resamples=4000)
    assert [ours.low, ours.high] == pytest.approx([known.low, known.high], abs=0.02)
    assert ours == Draws(200, seed=1, resamples=4000).interval(mean("x", values))
    several = Draws(300, seed=1).table(f1(answers(0.5, 2)).statistics, classification.every_class("f1"))
    assert len(several) == 4 and all(one.low < one.estimate < one.high for one in several)
    alone = Draws(1, seed=0).interval(mean("x", [2.0]))
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_examples_of_one_unit_are_drawn_together() -> None:
    units = np.repeat(np.arange(30), 10)
    values = np.repeat(RNG.normal(0, 1, 30), 10)  # ten copies of thirty independent values
    score = mean("x", values)
    alone = Draws(300, seed=0).interval(score)
    together = Draws(300, seed=0, groups=units, unit="articles").interval(score)
    assert together.margin > 2.5 * alone.margin
    assert (together.n, together.unit) == (30, "articles")
    slow = regression.mean_absolute_error(values, np.zeros(300))
    assert Draws(300, seed=0, groups=units).replicates(slow).shape == (1000,)
    assert Draws(300, seed=0, groups=units).of(np.arange(95)).count == 10


@pytest.mark.smoke
def test_equals_are_called_equal_and_the_better_system_better() -> None:
    draws = Draws(300, seed=0, resamples=500)
    better, worse = f1(answers(0.9, 1)), f1(answers(0.5, 2))
    found = significance.compare(better, worse, draws)
    assert found.is_real and found.lead.low > 0 and found.p_value < 0.01
    assert found.lead.estimate == pytest.approx(better.value - worse.value)
    back = significance.compare(worse, better, draws)
    assert back.lead.high < 0 and back.p_value == pytest.approx(found.p_value, abs=0.01)
    same = significance.compare(better, better, draws)
    assert same.p_value == 1.0 and (same.lead.low, same.lead.high) == (0, 0) and not same.is_real
    assert same.as_data()["lead"]["estimate"] == 0


def test_a_lower_error_is_a_lead() -> None:
    truth = RNG.normal(0, 1, 300)
    near, far = truth + RNG.normal(0, 0.1, 300), truth + RNG.normal(0, 1, 300)
    draws = Draws(300, seed=0, resamples=300)
    errors = [regression.mean_squared_error(truth, given) for given in (near, far)]
    assert significance.compare(errors[0], errors[1], draws).lead.low > 0
    ranks = [regression.spearman(truth, given) for given in (near, far)]
    found = significance.compare(ranks[0], ranks[1], draws)
    assert found.is_real and found.test == "paired bootstrap" and found.lead.low > 0
    with pytest.raises(ValueError, match="cannot pair"):
        significance.compare(errors[0], ranks[0], draws)


def test_the_test_of_equals_is_wrong_as_often_as_it_says() -> None:
    rng, wrong = np.random.default_rng(1), 0
    for trial in range(200):
        first, second = (mean("accuracy", rng.random(80) < 0.7) for _ in range(2))
        wrong += significance.randomisation(first, second, Draws(80, seed=trial, resamples=199)) < 0.05
    assert wrong <= 20, "about ten of two hundred are expected"


def test_mcnemar_and_welch_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = RNG.random(400) < 0.8, RNG.random(400) < 0.75
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    expected = stats.binomtest(min(only_first, only_second), only_first + only_second).pvalue
    assert significance.mcnemar(first, second) == pytest.approx(expected, abs=1e-9)
    assert significance.mcnemar(first, first) == 1.0
    pair = [0.9, 0.91, 0.92], [0.8, 0.83]
    assert significance.welch(*pair) == pytest.approx(stats.ttest_ind(*pair, equal_var=False).pvalue, abs=1e-12)
    assert significance.welch([0.9, 0.9], [0.9, 0.9]) == 1.0
    with pytest.raises(ValueError, match="two runs"):
        significance.welch([0.9], [0.8, 0.81])


def test_the_mean_over_runs_is_a_score_like_another() -> None:
    runs = [f1(answers(0.8, seed)) for seed in range(3)]
    together = averaged(runs)
    assert together.value == pytest.approx(np.mean([run.value for run in runs]))
    part = together.take(np.arange(50))
    assert part.value == pytest.approx(np.mean([run.take(np.arange(50)).value for run in runs]))
    draws = Draws(300, seed=0, resamples=100)
    assert draws.replicates(together) == pytest.approx(np.mean([draws.replicates(run) for run in runs], axis=0))
    ranks = averaged([regression.spearman(TRUTH * 1.0, answers(0.8, seed) * 1.0) for seed in range(2)])
    assert draws.interval(ranks).low < ranks.value and len(ranks.take(np.arange(9))) == 9
    found = significance.compare(together, f1(answers(0.4, 9)), draws)
    assert found.test == "paired bootstrap" and found.is_real, "three runs cannot be swapped with one"


def test_scores_told_from_weights_are_those_of_the_drawn_examples() -> None:
    outside, strange = RNG.random(120) < 0.4, np.round(RNG.normal(0, 1, 120), 1)
    right = RNG.random(120) < 0.7

    def scores(rows: np.ndarray) -> list[float]:
        made = detection.auroc, detection.false_alarms
        own = [make(outside[rows], strange[rows]).value for make in made]
        return [*own, float(calibration.risk_coverage(strange[rows], right[rows])[1].mean())]

    whole = [detection.auroc(outside, strange), detection.false_alarms(outside, strange)]
    whole.append(calibration.area_under_risk(strange, right))
    (weights,) = Draws(120, seed=0, resamples=25).weights()
    expected = np.array([scores(np.repeat(np.arange(120), row)) for row in weights])
    for score, column in zip(whole, expected.T, strict=True):
        assert score.weighted(weights) == pytest.approx(column, abs=1e-12)
        assert score.take(np.arange(60)).value == pytest.approx(scores(np.arange(60))[whole.index(score)])


def test_an_interval_over_seeds_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.81, 0.84, 0.80]
    found = runs_interval(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert [found.low, found.high] == pytest.approx([low, high])
    assert runs_interval([0.8]).low == -math.inf
    with pytest.raises(ValueError, match="no runs"):
        runs_interval([])
