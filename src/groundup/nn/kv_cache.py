"""Keys and values of past tokens, kept so that a new token costs one token's work.

Axes: L layers, R rows (sequences), G key-value heads, S slots (positions), K dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueCache:
    """One contiguous buffer for keys and one for values, with a fixed number of rows and slots.

    A row is reused by writing from position 0 again; slots after the last written one are never read.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        rows: int,
        slots: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (n_layers, rows, n_kv_heads, slots, head_dim)
        self.keys_LRGSK = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LRGSK = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def rows(self) -> int:
        """How many sequences it holds."""
        return self.keys_LRGSK.shape[1]

    @property
    def slots(self) -> int:
        """How many tokens each row holds."""
        return self.keys_LRGSK.shape[3]

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return 2 * self.keys_LRGSK.nbytes

    @property
    def dtype(self) -> torch.dtype:
        """The type of what it holds."""
        return self.keys_LRGSK.dtype

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.keys_LRGSK.device

    def write(
        self, layer: int, rows: Sequence[int], positions_BT: Tensor, keys_BTGK: Tensor, values_BTGK: Tensor
    ) -> None:
        """Store the keys and values of T tokens for each of B rows at their positions."""
        rows_B1 = torch.tensor(rows, device=self.device)[:, None]
        self.keys_LRGSK[layer][rows_B1, :, positions_BT] = keys_BTGK.to(self.dtype)
        self.values_LRGSK[layer][rows_B1, :, positions_BT] = values_BTGK.to(self.dtype)

    def read(self, layer: int, rows: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of rows, (B,G,length,K); a view where rows are neighbours."""
        first, count = rows[0], len(rows)
        if list(rows) == list(range(first, first + count)):
            span = slice(first, first + count)
            return self.keys_LRGSK[layer, span, :, :length], self.values_LRGSK[layer, span, :, :length]
        index = torch.tensor(rows, device=self.device)
        return self.keys_LRGSK[layer, :, :, :length][index], self.values_LRGSK[layer, :, :, :length][index]

    def reorder(self, rows_R: Tensor, length: int) -> None:
        """Make the first R rows what rows `rows_R` were, as far as `length` tokens: beams that split and end."""
        for layer in (*self.keys_LRGSK, *self.values_LRGSK):
            layer[: len(rows_R), :, :length] = layer[:, :, :length].index_select(0, rows_R)

    def copy_row(self, source: int, target: int) -> None:
        """Make one row what another is: a shared prompt, or a beam that splits."""
        self.keys_LRGSK[:, target] = self.keys_LRGSK[:, source]
        self.values_LRGSK[:, target] = self.values_LRGSK[:, source]
