"""Rows of different lengths as one batch: padded to the longest, or end to end without any padding.

Both carry the same labels, so a loss that sums over labels is the same for either.

A row may have two sides: a source, `input_ids`, and a target, `decoder_input_ids` with `labels`. The target
then has its own `decoder_attention_mask`, or `decoder_positions` and `decoder_lengths`.

Axes: B rows, T tokens of the longest, E examples (= B), N tokens of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundup.data.loader import Batch, stack
from groundup.data.packing import Row

TOKENS = ("input_ids", "token_type_ids", "labels", "weights", "marks", "negatives", "decoder_input_ids")
"""The keys of a row with one value a token (of `negatives`, some), wherever they occur; all others are per example."""
TARGET = "decoder_"
"""What the keys of a target begin with."""


def padded(rows: Sequence[Row], fill: Mapping[str, int]) -> Batch:
    """(B,T) for every key with one value a token, filled on the right, and `attention_mask` (B,T) bool.

    `fill` gives the filling by key; labels are filled with -100. Other keys are stacked, (B,) or (B,…).
    """
    batch = stack(rows, fill=fill)
    for side in _sides(rows[0]):
        lengths = torch.from_numpy(_lengths(rows, side))
        batch[f"{side}attention_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
    return batch


def flat(rows: Sequence[Row]) -> Batch:
    """(1,N) for every key with one value a token, `positions` (1,N) and `lengths` (E,); other keys (E,…).

    Rows of equal length should be neighbours: attention takes one call for each run of them.
    """
    batch = {
        key: torch.from_numpy(
            np.concatenate([row[key] for row in rows])[None] if key in TOKENS else np.stack([row[key] for row in rows])
        )
        for key in rows[0]
    }
    for side in _sides(rows[0]):
        lengths = _lengths(rows, side)
        positions = np.concatenate([np.arange(length) for length in lengths])
        batch |= {f"{side}positions": torch.from_numpy(positions)[None], f"{side}lengths": torch.from_numpy(lengths)}
    return batch


def _sides(row: Collection[str]) -> tuple[str, ...]:
    return ("", TARGET) if f"{TARGET}input_ids" in row else ("",)


def _side(key: str, row: Collection[str]) -> str:
    """The side that a key with one value a token belongs to."""
    return TARGET if key.startswith(TARGET) or (key == "labels" and len(_sides(row)) > 1) else ""


def _lengths(rows: Sequence[Row], side: str) -> NDArray[np.int64]:
    return np.array([len(row[f"{side}input_ids"]) for row in rows], np.int64)


def collate(rows: Sequence[Row], *, fill: Mapping[str, int], is_flat: bool) -> Batch:
    """The rows in one of the two layouts."""
    return flat(rows) if is_flat else padded(rows, fill)


def one_by_one(batch: Mapping[str, Tensor]) -> Iterator[Batch]:
    """Each example of a batch as a batch of its own, in the layout it came in."""
    lengths = batch.get("lengths")
    if lengths is None:
        for i in range(len(batch.get("input_ids", next(iter(batch.values()))))):
            yield {key: value[i : i + 1] for key, value in batch.items()}
        return
    starts = dict.fromkeys(_sides(batch), 0)
    for i in range(len(lengths)):
        spans = {side: slice(at, at + int(batch[f"{side}lengths"][i])) for side, at in starts.items()}
        of_tokens = {
            key: value[:, spans[_side(key, batch)]]
            for key, value in batch.items()
            if key in (*TOKENS, "positions", f"{TARGET}positions")
        }
        yield of_tokens | {key: value[i : i + 1] for key, value in batch.items() if key not in of_tokens}
        starts = {side: span.stop for side, span in spans.items()}
