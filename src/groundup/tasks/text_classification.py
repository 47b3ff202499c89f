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

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from groundup.config import Named
from groundup.data.examples import CROPPED, Examples
from groundup.data.packing import IGNORED, Columns, Row
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics import calibration
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks._contract import Answer
from groundup.text.framing import Frame
from groundup.text.rendering import Piece, markup
from groundup.units import Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Network, Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 2

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""What is watched while training, by the sums of `Task.scores`; a report has more. accuracy: not of a number."""
PROBLEMS = {
    "one": "single_label_classification",
    "several": "multi_label_classification",
    "number": "regression",
}
"""What transformers calls each kind of label."""
MOST_LABELS = 10_000
"""More different labels than this are taken for a mistake: a column of texts or of ids."""


class Config(Named):
    """The class of a text, or of a pair of texts."""

    text: str = "text"
    """The column of the text."""
    pair: str | None = None
    """The column of a second text, where the class is of two texts together."""
    label: str = "label"
    """The column of the label: a string or number; a list of them where there may be several."""
    kind: Literal["one", "several", "number"] | None = None
    """`one` of the classes, `several` (any number of them, also none), or a `number` to be predicted. Unless
    given: `several` where labels are lists, else `one`."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, in the order of the model's outputs; sorted as found in the training rows unless
    given."""
    out_of_scope: str | None = None
    """The label of rows that belong to none of the classes. They train nothing: it is the answer where the likeliest
    class is less probable than a bar that suits the validation rows best."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What becomes of inputs longer than the context: cut at the end (of two texts, the longer one), or left out.
    Counted in the label ledger either way."""
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over the classes while training; never in evaluation. Kind `one` only."""
    balance: bool = Field(default=False)
    """Whether every class weighs the same in the loss, however many rows it has. Kind `one` only."""
    class_weights: tuple[float, ...] | None = None
    """What each class weighs in the loss; follows from the training rows with `balance`."""


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: the kind, the names of the classes, their weights.

    Raises DataError for rows without labels, labels that do not fit the kind, names in `labels` that
    never occur, a single class, and an implausible number of classes.
    """
    counts: dict[str, int] = {}
    several = config.kind == "several"
    for example in examples:
        found = _label(config, example)
        several = several or (config.kind is None and isinstance(found, list))
        if config.kind == "number":
            _number(config, found, example)
            continue
        for name in found if isinstance(found, list) else [found]:
            if name is not None and str(name) != config.out_of_scope:
                counts[str(name)] = counts.get(str(name), 0) + 1
        if len(counts) > MOST_LABELS:
            what = f"more than {MOST_LABELS} different labels in the column {config.label!r}"
            raise DataError(what, fix="name the column of the classes: task.label")
    if config.kind == "number":
        return config
    labels = config.labels or tuple(sorted(counts, key=_natural))
    _require_classes(config, labels, counts)
    weights = config.class_weights
    if config.balance and weights is None:
        total = sum(counts.values())
        weights = tuple(total / (len(labels) * counts[name]) for name in labels)
    kind = config.kind or ("several" if several else "one")
    return config.model_copy(update={"kind": kind, "labels": labels, "class_weights": weights})


def _require_classes(config: Config, labels: Sequence[str], counts: Mapping[str, int]) -> None:
    absent = [name for name in labels if not counts.get(name)]
    if config.labels is not None and absent:
        what = f"labels that never occur in the training rows: {', '.join(map(repr, absent[:5]))}"
        raise DataError(what, fix=f"take them out of task.labels; found: {', '.join(sorted(counts)[:20])}")
    unnamed = [name for name in counts if name not in labels]
    if unnamed:
        what = f"training rows have the label {unnamed[0]!r}, which task.labels does not name"
        raise DataError(what, fix=nearest(unnamed[0], labels))
    if len(labels) < 2 and config.kind != "several":
        found = f"only the label {labels[0]!r}" if labels else "no label at all"
        what = f"{found} in the column {config.label!r} of the training rows: there is nothing to tell apart"
        raise DataError(what, fix="name the column of the classes (task.label), or kind: number for a number")


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before all other names."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _label(config: Config, example: Mapping[str, Any]) -> Any:
    if config.label not in example:
        fix = f"{nearest(config.label, example)}; prepare carries the columns that its source names under `keep`"
        raise DataError(f"the corpus has no column {config.label!r}", fix=fix)
    return example[config.label]


def _number(config: Config, found: Any, example: Mapping[str, Any]) -> float:
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        what = f"the label {found!r} is no number"
        raise DataError(what, where=str(example.get("source", "")), fix="repair the row, or leave out `kind: number`")
    return value


class Task:
    """Classification with one tokenizer at one context length. Can be sent to other processes."""

    head = "sequence"
    baseline = "bag_of_words"

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """`config` is settled, unless the labels are not needed. Raises DataError for a context too short."""
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.kind = config.kind or "one"
        self.labels = list(config.labels or ())
        self.outputs = len(self.labels) if self.kind != "number" else 1
        self.problem = PROBLEMS[self.kind]
        self._ids = {name: i for i, name in enumerate(self.labels)}
        self._frame = Frame.of(tokenizer, pair=config.pair is not None, context=context)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id or 0
        self.bar = 0.0
        """Below this probability of the likeliest class the answer is `out_of_scope`."""

    def restore(self, folder: Path, network: Network) -> None:
        """Take back the bar that suited the validation rows of the model in a directory."""
        path = folder / calibration.FILE
        if self.config.out_of_scope is not None and path.is_file():
            self.bar = float(json.loads(path.read_text(encoding="utf-8")).get("bar", 0.0))

    @property
    def metrics(self) -> dict[str, Ratio]:
        """Those of `METRICS` that apply."""
        return {name: m for name, m in METRICS.items() if self.kind != "number" or name == "loss"}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        columns = {"text": c.text, "pair": c.pair, "label": c.label, "out_of_scope": c.out_of_scope}
        labels = {"kind": self.kind, "labels": self.labels, "context": self.context}
        return {"task": c.name, "version": VERSION, **columns, **labels}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"kind": self.kind, "labels": self.labels}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int] | list[float]]:
        """`input_ids` and `token_type_ids` of the framed input, `label` (one number, or one for each class) and
        `cropped`, how many tokens were cut off. Raises DataError naming the row for a label that is unknown."""
        texts = [self._text(example, self.config.text)]
        texts += [self._text(example, self.config.pair)] if self.config.pair else []
        framed = self._frame(*(self.tokenizer.encode(text) for text in texts))
        inputs: dict[str, list[int] | list[float]] = {"input_ids": framed.ids, "token_type_ids": framed.types}
        return inputs | {"label": self._target(example), CROPPED: [framed.cropped]}

    def _text(self, example: Mapping[str, Any], column: str) -> str:
        text = example.get(column)
        if not isinstance(text, str):
            what = f"no text in the column {column!r}"
            fix = nearest(column, example) if column not in example else "repair or leave out the row"
            raise DataError(what, where=str(example.get("source", "")), fix=fix)
        return text

    def _target(self, example: Mapping[str, Any]) -> list[int] | list[float]:
        """-100 for a row out of scope, and for one that has no label (`groundup predict` has none)."""
        found = example.get(self.config.label)
        if self.kind == "number":
            return [math.nan if found is None else _number(self.config, found, example)]
        if self.kind == "several":
            if found is None:
                return [IGNORED] * len(self.labels)
            held = {self._id(name, example) for name in (found if isinstance(found, list) else [found])}
            return [int(i in held) for i in range(len(self.labels))]
        return [IGNORED if found is None or str(found) == self.config.out_of_scope else self._id(found, example)]

    def _id(self, name: Any, example: Mapping[str, Any]) -> int:
        if str(name) not in self._ids:
            what = f"the label {str(name)!r} is not among those of the training rows"
            fix = nearest(str(name), self.labels)
            raise DataError(what, where=str(example.get("source", "")), fix=fix)
        return self._ids[str(name)]

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

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over labelled examples (with several classes: over their labels), and their number."""
        from groundup.nn import losses

        logits, label = outputs.logits.float(), batch["label"]
        match self.kind:
            case "number":
                return {"loss": losses.squared_error(logits[:, 0], label)}
            case "several":
                return {"loss": losses.binary_cross_entropy(logits, label)}
        return {"loss": losses.cross_entropy(logits, label, **self._options(logits))}

    def _options(self, logits: Tensor) -> dict[str, Any]:
        import torch

        given = self.config.class_weights
        weights = None if given is None else torch.tensor(given, device=logits.device)
        return {"label_smoothing": self.config.label_smoothing, "weight_V": weights}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels of the loss, from a batch alone."""
        label = batch["label"]
        real = label.isfinite() if self.kind == "number" else label != IGNORED
        return {"loss": int(real.sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide: `nats`, `labels` and `right`, (E,) each. No gradient.

        Right with several classes: each class on its own. With a number: never.
        """
        import torch

        from groundup.nn import losses

        with torch.no_grad():
            logits, label = outputs.logits.float(), batch["label"]
            if self.kind == "number":
                real = label.isfinite()
                errors = torch.where(real, (logits[:, 0] - label.nan_to_num()) ** 2, 0.0)
                return {"nats": errors.double(), "labels": real.long(), "right": torch.zeros_like(real).long()}
            if self.kind == "several":
                real = label != IGNORED
                right = (((logits > 0).long() == label.long()) & real).sum(1)
                each = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, label.clamp(min=0).float(), reduction="none"
                )
                return {"nats": (each * real).sum(1).double(), "labels": real.sum(1), "right": right}
            nats = torch.nn.functional.cross_entropy(logits, label, ignore_index=losses.IGNORED, reduction="none")
            real = label != IGNORED
            return {"nats": nats.double(), "labels": real.long(), "right": (logits.argmax(1) == label).long()}

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """An answer an example: `label` and `probabilities` by class; `labels` (a list); or `number`."""
        logits = outputs.logits.float().detach()
        if self.kind == "number":
            return [{"number": value} for value in logits[:, 0].tolist()]
        shares = (logits.sigmoid() if self.kind == "several" else logits.softmax(-1)).tolist()
        if self.kind == "several":
            chosen = [[self.labels[i] for i, p in enumerate(row) if p > 0.5] for row in shares]
            return [{"labels": names, "probabilities": row} for names, row in zip(chosen, shares, strict=True)]
        best = logits.argmax(-1).tolist()
        return [{"label": self.labels[i], "probabilities": row} for i, row in zip(best, shares, strict=True)]

    @property
    def evaluation(self) -> str:
        """How answers are compared with truths."""
        return {"one": "classes", "several": "multilabel", "number": "number"}[self.kind]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The answer to an example, which is one row. Raises DataError for one without a single token."""
        if not found:
            raise DataError("an example without any text", where=str(example.get("source", "")), fix="leave it out")
        key = {"one": "label", "several": "labels", "number": "number"}[self.kind]
        given, shares = found[0][key], found[0].get("probabilities")
        if self.config.out_of_scope is not None and shares is not None and max(shares) < self.bar:
            given = self.config.out_of_scope
        return Answer(given, shares)

    def truth(self, example: Mapping[str, Any]) -> Any:
        """The label, a list of labels, or a number. Raises DataError, naming the row, where it is missing."""
        found = _label(self.config, example)
        if found is None:
            raise DataError(
                "a row without a label", where=str(example.get("source", "")), fix="label it, or leave it out"
            )
        if self.kind == "number":
            return _number(self.config, found, example)
        if self.kind == "several":
            return [str(name) for name in (found if isinstance(found, list) else [found])]
        return str(found)

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
        return f"{markup(self.tokenizer, pieces)}\n[cyan]label: {self._shown(row['label'])}[/]"

    def _shown(self, label: Any) -> str:
        if self.kind == "number":
            return f"{float(label):g}"
        if self.kind == "several":
            return ", ".join(self.labels[i] for i, held in enumerate(label.tolist()) if held == 1) or "none"
        return "none (trains nothing)" if int(label) == IGNORED else self.labels[int(label)]
