"""One of several classes as what an example is trained for: what the tasks of classes share, whatever they look at.

Scores become an answer by the largest of them. Where the loss is cross-entropy, their softmax is the model's belief.
The hinge loss and the squared error make scores that are no logarithms of anything; their softmax keeps the order,
and the temperature that suits the validation rows best makes probabilities of it (as Platt 1999 did for a support
vector machine, with one number instead of two).

Axes: E examples, K scores: one a class, or a single one for two classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import model_validator

from groundup.config import Named
from groundup.data.packing import IGNORED
from groundup.errors import DataError, nearest
from groundup.units import Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

MOST_LABELS = 10_000
"""More different labels than this are taken for a mistake: a column of texts or of ids."""
Loss = Literal["cross_entropy", "hinge", "squared_error"]


class ClassSection(Named):
    """The classes, and what is paid for taking one for another."""

    label: str = "label"
    """The column of the label: a string or a number."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, in the order of the model's outputs; sorted as found in the training rows unless
    given."""
    loss: Loss | None = None
    """What is made small: `cross_entropy` (unless given), `hinge` (as a support vector machine does) or
    `squared_error` of scores and one-hot labels."""
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over the classes while training; never in evaluation. Cross-entropy only."""
    balance: bool = False
    """Whether every class weighs the same in the loss, however many rows it has. Cross-entropy only."""
    class_weights: tuple[float, ...] | None = None
    """What each class weighs in the loss; follows from the training rows with `balance`."""
    one_score: bool = False
    """Whether two classes share one score, that of the second, instead of having one each: a single output unit,
    logistic with cross-entropy."""

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        if not (self.label_smoothing or self.balance or self.class_weights):
            return self
        if self.loss not in (None, "cross_entropy"):
            raise ValueError(f"label_smoothing, balance and class_weights belong to cross_entropy, not to {self.loss}")
        if self.one_score:
            raise ValueError("label_smoothing, balance and class_weights need one score a class: leave out one_score")
        return self


C = TypeVar("C", bound=ClassSection)


def name_of(config: ClassSection, example: Mapping[str, Any]) -> str | None:
    """The label of an example as the name of a class, or None for one without. Raises DataError without the column."""
    if config.label not in example:
        fix = f"{nearest(config.label, example)}; prepare carries the columns that its source names under `keep`"
        raise DataError(f"the corpus has no column {config.label!r}", fix=fix)
    found = example[config.label]
    if found is None or (isinstance(found, str) and not found.strip()):
        return None
    if isinstance(found, float) and found.is_integer():
        return str(int(found))  # a column of whole numbers with gaps comes as 1.0, 2.0
    return str(found)


def count(config: ClassSection, counts: dict[str, int], example: Mapping[str, Any]) -> None:
    """Add an example's label to how often each occurs. Raises DataError for an implausible number of classes."""
    name = name_of(config, example)
    if name is not None:
        add(config, counts, name)


def add(config: ClassSection, counts: dict[str, int], name: str) -> None:
    """Add a label to how often each occurs. Raises DataError for an implausible number of classes."""
    counts[name] = counts.get(name, 0) + 1
    if len(counts) > MOST_LABELS:
        what = f"more than {MOST_LABELS} different labels in the column {config.label!r}"
        raise DataError(what, fix="name the column of the classes: task.label")


def settled(config: C, counts: Mapping[str, int]) -> C:
    """The section with the names and the weights of its classes, by how often each occurs in the training rows.

    Raises DataError for rows without labels, names in `labels` that never occur, and a single class.
    """
    labels = named(config, counts)
    if len(labels) < 2:
        found = f"only the label {labels[0]!r}" if labels else "no label at all"
        what = f"{found} in the column {config.label!r} of the training rows: there is nothing to tell apart"
        raise DataError(what, fix="name the column of the classes: task.label")
    if config.one_score and len(labels) != 2:
        what = f"one_score is for two classes, and there are {len(labels)}"
        raise DataError(what, fix="leave `one_score` out: every class then has a score")
    weights = config.class_weights
    if weights is not None and len(weights) != len(labels):
        raise DataError(f"{len(weights)} class_weights for {len(labels)} classes", fix="give one a class, or `balance`")
    if config.balance and weights is None:
        total = sum(counts.values())
        weights = tuple(total / (len(labels) * counts[name]) for name in labels)
    return config.model_copy(update={"labels": labels, "class_weights": weights})


def named(config: ClassSection, counts: Mapping[str, int]) -> tuple[str, ...]:
    """The names of the classes in their order. Raises DataError for names in `labels` that never occur, and others."""
    labels = config.labels or tuple(sorted(counts, key=_natural))
    absent = [name for name in labels if not counts.get(name)]
    if config.labels is not None and absent:
        what = f"labels that never occur in the training rows: {', '.join(map(repr, absent[:5]))}"
        raise DataError(what, fix=f"take them out of task.labels; found: {', '.join(sorted(counts)[:20])}")
    unnamed = [name for name in counts if name not in labels]
    if unnamed:
        what = f"training rows have the label {unnamed[0]!r}, which task.labels does not name"
        raise DataError(what, fix=nearest(unnamed[0], labels))
    return labels


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before all other names."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


class Classes:
    """The classes of a settled section: numbers for labels, losses and answers for scores."""

    def __init__(self, config: ClassSection) -> None:
        self.config = config
        self.labels = list(config.labels or ())
        self.outputs = 1 if config.one_score else len(self.labels)
        self._ids = {name: i for i, name in enumerate(self.labels)}

    def number(self, example: Mapping[str, Any]) -> int:
        """The label of an example as a number, -100 where it has none (`groundup predict` has none).

        Raises DataError, naming the row, for a label that is unknown.
        """
        name = name_of(self.config, example) if self.config.label in example else None
        return IGNORED if name is None else self.number_of(name, example)

    def number_of(self, name: str, example: Mapping[str, Any]) -> int:
        """The number of a class. Raises DataError, naming the row that has it as its label, for an unknown one."""
        if name not in self._ids:
            what = f"the label {name!r} is not among those of the training rows"
            raise DataError(what, where=str(example.get("source", "")), fix=nearest(name, self.labels))
        return self._ids[name]

    def truth(self, example: Mapping[str, Any]) -> str:
        """The name of an example's class. Raises DataError, naming the row, where it is missing."""
        name = name_of(self.config, example)
        if name is None:
            where = str(example.get("source", ""))
            raise DataError("a row without a label", where=where, fix="label it, or leave it out")
        return name

    def loss(self, logits_EK: Tensor, label_E: Tensor, share_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss summed over labelled examples, and their number; labels are -100 where there is none.

        Of an example that has a share, so much is summed: it is mixed of two, each with its label.
        """
        import torch

        from groundup.nn import losses

        name = self.config.loss or "cross_entropy"
        if name != "cross_entropy":
            return losses.FOR_CLASSES[name](logits_EK, label_E, share_E)
        if self.outputs == 1:
            return losses.binary_cross_entropy(logits_EK[:, 0], label_E, share_E)
        given = self.config.class_weights
        weights = None if given is None else torch.tensor(given, device=logits_EK.device)
        smoothing = self.config.label_smoothing
        return losses.cross_entropy(logits_EK, label_E, share_E, label_smoothing=smoothing, weight_V=weights)

    def counts(self, label_E: Tensor) -> dict[str, int]:
        """The number of trained labels, from a batch alone."""
        return {"loss": int((label_E != IGNORED).sum())}

    def both(self, logits_EK: Tensor) -> Tensor:
        """One score a class whatever the network gives: of a single score s, what it has to pass, and s."""
        import torch

        if self.outputs > 1:
            return logits_EK
        # Squared error draws the score to 0 or 1, so that halfway is between the classes; the others to either sign.
        bar = 0.5 if self.config.loss == "squared_error" else 0.0
        return torch.cat([torch.full_like(logits_EK, bar), logits_EK], 1)

    def scores(self, logits_EK: Tensor, label_E: Tensor) -> dict[str, Tensor]:
        """Per example `nats` (of the softmax, whatever the loss), `labels` and `right`, (E,) each. No gradient."""
        import torch

        with torch.no_grad():
            logits, real = self.both(logits_EK.float()), label_E != IGNORED
            nats = torch.nn.functional.cross_entropy(logits, label_E, ignore_index=IGNORED, reduction="none")
            return {"nats": nats.double(), "labels": real.long(), "right": (logits.argmax(1) == label_E).long()}

    def answers(self, logits_EK: Tensor) -> list[dict[str, Any]]:
        """The `label` of each example, and `probabilities` by class."""
        logits = self.both(logits_EK.float().detach())
        best, shares = logits.argmax(-1).tolist(), logits.softmax(-1).tolist()
        return [{"label": self.labels[i], "probabilities": row} for i, row in zip(best, shares, strict=True)]

    def shown(self, number: int) -> str:
        """The class behind a number, in words."""
        return "none (trains nothing)" if number == IGNORED else self.labels[number]
