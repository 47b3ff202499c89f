"""Training rows whose texts are changed anew in every epoch; see `text/augment.py`.

Encoded rows hold no text, so a row that is changed is encoded again from its example. Held-out rows are
never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from groundup.data.examples import Examples
from groundup.data.order import generator
from groundup.data.packing import Row
from groundup.text.augment import Augment, augmented, read_synonyms

_PURPOSE = 5
"""The purpose of what is drawn here, so that nothing else draws the same numbers."""


class Augmented:
    """`Examples`, some of them with other texts: what they are is a function of (seed, epoch, index)."""

    def __init__(
        self,
        rows: Examples,
        how: Augment,
        *,
        seed: int,
        columns: Sequence[str],
        example_of: Callable[[int], Mapping[str, Any]],
        encode: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        """`columns` are those of the texts that are changed; `example_of` gives an example by its place in the
        split, `encode` its columns. Raises DataError for a file of synonyms that cannot be read."""
        self.rows, self.how, self.seed = rows, how, seed
        self.columns, self._example_of, self._encode = tuple(columns), example_of, encode
        self._synonyms = read_synonyms(how.synonyms) if how.synonyms else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        """All else is as it is of the rows: their lengths (about those of changed ones), their ledger, …"""
        if name == "rows":
            raise AttributeError(name)
        return getattr(self.rows, name)

    def row(self, index: int, epoch: int) -> Row:
        """The arrays of one example, its text perhaps changed; its label never is."""
        draw = generator(self.seed, epoch, index, _PURPOSE)
        if draw.random() >= self.how.share:
            return self.rows.row(index, epoch)
        example = dict(self._example_of(self.rows.document_of(index)))
        always = self.how.model_copy(update={"share": 1.0})
        for column in self.columns:
            example[column] = augmented(str(example[column]), always, self._synonyms, draw)
        encoded, plain = self._encode(example), self.rows.row(index, epoch)
        return {
            name: np.asarray(encoded[name], value.dtype) if name in self.rows.tokens else value
            for name, value in plain.items()
        }
