"""Chosen positions of each example as the rows of a rectangle, from padded and flat batches alike.

Axes: B rows, T tokens, E examples, L the most positions that one example has, K scores a position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Picked(NamedTuple):
    """Where the chosen positions of each example are."""

    where: Tensor
    """(E,L) int64: their places among all B·T positions, in order; 0 where an example has no more."""
    real: Tensor
    """(E,L) bool: where there is one. Real places come first in every row; L is at least 1."""

    def take(self, values_BT: Tensor, fill: float = 0.0) -> Tensor:
        """The values at the chosen positions, (E,L) or (E,L,…); `fill` elsewhere."""
        flat = values_BT.flatten(0, 1)
        found = flat[self.where]
        real = self.real.reshape(*self.real.shape, *[1] * (found.dim() - 2))
        return torch.where(real, found, torch.as_tensor(fill, dtype=found.dtype, device=found.device))

    @property
    def counts(self) -> Tensor:
        """How many positions each example has, (E,) int64."""
        return self.real.sum(1)


def pick(chosen_BT: Tensor, places: tuple[Tensor, Tensor]) -> Picked:
    """The positions where `chosen_BT` is true, by example; `places` are (starts, lengths) of `Outputs`."""
    start_E, _ = places
    index_N = chosen_BT.flatten().nonzero().squeeze(1)
    owner_N = torch.searchsorted(start_E.contiguous(), index_N, right=True) - 1
    counts_E = torch.bincount(owner_N, minlength=len(start_E))
    before_E = counts_E.cumsum(0) - counts_E
    width = max(1, int(counts_E.max()))
    steps_L = torch.arange(width, device=index_N.device)
    real_EL = steps_L < counts_E[:, None]
    index_EL = torch.zeros(len(start_E), width, dtype=torch.int64, device=index_N.device)
    index_EL[owner_N, torch.arange(len(index_N), device=index_N.device) - before_E[owner_N]] = index_N
    return Picked(index_EL, real_EL)


def everything(values_BT: Tensor, places: tuple[Tensor, Tensor]) -> Picked:
    """All positions of every example, padding left out."""
    start_E, length_E = places
    steps_L = torch.arange(max(1, int(length_E.max())), device=values_BT.device)
    real_EL = steps_L < length_E[:, None]
    return Picked(torch.where(real_EL, start_E[:, None] + steps_L, 0), real_EL)
