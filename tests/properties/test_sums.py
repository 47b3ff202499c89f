"""Scores of answers that are sums: ratios of totals, NaN without a count, and win-rates by likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest

from groundup.evaluation.metrics import sums
from groundup.evaluation.metrics.ratios import Ratio, perplexity

METRICS = {
    "loss": Ratio("nats", "labels"),
    "perplexity": Ratio("nats", "labels", perplexity),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
}
ANSWERS = [{"nats": 4.0, "labels": 2, "right": 1}, {"nats": 2.0, "labels": 4, "right": 4}]


@pytest.mark.smoke
def test_a_score_is_a_ratio_of_totals() -> None:
    loss, spread, accuracy = sums.scores(METRICS, ANSWERS)
    assert loss.value == 1 and accuracy.value == pytest.approx(5 / 6)
    assert spread.value == pytest.approx(math.e) and accuracy.higher_is_better and not loss.higher_is_better
    assert loss.weighted(np.array([[1, 0], [0, 1], [1, 1]])).tolist() == [2.0, 0.5, 1.0]


def test_nothing_counted_is_no_number() -> None:
    nothing = [{"nats": 0.0, "labels": 0, "right": 0}]
    assert all(math.isnan(score.value) for score in sums.scores(METRICS, nothing))
    assert math.isnan(sums.scores(METRICS, [])[0].value)


def test_a_win_is_a_better_ratio_of_one_example() -> None:
    other = [{"nats": 3.0, "labels": 2, "right": 1}, {"nats": 3.0, "labels": 4, "right": 4}]
    assert sums.wins(METRICS["loss"], ANSWERS, other).value == 0.5
    assert sums.wins(METRICS["accuracy"], ANSWERS, other).value == 0.5, "two ties"
    assert sums.wins(METRICS["loss"], ANSWERS[1:], other[1:]).value == 1
