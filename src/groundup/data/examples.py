"""Labelled examples as rows of their own length: one row for each encoded example of a split.

A row holds no padding. How rows become a batch (end to end, or padded) is the batch's business
(`data/layout.py`), so neither can change what is learned.

Axes: E examples of a split, T tokens of one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.ledger import Ledger
from groundup.data.packing import IGNORED, NAMED_DOCUMENTS, Columns, Int64s, Row

CROPPED = "cropped"
"""The column, one number an example, of the tokens that were cut off to fit the context."""


class Examples:
    """The rows of a split whose examples are one row each.

    tokens: columns with one value a token, `input_ids` first. values: columns with one value an example
    (a row then holds a 0-d array), or a fixed number of them by `vectors`. `labels` is the column that
    is trained: -100 in it trains nothing. `sides` are the columns whose sizes make up the length of a row:
    a source and a target have two.
    """

    def __init__(
        self,
        shards: Columns,
        *,
        labels: str,
        tokens: Sequence[str] = ("input_ids",),
        values: Collection[str] = (),
        vectors: Collection[str] = (),
        sides: Sequence[str] = ("input_ids",),
        drop_cropped: bool = False,
    ) -> None:
        """`drop_cropped` leaves out every example that had to be cut."""
        self.columns = {name: shards.column(name) for name in dict.fromkeys((*tokens, *values, *vectors))}
        self.tokens, self.values, self.labels = tuple(tokens), frozenset(values), labels
        self.document_bytes = shards.bytes
        sizes = np.diff(self.columns["input_ids"][1])
        self._cropped = np.zeros(shards.documents, np.int64)
        if CROPPED in _names(shards):
            self._cropped = np.asarray(shards.column(CROPPED)[0], np.int64)
        left_out = (sizes == 0) | ((self._cropped > 0) & drop_cropped)
        sizes = sum((np.diff(self.columns[name][1]) for name in sides), start=np.zeros_like(sizes))
        self.chosen: Int64s = np.flatnonzero(~left_out)
        self.lengths: Int64s = sizes[self.chosen]
        self._documents, self._tokens = shards.documents, int(sizes.sum())

    def __len__(self) -> int:
        return len(self.chosen)

    def row(self, index: int, epoch: int) -> Row:
        """The arrays of one example by batch key, the same in every epoch."""
        document = self.document_of(index)
        return {name: self._one(name, document) for name in self.columns}

    def _one(self, name: str, document: int) -> NDArray[Any]:
        flat, offsets = self.columns[name]
        found = np.asarray(flat[offsets[document] : offsets[document + 1]])
        found = found.astype(np.float32 if found.dtype.kind == "f" else np.int64)
        return found.reshape(()) if name in self.values else found

    def document_of(self, index: int) -> int:
        """The example of a row, by its place in the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return int(self.chosen[index])

    def unit_of(self, index: int) -> int:
        """The example itself: each is drawn alone when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of the example's text."""
        return float(self.document_bytes[self.document_of(index)])

    def ledger(self) -> Ledger:
        """Exact counts; a trained label is an entry of the label column that is not -100."""
        flat, offsets = self.columns[self.labels]
        is_trained = np.asarray(flat) != IGNORED
        before = np.concatenate(([0], np.cumsum(is_trained, dtype=np.int64)))
        by_document = before[offsets[1:]] - before[offsets[:-1]]
        trained = int(by_document[self.chosen].sum())
        positions = int(np.diff(offsets)[self.chosen].sum())
        without = self.chosen[by_document[self.chosen] == 0]
        return Ledger(
            documents=self._documents,
            rows=len(self),
            tokens=self._tokens,
            trained=trained,
            masked=positions - trained,
            cropped=int(self._cropped[self.chosen].sum()),
            dropped=self._documents - len(self),
            unlabelled=tuple(int(i) for i in without[:NAMED_DOCUMENTS]),
        )


def _names(shards: Columns) -> Collection[str]:
    return getattr(shards, "columns", ())


def waste(lengths: Int64s, batch_rows: int, micro_batches: int, seed: int = 0) -> Mapping[str, float]:
    """Share of positions that are padding: `random` where batches are padded as they come, `sorted` where
    each is sorted by length and cut into micro-batches, as the loader does. Expected, over one epoch.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    whole = [np.sort(lengths[order[i : i + batch_rows]]) for i in range(0, len(order), batch_rows)]
    real = float(lengths.sum())
    as_they_come = sum(float(part.max() * len(part)) for part in whole)
    cut = sum(float(p.max() * len(p)) for part in whole for p in np.array_split(part, micro_batches) if len(p))
    return {"random": 1 - real / as_they_come, "sorted": 1 - real / cut}
