"""Rows of fixed length out of documents of any length.

The documents of a split lie end to end in one memory-mapped stream of tokens. A row is a window on
that stream, found by arithmetic and one binary search in the offsets of the documents: no list of
rows is built, so a split of any size opens at once.

Legend: T row length (the context), D documents, N tokens of the stream.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from groundup.data.ledger import Ledger
from groundup.errors import DataError

Row = dict[str, NDArray[Any]]
Int64s = NDArray[np.int64]
Packing = Literal["concatenate", "documents"]

IGNORED = -100
"""The label of a position that is not trained."""
NAMED_DOCUMENTS = 5
"""How many documents an error names."""


class Columns(Protocol):
    """What rows need of shards: ragged columns of numbers, and each document's size in bytes."""

    @property
    def documents(self) -> int:
        """The number of documents."""

    @property
    def bytes(self) -> NDArray[Any]:
        """UTF-8 bytes of each document's text, shape (D,)."""

    def column(self, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """All numbers of a column end to end, and D + 1 offsets into them."""


class Rows(Protocol):
    """Rows of a split: a pure function of (index, epoch), with an account of what they train."""

    def __len__(self) -> int:
        """Rows an epoch."""

    def row(self, index: int, epoch: int) -> Row:
        """One row: arrays of length T by batch key, or scalars."""

    def ledger(self) -> Ledger:
        """What is trained, masked, cropped, padded and dropped in an epoch."""

    def unit_of(self, index: int) -> int:
        """What a row is evaluated as part of (its document); intervals resample over units."""

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of text that the row's trained labels pay for; they add up over rows."""


class Stream:
    """The tokens of a split end to end, and where each document begins."""

    def __init__(self, shards: Columns) -> None:
        flat, offsets = shards.column("input_ids")
        self.flat, self.offsets = np.asarray(flat), np.asarray(offsets)
        self.document_bytes = shards.bytes
        self.documents, self.tokens = shards.documents, int(self.offsets[-1])

    def slice(self, start: int, stop: int) -> Int64s:
        """Tokens [start, stop) as int64; may be shorter at the end of the stream."""
        return np.asarray(self.flat[start:stop], np.int64)

    def document_at(self, token: int) -> int:
        """The document of a token."""
        return int(np.searchsorted(self.offsets, token, side="right")) - 1

    def owners(self, start: int, stop: int) -> Int64s:
        """The document of each of the tokens [start, stop)."""
        first = self.document_at(start)
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        inside = np.searchsorted(self.offsets[first : last + 1], np.arange(start, stop), side="right") - 1
        return np.asarray(first + inside, np.int64)

    def bytes_before(self, token: int) -> float:
        """Bytes of text before a token; the tokens of a document share its bytes evenly."""
        if token <= 0:
            return 0.0
        document = int(np.searchsorted(self.offsets, token, side="left")) - 1
        begin, end = int(self.offsets[document]), int(self.offsets[document + 1])
        share = (token - begin) / (end - begin)
        return float(self._bytes_total[document]) + share * float(self.document_bytes[document])

    @cached_property
    def _bytes_total(self) -> Int64s:
        return np.concatenate(([0], np.cumsum(self.document_bytes, dtype=np.int64)))

    def empty(self, below: int = 1) -> tuple[int, tuple[int, ...]]:
        """How many documents have fewer than `below` tokens, and the first few of them."""
        short = np.flatnonzero(np.diff(self.offsets) < below)
        return len(short), tuple(int(i) for i in short[:NAMED_DOCUMENTS])


class CausalRows:
    """Rows for predicting the next token: row r reads tokens [rT, rT + T) and predicts [rT + 1, rT + T].

    Every token of the stream but the first is predicted exactly once an epoch; only the last row may
    be part padding. With `packing="documents"` the rows also carry `document_ids` (T,) int32, counted
    from 0 in the row, and `positions` (T,) that restart at each document, and the label that would
    predict a document's first token from the end of another is masked.
    """

    def __init__(self, shards: Columns, *, context: int, pad_id: int, packing: Packing) -> None:
        self.stream = Stream(shards)
        self.context, self.pad_id, self.packing = context, pad_id, packing
        self._predicted = max(0, self.stream.tokens - 1)
        self.ledger().require_labels()

    def __len__(self) -> int:
        return -(-self._predicted // self.context)

    def row(self, index: int, epoch: int) -> Row:
        """`input_ids` and `labels` (T,) int64, the same in every epoch; see the class for the rest."""
        start, stop = self._range(index)
        tokens = self.stream.slice(start, stop + 1)
        inputs = np.full(self.context, self.pad_id, np.int64)
        labels = np.full(self.context, IGNORED, np.int64)
        inputs[: stop - start], labels[: stop - start] = tokens[:-1], tokens[1:]
        if self.packing == "concatenate":
            return {"input_ids": inputs, "labels": labels}
        owners = self.stream.owners(start, stop + 1)
        labels[: stop - start][owners[1:] != owners[:-1]] = IGNORED
        return {"input_ids": inputs, "labels": labels, **block_diagonal(owners[:-1], self.context)}

    def ledger(self) -> Ledger:
        """Exact counts; with `packing="documents"` each document's first token is masked."""
        dropped, _ = self.stream.empty()
        _, unlabelled = self.stream.empty(below=2)
        if self.packing == "documents":
            masked = max(0, self.stream.documents - dropped - 1)
        else:
            masked, unlabelled = 0, unlabelled if self._predicted == 0 else ()
        return Ledger(
            documents=self.stream.documents,
            rows=len(self),
            tokens=self.stream.tokens,
            trained=self._predicted - masked,
            masked=masked,
            padded=len(self) * self.context - self._predicted,
            dropped=dropped,
            unlabelled=unlabelled,
        )

    def unit_of(self, index: int) -> int:
        """The row itself: packed rows cross documents."""
        return index

    def bytes_of(self, index: int) -> float:
        """Bytes of the tokens the row predicts; inside a document they are shared evenly by its tokens."""
        start, stop = self._range(index)
        return self.stream.bytes_before(stop + 1) - self.stream.bytes_before(start + 1)

    def _range(self, index: int) -> tuple[int, int]:
        """First and one past the last input token of a row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self.context
        return start, min(start + self.context, self._predicted)


def block_diagonal(owners: Int64s, length: int) -> Row:
    """`document_ids` and `positions` of a row whose tokens belong to `owners`, filled up to `length`.

    Both restart in the row: ids count the row's documents from 0, positions count from the first
    token of the document that the row holds. Padding is a document of its own.
    """
    begins = np.flatnonzero(np.concatenate(([True], owners[1:] != owners[:-1])))
    ids = np.cumsum(np.concatenate(([False], owners[1:] != owners[:-1])))
    positions = np.arange(len(owners)) - begins[ids]
    spare = length - len(owners)
    return {
        "document_ids": np.concatenate((ids, np.full(spare, len(begins)))).astype(np.int32),
        "positions": np.concatenate((positions, np.arange(spare))).astype(np.int64),
    }


class DocumentRows:
    """Windows on single documents, for measuring a causal model: every token is predicted once.

    A document of n tokens is read as `start_id` followed by its tokens, so its first token is
    predicted too, from the start alone. Longer documents are read in windows of T that move on by
    `stride`: each later window predicts only its last `stride` tokens, with at least T - stride tokens
    before them.
    Windows are ordered by length, longest first, and padded to a power of two, so that a batch holds
    like lengths and only a few shapes occur.

    `heads` and `tails` are how many of the stored tokens at either end of a document are left out.
    `spelled_bytes` (D,) are bytes of each document that its tokens do not tell. A document's first row
    then carries `spelled_nats` (), the cost of telling them at eight bits each, and other rows a zero.
    """

    def __init__(
        self,
        shards: Columns,
        *,
        context: int,
        stride: int,
        start_id: int,
        pad_id: int,
        heads: int,
        tails: int,
        max_documents: int | None = None,
        spelled_bytes: NDArray[Any] | None = None,
    ) -> None:
        if not 0 < stride <= context:
            raise ValueError(f"a stride of {stride} does not fit a context of {context}")
        self.stream = Stream(shards)
        self.context, self.stride, self.start_id, self.pad_id = context, stride, start_id, pad_id
        self._heads, self._spelled_bytes = heads, spelled_bytes
        sizes = np.diff(self.stream.offsets)
        self.chosen = spread(self.stream.documents, max_documents)
        self._text = np.maximum(0, sizes[self.chosen] - np.where(sizes[self.chosen] > 0, heads + tails, 0))
        self._order, self._slot, self._window = self._index()
        self.ledger().require_labels()

    def _index(self) -> tuple[Int64s, Int64s, Int64s]:
        windows = np.where(self._text > 0, 1 + np.maximum(0, -(-(self._text - self.context) // self.stride)), 0)
        slots = np.repeat(np.arange(len(windows)), windows)
        numbers = np.arange(len(slots)) - np.repeat(np.cumsum(windows) - windows, windows)
        lengths = np.minimum(self._text[slots] - numbers * self.stride, self.context)
        return np.argsort(-lengths, kind="stable"), slots, numbers

    def __len__(self) -> int:
        return len(self._order)

    def row(self, index: int, epoch: int) -> Row:
        """`input_ids` and `labels` (L,) int64 with L a power of two, or T; the same in every epoch."""
        slot, window = self._place(index)
        document, size = int(self.chosen[slot]), int(self._text[slot])
        first = int(self.stream.offsets[document]) + self._heads
        start, stop = window * self.stride, min(window * self.stride + self.context, size)
        length = min(self.context, 1 << (stop - start - 1).bit_length())
        inputs, labels = np.full(length, self.pad_id, np.int64), np.full(length, IGNORED, np.int64)
        tokens = self.stream.slice(first + start, first + stop)
        inputs[1 : stop - start] = tokens[:-1]
        inputs[0] = self.start_id if start == 0 else int(self.stream.flat[first + start - 1])
        fresh = 0 if window == 0 else self.context - self.stride
        labels[fresh : stop - start] = tokens[fresh:]
        row: Row = {"input_ids": inputs, "labels": labels}
        if self._spelled_bytes is not None:
            row["spelled_nats"] = np.array(self._spelled_bytes[document] * np.log(256) * (window == 0), np.float64)
        return row

    def ledger(self) -> Ledger:
        """Exact counts over the documents chosen; masked are the tokens that only serve as context."""
        trained = int(self._text.sum())
        lengths = np.minimum(self._text[self._slot] - self._window * self.stride, self.context)
        seen = int(lengths.sum())
        padded_to = int((1 << np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)).clip(max=self.context).sum())
        return Ledger(
            documents=len(self.chosen),
            rows=len(self),
            tokens=int(np.diff(self.stream.offsets)[self.chosen].sum()),
            trained=trained,
            masked=seen - trained,
            padded=padded_to - seen,
            dropped=int((self._text == 0).sum()),
            unlabelled=tuple(int(i) for i in self.chosen[self._text == 0][:NAMED_DOCUMENTS]),
        )

    def unit_of(self, index: int) -> int:
        """The document of the row, by index in the split."""
        return int(self.chosen[self._place(index)[0]])

    def bytes_of(self, index: int) -> float:
        """All bytes of a document, counted at its first window, so that sums over documents are exact."""
        slot, window = self._place(index)
        return float(self.stream.document_bytes[self.chosen[slot]]) if window == 0 else 0.0

    def _place(self, index: int) -> tuple[int, int]:
        place = int(self._order[index])
        return int(self._slot[place]), int(self._window[place])


def spread(count: int, most: int | None) -> Int64s:
    """At most `most` of the numbers below `count`, evenly spread and ascending."""
    if most is None or most >= count:
        return np.arange(count, dtype=np.int64)
    return np.arange(most, dtype=np.int64) * count // most


def require_context(stream: Stream, context: int, *, what: str) -> None:
    """Raise DataError if a whole split has tokens, but fewer than one row."""
    if stream.tokens > context or not stream.tokens:
        return
    held = f"{stream.tokens} tokens in {stream.documents} documents"
    raise DataError(
        f"the context of {context} tokens is longer than {what}: {held}",
        fix=f"set the model's context to {max(1, stream.tokens - 1)} or less, or give more text",
    )
