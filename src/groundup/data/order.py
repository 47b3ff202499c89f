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

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]

ROUNDS = 8
"""Even, so that the two halves end where they began; eight also mixes halves of one or two bits."""
MIN_BITS = 6
"""Smaller ranges are walked within 64 numbers: a Feistel network over fewer reaches few permutations."""
STRETCH = 4096
"""Places of a run worked out at once where they are read one after the other: a millisecond's work."""
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFF_FFFF_FFFF_FFFF
Number = Any
"""A plain int below 2^64, or an array of uint64: the arithmetic of a pass is written once for both."""


class Order:
    """Positions of an endless training run → (epoch, row), for a fixed number of rows."""

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError(f"an order needs at least one row, not {rows}")
        self.rows, self.seed = rows, seed
        bits = max(MIN_BITS, (rows - 1).bit_length())
        self._low_bits = bits // 2
        self._low_mask, self._high_mask = (1 << bits // 2) - 1, (1 << (bits - bits // 2)) - 1

    def at(self, position: int) -> tuple[int, int]:
        """The epoch and the row at one position of the run, counted from 0."""
        epoch, place = divmod(position, self.rows)
        return epoch, self.row_at(epoch, place)

    def row_at(self, epoch: int, place: int) -> int:
        """The row that stands at a place, below `rows`, of an epoch."""
        return self._walk_one(epoch, place, inverse=False)

    def place_of(self, epoch: int, row: int) -> int:
        """The place at which a row stands in an epoch: the inverse of `row_at`."""
        return self._walk_one(epoch, row, inverse=True)

    def span(self, start: int, count: int) -> tuple[Int64s, Int64s]:
        """Epochs and rows, two int64 arrays, of `count` positions from `start`; may cross epochs.

        The same as `at` for each of them, all at once.
        """
        epochs, places = np.divmod(np.arange(start, start + count, dtype=np.int64), self.rows)
        first, last = start // self.rows, (start + count - 1) // self.rows
        seed = mix(np.array([self.seed & _MASK], np.uint64))
        keys = _keys(mix(seed ^ np.arange(first, last + 1).astype(np.uint64)), mix)
        numbers, outside = places.astype(np.uint64), np.arange(count)
        while len(outside):
            # Of a single epoch there is one key for all numbers: what is an array of one fits every other array.
            picked = keys if last == first else [key[epochs[outside] - first] for key in keys]
            numbers[outside] = self._feistel(numbers[outside], picked, mix, inverse=False)
            outside = outside[numbers[outside] >= self.rows]
        return epochs, numbers.astype(np.int64)

    def _walk_one(self, epoch: int, number: int, *, inverse: bool) -> int:
        """`span` for a single number in plain integers, which is faster than arrays of one element."""
        if not 0 <= number < self.rows:
            raise IndexError(f"{number} of {self.rows} rows")
        keys = _keys(mix_one(mix_one(self.seed & _MASK) ^ epoch), mix_one)
        number = self._feistel(number, keys, mix_one, inverse=inverse)
        while number >= self.rows:
            number = self._feistel(number, keys, mix_one, inverse=inverse)
        return number

    def _feistel(
        self, number: Number, keys: Sequence[Number], hashed: Callable[[Number], Number], *, inverse: bool
    ) -> Number:
        """One pass over [0, 2^bits): each round xors one half with a hash of the other, in turns."""
        low, high = number & self._low_mask, number >> self._low_bits
        for step in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            if step % 2:
                low = low ^ (hashed(high ^ keys[step]) & self._low_mask)
            else:
                high = high ^ (hashed(low ^ keys[step]) & self._high_mask)
        return (high << self._low_bits) | low


class Stretches:
    """An order read in passing: worked out a long stretch at a time, for small pieces take forty times as long a row.

    Whoever reads may also jump; then the stretch begins anew. Several threads may read.
    """

    def __init__(self, order: Order, length: int = STRETCH) -> None:
        self.order, self.length = order, length
        nothing = np.empty(0, np.int64)
        self._held = (0, nothing, nothing)

    def span(self, start: int, count: int) -> tuple[Int64s, Int64s]:
        """What `Order.span` gives, as arrays that must not be changed."""
        first, epochs, rows = self._held
        if start < first or start + count > first + len(rows):
            first, (epochs, rows) = start, self.order.span(start, max(count, self.length))
            self._held = (first, epochs, rows)  # in one go: another thread sees this stretch or the one before
        own = slice(start - first, start - first + count)
        return epochs[own], rows[own]


def _keys(base: Number, hashed: Callable[[Number], Number]) -> list[Number]:
    """A key for each round, from the hash of seed and epoch."""
    return [hashed(base ^ (step * _GOLDEN & _MASK)) for step in range(1, ROUNDS + 1)]


def mix(numbers: UInt64s) -> UInt64s:
    """Each 64-bit number hashed to another, one to one: the finaliser of splitmix64."""
    mixed = numbers + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def mix_one(number: int) -> int:
    """`mix` of one number below 2^64."""
    number = (number + _GOLDEN) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def generator(seed: int, epoch: int, index: int, purpose: int = 0) -> np.random.Generator:
    """A random generator that depends only on its four numbers, for choices made per row and epoch.

    Counter-based (Philox, Salmon et al. 2011): the numbers are key and start of the counter, so any
    row's choices are found without drawing those of another. `purpose` separates independent uses.
    """
    key: Any = [seed & _MASK, purpose]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, index, epoch]))
