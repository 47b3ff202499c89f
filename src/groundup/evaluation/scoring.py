"""Sums per row of a test set, and the units over which an interval draws them again.

A task gives sums per row (nats, labels, right answers); a unit is a document, or, where there are too
few documents to draw from, a block of neighbouring rows of one. Whatever the units, the sums add up to
the same total, so the score does not depend on them; only its interval does.

Axes: W rows (windows), U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from groundup.data.packing import Row, Rows
from groundup.errors import Interrupted
from groundup.evaluation.intervals import Interval, ratio_interval
from groundup.evaluation.metrics.ratios import Ratio
from groundup.progress import Reporter, interrupt_requested
from groundup.units import show_bytes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEW_DOCUMENTS = 20
"""Below this many documents, blocks are drawn instead: so few cannot stand for the variety of texts."""
BLOCK_LABELS = 1024
"""A block holds at least this many predicted tokens, so that neighbours depend little on each other."""


@dataclass(frozen=True)
class RowSums:
    """What a model scored on each row: its document, and sums by name; `bytes` is one of them."""

    document: Ints
    sums: dict[str, Floats]


@dataclass(frozen=True)
class Units:
    """What is drawn again: for each unit its document, which part of it, and its sums."""

    name: str
    document: Ints
    start: Floats
    """Where in its document a unit begins, as a share of the document's labels."""
    stop: Floats
    sums: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.document)

    def interval(self, metric: Ratio, *, seed: int, resamples: int) -> Interval:
        """The score with its interval."""
        above, below = self.sums[metric.above], self.sums[metric.below]
        ratio = ratio_interval(above, below, seed=seed, unit=self.name, resamples=resamples)
        return ratio.map(metric.finish)

    def lead(self, other: Floats, metric: Ratio, *, seed: int, resamples: int) -> Interval:
        """How much better these units score than with `other` in place of `metric.above`; paired.

        Only for a metric whose `finish` is linear: a difference of logarithms is no difference of
        perplexities.
        """
        gap = other - self.sums[metric.above]
        gap = -gap if metric.higher_is_better else gap
        ratio = ratio_interval(gap, self.sums[metric.below], seed=seed, unit=self.name, resamples=resamples)
        return ratio.map(metric.finish)

    def with_sums(self, **sums: Floats) -> Units:
        """The same units with other sums in place of those named."""
        return replace(self, sums=self.sums | sums)


def score_rows(
    rows: Rows,
    *,
    collate: Callable[[Sequence[Row]], dict[str, Tensor]],
    forward: Callable[[Mapping[str, Tensor]], Any],
    scores: Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]],
    batch_tokens: int,
    reporter: Reporter,
) -> RowSums:
    """The sums of every row, computed in batches of rows of one length. Raises Interrupted."""
    found: dict[str, list[NDArray[Any]]] = {}
    for first, batch_rows in _batches(rows, batch_tokens):
        batch = collate(batch_rows)
        for name, values_B in scores(forward(batch), batch).items():
            found.setdefault(name, []).append(values_B.double().cpu().numpy())
        reporter.advance("scoring", first + len(batch_rows), len(rows))
        if interrupt_requested():
            raise Interrupted("stopped while scoring", fix="run again: scoring starts afresh")
    sums = {name: np.concatenate(values) for name, values in found.items()}
    sums["bytes"] = np.array([rows.bytes_of(index) for index in range(len(rows))])
    return RowSums(np.array([rows.unit_of(index) for index in range(len(rows))], np.int64), sums)


def _batches(rows: Rows, batch_tokens: int) -> Iterator[tuple[int, list[Row]]]:
    """Neighbouring rows of equal length, as many as fit, with the index of the first."""
    batch: list[Row] = []
    for index in range(len(rows)):
        row = rows.row(index, 0)
        length = len(row["input_ids"])
        if batch and (len(batch[0]["input_ids"]) != length or (len(batch) + 1) * length > batch_tokens):
            yield index - len(batch), batch
            batch = []
        batch.append(row)
    if batch:
        yield len(rows) - len(batch), batch


def units_of(rows: RowSums) -> Units:
    """Documents, or blocks of them where there are few. Rows of a document are in reading order."""
    documents = np.unique(rows.document)
    if len(documents) >= FEW_DOCUMENTS:
        edges = np.searchsorted(documents, rows.document)
        sums = {
            name: np.bincount(edges, values, len(documents)).astype(np.float64) for name, values in rows.sums.items()
        }
        zeros = np.zeros(len(documents))
        return Units("documents", documents, zeros, zeros + 1, sums)
    return _blocks(rows, documents)


def _blocks(rows: RowSums, documents: Ints) -> Units:
    owners: list[int] = []
    starts: list[float] = []
    stops: list[float] = []
    sums: dict[str, list[float]] = {name: [] for name in rows.sums}
    for document in documents:
        members = np.flatnonzero(rows.document == document)
        labels = rows.sums["labels"][members]
        through = np.cumsum(labels)
        block = np.minimum((through - labels) // BLOCK_LABELS, max(0, through[-1] // BLOCK_LABELS - 1))
        _, block = np.unique(block, return_inverse=True)
        share = np.bincount(block, labels) / max(1.0, through[-1])
        owners += [int(document)] * len(share)
        stops += np.cumsum(share).tolist()
        starts += (np.cumsum(share) - share).tolist()
        for name, values in rows.sums.items():
            own = values[members]
            # A document's bytes are counted at its first row; its blocks share them by their labels.
            sums[name] += (share * own.sum() if name == "bytes" else np.bincount(block, own)).tolist()
    made = {name: np.array(values) for name, values in sums.items()}
    return Units(_block_name(made), np.array(owners), np.array(starts), np.array(stops), made)


def _block_name(sums: dict[str, Floats]) -> str:
    count, size = max(1, len(sums["bytes"])), sums["bytes"].sum()
    return f"blocks of about {show_bytes(size / count)}" if size else f"blocks of about {BLOCK_LABELS} tokens"
