"""Predict the next token: pretraining of a causal language model on documents.

A document becomes its tokens and an end-of-text token (and a start token where `bos` says so). Rows
of exactly T tokens are windows on the documents laid end to end; see `data/packing.py`.

Batch: `input_ids` (B,T) int64 and `labels` (B,T) int64, the token after each position, -100 where
nothing is trained; with `packing: documents` also `document_ids` (B,T) int32 and `positions` (B,T)
int64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from groundup.config import Mistake, Named
from groundup.data.packing import IGNORED, CausalRows, Columns, DocumentRows, Packing, Row, require_context
from groundup.errors import DataError
from groundup.evaluation.metrics.ratios import Ratio, bits, perplexity
from groundup.text.rendering import Piece, markup
from groundup.units import PositiveCount, Share, show_count

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "perplexity": Ratio("nats", "labels", perplexity),
    "bits_per_byte": Ratio("nats", "bytes", bits),
}
"""By the sums that `Task.scores` and the rows' `bytes_of` give. Per token: loss (nats) and perplexity.

bits_per_byte is all nats / ln 2 / all UTF-8 bytes of the text. Over `document_rows` every token of
every document is predicted exactly once, the first one and the end of the document included, so it is
the length of a code from which the text can be had back, comparable with a compressor's: nothing is
given away. Bytes that a vocabulary cannot spell (an unknown character) are paid for too: eight bits each,
on top of the unknown token. What a tokenizer changes silently, as lower-casing does, is not."""

UNKNOWN_BYTES = "unknown_bytes"
"""The column, one number a document, of the bytes behind its unknown tokens; only where there can be any."""


class Config(Named):
    """Next-token prediction over documents."""

    packing: Packing = "concatenate"
    """`concatenate`: a row ignores where documents end; `documents`: tokens see only their own document,
    and positions restart at each."""
    bos: bool | None = None
    """Whether each document begins with a start token (the end-of-text token where the tokenizer has no
    start token of its own). Unless given: yes with packing `documents`, where the first token of a
    document would otherwise never be predicted; no with `concatenate`, where the end of the previous
    document does that work."""
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over the vocabulary while training; never in evaluation."""
    loss_chunk: PositiveCount | None = None
    """Positions whose scores over the vocabulary are held at once; by the vocabulary's size unless given."""

    @property
    def begins_with_start(self) -> bool:
        """`bos`, settled."""
        return self.packing == "documents" if self.bos is None else self.bos


def check(config: Config, *, context: int, facts: Mapping[str, Any]) -> list[Mistake]:
    """What would stop the task on data with these facts: `tokens` and `documents` of the train split."""
    tokens = int(facts.get("tokens", context + 1))
    if tokens > context:
        return []
    what = f"a context of {context} tokens is longer than all training text ({show_count(tokens)} tokens)"
    return [Mistake(("model", "context"), what, f"set it to {max(1, tokens - 1)} or less, or give more text")]


class Task:
    """Next-token prediction with one tokenizer at one context length. Can be sent to other processes."""

    head = "language"
    baseline = "ngram"
    metrics = METRICS

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """Raises DataError for a tokenizer without an end-of-text token."""
        if tokenizer.eos_id is None:
            raise DataError(
                "language modelling needs an end-of-text token, and the tokenizer has none",
                fix="train it with an end-of-text token (kinds bpe, unigram and characters have one)",
            )
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.eos_id: int = tokenizer.eos_id
        self.start_id: int = self.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self.pad_id: int = self.eos_id if tokenizer.pad_id is None else tokenizer.pad_id

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        return {"task": self.config.name, "version": VERSION, "bos": self.config.begins_with_start}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"bos": self.config.begins_with_start}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """`input_ids` of a document with its special tokens; none at all for a text without tokens.

        With a tokenizer that has an unknown token also `unknown_bytes`, one number.
        """
        ids = self.tokenizer.encode(example["text"])
        start = [self.start_id] if self.config.begins_with_start else []
        found = {"input_ids": [*start, *ids, self.eos_id] if ids else []}
        if self.tokenizer.unk_id is not None:
            found[UNKNOWN_BYTES] = [self._unknown_bytes(example["text"], ids)]
        return found

    def _unknown_bytes(self, text: str, ids: list[int]) -> int:
        if self.tokenizer.unk_id not in ids:
            return 0
        found = self.tokenizer.encode_with_offsets(text)
        spans = (span for token, span in zip(found.ids, found.offsets, strict=True) if token == self.tokenizer.unk_id)
        return sum(len(text[start:end].encode("utf-8")) for start, end in spans)

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> CausalRows:
        """Packed rows of a split. Raises DataError without labels, or if one row is longer than all of it.

        A split that is only held out may be shorter than a row. `seed` changes nothing: these rows
        are the same in every epoch.
        """
        rows = CausalRows(shards, context=self.context, pad_id=self.pad_id, packing=self.config.packing)
        if not held_out:
            require_context(rows.stream, self.context, what="the whole split")
        return rows

    def document_rows(
        self, shards: Columns, *, stride: int | None = None, max_documents: int | None = None, ends: bool = True
    ) -> DocumentRows:
        """Rows that predict every token of every document once, for evaluation; see `DocumentRows`.

        `stride` is half the context unless given. The first token is predicted from the start token
        where documents have one in training, else from the end-of-text token that precedes it there;
        `ends` says whether the end of a document is predicted (and paid for) as well.
        """
        begins, has_unknown = self.config.begins_with_start, self.tokenizer.unk_id is not None
        return DocumentRows(
            shards,
            context=self.context,
            stride=stride or max(1, self.context // 2),
            start_id=self.start_id if begins else self.eos_id,
            pad_id=self.pad_id,
            heads=int(begins),
            tails=0 if ends else 1,
            max_documents=max_documents,
            spelled_bytes=shards.column(UNKNOWN_BYTES)[0] if has_unknown else None,
        )

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.loader import stack

        return stack(rows, fill={"input_ids": self.pad_id})

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: cross-entropy in nats summed over trained labels, and their number."""
        from groundup.nn.losses import linear_cross_entropy

        summed = linear_cross_entropy(
            outputs.head.features(outputs.hidden),
            outputs.head.weight,
            batch["labels"],
            bias_V=outputs.head.bias,
            label_smoothing=self.config.label_smoothing,
            chunk=self.config.loss_chunk,
        )
        return {"loss": summed}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels of each part of the loss, from a batch alone."""
        return {"loss": int((batch["labels"] != IGNORED).sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per row, the sums that `METRICS` divide: `nats` and `labels`, (B,) each. No gradient.

        Rows of documents may carry `spelled_nats` (B,) float64: what their unknown characters cost.
        """
        from groundup.nn.losses import token_losses

        head, labels_BT = outputs.head, batch["labels"]
        features_BTD = head.features(outputs.hidden)
        losses_BT = token_losses(features_BTD, head.weight, labels_BT, bias_V=head.bias, chunk=self.config.loss_chunk)
        spelled = batch.get("spelled_nats", 0.0)
        return {"nats": losses_BT.double().sum(1) + spelled, "labels": (labels_BT != IGNORED).sum(1)}

    def decode(self, outputs: Outputs) -> list[str]:
        """For each row, the likeliest token after every position, as one text."""
        return [self.tokenizer.decode(ids) for ids in outputs.logits.argmax(-1).tolist()]

    def render(self, row: Row) -> str:
        """The row as rich markup: predicted tokens highlighted, those that are only read dim.

        A bar stands where the row begins another document.
        """
        labels, inputs = row["labels"].tolist(), row["input_ids"].tolist()
        owners = row["document_ids"].tolist() if "document_ids" in row else [0] * len(labels)
        pieces = [Piece(inputs[0], trained=False)]
        for place, label in enumerate(labels):
            trained, is_last = label != IGNORED, place + 1 == len(inputs)
            if is_last and not trained:
                break
            begins = not is_last and not trained and owners[place + 1] != owners[place]
            pieces.append(Piece(label if trained else inputs[place + 1], trained=trained, begins=begins))
        return markup(self.tokenizer, pieces)
