"""What tasks have in common whose answer is one of several classes, any of several classes, or a number.

Such a task adds what is looked at, a text or an image: its columns, `encode`, `rows`, `collate`, `shown` and
`render`. One class: see `_classes.py`. Any of several: a sigmoid each. A number: squared error.

Batch: `label`: (E,) int64 with -100 for rows that train nothing; or (E,K) int64 of zeros and ones, -100
likewise; or (E,) float32 with NaN likewise. Where examples were mixed of two: `other_label`, of the same
shape, and `share` (E,) float32, how much of its loss an example has from `label`; `other_label` has the rest.

Axes: E examples, K classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import model_validator

from groundup.data.packing import IGNORED
from groundup.errors import DataError
from groundup.evaluation.metrics import calibration
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks import _classes
from groundup.tasks._classes import Classes, ClassSection, name_of
from groundup.tasks._contract import Answer

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Network, Outputs

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""What is watched while training, by the sums of `LabelTask.scores`; a report has more. accuracy: not of a
number."""
PROBLEMS = {
    "one": "single_label_classification",
    "several": "multi_label_classification",
    "number": "regression",
}
"""What transformers calls each kind of label."""


class LabelSection(ClassSection):
    """The label of an example, and how it is learned."""

    label: str = "label"
    """The column of the label: a string or number; a list of them where there may be several."""
    kind: Literal["one", "several", "number"] | None = None
    """`one` of the classes, `several` (any number of them, also none), or a `number` to be predicted. Unless
    given: `several` where labels are lists, else `one`."""
    out_of_scope: str | None = None
    """The label of rows that belong to none of the classes. They train nothing: it is the answer where the likeliest
    class is less probable than a bar that suits the validation rows best."""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind in ("several", "number") and self.is_special:
            raise ValueError(f"`loss` and `one_score` are for kind: one, not for kind: {self.kind}")
        return self

    @property
    def is_special(self) -> bool:
        """Whether scores mean something else than with softmax and cross-entropy."""
        return self.one_score or self.loss not in (None, "cross_entropy")


L = TypeVar("L", bound=LabelSection)


def settle(config: L, examples: Iterable[Mapping[str, Any]]) -> L:
    """The section with what only the training rows can tell: the kind, the names of the classes, their weights.

    Raises DataError for rows without labels, labels that do not fit the kind, names in `labels` that
    never occur, a single class, and an implausible number of classes. Reads each example once.
    """
    counts: dict[str, int] = {}
    has_lists = False
    for example in examples:
        found = _label(config, example)
        if config.kind == "number":
            _number(config, found, example)
            continue
        has_lists = has_lists or isinstance(found, list)
        for name in _names(config, example):
            if name != config.out_of_scope:
                _classes.add(config, counts, name)
    if config.kind == "number":
        return config
    config = config.model_copy(update={"kind": config.kind or ("several" if has_lists else "one")})
    if config.kind == "one":
        return _classes.settled(config, counts)
    if config.is_special or not counts:
        found = "holds lists, and `loss` and `one_score` are for one label a row" if counts else "holds no label at all"
        raise DataError(f"the column {config.label!r} {found}", fix="name the column of the classes: task.label")
    return config.model_copy(update={"labels": _classes.named(config, counts)})


def _label(config: LabelSection, example: Mapping[str, Any]) -> Any:
    name_of(config, example)  # raises where there is no such column
    return example[config.label]


def _names(config: LabelSection, example: Mapping[str, Any]) -> list[str]:
    """The labels of an example, of which there may be one or several."""
    found = _label(config, example)
    if isinstance(found, list):
        return [str(name) for name in found if name is not None]
    name = name_of(config, example)
    return [] if name is None else [name]


def _number(config: LabelSection, found: Any, example: Mapping[str, Any]) -> float:
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        what = f"the label {found!r} is no number"
        raise DataError(what, where=str(example.get("source", "")), fix="repair the row, or leave out `kind: number`")
    return value


class LabelTask:
    """What follows from the labels, whatever an example is. Can be sent to other processes."""

    LOOKS_AT: ClassVar[str] = "text"
    """What an example is."""

    def __init__(self, config: LabelSection) -> None:
        """`config` is settled, unless the labels are not needed."""
        self.config: Any = config
        self.kind = config.kind or "one"
        self.classes = Classes(config)
        self.labels = self.classes.labels
        self.outputs = self.classes.outputs if self.kind != "number" else 1
        self.problem = PROBLEMS[self.kind]
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
    def label_encoding(self) -> dict[str, Any]:
        """What the encoding of labels depends on: a part of the key of encoded shards."""
        c = self.config
        return {"label": c.label, "out_of_scope": c.out_of_scope, "kind": self.kind, "labels": self.labels}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"kind": self.kind, "labels": self.labels}

    def target(self, example: Mapping[str, Any]) -> list[int] | list[float]:
        """The label in numbers: one, or one for each class.

        -100 for a row out of scope, and for one that has no label (`groundup predict` has none). Raises DataError,
        naming the row, for a label that is unknown.
        """
        found = example.get(self.config.label)
        if self.kind == "number":
            return [math.nan if found is None else _number(self.config, found, example)]
        if found is None:
            return [IGNORED] * (len(self.labels) if self.kind == "several" else 1)
        if self.kind == "several":
            held = {self.classes.number_of(name, example) for name in _names(self.config, example)}
            return [int(i in held) for i in range(len(self.labels))]
        is_outside = self.config.out_of_scope is not None and str(found) == self.config.out_of_scope
        return [IGNORED if is_outside else self.classes.number(example)]

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over labelled examples (with several classes: over their labels), and their number."""
        logits, share = outputs.logits.float(), batch.get("share")
        if share is None:
            return {"loss": self._loss(logits, batch["label"])}
        own, count = self._loss(logits, batch["label"], share)
        other, _ = self._loss(logits, batch["other_label"], 1 - share)
        return {"loss": (own + other, count)}

    def _loss(self, logits: Tensor, label: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum, in which each example weighs its `share`, and the number of labels."""
        from groundup.nn import losses

        match self.kind:
            case "number":
                return losses.squared_error(logits[:, 0], label, share)
            case "several":
                return losses.binary_cross_entropy(logits, label, share)
        return self.classes.loss(logits, label, share)

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
            return self.classes.scores(logits, label)

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """An answer an example: `label` and `probabilities` by class; `labels` (a list); or `number`."""
        logits = outputs.logits.float().detach()
        if self.kind == "number":
            return [{"number": value} for value in logits[:, 0].tolist()]
        if self.kind == "one":
            return self.classes.answers(logits)
        shares = logits.sigmoid().tolist()
        chosen = [[self.labels[i] for i, p in enumerate(row) if p > 0.5] for row in shares]
        return [{"labels": names, "probabilities": row} for names, row in zip(chosen, shares, strict=True)]

    @property
    def evaluation(self) -> str:
        """How answers are compared with truths."""
        return {"one": "classes", "several": "multilabel", "number": "number"}[self.kind]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The answer to an example, which is one row. Raises DataError for one that has none."""
        if not found:
            what = f"an example without any {self.LOOKS_AT}"
            raise DataError(what, where=str(example.get("source", "")), fix="leave it out")
        key = {"one": "label", "several": "labels", "number": "number"}[self.kind]
        given, shares = found[0][key], found[0].get("probabilities")
        if self.config.out_of_scope is not None and shares is not None and max(shares) < self.bar:
            given = self.config.out_of_scope
        return Answer(given, shares)

    def truth(self, example: Mapping[str, Any]) -> Any:
        """The label, a list of labels, or a number. Raises DataError, naming the row, where it is missing."""
        found = _label(self.config, example)
        if self.kind == "one" or found is None:
            return self.classes.truth(example)
        return _number(self.config, found, example) if self.kind == "number" else _names(self.config, example)

    def label_shown(self, label: Any) -> str:
        """A row's label in words."""
        if self.kind == "number":
            return f"{float(label):g}"
        if self.kind == "several":
            return ", ".join(self.labels[i] for i, held in enumerate(label.tolist()) if held == 1) or "none"
        return self.classes.shown(int(label))
