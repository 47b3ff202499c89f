"""Documents that say the same: exact copies, and near-copies by MinHash.

A document is a set of hashed character n-grams, so Chinese, which has no spaces, works like English.
MinHash turns the set into a signature whose slots agree between two documents with probability equal
to the Jaccard similarity of their sets (Broder 1997). Signatures are cut into bands; documents that
share a whole band are candidates (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, ch. 3), and
a candidate counts only if the signatures agree in enough slots. Here one byte of a slot is kept: two
different slots then agree by chance once in 256, which the estimate allows for (Li & König 2010).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
SLOTS = 128
"""Slots of a signature; the estimate's standard error at 0.8 is 0.035."""
_SEED = 0x5EED
_PIECE = 1 << 13
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Bands:
    """How signatures are cut: `count` bands of `rows` slots each."""

    count: int
    rows: int

    def recall(self, similarity: float) -> float:
        """The probability that two documents of a similarity share at least one band."""
        return float(1 - (1 - similarity**self.rows) ** self.count)


def bands_for(threshold: float) -> Bands:
    """The widest bands, so the fewest false candidates, that still find 97 % of pairs at the threshold."""
    for rows in range(SLOTS // 2, 0, -1):
        bands = Bands(SLOTS // rows, rows)
        if bands.recall(threshold) >= 0.97:
            return bands
    return Bands(SLOTS, 1)


def mix(values: Hashes) -> Hashes:
    """64-bit values scrambled so that every bit depends on every other (the splitmix64 finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def exact_hash(text: str) -> tuple[int, int]:
    """128 bits of a text's BLAKE2b digest, as two integers; equal for equal texts only, for all purposes."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def shingles(texts: Sequence[str], n: int) -> tuple[Hashes, NDArray[np.uint64]]:
    """Hashes of the character n-grams of texts, letter case and runs of white space put aside.

    Returns all hashes in one array and the offset of each text's first, with the total at the end. A
    text shorter than n characters has none.
    """
    plain = [" ".join(text.lower().split()) for text in texts]
    lengths = np.array([len(text) for text in plain], np.int64)
    counts = np.maximum(lengths - n + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    grams = _grams("".join(plain), n)
    starts = np.cumsum(lengths) - lengths
    whole = np.zeros(len(grams) + 1, np.int8)  # +1 where a text's n-grams begin, -1 after they end
    np.add.at(whole, starts[counts > 0], 1)
    np.add.at(whole, (starts + counts)[counts > 0], -1)
    return grams[np.cumsum(whole[:-1], dtype=np.int8) > 0], offsets


def _grams(text: str, n: int) -> Hashes:
    """A hash of every n characters in a row: a polynomial in them modulo 2^64, scrambled.

    Taken piece by piece so that the intermediate arrays stay in the processor's cache.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    grams = np.empty(max(0, len(codes) - n + 1), np.uint64)
    for start in range(0, len(grams), _PIECE):
        piece = grams[start : start + _PIECE]
        wide = codes[start : start + len(piece) + n - 1].astype(np.uint64)
        piece[:] = wide[: len(piece)]
        for place in range(1, n):
            piece *= _STEP
            piece += wide[place : place + len(piece)]
        piece ^= piece >> np.uint64(32)
        piece *= _MIX_1
        piece ^= piece >> np.uint64(29)
    return grams


def signatures(hashes: Hashes, offsets: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """MinHash signatures, (texts, SLOTS) uint32, of the n-gram sets that `shingles` returned."""
    from rensa import RMinHash

    if len(offsets) == 1:
        return np.empty((0, SLOTS), np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, SLOTS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, SLOTS)


def band_hashes(slots: NDArray[np.uint32], bands: Bands) -> Hashes:
    """One 64-bit hash for each band of each signature, (texts, bands); bands never collide with others."""
    used = slots[:, : bands.count * bands.rows].astype(np.uint64).reshape(len(slots), bands.count, bands.rows)
    hashes = np.broadcast_to(np.arange(1, bands.count + 1, dtype=np.uint64), used.shape[:2]).copy()
    for row in range(bands.rows):
        hashes = mix(hashes * _STEP + used[:, :, row])
    return hashes


def similarity(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures kept to one byte a slot, row by row."""
    agree = (left == right).mean(axis=-1)
    return np.asarray(np.maximum(0.0, (agree - 1 / 256) / (1 - 1 / 256)))


def fewest_shingles(threshold: float, n: int) -> int:
    """How many n-grams a text needs for near-duplicates to mean anything.

    With fewer, changing a single character would already fall below the threshold.
    """
    return math.ceil(n * (1 + threshold) / (1 - threshold)) if threshold < 1 else 1
