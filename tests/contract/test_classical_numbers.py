"""Classical rivals on vectors: what each can learn it learns, settings are chosen on validation rows, caps are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from groundup.errors import Interrupted
from groundup.evaluation import classical, classical_numbers, leakage
from groundup.evaluation.classical_numbers import RIVALS, Examples, Rival

NAMES = ["logistic regression", "linear SVM", "decision tree", "gradient boosting", "k nearest neighbours"]


def ring(count: int, seed: int) -> Examples:
    """Points inside and outside a circle, which no straight line divides."""
    points = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    return Examples(points, ["in" if x * x + y * y < 0.5 else "out" for x, y in points])


def slope(count: int, seed: int) -> Examples:
    """Numbers that are a line of the first feature and a bend of the second."""
    points = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return Examples(points, (100 + 30 * points[:, 0] + 10 * np.abs(points[:, 1])).tolist())


def share_right(answers: Any, truth: Any) -> float:
    return float(np.mean([a == b for a, b in zip(answers, truth, strict=True)]))


def test_what_is_no_line_is_learned_by_trees_and_neighbours_and_not_by_lines() -> None:
    train, validation, test = (ring(count, seed) for seed, count in enumerate((600, 100, 200)))
    found = classical_numbers.classifiers(train, validation, test.vectors, ["in", "out"])
    assert [system.name for system in found] == ["the commonest label", *NAMES]
    right = {system.name: share_right(system.answers, test.truth) for system in found}
    assert max(right["logistic regression"], right["linear SVM"]) < 0.75
    assert min(right["decision tree"], right["gradient boosting"], right["k nearest neighbours"]) > 0.9
    for system in found[1:]:
        assert (system.probabilities is None) == (system.name == "linear SVM") == (system.confidence is not None)
        assert "chosen on validation rows" in system.meaning and system.trained_rows == 600
        assert system.details["features"] == 2
        if system.probabilities is not None:
            assert np.sum(system.probabilities, axis=1) == pytest.approx(1)
            assert [["in", "out"][int(np.argmax(row))] for row in system.probabilities] == list(system.answers)


def test_each_of_several_labels_is_a_question_of_its_own() -> None:
    def rows(count: int, seed: int) -> Examples:
        """`in` as above, `right` by a straight line, `always` for every one; some have a label nobody asks for."""
        points = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
        held = [["always", *["in"] * bool(x * x + y * y < 0.5), *["right"] * bool(x > 0)] for x, y in points]
        return Examples(points, [[*row, "other"] if number % 9 == 0 else row for number, row in enumerate(held)])

    train, validation, test = (rows(count, seed) for seed, count in enumerate((600, 100, 200)))
    found = classical_numbers.multilabel(train, validation, test.vectors, ["always", "in", "never", "right"])
    assert [system.name for system in found] == NAMES
    for system in found:
        right = {
            label: share_right([label in row for row in system.answers], [label in row for row in test.truth])
            for label in ("always", "in", "never", "right")
        }
        assert right["always"] == right["never"] == 1 and right["right"] > 0.95
        assert (right["in"] > 0.9) == (system.name not in NAMES[:2]), right
        assert "for each label" in system.meaning and system.trained_rows == 600
        assert (system.probabilities is None) == (system.name == "linear SVM")
        if system.probabilities is not None:
            sure = [[p > 0.5 for p in row] for row in system.probabilities]
            assert sure == [[name in row for name in ("always", "in", "never", "right")] for row in system.answers]
    assert (
        classical_numbers.multilabel(Examples(train.vectors[:0], []), validation, test.vectors, ["in", "right"]) == []
    )
    assert RIVALS[0].most_rows(784, 10, by_label=True) * 9 < RIVALS[0].most_rows(784, 10)


def test_numbers_are_predicted_and_the_mean_stands_beside() -> None:
    train, validation, test = (slope(count, seed) for seed, count in enumerate((500, 100, 200)))
    found = classical_numbers.regressors(train, validation, test.vectors)
    assert [system.name for system in found] == ["the mean", "ridge regression", *NAMES[1:]]
    error = {s.name: float(np.abs(np.array(s.answers) - np.array(test.truth)).mean()) for s in found}
    assert error["the mean"] > 20
    assert all(error[name] < 0.5 * error["the mean"] for name in error if name != "the mean")
    assert error["gradient boosting"] < error["ridge regression"]


def test_the_setting_is_the_best_on_validation_rows() -> None:
    """Labels of training rows are partly wrong: one neighbour repeats the noise, fifty do not."""
    train, validation, test = ring(1500, 1), ring(300, 2), ring(300, 3)
    wrong = np.random.default_rng(4).random(len(train)) < 0.3
    noisy = [("out" if label == "in" else "in") if w else label for label, w in zip(train.truth, wrong, strict=True)]
    found = classical_numbers.classifiers(Examples(train.vectors, noisy), validation, test.vectors, ["in", "out"])
    near, tree = found[-1], found[3]
    assert near.details["n_neighbors"] in (15, 50)
    assert tree.details["min_samples_leaf"] in (20, 50)
    assert share_right(near.answers, test.truth) > 0.9


def test_without_validation_rows_every_tenth_training_row_is_one() -> None:
    train, none = ring(200, 1), Examples(np.empty((0, 0), np.float32), [])
    found = classical_numbers.classifiers(train, none, ring(50, 2).vectors, ["in", "out"])
    assert {system.trained_rows for system in found[1:]} == {180}
    few = classical_numbers.classifiers(train.part(range(4)), none, ring(50, 2).vectors, ["in", "out"])
    assert all(len(system.answers) == 50 for system in few), "four rows teach something too: exclusive or has no more"


def test_labels_that_never_occur_and_single_ones_do_no_harm() -> None:
    train, test = ring(100, 1), ring(20, 2)
    found = classical_numbers.classifiers(train, ring(20, 3), test.vectors, ["in", "out", "never"])
    assert np.array(found[1].probabilities).shape == (20, 3) and np.array(found[1].probabilities)[:, 2].max() == 0
    alone = Examples(train.vectors, ["in"] * 100)
    assert [s.name for s in classical_numbers.classifiers(alone, alone, test.vectors, ["in"])] == [
        "the commonest label"
    ]


def test_a_rival_says_when_it_learned_from_a_part_of_the_rows() -> None:
    assert all(rival.most_rows(784, 10) < 60_000 for rival in RIVALS)
    assert classical_numbers.most_rows(10, 2) > 1_000_000
    many = [*ring(300, 1).truth, *["in"] * 9700]
    found = classical_numbers.classifiers(
        Examples(ring(300, 1).vectors, many), ring(50, 2), ring(9, 3).vectors, ["in", "out"]
    )
    assert "learned from 300 of the 10,000 training rows" in found[1].meaning and found[1].trained_rows == 300


def test_time_ends_the_search_and_an_interruption_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    class Slow:
        def __init__(self, C: float) -> None:
            tried.append(C)

        def fit(self, vectors: Any, truth: Any) -> Slow:
            return self

        def predict(self, vectors: Any) -> Any:
            return ["in"] * len(vectors)

        def decision_function(self, vectors: Any) -> Any:
            return np.zeros(len(vectors))

    slow = Rival("slow", "a slow one", [{"C": 1.0}, {"C": 2.0}], 10**9, Slow, Slow)
    monkeypatch.setattr(classical_numbers, "RIVALS", (slow,))
    given = ring(50, 1), ring(20, 2), ring(5, 3).vectors, ["in", "out"]
    assert classical_numbers.classifiers(*given, seconds=0.0)[1].details["C"] == 1.0
    assert tried == [1.0], "there is always one setting, and no other when time is up"
    asked: Iterator[bool] = iter([False, True])
    monkeypatch.setattr(classical, "interrupt_requested", lambda: next(asked))
    with pytest.raises(Interrupted):
        classical_numbers.classifiers(*given)


def test_rows_without_a_text_of_their_own_leak_only_if_they_are_equal() -> None:
    texts = [f"mean radius of the nucleus: 1{i}.5\nmean texture of the nucleus: 2.5" for i in range(5)]
    alike = leakage.find(texts[:3], texts[2:])
    assert len(alike.near) == 2, "as texts they are nearly the same"
    assert leakage.find(texts[:3], texts[2:], only_exact=True).rows == [0]
