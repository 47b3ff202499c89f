"""Examples of near lengths put together, so that attention takes a few large calls instead of many small ones.

Examples lie end to end; neighbours of equal length need only a view to become the rows of one call. Where
lengths are near but not equal, they are filled up to the longest, as long as what is computed for nothing
costs less than another call would.

Axes: N tokens of all examples of a bucket, B examples of a bucket, T tokens of its longest, … any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WASTED_PAIRS = 1024
"""Pairs of tokens that a bucket may compare for nothing; the best of 0, 1,024, 4,096 and 16,384 on short
sentences, and as good as none on long texts (MiniLM, one Zen 4 core)."""


@dataclass(frozen=True)
class Bucket:
    """Neighbouring examples that are the rows of one call."""

    count: int
    width: int
    """Tokens of the longest."""
    tokens: int
    """Tokens of all, without filling."""
    seen: Tensor | None = None
    """(B,T), True where there is a token; None where no example is filled up."""
    places: Tensor | None = None
    """(N,), where each token lies among the B·T places."""

    def rows(self, flat: Tensor) -> Tensor:
        """(N, …) as (B, T, …), filled up with zeros."""
        if self.places is not None:
            flat = _Spread.apply(flat, self.places, self.count * self.width)  # type: ignore[no-untyped-call]
        return flat.reshape(self.count, self.width, *flat.shape[1:])

    def flat(self, rows: Tensor) -> Tensor:
        """(B, T, …) as (N, …), without what was filled up."""
        flat = rows.flatten(0, 1)
        if self.places is not None:
            flat = _Gathered.apply(flat, self.places)  # type: ignore[no-untyped-call]
        return flat


def buckets(lengths: Sequence[int], device: torch.device | str = "cpu") -> list[Bucket]:
    """The examples of these lengths in their order, divided into buckets of neighbours."""
    return paired_buckets([(length, length) for length in lengths], device)[0]


def paired_buckets(
    lengths: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
) -> tuple[list[Bucket], list[Bucket]]:
    """The same for two texts an example, of which one looks at the other: the buckets of either, side by side."""
    groups: list[list[tuple[int, int]]] = []
    for pair in lengths:
        if groups and wasted_pairs([*groups[-1], pair]) <= WASTED_PAIRS:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    sides = ([_bucket([pair[side] for pair in group], device) for group in groups] for side in (0, 1))
    first, second = sides
    return first, second


def wasted_pairs(lengths: Sequence[tuple[int, int]]) -> int:
    """Pairs of places that are compared for nothing if texts of these lengths are filled up."""
    widths = [max(side) for side in zip(*lengths, strict=True)]
    filled, real = len(lengths) * widths[0] * widths[1], sum(one * other for one, other in lengths)
    return int(filled - real)


def split(flat_1N: Tensor, of: Sequence[Bucket]) -> tuple[Tensor, ...]:
    """The part of each bucket of (1, N, …), (N, …) each.

    All at once: slices would each have a gradient of the size of the whole.
    """
    return torch.split(flat_1N.squeeze(0), [bucket.tokens for bucket in of])


def _bucket(lengths: Sequence[int], device: torch.device | str) -> Bucket:
    count, width = len(lengths), max(lengths)
    if min(lengths) == width:
        return Bucket(count, width, count * width)
    seen_BT = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
    return Bucket(count, width, sum(lengths), seen_BT, seen_BT.flatten().nonzero().squeeze(1))


class _Spread(torch.autograd.Function):
    """Rows put into their places among zeros. Its derivative gathers, which torch's own operator knows less well."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places_N: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places_N)
        return flat.new_zeros(size, *flat.shape[1:]).index_copy_(0, places_N, flat)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (places_N,) = ctx.saved_tensors
        return slope.index_select(0, places_N), None, None


class _Gathered(torch.autograd.Function):
    """Rows taken from their places. Its derivative copies, where torch's own adds row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places_N: Tensor) -> Tensor:
        ctx.save_for_backward(places_N)
        ctx.size = len(rows)
        return rows.index_select(0, places_N)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (places_N,) = ctx.saved_tensors
        return slope.new_zeros(ctx.size, *slope.shape[1:]).index_copy_(0, places_N, slope), None
