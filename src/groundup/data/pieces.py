"""Rows of different lengths, some of which come from the same document: a long chat in several pieces.

The encoded columns of a document hold its pieces end to end, and `pieces` holds the length of each.
Which tokens are trained is a column of zeros and ones; the label of a position is the token after it.

Axes: D documents, R rows, T tokens of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.ledger import Ledger
from groundup.data.packing import IGNORED, NAMED_DOCUMENTS, Columns, Int64s, Row

PIECES, TRAINED, CUT, WAS_LABELLED = "pieces", "trained", "cropped", "answers"
"""Columns: lengths of a document's pieces; for each token whether it is trained; and one number a document
each, how many tokens were cut off and how many there were to train before."""


class Pieces:
    """Rows for predicting the next token of each piece: T inputs and labels from T + 1 tokens."""

    def __init__(self, shards: Columns, *, per_document: int = 1) -> None:
        """`per_document` is how many pieces a document has that is not cut.

        Rows that train nothing are no error here: who knows the documents' names asks the ledger.
        """
        self._per_document = per_document
        self._ids = shards.column("input_ids")[0]
        self._trained = shards.column(TRAINED)[0]
        sizes, offsets = shards.column(PIECES)
        self._sizes = np.asarray(sizes, np.int64)
        self._starts: Int64s = np.cumsum(self._sizes) - self._sizes
        self._owners: Int64s = np.repeat(np.arange(shards.documents), np.diff(offsets))
        self._cut = np.asarray(shards.column(CUT)[0], np.int64)
        self._answers = np.asarray(shards.column(WAS_LABELLED)[0], np.int64)
        self.document_bytes, self._documents = shards.bytes, shards.documents
        self.lengths: Int64s = self._sizes - 1
        """Tokens of each row."""

    def __len__(self) -> int:
        return len(self._sizes)

    def row(self, index: int, epoch: int) -> Row:
        """`input_ids` and `labels` (T,) int64, the same in every epoch."""
        start = self._start(index)
        ids = np.asarray(self._ids[start : start + self._sizes[index]], np.int64)
        trained = np.asarray(self._trained[start + 1 : start + self._sizes[index]])
        return {"input_ids": ids[:-1], "labels": np.where(trained == 1, ids[1:], IGNORED)}

    def document_of(self, index: int) -> int:
        """The document of a row, by its place in the split."""
        self._start(index)
        return int(self._owners[index])

    def unit_of(self, index: int) -> int:
        """The document: its pieces are drawn together when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of the document's text, counted at its first piece."""
        owner = self.document_of(index)
        is_first = index == 0 or self._owners[index - 1] != owner
        return float(self.document_bytes[owner]) if is_first else 0.0

    def ledger(self) -> Ledger:
        """Exact counts."""
        trained = self._labels_by_row()
        pieces = np.bincount(self._owners, minlength=self._documents)
        labels = np.bincount(self._owners, weights=trained, minlength=self._documents)
        without = np.flatnonzero(labels == 0)
        return Ledger(
            documents=self._documents,
            rows=len(self),
            tokens=int(self._sizes.sum() + self._cut.sum()),
            trained=int(trained.sum()),
            masked=int(self.lengths.sum() - trained.sum()),
            cropped=int(self._cut.sum()),
            dropped=int((pieces == 0).sum()),
            overlong=int(((pieces > self._per_document) | (self._cut > 0)).sum()),
            emptied=int(((labels == 0) & (self._answers > 0)).sum()),
            unlabelled=tuple(int(i) for i in without[:NAMED_DOCUMENTS]),
        )

    def _labels_by_row(self) -> Int64s:
        """How many labels each row trains; the first token of a piece is read, never predicted."""
        before = np.concatenate(([0], np.cumsum(np.asarray(self._trained) == 1, dtype=np.int64)))
        found: NDArray[Any] = before[self._starts + self._sizes] - before[np.minimum(self._starts + 1, len(before) - 1)]
        return np.asarray(found, np.int64)

    def _start(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return int(self._starts[index])


def columns(pieces: list[tuple[list[int], list[bool]]], *, cut: int, answers: int) -> dict[str, list[int]]:
    """The encoded columns of one document from its pieces: ids, and for each whether it is trained."""
    return {
        "input_ids": [token for ids, _ in pieces for token in ids],
        TRAINED: [int(flag) for _, flags in pieces for flag in flags],
        PIECES: [len(ids) for ids, _ in pieces],
        CUT: [cut],
        WAS_LABELLED: [answers],
    }
