"""Rows of different lengths as one batch: padded to the longest, or end to end without any padding.

Both carry the same labels, so a loss that sums over labels is the same for either.

Axes: B rows, T tokens of the longest, E examples (= B), N tokens of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from groundup.data.loader import Batch, stack
from groundup.data.packing import Row

TOKENS = ("input_ids", "token_type_ids", "labels", "weights", "marks")
"""The keys of a row with one value a token, wherever they occur; all others are per example."""


def padded(rows: Sequence[Row], fill: Mapping[str, int]) -> Batch:
    """(B,T) for every key with one value a token, filled on the right, and `attention_mask` (B,T) bool.

    `fill` gives the filling by key; labels are filled with -100. Other keys are stacked, (B,) or (B,…).
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return stack(rows, fill=fill) | {"attention_mask": mask}


def flat(rows: Sequence[Row]) -> Batch:
    """(1,N) for every key with one value a token, `positions` (1,N) and `lengths` (E,); other keys (E,…).

    Rows of equal length should be neighbours: attention takes one call for each run of them.
    """
    lengths = np.array([len(row["input_ids"]) for row in rows], np.int64)
    batch = {
        key: torch.from_numpy(
            np.concatenate([row[key] for row in rows])[None] if key in TOKENS else np.stack([row[key] for row in rows])
        )
        for key in rows[0]
    }
    positions = np.concatenate([np.arange(length) for length in lengths])
    return batch | {"positions": torch.from_numpy(positions)[None], "lengths": torch.from_numpy(lengths)}


def collate(rows: Sequence[Row], *, fill: Mapping[str, int], is_flat: bool) -> Batch:
    """The rows in one of the two layouts."""
    return flat(rows) if is_flat else padded(rows, fill)


def one_by_one(batch: Mapping[str, Tensor]) -> Iterator[Batch]:
    """Each example of a batch as a batch of its own, in the layout it came in."""
    lengths = batch.get("lengths")
    if lengths is None:
        for i in range(len(batch["input_ids"])):
            yield {key: value[i : i + 1] for key, value in batch.items()}
        return
    start = 0
    for i, length in enumerate(lengths.tolist()):
        of_tokens = {key: batch[key][:, start : start + length] for key in batch if key in (*TOKENS, "positions")}
        yield of_tokens | {key: value[i : i + 1] for key, value in batch.items() if key not in of_tokens}
        start += length
