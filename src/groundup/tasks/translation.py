"""Write a text in another language: a source in, a target out, by an encoder–decoder.

The source ends with the end token; the decoder begins with the pad token, as in Marian, and is trained on
every token of the target and on its end. Answers are found by beam search. One tokenizer serves both
languages: learn it from text of both.

Batch: `input_ids` of sources, `decoder_input_ids` of targets and `labels`, which are the target one token
ahead, in one of the layouts of `data/layout.py`. A batch to be answered has sources only.

Axes: E examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from groundup.config import Named
from groundup.data.examples import CROPPED, Examples
from groundup.data.packing import IGNORED, Columns, Row
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics.ratios import Ratio, perplexity
from groundup.tasks._contract import Answer
from groundup.text.rendering import Piece, markup
from groundup.text.tokenizers import Tokenizer
from groundup.units import PositiveCount, Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Outputs

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "perplexity": Ratio("nats", "labels", perplexity),
    "token_accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""What is watched while training, over the target's tokens, each foreseen from the true ones before it."""


class Config(Named):
    """Translation from one column to another."""

    source: str = "source_text"
    """The column of the text that is read."""
    target: str = "target_text"
    """The column of the text that is to be written."""
    language: str = Field(default_factory=lambda values: values["target"] if len(values["target"]) == 2 else "")
    """The language of targets, such as `de` or `zh`: it decides how BLEU cuts words. The name of the target's
    column, where that is a code of two letters."""
    max_target_length: PositiveCount | None = None
    """Tokens of a target at most, its end included; the longest row of the model unless given."""
    overlong: Literal["drop", "truncate"] = "drop"
    """What becomes of training pairs of which one side is too long: left out, or cut at its end (which teaches
    to translate halves). Counted in the label ledger either way. When answering, sources are cut."""
    label_smoothing: Share = 0.1
    """Share of the target spread evenly over the vocabulary while training; never in evaluation."""
    beam_size: PositiveCount = 5
    """Beginnings that are kept while an answer is searched; 1 is greedy search."""
    length_penalty: float = 1.0
    """The power of the length that an answer's score is divided by: more prefers longer answers."""

    @property
    def text(self) -> str:
        """The column that is read: what a row stands for that is only a text."""
        return self.source


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section as it is, when all training rows have two texts. Raises DataError naming the one that has not."""
    for example in examples:
        for column in (config.source, config.target):
            _text(example, column)
    return config


def _text(example: Mapping[str, Any], column: str) -> str:
    text = example.get(column)
    if isinstance(text, str):
        return text
    what = f"no text in the column {column!r}"
    missing = f"{nearest(column, example)}; prepare carries the columns that its source names under `keep`"
    fix = missing if column not in example else "repair or leave out the row"
    raise DataError(what, where=str(example.get("source", "")), fix=fix)


class Task:
    """Translation with one tokenizer at one length of sources and of targets. Can be sent to other processes."""

    head = "translation"
    outputs: int | None = None
    labels: list[str] = []  # noqa: RUF012
    baseline = "word_table"
    metrics = METRICS
    evaluation = "texts"

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """Raises DataError for a tokenizer without a token for the end or for padding."""
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.most = min(config.max_target_length or context, context)
        if tokenizer.pad_id is None or tokenizer.eos_id is None:
            missing = "padding, which begins every target" if tokenizer.pad_id is None else "the end of a text"
            fix = "learn one with `kind: bpe` or `kind: unigram`"
            raise DataError(f"the tokenizer has no token for {missing}", fix=fix)
        self.pad_id, self.end_id = tokenizer.pad_id, tokenizer.eos_id

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        columns = {"source": self.config.source, "target": self.config.target}
        return {"task": self.config.name, "version": VERSION, **columns, "context": self.context, "most": self.most}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"max_target_length": self.most, "language": self.config.language}

    @property
    def generation(self) -> dict[str, Any]:
        """What generation_config.json says, so that transformers' `generate` gives the same answers."""
        searched = {"length_penalty": self.config.length_penalty, "early_stopping": False}
        return {
            "decoder_start_token_id": self.pad_id,
            "bad_words_ids": [[self.pad_id]],
            "num_beams": self.config.beam_size,
            "max_length": self.most + 1,
            **(searched if self.config.beam_size > 1 else {}),
        }

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """`input_ids` of the source, `labels` (the target's tokens and its end) and `cropped`, how many tokens of
        both were cut off. An empty source has none; a row without a target trains nothing. Raises DataError."""
        source = self.tokenizer.encode(_text(example, self.config.source))
        kept = source[: self.context - 1]
        labels, cropped = self._labels(example)
        return {
            "input_ids": [*kept, self.end_id] if source else [],
            "labels": labels,
            CROPPED: [len(source) - len(kept) + cropped],
        }

    def _labels(self, example: Mapping[str, Any]) -> tuple[list[int], int]:
        if example.get(self.config.target) is None:  # `groundup predict` has none
            return [IGNORED], 0
        whole = [*self.tokenizer.encode(_text(example, self.config.target)), self.end_id]
        # A target that is cut has no end: it would teach to stop in the middle of a sentence.
        return whole[: self.most], max(0, len(whole) - self.most)

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Examples:
        """The pairs of a split, one row each; a row's length is that of both sides.

        `seed` changes nothing: rows are the same in every epoch.
        """
        both = ("input_ids", "labels")
        drops = self.config.overlong == "drop" and not held_out
        return Examples(shards, labels="labels", tokens=both, sides=both, drop_cropped=drops)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        pairs = [row | {"decoder_input_ids": self._shifted(row["labels"])} for row in rows]
        fill = {"input_ids": self.pad_id, "decoder_input_ids": self.pad_id}
        return collate(pairs, fill=fill, is_flat=flat)

    def _shifted(self, labels: Any) -> Any:
        return np.concatenate(([self.pad_id], labels[:-1])).astype(np.int64)

    def ask(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """The sources of rows as one batch: what `answers` needs, without the targets it must not see."""
        from groundup.data.layout import collate

        return collate([{"input_ids": row["input_ids"]} for row in rows], fill={"input_ids": self.pad_id}, is_flat=flat)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: cross-entropy in nats summed over the targets' tokens, and their number."""
        from groundup.nn.losses import linear_cross_entropy

        summed = linear_cross_entropy(
            outputs.head.features(outputs.hidden),
            outputs.head.weight,
            batch["labels"],
            bias_V=outputs.head.bias,
            label_smoothing=self.config.label_smoothing,
        )
        return {"loss": summed}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained tokens, from a batch alone."""
        return {"loss": int((batch["labels"] != IGNORED).sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `METRICS` divide: `nats`, `labels` and `right`, (E,) each. No gradient."""
        from groundup.nn.preference_losses import sequence_scores

        return sequence_scores(outputs, batch["labels"])

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """For each source the `text` that beam search finds, its `score` (see `nn/beam_search.py`), and `ended`:
        whether it was ended, and not cut at the longest target."""
        from groundup.nn.beam_search import search
        from groundup.nn.writing import Writer

        writer = Writer(outputs, beams=self.config.beam_size, max_tokens=self.most)
        found = search(
            writer,
            writer.examples,
            start=self.pad_id,
            end=self.end_id,
            beams=self.config.beam_size,
            max_tokens=self.most,
            length_penalty=self.config.length_penalty,
            forbidden=[self.pad_id],
            device=writer.device,
        )
        return [
            {
                "text": self.tokenizer.decode(one.ids, skip_special=True).strip(),
                "score": one.score,
                "ended": one.is_ended,
            }
            for one in found
        ]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The translation of an example, empty for an empty source, and how likely its tokens are on average."""
        return Answer(found[0]["text"], confidence=math.exp(found[0]["score"])) if found else Answer("", confidence=0.0)

    def truth(self, example: Mapping[str, Any]) -> str:
        """The target. Raises DataError, naming the row, where it is missing."""
        return _text(example, self.config.target)

    def shown(self, example: Mapping[str, Any]) -> str:
        """The source."""
        return _text(example, self.config.source)

    def inputs(self, example: Mapping[str, Any]) -> str:
        """The source: what a classical rival reads."""
        return self.shown(example)

    def render(self, row: Row) -> str:
        """The source as rich markup, dim, and below it the target, which is trained."""
        source, target = row["input_ids"].tolist(), row["labels"].tolist()
        pieces = [Piece(token, trained=False) for token in source]
        pieces += [Piece(token, trained=True, begins=not place) for place, token in enumerate(target) if token >= 0]
        return markup(self.tokenizer, pieces)
