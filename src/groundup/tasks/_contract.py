"""What a task of labelled rows offers beside `Config` and `settle`, and to whom.

Training calls `encode`, `rows`, `collate`, `loss` and `counts`; plan calls `render`; evaluation and
serving call `encode`, `collate` and `answers`, and put together by `answer` what belongs to one example.
A task whose `collate` lets the model read the right answers (the targets of translations) also has `ask`,
the same without them: evaluation and serving then call that one.

Axes: E examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from groundup.data.packing import Columns, Row, Rows
    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer


class Answer(NamedTuple):
    """A model's answer to one example, as its kind of evaluation takes it."""

    answer: Any
    """A label, a list of labels, a number, a list of tags, a text, …"""
    probabilities: list[float] | None = None
    """One a label, where the task gives them."""
    confidence: float | None = None
    """How sure the model is, where there are no probabilities; larger is surer."""


class LabelledTask(Protocol):
    """A task whose rows have labels."""

    head: str
    """The kind of head its network has."""
    outputs: int | None
    """How many scores that head gives; None for heads over the vocabulary."""
    labels: list[str]
    """What the scores stand for, where they have names."""
    evaluation: str
    """How answers are compared with truths: classes, multilabel, number, tags, spans, texts or ranking."""
    context: int
    tokenizer: Tokenizer

    def encode(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Ragged columns of numbers of one example; an example without its label can be encoded too."""

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Rows:
        """The rows of a split: with `lengths`, and `document_of(index)`, the example a row belongs to."""

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch, end to end or padded."""

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """What the model says of each row, as plain data."""

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The answer to an example from what was said of its rows; `found` is empty if it has none."""

    def truth(self, example: Mapping[str, Any]) -> Any:
        """What is right, in the form of `Answer.answer`. Raises DataError, naming the row, if it has no label."""

    def shown(self, example: Mapping[str, Any]) -> str:
        """The example's input as a report shows it."""
