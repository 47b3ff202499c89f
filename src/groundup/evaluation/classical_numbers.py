"""Classical rivals of a model that reads vectors of numbers (the columns of a table, the pixels of an image).

The commonest label, or the mean, says what guessing is worth. Logistic (ridge) regression and a linear support
vector machine draw straight lines; a decision tree asks one question after the other; boosted trees add up
hundreds of small ones, which on tables is hard to beat (Grinsztajn et al. 2022); the nearest neighbours know
nothing but distance. Each has one setting or two, chosen on validation rows, never on the test. Whether features are
standardised, by the rows that a rival learns from, is one of them where it matters.

A rival learns from as many of the training rows as it can in a minute or so, and says from how many; rows
are in random order, so the first of them are a sample.

Axes: E examples, F features, K labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.classical import HELD_BACK, best_setting, commonest, mean_answer
from groundup.evaluation.labelled import System
from groundup.evaluation.metrics.classification import micro, one_hot, set_counts

Vectors = NDArray[np.float32]
Settings = Mapping[str, Any]
Learner = Callable[[Vectors, NDArray[Any], Settings], Any]
"""From vectors, what is right for them and a setting to a model that predicts."""
SECONDS = 180.0
"""Time after which no rival tries another setting."""

BINS = 64
"""Bins of a histogram: a quarter of the usual number costs a third less time and next to no accuracy."""


@dataclass(frozen=True)
class Examples:
    """Vectors, (E,F), and what is right for them: labels, lists of labels, or numbers.

    `truth` may go on where the vectors end: of many rows only the first are made into vectors.
    """

    vectors: Vectors
    truth: Sequence[Any]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def known(self) -> NDArray[Any]:
        """What is right for the vectors, (E,); (E,K) where each label is held or not."""
        return np.asarray(self.truth[: len(self)])

    def part(self, rows: Sequence[int]) -> Examples:
        """Some of them, by number."""
        return Examples(self.vectors[list(rows)], [self.truth[i] for i in rows])


@dataclass(frozen=True)
class Rival:
    """A way to learn: what it is called, what it tries, and how much it can take."""

    name: str
    described: str
    settings: Sequence[Settings]
    """In the order tried; when time is up the best so far is taken."""
    most_cells: int
    """Rows times features times scores that it learns from in about a minute on one core."""
    of_classes: Callable[..., Any]
    of_numbers: Callable[..., Any]
    by_class: bool = False
    """Whether it costs as much again for each further class."""

    def most_rows(self, features: int, classes: int, *, by_label: bool = False) -> int:
        """The most rows that it learns from; `by_label` where each class is learned on its own."""
        models = classes if by_label or (self.by_class and classes > 2) else 1
        return max(200, self.most_cells // max(1, features * models))


def _logistic(**settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    return LogisticRegression(max_iter=300, random_state=0, **settings)


def _ridge(C: float) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=1 / C, random_state=0)


def _machine(**settings: Any) -> Any:
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    # In its dual form the time grows with rows times features, not with the square of either.
    return LinearSVC(random_state=0, max_iter=300, tol=1e-3, dual=True, **settings)


def _machine_of_numbers(**settings: Any) -> Any:
    from sklearn.compose import TransformedTargetRegressor  # type: ignore[import-untyped]
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
    from sklearn.svm import LinearSVR

    # Its margin and its penalty are in the unit of what is predicted.
    machine = LinearSVR(random_state=0, max_iter=300, dual=True, loss="squared_epsilon_insensitive", **settings)
    return TransformedTargetRegressor(machine, transformer=StandardScaler())


def _tree(**settings: Any) -> Any:
    from sklearn.tree import DecisionTreeClassifier  # type: ignore[import-untyped]

    return DecisionTreeClassifier(random_state=0, **settings)


def _tree_of_numbers(**settings: Any) -> Any:
    from sklearn.tree import DecisionTreeRegressor

    return DecisionTreeRegressor(random_state=0, **settings)


def _boosting(**settings: Any) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]

    return HistGradientBoostingClassifier(early_stopping=False, random_state=0, max_bins=BINS, **settings)


def _boosting_of_numbers(**settings: Any) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(early_stopping=False, random_state=0, max_bins=BINS, **settings)


def _neighbours(**settings: Any) -> Any:
    from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]

    return KNeighborsClassifier(**settings)


def _neighbours_of_numbers(**settings: Any) -> Any:
    from sklearn.neighbors import KNeighborsRegressor

    return KNeighborsRegressor(**settings)


def _over(name: str, *values: Any) -> list[Settings]:
    return [{name: value} for value in values]


SCALES = "standardised"
"""Whether features are standardised before. A setting, because pixels, which have one unit, do better as they are."""
STRENGTHS = [{"C": strength, SCALES: scaled} for strength in (0.1, 1.0, 0.01, 10.0) for scaled in (False, True)]
"""Values of C, the inverse regularisation."""
RIVALS = (
    Rival("logistic regression", "logistic regression", STRENGTHS, 12_000_000, _logistic, _ridge),
    Rival("linear SVM", "a linear support vector machine", STRENGTHS, 4_000_000, _machine, _machine_of_numbers),
    Rival("decision tree", "a decision tree", _over("min_samples_leaf", 5, 1, 20, 50), 12_000_000,
          _tree, _tree_of_numbers),
    Rival("gradient boosting", "gradient-boosted trees by histograms",
          [{"learning_rate": rate, "max_iter": trees} for rate, trees in ((0.1, 100), (0.05, 200), (0.1, 30))],
          48_000_000, _boosting, _boosting_of_numbers, by_class=True),
    Rival("k nearest neighbours", "the nearest neighbours by Euclidean distance",
          [{"n_neighbors": near, SCALES: scaled} for near in (5, 1, 15, 50) for scaled in (False, True)],
          16_000_000, _neighbours, _neighbours_of_numbers),
)  # fmt: skip
NAMES_OF_NUMBERS = {"logistic regression": ("ridge regression", "ridge regression with the penalty 1 / C")}
"""What a rival is called, and how it is described, where it predicts numbers."""


def most_rows(features: int, classes: int = 1) -> int:
    """The most training rows that any rival looks at."""
    return max(rival.most_rows(features, classes) for rival in RIVALS)


def classifiers(
    train: Examples, validation: Examples, vectors: Vectors, labels: Sequence[str], *, seconds: float = SECONDS
) -> list[System]:
    """The answers to `vectors` of the commonest label and of every rival, as systems.

    Truth is a label. Training stops trying settings after `seconds` in all. Raises Interrupted.
    """
    if not len(train):
        return []
    systems = [commonest(train.truth, len(vectors), labels)]
    learned, held_out = held_back(train, validation)
    if len(np.unique(learned.known)) < 2:
        return systems

    def quality(model: Any) -> float:
        return float(np.mean(model.predict(held_out.vectors) == held_out.known)) if len(held_out) else 0.0

    for rival, setting, model, rows in _fitted(_of_classes, learned, quality, len(labels), seconds):
        answers, shares, sure = _said(model, vectors, labels)
        meaning = _meaning(rival.described, setting, rows, train)
        details = {**setting, "features": int(learned.vectors.shape[1])}
        systems.append(System(rival.name, answers, shares, sure, meaning=meaning, trained_rows=rows, details=details))
    return systems


def multilabel(
    train: Examples, validation: Examples, vectors: Vectors, labels: Sequence[str], *, seconds: float = SECONDS
) -> list[System]:
    """The answers to `vectors` of every rival, asked about each label on its own, as systems.

    Truth is a list of labels. Training stops trying settings after `seconds` in all. Raises Interrupted.
    """
    learned, held_out = held_back(_marked(train, labels), _marked(validation, labels))
    if len(learned) < 2 or len(labels) < 2:
        return []

    def quality(model: Any) -> float:
        if not len(held_out):
            return 0.0
        return micro(set_counts(held_out.known, model.predict(held_out.vectors)), "f1").value

    def learner(rival: Rival) -> Learner:
        return partial(EachLabel, rival.of_classes)

    systems = []
    for rival, setting, model, rows in _fitted(learner, learned, quality, len(labels), seconds, by_label=True):
        answers = [[labels[k] for k in np.flatnonzero(row).tolist()] for row in model.predict(vectors)]
        shares = model.shares(vectors).tolist() if hasattr(rival.of_classes(), "predict_proba") else None
        meaning = _meaning(f"{rival.described} for each label", setting, rows, train)
        details = {**setting, "features": int(learned.vectors.shape[1])}
        systems.append(System(rival.name, answers, shares, meaning=meaning, trained_rows=rows, details=details))
    return systems


class EachLabel:
    """A model for each label, which says whether it is held; a label that every row holds, or none, needs no model."""

    def __init__(self, make: Callable[..., Any], vectors: Vectors, held_EK: NDArray[Any], setting: Settings) -> None:
        self.models = [
            bool(held_E[0]) if held_E.all() or not held_E.any() else _fit(make, vectors, held_E, setting)
            for held_E in held_EK.T
        ]

    def predict(self, vectors: Vectors) -> NDArray[np.bool_]:
        """Which labels are held, (E,K)."""
        return self._each(vectors, lambda model: model.predict(vectors)).astype(bool)

    def shares(self, vectors: Vectors) -> NDArray[np.float64]:
        """How probable each label is, (E,K)."""
        return self._each(vectors, lambda model: model.predict_proba(vectors)[:, 1])

    def _each(self, vectors: Vectors, ask: Callable[[Any], NDArray[Any]]) -> NDArray[np.float64]:
        columns = [np.full(len(vectors), m) if isinstance(m, bool) else ask(m) for m in self.models]
        return np.stack(columns, 1).astype(np.float64)


def _marked(examples: Examples, labels: Sequence[str]) -> Examples:
    """Examples with one number a label in the place of a list of labels: whether it is held."""
    place = {label: number for number, label in enumerate(labels)}
    held = [[place[label] for label in row if label in place] for row in examples.truth]
    return Examples(examples.vectors, list(one_hot(held, len(labels))))


def regressors(train: Examples, validation: Examples, vectors: Vectors, *, seconds: float = SECONDS) -> list[System]:
    """The answers to `vectors` of the mean and of every rival, as systems. Raises Interrupted."""
    if not len(train):
        return []
    systems = [mean_answer(train.truth, len(vectors))]
    learned, held_out = held_back(train, validation)
    if len(learned) < 2:
        return systems

    def quality(model: Any) -> float:
        if not len(held_out):
            return 0.0
        return -float(np.mean((model.predict(held_out.vectors) - held_out.known) ** 2))

    for rival, setting, model, rows in _fitted(_of_numbers, learned, quality, 1, seconds):
        name, described = NAMES_OF_NUMBERS.get(rival.name, (rival.name, rival.described))
        meaning = _meaning(described, setting, rows, train)
        details = {**setting, "features": int(learned.vectors.shape[1])}
        answers = np.asarray(model.predict(vectors), np.float64).tolist()
        systems.append(System(name, answers, meaning=meaning, trained_rows=rows, details=details))
    return systems


def held_back(train: Examples, validation: Examples) -> tuple[Examples, Examples]:
    """Training and validation rows: every tenth training row where there are no others."""
    if len(validation) or len(train) < 2 * HELD_BACK:
        return train, validation
    rows = range(len(train))
    return train.part([i for i in rows if i % HELD_BACK]), train.part(rows[::HELD_BACK])


def _of_classes(rival: Rival) -> Learner:
    return partial(_fit, rival.of_classes)


def _of_numbers(rival: Rival) -> Learner:
    return partial(_fit, rival.of_numbers)


def _fitted(
    learner: Callable[[Rival], Learner],
    train: Examples,
    quality: Callable[[Any], float],
    classes: int,
    seconds: float,
    *,
    by_label: bool = False,
) -> Iterator[tuple[Rival, Settings, Any, int]]:
    """Each rival, as its learner has it, with its best setting, what it learned, and from how many rows."""
    features = train.vectors.shape[1]
    for rival in RIVALS:
        rows = min(len(train), rival.most_rows(features, classes, by_label=by_label))
        vectors, truth = train.vectors[:rows], train.known[:rows]
        if len(np.unique(truth)) < 2:
            continue
        possible = [setting for setting in rival.settings if setting.get("n_neighbors", 1) <= rows]
        until = time.monotonic() + seconds / len(RIVALS)
        setting, model = best_setting(possible, partial(learner(rival), vectors, truth), quality, until)
        yield rival, setting, model, rows


def _fit(make: Callable[..., Any], vectors: Vectors, truth: NDArray[Any], setting: Settings) -> Any:
    """A model of a setting that has learned; features are standardised by the rows it learns from."""
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
    from sklearn.preprocessing import StandardScaler

    own = {name: value for name, value in setting.items() if name != SCALES}
    model = make(**own)
    return (make_pipeline(StandardScaler(), model) if setting.get(SCALES) else model).fit(vectors, truth)


def _said(
    model: Any, vectors: Vectors, labels: Sequence[str]
) -> tuple[list[str], list[list[float]] | None, list[float] | None]:
    """Answers, and probabilities by label where the model has such, or else how sure it was."""
    if not hasattr(model, "predict_proba"):
        margins = np.asarray(model.decision_function(vectors), np.float64)
        sure = np.abs(margins) if margins.ndim == 1 else margins.max(1)
        return [str(label) for label in model.predict(vectors)], None, sure.tolist()
    place = {label: number for number, label in enumerate(labels)}
    shares = np.zeros((len(vectors), len(labels)))
    shares[:, [place[str(label)] for label in model.classes_]] = model.predict_proba(vectors)
    return [labels[best] for best in shares.argmax(1)], shares.tolist(), None


def _meaning(described: str, setting: Settings, rows: int, train: Examples) -> str:
    features = "standardised features" if setting.get(SCALES) else "the features as they are"
    chosen = ", ".join(f"{name} = {value:g}" for name, value in setting.items() if name != SCALES)
    said = f"{described} on {features}; {chosen} chosen on validation rows"
    every = len(train.truth)
    # A tenth that was set aside for choosing is no cap.
    if rows >= (1 - 1 / HELD_BACK) * every - 1:
        return said
    return f"{said}; learned from {rows:,} of the {every:,} training rows, for more would take minutes"
