"""Keys and values of past tokens, kept so that a new token costs one token's work.

Axes: L layers, R rows (sequences), G key-value heads, S slots (positions), K dimensions of a head; B rows
and T tokens of a call, N all its tokens' heads end to end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from groundup.nn.growing import GrowingRows


class KeyValueCache:
    """One contiguous buffer for keys and one for values, with so many rows of so many slots.

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
        reserve: int = 0,
    ) -> None:
        """`reserve` is how many rows it may come to have without being copied."""
        shape = (n_layers, rows, n_kv_heads, slots, head_dim)
        self._keys = GrowingRows(shape, dtype, torch.device(device), reserve=reserve)
        self._values = GrowingRows(shape, dtype, torch.device(device), reserve=reserve)
        self.keys_LRGSK, self.values_LRGSK = self._keys.tensor, self._values.tensor

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

    def locate(self, row: int, length: int) -> tuple[KeyValueCache, int]:
        """The buffer and the row in it of a sequence that is about to hold `length` tokens.

        Raises ValueError if they do not fit.
        """
        if not 0 <= row < self.rows or length > self.slots:
            raise ValueError(f"{length} tokens in row {row} do not fit a cache of {self.rows} rows of {self.slots}")
        return self, row

    def places(self, rows: Sequence[int], positions_BT: Tensor) -> Tensor:
        """Where in a layer the heads of T tokens for each of B rows lie, (N,) with N = B·T·G: what `put` takes."""
        heads_G = torch.arange(self.keys_LRGSK.shape[2], device=self.device)
        rows_B = torch.tensor(rows, device=self.device)
        first_BG = (rows_B[:, None] * len(heads_G) + heads_G) * self.slots
        return (first_BG[:, None, :] + positions_BT[:, :, None]).flatten()

    def put(self, layer: int, places_N: Tensor, keys_BTGK: Tensor, values_BTGK: Tensor) -> None:
        """Store the keys and values of B·T tokens at their places, which are the same in every layer."""
        for kept_LRGSK, new_BTGK in ((self.keys_LRGSK, keys_BTGK), (self.values_LRGSK, values_BTGK)):
            head_dim = new_BTGK.shape[-1]
            kept_LRGSK[layer].view(-1, head_dim).index_copy_(0, places_N, new_BTGK.reshape(-1, head_dim).to(self.dtype))

    def write(
        self, layer: int, rows: Sequence[int], positions_BT: Tensor, keys_BTGK: Tensor, values_BTGK: Tensor
    ) -> None:
        """Store the keys and values of T tokens for each of B rows at their positions."""
        self.put(layer, self.places(rows, positions_BT), keys_BTGK, values_BTGK)

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
        self.restore(target, self.save(source, 0, self.slots))

    def save(self, row: int, start: int, stop: int) -> Tensor:
        """A copy of what a row holds of the tokens from `start` to `stop`, (2,L,G,T,K): keys, then values."""
        return torch.stack([kept[:, row, :, start:stop] for kept in (self.keys_LRGSK, self.values_LRGSK)])

    def restore(self, row: int, saved_2LGTK: Tensor) -> None:
        """Let a row begin with what `save` gave."""
        length = saved_2LGTK.shape[3]
        self.keys_LRGSK[:, row, :, :length], self.values_LRGSK[:, row, :, :length] = saved_2LGTK

    def clear(self, row: int, length: int) -> None:
        """Zero the first `length` slots of a row.

        Rows are attended to together, up to the longest, and what is hidden of the others is multiplied by zero:
        that makes nothing of any number, but not of a NaN that a sequence before may have left.
        """
        self.keys_LRGSK[:, row, :, :length] = 0
        self.values_LRGSK[:, row, :, :length] = 0

    def resize(self, rows: int) -> None:
        """Have so many rows: new ones at the end are empty, lost ones are those at the end."""
        for part in (self._keys, self._values):  # one after the other: the old and the new may both be in memory
            part.resize(rows)
        self.keys_LRGSK, self.values_LRGSK = self._keys.tensor, self._values.tensor
