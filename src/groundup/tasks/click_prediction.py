"""Say how likely it is that a user clicks on an item, buys it, or likes it.

A row is one event: who, what, and whatever else is known of both. Each column gives one entry of one large table:
the entry of its value, worth 1, or that of the column itself, worth the number in it, standardised. Nothing is
hashed. Every column has an entry for values that no training row holds; values that are rare in the training rows
share it, so that it is trained and stands for what is little known.

Batch: `entries` (E,F) int64, `values` (E,F) float32, `label` (E,) int64: 0, 1, or -100 for rows that train nothing.

Axes: E examples, F columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rich.markup import escape

from groundup.config import dump
from groundup.data.packing import Columns, Row
from groundup.data.tables import Moments, Reading, cell_of, no_number, value_of
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
}
"""What is watched while training."""
YES, NO = "yes", "no"
"""What the classes are called where a number decides."""
READING = Reading()


class Config(ClassSection):
    """A click or none, by the columns of an event."""

    columns: tuple[str, ...] = ("user", "item")
    """Columns of categories: each value is an entry of the table."""
    numbers: tuple[str, ...] = ()
    """Columns of numbers: each is one entry, worth its number of standard deviations from the mean."""
    at_least: float | None = None
    """The label is a number, such as a rating, and from here on it counts as a click; otherwise it is one of two
    names, the second of them the click."""
    rare: Annotated[int, Field(ge=1)] = 2
    """Values of a category that fewer training rows than this hold share the entry of unknown values."""
    one_score: bool = True
    """There is one score, for the click."""
    known_values: dict[str, tuple[str, ...]] | None = None
    """The values of each category that have an entry; they follow from the training rows."""
    means: dict[str, float] = Field(default={})
    """The mean of each column of numbers; follows from the training rows."""
    deviations: dict[str, float] = Field(default={})
    """Its standard deviation; follows from the training rows."""

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        both = [*self.columns, *self.numbers]
        twice = next((name for name in both if both.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is named twice among `columns` and `numbers`")
        if self.label in both:
            raise ValueError(f"{self.label!r} is the label: a model that reads it has nothing to predict")
        if len(both) < 2:
            raise ValueError("name at least two `columns` or `numbers`: pairs of them are what is learned")
        if not self.one_score:
            raise ValueError("a click has one score: leave out `one_score`")
        return self


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: classes, values of categories, means and deviations.

    Raises DataError, naming row and column, for cells that cannot be read, and for labels that are not two.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in config.columns}
    moments = {name: Moments() for name in config.numbers}
    labels: dict[str, int] = {}
    for example in examples:
        _classes.count(config, labels, _decided(config, example))
        for name, own in counts.items():
            own[_value(name, example)] += 1
        for name, found in moments.items():
            number = _number(name, example)
            if number is not None:
                found.add(number)
    settled = {name: found.settled() for name, found in moments.items()}
    update: dict[str, Any] = {
        "known_values": {
            name: tuple(sorted(value for value, count in own.items() if count >= config.rare))
            for name, own in counts.items()
        },
        "means": {name: mean for name, (mean, _) in settled.items()},
        "deviations": {name: deviation for name, (_, deviation) in settled.items()},
    }
    if config.at_least is not None and config.labels is None:
        update["labels"] = (NO, YES)
    found_config = config.model_copy(update=update)
    return _classes.settled(found_config, labels)


def _decided(config: Config, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The example with its label as a name: of a number, whether it is enough."""
    cell = example.get(config.label)
    if config.at_least is None or READING.is_missing(cell):
        return example
    number = READING.number(cell)
    if number is None:
        raise no_number(cell, config.label, example)
    return {**example, config.label: YES if number >= config.at_least else NO}


def _value(column: str, example: Mapping[str, Any]) -> str:
    """The value of a category; a missing one is a value too, the empty text."""
    cell = cell_of(example, column)
    if READING.is_missing(cell):
        return ""
    value = value_of(cell)
    if value is None:
        what = f"the cell in the column {column!r} is a {type(cell).__name__}, not a single value"
        raise DataError(what, where=str(example.get("source", "")), fix="leave the column out of task.columns")
    return value


def _number(column: str, example: Mapping[str, Any]) -> float | None:
    """The number in a cell, or None for a missing one. Raises DataError for what is none."""
    cell = cell_of(example, column)
    number = READING.number(cell)
    if number is None and not READING.is_missing(cell):
        raise no_number(cell, column, example)
    return number


class Task:
    """Events as entries of one table. Can be sent to other processes."""

    head = "click"
    evaluation = "classes"
    baseline = "logistic_regression"
    main = "roc_auc"
    """The score a report leads with: how well clicks are told from the rest, whatever the threshold."""
    problem = "single_label_classification"

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None, context: int = 1) -> None:
        """`config` is settled. `tokenizer` and `context` are of no account: rows hold no tokens."""
        assert config.known_values is not None, "a section is settled before it becomes a task"
        self.config, self.context = config, context
        self.tokenizer: Any = tokenizer
        self.metrics = METRICS
        self.classes = Classes(config)
        self.labels, self.outputs = self.classes.labels, self.classes.outputs
        self._first: dict[str, int] = {}
        """The entry of each category's unknown values, which its other values follow, and of each number."""
        self._entries: dict[str, dict[str, int]] = {}
        size = 0
        for name, values in config.known_values.items():
            self._first[name] = size
            self._entries[name] = {value: size + place for place, value in enumerate(values, 1)}
            size += 1 + len(values)
        for name in config.numbers:
            self._first[name] = size
            size += 1
        self.size = size
        """Entries of the table."""

    @property
    def known(self) -> dict[str, int]:
        """The sizes of a model that follow from the columns."""
        return {"n_entries": self.size, "n_columns": len(self._first)}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on: the key of encoded shards."""
        names = ("columns", "numbers", "known_values", "means", "deviations", "label", "labels", "at_least")
        return {"task": self.config.name, "version": VERSION} | {
            k: v for k, v in dump(self.config).items() if k in names
        }

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"labels": self.labels, "entries": self.size}

    def entries(self, example: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        """The entries of an example, one a column, and what each is worth: what the model reads, and rivals do.

        Raises DataError, naming row and column, for a cell that cannot be read.
        """
        entries, values = [], []
        for name, known in self._entries.items():
            entries.append(known.get(_value(name, example), self._first[name]))
            values.append(1.0)
        for name in self.config.numbers:
            number = _number(name, example)
            mean, deviation = self.config.means[name], self.config.deviations[name]
            entries.append(self._first[name])
            values.append(0.0 if number is None else (number - mean) / deviation)
        return entries, values

    def encode(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """`entries`, `values` (float32) and `label` of an example, which may lack its label."""
        entries, values = self.entries(example)
        label = self.classes.number(_decided(self.config, example))
        return {"entries": entries, "values": np.array(values, np.float32), "label": [label]}

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Vectors:
        """The examples of a split, one row each; they are the same in every epoch."""
        from groundup.data.vectors import Vectors

        shapes = {"entries": (len(self._first),), "values": (len(self._first),)}
        return Vectors(shards, shapes=shapes, values=("label",), labels="label", tensors=self.tensors)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        return self.tensors({key: np.stack([row[key] for row in rows]) for key in rows[0]})

    def tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A batch of stacked arrays, whole numbers as int64."""
        import torch

        found = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
        return {key: tensor.float() if key == "values" else tensor.long() for key, tensor in found.items()}

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over labelled examples, and their number."""
        return {"loss": self.classes.loss(outputs.logits.float(), batch["label"])}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels, from a batch alone."""
        return self.classes.counts(batch["label"])

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide: `nats`, `labels` and `right`, (E,) each. No gradient."""
        return self.classes.scores(outputs.logits.float(), batch["label"])

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """The `label` of each example, and `probabilities` by class."""
        return self.classes.answers(outputs.logits)

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The answer to an example, which is one row."""
        assert found, "an event always is a row"
        return Answer(found[0]["label"], found[0]["probabilities"])

    def truth(self, example: Mapping[str, Any]) -> str:
        """Click or none, by name. Raises DataError, naming the row, where the label is missing."""
        return self.classes.truth(_decided(self.config, example))

    def shown(self, example: Mapping[str, Any]) -> str:
        """The columns that are read, as `name: value` with commas between."""
        return ", ".join(f"{name}: {cell_of(example, name)}" for name in self._first)

    def render(self, row: Row) -> str:
        """The entries of a row as rich markup, followed by the label."""
        shown = [
            f"{name} = {entry - self._first[name]}" for name, entry in zip(self._first, row["entries"], strict=True)
        ]
        return f"{escape(', '.join(shown))}\n[cyan]label: {escape(self.classes.shown(int(row['label'])))}[/]"
