"""Rows of examples that may be too long for one row: each is read in one window or several.

`encode` gives the windows of an example end to end in every column, and their sizes in the column
`windows`. A row is one window; `unit_of` tells whose it is, so that answers can be put together again.

Axes: W windows of a split, T tokens of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from groundup.data.examples import CROPPED
from groundup.data.ledger import Ledger
from groundup.data.packing import IGNORED, NAMED_DOCUMENTS, Columns, Int64s, Row

WINDOWS = "windows"
"""The column of window sizes in tokens, one number a window."""


class Windows:
    """The rows of a split whose examples are one window each or several.

    tokens: columns with one value a token, `input_ids` first. vectors: columns with a fixed number of
    values a window, by name. `labels` is the column that is trained: -100 in it trains nothing.
    """

    def __init__(
        self,
        shards: Columns,
        *,
        labels: str,
        tokens: Sequence[str] = ("input_ids",),
        vectors: Mapping[str, int] = {},
        left_out: Sequence[int] = (),
        first_only: bool = False,
    ) -> None:
        """`left_out` are examples that are not used; with `first_only` an example is cut to its first window.
        Raises DataError without any label."""
        self.labels, self.tokens, self.vectors = labels, tuple(tokens), dict(vectors)
        sizes, offsets = (np.asarray(found, np.int64) for found in shards.column(WINDOWS))
        owners = np.repeat(np.arange(shards.documents), np.diff(offsets))
        starts = np.cumsum(sizes) - sizes
        used = ~np.isin(owners, np.asarray(left_out, np.int64)) & (sizes > 0)
        is_first = np.diff(owners, prepend=-1) != 0
        self._overlong = len(np.unique(owners[~is_first]))
        self._unused = int(sizes[used & ~is_first].sum()) if first_only else 0
        used &= is_first | (not first_only)
        self._starts, self._owners = starts[used], owners[used]
        self.lengths: Int64s = sizes[used]
        self._place = np.flatnonzero(used)
        self._flat = {name: shards.column(name)[0] for name in (*self.tokens, *self.vectors)}
        self.document_bytes = shards.bytes
        self._documents, self._tokens = shards.documents, int(sizes.sum())
        self._cropped = np.asarray(shards.column(CROPPED)[0], np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int, epoch: int) -> Row:
        """The arrays of one window by batch key, the same in every epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, place = int(self._starts[index]), int(self._place[index])
        stop = start + int(self.lengths[index])
        row: Row = {name: np.asarray(self._flat[name][start:stop], np.int64) for name in self.tokens}
        for name, width in self.vectors.items():
            row[name] = np.asarray(self._flat[name][place * width : (place + 1) * width], np.int64)
        return row

    def document_of(self, index: int) -> int:
        """The example of a row, by its place in the split."""
        return int(self._owners[index])

    def unit_of(self, index: int) -> int:
        """The example of a row: its windows are drawn together when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of the example's text, counted at its first window."""
        is_first = index == 0 or self._owners[index - 1] != self._owners[index]
        return float(self.document_bytes[self.document_of(index)]) if is_first else 0.0

    def ledger(self) -> Ledger:
        """Exact counts; a trained label is an entry of the label column that is not -100."""
        trained_W = self._trained_by_window()
        kept = np.unique(self._owners)
        by_document = np.bincount(self._owners, trained_W, self._documents).astype(np.int64)
        positions = int(self.lengths.sum()) if self.labels in self.tokens else len(self) * self.vectors[self.labels]
        without = kept[by_document[kept] == 0]
        return Ledger(
            documents=self._documents,
            rows=len(self),
            tokens=self._tokens,
            trained=int(trained_W.sum()),
            masked=positions - int(trained_W.sum()),
            cropped=int(self._cropped[kept].sum()) + self._unused,
            dropped=self._documents - len(kept),
            overlong=self._overlong,
            unlabelled=tuple(int(i) for i in without[:NAMED_DOCUMENTS]),
        )

    def _trained_by_window(self) -> Int64s:
        is_trained = np.asarray(self._flat[self.labels]) != IGNORED
        before = np.concatenate(([0], np.cumsum(is_trained, dtype=np.int64)))
        if self.labels in self.tokens:
            return np.asarray(before[self._starts + self.lengths] - before[self._starts], np.int64)
        width = self.vectors[self.labels]
        return np.asarray(before[(self._place + 1) * width] - before[self._place * width], np.int64)
