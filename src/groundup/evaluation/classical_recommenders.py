"""Classical rivals of a recommender, learned from the same training rows: the bar that many a paper did not clear.

Popularity recommends what most users chose. Item-kNN recommends what is most like the user's history, items being
alike where the same users chose them; a well-tuned one beats most of the neural recommenders of its time (Ferrari
Dacrema, Cremonesi & Jannach 2019), so a report that leaves it out says nothing. Of clicks, the rivals are each
item's own rate and logistic regression on one-hot columns. What has a setting has it chosen on validation rows,
never on the test.

Counts are of training rows alone: nothing from after the split is in them.

Axes: U users, I items, Q targets, E examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.errors import Interrupted
from groundup.evaluation.labelled import System
from groundup.evaluation.metrics import recommending
from groundup.evaluation.metrics.classification import log_loss
from groundup.progress import interrupt_requested

Row = Mapping[str, Any]
Scores = NDArray[np.float32]
Scorer = Callable[[Sequence[Sequence[int]]], Scores]
"""From histories, as numbers of items, to the scores of all items, (Q,I)."""
NEIGHBOURS = (10, 20, 50, 100, 200, 500, None)
"""How many items each item is compared with, in the order tried; None for all."""
SHRINKAGES = (0.0, 10.0, 50.0, 200.0)
"""What is added below the cosine, so that a few common users are no proof of likeness."""
BLOCK = 512
"""Histories scored at once."""
RECOMMENDED = 20
STRENGTHS = (1.0, 0.1, 10.0, 0.01)
"""Values of C, the inverse regularisation of logistic regression, in the order tried."""
PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""How many events of the mean rate are added to those of each item."""


@dataclass(frozen=True)
class Histories:
    """Users' histories as numbers of items, with what came next; -1 for an item that no training row holds."""

    items: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]

    @classmethod
    def of(cls, rows: Sequence[Row], numbers: Mapping[str, int], items: str, targets: str) -> Histories:
        """The histories of rows, by the names of their columns."""
        found = [
            [[numbers.get(str(one), -1) for one in row.get(name) or ()] for row in rows] for name in (items, targets)
        ]
        return cls(*found)

    def asked(self) -> Iterator[tuple[int, list[int], int]]:
        """Each target: its user, all that came before it, and itself."""
        for user, (items, targets) in enumerate(zip(self.items, self.targets, strict=True)):
            for place, target in enumerate(targets):
                yield user, [*items, *targets[:place]], target


def of_histories(task: Any, train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row]) -> list[System]:
    """The rivals of a task of users' histories, on its rows and in its catalogue."""
    config = task.config
    columns = {"items": config.items, "targets": config.targets}
    options: dict[str, Any] = {"catalogue": task.catalogue, "leave_out_seen": config.seen == "leave_out"}
    return recommenders(train, validation, test, **columns, **options)


def of_events(task: Any, train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row]) -> list[System]:
    """The rivals of a task of events, on what it makes of its rows."""
    learned, held_back, asked = (
        Events.of([task.entries(row) for row in rows], [task.truth(row) == task.labels[1] for row in rows])
        for rows in (train, validation, test)
    )
    popular = (task.config.columns.index("item"), "item") if "item" in task.config.columns else None
    return clickers(learned, held_back, asked, n_entries=task.size, labels=task.labels, popular=popular)


def recommenders(
    train: Sequence[Row],
    validation: Sequence[Row],
    test: Sequence[Row],
    *,
    catalogue: Sequence[str],
    items: str = "items",
    targets: str = "targets",
    leave_out_seen: bool = True,
) -> list[System]:
    """Popularity and item-kNN on the test rows, each target ranked among the whole catalogue. Raises Interrupted."""
    numbers = {name: number for number, name in enumerate(catalogue)}
    learned, held_out, asked = (Histories.of(rows, numbers, items, targets) for rows in (train, validation, test))
    users = _matrix(learned.items, len(catalogue))
    options: dict[str, Any] = {"catalogue": catalogue, "leave_out_seen": leave_out_seen}
    counts = np.asarray(users.sum(0), np.float32).ravel()
    meaning = f"recommends to everybody what most of {len(train):,} users chose"
    popular = _system("popularity", meaning, lambda histories: _same(counts, histories), asked, options)
    found = [_with(popular, trained_rows=len(train))]
    if users.nnz:
        score, details = _neighbours(users, held_out, options)
        most = f"its {details['neighbours']} nearest" if details["neighbours"] else "all"
        meaning = (
            f"recommends what is most like the history: cosine over common users, shrinkage {details['shrinkage']:g}, "
            f"each item with {most}; both chosen on validation rows"
        )
        nearest = _system("item-kNN", meaning, score, asked, options)
        found.append(_with(nearest, trained_rows=len(train), details=details))
    return found


def _with(system: System, **more: Any) -> System:
    return System(**{name: getattr(system, name) for name in ("name", "answers", "meaning")} | more)


def _matrix(histories: Sequence[Sequence[int]], n_items: int) -> Any:
    """Who chose what, (U,I) sparse, of ones."""
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    chosen = [np.unique([item for item in items if item >= 0]).astype(np.int64) for items in histories]
    starts = np.concatenate(([0], np.cumsum([len(items) for items in chosen]))).astype(np.int64)
    flat = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    return csr_matrix((np.ones(len(flat), np.float32), flat, starts), shape=(len(histories), n_items))


def _same(counts_I: Scores, histories: Sequence[Sequence[int]]) -> Scores:
    return np.tile(counts_I, (len(histories), 1))


def _neighbours(users: Any, held_out: Histories, options: Mapping[str, Any]) -> tuple[Scorer, dict[str, Any]]:
    """Scores by the likeness that foresees validation rows best, and what was chosen."""
    together = (users.T @ users).tocsr()
    tried: dict[str, float] = {}
    best: tuple[float, Scorer, dict[str, Any]] | None = None
    has_rows = any(len(targets) for targets in held_out.targets)
    settings = itertools.product(NEIGHBOURS, SHRINKAGES) if has_rows else [(100, 10.0)]
    likeness: dict[float, Any] = {shrinkage: _cosine(together, shrinkage) for shrinkage in SHRINKAGES}
    for neighbours, shrinkage in settings:
        if interrupt_requested():
            raise Interrupted("stopped while fitting item-kNN", fix="run again: evaluation starts afresh")
        score = _scorer(_nearest(likeness[shrinkage], neighbours), users.shape[1])
        quality = 0.0
        if has_rows:
            quality = recommending.scores(_answers(score, held_out, **options))[0].value
            tried[f"k={neighbours or 'all'}, shrinkage={shrinkage:g}"] = quality
        if best is None or quality > best[0]:
            best = (quality, score, {"neighbours": neighbours, "shrinkage": shrinkage})
    assert best is not None, "there is at least one setting"
    return best[1], best[2] | {"validation_ndcg_at_10": tried}


def _cosine(together: Any, shrinkage: float) -> Any:
    """How alike items are, (I,I) sparse: common users over the root of both items' users, and the shrinkage."""
    counts_I = together.diagonal()
    alike = together.tocoo(copy=True)
    below = np.sqrt(counts_I[alike.row] * counts_I[alike.col]) + shrinkage
    alike.data = np.where(alike.row == alike.col, 0, alike.data / below).astype(np.float32)
    alike = alike.tocsr()
    alike.eliminate_zeros()
    return alike


def _nearest(alike: Any, neighbours: int | None) -> Any:
    """The likeness of each item to its nearest ones alone; of equals those that come first in the catalogue."""
    if neighbours is None:
        return alike
    kept = alike.copy()
    for start, stop in itertools.pairwise(kept.indptr.tolist()):
        if stop - start > neighbours:
            order = np.argsort(-kept.data[start:stop], kind="stable")
            kept.data[start + order[neighbours:]] = 0
    kept.eliminate_zeros()
    return kept


def _scorer(alike: Any, n_items: int) -> Scorer:
    """Scores of items by the sum of their likeness to those of a history."""
    # Row j holds what is like item j, pruned to its nearest: an item is judged by its own neighbours, not by theirs.
    return lambda histories: np.asarray((_matrix(histories, n_items) @ alike.T).todense(), np.float32)


def _system(name: str, meaning: str, score: Scorer, asked: Histories, options: Mapping[str, Any]) -> System:
    return System(name, _answers(score, asked, **options), meaning=meaning)


def _answers(
    score: Scorer, asked: Histories, *, catalogue: Sequence[str], leave_out_seen: bool
) -> list[dict[str, Any]]:
    """The places of every user's targets and what was recommended before each, as a model's answers are."""
    found: list[dict[str, Any]] = [{"places": [], "best": [], "items": len(catalogue)} for _ in asked.items]
    every = list(asked.asked())
    for start in range(0, len(every), BLOCK):
        users, histories, targets = zip(*every[start : start + BLOCK], strict=True)
        scores_QI = score(histories)
        if leave_out_seen:
            for row, history in enumerate(histories):
                scores_QI[row, [item for item in history if item >= 0]] = -np.inf
        above_Q, tied_Q = recommending.places(scores_QI, np.array(targets, np.int64))
        best_QK = recommending.best(scores_QI, RECOMMENDED)
        for row, user in enumerate(users):
            found[user]["places"].append([int(above_Q[row]), int(tied_Q[row])])
            shown = [item for item in best_QK[row].tolist() if np.isfinite(scores_QI[row, item])]
            found[user]["best"].append([catalogue[item] for item in shown])
    return found


@dataclass(frozen=True)
class Events:
    """Rows as a few entries of a large table, each with its worth, and whether there was a click."""

    entries: NDArray[np.int64]
    """(E,F)"""
    values: NDArray[np.float32]
    """(E,F)"""
    clicked: NDArray[np.int64]
    """(E,) 0 or 1; not looked at in a test."""

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], Sequence[float]]], clicked: Sequence[bool]) -> Events:
        """The events of entries and values, one pair a row."""
        entries = np.array([row[0] for row in rows], np.int64)
        return cls(entries, np.array([row[1] for row in rows], np.float32), np.array(clicked, np.int64))

    def __len__(self) -> int:
        return len(self.clicked)


def clickers(
    train: Events,
    validation: Events,
    test: Events,
    *,
    n_entries: int,
    labels: Sequence[str],
    popular: tuple[int, str] | None = None,
) -> list[System]:
    """The rate of all training rows, that of each item, and logistic regression on one-hot columns. Raises Interrupted.

    `popular` is the place of the item among the columns, and its name. `labels` are the names of no click and click.
    """
    if not len(train) or len(set(train.clicked.tolist())) < 2:
        return []
    rate = float(train.clicked.mean())
    more: dict[str, Any] = {"labels": labels, "rows": len(train)}
    meaning = f"believes in a click as often as there is one in the training rows, {rate:.0%}"
    found = [_clicker("the rate of all", meaning, np.full(len(test), rate), **more)]
    if popular is not None:
        prior, shares = _rates(train, validation, test, popular[0])
        meaning = f"each {popular[1]}'s own rate in the training rows, {prior:g} events of the mean rate added"
        found.append(_clicker("popularity", meaning, shares, details={"prior": prior}, **more))
    strength, shares = _logistic(train, validation, test, n_entries)
    meaning = f"a weight for each value of each column; C = {strength:g} chosen on validation rows"
    found.append(_clicker("logistic regression", meaning, shares, details={"C": strength}, **more))
    return found


def _clicker(
    name: str, meaning: str, shares_E: Any, *, labels: Sequence[str], rows: int, details: Any = None
) -> System:
    shares = np.stack([1 - shares_E, shares_E], 1)
    answers = [labels[int(best)] for best in shares.argmax(1)]
    return System(name, answers, shares.tolist(), meaning=meaning, trained_rows=rows, details=details or {})


def _quality(shares_E: Any, events: Events) -> float:
    """How well clicks are foreseen, higher better; 0 without rows, so that the first setting is kept."""
    if not len(events):
        return 0.0
    return -log_loss(events.clicked, np.stack([1 - shares_E, shares_E], 1)).value


def _rates(train: Events, validation: Events, test: Events, column: int) -> tuple[float, NDArray[np.float64]]:
    """Each test item's rate, with the prior that suits validation rows."""
    size = 1 + max(int(events.entries[:, column].max(initial=0)) for events in (train, validation, test))
    shown = np.bincount(train.entries[:, column], minlength=size)
    clicked = np.bincount(train.entries[:, column], train.clicked, minlength=size)

    def rates(prior: float) -> NDArray[np.float64]:
        return np.asarray((clicked + prior * train.clicked.mean()) / (shown + prior))

    prior = max(PRIORS, key=lambda one: _quality(rates(one)[validation.entries[:, column]], validation))
    return prior, rates(prior)[test.entries[:, column]]


def _logistic(train: Events, validation: Events, test: Events, n_entries: int) -> tuple[float, NDArray[np.float64]]:
    """The chance of a click by logistic regression, with the strength that suits validation rows."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    matrix = _one_hot(train, n_entries)
    best: tuple[float, float, Any] | None = None
    for strength in STRENGTHS if len(validation) else STRENGTHS[:1]:
        if interrupt_requested():
            raise Interrupted("stopped while fitting a classical rival", fix="run again: evaluation starts afresh")
        model = LogisticRegression(C=strength, max_iter=500).fit(matrix, train.clicked)
        quality = _quality(_chance(model, validation, n_entries), validation)
        if best is None or quality > best[0]:
            best = (quality, strength, model)
    assert best is not None, "there is at least one strength"
    return best[1], _chance(best[2], test, n_entries)


def _one_hot(events: Events, n_entries: int) -> Any:
    """(E, entries) sparse: what each entry is worth; an entry that stands in several columns adds up."""
    from scipy.sparse import csr_matrix

    starts = np.arange(len(events) + 1) * events.entries.shape[1]
    return csr_matrix((events.values.ravel(), events.entries.ravel(), starts), shape=(len(events), n_entries))


def _chance(model: Any, events: Events, n_entries: int) -> NDArray[np.float64]:
    if not len(events):
        return np.empty(0)
    return np.asarray(model.predict_proba(_one_hot(events, n_entries))[:, 1])
