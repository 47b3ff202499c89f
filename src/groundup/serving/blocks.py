"""The memory of a serving engine: rows of running sequences, and blocks of beginnings kept for others.

Both share one budget, counted in blocks of tokens. A block is known by a digest of all that it depends on: the
model, the adapter, and every token up to its end, each digest chained to the one before. So two texts with the same
beginning find the same blocks, and an adapter that was loaded again under its old name finds none of its
predecessor's. Blocks are copied into a new sequence's row: a CPU attends to contiguous rows faster than to
gathered pages.

Rows come first. The store of blocks has what rows leave of the budget, and gives the longest unused up for them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from itertools import takewhile
from typing import Any

from groundup.runtimes._contract import RowCache
from groundup.serving.requests import Sequence

BLOCK = 32
"""Tokens of a block."""
DIGEST_BYTES = 16
"""128 bits: nobody finds two beginnings with one digest."""


def root_digest(*parts: str) -> bytes:
    """What chains of digests begin with: the same for sequences that may share blocks."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=DIGEST_BYTES).digest()


def extend_chain(digests: list[bytes], root: bytes, ids: list[int], block: int = BLOCK) -> None:
    """Add to `digests` those of the full blocks of `ids` that it does not have yet."""
    for start in range(len(digests) * block, len(ids) - block + 1, block):
        before = digests[-1] if digests else root
        content = array("q", ids[start : start + block]).tobytes()
        digests.append(hashlib.blake2b(before + content, digest_size=DIGEST_BYTES).digest())


class CacheManager:
    """Rows and blocks under one budget of `blocks` blocks. It only ever counts: memory is the runtime's.

    Without `shares` no beginnings are kept, and nothing changes but speed.
    """

    def __init__(self, cache: RowCache, *, blocks: int, shares: bool = True, block: int = BLOCK) -> None:
        self.cache, self.total, self.shares, self.block = cache, blocks, shares, block
        self.stored: OrderedDict[bytes, Any] = OrderedDict()
        """Blocks by digest, the longest unused first."""
        self._coming: Counter[bytes] = Counter()
        """Blocks that running sequences are computing and will offer."""
        self.queries = 0
        """Tokens of beginnings that were looked for."""
        self.hits = 0
        """Tokens of them that were found."""

    @property
    def used(self) -> int:
        """Blocks of the budget that are taken."""
        return self.cache.reserved // self.block + len(self.stored)

    @property
    def usage(self) -> float:
        """The share of the budget that rows take."""
        return self.cache.reserved / (self.total * self.block)

    def fits(self, prompt: int, tokens: int) -> bool:
        """Whether a sequence that grows from a prompt to so many tokens could run if it were alone."""
        first, last = self.cache.row_length(prompt), self.cache.row_length(tokens)
        shorter = [length for length in self.cache.lengths if first <= length < last]
        # While it is copied into its last row, it still has the one before.
        return last + max(shorter, default=0) <= self.total * self.block

    def open(self, sequence: Sequence) -> bool:
        """A row for a sequence, beginning with what is known of it already; False if there is no room."""
        tokens = len(sequence.ids)
        row = self.cache.open(tokens, room=self._room)
        if row is None and self._make_room(self.cache.cost(tokens)):
            row = self.cache.open(tokens, room=self._room)
        if row is None:
            return False
        sequence.row, sequence.computed, sequence.sound, sequence.saved = row, 0, 0, 0
        if self.shares:
            self._reuse(sequence)
            # Nobody is to wait for what the store will have no room for.
            most = self.total - self.cache.reserved // self.block
            sequence.promised = sequence.digests[sequence.saved :][:most]
            self._coming.update(sequence.promised)
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for so many tokens of a running sequence; False if there is none."""
        assert sequence.row is not None, "only a running sequence grows"
        if tokens <= self.cache.capacity(sequence.row):
            return True
        grown = self.cache.grow(sequence.row, tokens, room=self._room)
        if not grown and self._make_room(self.cache.cost(tokens)):
            grown = self.cache.grow(sequence.row, tokens, room=self._room)
        return grown

    def keep(self, sequence: Sequence) -> None:
        """Offer the full blocks of a running sequence to the store, each once."""
        if not self.shares or sequence.row is None:
            return
        extend_chain(sequence.digests, sequence.root, sequence.ids, self.block)
        known = sequence.digests[: sequence.sound // self.block]
        for index, digest in enumerate(known[sequence.saved :], sequence.saved):
            if digest not in self.stored and self._room_for_one(known):
                start = index * self.block
                self.stored[digest] = self.cache.save(sequence.row, start, start + self.block)
        self._touch(known)
        sequence.saved = max(sequence.saved, len(known))
        self._keep_promise(sequence)

    def close(self, sequence: Sequence) -> None:
        """Take the row of a sequence back."""
        if sequence.row is None:
            return
        self._keep_promise(sequence)
        self.cache.close(sequence.row)
        sequence.row, sequence.computed, sequence.sound = None, 0, 0

    def is_coming(self, sequence: Sequence) -> bool:
        """Whether a running sequence is computing the next block that a waiting one needs."""
        if not self.shares:
            return False
        extend_chain(sequence.digests, sequence.root, sequence.ids, self.block)
        reusable = sequence.digests[: sequence.reusable // self.block]
        missing = next((digest for digest in reusable if digest not in self.stored), None)
        return missing is not None and self._coming[missing] > 0

    def _reuse(self, sequence: Sequence) -> None:
        """Copy the longest known beginning of a sequence into its row."""
        extend_chain(sequence.digests, sequence.root, sequence.ids, self.block)
        reusable = sequence.digests[: sequence.reusable // self.block]
        found = [self.stored[digest] for digest in takewhile(self.stored.__contains__, reusable)]
        if found:
            assert sequence.row is not None, "a beginning is copied into a row"
            self.cache.restore(sequence.row, found)
        self._touch(reusable[: len(found)])
        sequence.saved = len(found)
        sequence.computed = sequence.sound = len(found) * self.block
        if sequence.admitted is None:  # later it may find what it computed itself, before it gave way
            sequence.cached_tokens = sequence.computed
        self.queries += len(sequence.ids)
        self.hits += sequence.computed

    @property
    def _room(self) -> int:
        """Tokens of the budget that are free."""
        return (self.total - self.used) * self.block

    def _make_room(self, tokens: int) -> bool:
        """Free so many tokens: first rows that nobody has, then the longest unused blocks."""
        if self._room < tokens:
            self.cache.trim()
        if self._room + len(self.stored) * self.block < tokens:
            return False
        while self._room < tokens:
            self.stored.popitem(last=False)
        return True

    def _room_for_one(self, own: list[bytes]) -> bool:
        """Free room for one more block, but not at the cost of the beginning it continues."""
        if self.used < self.total:
            return True
        oldest = next(iter(self.stored), None)
        if oldest is None or oldest in own:
            return False
        del self.stored[oldest]
        return True

    def _touch(self, digests: list[bytes]) -> None:
        """Count blocks as used just now. A beginning is of use without its end, not the other way: it goes last."""
        for digest in reversed(digests):
            if digest in self.stored:
                self.stored.move_to_end(digest)

    def _keep_promise(self, sequence: Sequence) -> None:
        self._coming.subtract(sequence.promised)
        for digest in sequence.promised:
            if not self._coming[digest]:
                del self._coming[digest]
        sequence.promised = []
