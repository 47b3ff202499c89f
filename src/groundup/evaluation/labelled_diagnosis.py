"""What went wrong and how sure the model was: confusions, calibration, risk, outsiders, the worst answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from groundup.evaluation.labelled import Labelled, System, plain
from groundup.evaluation.labelled_scores import confidence_of, grades_of, right_of, strangeness
from groundup.evaluation.metrics import calibration, classification

MISTAKES = 50
MOST_CLASSES = 40
"""A confusion matrix of more classes shows those that are mixed up most."""
MOST_MIXED = 20
CURVE_POINTS = 200
SHOWN_CHARACTERS = 600
SHARES = (0.5, 0.8, 0.9, 1.0)
"""Coverages that a report names the risk at."""


def confusion(test: Labelled, run: System) -> dict[str, Any] | None:
    """How often each class was taken for which; of many classes those that are mixed up most."""
    if test.kind != "classes":
        return None
    names = list(dict.fromkeys([*test.labels, *test.truth, *run.answers]))
    place = {label: number for number, label in enumerate(names)}
    truth, answers = (np.array([place[v] for v in values]) for values in (test.truth, run.answers))
    table = classification.confusion(truth, answers, len(names))
    mixed = table - np.diag(np.diag(table))
    pairs = sorted(
        ((int(mixed[a, b]), names[a], names[b]) for a, b in zip(*np.nonzero(mixed), strict=True)), key=lambda p: -p[0]
    )
    shown = list(range(len(names)))
    if len(names) > MOST_CLASSES:
        most = np.argsort(-(mixed.sum(0) + mixed.sum(1)), kind="stable")[:MOST_MIXED]
        shown = sorted(most.tolist())
    return {
        "labels": [names[k] for k in shown],
        "counts": table[np.ix_(shown, shown)].tolist(),
        "all_labels": len(names),
        "most_mixed": [{"truth": a, "answer": b, "count": count} for count, a, b in pairs[:MOST_MIXED]],
    }


def calibrated(test: Labelled, run: System, validation: Any) -> dict[str, Any] | None:
    """The reliability diagram before and, with validation rows, after temperature scaling."""
    if test.kind != "classes" or run.probabilities is None:
        return None
    shares, right = np.asarray(run.probabilities, np.float64), right_of(test, run)
    assert right is not None, "classes are right or wrong"
    found: dict[str, Any] = {"before": _reliability(shares, right), "temperature": None, "after": None}
    if validation is not None:
        numbers = test.label_numbers(validation[0])
        known = numbers >= 0
        if known.sum() > 1:
            held_out = np.asarray(validation[1], np.float64)[known]
            found["temperature"] = calibration.fit_temperature(numbers[known], held_out)
            found["after"] = _reliability(calibration.tempered(shares, found["temperature"]), right)
    return found


def _reliability(shares: Any, right: Any) -> dict[str, Any]:
    sure = shares.max(1)
    return {
        "error": calibration.calibration_error(sure, right).value,
        "error_equal_mass": calibration.calibration_error(sure, right, mass="equal").value,
        "mean_confidence": float(sure.mean()),
        "accuracy": float(right.mean()),
        "bins": calibration.reliability(sure, right, bins=10),
        "bins_of_equal_width": calibration.reliability(sure, right, mass="width", bins=10),
    }


def risk_coverage(test: Labelled, run: System) -> dict[str, Any] | None:
    """Risk at every coverage, thinned, if the system says how sure it is."""
    sure, right = confidence_of(test, run), right_of(test, run)
    if sure is None or right is None:
        return None
    coverage, risk = calibration.risk_coverage(sure, right)
    chosen = np.unique(np.linspace(0, len(risk) - 1, min(CURVE_POINTS, len(risk))).round().astype(int))
    return {
        "coverage": coverage[chosen].round(5).tolist(),
        "risk": risk[chosen].round(5).tolist(),
        "area": float(risk.mean()),
        "risk_at": {
            f"{share:.0%}": float(risk[max(0, round(share * len(risk)) - 1)]) for share in (0.5, 0.8, 0.9, 1.0)
        },
    }


def detection(test: Labelled, run: System) -> dict[str, Any] | None:
    """How strange insiders and outsiders look, as two histograms, if the test has outsiders."""
    strange = strangeness(test, run) if test.kind == "classes" and test.out_of_scope is not None else None
    if strange is None:
        return None
    outside = np.array([label == test.out_of_scope for label in test.truth])
    bounds = np.linspace(0, 1, 21)
    counts = [np.histogram(strange[part], bounds)[0].tolist() for part in (~outside, outside)]
    return {"bounds": bounds.round(3).tolist(), "inside": counts[0], "outside": counts[1]}


def mistakes(test: Labelled, run: System) -> list[dict[str, Any]]:
    """The wrong answers given with most confidence; where there is none, the worst answers."""
    right, grades = right_of(test, run), grades_of(test, run)
    sure = None if test.kind == "sums" else confidence_of(test, run)
    if right is None and test.kind != "sums":
        pairs = zip(map(plain, run.answers), map(plain, test.truth), strict=True)
        right = np.array([truth in (given, [given]) for given, truth in pairs])
    wrong = np.flatnonzero(~right) if right is not None else np.arange(len(test))
    order = wrong[np.argsort(-sure[wrong] if sure is not None else grades[wrong], kind="stable")][:MISTAKES]
    return [
        {
            "id": test.ids[row],
            "shown": test.shown[row][:SHOWN_CHARACTERS] + ("…" if len(test.shown[row]) > SHOWN_CHARACTERS else ""),
            "truth": plain(test.truth[row]),
            "answer": _as_shown(test, run.answers[row]),
            "confidence": None if sure is None else float(sure[row]),
            "grade": float(grades[row]),
        }
        for row in order.tolist()
    ]


def _as_shown(test: Labelled, answer: Any) -> Any:
    """An answer as plain data; of sums, the scores they come to."""
    if test.kind != "sums":
        return plain(answer)
    return {name: round(metric.of(answer), 4) for name, metric in test.metrics.items() if answer[metric.below]}
