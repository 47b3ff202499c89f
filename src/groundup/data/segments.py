"""Rows for masked models, before masking: `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`, or packed.

The documents of a split are cut once into chunks of whole sentences, greedily, at most as long as fits
a row. A chunk is a place in the stream of tokens, eight bytes, found for millions of sentences in
seconds; a row is made from its chunk when it is asked for.

Next-sentence prediction follows Devlin et al. 2019 (§3.1, appendix A.2): half of the rows have as B
what follows A, half a span of another document. One departure, so that an epoch shows (nearly) every
token although each row is a pure function of its index: chunks are put into pairs anew each epoch, and
the two of a pair either keep their second parts or exchange them. Either way B runs on to the length
the row aims at, if its document does, so that neither the length nor an unfinished last sentence tells
a true pair from a false one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from groundup.data.order import Order, generator, mix, mix_one
from groundup.data.packing import Columns, Int64s, Packing, Row, Stream, block_diagonal, spread

SENTENCES = "sentences"
"""The column with the tokens at which sentences begin, counted from the document's first token."""
BLOCK = 1 << 20
"""Sentences worked on at once while chunks are cut; bounds memory, changes nothing else."""
PAIRING, PARTNER = 1, 2
"""Purposes of random numbers; see `generator`."""
IS_NEXT, IS_RANDOM = 0, 1
"""Labels of next-sentence prediction, as published BERT models have them."""


@dataclass(frozen=True)
class Unmasked:
    """A row before masking: its arrays, and which of its tokens are text (not special, not padding)."""

    row: Row
    text: NDArray[np.bool_]
    """(T,) bool"""
    tokens: Int64s
    """(T,) the place of each token of text in the stream, for what is stored beside it."""


@dataclass(frozen=True)
class Specials:
    """The special tokens of a BERT input."""

    cls: int
    sep: int
    pad: int


@dataclass(frozen=True)
class Targets:
    """How long the chunk that begins at a token aims to be: the room there is, or now and then less.

    A share of `short` aims at a length drawn evenly from 2 to `room`, as the published BERT was trained
    to lessen the mismatch with short inputs. A function of the token, so that it is never stored.
    """

    room: int
    short: float
    seed: int

    def at(self, starts: Int64s) -> Int64s:
        """The lengths aimed at by chunks that begin at these tokens of the stream."""
        base = np.uint64(mix_one(self.seed & 0xFFFF_FFFF_FFFF_FFFF))
        drawn = mix(starts.astype(np.uint64) ^ base)
        is_short = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.short
        lengths = 2 + (mix(drawn) % np.uint64(max(1, self.room - 1))).astype(np.int64)
        return np.where(is_short, np.minimum(lengths, self.room), self.room)


def chunk_starts(shards: Columns, targets: Targets) -> Int64s:
    """The tokens at which chunks begin, ascending, and the length of the stream at the end: (C + 1,).

    A chunk is as many whole sentences of one document as its target allows, at least one; a sentence
    longer than the room is first cut into even parts. Needs the columns `input_ids` and `sentences`.
    """
    offsets = np.asarray(shards.column("input_ids")[1])
    firsts, owned = shards.column(SENTENCES)
    owned = np.asarray(owned)
    found: list[Int64s] = []
    document = 0
    while document < shards.documents:
        limit = int(np.searchsorted(owned, owned[document] + BLOCK, side="right")) - 1
        stop = max(document + 1, min(limit, shards.documents))
        counts = np.diff(owned[document : stop + 1])
        bases = np.repeat(offsets[document:stop], counts)
        sentences = bases + np.asarray(firsts[owned[document] : owned[stop]], np.int64)
        found.append(_cut(sentences, offsets[document : stop + 1], targets))
        document = stop
    return np.concatenate([*found, offsets[-1:]]).astype(np.int64)


def _cut(sentences: Int64s, offsets: Int64s, targets: Targets) -> Int64s:
    """Chunk starts of some documents from the starts of their sentences."""
    bounds = _split_long(np.append(sentences, offsets[-1]), targets.room)
    starts = bounds[:-1]
    if not len(starts):
        return starts
    ends = offsets[np.searchsorted(offsets, starts, side="right")]
    reach = np.minimum(starts + targets.at(starts), ends)
    following = np.searchsorted(bounds, reach, side="right") - 1
    chain = memoryview(np.maximum(following, np.arange(1, len(bounds))))
    taken, place = [], 0
    while place < len(starts):  # the only loop: one cheap step per chunk, each needs the one before
        taken.append(place)
        place = chain[place]
    return starts[taken]


def _split_long(bounds: Int64s, room: int) -> Int64s:
    """Bounds with every span longer than `room` cut into the fewest even parts."""
    lengths = np.diff(bounds)
    parts = -(-lengths // room)
    number = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    inside = np.repeat(lengths, parts) * number // np.repeat(parts, parts)
    return np.append(np.repeat(bounds[:-1], parts) + inside, bounds[-1])


@dataclass(frozen=True)
class Account:
    """How the tokens of a layout's rows divide, over an epoch."""

    text: int
    """Tokens of text shown, each as often as rows show it."""
    special: int
    """Special tokens shown."""
    cropped: int = 0
    """Tokens of text that no row shows."""
    is_expected: bool = False
    """Whether these are estimates from a sample of the rows."""


class SegmentLayout:
    """Rows `[CLS] segment [SEP]`, padded: one for each span [begin, end) of the stream.

    Row: `input_ids` (T,) int64, `attention_mask` (T,) bool, `token_type_ids` (T,) int64.
    """

    def __init__(
        self, stream: Stream, begins: Int64s, ends: Int64s, *, context: int, specials: Specials, fit: bool = False
    ) -> None:
        """With `fit`, a row is padded only to the next power of two, up to T."""
        self.stream, self.begins, self.ends = stream, begins, ends
        self.context, self.specials, self.fit = context, specials, fit

    def __len__(self) -> int:
        return len(self.begins)

    def unmasked(self, index: int, epoch: int) -> Unmasked:
        """The row of a span, the same in every epoch."""
        span = range(int(self.begins[index]), int(self.ends[index]))
        length = len(span) + 2
        width = min(self.context, 1 << (length - 1).bit_length()) if self.fit else self.context
        return assemble(self.stream, [span], width, self.specials)

    def document_of(self, index: int) -> int:
        """The document of a row."""
        return self.stream.document_at(int(self.begins[index]))

    def account(self) -> Account:
        """Exact counts."""
        return Account(text=int((self.ends - self.begins).sum()), special=2 * len(self))


class PairLayout:
    """Rows `[CLS] A [SEP] B [SEP]`, padded, with `next_sentence_label`: 0 if B follows A, 1 if not.

    Row: `input_ids` (T,) int64, `attention_mask` (T,) bool, `token_type_ids` (T,) int64 (0 for A, 1 for
    B), `next_sentence_label` () int64. Row i is made from chunk i; which other chunk it is paired with,
    where both are cut, and whether they exchange their second parts differs by epoch.
    """

    def __init__(self, shards: Columns, targets: Targets, *, context: int, specials: Specials) -> None:
        self.stream, self.targets = Stream(shards), targets
        self.context, self.specials = context, specials
        self.starts = chunk_starts(shards, targets)
        firsts, owned = shards.column(SENTENCES)
        self._firsts, self._owned = np.asarray(firsts), np.asarray(owned)
        # Another order than the one in which rows are visited, or both of a pair would share a batch.
        self._pairs = Order(max(1, len(self)), mix_one(targets.seed & 0xFFFF_FFFF_FFFF_FFFF))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def unmasked(self, index: int, epoch: int) -> Unmasked:
        """The row of a chunk in an epoch."""
        first, second, label = self.spans(index, epoch)
        made = assemble(self.stream, [first, second], self.context, self.specials)
        return Unmasked(made.row | {"next_sentence_label": np.array(label, np.int64)}, made.text, made.tokens)

    def spans(self, index: int, epoch: int) -> tuple[range, range, int]:
        """The tokens of A and of B, and the label."""
        place = self._pairs.place_of(epoch, index)
        rng = generator(self.targets.seed, epoch, place // 2, PAIRING)
        share, exchanged = rng.random(), rng.random() < 0.5
        start, stop = self._chunk(index)
        middle, end = self._middle(index, share), self._end(index)
        room = max(int(self.targets.at(self.starts[index : index + 1])[0]), stop - start) - (middle - start)
        own = range(middle, min(middle + room, end))
        other = self._partner(index, epoch, place ^ 1) if exchanged or not own else None
        if other is None:
            return range(start, middle), own, IS_NEXT
        begin, limit = self._middle(other, share), self._end(other)
        begin = begin if begin < limit else self._chunk(other)[0]
        return range(start, middle), range(begin, min(begin + (len(own) or room), limit)), IS_RANDOM

    def document_of(self, index: int) -> int:
        """The document of a row's A."""
        return self.stream.document_at(int(self.starts[index]))

    def account(self) -> Account:
        """Estimates from up to 1000 rows, evenly spread, of epoch 0."""
        return self._account

    @cached_property
    def _account(self) -> Account:
        sample = spread(len(self), 1000)
        spans = [self.spans(int(index), 0) for index in sample]
        shown = sum(len(first) + len(second) for first, second, _ in spans)
        scale = len(self) / len(sample)
        # What is cropped: the end of a second part, in the row that shows the part.
        unseen = sum(self._unseen(second) for _, second, _ in spans)
        return Account(round(shown * scale), 3 * len(self), round(unseen * scale), is_expected=True)

    def _unseen(self, second: range) -> int:
        """Tokens between the end of a shown second part and the end of the chunk it is from."""
        chunk = int(np.searchsorted(self.starts, second.start, side="right")) - 1
        return max(0, self._chunk(chunk)[1] - second.stop)

    def _middle(self, index: int, share: float) -> int:
        """Where a chunk's second part begins: at one of its sentences, by a share in [0, 1).

        A chunk of a single sentence (a short document, or part of a very long sentence) is cut within it.
        """
        start, stop = self._chunk(index)
        document = self.stream.document_at(start)
        base = int(self.stream.offsets[document])
        held = self._firsts[self._owned[document] : self._owned[document + 1]]
        low, high = np.searchsorted(held, [start - base + 1, stop - base])
        if high > low:
            return base + int(held[low + int(share * (high - low))])
        return start + 1 + int(share * (stop - start - 1)) if stop - start > 1 else stop

    def _partner(self, index: int, epoch: int, place: int) -> int | None:
        """The chunk that stands beside this one in the epoch's pairing.

        If there is none, or it is of the same document: the first of twenty drawn at random that is
        of another, or None.
        """
        document = self.document_of(index)
        rng = generator(self.targets.seed, epoch, index, PARTNER)
        beside = [self._pairs.row_at(epoch, place)] if place < len(self) else []
        others = (int(i) for i in (*beside, *rng.integers(0, len(self), 20)) if self.document_of(int(i)) != document)
        return next(others, None)

    def _chunk(self, index: int) -> tuple[int, int]:
        return int(self.starts[index]), int(self.starts[index + 1])

    def _end(self, index: int) -> int:
        """The end of the document of a chunk."""
        return int(self.stream.offsets[self.document_of(index) + 1])


def document_windows(stream: Stream, documents: Int64s, room: int, *, heads: int, tails: int) -> tuple[Int64s, Int64s]:
    """Begins and ends of spans that cut each of some documents evenly into the fewest of at most `room` tokens.

    `heads` and `tails` stored tokens at either end of a document are left out. Longest spans first.
    """
    sizes = np.maximum(0, np.diff(stream.offsets)[documents] - heads - tails)
    windows = -(-sizes // room)
    number = np.arange(int(windows.sum())) - np.repeat(np.cumsum(windows) - windows, windows)
    first, size, count = (np.repeat(a, windows) for a in (stream.offsets[documents] + heads, sizes, windows))
    begins, ends = first + size * number // count, first + size * (number + 1) // count
    order = np.argsort(begins - ends, kind="stable")
    return begins[order], ends[order]


def assemble(stream: Stream, spans: list[range], width: int, specials: Specials) -> Unmasked:
    """`[CLS] span [SEP]` for one span, `[CLS] span [SEP] span [SEP]` for two, padded to `width`."""
    ids = np.full(width, specials.pad, np.int64)
    text, types, tokens = np.zeros(width, bool), np.zeros(width, np.int64), np.zeros(width, np.int64)
    ids[0], place = specials.cls, 1
    for number, span in enumerate(spans):
        end = place + len(span)
        ids[place:end] = stream.slice(span.start, span.stop)
        text[place:end], tokens[place:end] = True, np.arange(span.start, span.stop)
        ids[end] = specials.sep
        types[place - (number == 0) : end + 1] = number
        place = end + 1
    row = {"input_ids": ids, "attention_mask": np.arange(width) < place, "token_type_ids": types}
    return Unmasked(row, text, tokens)


class StreamLayout:
    """Rows cut from the stream of whole documents, `[CLS] document [SEP]` one after the other.

    Row r shows tokens [rT, rT + T); the last one begins earlier, so that it is full, and only its new
    tokens count as text. Row: `input_ids` (T,) int64 and, with `packing="documents"`, `document_ids`
    (T,) int32 and `positions` (T,) int64; see `block_diagonal`. Only a split shorter than one row is
    padded.
    """

    def __init__(self, stream: Stream, *, context: int, specials: Specials, packing: Packing) -> None:
        self.stream, self.context, self.specials, self.packing = stream, context, specials, packing

    def __len__(self) -> int:
        return -(-self.stream.tokens // self.context)

    def unmasked(self, index: int, epoch: int) -> Unmasked:
        """The row of a window, the same in every epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = max(0, min(index * self.context, self.stream.tokens - self.context))
        held = self.stream.slice(start, start + self.context)
        ids = np.full(self.context, self.specials.pad, np.int64)
        ids[: len(held)] = held
        tokens = start + np.arange(self.context)
        marks = (self.specials.cls, self.specials.sep, self.specials.pad)
        text = (tokens >= index * self.context) & ~np.isin(ids, marks)
        row: Row = {"input_ids": ids}
        if self.packing == "documents":
            row |= block_diagonal(self.stream.owners(start, start + len(held)), self.context)
        elif len(held) < self.context:
            row["attention_mask"] = np.arange(self.context) < len(held)
        return Unmasked(row, text, tokens)

    def document_of(self, index: int) -> int:
        """The document of a row's first token."""
        return self.stream.document_at(index * self.context)

    def account(self) -> Account:
        """Exact, except that the tokens a last row shows again count as special."""
        dropped, _ = self.stream.empty()
        text = self.stream.tokens - 2 * (self.stream.documents - dropped)
        shown = max(self.stream.tokens, len(self) * self.context if self.stream.tokens > self.context else 0)
        return Account(text=text, special=shown - text)
