"""Rows of texts that belong together: a text, its partner, and what it is to be told from.

A row is one example; its texts lie end to end in it, and `apart` takes them apart for a batch. The
partner is given, or it is another example with the same label, drawn anew in every epoch.

Axes: R rows, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from groundup.data.examples import CROPPED
from groundup.data.ledger import Ledger
from groundup.data.order import generator
from groundup.data.packing import NAMED_DOCUMENTS, Columns, Int64s, Row

SIZES, GROUPS = "texts", "groups"
"""Columns: the tokens of each text of an example, and what each text says, as a number: equal numbers mean the same."""
_PARTNERS = 3
"""The purpose of what is drawn here, so that nothing else draws the same numbers."""


class Contrast:
    """The rows of a split of texts with partners. Random is only which partner, and which negatives, an epoch has."""

    def __init__(self, shards: Columns, seed: int, *, by_label: bool, negatives: int) -> None:
        """With `by_label` an example is one text and its group is its label. Raises DataError without any pair."""
        self.seed, self.by_label, self.negatives = seed, by_label, negatives
        self._ids, self._types = shards.column("input_ids")[0], shards.column("token_type_ids")[0]
        sizes, offsets = shards.column(SIZES)
        self._sizes, self._texts = np.asarray(sizes, np.int64), np.asarray(offsets, np.int64)
        self._starts: Int64s = np.cumsum(self._sizes) - self._sizes
        self._groups = np.asarray(shards.column(GROUPS)[0], np.int64)
        self.document_bytes, self._documents = shards.bytes, shards.documents
        self._cropped = np.asarray(shards.column(CROPPED)[0], np.int64)
        counts = np.diff(self._texts)
        self._members: dict[int, Int64s] = {}
        if by_label:
            labels = np.where(counts > 0, self._groups[np.minimum(self._texts[:-1], len(self._groups) - 1)], -1)
            found = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels) if label >= 0}
            self._members = {label: places for label, places in found.items() if len(places) > 1}
            kept = np.isin(labels, list(self._members))
        else:
            kept = counts > 1
        self.chosen: Int64s = np.flatnonzero(kept)
        self.lengths: Int64s = self._lengths()
        """Tokens of each row; of a row whose partner is drawn, twice its own."""
        self.ledger().require_labels()

    def _lengths(self) -> Int64s:
        if self.by_label:
            return np.asarray(2 * self._sizes[self._texts[self.chosen]], np.int64)
        stops = np.minimum(self._texts[self.chosen + 1], self._texts[self.chosen] + 2 + self.negatives)
        before = np.concatenate(([0], np.cumsum(self._sizes)))
        return np.asarray(before[stops] - before[self._texts[self.chosen]], np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def row(self, index: int, epoch: int) -> Row:
        """The texts of an example end to end: `input_ids`, `token_type_ids`, `texts` (their sizes) and `groups`."""
        texts = self._drawn(self.document_of(index), index, epoch)
        spans = [slice(int(self._starts[text]), int(self._starts[text] + self._sizes[text])) for text in texts]
        return {
            "input_ids": np.concatenate([np.asarray(self._ids[span], np.int64) for span in spans]),
            "token_type_ids": np.concatenate([np.asarray(self._types[span], np.int64) for span in spans]),
            SIZES: self._sizes[texts],
            GROUPS: self._groups[texts],
        }

    def _drawn(self, document: int, index: int, epoch: int) -> list[int]:
        """The texts of a row in an epoch: itself, its partner, its negatives."""
        first, last = int(self._texts[document]), int(self._texts[document + 1])
        if not self.by_label:
            given = list(range(first + 2, last))
            if len(given) > self.negatives:
                picked = generator(self.seed, epoch, index, _PARTNERS).choice(len(given), self.negatives, replace=False)
                given = [given[i] for i in sorted(picked.tolist())]
            return [first, first + 1, *given]
        members = self._members[int(self._groups[first])]
        place = int(np.searchsorted(members, document))
        step = int(generator(self.seed, epoch, index, _PARTNERS).integers(1, len(members)))
        return [first, int(self._texts[members[(place + step) % len(members)]])]

    def document_of(self, index: int) -> int:
        """The example of a row, by its place in the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return int(self.chosen[index])

    def unit_of(self, index: int) -> int:
        """The example itself: each is drawn alone when an interval is made."""
        return self.document_of(index)

    def bytes_of(self, index: int) -> float:
        """UTF-8 bytes of the example's own text."""
        return float(self.document_bytes[self.document_of(index)])

    def ledger(self) -> Ledger:
        """Exact counts; one label a row: which text is its partner."""
        alone = np.setdiff1d(np.arange(self._documents), self.chosen)
        return Ledger(
            documents=self._documents,
            rows=len(self),
            tokens=int(self._sizes.sum()),
            trained=len(self),
            masked=0,
            cropped=int(self._cropped[self.chosen].sum()),
            dropped=len(alone),
            unlabelled=tuple(int(i) for i in alone[:NAMED_DOCUMENTS]),
        )


def apart(rows: Sequence[Row]) -> Iterator[Row]:
    """Each text of the rows as a row of its own, longest first, with `owner`, `role` and `group` as 0-d arrays.

    owner: the row it is from; role: 0 the text itself, 1 its partner, 2 what it is to be told from.
    """
    found: list[Row] = []
    for owner, row in enumerate(rows):
        stops = np.cumsum(row[SIZES])
        for place, (stop, size) in enumerate(zip(stops.tolist(), row[SIZES].tolist(), strict=True)):
            own = {name: row[name][stop - size : stop] for name in ("input_ids", "token_type_ids")}
            about = {"owner": owner, "role": min(place, 2), "group": int(row[GROUPS][place])}
            found.append(own | {name: np.array(value, np.int64) for name, value in about.items()})
    yield from sorted(found, key=lambda one: -len(one["input_ids"]))
