"""The order in which rows are visited, as a formula instead of a shuffled list.

Every epoch visits every row once, in its own pseudo-random order. The row at a position is computed
from (seed, epoch, place in the epoch) alone, by a keyed permutation of the numbers below `rows`, so
that step 1,000,000 is found as fast as step 10, nothing is kept in memory, and resuming needs no
state but the step.

The permutation is a Feistel network over the smallest range of 2^bits that holds all rows, with
cycle walking: a result outside the rows is permuted again until it falls inside (Black & Rogaway
2002, "Ciphers with arbitrary finite domains", §3 and §4). Its round function is the finaliser of
splitmix64 (Steele, Lea & Flood 2014), which is a good mixer but no cipher: this is about spread, not
secrecy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]

ROUNDS = 8
"""Even, so that the two halves end where they began; eight also mixes halves of one or two bits."""
MIN_BITS = 6
"""Smaller ranges are walked within 64 numbers: a Feistel network over fewer reaches few permutations."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Order:
    """Positions of an endless training run → (epoch, row), for a fixed number of rows."""

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError(f"an order needs at least one row, not {rows}")
        self.rows, self.seed = rows, seed
        self._bits = max(MIN_BITS, (rows - 1).bit_length())

    def at(self, position: int) -> tuple[int, int]:
        """The epoch and the row at one position of the run, counted from 0."""
        epochs, rows = self.span(position, 1)
        return int(epochs[0]), int(rows[0])

    def span(self, start: int, count: int) -> tuple[Int64s, Int64s]:
        """Epochs and rows, two int64 arrays, of `count` positions from `start`; may cross epochs."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, places = np.divmod(positions, self.rows)
        return epochs, self.rows_at(epochs, places)

    def rows_at(self, epochs: ArrayLike, places: ArrayLike) -> Int64s:
        """The rows that stand at `places` (each below `rows`) of `epochs`; shapes broadcast."""
        return self._walk(epochs, places, inverse=False)

    def places_of(self, epochs: ArrayLike, rows: ArrayLike) -> Int64s:
        """The places at which `rows` stand in `epochs`: the inverse of `rows_at`."""
        return self._walk(epochs, rows, inverse=True)

    def _walk(self, epochs: ArrayLike, numbers: ArrayLike, *, inverse: bool) -> Int64s:
        wide_epochs, wide = np.broadcast_arrays(np.asarray(epochs, np.int64), np.asarray(numbers, np.int64))
        if wide.size and (wide.min() < 0 or wide.max() >= self.rows):
            raise IndexError(f"numbers from {wide.min()} to {wide.max()} with {self.rows} rows")
        keys, walked = self._keys(wide_epochs.ravel()), wide.ravel().astype(np.uint64)
        outside = np.ones(walked.shape, bool)
        while outside.any():
            walked[outside] = self._feistel(walked[outside], keys[:, outside], inverse=inverse)
            outside = walked >= np.uint64(self.rows)
        return walked.astype(np.int64).reshape(wide.shape)

    def _keys(self, epochs: Int64s) -> UInt64s:
        """One key per round and element, shape (ROUNDS, n)."""
        seed = np.array([self.seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64)
        base = mix(mix(seed) ^ epochs.astype(np.uint64))
        rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None]
        return mix(base[None, :] + rounds * _GOLDEN)

    def _feistel(self, numbers: UInt64s, keys: UInt64s, *, inverse: bool) -> UInt64s:
        """One pass over [0, 2^bits): each round xors one half with a hash of the other, in turns."""
        low_bits = self._bits // 2
        low_mask = np.uint64((1 << low_bits) - 1)
        high_mask = np.uint64((1 << (self._bits - low_bits)) - 1)
        low, high = numbers & low_mask, numbers >> np.uint64(low_bits)
        for step in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            if step % 2:
                low = low ^ (mix(high ^ keys[step]) & low_mask)
            else:
                high = high ^ (mix(low ^ keys[step]) & high_mask)
        return (high << np.uint64(low_bits)) | low


def mix(numbers: UInt64s) -> UInt64s:
    """Each 64-bit number hashed to another, one to one: the finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        mixed = numbers + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def generator(seed: int, epoch: int, index: int, purpose: int = 0) -> np.random.Generator:
    """A random generator that depends only on its four numbers, for choices made per row and epoch.

    Counter-based (Philox, Salmon et al. 2011): the numbers are key and start of the counter, so any
    row's choices are found without drawing those of another. `purpose` separates independent uses.
    """
    key: Any = [seed & 0xFFFF_FFFF_FFFF_FFFF, purpose]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, index, epoch]))
