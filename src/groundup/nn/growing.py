"""Tensors whose rows grow and shrink where they lie.

On Linux memory is addresses first: the system gives a page when it is first written, and takes it back when it is told
to. A tensor that keeps the addresses of all the rows it may come to have grows without being copied, and takes only
the memory of the rows that are used (mmap(2), madvise(2)). Elsewhere, and on GPUs, growing is copying.

Axes: L layers, R rows.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

ON_LINUX = sys.platform == "linux"


class GrowingRows:
    """Zeros (L, R, …) of which R changes. What is written stays; rows that come are zero, also those that were there.

    `reserve` is how many rows it may come to have without being copied, where the system gives so many addresses.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, reserve: int = 0) -> None:
        self._is_lazy = ON_LINUX and device.type == "cpu"
        self._rows = shape[1]
        self._memory: mmap.mmap | None = None
        capacity = max(self._rows, reserve) if self._is_lazy else self._rows
        try:
            self._whole = self._zeros([shape[0], capacity, *shape[2:]], dtype, device)
        except OSError:  # addresses count as memory here: a limit of the process, or strict accounting
            self._whole = self._zeros(shape, dtype, device)

    @property
    def tensor(self) -> Tensor:
        """The rows there are, (L, R, …): a view, and of one layer a contiguous one."""
        return self._whole[:, : self._rows]

    def resize(self, rows: int) -> None:
        """Have so many rows: new ones at the end are zero, lost ones are those at the end."""
        if rows > self._whole.shape[1] or not self._is_lazy:
            kept, old = min(rows, self._rows), self._whole
            self._whole = self._zeros([old.shape[0], rows, *old.shape[2:]], old.dtype, old.device)
            self._whole[:, :kept] = old[:, :kept]
        elif rows < self._rows:
            row_bytes = self._whole[0, 0].nbytes
            for layer in range(len(self._whole)):
                first = layer * self._whole.shape[1]
                self._forget((first + rows) * row_bytes, (first + self._rows) * row_bytes)
        self._rows = rows

    def _zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if not self._is_lazy or not size:
            return torch.zeros(*shape, dtype=dtype, device=device)
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(self._memory, dtype=dtype).view(*shape)

    def _forget(self, start: int, stop: int) -> None:
        """Zero bytes again, and give the pages that lie among them back to the system."""
        if self._memory is None or start == stop:
            return
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        bytes_ = self._whole.view(-1).view(torch.uint8)
        if first >= last:
            bytes_[start:stop] = 0
            return
        bytes_[start:first] = 0
        bytes_[last:stop] = 0
        self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
