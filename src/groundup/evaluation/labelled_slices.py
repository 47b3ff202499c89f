"""Where a system is good and where it is not: its score by label, by length and by any column.

A slice of few examples says little, so each stands with its count and interval, and values with fewer
than a handful of examples are put together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from groundup.evaluation.classical import lacks_spaces
from groundup.evaluation.intervals import Interval
from groundup.evaluation.labelled import Labelled, System
from groundup.evaluation.labelled_scores import Scores, tag_counts
from groundup.evaluation.metrics import classification
from groundup.evaluation.metrics.additive import Floats
from groundup.evaluation.resampling import Draws

FEW = 10
"""Values with fewer examples are put together."""
MOST_VALUES = 12
BANDS = 4
"""Numbers of many values are cut into as many bands of about equal size."""
OTHERS = "all others"
COMMONEST_LABELS = 200


def by_label(test: Labelled, runs: Sequence[System], draws: Draws) -> list[dict[str, Any]]:
    """Precision, recall and F1 (with its interval) of every label or kind of entity; the mean over runs.

    The most frequent first; empty for kinds without labels.
    """
    counts = [_counts(test, run) for run in runs]
    if counts[0] is None:
        return []
    names = counts[0][1]
    tables = [found[0] for found in counts if found is not None and found[1] == names]
    edges = np.cumsum([table.shape[1] for table in tables])[:-1]

    def finish(sums: Floats) -> Floats:
        parts = np.split(sums, edges, axis=-1)
        return np.asarray(np.mean([classification.per_class(part, "f1") for part in parts], axis=0))

    together = np.concatenate(tables, axis=1)
    intervals = draws.table(together, finish)
    sums = [table.sum(0) for table in tables]
    precision, recall = (
        np.mean([classification.per_class(s, what) for s in sums], axis=0) for what in ("precision", "recall")
    )
    third = len(names)
    support, answered = sums[0][2 * third :], np.mean([s[third : 2 * third] for s in sums], axis=0)
    rows = [
        {
            "label": names[k],
            "count": int(support[k]),
            "answered": float(answered[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": told(intervals[k]),
        }
        for k in np.argsort(-support, kind="stable").tolist()
        if support[k] or answered[k]
    ]
    return rows[:COMMONEST_LABELS]


def _counts(test: Labelled, run: System) -> tuple[Floats, list[str]] | None:
    if test.kind == "tags":
        return tag_counts(test, run)
    if test.kind not in ("classes", "multilabel"):
        return None
    names = list(dict.fromkeys([*test.labels, *([test.out_of_scope] if test.out_of_scope else [])]))
    place = {label: number for number, label in enumerate(names)}
    if test.kind == "classes":
        truth, answers = (np.array([place.get(v, -1) for v in values]) for values in (test.truth, run.answers))
        return classification.counts(truth, answers, len(names)), names
    sets = [[[place[v] for v in row] for row in values] for values in (test.truth, run.answers)]
    return classification.set_counts(*(classification.one_hot(rows, len(names)) for rows in sets)), names


def by_column(test: Labelled, own: Scores, main: str, draws: Draws) -> list[dict[str, Any]]:
    """The main score of the examples of each value of each column, and by length of the input."""
    columns: dict[str, Sequence[Any]] = {}
    if "length" not in test.slices and len(test) >= 2 * FEW:
        columns["length"] = lengths(test.shown)
    columns |= test.slices
    tables = []
    for name, values in columns.items():
        groups = grouped(values)
        if len(groups) < 2:
            continue
        rows = []
        for value, members in groups:
            score = own[main].take(members)
            rows.append({"value": value, "count": len(members), main: told(draws.of(members).interval(score))})
        unit = _unit(test) if name == "length" and "length" not in test.slices else ""
        tables.append({"column": name, "unit": unit, "rows": rows})
    return tables


def told(interval: Interval) -> dict[str, Any]:
    """An interval as plain data, without limits where all draws gave the same.

    If every one of nine examples is right, so is every draw of them, and the bootstrap knows no doubt; but
    nine examples leave plenty.
    """
    found = interval.as_dict()
    return found | {"low": None, "high": None} if found["low"] == found["high"] else found


def lengths(texts: Sequence[str]) -> list[int]:
    """The lengths of texts in words, or in characters where words are not spaced."""
    if lacks_spaces(texts):
        return [len("".join(text.split())) for text in texts]
    return [len(text.split()) for text in texts]


def _unit(test: Labelled) -> str:
    return "characters" if lacks_spaces(test.shown) else "words"


def grouped(values: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    """The values of a column with the numbers of their examples: bands of numbers, or the commonest values."""
    known = [value for value in values if value is not None]
    numbers = known and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    if numbers and len(set(known)) > MOST_VALUES // 2:
        return _bands(values)
    counts = Counter(str(value) for value in known)
    shown = [value for value, count in counts.most_common(MOST_VALUES) if count >= FEW]
    names = np.array([str(v) if v is not None and str(v) in shown else OTHERS for v in values], dtype=object)
    order = [*shown, OTHERS]
    groups = [(name, np.flatnonzero(names == name)) for name in order]
    return [(name, members) for name, members in groups if len(members)]


def _bands(values: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    known = numbers[~np.isnan(numbers)]
    inner = np.unique(np.quantile(known, np.arange(1, BANDS) / BANDS, method="inverted_cdf"))
    place = np.searchsorted(inner, numbers, side="left")
    groups = []
    for band in range(len(inner) + 1):
        members = np.flatnonzero((place == band) & ~np.isnan(numbers))
        if len(members):
            groups.append((_span(numbers[members].min(), numbers[members].max()), members))
    unknown = np.flatnonzero(np.isnan(numbers))
    return [*groups, ("unknown", unknown)] if len(unknown) else groups


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
