"""Rows whose examples are arrays of one shape each: pixels, features, samples of sound.

What `data/examples.py` is for tokens. As every example has the same shape, a whole batch is taken out of the
mapped file at once, and what is drawn for its rows (crops, flips, partners to mix with) follows from
(seed, epoch, index) alone: neither how a batch is cut nor who makes it can change it.

Axes: E examples of a split, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from groundup.data.ledger import Ledger
from groundup.data.packing import IGNORED, NAMED_DOCUMENTS, Columns, Int64s, Row
from groundup.errors import DataError

Arrays = dict[str, NDArray[Any]]
Change = Callable[["Vectors", Arrays, Int64s, Int64s], Arrays]
"""What training makes of rows: (the rows of the split, arrays of a batch, their indices, their epochs)."""
NUMBERS_PER_COST = 256
"""Numbers of an example that count as much as a token where batches are bounded in size."""


class Vectors:
    """The rows of a split whose examples are arrays of fixed shapes."""

    def __init__(
        self,
        shards: Columns,
        *,
        shapes: Mapping[str, tuple[int, ...]],
        labels: str,
        tensors: Callable[[Arrays], dict[str, Tensor]],
        values: Collection[str] = (),
        change: Change | None = None,
    ) -> None:
        """`shapes` names the columns that are arrays, `values` those with one number an example; `labels` is
        the column that is trained: -100, or a number that is not finite, trains nothing.

        `tensors` makes a batch of stacked arrays, (B, …) each, of each row the same whatever rows are beside it;
        `change` is applied before, in training only.
        Raises DataError, naming the example, where an array has another size than its shape says.
        """
        self.documents, self.document_bytes = shards.documents, shards.bytes
        self.labels, self._tensors, self._change = labels, tensors, change
        wanted = dict(shapes) | dict.fromkeys(values, ())
        self.columns = {name: _shaped(shards, name, shape) for name, shape in wanted.items()}
        self.lengths: Int64s = np.ones(self.documents, np.int64)
        """An example is one place, whatever its size."""
        numbers = sum(prod(shape) for shape in wanted.values())
        self.costs: Int64s = np.full(self.documents, max(1, numbers // NUMBERS_PER_COST))
        """What examples cost beside tokens, where batches are bounded."""

    def __len__(self) -> int:
        return self.documents

    def plain(self, indices: Int64s) -> Arrays:
        """Stacked arrays of rows as they are stored, (B, …) each."""
        return {name: column[indices] for name, column in self.columns.items()}

    def arrays(self, indices: Int64s, epochs: Int64s) -> Arrays:
        """Stacked arrays of rows as training sees them in their epochs, (B, …) each."""
        found = self.plain(indices)
        return self._change(self, found, indices, epochs) if self._change else found

    def batch(self, indices: Int64s, epochs: Int64s) -> dict[str, Tensor]:
        """Rows as a batch, all at once: what `collate` makes of them one by one."""
        return self._tensors(self.arrays(indices, epochs))

    def row(self, index: int, epoch: int) -> Row:
        """The arrays of one example in an epoch."""
        self.document_of(index)
        return {name: array[0] for name, array in self.arrays(np.array([index]), np.array([epoch])).items()}

    def document_of(self, index: int) -> int:
        """The example of a row, by its place in the split: the row itself. Raises IndexError outside it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return index

    def unit_of(self, index: int) -> int:
        """The example itself: each is drawn alone when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of what stands for the example's text."""
        return float(self.document_bytes[self.document_of(index)])

    @cached_property
    def trains(self) -> NDArray[np.bool_]:
        """(E,): whether an example has a label; of several labels, whether it has one of them."""
        label = np.asarray(self.columns[self.labels])
        real = np.isfinite(label) if label.dtype.kind == "f" else label != IGNORED
        return np.asarray(real.reshape(len(self), -1).any(1))

    def ledger(self) -> Ledger:
        """Exact counts: an example is one position."""
        trained = int(self.trains.sum())
        without = np.flatnonzero(~self.trains)[:NAMED_DOCUMENTS]
        return Ledger(
            documents=self.documents,
            rows=len(self),
            tokens=self.documents,
            trained=trained,
            masked=len(self) - trained,
            unlabelled=tuple(int(i) for i in without),
            unit="examples",
        )


def _shaped(shards: Columns, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A column as (E, *shape), mapped and not read; whole numbers one an example as int64, for they are labels."""
    flat, offsets = shards.column(name)
    sizes = np.diff(offsets)
    odd = np.flatnonzero(sizes != prod(shape))
    if len(odd):
        place, held = int(odd[0]), int(sizes[odd[0]])
        what = f"example {place} has {held} numbers of {name!r}, and the others {prod(shape)} ({shape})"
        raise DataError(what, fix="prepare all examples at one size")
    if shape:
        return np.asanyarray(flat).reshape(len(sizes), *shape)
    return np.asarray(flat, np.float32 if flat.dtype.kind == "f" else np.int64)
