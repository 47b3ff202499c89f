"""Say which class a row of named columns belongs to, or predict a number from it.

Numbers are standardised, categories one-hot, missing values told apart (`data/tables.py`); means, deviations,
categories and labels are those of the training rows and travel with the model. A number to be predicted is
standardised too, so that the loss does not depend on its unit; answers and scores are in the unit of its column.

Batch: `features`, (E,F) float32, and `label` (`tasks/_labels.py`).

Axes: E examples, F features, K scores: one a class, or a single one for two classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

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
from groundup.tasks import _labels
from groundup.tasks._labels import LabelSection, LabelTask

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.data.vectors import Vectors
    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = _labels.METRICS | {"mean_absolute_error": Ratio("distance", "labels")}
"""What is watched while training; accuracy of classes, the error (in the column's unit) of numbers."""
SHOWN_FEATURES = 12
"""Features of a row that plan shows."""


class Config(LabelSection):
    """The class of a row of a table, or a number."""

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
    label_scale: tuple[float, float] | None = None
    """Mean and standard deviation of the number to be predicted; they follow from the training rows."""

    @model_validator(mode="after")
    def _columns_are_apart(self) -> Self:
        twice = sorted({*(self.numbers or ())} & {*(self.categories or ())})
        if twice:
            raise ValueError(f"{twice[0]!r} is among `numbers` and among `categories`")
        if self.label in (*(self.numbers or ()), *(self.categories or ())):
            raise ValueError(f"{self.label!r} is the label: a model that reads it has nothing to predict")
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
    moments = Moments()

    def surveyed() -> Iterator[Mapping[str, Any]]:
        for example in examples:
            survey.add(example)
            labelled = _label_read(config, example)
            if config.kind == "number":
                moments.add(labelled[config.label])
            yield labelled

    found = _labels.settle(config, surveyed())
    scale = config.label_scale or moments.settled() if config.kind == "number" else None
    return found.model_copy(update={"table": config.table or survey.table(), "label_scale": scale})


def _label_read(config: Config, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """An example whose label is None where it is missing, and a number where it should be one.

    Raises DataError, naming row and column, for a label that should be a number and is none.
    """
    cell = cell_of(example, config.label)
    if config.reading.is_missing(cell):
        if config.kind == "number":
            what = f"no number in the column {config.label!r}"
            raise DataError(what, where=str(example.get("source", "")), fix="fill it in, or leave out the row")
        return {**example, config.label: None}
    if config.kind != "number":
        return example
    value = config.reading.number(cell)
    if value is None:
        raise no_number(cell, config.label, example)
    return {**example, config.label: value}


class Task(LabelTask):
    """Rows of a table as vectors. Can be sent to other processes."""

    LOOKS_AT: ClassVar[str] = "columns"
    head = "features"

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None, context: int = 1) -> None:
        """`config` is settled. `tokenizer` and `context` are of no account: rows hold no tokens."""
        assert config.table is not None, "a section is settled before it becomes a task"
        super().__init__(config)
        self.tokenizer, self.context = tokenizer, context
        self.vector = Vectoriser(config.table, config.reading)
        """An example as (F,) float32: what the network reads, and classical rivals do."""
        self.mean, self.deviation = config.label_scale or (0.0, 1.0)

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
        return {"task": c.name, "version": VERSION, "scale": [self.mean, self.deviation], **read} | self.label_encoding

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        table = self.vector.table
        return super().choices | {"numbers": list(table.means), "categories": list(table.categories)}

    def encode(self, example: Mapping[str, Any]) -> dict[str, NDArray[np.float32] | list[int] | list[float]]:
        """`features` and `label` of an example, which may lack its label.

        Raises DataError, naming row and column, for a cell that cannot be read and for an unknown label.
        """
        return {"features": self.vector(example), "label": self.target(example)}

    def target(self, example: Mapping[str, Any]) -> list[int] | list[float]:
        """The label in numbers, a number in standard deviations from the mean; -100 or NaN where there is none."""
        cell = example.get(self.config.label)
        if self.config.reading.is_missing(cell):
            return super().target({**example, self.config.label: None})
        if self.kind != "number":
            return super().target(example)
        return [(_label_read(self.config, example)[self.config.label] - self.mean) / self.deviation]

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Vectors:
        """The examples of a split, one row each; they are the same in every epoch."""
        from groundup.data.vectors import Vectors

        shapes: dict[str, tuple[int, ...]] = {"features": (len(self.vector.names),)}
        if self.kind == "several":
            shapes["label"] = (len(self.labels),)
        values = () if self.kind == "several" else ("label",)
        return Vectors(shards, shapes=shapes, values=values, labels="label", tensors=self.tensors)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        return self.tensors({key: np.stack([row[key] for row in rows]) for key in rows[0]})

    def tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A batch of stacked arrays, labels as the losses take them."""
        import torch

        found = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        found["label"] = found["label"].float() if self.kind == "number" else found["label"].long()
        return found

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide, (E,) each. No gradient. `nats` of numbers are squared standard
        deviations, as their loss is."""
        found = super().scores(outputs, batch)
        if self.kind == "number":
            found["distance"] = found["nats"].sqrt() * self.deviation
        return found

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """An answer an example: `label` and `probabilities` by class; `labels`; or `number`, in its column's unit."""
        found = super().answers(outputs, batch)
        if self.kind != "number":
            return found
        return [{"number": one["number"] * self.deviation + self.mean} for one in found]

    def truth(self, example: Mapping[str, Any]) -> Any:
        """The label, a list of labels, or a number. Raises DataError, naming the row, where it is missing."""
        return super().truth(_label_read(self.config, example))

    def shown(self, example: Mapping[str, Any]) -> str:
        """The columns that are read, as `name: value` with commas between."""
        return ", ".join(f"{name}: {cell_of(example, name)}" for name in self.vector.columns)

    def render(self, row: Row) -> str:
        """The first features as rich markup, followed by the label."""
        features = row["features"].tolist()
        pairs = list(zip(self.vector.names, features, strict=True))[:SHOWN_FEATURES]
        more = f" … {len(features)} in all" if len(features) > len(pairs) else ""
        listed = escape(", ".join(f"{name}: {value:.3g}" for name, value in pairs) + more)
        return f"{listed}\n[cyan]label: {escape(self.label_shown(row['label']))}[/]"

    def label_shown(self, label: Any) -> str:
        """A row's label in words; a number in the unit of its column."""
        return super().label_shown(float(label) * self.deviation + self.mean if self.kind == "number" else label)
