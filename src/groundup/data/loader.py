"""Batches of training and of held-out rows.

A micro-batch is a pure function of (step, micro): the order is a formula, rows are windows found by
arithmetic, and what is random in a row depends on (seed, epoch, index) alone. So a resumed run asks
for step 1,000,000 and gets it; there is no state to save and nothing to fast-forward. Threads that
prepare batches ahead change when a batch is made, never what is in it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundup.data.order import Order, Stretches
from groundup.data.packing import IGNORED, Row, Rows, spread

Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Row]], Batch]
Int64s = NDArray[np.int64]

BLOCK_BYTES = 2**20
"""What batches that are made at once may come to: they are to stay in a cache until they are used."""
LABELS = ("labels", "label", "next_sentence_label")
"""The keys of a row whose value -100 means that nothing is trained there."""


class Loader:
    """Micro-batches of rows in the order of a seed, and one sweep over all rows in a fixed order."""

    def __init__(
        self,
        rows: Rows,
        collate: Collate,
        seed: int,
        batch_rows: int,
        micro_batches: int = 1,
        *,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        """`batch_rows` is the global batch, divided into `micro_batches` of equal or nearly equal size.

        `workers` threads prepare the next micro-batches ahead; `pin` puts them into page-locked memory
        (CUDA only). Raises ValueError for more micro-batches than rows.
        """
        if not 1 <= micro_batches <= batch_rows:
            raise ValueError(f"{batch_rows} rows cannot be divided into {micro_batches} micro-batches")
        self.rows, self.collate, self.seed = rows, collate, seed
        self.batch_rows, self.micro_batches, self.pin = batch_rows, micro_batches, pin
        self.order = Stretches(Order(len(rows), seed))
        self.lengths: Int64s | None = getattr(rows, "lengths", None)
        self._differ = self.lengths is not None and int(self.lengths.min()) != int(self.lengths.max())
        self._together: Callable[[Int64s, Int64s], Batch] | None = getattr(rows, "batch", None)
        """Where examples have one shape, their rows make a batch at once (`data/vectors.py`)."""
        self._blocks = Blocks(self._together, self.order, batch_rows) if self._together and not self._differ else None
        self._ahead = Ahead(self._make, workers, self._next) if workers else None

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Int64s]:
        """Part `micro` of the batch of `step`, both from 0, and the indices of its rows.

        The batch of a step is the same rows in the same order however many micro-batches it has. Rows
        of different lengths are sorted by it, longest first, so that a micro-batch holds like lengths.
        """
        if not 0 <= micro < self.micro_batches or step < 0:
            raise IndexError(f"step {step}, micro-batch {micro} of {self.micro_batches}")
        return self._ahead.get((step, micro)) if self._ahead else self._make((step, micro))

    def epoch_of(self, step: int) -> float:
        """How many epochs have been seen when `step` steps are done."""
        return step * self.batch_rows / len(self.rows)

    def sweep(self, max_rows: int | None = None, batch_rows: int | None = None) -> Iterator[tuple[Batch, Int64s]]:
        """Every row once in a fixed order as (batch, indices); with `max_rows`, that many evenly spread ones.

        All batches have `batch_rows` rows (a micro-batch's, unless given). The last is filled up with
        rows whose labels are all -100, so that shapes stay the same; `indices` names the real ones.
        Rows of different lengths come longest first, and nothing is filled up.
        """
        size = batch_rows or -(-self.batch_rows // self.micro_batches)
        chosen = spread(len(self.rows), max_rows)
        if self.lengths is not None:
            chosen = chosen[np.argsort(-self.lengths[chosen], kind="stable")]
        for start in range(0, len(chosen), size):
            indices = chosen[start : start + size]
            if self._together:
                yield self._pinned(self._together(indices, np.zeros_like(indices))), indices
                continue
            rows = [self.rows.row(int(index), 0) for index in indices]
            if self.lengths is None:
                rows += [blank(rows[-1])] * (size - len(rows))
            yield self._pinned(self.collate(rows)), indices

    def close(self) -> None:
        """Stop the threads. A closed loader still answers, without them."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None

    def _make(self, key: tuple[int, int]) -> tuple[Batch, Int64s]:
        step, micro = key
        start = micro * self.batch_rows // self.micro_batches
        stop = (micro + 1) * self.batch_rows // self.micro_batches
        if self._blocks:
            batch, indices = self._blocks.cut(step * self.batch_rows + start, stop - start)
            return self._pinned(batch), indices
        if self.lengths is None or not self._differ:
            epochs, indices = self.order.span(step * self.batch_rows + start, stop - start)
        else:
            epochs, indices = self.order.span(step * self.batch_rows, self.batch_rows)
            own = np.argsort(-self.lengths[indices], kind="stable")[start:stop]
            epochs, indices = epochs[own], indices[own]
        if self._together:
            return self._pinned(self._together(indices, epochs)), indices
        rows = [self.rows.row(int(index), int(epoch)) for epoch, index in zip(epochs, indices, strict=True)]
        return self._pinned(self.collate(rows)), indices

    def _next(self, key: tuple[int, int]) -> tuple[int, int]:
        step, micro = key
        return (step, micro + 1) if micro + 1 < self.micro_batches else (step + 1, 0)

    def _pinned(self, batch: Batch) -> Batch:
        return {key: value.pin_memory() for key, value in batch.items()} if self.pin else batch


class Blocks:
    """Batches of rows of one shape, made for several steps at once and cut out of what was made.

    Gathering and scaling 32 small images takes less time than asking for it. Where blocks begin and end follows from
    the rows alone, so that a resumed run makes the same ones: a matrix product may round by how many rows it has.
    """

    def __init__(self, together: Callable[[Int64s, Int64s], Batch], order: Stretches, step_rows: int) -> None:
        self.together, self.order, self.step_rows = together, order, step_rows
        self._held: tuple[int, Batch, Int64s] = (-1, {}, np.empty(0, np.int64))
        self._lock = threading.Lock()

    @cached_property
    def block_rows(self) -> int:
        """Rows of a block: those of as many steps as fit into BLOCK_BYTES, or 0."""
        one = self.together(np.zeros(1, np.int64), np.zeros(1, np.int64))
        row_bytes = max(1, sum(value.nbytes for value in one.values()))
        return BLOCK_BYTES // row_bytes // self.step_rows * self.step_rows

    def cut(self, start: int, count: int) -> Made:
        """The batch of `count` places of the run from `start`, all of one step, and the indices of its rows."""
        if self.block_rows <= count:
            return self._made(start, count)  # large enough by itself; threads make several at a time
        begin = start // self.block_rows * self.block_rows
        with self._lock:  # a second thread waits for the block that the first one makes, and finds its own rows there
            if self._held[0] != begin:
                self._held = (begin, *self._made(begin, self.block_rows))
            _, batch, indices = self._held
        own = slice(start - begin, start - begin + count)
        return {key: value[own] for key, value in batch.items()}, indices[own]

    def _made(self, start: int, count: int) -> Made:
        epochs, indices = self.order.span(start, count)
        return self.together(indices, epochs), indices


Key = tuple[int, int]
Made = tuple[Batch, Int64s]


class Ahead:
    """Makes what will be asked for next in threads: twice as many ahead as there are threads.

    Asking out of turn (a resume, a step back) drops what was made ahead and starts from there.
    """

    def __init__(self, make: Callable[[Key], Made], workers: int, following: Callable[[Key], Key]) -> None:
        self._make, self._following, self._depth = make, following, 2 * workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="rows")
        self._pending: OrderedDict[Key, Future[Made]] = OrderedDict()

    def get(self, key: Key) -> Made:
        """What `make(key)` returns, or raises."""
        while self._pending and next(iter(self._pending)) != key:
            self._pending.popitem(last=False)[1].cancel()
        self._fill(key)
        return self._pending.pop(key).result()

    def _fill(self, key: Key) -> None:
        """Queue `key` and the `depth` keys after it that are not queued yet."""
        for _ in range(self._depth + 1):
            if key not in self._pending:
                self._pending[key] = self._threads.submit(self._make, key)
            key = self._following(key)

    def close(self) -> None:
        """Wait for running threads and drop what was made ahead."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


def blank(row: Row) -> Row:
    """A copy of a row that trains nothing."""
    return {key: np.full_like(value, IGNORED) if key in LABELS else value for key, value in row.items()}


def stack(rows: Sequence[Row], *, fill: Mapping[str, int]) -> Batch:
    """Rows as one batch, a tensor per key; shorter rows are filled up to the longest.

    `fill` gives the filling by key (the pad token's id for `input_ids`, …); labels are filled with
    -100, everything else with 0.
    """
    return {key: torch.from_numpy(_stack([row[key] for row in rows], _filling(key, fill))) for key in rows[0]}


def _filling(key: str, fill: Mapping[str, int]) -> int:
    return fill.get(key, IGNORED if key in LABELS else 0)


def _stack(arrays: Sequence[NDArray[np.generic]], filling: int) -> NDArray[np.generic]:
    longest = max(array.shape for array in arrays)
    if all(array.shape == longest for array in arrays):
        return np.stack(arrays)
    stacked = np.full((len(arrays), *longest), filling, arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[: len(array)] = array
    return stacked
