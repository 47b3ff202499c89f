"""Classical rivals beside a model, on the same test documents: xz, n-grams, token counts.

A deep model that does not beat them has learned little, and a report that leaves them out hides it.
Each rival says what it is, what it has read, and by how much it trails the model on the same units.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.packing import IGNORED, Rows
from groundup.errors import Interrupted
from groundup.evaluation import ngram
from groundup.evaluation.intervals import Interval
from groundup.evaluation.metrics.ratios import Ratio
from groundup.evaluation.scoring import RowSums, Units, units_of
from groundup.evaluation.texts import Texts, size
from groundup.progress import interrupt_requested
from groundup.units import show_bytes

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]
Encode = Callable[[Sequence[str]], list[Ints]]

BITS = Ratio("nats", "bytes", lambda nats: nats / math.log(2))
XZ_WINDOW = 64 << 20
"""How far back `xz -9` looks; training text before that cannot help it."""
WORTH = 0.002
"""A longer n-gram must lower the validation bits by this share, or the search for the order ends."""


@dataclass(frozen=True)
class Rival:
    """One rival's score. `lead` is how much worse (larger) it is than the model's, on the same units."""

    name: str
    meaning: str
    metric: str
    score: float
    interval: Interval | None = None
    lead: Interval | None = None
    trained_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Plain data for report.json."""
        plain = {
            name: getattr(self, name) for name in ("name", "meaning", "metric", "score", "trained_bytes", "details")
        }
        return plain | {
            "interval": self.interval and self.interval.as_dict(),
            "lead": self.lead and self.lead.as_dict(),
        }


def xz(texts: Texts) -> list[Rival]:
    """xz at its strongest preset, reading the test text alone, and after the training text.

    The documents are joined with nothing between them. There is no interval: the compressor sees
    one text, not many documents.
    """
    joined = "".join(texts.test).encode()
    if not joined:
        return []
    alone = len(lzma.compress(joined, preset=9))
    found = [
        Rival(
            "xz -9 on the test text alone",
            f"the compressor starts with no knowledge: {show_bytes(len(joined))} shrink to {show_bytes(alone)}",
            "bits_per_byte",
            8 * alone / len(joined),
            details={"input_bytes": len(joined), "compressed_bytes": alone},
        )
    ]
    before = "".join(texts.train).encode()[-(XZ_WINDOW - len(joined)) :] if len(joined) < XZ_WINDOW else b""
    if before:
        extra = len(lzma.compress(before + joined, preset=9)) - len(lzma.compress(before, preset=9))
        found.append(
            Rival(
                "xz -9 after the training text",
                f"what the test text adds to {show_bytes(len(before))} of training text compressed before it: "
                f"{show_bytes(extra)}. It may copy any passage it has seen, word for word",
                "bits_per_byte",
                8 * extra / len(joined),
                trained_bytes=len(before),
                details={"input_bytes": len(joined), "compressed_bytes": extra},
            )
        )
    return found


@dataclass(frozen=True)
class Alphabet:
    """What an n-gram model counts: the bytes of a text, or the tokens of the model's tokenizer."""

    name: str
    symbols: int
    encode: Encode
    max_order: int


BYTES = Alphabet("bytes", 256, lambda texts: [np.frombuffer(text.encode(), np.uint8) for text in texts], 12)


@dataclass(frozen=True)
class Fitted:
    """The n-gram model that validation chose."""

    model: ngram.NGram
    alphabet: Alphabet
    order: int
    tried: dict[str, list[float]]
    """Validation bits per byte by order, for each alphabet."""

    def nats(self, units: Units, texts: Sequence[str]) -> Floats:
        """Negative log-likelihood of each unit, in nats; `texts` are the documents in ascending order."""
        documents = self.alphabet.encode(texts)
        if (units.start == 0).all() and (units.stop == 1).all():
            whole: Floats = self.model.document_nats(documents, [self.order])[0]
            return whole
        by_document = [np.cumsum(self.model.symbol_nats(document, self.order)) for document in documents]
        place = np.searchsorted(np.unique(units.document), units.document)
        pairs = zip(place, units.start, units.stop, strict=True)
        return np.array([_between(by_document[d], start, stop) for d, start, stop in pairs])


def _between(cumulated: Floats, start: float, stop: float) -> float:
    """The sum over the shares [start, stop) of a document, of its cumulated values."""
    ends = [round(share * len(cumulated)) for share in (start, stop)]
    low, high = (float(cumulated[end - 1]) if end else 0.0 for end in ends)
    return high - low


def fit_ngram(train: Sequence[str], validation: Sequence[str], alphabets: Sequence[Alphabet]) -> Fitted:
    """The best n-gram model of the training texts by validation bits, over alphabets and orders.

    Orders grow until one more does not help. The test text is never looked at.
    """
    best: Fitted | None = None
    best_bits = math.inf
    tried: dict[str, list[float]] = {}
    total = max(1, size(validation))
    for alphabet in alphabets:
        held_out = alphabet.encode(validation)
        bits: list[float] = []
        for model in ngram.grow(alphabet.encode(train), symbols=alphabet.symbols):
            if interrupt_requested():
                raise Interrupted("stopped while fitting n-grams", fix="run again: evaluation starts afresh")
            nats = model.document_nats(held_out, [model.max_order]).sum()
            bits.append(float(nats) / total / math.log(2))
            if bits[-1] < best_bits:
                best, best_bits = Fitted(model, alphabet, model.max_order, tried), bits[-1]
            if model.max_order == alphabet.max_order or (len(bits) > 1 and bits[-1] > bits[-2] * (1 - WORTH)):
                break
        tried[alphabet.name] = bits
    if best is None:
        raise ValueError("fit_ngram needs at least one alphabet")
    return best


def ngrams(
    texts: Texts,
    units: Units,
    *,
    alphabets: Sequence[Alphabet],
    seen_bytes: float,
    seed: int,
    resamples: int,
) -> list[Rival]:
    """The n-gram rivals: trained on as many bytes as the model saw, and on all training text.

    `seen_bytes` counts every pass over the data; reading a text twice tells counts nothing new, so
    the equal amount is at most all of it.
    """
    if not texts.train or not texts.validation:
        return []
    equal = texts.first(seen_bytes)
    whole = len(equal) == len(texts.train)
    amounts = [(equal, "as many training bytes as the model saw")]
    amounts += [] if whole else [(texts.train, _all_of(texts))]
    if whole and seen_bytes > texts.train_bytes:
        amounts = [
            (texts.train, f"{_all_of(texts)}; the model passed over it {seen_bytes / texts.train_bytes:.1f} times")
        ]
    return [
        _ngram_rival(fit_ngram(train, texts.validation, alphabets), train, how, texts, units, seed, resamples)
        for train, how in amounts
    ]


def _all_of(texts: Texts) -> str:
    # Setting some training text aside for validation may leave a little less than all.
    if texts.train_bytes > 0.9 * texts.all_train_bytes:
        return "all training text"
    return f"the first {show_bytes(texts.train_bytes)} of {show_bytes(texts.all_train_bytes)} of training text"


def _ngram_rival(
    fitted: Fitted, train: Sequence[str], how: str, texts: Texts, units: Units, seed: int, resamples: int
) -> Rival:
    nats_U = fitted.nats(units, texts.test)
    interval = units.with_sums(nats=nats_U).interval(BITS, seed=seed, resamples=resamples)
    return Rival(
        f"{fitted.order}-gram over {fitted.alphabet.name}",
        f"counts of {fitted.order} {fitted.alphabet.name} in a row, modified Kneser–Ney, from {how}",
        "bits_per_byte",
        interval.estimate,
        interval,
        units.lead(nats_U, BITS, seed=seed, resamples=resamples),
        trained_bytes=size(train),
        details={
            "order": fitted.order,
            "alphabet": fitted.alphabet.name,
            "amount": how,
            "validation_bits_per_byte": fitted.tried,
            "table_bytes": fitted.model.bytes,
            "per_unit_bits_per_byte": (nats_U / np.maximum(units.sums["bytes"], 1) / math.log(2)).round(5).tolist(),
        },
    )


def unigram(counts_V: Ints, rows: Rows, units: Units, *, seed: int, resamples: int) -> list[Rival]:
    """Token counts as rivals of a masked model: the commonest token as answer, its share as belief.

    counts_V: how often each token occurs in the training text; one is added to each. `rows` are those
    that the model was scored on, so their units are the model's.
    """
    own = units_of(_unigram_sums(counts_V, rows))
    loss, accuracy = Ratio("nats", "labels"), Ratio("correct", "labels", higher_is_better=True)
    found = []
    for name, meaning, metric_name, metric in (
        ("commonest token", "gives the commonest token of the training text every time", "masked_accuracy", accuracy),
        ("token counts", "believes in each token as often as it occurs in the training text", "loss", loss),
    ):
        interval = own.interval(metric, seed=seed, resamples=resamples)
        lead = units.lead(own.sums[metric.above], metric, seed=seed, resamples=resamples)
        trained = {"trained_tokens": int(counts_V.sum())}
        found.append(Rival(name, meaning, metric_name, interval.estimate, interval, lead, details=trained))
    return found + _same_answer(rows)


def _unigram_sums(counts_V: Ints, rows: Rows) -> RowSums:
    surprise_V = -np.log((counts_V + 1) / (counts_V.sum() + len(counts_V)))
    commonest = int(np.argmax(counts_V))
    sums: dict[str, list[float]] = {"nats": [], "correct": [], "labels": [], "bytes": []}
    for index in range(len(rows)):
        labels = rows.row(index, 0)["labels"]
        labels = labels[labels != IGNORED]
        figures = (surprise_V[labels].sum(), (labels == commonest).sum(), len(labels), rows.bytes_of(index))
        for values, figure in zip(sums.values(), figures, strict=True):
            values.append(float(figure))
    documents = np.array([rows.unit_of(index) for index in range(len(rows))], np.int64)
    return RowSums(documents, {name: np.array(values) for name, values in sums.items()})


def _same_answer(rows: Rows) -> list[Rival]:
    """For pairs of sentences: the commoner answer every time."""
    if "next_sentence_label" not in rows.row(0, 0):
        return []
    labels = np.array([int(rows.row(index, 0)["next_sentence_label"]) for index in range(len(rows))])
    share = float(max(np.mean(labels == 0), np.mean(labels == 1)))
    return [Rival("same answer", "gives the commoner answer every time", "next_sentence_accuracy", share)]
