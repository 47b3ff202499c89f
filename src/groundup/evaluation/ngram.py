"""The classical rival: an interpolated n-gram model with modified Kneser–Ney smoothing.

Chen & Goodman 1998 found modified Kneser–Ney the best of the n-gram smoothings. The model asks how
often a symbol followed the last n-1, takes a little off every count, and gives what it took to the
same question asked with one symbol less:

    p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h) · p_{k-1}(w | h')

(section 3, with D1, D2, D3 for counts of 1, 2 and 3 or more, from the counts of counts.) Below the
highest order, c counts the distinct symbols seen *before* the n-gram rather than its occurrences;
order 0 is uniform. It works on any whole numbers, so it is trained on bytes and on a model's tokens.

Every document is framed by one border symbol, which is predicted at its end and is context at its
beginning; no n-gram spans two documents.

How it is fast without a line of C: level k gives each distinct k-gram its rank in sorted order, and a
(k+1)-gram is the pair (rank of its first k symbols, last symbol), one 64-bit number. So each level is
one sort. Memory peaks near 35 bytes per training symbol while fitting.

Axes: N symbols of the stream, U distinct n-grams, C contexts, O orders, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Smoothed:
    """One level, ready for use: discounted counts, and what each context keeps for lower orders."""

    discounted: NDArray[np.float32]
    total: NDArray[np.float64]
    backoff: NDArray[np.float64]
    discounts: tuple[float, float, float]


@dataclass
class Level:
    """The distinct n-grams of one order, sorted. A key is context rank × base + last symbol."""

    base: int
    keys: NDArray[np.uint64]
    counts: NDArray[np.uint32]
    """Occurrences."""
    before: NDArray[np.uint32]
    """Distinct symbols seen before it; occurrences for an n-gram that only ever begins a document."""
    contexts: int
    _smoothed: dict[bool, Smoothed] = field(default_factory=dict)

    def find(self, context_N: Ints, symbol_N: Ints) -> Ints:
        """The rank of each (context, symbol) pair, or -1 if it was never seen. (N,) → (N,)."""
        if not len(self.keys):
            return np.full(len(symbol_N), -1)
        keys_N = context_N.astype(np.uint64) * np.uint64(self.base) + symbol_N.astype(np.uint64)
        # Neighbouring queries share cache lines: ten times as fast as in text order.
        order_N = np.argsort(keys_N)
        ordered_N = keys_N[order_N]
        place_N = np.minimum(np.searchsorted(self.keys, ordered_N), len(self.keys) - 1)
        rank_N = np.empty(len(keys_N), np.int64)
        rank_N[order_N] = np.where(self.keys[place_N] == ordered_N, place_N, -1)
        return rank_N

    def smoothed(self, *, highest: bool) -> Smoothed:
        """The level as the highest order of a model (counts occurrences) or as a lower one."""
        if highest not in self._smoothed:
            self._smoothed[highest] = _smooth(self, self.counts if highest else self.before)
        return self._smoothed[highest]

    def forget(self) -> None:
        """Drop what `smoothed` worked out, because the counts have changed."""
        self._smoothed.clear()


class NGram:
    """A model of every order up to `max_order` at once; ask for the one that validation chose."""

    def __init__(self, levels: list[Level], symbols: int) -> None:
        self.levels = levels
        self.symbols = symbols
        """Distinct symbols, the border not counted; symbols are 0 … symbols - 1."""

    @property
    def max_order(self) -> int:
        """The longest n-gram it knows."""
        return len(self.levels)

    @property
    def bytes(self) -> int:
        """Memory of its tables."""
        return sum(level.keys.nbytes + level.counts.nbytes + level.before.nbytes for level in self.levels)

    def distribution(self, context: Sequence[int], order: int, *, starts_document: bool = True) -> Floats:
        """Probabilities of the next symbol, the border last. (symbols + 1,), sums to 1.

        `context` are the symbols before it, from the beginning of the document on if it starts one.
        """
        before = ([self.symbols] if starts_document else []) + list(context)
        before = before[max(0, len(before) - order + 1) :]
        rows = np.array([[*before, symbol] for symbol in range(self.symbols + 1)], np.int64)
        return self._interpolate(rows.reshape(-1), len(before) + 1, order)

    def document_nats(self, documents: Sequence[Ints], orders: Sequence[int] | None = None) -> Floats:
        """Negative log-likelihood of each document in nats, its end included. (O, D) float64."""
        wanted = list(orders or range(1, self.max_order + 1))
        nats_OD = np.zeros((len(wanted), len(documents)))
        for first, last in _pieces(documents):
            stream_N, reach_N, lengths = frame(documents[first:last], self.symbols)
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            for row, surprise_N in enumerate(self._surprise(stream_N, reach_N, wanted)):
                nats_OD[row, first:last] = np.add.reduceat(surprise_N, starts)
        return nats_OD

    def symbol_nats(self, document: Ints, order: int) -> Floats:
        """Negative log-likelihood of each symbol of a document, its end last. (len + 1,) float64."""
        stream_N, reach_N, _ = frame([document], self.symbols)
        return self._surprise(stream_N, reach_N, [order])[0]

    def _surprise(self, stream_N: Ints, reach_N: Ints, orders: Sequence[int]) -> list[Floats]:
        """-log p of every symbol after the stream's first, for each order."""
        lower_N = np.full(len(stream_N) - 1, 1.0 / (self.symbols + 1))
        rank_N = np.zeros(len(stream_N), np.int64)
        answers: dict[int, Floats] = {}
        for k, level in enumerate(self.levels[: max(orders)], start=1):
            context_N = np.zeros(len(stream_N) - 1, np.int64) if k == 1 else rank_N[:-1]
            usable_N = np.flatnonzero((reach_N[1:] >= k) & (context_N >= 0))
            rank_N = np.full(len(stream_N), -1, np.int64)
            rank_N[usable_N + 1] = level.find(context_N[usable_N], stream_N[usable_N + 1])
            if k == 1:
                rank_N[0] = self.symbols
            if k in orders:
                answers[k] = -np.log(_mix(level.smoothed(highest=True), context_N, rank_N[1:], usable_N, lower_N))
            if k < max(orders):
                lower_N = _mix(level.smoothed(highest=False), context_N, rank_N[1:], usable_N, lower_N)
        return [answers[order] for order in orders]

    def _interpolate(self, flat: Ints, width: int, order: int) -> Floats:
        """Probability of the last symbol of every row of `width` symbols."""
        rows = flat.reshape(-1, width)
        lower_N = np.full(len(rows), 1.0 / (self.symbols + 1))
        deepest = min(order, width)
        for k, level in enumerate(self.levels[:deepest], start=1):
            context_N = self._rank(rows[:, width - k : -1])
            usable_N = np.flatnonzero(context_N >= 0)
            rank_N = np.full(len(rows), -1, np.int64)
            rank_N[usable_N] = level.find(context_N[usable_N], rows[usable_N, -1])
            lower_N = _mix(level.smoothed(highest=k == order), context_N, rank_N, usable_N, lower_N)
        return lower_N

    def _rank(self, rows: Ints) -> Ints:
        """The rank of each row of symbols as an n-gram of its own length, or -1."""
        rank_N = np.zeros(len(rows), np.int64)
        for level, column in zip(self.levels, rows.T, strict=False):
            known_N = np.flatnonzero(rank_N >= 0)
            found_N = np.full(len(rows), -1, np.int64)
            found_N[known_N] = level.find(rank_N[known_N], column[known_N])
            rank_N = found_N
        return rank_N


def fit(documents: Sequence[Ints], *, symbols: int, max_order: int) -> NGram:
    """The model of all orders up to `max_order` of documents of symbols 0 … symbols - 1.

    Raises ValueError for no documents, a symbol out of range, or an order below 1.
    """
    if max_order < 1:
        raise ValueError(f"the order must be at least 1, got {max_order}")
    for model in grow(documents, symbols=symbols):
        if model.max_order == max_order:
            break
    return model


def grow(documents: Sequence[Ints], *, symbols: int) -> Iterator[NGram]:
    """Models of order 1, 2, 3, … without end, each the one before with a level more.

    For a caller that stops when validation says so. Raises ValueError as `fit` does.
    """
    if not documents:
        raise ValueError("an n-gram model needs at least one document")
    stream_N, reach_N, _ = frame(documents, symbols)
    if int(stream_N.max()) > symbols or int(stream_N.min()) < 0:
        raise ValueError(f"symbols must lie in 0 … {symbols - 1}")
    levels: list[Level] = [_unigrams(stream_N, symbols)]
    rank_N: Ints = stream_N.copy()
    while True:
        yield NGram(list(levels), symbols)
        level, rank_N = _extend(levels[-1], stream_N, reach_N, rank_N, len(levels) + 1)
        levels.append(level)


def frame(documents: Sequence[Ints], symbols: int) -> tuple[Ints, Ints, list[int]]:
    """One stream with a border before, between and after the documents.

    Returns the stream (N + 1,) int32; for each place the number of symbols of the longest n-gram that
    ends there without spanning two documents, at most 255, uint8; and the length of each document with
    its closing border.
    """
    border = np.array([symbols], np.int32)
    parts = [border]
    for document in documents:
        parts += [np.asarray(document, np.int32), border]
    stream_N = np.concatenate(parts)
    lengths = [len(document) + 1 for document in documents]
    reach_N = np.ones(len(stream_N), np.uint8)
    start = 1
    for length in lengths:
        reach_N[start : start + length] = 255
        reach_N[start : start + min(length, 254)] = np.arange(2, 2 + min(length, 254))
        start += length
    return stream_N, reach_N, lengths


def _unigrams(stream_N: Ints, symbols: int) -> Level:
    """Level 1: every symbol has a place, seen or not, so that its rank is the symbol itself."""
    counts = np.bincount(stream_N[1:], minlength=symbols + 1).astype(np.uint32)
    keys = np.arange(symbols + 1, dtype=np.uint64)
    return Level(symbols + 1, keys, counts, counts.copy(), contexts=1)


def _extend(below: Level, stream_N: Ints, reach_N: Ints, rank_N: Ints, k: int) -> tuple[Level, Ints]:
    """Level k from the ranks of the (k-1)-grams, and the ranks of its own n-grams at every place.

    `below.before` is filled in on the way: the distinct k-grams that end in each (k-1)-gram.
    """
    place_N = np.flatnonzero(reach_N >= k).astype(np.int32)
    contexts, base = len(below.keys), below.base
    key_N, order_N = _sorted(rank_N[place_N - 1], stream_N[place_N], base, contexts)
    first_N = np.empty(len(key_N), bool)
    first_N[:1] = True
    np.not_equal(key_N[1:], key_N[:-1], out=first_N[1:])
    starts_U = np.flatnonzero(first_N)
    counts_U = np.diff(starts_U, append=len(key_N)).astype(np.uint32)
    key_U = key_N[starts_U]
    del key_N
    place_N = place_N[order_N]
    before = np.bincount(rank_N[place_N[starts_U]], minlength=contexts).astype(np.uint32)
    below.before = np.where(before > 0, before, below.counts)
    below.forget()
    ranks_N = np.full(len(stream_N), -1, np.int32)
    ranks_N[place_N] = np.cumsum(first_N, dtype=np.int32) - 1
    return Level(base, key_U, counts_U, counts_U, contexts), ranks_N


def _sorted(context_N: Ints, symbol_N: Ints, base: int, contexts: int) -> tuple[NDArray[np.uint64], Ints]:
    """Keys in sorted order, and where each came from.

    Where key and place fit one 64-bit number together, sorting that number is three times as fast as
    an argsort of the keys. Everything large is done in place: these arrays are the memory peak.
    """
    place_bits = max(1, (len(context_N) - 1).bit_length())
    key_N = context_N.astype(np.uint64)
    key_N *= np.uint64(base)
    np.add(key_N, symbol_N, out=key_N, casting="unsafe")
    if (contexts * base).bit_length() + place_bits > 64:
        order_N: Ints = np.argsort(key_N, kind="stable")
        return key_N[order_N], order_N
    key_N <<= np.uint64(place_bits)
    for start in range(0, len(key_N), _CHUNK):
        key_N[start : start + _CHUNK] += np.arange(start, min(start + _CHUNK, len(key_N)), dtype=np.uint64)
    key_N.sort()
    order_N = np.empty(len(key_N), np.int32)
    np.bitwise_and(key_N, np.uint64((1 << place_bits) - 1), out=order_N, casting="unsafe")
    key_N >>= np.uint64(place_bits)
    return key_N, order_N


def _smooth(level: Level, count_U: NDArray[np.uint32]) -> Smoothed:
    discounts = _discounts(count_U)
    discount_U = np.array([0.0, *discounts])[np.minimum(count_U, 3)]
    context_U = (level.keys // np.uint64(level.base)).astype(np.int64)
    total_C = np.bincount(context_U, weights=count_U, minlength=level.contexts).astype(np.float64)
    taken_C = np.bincount(context_U, weights=discount_U, minlength=level.contexts).astype(np.float64)
    backoff_C = np.divide(taken_C, total_C, out=np.ones_like(total_C), where=total_C > 0)
    return Smoothed((count_U - discount_U).astype(np.float32), total_C, backoff_C, discounts)


def _discounts(count_U: NDArray[np.uint32]) -> tuple[float, float, float]:
    """D1, D2 and D3+ from the counts of counts (Chen & Goodman 1998, eq. 17).

    With too little data for these (a count of counts is zero, or a discount would not lie between 0
    and the count it is taken from) one absolute discount serves all (eq. 12), or one half.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(count_U == c)) for c in (1, 2, 3, 4))
    if n1 == 0 or n2 == 0:
        return 0.5, 0.5, 0.5
    y = n1 / (n1 + 2 * n2)
    if n3 == 0 or n4 == 0:
        return y, y, y
    found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    fits = all(0 < discount < c for c, discount in zip((1, 2, 3), found, strict=True))
    return found if fits else (y, y, y)


def _mix(level: Smoothed, context_N: Ints, rank_N: Ints, usable_N: Ints, lower_N: Floats) -> Floats:
    """p_k from p_{k-1}; where the context was never seen, p_k is p_{k-1}."""
    mixed_N = lower_N.copy()
    context_N = context_N[usable_N]
    usable_N, context_N = usable_N[level.total[context_N] > 0], context_N[level.total[context_N] > 0]
    rank_N = rank_N[usable_N]
    own_N = np.where(rank_N >= 0, level.discounted[rank_N], 0) / level.total[context_N]
    mixed_N[usable_N] = own_N + level.backoff[context_N] * lower_N[usable_N]
    return mixed_N


def _pieces(documents: Sequence[Ints]) -> list[tuple[int, int]]:
    """Spans of documents of about a million symbols together, so that memory stays small."""
    pieces, first, size = [], 0, 0
    for index, document in enumerate(documents):
        size += len(document) + 1
        if size >= _CHUNK:
            pieces.append((first, index + 1))
            first, size = index + 1, 0
    return pieces + ([(first, len(documents))] if first < len(documents) else [])
