"""Rows of what users did: each item of a history predicts the one after it.

In training a row is a window of a user's history and every item of it but the first is a label; a history longer
than the context gives several windows, whose labels follow on each other, so that an epoch trains each exactly once.
Held out, a row is one target with what came before it, the newest items up to the context; `seen` is all that came
before, which a recommendation leaves out.

Items are numbers from 1 to those of the catalogue; 0 is an item that no training row holds: it is read, but it is
no label.

Axes: T items of a row, I items of the catalogue, K negatives of a label, S items a user has seen.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from groundup.data.ledger import Ledger
from groundup.data.order import generator
from groundup.data.packing import IGNORED, NAMED_DOCUMENTS, Columns, Int64s, Row

HISTORY = "history"
"""The column, one number an example, of how many of its items are history; the others are targets."""
NEGATIVES, SEEN, TARGET = "negatives", "seen", "target"
"""Keys of a row: (T,K) items that were not chosen; (S,) all items before the target; the target, 0 if it is none of
the catalogue, NO_TARGET if there is none."""
NO_TARGET = -1
UNKNOWN = 0
_PURPOSE = 12
"""The purpose of what is drawn here, so that nothing else draws the same numbers."""


class Histories:
    """The rows of a split of users' histories. Random are only the negatives of an epoch."""

    def __init__(
        self,
        shards: Columns,
        seed: int,
        *,
        context: int,
        n_items: int,
        negatives: int = 0,
        held_out: bool = False,
    ) -> None:
        """`n_items` are those of the catalogue; `negatives` is how many are drawn for each label, in training."""
        self.seed, self.context, self.n_items = seed, context, n_items
        self.negatives, self.held_out = 0 if held_out else negatives, held_out
        self._flat, offsets = shards.column("input_ids")
        self._offsets = np.asarray(offsets, np.int64)
        self._known = np.asarray(shards.column(HISTORY)[0], np.int64)
        self.documents, self.document_bytes = shards.documents, shards.bytes
        sizes = np.diff(self._offsets)
        windows = -(-np.maximum(0, self._known - 1) // context)
        parts = np.maximum(1, sizes - self._known) if held_out else windows
        self._owner: Int64s = np.repeat(np.arange(self.documents), parts)
        self._part: Int64s = np.arange(len(self._owner)) - np.repeat(np.cumsum(parts) - parts, parts)
        self._parts = parts
        self.lengths: Int64s = self._lengths()
        """Items that each row reads."""

    def _lengths(self) -> Int64s:
        known = self._known[self._owner]
        if self.held_out:
            return np.asarray(np.minimum(self.context, known + self._part))
        return np.asarray(np.minimum(self.context, known - 1 - self._part * self.context))

    def __len__(self) -> int:
        return len(self._owner)

    def row(self, index: int, epoch: int) -> Row:
        """`input_ids` and `labels` (T,); with negatives those of the epoch; held out `seen` and `target`."""
        document, part = self.document_of(index), int(self._part[index])
        start = int(self._offsets[document])
        items = np.asarray(self._flat[start : self._offsets[document + 1]], np.int64)
        return self._asked(items, document, part) if self.held_out else self._trained(items, document, index, epoch)

    def _trained(self, items: Int64s, document: int, index: int, epoch: int) -> Row:
        history = items[: self._known[document]]
        stop = len(history) - int(self._part[index]) * self.context
        start = max(1, stop - self.context)
        labels = history[start:stop]
        row = {"input_ids": history[start - 1 : stop - 1], "labels": np.where(labels == UNKNOWN, IGNORED, labels)}
        if self.negatives:
            row[NEGATIVES] = self._drawn(np.unique(history), index, epoch, len(labels))
        return row

    def _drawn(self, own: Int64s, index: int, epoch: int, labels: int) -> Int64s:
        """Items for each label that the user has not chosen, evenly drawn, (T,K)."""
        numbers = generator(self.seed, epoch, index, _PURPOSE)
        shape = (labels, self.negatives)
        drawn = numbers.integers(1, self.n_items + 1, shape)
        if np.count_nonzero(own) >= self.n_items:
            return drawn  # whoever has chosen everything has nothing else to be told from
        chosen: NDArray[np.bool_] = np.isin(drawn, own)
        while chosen.any():
            drawn[chosen] = numbers.integers(1, self.n_items + 1, int(chosen.sum()))
            chosen = np.isin(drawn, own)
        return drawn

    def _asked(self, items: Int64s, document: int, part: int) -> Row:
        there = int(self._known[document]) + part
        window = items[max(0, there - self.context) : there]
        target = int(items[there]) if there < len(items) else NO_TARGET
        labels = np.full(len(window), IGNORED, np.int64)
        labels[-1:] = target if target > UNKNOWN else IGNORED
        return {"input_ids": window, "labels": labels, SEEN: np.unique(items[:there]), TARGET: np.array(target)}

    def document_of(self, index: int) -> int:
        """The user of a row, by place in the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return int(self._owner[index])

    def unit_of(self, index: int) -> int:
        """The user: all of one user's rows are drawn together when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of what stands for the user's text, shared by the user's rows."""
        document = self.document_of(index)
        return float(self.document_bytes[document]) / int(self._parts[document])

    def ledger(self) -> Ledger:
        """Exact counts, of the labels of an epoch."""
        positions, trained = int(self.lengths.sum()), int(self._trained_by_document.sum())
        without = np.flatnonzero(self._trained_by_document == 0)
        return Ledger(
            documents=self.documents,
            rows=len(self),
            tokens=int(self._offsets[-1]),
            trained=trained,
            masked=positions - trained,
            dropped=int((self._parts == 0).sum()),
            unlabelled=tuple(int(i) for i in without[:NAMED_DOCUMENTS]),
            unit="items",
        )

    @cached_property
    def _trained_by_document(self) -> Int64s:
        """How many labels each user has: items of the catalogue with something before them."""
        is_label = np.asarray(self._flat, np.int64) != UNKNOWN
        before: Int64s = np.concatenate(([0], np.cumsum(is_label, dtype=np.int64)))
        first, stop = self._offsets[:-1], self._offsets[1:]
        middle = first + self._known
        if self.held_out:
            return np.asarray(before[stop] - before[middle])
        begins = np.minimum(first + 1, middle)
        return np.asarray(before[middle] - before[begins])
