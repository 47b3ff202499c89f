"""Places among all items, and what is made of them: the same as sorting, fair to ties, blind to scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies
from hypothesis.extra import numpy as arrays
from sklearn.metrics import ndcg_score, roc_auc_score

from groundup.evaluation.metrics import detection, ranking, recommending
from groundup.evaluation.resampling import Draws

ITEMS = 7
SCORES = arrays.arrays(np.float32, (5, ITEMS), elements=strategies.integers(-3, 3).map(float))
TARGETS = arrays.arrays(np.int64, 5, elements=strategies.integers(0, ITEMS - 1))


@given(SCORES, TARGETS, strategies.integers(1, ITEMS))
def test_ties_are_worth_the_mean_over_their_orders(scores: np.ndarray, targets: np.ndarray, k: int) -> None:
    """scikit-learn averages tied gains in the same way (McSherry & Najork 2008)."""
    above, tied = recommending.places(scores, targets)
    truth = np.eye(ITEMS)[targets]
    expected = [ndcg_score(truth[row : row + 1], scores[row : row + 1], k=k) for row in range(len(scores))]
    assert recommending.expected(recommending.discounted(k), above, tied) == pytest.approx(expected)


@given(SCORES, TARGETS)
def test_without_ties_the_values_are_those_of_a_ranking(scores: np.ndarray, targets: np.ndarray) -> None:
    """The metrics of ranked lists, on the whole catalogue sorted."""
    scores = scores + np.linspace(0, 0.5, ITEMS, dtype=np.float32)  # no two alike
    above, tied = recommending.places(scores, targets)
    assert (tied == 1).all()
    ranked = np.argsort(-scores, axis=1).tolist()
    relevant = [[target] for target in targets.tolist()]
    answers = [
        {"places": [[a, 1]], "best": [row], "items": ITEMS} for a, row in zip(above.tolist(), ranked, strict=True)
    ]
    found = {score.name: score.value for score in recommending.scores(answers, ks=(1, 5))}
    assert found["ndcg_at_10"] == pytest.approx(ranking.ndcg_at_k(relevant, ranked, k=10).value)
    assert found["recall_at_5"] == pytest.approx(ranking.recall_at_k(relevant, ranked, k=5).value)
    assert found["mean_reciprocal_rank"] == pytest.approx(ranking.reciprocal_rank(relevant, ranked).value)
    assert found["coverage_at_10"] == 1.0
    assert recommending.best(scores, 3).tolist() == [row[:3] for row in ranked]


@given(SCORES, TARGETS)
def test_only_the_order_of_scores_counts(scores: np.ndarray, targets: np.ndarray) -> None:
    for one, other in zip(
        recommending.places(scores, targets), recommending.places(4 * scores - 8, targets), strict=True
    ):
        assert np.array_equal(one, other)


def test_what_cannot_be_recommended_is_below_everything() -> None:
    scores = np.array([[3.0, -np.inf, 1.0], [np.nan, 0.0, 5.0], [np.nan, 0.0, 5.0]], np.float32)
    above, tied = recommending.places(scores, np.array([1, 1, -1]))
    assert above.tolist() == [3, 2, 3] and tied.tolist() == [1, 1, 1]
    assert recommending.places(scores[1:2], np.array([0]))[0].tolist() == [3], "no number is no score"
    assert recommending.expected(recommending.reciprocal, above, tied) == pytest.approx([1 / 4, 1 / 3, 1 / 4])


def test_equal_items_are_named_in_the_order_of_the_catalogue() -> None:
    scores = np.array([[1.0, 2.0, 1.0, 2.0, 1.0], [-np.inf, 0.0, 0.0, -np.inf, 1.0]], np.float32)
    assert recommending.best(scores, 4).tolist() == [[1, 3, 0, 2], [4, 1, 2, 0]]
    assert recommending.best(scores, 9).tolist() == [[1, 3, 0, 2, 4], [4, 1, 2, 0, 3]]


def test_a_user_with_many_targets_counts_by_them_and_is_drawn_whole() -> None:
    answers = [
        {"places": [[0, 1], [50, 1], [50, 1]], "best": [["a"], ["a"], ["b"]], "items": 100},
        {"places": [[0, 1]], "best": [["c"]], "items": 100},
    ]
    found = {score.name: score for score in recommending.scores(answers)}
    assert found["recall_at_10"].value == pytest.approx(2 / 4) and len(found["recall_at_10"]) == 2
    assert found["coverage_at_10"].value == pytest.approx(3 / 100)
    assert recommending.grades(answers) == pytest.approx([(1 + 2 / 51) / 3, 1.0])


def test_the_interval_of_coverage_lies_around_it() -> None:
    random = np.random.default_rng(1)
    answers = [{"places": [[0, 1]], "best": [random.integers(0, 500, 10).tolist()], "items": 500} for _ in range(60)]
    score = recommending.coverage(answers, k=10)
    found = Draws(60, seed=3, resamples=500).interval(score)
    assert found.low < found.estimate < found.high
    assert found.high - found.low < 0.2
    assert score.take(np.arange(30)).value < score.value


@given(arrays.arrays(np.float64, 12, elements=strategies.integers(0, 4).map(float)), strategies.integers(1, 11))
def test_the_area_under_the_curve_is_that_of_sklearn(scores: np.ndarray, clicks: int) -> None:
    clicked = np.arange(12) < clicks
    found = detection.auroc(clicked, scores, name="roc_auc")
    assert found.name == found.take(np.arange(12)).name == "roc_auc"
    assert found.value == pytest.approx(roc_auc_score(clicked, scores))
