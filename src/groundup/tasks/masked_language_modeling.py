"""Guess hidden tokens, and on request whether two spans follow each other: pretraining of an encoder.

Masked language modelling and next-sentence prediction of Devlin et al. 2019 (§3.1, appendices A.1 and
A.2), with masks drawn anew each epoch. Three layouts of rows: one document's `[CLS] A [SEP]`, padded;
pairs `[CLS] A [SEP] B [SEP]`, padded (next-sentence prediction); or documents packed end to end.

Batch: `input_ids` (B,T) int64 with tokens masked, `labels` (B,T) int64 with what was there, -100
elsewhere. Padded layouts: `attention_mask` (B,T) bool, `token_type_ids` (B,T) int64. Pairs:
`next_sentence_label` (B,) int64, 0 if B follows A, 1 if not. Packed as documents: `document_ids` (B,T)
int32 and `positions` (B,T) int64.

Axes: B rows, T tokens, K the most labels a row can have, N labels, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from groundup.config import Mistake, Named
from groundup.data.masking import WORD_STARTS, Layout, MaskedOnce, MaskedRows, Masking, column_or_none
from groundup.data.packing import IGNORED, Columns, Row, Stream, require_context, spread
from groundup.data.segments import (
    SENTENCES,
    PairLayout,
    SegmentLayout,
    Specials,
    StreamLayout,
    Targets,
    chunk_starts,
    document_windows,
)
from groundup.errors import DataError
from groundup.evaluation.metrics.ratios import Ratio, perplexity
from groundup.text.rendering import Piece, markup
from groundup.text.sentences import sentence_starts, token_starts, word_starts
from groundup.units import PositiveCount, Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "pseudo_perplexity": Ratio("nats", "labels", perplexity),
    "masked_accuracy": Ratio("correct", "labels", higher_is_better=True),
    "next_sentence_loss": Ratio("pair_nats", "pairs"),
    "next_sentence_accuracy": Ratio("right_pairs", "pairs", higher_is_better=True),
}
"""By the sums that `Task.scores` gives; the last two only with `next_sentence`.

pseudo_perplexity is the exponential of the mean loss of a hidden token. Over `document_rows` every
token is hidden exactly once, a share of `mask_share` at a time, so it lies above the pseudo-perplexity
of Salazar et al. 2020, who hide one token at a time. No bits per byte: masked predictions are no code
of the text, since each is made knowing what comes after."""


class Config(Named):
    """Masked-token prediction, and next-sentence prediction on request."""

    next_sentence: bool = False
    """Whether rows are pairs of spans and the model also says if the second follows the first."""
    packing: Literal["none", "documents", "concatenate"] | None = None
    """`none`: a row is from one document (or two, for pairs), padded; `documents`: documents end to end,
    tokens see only their own; `concatenate`: end to end, ignoring where they end. Unless given: `none`
    with `next_sentence`, which allows nothing else, and `documents` without."""
    mask_share: Share = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens of text to predict."""
    as_mask: Share = 0.8
    """Of the tokens to predict, the share read as the mask token."""
    as_random: Share = 0.1
    """Of the tokens to predict, the share read as a random token; the rest are read as they are."""
    whole_word: bool = False
    """Whether all tokens of a word are hidden together. Words are what the tokenizer's pre-tokenizer cuts,
    and single Chinese characters."""
    short_sequences: Share = 0.1
    """With packing `none`: share of the rows that aim at a random shorter length, as the published BERT was
    trained, so that short inputs are nothing new to the model."""
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over the vocabulary while training; never in evaluation."""
    loss_chunk: PositiveCount | None = None
    """Positions whose scores over the vocabulary are held at once; by the vocabulary's size unless given."""

    @property
    def layout(self) -> Literal["none", "documents", "concatenate"]:
        """`packing`, settled."""
        return self.packing or ("none" if self.next_sentence else "documents")

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.next_sentence and self.layout != "none":
            raise ValueError(f"next_sentence needs packing none, not {self.layout}: one pair, one label, one row")
        if self.as_mask + self.as_random > 1:
            raise ValueError(f"as_mask {self.as_mask:.0%} and as_random {self.as_random:.0%} exceed 100% together")
        return self


def check(config: Config, *, context: int, facts: Mapping[str, Any]) -> list[Mistake]:
    """What would stop the task on data with these facts of the train split.

    facts: `tokens`, `documents` and `longest_document_tokens`, each optional.
    """
    mistakes = []
    path, room = ("model", "context"), context - _specials_of_a_row(config)
    if config.layout == "none" and facts.get("longest_document_tokens", room) < room:
        mistakes.append(Mistake(path, *_no_long_document(config, context, int(facts["longest_document_tokens"]))))
    if config.layout != "none" and facts.get("tokens", context) < context:
        what = f"a context of {context} tokens is longer than all training text ({facts['tokens']:.0f} tokens)"
        mistakes.append(Mistake(path, what, f"set it to {max(1, int(facts['tokens']))} or less, or give more text"))
    if config.next_sentence and facts.get("documents", 2) < 2:
        mistakes.append(Mistake(("task", "next_sentence"), *_NO_OTHER_DOCUMENT))
    return mistakes


_NO_OTHER_DOCUMENT = (
    "next-sentence prediction takes its false pairs from other documents, and there is only one",
    "give the text as several documents, or set next_sentence: false",
)


def _specials_of_a_row(config: Config) -> int:
    return 3 if config.next_sentence else 2


def _no_long_document(config: Config, context: int, longest: int) -> tuple[str, str]:
    what = f"a context of {context} tokens is longer than any document (the longest has {longest} tokens)"
    other = "next_sentence: false" if config.next_sentence else "packing: documents"
    fits = longest + _specials_of_a_row(config)
    return what, f"set the model's context to {fits} or less, or {other}, which packs several into a row"


class Task:
    """Masked-token prediction with one tokenizer at one context length. Can be sent to other processes."""

    baseline = "unigram"

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """Raises DataError for a tokenizer without the special tokens, or a context too short for them.

        Where there is no [CLS] or [SEP], the tokens that begin and end a text serve.
        """
        cls = tokenizer.bos_id if tokenizer.cls_id is None else tokenizer.cls_id
        sep = tokenizer.eos_id if tokenizer.sep_id is None else tokenizer.sep_id
        named = {"cls (or bos)": cls, "sep (or eos)": sep, "mask": tokenizer.mask_id, "pad": tokenizer.pad_id}
        missing = [name for name, found in named.items() if found is None]
        if missing or cls is None or sep is None or tokenizer.mask_id is None or tokenizer.pad_id is None:
            raise DataError(
                f"masked language modelling needs special tokens that the tokenizer lacks: {', '.join(missing)}",
                fix="train the tokenizer with groundup, kind wordpiece, which has them all",
            )
        if context < 2 + _specials_of_a_row(config):
            raise DataError(f"a context of {context} tokens leaves no room for text beside the special tokens")
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.specials, self.mask_id = Specials(cls, sep, tokenizer.pad_id), tokenizer.mask_id
        self.head = "pretraining" if config.next_sentence else "masked_language"

    @property
    def metrics(self) -> dict[str, Ratio]:
        """Those of `METRICS` that apply."""
        return {name: m for name, m in METRICS.items() if self.config.next_sentence or "pairs" not in m.below}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        words = {"whole_word": self.config.whole_word, "packed": self.config.layout != "none"}
        return {"task": self.config.name, "version": VERSION, **words}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"packing": self.config.layout}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """Columns of a document; all empty for a text without tokens.

        `input_ids`: its tokens, for packed layouts between [CLS] and [SEP]. `sentences`, otherwise: the
        tokens at which sentences begin. `word_starts`, for whole-word masking: 1 where a word begins.
        """
        text, packed, whole = example["text"], self.config.layout != "none", self.config.whole_word
        if packed and not whole:
            return {"input_ids": self._framed(self.tokenizer.encode(text), self.specials.cls, self.specials.sep)}
        found = self.tokenizer.encode_with_offsets(text)
        words = {WORD_STARTS: word_starts(text, found.word_ids, found.offsets)} if whole else {}
        if not packed:
            starts = token_starts(sentence_starts(text), found.offsets)
            return {"input_ids": found.ids, SENTENCES: starts, **words}
        framed = {name: self._framed(values, 1, 1) for name, values in words.items()}
        return {"input_ids": self._framed(found.ids, self.specials.cls, self.specials.sep), **framed}

    @staticmethod
    def _framed(values: list[int], before: int, after: int) -> list[int]:
        return [before, *values, after] if values else values

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> MaskedRows:
        """Masked rows of a split, different in every epoch.

        Raises DataError if there is nothing to predict, and, unless the split is only held out, if a
        row is longer than any document (or than the whole split, where documents are packed), or if
        next-sentence prediction has but one document to draw from.
        """
        if not held_out:
            self._require_data(Stream(shards))
        layout = self._layout(shards, seed)
        return MaskedRows(layout, self._masking(seed), self._words(shards))

    def document_rows(self, shards: Columns, *, max_documents: int | None = None, seed: int = 0) -> MaskedOnce:
        """Rows that hide every token exactly once, for evaluation; see `MaskedOnce`.

        With `next_sentence` they are the pairs of epoch 0, whose labels are then right or wrong
        several times; without, each document's windows of at most T - 2 tokens.
        """
        stream = Stream(shards)
        documents = spread(stream.documents, max_documents)
        if self.config.next_sentence:
            pairs = self._pairs(shards, seed)
            owners = np.searchsorted(stream.offsets, pairs.starts[:-1], side="right") - 1
            chosen = np.flatnonzero(np.isin(owners, documents))
            return MaskedOnce(pairs, self._masking(seed), self._words(shards), chosen=chosen)
        edge = int(self.config.layout != "none")
        begins, ends = document_windows(stream, documents, self.context - 2, heads=edge, tails=edge)
        layout = SegmentLayout(stream, begins, ends, context=self.context, specials=self.specials, fit=True)
        return MaskedOnce(layout, self._masking(seed), self._words(shards))

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.loader import stack

        return stack(rows, fill={"input_ids": self.specials.pad})

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`masked`: cross-entropy in nats summed over hidden tokens, and their number; with
        `next_sentence` also `next_sentence`: the same over pairs. The loss of a step is the sum of the
        parts, each divided by its number over the whole batch."""
        from groundup.nn.losses import cross_entropy, linear_cross_entropy

        head, labels_BT = outputs.head, batch["labels"]
        # Untrained positions are left out before the head, by a number that is the same for every
        # batch, so that compiled code sees one shape: labels first, each row keeping the K it may have.
        most = max(1, int(np.ceil(self.config.mask_share * labels_BT.shape[1])))
        place_BK = (labels_BT != IGNORED).byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        wide_BKD = place_BK[:, :, None].expand(-1, -1, outputs.hidden.shape[-1])
        features_BKD = head.features(outputs.hidden.gather(1, wide_BKD))
        parts = {
            "masked": linear_cross_entropy(
                features_BKD,
                head.weight,
                labels_BT.gather(1, place_BK),
                bias_V=head.bias,
                label_smoothing=self.config.label_smoothing,
                chunk=self.config.loss_chunk,
            )
        }
        if self.config.next_sentence:
            parts["next_sentence"] = cross_entropy(outputs.next_sentence_logits, batch["next_sentence_label"])
        return parts

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels of each part of the loss, from a batch alone."""
        keys = {"masked": "labels"} | ({"next_sentence": "next_sentence_label"} if self.config.next_sentence else {})
        return {part: int((batch[key] != IGNORED).sum()) for part, key in keys.items()}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per row, the sums that `METRICS` divide, (B,) each. No gradient.

        `nats`, `labels` and `correct` of hidden tokens; with `next_sentence` also `pair_nats`, `pairs`
        and `right_pairs`.
        """
        import torch

        from groundup.nn.losses import token_losses

        with torch.no_grad():
            labels_BT, head = batch["labels"], outputs.head
            rows_N, places_N = (labels_BT != IGNORED).nonzero(as_tuple=True)
            labels_N, features_ND = labels_BT[rows_N, places_N], head.features(outputs.hidden[rows_N, places_N])
            nats_N = token_losses(features_ND, head.weight, labels_N, bias_V=head.bias)
            best = [
                torch.nn.functional.linear(f, head.weight, head.bias).argmax(-1) for f in torch.split(features_ND, 1024)
            ]
            columns = {"nats": nats_N.double(), "labels": torch.ones_like(labels_N)}
            columns["correct"] = (torch.cat(best) == labels_N).long() if best else labels_N
            sums = {
                name: torch.zeros(len(labels_BT), dtype=values.dtype, device=values.device).index_add_(
                    0, rows_N, values
                )
                for name, values in columns.items()
            }
            return sums | (self._pair_scores(outputs, batch) if self.config.next_sentence else {})

    def decode(self, outputs: Outputs) -> list[str]:
        """For each row, the likeliest token at every position, as one text."""
        return [self.tokenizer.decode(ids) for ids in outputs.logits.argmax(-1).tolist()]

    def render(self, row: Row) -> str:
        """The row as rich markup: hidden tokens highlighted, followed by what is read in their place.

        A bar stands where another document or the second part of a pair begins.
        """
        inputs, labels = row["input_ids"].tolist(), row["labels"].tolist()
        parts = row.get("document_ids", row.get("token_type_ids", np.zeros(len(inputs)))).tolist()
        real = row.get("attention_mask", np.ones(len(inputs), bool)).tolist()
        text = markup(self.tokenizer, list(self._pieces(inputs, labels, parts, real)))
        if "next_sentence_label" not in row:
            return text
        says = "B follows A" if int(row["next_sentence_label"]) == 0 else "B is from another document"
        return f"{text}\n[cyan]next sentence: {says}[/]"

    @staticmethod
    def _pieces(inputs: list[int], labels: list[int], parts: list[int], real: list[bool]) -> Iterator[Piece]:
        for place, (read, label) in enumerate(zip(inputs, labels, strict=True)):
            begins = place > 0 and real[place] and parts[place] != parts[place - 1]
            if label == IGNORED:
                yield Piece(read, trained=False, begins=begins)
            else:
                yield Piece(label, trained=True, begins=begins, seen_as=read if read != label else None)

    def _layout(self, shards: Columns, seed: int) -> Layout:
        if self.config.next_sentence:
            return self._pairs(shards, seed)
        stream = Stream(shards)
        if self.config.layout == "none":
            starts = chunk_starts(shards, self._targets(seed))
            return SegmentLayout(stream, starts[:-1], starts[1:], context=self.context, specials=self.specials)
        return StreamLayout(stream, context=self.context, specials=self.specials, packing=self.config.layout)

    def _pairs(self, shards: Columns, seed: int) -> PairLayout:
        return PairLayout(shards, self._targets(seed), context=self.context, specials=self.specials)

    def _targets(self, seed: int) -> Targets:
        room = self.context - _specials_of_a_row(self.config)
        return Targets(room, self.config.short_sequences, seed)

    def _masking(self, seed: int) -> Masking:
        c = self.config
        return Masking(c.mask_share, c.as_mask, c.as_random, self.mask_id, self._is_ordinary, seed)

    @cached_property
    def _is_ordinary(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """(vocabulary,) bool: which ids stand for text."""
        ordinary = np.zeros(self.tokenizer.vocab_size, bool)
        ordinary[list(self.tokenizer.vocabulary().values())] = True
        ordinary[list(self.tokenizer.special_ids)] = False
        return ordinary

    def _words(self, shards: Columns) -> np.ndarray[Any, Any] | None:
        return column_or_none(shards, WORD_STARTS, wanted=self.config.whole_word)

    def _require_data(self, stream: Stream) -> None:
        if self.config.layout != "none":
            return require_context(stream, self.context, what="the whole split")
        sizes = np.diff(stream.offsets)
        if self.config.next_sentence and (sizes > 0).sum() < 2:
            raise DataError(_NO_OTHER_DOCUMENT[0], fix=_NO_OTHER_DOCUMENT[1])
        longest = int(sizes.max(initial=0))
        if 0 < longest < self.context - _specials_of_a_row(self.config):
            what, fix = _no_long_document(self.config, self.context, longest)
            raise DataError(what, fix=fix)

    def _pair_scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        logits, labels = outputs.next_sentence_logits.float(), batch["next_sentence_label"]
        nats = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        right = (logits.argmax(-1) == labels).long()
        return {"pair_nats": nats.double(), "pairs": (labels != IGNORED).long(), "right_pairs": right}
