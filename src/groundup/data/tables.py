"""Named columns of rows as vectors of numbers: numbers standardised, categories one-hot.

What that takes (means, deviations, the values of a category) is measured on training rows alone, by `Survey`,
and kept in a `Table`, which is plain data: it travels with a model, so that a row of a test or of a request is
read as the training rows were and nothing of it leaks into them.

A vector holds, in this order: every column of numbers as (x - mean) / deviation, 0 where it is missing; for each
of them that some training row lacks, 1 where it is missing; for every value of every category, 1 where it is held.
A value of a category that no training row has is all zeros.

Axes: F features of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from groundup.config import Section
from groundup.errors import DataError, nearest

MOST_CATEGORIES = 50
"""A column of texts with more different values than this is no category unless a recipe names it as one."""
MOST_VALUES = 10_000
"""The most different values of a category that a recipe names."""
NEARLY_ALL = 0.9
"""Where more than this share of a column's cells are numbers, the others are taken for slips of the pen."""
LARGEST = 1e100
"""Numbers beyond this are taken for mistakes: the squares of larger ones would soon be infinite."""
_TOGETHER = 4096
"""Numbers of a column that are averaged at a time."""


class Table(Section):
    """What the training rows say of the columns."""

    means: dict[str, float] = Field(default_factory=dict)
    """The mean of each column of numbers."""
    deviations: dict[str, float] = Field(default_factory=dict)
    """Its standard deviation over the rows (divided by their number), and 1 where all rows have the same value."""
    lacking: tuple[str, ...] = ()
    """The columns of numbers that some row has no value of."""
    categories: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The values of each category, in order; the empty one stands for a missing value."""


class Reading(Section):
    """How cells are read."""

    missing: str = "mean"
    """What becomes of a missing number: `mean` of the training rows, or `refuse`."""
    blanks: tuple[str, ...] = ("", "?", "na", "n/a", "nan", "null")
    """How a missing value is written, in small letters."""

    def is_missing(self, cell: Any) -> bool:
        """Whether a cell holds no value."""
        if isinstance(cell, str):
            return cell.strip().lower() in self.blanks
        return cell is None or (isinstance(cell, float) and math.isnan(cell))

    def number(self, cell: Any) -> float | None:
        """A cell as a finite number, or None if it holds none."""
        value = _float(cell)
        return value if value is not None and abs(value) <= LARGEST else None


def _float(cell: Any) -> float | None:
    """What Python takes for a number, infinite ones included, but not 1_000: a table means something else by it."""
    if isinstance(cell, str) and "_" in cell:
        return None
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def is_infinite(cell: Any) -> bool:
    """Whether a cell holds an infinite number, or one that is as good as infinite."""
    value = _float(cell)
    return value is not None and abs(value) > LARGEST


def value_of(cell: Any) -> str | None:
    """A cell as the value of a category; None for a list, a mapping, or bytes. 3, 3.0 and "3" are one value."""
    cell = cell.item() if isinstance(cell, np.generic) else cell
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip() if isinstance(cell, str | int | float) else None


def cell_of(row: Mapping[str, Any], column: str) -> Any:
    """The cell of a row. Raises DataError, naming row and column, if the row has no such column."""
    if column not in row:
        what = f"the row has no column {column!r}"
        fix = f"{nearest(column, row)}; give null where the value is not known"
        raise DataError(what, where=str(row.get("source", "")), fix=fix)
    return row[column]


def no_number(cell: Any, column: str, row: Mapping[str, Any]) -> DataError:
    """The error for a cell that should hold a number."""
    what = (
        f"the cell {cell!r} in the column {column!r} is {'infinite, or nearly' if is_infinite(cell) else 'no number'}"
    )
    return DataError(what, where=str(row.get("source", "")), fix="repair the cell, or leave out the row")


def no_value(cell: Any, column: str, row: Mapping[str, Any]) -> DataError:
    """The error for a cell that should hold a number or a text, and holds a list, a mapping or bytes."""
    what = f"the cell in the column {column!r} is a {type(cell).__name__}: neither a number nor a text"
    fix = f"give a number or a text; a column that is not to be read: `leave_out: [{column}]`"
    return DataError(what, where=str(row.get("source", "")), fix=fix)


@dataclass
class Moments:
    """Mean and deviation of numbers that come one after the other (Chan, Golub & LeVeque 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """The sum of squared distances from the mean."""
    _held: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Take one more number in."""
        self._held.append(value)
        if len(self._held) == _TOGETHER:
            self._join()

    def _join(self) -> None:
        if not self._held:
            return
        new = np.array(self._held, np.float64)
        self._held = []
        mean, whole = float(new.mean()), self.count + len(new)
        apart = mean - self.mean
        self.squares += float(((new - mean) ** 2).sum()) + apart * apart * self.count * len(new) / whole
        self.mean += apart * len(new) / whole
        self.count = whole

    def settled(self) -> tuple[float, float]:
        """The mean, and the deviation: 1 where there is none, so that it can be divided by."""
        self._join()
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        # What rounding leaves of equal numbers is no deviation.
        is_constant = deviation <= 1e-12 * max(1.0, abs(self.mean))
        return self.mean, 1.0 if is_constant else deviation


@dataclass
class _Column:
    """What is known of a column so far."""

    moments: Moments = field(default_factory=Moments)
    numbers: int = 0
    missing: int = 0
    words: int = 0
    """Cells that hold a text."""
    first: tuple[Any, str] | None = None
    """The first of them, and where it stands."""
    values: set[str] = field(default_factory=set)


class Survey:
    """The columns of training rows, looked at row by row."""

    def __init__(
        self,
        reading: Reading,
        *,
        numbers: Sequence[str] | None,
        categories: Sequence[str] | None,
        left_out: Collection[str],
    ) -> None:
        """`numbers` and `categories` are columns that a recipe names; where one is None, the columns are found by what
        they hold. Columns in `left_out` are not looked at."""
        self.reading, self.left_out = reading, frozenset(left_out)
        self.numbers, self.categories = numbers, categories
        self.columns = {name: _Column() for name in (*(numbers or ()), *(categories or ()))}

    def add(self, row: Mapping[str, Any]) -> None:
        """Look at one more row. Raises DataError for a cell that cannot be what the recipe says it is."""
        if self.numbers is None or self.categories is None:
            for name in row:
                if name not in self.left_out:
                    self.columns.setdefault(name, _Column())
        for name, column in self.columns.items():
            self._look(name, column, cell_of(row, name), row)

    def _look(self, name: str, column: _Column, cell: Any, row: Mapping[str, Any]) -> None:
        if self.reading.is_missing(cell):
            column.missing += 1
            return
        is_category = name in (self.categories or ())
        value = None if is_category else self.reading.number(cell)
        if value is not None:
            column.numbers += 1
            column.moments.add(value)
        elif name in (self.numbers or ()) or (is_infinite(cell) and not is_category):
            raise no_number(cell, name, row)
        else:
            column.words += 1
            column.first = column.first or (cell, str(row.get("source", "")))
        if len(column.values) <= (MOST_VALUES if is_category else MOST_CATEGORIES):
            word = value_of(cell)
            if word is None:
                raise no_value(cell, name, row)
            column.values.add(word)

    def table(self) -> Table:
        """What was found. Raises DataError for columns that are neither numbers nor categories, and for none at all."""
        means, deviations, categories = {}, {}, {}
        lacking = []
        for name, column in self.columns.items():
            if self._is_category(name, column):
                categories[name] = (*sorted(column.values), *([""] if column.missing else []))
            elif self._is_number(name, column):
                means[name], deviations[name] = column.moments.settled()
                lacking += [name] if column.missing else []
        if not means and not categories:
            what = "the rows have no column to tell anything by"
            raise DataError(what, fix="prepare carries the columns that its source names under `keep`")
        return Table(means=means, deviations=deviations, lacking=tuple(lacking), categories=categories)

    def _is_number(self, name: str, column: _Column) -> bool:
        """Whether a column is one of numbers; one without a single value is none."""
        if self.numbers is not None:
            return name in self.numbers
        return column.numbers > 0 and not column.words

    def _is_category(self, name: str, column: _Column) -> bool:
        if self.categories is not None:
            if name in self.categories and len(column.values) > MOST_VALUES:
                what = f"more than {MOST_VALUES:,} different values in the column {name!r}"
                raise DataError(what, fix="leave it out of `categories`: a vector would have a number for each")
            return name in self.categories
        if column.first is None:
            return False
        cell, where = column.first
        if column.numbers > NEARLY_ALL * (column.numbers + column.words):
            what = f"the column {name!r} holds numbers, but here {cell!r}"
            raise DataError(what, where=where, fix=f"repair the cell; or say what it is: `categories: [{name}]`")
        if len(column.values) > MOST_CATEGORIES:
            what = f"more than {MOST_CATEGORIES} different texts in the column {name!r}, such as {cell!r}"
            fix = f"leave it out: `leave_out: [{name}]`; or say that it is one of classes: `categories: [{name}]`"
            raise DataError(what, where=where, fix=fix)
        return True


@dataclass(frozen=True)
class Vectoriser:
    """Rows as vectors, by a table."""

    table: Table
    reading: Reading

    @cached_property
    def names(self) -> list[str]:
        """What each feature is called."""
        table = self.table
        found = [*table.means, *(f"{name} is missing" for name in table.lacking)]
        return found + [f"{name} = {value or 'missing'}" for name, row in table.categories.items() for value in row]

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [*self.table.means, *self.table.categories]

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """The feature of each missing number, and of each value of each category."""
        place = len(self.table.means)
        lacking = {name: place + i for i, name in enumerate(self.table.lacking)}
        place += len(lacking)
        values: dict[str, dict[str, int]] = {}
        for name, known in self.table.categories.items():
            values[name] = {value: place + i for i, value in enumerate(known)}
            place += len(known)
        return lacking, values

    def __call__(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        """(F,) float32. Raises DataError, naming row and column, for a cell that cannot be read."""
        table, reading = self.table, self.reading
        lacking, values = self._places
        found = np.zeros(len(self.names), np.float64)
        for place, (name, mean) in enumerate(table.means.items()):
            cell = cell_of(row, name)
            value = reading.number(cell)
            if value is not None:
                found[place] = (value - mean) / table.deviations[name]
            elif not reading.is_missing(cell):
                raise no_number(cell, name, row)
            elif reading.missing == "refuse":
                what = f"no value in the column {name!r}"
                raise DataError(what, where=str(row.get("source", "")), fix="fill it in, or set `missing: mean`")
            elif name in lacking:
                found[lacking[name]] = 1.0
        for name, known in values.items():
            cell = cell_of(row, name)
            held = "" if reading.is_missing(cell) else value_of(cell)
            if held is None:
                raise no_value(cell, name, row)
            if held in known:
                found[known[held]] = 1.0
        return self._finite(found, row)

    def _finite(self, found: NDArray[np.float64], row: Mapping[str, Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            small = found.astype(np.float32)
        if not np.isfinite(small).all():
            name = self.names[int(np.flatnonzero(~np.isfinite(small))[0])]
            what = f"the cell {row[name]!r} in the column {name!r} is too large to be computed with"
            raise DataError(what, where=str(row.get("source", "")), fix="repair the cell, or leave out the row")
        return small
