"""Clusters of duplicates among more documents than fit in memory.

Every document leaves some 64-bit keys: one for its exact text, one for each band of its signature.
Keys are split over files by value, each file is sorted by itself, and equal keys lie side by side;
that is an external sort with one pass over the disk. Candidates are then compared by their
signatures, joined by union-find, and in each cluster every document is compared with those already
kept, so that a chain of small differences does not drag in what is not alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groundup.text.duplicates import Hashes, similarity

Ids = NDArray[np.int64]
Bytes = NDArray[np.uint8]
_ENTRY = np.dtype([("key", "<u8"), ("document", "<i8")])
PART_ENTRIES = 1 << 21
"""Entries sorted at a time; 32 MiB of them, and about four times that while they are sorted."""
MOST_PARTS = 512
_KEPT_COMPARED = 64
"""Kept documents of a cluster that a further one is compared with."""


def spread(chunks: Iterable[tuple[Ids, Hashes]], entries: int, folder: Path) -> list[Path]:
    """Write (documents, keys) to files by the value of the key, so that equal keys share a file.

    `chunks` yields document numbers (n,) and their keys (n, keys); `entries` is how many keys there
    will be in all. Returns the files, which hold about PART_ENTRIES each.
    """
    parts = int(min(MOST_PARTS, max(1, -(-entries // PART_ENTRIES))))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{part:03d}" for part in range(parts)]
    for path in paths:
        path.write_bytes(b"")
    for documents, keys in chunks:
        rows = np.empty(keys.size, _ENTRY)
        rows["key"] = keys.ravel()
        rows["document"] = np.repeat(documents, keys.shape[1])
        part = rows["key"] % np.uint64(parts)
        for number in np.unique(part) if parts > 1 else [0]:
            with paths[int(number)].open("ab") as file:
                rows[part == number].tofile(file)
    return paths


def candidates(paths: Iterable[Path]) -> Iterator[NDArray[np.int64]]:
    """Pairs (n, 2) of documents that share a key, smaller number first, file by file.

    In a run of k documents with one key each is paired with the run's first and with the one before
    it: 2k pairs, not k². The other pairs follow by joining.
    """
    for path in paths:
        rows = np.fromfile(path, _ENTRY)
        rows = rows[np.lexsort((rows["document"], rows["key"]))]
        same = rows["key"][1:] == rows["key"][:-1]
        if not same.any():
            continue
        document = rows["document"]
        begins = np.concatenate([[True], ~same])
        first = document[np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))]
        later = np.flatnonzero(same) + 1
        pairs = np.concatenate(
            [
                np.stack([first[later], document[later]], 1),
                np.stack([document[later - 1], document[later]], 1),
            ]
        )
        yield np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


class Likeness:
    """Tells how alike two documents are, from their exact hashes and stored signatures."""

    def __init__(self, exact: Hashes, slots: Bytes | None) -> None:
        """`exact`: (documents, 2); `slots`: (documents, SLOTS), all zero where there is no signature."""
        self.exact, self.slots = exact, slots

    def equal(self, left: Ids, right: Ids) -> NDArray[np.bool_]:
        """Whether two documents have the same text."""
        return np.asarray((self.exact[left] == self.exact[right]).all(axis=-1))

    def estimate(self, left: Ids, right: Ids) -> NDArray[np.float64]:
        """Similarity in [0, 1]; 1 for equal texts, 0 where a signature is missing."""
        equal = self.equal(left, right).astype(np.float64)
        if self.slots is None:
            return equal
        a, b = np.asarray(self.slots[left]), np.asarray(self.slots[right])
        known = a.any(axis=-1) & b.any(axis=-1)
        return np.maximum(equal, np.where(known, similarity(a, b), 0.0))


def verified(pairs: Iterable[NDArray[np.int64]], likeness: Likeness, threshold: float) -> Ids:
    """The pairs that are alike enough, (n, 2), each once."""
    found = [np.empty((0, 2), np.int64)]
    for chunk in pairs:
        for start in range(0, len(chunk), 1 << 16):
            part = chunk[start : start + (1 << 16)]
            found.append(part[likeness.estimate(part[:, 0], part[:, 1]) >= threshold])
    return np.unique(np.concatenate(found), axis=0)


def clusters(pairs: Ids) -> tuple[Ids, Ids]:
    """Documents that occur in pairs, and for each the number of its cluster: connected components.

    Union-find without a loop over pairs: every cluster takes the smallest label among its pairs, and
    labels are followed to their roots, until nothing changes (Shiloach & Vishkin 1982).
    """
    members, places = np.unique(pairs, return_inverse=True)
    left, right = places.reshape(-1, 2).T if len(pairs) else (places, places)
    label = np.arange(len(members))
    while True:
        low = np.minimum(label[left], label[right])
        joined = label.copy()
        np.minimum.at(joined, label[left], low)
        np.minimum.at(joined, label[right], low)
        while not np.array_equal(joined, joined[joined]):
            joined = joined[joined]
        if np.array_equal(joined, label):
            return members, label
        label = joined


def duplicates(pairs: Ids, rank: NDArray[np.int64], likeness: Likeness, threshold: float) -> Ids:
    """Documents to drop and the kept document each repeats, (n, 2).

    Within a cluster documents are taken by `rank` (of all documents; the lowest first, equal ones by
    number), and one is dropped if it is alike to one that has been kept.
    """
    if len(pairs) == 0:
        return np.empty((0, 2), np.int64)
    members, label = clusters(pairs)
    order = np.lexsort((members, rank[members], label))
    bounds = np.flatnonzero(np.diff(label[order], prepend=-1))
    dropped: list[Ids] = []
    for begin, end in zip(bounds, np.append(bounds[1:], len(order)), strict=True):
        dropped.append(_dropped(members[order[begin:end]], likeness, threshold))
    return np.concatenate(dropped)


def _dropped(cluster: Ids, likeness: Likeness, threshold: float) -> Ids:
    """(document, kept document) for those of one cluster, in order, that repeat an earlier kept one."""
    kept_for = np.full(len(cluster), -1)
    for _ in range(_KEPT_COMPARED):
        open_ = np.flatnonzero(kept_for < 0)
        if len(open_) == 0:
            break
        leader = open_[0]
        kept_for[leader] = leader
        rest = open_[1:]
        alike = likeness.estimate(np.full(len(rest), cluster[leader]), cluster[rest]) >= threshold
        kept_for[rest[alike]] = leader
    lost = np.flatnonzero((kept_for >= 0) & (kept_for != np.arange(len(cluster))))
    return np.stack([cluster[lost], cluster[kept_for[lost]]], 1)
