"""Labelled rows of different lengths in one file, which every side of a fine-tuning comparison reads.

Rows are encoded once, before anyone is timed, so nobody's tokenizer is part of the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100


@dataclass(frozen=True)
class RowFile:
    """Rows end to end: ids, where each begins, and labels: one a row, or for each token whether it is trained."""

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    is_chat: bool

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], labels: Sequence[Any], *, is_chat: bool = False) -> RowFile:
        """Rows held in memory; in a chat the labels are a list of zeros and ones for each row."""
        flat = np.array([label for each in labels for label in each] if is_chat else labels, np.int64)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(np.concatenate([np.array(row, np.int64) for row in rows]), offsets, flat, is_chat)

    @classmethod
    def read(cls, path: str | Path) -> RowFile:
        """The rows that `write` wrote."""
        held = np.load(path)
        return cls(held["ids"], held["offsets"], held["labels"], bool(held["is_chat"]))

    def write(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez(path, ids=self.ids, offsets=self.offsets, labels=self.labels, is_chat=self.is_chat)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def features(self, index: int) -> dict[str, Any]:
        """A row as transformers' collators take it: plain lists, labels of a chat -100 where nothing is trained."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        ids = self.ids[own]
        row: dict[str, Any] = {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}
        if self.is_chat:
            return row | {"labels": np.where(self.labels[own] == 1, ids, IGNORED).tolist()}
        return row | {"token_type_ids": [0] * len(ids), "label": int(self.labels[index])}


class Shards:
    """The rows as the encoded documents of a split, the way groundup's stages read them."""

    def __init__(self, rows: RowFile) -> None:
        self.documents = len(rows)
        self.bytes = 4 * rows.lengths
        each = np.arange(len(rows) + 1)
        none = (np.zeros(len(rows), np.int64), each)
        self._columns = {"input_ids": (rows.ids, rows.offsets), "cropped": none}
        if rows.is_chat:
            trained = np.add.reduceat(rows.labels, rows.offsets[:-1])
            self._columns |= {"trained": (rows.labels, rows.offsets), "pieces": (rows.lengths, each)}
            self._columns |= {"answers": (trained, each)}
        else:
            self._columns |= {"token_type_ids": (np.zeros_like(rows.ids), rows.offsets), "label": (rows.labels, each)}

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """All values of a column end to end, and where each document begins."""
        return self._columns[name]
