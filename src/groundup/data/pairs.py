"""Rows of several sequences that belong together: two answers to a question, or an answer and a stranger's.

A row is one example: its sequences end to end, with the length of each in `sizes`. `apart` makes them
rows of their own, neighbours in a batch, so that how a batch is cut never separates them.

Axes: R rows, S sequences of a row, T tokens of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.ledger import Ledger
from groundup.data.packing import IGNORED, Columns, Int64s, Row
from groundup.data.pieces import Pieces

SIDE, REFERENCE, SIZES = "side", "reference", "sizes"
"""Keys of a row, one number a sequence: what it is, its log-probability before training, its tokens."""
REJECTED, CHOSEN, STRANGE = 0, 1, 2
"""Sides: an answer that is bad, or worse; one that is good, or better; one that belongs to another question."""


class Pairs:
    """Rows of two answers to one question, the chosen one first."""

    sequences = 2

    def __init__(self, shards: Columns) -> None:
        self.pieces = Pieces(shards, per_document=self.per_document)
        self.reference: NDArray[Any] | None = None
        """(R,S) float: the log-probabilities of the answers under the model that training begins from."""
        self.lengths: Int64s = self._lengths()

    @property
    def per_document(self) -> int:
        """How many sequences of an example are stored."""
        return 2

    def __len__(self) -> int:
        return len(self.pieces) // self.per_document

    def row(self, index: int, epoch: int) -> Row:
        """`input_ids` and `labels` (T,), `sizes`, `side` and `reference` (S,): NaN as long as it is not known."""
        parts = self._sequences(index)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in ("input_ids", "labels")}
        known = np.full(self.sequences, np.nan) if self.reference is None else self.reference[index]
        sizes = np.array([len(part["input_ids"]) for part in parts], np.int64)
        return {**joined, SIZES: sizes, SIDE: self._sides(index), REFERENCE: np.asarray(known, np.float32)}

    def _sequences(self, index: int) -> list[Row]:
        return [self.pieces.row(2 * index + part, 0) for part in range(2)]

    def _sides(self, index: int) -> Int64s:
        return np.array([CHOSEN, REJECTED], np.int64)

    def _lengths(self) -> Int64s:
        return np.asarray(self.pieces.lengths.reshape(-1, 2).sum(1), np.int64)

    def document_of(self, index: int) -> int:
        """The document of a row, by its place in the split."""
        return self.pieces.document_of(index * self.per_document)

    def unit_of(self, index: int) -> int:
        """The example itself: each is drawn alone when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of the example's text."""
        return self.pieces.bytes_of(index * self.per_document)

    def ledger(self) -> Ledger:
        """Exact counts, of the tokens of answers."""
        return dataclasses.replace(self.pieces.ledger(), rows=len(self))


class Judged(Pairs):
    """Rows of one answer that is good or bad, beside a stranger: the same question with the next row's answer.

    The strangers tell how far the model has moved on what nobody asked about (the reference point of KTO).
    """

    def __init__(self, shards: Columns) -> None:
        self._desirable = np.asarray(shards.column(SIDE)[0], np.int64)
        super().__init__(shards)

    @property
    def per_document(self) -> int:
        """How many sequences of an example are stored."""
        return 1

    def _sequences(self, index: int) -> list[Row]:
        own, other = self.pieces.row(index, 0), self.pieces.row((index + 1) % len(self.pieces), 0)
        question, answer = _answer_begins(own), _answer_begins(other)
        stranger = {
            "input_ids": np.concatenate((own["input_ids"][: question + 1], other["input_ids"][answer + 1 :])),
            "labels": np.concatenate((own["labels"][:question], other["labels"][answer:])),
        }
        longest = int(self.pieces.lengths.max())
        return [own, {key: value[:longest] for key, value in stranger.items()}]

    def _sides(self, index: int) -> Int64s:
        return np.array([self._desirable[self.document_of(index)], STRANGE], np.int64)

    def _lengths(self) -> Int64s:
        own = self.pieces.lengths
        begins = np.array([_answer_begins(self.pieces.row(i, 0)) for i in range(len(own))], np.int64)
        strangers = np.minimum(begins + np.roll(own - begins, -1), own.max(initial=0))
        return np.asarray(own + strangers, np.int64)


def apart(rows: Sequence[Row]) -> Iterator[Row]:
    """The sequences of rows one by one, each a row of its own with its `side` and `reference`."""
    for row in rows:
        stop = np.cumsum(row[SIZES])
        for number, (first, last) in enumerate(zip(stop - row[SIZES], stop, strict=True)):
            of_tokens = {key: row[key][first:last] for key in ("input_ids", "labels")}
            yield of_tokens | {key: row[key][number] for key in (SIDE, REFERENCE)}


def _answer_begins(row: Row) -> int:
    """The place of the first label."""
    return int(np.argmax(row["labels"] != IGNORED))
