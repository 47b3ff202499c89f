"""Which tokens a masked model must guess, and what it reads in their place.

Masks are drawn anew in every epoch (as Liu et al. 2019, §4.1, found better than masks made once), as a
pure function of (seed, epoch, row). Devlin et al. 2019, §3.1: of the tokens of text 15 % are chosen;
of these 80 % are read as [MASK], 10 % as a random token, 10 % as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from groundup.data.ledger import Ledger
from groundup.data.order import generator
from groundup.data.packing import IGNORED, Columns, Int64s, Row, Stream
from groundup.data.segments import Account, Unmasked

WORD_STARTS = "word_starts"
"""The column, as long as `input_ids`, that is 1 where a token begins a word."""
MASKING, GROUPING = 3, 4
"""Purposes of random numbers; see `generator`."""


class Layout(Protocol):
    """Rows before masking."""

    stream: Stream
    context: int

    def __len__(self) -> int: ...

    def unmasked(self, index: int, epoch: int) -> Unmasked: ...

    def document_of(self, index: int) -> int: ...

    def account(self) -> Account: ...


@dataclass(frozen=True)
class Masking:
    """How many tokens are chosen and what becomes of them."""

    share: float
    """Of the tokens of text, the share chosen."""
    as_mask: float
    """Of the chosen, the share read as `mask_id`."""
    as_random: float
    """Of the chosen, the share read as a random token; the rest are read as they are."""
    mask_id: int
    is_ordinary: NDArray[np.bool_]
    """(vocabulary,) bool: which ids stand for text; only these are chosen, or put in at random."""
    seed: int

    @cached_property
    def ordinary(self) -> Int64s:
        """The ids that stand for text, ascending."""
        return np.flatnonzero(self.is_ordinary)

    def most(self, length: int) -> int:
        """The most labels a row of `length` tokens can have."""
        return max(1, int(np.ceil(self.share * length)))

    def choose(self, text: NDArray[np.bool_], words: NDArray[np.bool_] | None, rng: np.random.Generator) -> Int64s:
        """The positions to predict, at least one where there is text.

        Their number is the share of the text's tokens, rounded up or down at random so that it is met
        on average. With `words` (T,) bool, where words begin, whole words are chosen.
        """
        candidates = np.flatnonzero(text)
        wanted = int(self.share * len(candidates) + rng.random())
        wanted = min(max(1, wanted), len(candidates), self.most(len(text)))
        if words is None:
            return rng.permutation(candidates)[:wanted]
        return _whole_words(candidates, words, wanted, rng)

    def read_as(self, ids: Int64s, rng: np.random.Generator) -> Int64s:
        """What the model reads in place of the chosen tokens `ids`."""
        draw = rng.random(len(ids))
        random_ids = self.ordinary[rng.integers(0, len(self.ordinary), len(ids))]
        read = np.where(draw < self.as_mask + self.as_random, random_ids, ids)
        return np.where(draw < self.as_mask, self.mask_id, read)


def _whole_words(candidates: Int64s, words: NDArray[np.bool_], wanted: int, rng: np.random.Generator) -> Int64s:
    """Positions of words in random order, skipping those that would exceed `wanted` tokens.

    If no word is short enough for it, single tokens are taken instead.
    """
    begins = np.flatnonzero(word_begins(candidates, words))
    spans = np.split(candidates, begins[1:])
    chosen: list[Int64s] = []
    left = wanted
    for number in rng.permutation(len(spans)):
        if len(spans[number]) <= left:
            chosen.append(spans[number])
            left -= len(spans[number])
            if not left:
                break
    return np.concatenate(chosen) if chosen else rng.permutation(candidates)[:wanted]


def word_begins(candidates: Int64s, words: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the candidate positions begin a word: as stored, and after every gap between them."""
    return np.asarray(words[candidates] | (np.diff(candidates, prepend=-1) != 1))


class MaskedRows:
    """Rows of a layout with tokens masked, differently in every epoch.

    Row: the layout's arrays, with masked `input_ids`, and `labels` (T,) int64: the token that was
    there, -100 where nothing is predicted.
    """

    def __init__(self, layout: Layout, masking: Masking, word_starts: NDArray[np.generic] | None = None) -> None:
        """`word_starts` is the stored column, for whole-word masking. Raises DataError without labels."""
        self.layout, self.masking, self.word_starts = layout, masking, word_starts
        self.stream = layout.stream
        self.ledger().require_labels()

    def __len__(self) -> int:
        return len(self.layout)

    def row(self, index: int, epoch: int) -> Row:
        """One row as it is masked in an epoch."""
        made = self.layout.unmasked(index, epoch)
        rng = generator(self.masking.seed, epoch, index, MASKING)
        ids = made.row["input_ids"]
        labels, text = np.full(len(ids), IGNORED, np.int64), made.text & self.masking.is_ordinary[ids]
        if text.any():
            chosen = self.masking.choose(text, stored_words(self.word_starts, made), rng)
            labels[chosen] = ids[chosen]
            ids[chosen] = self.masking.read_as(ids[chosen], rng)
        return made.row | {"labels": labels}

    def ledger(self) -> Ledger:
        """Expected counts: which tokens are chosen differs by epoch."""
        account = self.layout.account()
        trained = round(self.masking.share * account.text)
        trained = max(trained, min(len(self), account.text))
        shown = account.text + account.special
        dropped, unlabelled = self.stream.empty()
        return Ledger(
            documents=self.stream.documents,
            rows=len(self),
            tokens=self.stream.tokens,
            trained=trained,
            masked=shown - trained,
            cropped=account.cropped,
            padded=len(self) * self.layout.context - shown,
            dropped=dropped,
            unlabelled=unlabelled,
            is_expected=True,
        )

    def unit_of(self, index: int) -> int:
        """The document that the row, or its first part, is from."""
        return self.layout.document_of(index)

    def bytes_of(self, index: int) -> float:
        """0: masked predictions do not add up to a code of the text."""
        return 0.0


class MaskedOnce:
    """Rows that predict every token of text exactly once, for measuring a masked model.

    Each row of the layout appears in `groups` versions; version g hides the g-th part of its tokens,
    drawn at random but the same at every evaluation, and all hidden tokens are read as [MASK]. With as
    many groups as tokens this would be the pseudo-likelihood of Salazar et al. 2020; with 1/share
    groups it costs a fraction and hides as many tokens at once as training does.
    """

    def __init__(
        self,
        layout: Layout,
        masking: Masking,
        word_starts: NDArray[np.generic] | None = None,
        *,
        chosen: Int64s | None = None,
    ) -> None:
        """`chosen` are the rows of the layout to measure; all unless given. Raises DataError without labels."""
        self.layout, self.masking, self.word_starts = layout, masking, word_starts
        self.chosen = np.arange(len(layout)) if chosen is None else chosen
        self.groups = max(1, int(np.ceil(1 / masking.share)))
        self.ledger().require_labels()

    def __len__(self) -> int:
        return len(self.chosen) * self.groups

    def row(self, index: int, epoch: int) -> Row:
        """One version of a row, the same in every epoch; see `MaskedRows` for its arrays."""
        place, group = int(self.chosen[index // self.groups]), index % self.groups
        made = self.layout.unmasked(place, 0)
        ids = made.row["input_ids"]
        labels = np.full(len(ids), IGNORED, np.int64)
        candidates = np.flatnonzero(made.text & self.masking.is_ordinary[ids])
        words = stored_words(self.word_starts, made)
        unit = np.arange(len(candidates)) if words is None else np.cumsum(word_begins(candidates, words)) - 1
        shuffled = generator(self.masking.seed, 0, place, GROUPING).permutation(int(unit.max(initial=-1)) + 1)
        hidden = candidates[shuffled[unit] % self.groups == group]
        labels[hidden] = ids[hidden]
        ids[hidden] = self.masking.mask_id
        return made.row | {"labels": labels}

    def ledger(self) -> Ledger:
        """Counts in proportion to the chosen rows: every token of text is one label, context otherwise."""
        account = self.layout.account()
        part = len(self.chosen) / max(1, len(self.layout))
        trained = round(account.text * part)
        shown = round((account.text + account.special) * part) * self.groups
        dropped, unlabelled = self.layout.stream.empty()
        return Ledger(
            documents=self.layout.stream.documents,
            rows=len(self),
            tokens=self.layout.stream.tokens,
            trained=trained,
            masked=shown - trained,
            padded=max(0, len(self) * self.layout.context - shown),
            cropped=account.cropped,
            dropped=dropped,
            unlabelled=unlabelled,
            is_expected=True,
        )

    def unit_of(self, index: int) -> int:
        """The document that the row, or its first part, is from."""
        return self.layout.document_of(int(self.chosen[index // self.groups]))

    def bytes_of(self, index: int) -> float:
        """0: masked predictions do not add up to a code of the text."""
        return 0.0


def stored_words(word_starts: NDArray[np.generic] | None, made: Unmasked) -> NDArray[np.bool_] | None:
    """Where words begin in a row, (T,) bool, from the stored column; None without one."""
    if word_starts is None:
        return None
    found = np.zeros(len(made.text), bool)
    found[made.text] = word_starts[made.tokens[made.text]] != 0
    return found


def column_or_none(shards: Columns, name: str, *, wanted: bool) -> NDArray[np.generic] | None:
    """All values of a column, or None if it is not wanted."""
    return np.asarray(shards.column(name)[0]) if wanted else None
