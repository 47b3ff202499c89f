"""Rows of several lengths for sequences that come, grow and go: what a server keeps its caches in.

A CPU attends fastest to views of contiguous memory. So each running sequence has a contiguous row; rows are
kept in classes by their length, and those in use of a class are neighbours, so that one call without a copy
attends for all of them. A sequence that outgrows its class is copied to the next. Sequences are known by a
number that stays theirs wherever their row is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from groundup.nn.kv_cache import KeyValueCache

SMALLEST = 256
"""Tokens of the shortest row."""
GROWTH = 4
"""How many times longer the rows of the next class are."""


def row_lengths(longest: int, block: int, smallest: int = SMALLEST) -> list[int]:
    """The lengths of rows by class, shortest first, in whole blocks; the last holds `longest` tokens."""
    lengths = []
    length = smallest
    while length < longest:
        lengths.append(length)
        length *= GROWTH
    return [-(-length // block) * block for length in (*lengths, longest)]


class RowPool:
    """Rows in classes, opened, grown and closed one by one; memory grows and shrinks with them.

    `make(slots)` gives an empty cache (no rows yet) with rows of so many slots.
    """

    def __init__(self, make: Callable[[int], KeyValueCache], lengths: Sequence[int]) -> None:
        self.lengths: Sequence[int] = tuple(sorted(lengths))
        """Tokens of a row by class."""
        self._caches = [make(length) for length in self.lengths]
        self._owners: list[list[int | None]] = [[] for _ in self.lengths]
        """By class, whose each row is."""
        self._places: dict[int, tuple[int, int]] = {}
        self._held: dict[int, int] = {}
        """How many tokens each sequence has in its row."""
        self._next = 0

    @property
    def reserved(self) -> int:
        """Tokens there is memory for, used or not."""
        return sum(cache.rows * cache.slots for cache in self._caches)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return sum(cache.bytes for cache in self._caches)

    def row_length(self, tokens: int) -> int:
        """Tokens of the row that a sequence of `tokens` takes. Raises ValueError if none is long enough."""
        return self.lengths[self._class_for(tokens)]

    def cost(self, tokens: int) -> int:
        """Tokens of memory that one more row for `tokens` takes: none where a row is free."""
        number = self._class_for(tokens)
        return 0 if None in self._owners[number] else self.lengths[number]

    def open(self, tokens: int, *, room: int) -> int | None:
        """A row for a new sequence of at most `tokens`; its number, or None if it takes more than `room` tokens."""
        number = self._class_for(tokens)
        slot = self._free_slot(number, room)
        if slot is None:
            return None
        row, self._next = self._next, self._next + 1
        self._take(row, number, slot, 0)
        return row

    def capacity(self, row: int) -> int:
        """How many tokens a sequence can have where it is."""
        return self.lengths[self._places[row][0]]

    def grow(self, row: int, tokens: int, *, room: int) -> bool:
        """Make room for `tokens` in all; False if it takes more than `room` tokens of memory."""
        number, old = self._places[row]
        wanted = self._class_for(tokens)
        if wanted <= number:
            return True
        slot = self._free_slot(wanted, room)
        if slot is None:
            return False
        held = self._held[row]
        self._caches[wanted].restore(slot, self._caches[number].save(old, 0, held))
        self._release(number, old, held)
        self._take(row, wanted, slot, held)
        return True

    def close(self, row: int) -> None:
        """Give a row back, emptied."""
        number, slot = self._places.pop(row)
        self._release(number, slot, self._held.pop(row))

    def compact(self) -> None:
        """Close the gaps that closed rows left: of each class the last row moves into the first gap."""
        for number, owners in enumerate(self._owners):
            used = sum(owner is not None for owner in owners)
            for slot, owner in enumerate(owners[used:], used):
                if owner is not None:
                    self._move(owner, number, slot, owners.index(None))

    def trim(self) -> None:
        """Give the memory of rows that nobody has back to the system."""
        self.compact()
        for owners, cache in zip(self._owners, self._caches, strict=True):
            used = sum(owner is not None for owner in owners)
            if used < len(owners):
                cache.resize(used)
                del owners[used:]

    def locate(self, row: int, length: int) -> tuple[KeyValueCache, int]:
        """The buffer and the row in it of a sequence that is about to hold `length` tokens.

        Raises ValueError if they do not fit.
        """
        if row not in self._places or length > self.capacity(row):
            room = f"has room for {self.capacity(row)}" if row in self._places else "is not open"
            raise ValueError(f"{length} tokens do not fit row {row}, which {room}")
        self._held[row] = length
        number, slot = self._places[row]
        return self._caches[number], slot

    def save(self, row: int, start: int, stop: int) -> Tensor:
        """A copy of what a sequence has of the tokens from `start` to `stop`, (2,L,G,T,K)."""
        number, slot = self._places[row]
        return self._caches[number].save(slot, start, stop)

    def restore(self, row: int, saved: Sequence[Tensor]) -> None:
        """Let a sequence begin with what `save` gave for one stretch of tokens after another."""
        saved_2LGTK = torch.cat(list(saved), 3)
        cache, slot = self.locate(row, saved_2LGTK.shape[3])
        cache.restore(slot, saved_2LGTK)

    def _class_for(self, tokens: int) -> int:
        found = next((number for number, length in enumerate(self.lengths) if tokens <= length), None)
        if found is None:
            raise ValueError(f"{tokens} tokens do not fit the longest row, of {self.lengths[-1]}")
        return found

    def _free_slot(self, number: int, room: int) -> int | None:
        """A free row of a class: of those there are, or of half as many more."""
        owners, cache = self._owners[number], self._caches[number]
        if None not in owners:
            more = min(max(1, len(owners) // 2), room // self.lengths[number])
            if more < 1:
                return None
            cache.resize(len(owners) + more)
            owners += [None] * more
        return owners.index(None)

    def _take(self, row: int, number: int, slot: int, held: int) -> None:
        self._owners[number][slot], self._places[row], self._held[row] = row, (number, slot), held

    def _release(self, number: int, slot: int, held: int) -> None:
        self._caches[number].clear(slot, held)
        self._owners[number][slot] = None

    def _move(self, row: int, number: int, slot: int, target: int) -> None:
        cache, held = self._caches[number], self._held[row]
        cache.restore(target, cache.save(slot, 0, held))
        self._release(number, slot, held)
        self._take(row, number, target, held)
