"""Test rows that stand in the training rows too, word for word or nearly: what memory alone can answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.text.duplicates import (
    Hashes,
    band_hashes,
    bands_for,
    exact_hash,
    fewest_shingles,
    shingles,
    signatures,
    similarity,
)

SHINGLE = 5
"""Characters of the runs by which two texts are compared."""
SHOWN = 10
_CHUNK = 2000


@dataclass(frozen=True)
class Leakage:
    """Which rows of a test are in the training rows, and how alike they are."""

    train: int
    test: int
    threshold: float
    exact: list[int] = field(default_factory=list)
    """Test rows, by number, whose text is a training text but for case and spacing."""
    near: list[tuple[int, int, float]] = field(default_factory=list)
    """Test row, the training row most like it, and their similarity, of those that are not exact."""

    @property
    def rows(self) -> list[int]:
        """Every leaked test row, ascending."""
        return sorted({*self.exact, *(row for row, _, _ in self.near)})

    def as_data(self, train: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
        """Plain data for reports: counts and some examples."""
        closest = sorted(self.near, key=lambda found: -found[2])[:SHOWN]
        shown = [{"test": test[a], "train": train[b], "similarity": round(alike, 3)} for a, b, alike in closest]
        return {
            "train": self.train,
            "test": self.test,
            "threshold": self.threshold,
            "exact": len(self.exact),
            "near": len(self.near),
            "examples": shown,
        }


def find(train: Sequence[str], test: Sequence[str], *, threshold: float = 0.8, only_exact: bool = False) -> Leakage:
    """The test texts that stand among the training texts, exactly or by similarity of their runs of characters.

    Texts too short for a similarity to mean anything are compared exactly only, and so are all with `only_exact`:
    where a text only stands for columns or a picture, likeness of its characters means nothing.
    """
    known = {exact_hash(_plain(text)) for text in train}
    exact = [row for row, text in enumerate(test) if exact_hash(_plain(text)) in known]
    skip = set(exact)
    rest = [] if only_exact else [row for row in range(len(test)) if row not in skip]
    near = _near(train, [test[row] for row in rest], threshold) if rest and len(train) else []
    return Leakage(len(train), len(test), threshold, exact, [(rest[row], other, alike) for row, other, alike in near])


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _near(train: Sequence[str], test: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    bands = bands_for(threshold)
    train_slots, test_slots = _signed(train, threshold), _signed(test, threshold)
    (train_rows, train_full), (test_rows, test_full) = train_slots, test_slots
    if not len(train_rows) or not len(test_rows):
        return []
    left, right = band_hashes(test_full, bands), band_hashes(train_full, bands)
    pairs = np.unique(np.concatenate([_shared(left[:, b], right[:, b]) for b in range(bands.count)]), axis=0)
    best: dict[int, tuple[int, float]] = {}
    a, b = test_full.astype(np.uint8), train_full.astype(np.uint8)
    for start in range(0, len(pairs), 1 << 16):
        part = pairs[start : start + (1 << 16)]
        alike = similarity(a[part[:, 0]], b[part[:, 1]])
        for (row, other), score in zip(part[alike >= threshold], alike[alike >= threshold], strict=True):
            if score > best.get(int(row), (0, 0.0))[1]:
                best[int(row)] = (int(other), float(score))
    return [(int(test_rows[row]), int(train_rows[other]), score) for row, (other, score) in sorted(best.items())]


def _signed(texts: Sequence[str], threshold: float) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The numbers of texts that are long enough, and their MinHash signatures."""
    rows, found = [], []
    for start in range(0, len(texts), _CHUNK):
        hashes, offsets = shingles(texts[start : start + _CHUNK], SHINGLE)
        full = signatures(hashes, offsets)
        long = np.diff(offsets.astype(np.int64)) >= fewest_shingles(threshold, SHINGLE)
        rows.append(start + np.flatnonzero(long))
        found.append(full[long])
    return np.concatenate(rows), np.concatenate(found)


def _shared(left: Hashes, right: Hashes) -> NDArray[np.int64]:
    """Pairs of places (left, right) with equal hashes; of many equal ones on the right the first few."""
    order = np.argsort(right, kind="stable")
    begin = np.searchsorted(right[order], left, side="left")
    count = np.minimum(np.searchsorted(right[order], left, side="right") - begin, 8)
    place = np.repeat(np.arange(len(left)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.stack([place, order[np.repeat(begin, count) + within]], 1).astype(np.int64)
