"""Which scores a kind of labelled test has, and how each is made from truth and answers.

Axes: E examples, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.labelled import Kind, Labelled, System
from groundup.evaluation.metrics import (
    calibration,
    classification,
    detection,
    ranking,
    recommending,
    regression,
    spans,
    sums,
    tagging,
    translation,
)
from groundup.evaluation.metrics.additive import Floats, Score, ratio

Scores = dict[str, Score]
CHINESE = ("zh", "chinese", "yue")


def scores_of(test: Labelled, system: System) -> Scores:
    """Every score of a system by name, the main one first. Raises ValueError for an unknown `main`."""
    found = {score.name: score for score in _BY_KIND[test.kind](test, system)}
    main = test.main or next(iter(found))
    if main not in found:
        raise ValueError(f"no score {main!r} for {test.kind}; known: {', '.join(found)}")
    return {main: found[main]} | found


def right_of(test: Labelled, system: System) -> NDArray[np.bool_] | None:
    """Which examples were answered right as a whole; None for kinds without right and wrong."""
    match test.kind:
        case "classes":
            return np.array([a == b for a, b in zip(test.truth, system.answers, strict=True)], bool)
        case "multilabel":
            return np.array([set(a) == set(b) for a, b in zip(test.truth, system.answers, strict=True)], bool)
        case "tags":
            return np.array([list(a) == list(b) for a, b in zip(test.truth, system.answers, strict=True)], bool)
        case "spans":
            return np.asarray(_first(spans.exact(test.truth, system.answers, characters=is_chinese(test.language))) > 0)
        case "ranking":
            return np.asarray(_first(ranking.reciprocal_rank(test.truth, system.answers)) == 1)
        case "recommending":
            return np.asarray(recommending.grades(system.answers) == 1)
        case _:
            return None


def grades_of(test: Labelled, system: System) -> Floats:
    """How good each answer is, higher better; what mistakes are sorted by where there is no confidence."""
    match test.kind:
        case "number":
            return -np.abs(np.asarray(test.truth, np.float64) - np.asarray(system.answers, np.float64))
        case "texts":
            score = translation.chrf(test.truth, system.answers)
            return score.finish(score.statistics)
        case "spans":
            return _first(spans.f1(test.truth, system.answers, characters=is_chinese(test.language)))
        case "ranking":
            return _first(ranking.reciprocal_rank(test.truth, system.answers))
        case "recommending":
            return recommending.grades(system.answers)
        case "tags":
            score = tagging.tag_accuracy(test.truth, system.answers)
            return score.finish(score.statistics)
        case "sums":
            score = sums.scores(test.metrics, system.answers)[0]
            each = score.finish(score.statistics)
            return each if score.higher_is_better else -each
        case _:
            right = right_of(test, system)
            assert right is not None, "classes and sets of labels are right or wrong"
            return right.astype(np.float64)


def confidence_of(test: Labelled, system: System) -> Floats | None:
    """How sure the system was of each answer: its probability, or what it said itself; None if unknown."""
    if test.kind == "classes" and system.probabilities is not None:
        return np.asarray(np.asarray(system.probabilities, np.float64).max(1))
    if test.kind == "multilabel" and system.probabilities is not None:
        shares = np.asarray(system.probabilities, np.float64)
        return np.asarray(np.maximum(shares, 1 - shares).prod(1))
    return None if system.confidence is None else np.asarray(system.confidence, np.float64)


def is_chinese(language: str) -> bool:
    """Whether answers in a language are compared by characters."""
    return language.lower().split("-")[0].split("_")[0] in CHINESE


def _classes(test: Labelled, system: System) -> list[Score]:
    names = list(test.labels)
    if test.out_of_scope is not None and test.out_of_scope not in names:
        names.append(test.out_of_scope)  # a system without such a class may still answer it
    place = {label: number for number, label in enumerate(names)}
    truth, answers = (np.array([place.get(v, -1) for v in values]) for values in (test.truth, system.answers))
    counts = classification.counts(truth, answers, len(names))
    found: list[Score] = [classification.accuracy(truth, answers)]
    found += [classification.macro(counts, what) for what in ("f1", "precision", "recall")]
    found.append(classification.matthews(counts))
    if test.out_of_scope is not None:
        found += _scope(test, system, truth == answers)
    if system.probabilities is not None:
        found += _probable(test, system)
    return found


def _scope(test: Labelled, system: System, right: NDArray[np.bool_]) -> list[Score]:
    """Scores of a test with outsiders: the classes alone, how many outsiders were found, how well they are told."""
    outside = np.array([label == test.out_of_scope for label in test.truth])
    found: list[Score] = [
        ratio("in_scope_accuracy", right & ~outside, ~outside),
        ratio("out_of_scope_recall", right & outside, outside),
    ]
    strange = strangeness(test, system)
    if strange is not None:
        found += [detection.auroc(outside, strange), detection.false_alarms(outside, strange)]
    return found


def strangeness(test: Labelled, system: System) -> Floats | None:
    """How much each example looks like none of the classes: that label's probability, or what the likeliest leaves."""
    if system.probabilities is None:
        return None
    shares = np.asarray(system.probabilities, np.float64)
    if test.out_of_scope is not None and test.out_of_scope in test.labels:
        return np.asarray(shares[:, list(test.labels).index(test.out_of_scope)])
    return np.asarray(1 - shares.max(1))


def _probable(test: Labelled, system: System) -> list[Score]:
    """Scores of the probabilities; of the examples whose label has one."""
    shares = np.asarray(system.probabilities, np.float64)
    truth = test.label_numbers(test.truth)
    confidence, right = shares.max(1), right_of(test, system)
    assert right is not None, "classes are right or wrong"
    found: list[Score] = []
    if (truth >= 0).all():
        found += [classification.log_loss(truth, shares), classification.brier(truth, shares)]
        if shares.shape[1] == 2 and test.main == "roc_auc":
            found.append(detection.auroc(truth == 1, shares[:, 1], name="roc_auc"))
    return [
        *found,
        calibration.calibration_error(confidence, right),
        calibration.calibration_error(confidence, right, mass="equal"),
        calibration.area_under_risk(confidence, right),
    ]


def _sets(test: Labelled, system: System) -> list[Score]:
    place = {label: number for number, label in enumerate(test.labels)}
    true, answered = (
        classification.one_hot([[place[label] for label in row] for row in rows], len(place))
        for rows in (test.truth, system.answers)
    )
    counts = classification.set_counts(true, answered)
    return [
        classification.micro(counts, "f1"),
        classification.macro(counts, "f1", every_class=True),
        classification.micro(counts, "precision"),
        classification.micro(counts, "recall"),
        classification.exact_match(true, answered),
        classification.label_accuracy(true, answered),
    ]


def _numbers(test: Labelled, system: System) -> list[Score]:
    makers = (
        regression.pearson,
        regression.spearman,
        regression.mean_absolute_error,
        regression.mean_squared_error,
        regression.explained_variance,
    )
    return [make(test.truth, system.answers) for make in makers]


def _tags(test: Labelled, system: System) -> list[Score]:
    accuracy = tagging.tag_accuracy(test.truth, system.answers)
    whole = tagging.whole_sentences(test.truth, system.answers)
    if not is_schemed(test):
        counts, _ = tag_counts(test, system)
        return [accuracy, classification.macro(counts, "f1"), whole]
    scheme = tagging.scheme_of([test.labels, *test.truth])
    counts, _ = tag_counts(test, system)
    return [
        classification.micro(counts, "f1", name="entity_f1"),
        classification.micro(counts, "precision", name="entity_precision"),
        classification.micro(counts, "recall", name="entity_recall"),
        classification.macro(counts, "f1", name="macro_entity_f1"),
        accuracy,
        whole,
        tagging.broken_share(system.answers, scheme),
    ]


def is_schemed(test: Labelled) -> bool:
    """Whether the tags mark entities rather than name a class of every token."""
    tags = {*test.labels, *(tag for row in test.truth for tag in row)}
    return tagging.marks_entities(tags)


def tag_counts(test: Labelled, system: System) -> tuple[Floats, list[str]]:
    """Statistics (E, 3 K) of entities by kind, or of tags where they mark none; and the names of the K."""
    if is_schemed(test):
        scheme = tagging.scheme_of([test.labels, *test.truth])
        kinds = tagging.kinds_of([test.labels], test.truth, system.answers)
        return tagging.entity_counts(test.truth, system.answers, kinds, scheme), kinds
    names = sorted({*test.labels, *(tag for rows in (test.truth, system.answers) for row in rows for tag in row)})
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(test), 3, len(names)))
    for row, (truth, answers) in enumerate(zip(test.truth, system.answers, strict=True)):
        for true, answered in zip(truth, answers, strict=True):
            counts[row, 0, place[true]] += true == answered
            counts[row, 1, place[answered]] += 1
            counts[row, 2, place[true]] += 1
    return counts.reshape(len(test), -1), names


def _spans(test: Labelled, system: System) -> list[Score]:
    by_character = is_chinese(test.language)
    exact = spans.exact(test.truth, system.answers, characters=by_character)
    found: list[Score] = [spans.f1(test.truth, system.answers, characters=by_character), exact]
    if not all(len(accepted) for accepted in test.truth):
        found.append(spans.answered(test.truth, system.answers))
    if system.confidence is not None:
        found.append(calibration.area_under_risk(np.asarray(system.confidence), _first(exact)))
    return found


def _texts(test: Labelled, system: System) -> list[Score]:
    language = "zh" if is_chinese(test.language) else test.language
    return [
        translation.bleu(test.truth, system.answers, language=language),
        translation.chrf(test.truth, system.answers),
    ]


def _rankings(test: Labelled, system: System) -> list[Score]:
    found: list[Score] = [ranking.ndcg_at_k(test.truth, system.answers, k=10)]
    found += [ranking.recall_at_k(test.truth, system.answers, k=k) for k in (1, 5, 10)]
    return [*found, ranking.reciprocal_rank(test.truth, system.answers)]


def _first(score: Any) -> Floats:
    """The values that a mean is taken of."""
    values: Floats = score.statistics[:, 0]
    return values


_BY_KIND: dict[Kind, Callable[[Labelled, System], list[Score]]] = {
    "classes": _classes,
    "multilabel": _sets,
    "number": _numbers,
    "tags": _tags,
    "spans": _spans,
    "texts": _texts,
    "ranking": _rankings,
    "recommending": lambda test, system: list(recommending.scores(system.answers)),
    "sums": lambda test, system: list(sums.scores(test.metrics, system.answers)),
}
