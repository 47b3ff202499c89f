"""Say which class a row of named columns belongs to, or predict a number from it.

Numbers are standardised, categories one-hot, missing values told apart (`data/tables.py`); means, deviations,
categories and labels are those of the training rows and travel with the model. A number to be predicted is
standardised too, so that the loss does not depend on its unit; answers and scores are in the unit of its column.

Batch: `features`, (E,F) float32, and `label`: (E,) int64 with -100 for rows that train nothing, or (E,) float32 with
NaN likewise.

Axes: E examples, F features, K scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from rich.markup import escape

from groundup.config import dump
from groundup.data.packing import Columns, Row
from groundup.data.sources import OWN_COLUMNS
from groundup.data.tables import Moments, Reading, Survey, Table, Vectoriser, cell_of, no_number
from groundup.errors import DataError
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks import _classes
from groundup.tasks._classes import Classes, ClassSection
from groundup.tasks._contract import Answer

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.data.vectors import Vectors
    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
    "mean_absolute_error": Ratio("distance", "labels"),
}
"""What is watched while training; accuracy of classes, the error (in the column's unit) of numbers."""
SHOWN_FEATURES = 12
"""Features of a row that plan shows."""


class Config(ClassSection):
    """The class of a row of a table, or a number."""

    kind: Literal["one", "number"] = "one"
    """`one` of the classes, or a `number` to be predicted."""
    numbers: tuple[str, ...] | None = None
    """Columns of numbers; unless given, every kept column whose cells are all numbers."""
    categories: tuple[str, ...] | None = None
    """Columns whose values are one of a few; unless given, every kept column of at most 50 different texts."""
    leave_out: tuple[str, ...] = ()
    """Columns that are carried along but not read."""
    missing: Literal["mean", "refuse"] = "mean"
    """What becomes of a number that is missing: the mean of the training rows, with a feature that says so, or an
    error. A missing category is a value of its own."""
    blanks: tuple[str, ...] = Reading.model_fields["blanks"].default
    """How a missing value is written, in small letters."""
    table: Table | None = None
    """Means, deviations and categories; they follow from the training rows."""
    label_mean: float | None = None
    """The mean of the number to be predicted; follows from the training rows."""
    label_deviation: float | None = None
    """Its standard deviation; follows from the training rows."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = sorted({*(self.numbers or ())} & {*(self.categories or ())})
        if twice:
            raise ValueError(f"{twice[0]!r} is among `numbers` and among `categories`")
        if self.label in (*(self.numbers or ()), *(self.categories or ())):
            raise ValueError(f"{self.label!r} is the label: a model that reads it has nothing to predict")
        of_classes = (self.labels, self.class_weights, self.label_smoothing, self.balance, self.one_score)
        if self.kind == "number" and (any(of_classes) or self.loss not in (None, "squared_error")):
            raise ValueError("a number has no classes: its loss is the squared error, and nothing else of classes fits")
        return self

    @property
    def reading(self) -> Reading:
        """How cells are read."""
        return Reading(missing=self.missing, blanks=self.blanks)


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: labels, means, deviations and categories.

    Raises DataError, naming row and column, for cells that do not fit their column, labels that do not fit the
    kind, and rows that all have one label.
    """
    left_out = {*OWN_COLUMNS, config.label, *config.leave_out}
    survey = Survey(config.reading, numbers=config.numbers, categories=config.categories, left_out=left_out)
    counts: dict[str, int] = {}
    moments = Moments()
    for example in examples:
        survey.add(example)
        if config.kind == "one":
            _classes.count(config, counts, example)
        elif (value := _wanted(config, example)) is not None:
            moments.add(value)
    found = config.model_copy(update={"table": config.table or survey.table()})
    if config.kind == "one":
        return _classes.settled(found, counts)
    mean, deviation = moments.settled()
    if not moments.count:
        raise DataError(f"no number at all in the column {config.label!r}", fix="name the column: task.label")
    return found.model_copy(update={"label_mean": mean, "label_deviation": deviation})


def _wanted(config: Config, example: Mapping[str, Any]) -> float | None:
    """The number to be predicted; None where it is missing. Raises DataError for a cell that is none."""
    cell = cell_of(example, config.label)
    if config.reading.is_missing(cell):
        return None
    value = config.reading.number(cell)
    if value is None:
        raise no_number(cell, config.label, example)
    return value


class Task:
    """Rows of a table as vectors. Can be sent to other processes."""

    head = "features"

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None, context: int = 1) -> None:
        """`config` is settled. `tokenizer` and `context` are of no account: rows hold no tokens."""
        assert config.table is not None, "a section is settled before it becomes a task"
        self.config, self.context = config, context
        self.tokenizer: Any = tokenizer
        self.kind = config.kind
        self.vector = Vectoriser(config.table, config.reading)
        """An example as (F,) float32: what the network reads, and classical rivals do."""
        self.classes = Classes(config)
        self.labels = self.classes.labels
        self.outputs = 1 if self.kind == "number" else self.classes.outputs
        self.problem = "regression" if self.kind == "number" else "single_label_classification"
        self.mean, self.deviation = config.label_mean or 0.0, config.label_deviation or 1.0

    @property
    def known(self) -> dict[str, int]:
        """The sizes of a model that follow from the columns."""
        return {"n_features": len(self.vector.names)}

    @property
    def metrics(self) -> dict[str, Ratio]:
        """Those of `METRICS` that apply."""
        other = "accuracy" if self.kind == "number" else "mean_absolute_error"
        return {name: metric for name, metric in METRICS.items() if name != other}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on: the key of encoded shards."""
        c = self.config
        read = {"table": dump(self.vector.table), "missing": c.missing, "blanks": list(c.blanks)}
        target = {"label": c.label, "kind": c.kind, "labels": self.labels, "unit": [self.mean, self.deviation]}
        return {"task": c.name, "version": VERSION, **read, **target}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        table = self.vector.table
        return {"labels": self.labels, "numbers": list(table.means), "categories": list(table.categories)}

    def encode(self, example: Mapping[str, Any]) -> dict[str, NDArray[np.float32] | list[int] | list[float]]:
        """`features` and `label` of an example, which may lack its label.

        Raises DataError, naming row and column, for a cell that cannot be read and for an unknown label.
        """
        return {"features": self.vector(example), "label": [self._target(example)]}

    def _target(self, example: Mapping[str, Any]) -> int | float:
        if self.kind == "one":
            return self.classes.number(example)
        value = _wanted(self.config, example) if self.config.label in example else None
        return math.nan if value is None else (value - self.mean) / self.deviation

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Vectors:
        """The examples of a split, one row each; they are the same in every epoch."""
        from groundup.data.vectors import Vectors

        shapes = {"features": (len(self.vector.names),)}
        return Vectors(shards, shapes=shapes, values=("label",), labels="label", tensors=_tensors)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        return _tensors({key: np.stack([row[key] for row in rows]) for key in rows[0]})

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over labelled examples, and their number. Of numbers: in squared standard deviations."""
        from groundup.nn import losses

        logits, label = outputs.logits.float(), batch["label"]
        if self.kind == "number":
            return {"loss": losses.squared_error(logits[:, 0], label)}
        return {"loss": self.classes.loss(logits, label)}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels of the loss, from a batch alone."""
        label = batch["label"]
        return {"loss": int(label.isfinite().sum())} if self.kind == "number" else self.classes.counts(label)

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide, (E,) each. No gradient."""
        import torch

        logits, label = outputs.logits.float().detach(), batch["label"]
        if self.kind == "one":
            return self.classes.scores(logits, label)
        real = label.isfinite()
        apart = torch.where(real, logits[:, 0] - label.nan_to_num(), 0.0).double()
        return {"nats": apart.square(), "distance": apart.abs() * self.deviation, "labels": real.long()}

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """An answer an example: `label` and `probabilities` by class; or `number`, in the unit of its column."""
        logits = outputs.logits.float().detach()
        if self.kind == "one":
            return self.classes.answers(logits)
        return [{"number": value * self.deviation + self.mean} for value in logits[:, 0].tolist()]

    @property
    def evaluation(self) -> str:
        """How answers are compared with truths."""
        return "classes" if self.kind == "one" else "number"

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The answer to an example, which is one row."""
        return Answer(found[0]["label" if self.kind == "one" else "number"], found[0].get("probabilities"))

    def truth(self, example: Mapping[str, Any]) -> Any:
        """The name of the class, or the number. Raises DataError, naming the row, where it is missing."""
        if self.kind == "one":
            return self.classes.truth(example)
        value = _wanted(self.config, example)
        if value is None:
            where = str(example.get("source", ""))
            raise DataError("a row without a label", where=where, fix="label it, or leave it out")
        return value

    def shown(self, example: Mapping[str, Any]) -> str:
        """The columns that are read, as `name: value` with commas between."""
        return ", ".join(f"{name}: {cell_of(example, name)}" for name in self.vector.columns)

    def render(self, row: Row) -> str:
        """The first features as rich markup, followed by the label."""
        features, label = row["features"].tolist(), float(row["label"])
        pairs = list(zip(self.vector.names, features, strict=True))[:SHOWN_FEATURES]
        more = f" … {len(features)} in all" if len(features) > len(pairs) else ""
        listed = escape(", ".join(f"{name}: {value:.3g}" for name, value in pairs) + more)
        said = f"{label * self.deviation + self.mean:g}" if self.kind == "number" else self.classes.shown(int(label))
        return f"{listed}\n[cyan]label: {escape(said)}[/]"


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """A batch of stacked arrays."""
    import torch

    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
