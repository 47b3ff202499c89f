"""Rows of two splits as one: new rows, and some of another kind among them.

Used to learn from rows that a model labelled itself beside those that people labelled, and to go on
learning in a new domain while some of the old one is shown again, so that it is not forgotten
(experience replay: Robins 1995; Rolnick et al. 2019).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from groundup.data.ledger import Ledger
from groundup.data.order import Order
from groundup.data.packing import Int64s, Row


class Mixed:
    """All rows of `first`, and of `second` all or as many as make up `share` of the whole.

    Which rows of `second` are taken is drawn once, by the seed. If they have lengths, so does the mixture.
    """

    def __init__(self, first: Any, second: Any, *, share: float | None, seed: int) -> None:
        wanted = len(second) if share is None else round(share / (1 - share) * len(first))
        self.first, self.second = first, second
        count = min(len(second), wanted)
        self.taken: Int64s = Order(len(second), seed).span(0, count)[1] if count else np.empty(0, np.int64)
        if hasattr(first, "lengths"):
            self.lengths = np.concatenate((first.lengths, second.lengths[self.taken]))

    def __len__(self) -> int:
        return len(self.first) + len(self.taken)

    def _find(self, index: int) -> tuple[Any, int]:
        if index < len(self.first):
            return self.first, index
        return self.second, int(self.taken[index - len(self.first)])

    def row(self, index: int, epoch: int) -> Row:
        """The row of the part it belongs to."""
        rows, own = self._find(index)
        found: Row = rows.row(own, epoch)
        return found

    def is_second(self, index: int) -> bool:
        """Whether a row is from the second part."""
        return index >= len(self.first)

    def document_of(self, index: int) -> int:
        """The document of a row, in the split of its part."""
        rows, own = self._find(index)
        return int(rows.document_of(own))

    def unit_of(self, index: int) -> int:
        """As `document_of`: a mixture is trained on, not measured."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of the text of a row."""
        rows, own = self._find(index)
        return float(rows.bytes_of(own))

    def ledger(self) -> Ledger:
        """The first part's counts and the taken share of the second's."""
        one, two = self.first.ledger(), self.second.ledger()
        share = len(self.taken) / max(1, len(self.second))
        summed = [f.name for f in dataclasses.fields(Ledger) if f.type in (int, "int")]
        counts = {name: getattr(one, name) + round(share * getattr(two, name)) for name in summed}
        mixed: Ledger = dataclasses.replace(one, **counts, is_expected=share not in (0.0, 1.0))
        return mixed
