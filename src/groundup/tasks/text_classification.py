"""Say which class a text, or a pair of texts, belongs to: one of several, any of several, or a number.

An example has a text (and a second one with `pair`) and a label. The head scores the whole input from
one vector: the first token's of an encoder, the last token's of a causal model (Devlin et al. 2019,
§4.1). One class: softmax and cross-entropy. Any of several: a sigmoid each. A number: squared error.

Batch: `input_ids` and `token_type_ids` in one of the layouts of `data/layout.py`, and `label`: (E,)
int64 with -100 for rows that train nothing; or (E,K) int64 of zeros and ones, -100 likewise; or (E,)
float32 with NaN likewise.

Axes: E examples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from groundup.data.examples import CROPPED, Examples
from groundup.data.packing import Columns, Row
from groundup.errors import DataError, nearest
from groundup.tasks import _labels
from groundup.tasks._labels import LabelSection, LabelTask
from groundup.text.framing import Frame
from groundup.text.rendering import Piece, markup

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.text.tokenizers import Tokenizer

VERSION = 2

METRICS = _labels.METRICS
settle = _labels.settle


class Config(LabelSection):
    """The class of a text, or of a pair of texts."""

    text: str = "text"
    """The column of the text."""
    pair: str | None = None
    """The column of a second text, where the class is of two texts together."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What becomes of inputs longer than the context: cut at the end (of two texts, the longer one), or left out.
    Counted in the label ledger either way."""


class Task(LabelTask):
    """Classification with one tokenizer at one context length. Can be sent to other processes."""

    head = "sequence"
    baseline = "bag_of_words"

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """`config` is settled, unless the labels are not needed. Raises DataError for a context too short."""
        super().__init__(config)
        self.tokenizer, self.context = tokenizer, context
        self._frame = Frame.of(tokenizer, pair=config.pair is not None, context=context)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id or 0

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        columns = {"text": c.text, "pair": c.pair, "context": self.context}
        return {"task": c.name, "version": VERSION, **columns, **self.label_encoding}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int] | list[float]]:
        """`input_ids` and `token_type_ids` of the framed input, `label` (one number, or one for each class) and
        `cropped`, how many tokens were cut off. Raises DataError naming the row for a label that is unknown."""
        texts = [self._text(example, self.config.text)]
        texts += [self._text(example, self.config.pair)] if self.config.pair else []
        framed = self._frame(*(self.tokenizer.encode(text) for text in texts))
        inputs: dict[str, list[int] | list[float]] = {"input_ids": framed.ids, "token_type_ids": framed.types}
        return inputs | {"label": self.target(example), CROPPED: [framed.cropped]}

    def _text(self, example: Mapping[str, Any], column: str) -> str:
        text = example.get(column)
        if not isinstance(text, str):
            what = f"no text in the column {column!r}"
            fix = nearest(column, example) if column not in example else "repair or leave out the row"
            raise DataError(what, where=str(example.get("source", "")), fix=fix)
        return text

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Examples:
        """The examples of a split, one row each. Raises DataError if none has a label.

        `seed` changes nothing: rows are the same in every epoch.
        """
        is_vector = self.kind == "several"
        return Examples(
            shards,
            labels="label",
            tokens=("input_ids", "token_type_ids"),
            values=() if is_vector else ("label",),
            vectors=("label",) if is_vector else (),
            drop_cropped=self.config.overlong == "drop" and not held_out,
        )

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        return collate(rows, fill={"input_ids": self.pad_id}, is_flat=flat)

    def shown(self, example: Mapping[str, Any]) -> str:
        """The text, or both texts with a line end between them."""
        return "\n".join(self.inputs(example))

    def inputs(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """The text, or both: what a classical rival reads."""
        columns = [self.config.text, *([self.config.pair] if self.config.pair else [])]
        return tuple(self._text(example, column) for column in columns)

    def render(self, row: Row) -> str:
        """The input as rich markup, followed by its label."""
        pieces = [Piece(int(token), trained=False) for token in row["input_ids"]]
        return f"{markup(self.tokenizer, pieces)}\n[cyan]label: {self.label_shown(row['label'])}[/]"
