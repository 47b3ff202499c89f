"""Classical rivals of a text classifier or regressor, trained on the same rows: the bar to beat.

The commonest class says what guessing is worth. TF-IDF with logistic regression or a linear support
vector machine is what a careful person tries first (Wang & Manning 2012), and on some sets it wins; a
report that leaves it out hides that. Its one setting is chosen on validation rows, never on the test.

Texts with spaces are counted in words and pairs of words, texts without (Chinese) in runs of one to
four characters.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from groundup.errors import Interrupted
from groundup.evaluation.labelled import System
from groundup.evaluation.metrics.additive import Floats
from groundup.evaluation.metrics.classification import accuracy, micro, one_hot, set_counts
from groundup.progress import interrupt_requested

Input = str | tuple[str, str]
"""A text, or two of which the label tells the relation."""
STRENGTHS = {"logistic regression": (1.0, 10.0, 100.0, 0.1), "linear SVM": (0.1, 1.0, 10.0, 0.01)}
"""Values of C, the inverse regularisation, in the order tried; when time is up the best so far is taken."""
PENALTIES = (1.0, 10.0, 0.1, 100.0)
MAX_CHARACTERS = 20_000_000
"""The most training text that is read."""
MAX_FEATURES = 1_000_000
HELD_BACK = 10
"""Without validation rows every so many-th training row serves as one."""
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff]")
_LETTER = re.compile(r"[^\W\d_]")
_SAMPLE = 500
S = TypeVar("S")


@dataclass(frozen=True)
class Examples:
    """Inputs and what is right for them: labels, lists of labels, or numbers."""

    inputs: Sequence[Input]
    truth: Sequence[Any]

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, rows: Sequence[int]) -> Examples:
        """Some of them, by number."""
        return Examples([self.inputs[i] for i in rows], [self.truth[i] for i in rows])


def lacks_spaces(texts: Sequence[Input]) -> bool:
    """Whether texts are mostly in a script without spaces between words, such as Chinese."""
    joined = "".join(_flat(text) for text in texts[:_SAMPLE])
    wide, letters = len(_WIDE.findall(joined)), len(_LETTER.findall(joined))
    return wide > 0.3 * max(1, letters)


def held_back(train: Examples, validation: Examples) -> tuple[Examples, Examples]:
    """Training rows within the limit, and validation rows: every tenth training row where there are none."""
    sizes = np.cumsum([len(_flat(text)) for text in train.inputs])
    train = (
        train.part(range(max(1, int(np.searchsorted(sizes, MAX_CHARACTERS, side="right"))))) if len(train) else train
    )
    if len(validation) or len(train) < 2 * HELD_BACK:
        return train, validation
    rows = range(len(train))
    return train.part([i for i in rows if i % HELD_BACK]), train.part(rows[::HELD_BACK])


def commonest(truth: Sequence[Any], count: int, labels: Sequence[str]) -> System:
    """The rival that gives the commonest label every time, with the shares of the labels as belief."""
    counts = Counter(truth)
    best = max(counts, key=lambda label: (counts[label], str(label)))
    shares = [counts[label] / len(truth) for label in labels]
    share = f"{counts[best] / len(truth):.0%}"
    meaning = f"gives {best!r}, the label of {share} of the training rows, every time"
    return System("the commonest label", [best] * count, [shares] * count, meaning=meaning, trained_rows=len(truth))


def mean_answer(truth: Sequence[float], count: int) -> System:
    """The rival that gives the mean of the training rows every time."""
    middle = float(np.mean(truth))
    meaning = f"gives {middle:.3g}, the mean of the training rows, every time"
    return System("the mean", [middle] * count, meaning=meaning, trained_rows=len(truth))


def classifiers(
    train: Examples, validation: Examples, inputs: Sequence[Input], labels: Sequence[str], *, seconds: float = 120.0
) -> list[System]:
    """The commonest label, TF-IDF with logistic regression, and TF-IDF with a linear SVM, as systems.

    Truth is a label, or a list of labels for several at once. Training stops trying settings after
    `seconds` in all. Raises Interrupted.
    """
    several = isinstance(next(iter(train.truth), ""), list | tuple)
    everything = train.truth
    train, validation = held_back(train, validation)
    if len(train) < 2 or len({str(label) for label in train.truth}) < 2:
        return [] if several or not len(train) else [commonest(train.truth, len(inputs), labels)]
    features, matrices = _features(train.inputs, validation.inputs, inputs)
    found = [] if several else [commonest(everything, len(inputs), labels)]
    for name, learner in (("logistic regression", _logistic), ("linear SVM", _support_vectors)):
        sets = [example if several else [example] for example in train.truth]
        targets = one_hot([[labels.index(label) for label in row] for row in sets], len(labels))
        clock = time.monotonic() + seconds / 2

        def fit(strength: float, learner: Any = learner, targets: Any = targets) -> list[Any]:
            return _one_against_rest(learner, strength, matrices[0], targets, several)

        def quality(models: list[Any]) -> float:
            return _quality(_decide(models, matrices[1], several), validation.truth, labels, several)

        strength, models = best_setting(STRENGTHS[name], fit, quality, clock)
        scores = _decide(models, matrices[2], several)
        found.append(_system(name, features, strength, scores, labels, several, len(train)))
    return found


def _system(
    name: str, features: str, strength: float, scores: Floats, labels: Sequence[str], several: bool, rows: int
) -> System:
    logistic = name == "logistic regression"
    answers: list[Any] = [labels[int(best)] for best in scores.argmax(1)]
    if several:
        answers = [[labels[k] for k in np.flatnonzero(row > 0).tolist()] for row in scores]
    probabilities = None
    if logistic:
        shares = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
        probabilities = (shares if several else shares / shares.sum(1, keepdims=True)).tolist()
    meaning = f"{features} weighted by TF-IDF, then {name}; C = {strength:g} chosen on validation rows"
    details = {"features": features, "C": strength}
    sure = None if several or logistic else scores.max(1).tolist()
    name = f"TF-IDF + {name}"
    return System(name, answers, probabilities, sure, meaning=meaning, trained_rows=rows, details=details)


def regressors(
    train: Examples, validation: Examples, inputs: Sequence[Input], *, seconds: float = 60.0
) -> list[System]:
    """The mean, and TF-IDF with ridge regression, as systems. Raises Interrupted."""
    from sklearn.linear_model import Ridge  # type: ignore[import-untyped]

    everything = train.truth
    train, validation = held_back(train, validation)
    if len(train) < 2:
        return []
    features, matrices = _features(train.inputs, validation.inputs, inputs)
    targets = np.asarray(train.truth, np.float64)
    middle = targets.mean()

    def fit(penalty: float) -> Any:
        return Ridge(alpha=penalty, solver="sparse_cg", fit_intercept=False).fit(matrices[0], targets - middle)

    def quality(model: Any) -> float:
        if not len(validation):
            return 0.0
        return -float(np.mean((model.predict(matrices[1]) + middle - np.asarray(validation.truth)) ** 2))

    penalty, model = best_setting(PENALTIES, fit, quality, time.monotonic() + seconds)
    answers = (model.predict(matrices[2]) + middle).tolist()
    meaning = f"{features} weighted by TF-IDF, then ridge regression; penalty {penalty:g} chosen on validation rows"
    ridge = System("TF-IDF + ridge", answers, meaning=meaning, trained_rows=len(train), details={"penalty": penalty})
    return [mean_answer(everything, len(inputs)), ridge]


def _features(*splits: Sequence[Input]) -> tuple[str, list[Any]]:
    """What is counted, and a sparse matrix for each split; the first split alone decides the vocabulary."""
    from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    plain = lacks_spaces(splits[0])
    how: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 4)}
    if not plain:
        how = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\w+|[^\w\s]"}
    weigh = TfidfVectorizer(sublinear_tf=True, max_features=MAX_FEATURES, dtype=np.float64, **how)
    weigh.fit([_flat(text) for text in splits[0]])
    matrices = []
    for split in splits:
        if not len(split):
            matrices.append(csr_matrix((0, 0)))
        elif isinstance(split[0], tuple):
            left, right = (weigh.transform([pair[side] for pair in split]) for side in (0, 1))
            matrices.append(hstack([left, right, left.minimum(right)]).tocsr())
        else:
            matrices.append(weigh.transform(list(split)))
    return ("runs of 1 to 4 characters" if plain else "words and pairs of words"), matrices


def _flat(text: Input) -> str:
    return text if isinstance(text, str) else "\n".join(text)


def best_setting(
    settings: Sequence[S], fit: Callable[[S], Any], quality: Callable[[Any], float], until: float
) -> tuple[S, Any]:
    """The setting with the best validation score, and what was fitted with it; the first of equally good ones.

    No other is tried when the time `until` (`time.monotonic`) would be over before it is fitted. Raises Interrupted.
    """
    best: tuple[float, S, Any] | None = None
    for setting in settings:
        if interrupt_requested():
            raise Interrupted("stopped while fitting a classical rival", fix="run again: evaluation starts afresh")
        started = time.monotonic()
        with warnings.catch_warnings():
            # Not having converged to the last digit is no matter for a baseline.
            warnings.simplefilter("ignore")
            fitted = fit(setting)
        score = quality(fitted)
        if best is None or score > best[0]:
            best = (score, setting, fitted)
        if time.monotonic() + (time.monotonic() - started) > until:
            break
    assert best is not None, "there is at least one setting"
    return best[1], best[2]


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, solver="liblinear", random_state=0, max_iter=200)


def _support_vectors(strength: float) -> Any:
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    return LinearSVC(C=strength, random_state=0, max_iter=500)


def _one_against_rest(learner: Any, strength: float, matrix: Any, targets: Any, several: bool) -> list[Any]:
    """One yes-or-no model a label (a single one for two labels); None where a label is always or never there."""
    columns = range(targets.shape[1]) if several or targets.shape[1] != 2 else [1]
    made = []
    for column in columns:
        wanted = targets[:, column]
        constant = wanted.all() or not wanted.any()
        made.append(float(wanted[0]) if constant else learner(strength).fit(matrix, wanted))
    return made


def _decide(models: list[Any], matrix: Any, several: bool) -> Floats:
    """How much each model says yes, (examples, labels); above 0 is yes."""
    count = matrix.shape[0]
    columns = [
        np.full(count, 30.0 if model else -30.0) if isinstance(model, float) else model.decision_function(matrix)
        for model in models
    ]
    if len(columns) == 1 and not several:
        columns = [-columns[0], columns[0]]
    return np.stack(columns, 1)


def _quality(scores: Floats, truth: Sequence[Any], labels: Sequence[str], several: bool) -> float:
    """Accuracy, or micro F1 for several labels; 0 without validation rows, so that the first setting is kept."""
    if not len(truth):
        return 0.0
    place = {label: number for number, label in enumerate(labels)}
    if not several:
        wanted = np.array([place.get(label, -1) for label in truth])
        return accuracy(wanted, scores.argmax(1)).value
    wanted = one_hot([[place[label] for label in row if label in place] for row in truth], len(labels))
    return micro(set_counts(wanted, scores > 0), "f1").value
