"""What a labelled test is: examples with their truth, and the answers that systems gave to them.

Everything here is plain data, so that a stage, a notebook or another library can fill it in. What a
truth and an answer look like depends on the kind:

| kind | truth | answer | probabilities |
|---|---|---|---|
| classes | a label | a label | one per label, in their order |
| multilabel | labels | labels | one per label, each on its own |
| number | a number | a number | |
| tags | one tag a token | one tag a token | |
| spans | accepted answers, none if there is none | a text, empty for none | |
| texts | a text | a text | |
| ranking | the relevant items | items, best first | |
| recommending | the items chosen next | their places in the catalogue, and what was recommended | |
| sums | none | sums by name, which `metrics` divide | |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from groundup.errors import DataError, nearest
from groundup.evaluation.metrics.additive import Ints
from groundup.evaluation.metrics.ratios import Ratio

Kind = Literal["classes", "multilabel", "number", "tags", "spans", "texts", "ranking", "recommending", "sums"]
NAMED = 5
"""How many rows an error names."""


@dataclass(frozen=True)
class Labelled:
    """The examples of a test: what they are, what is right, and how they may be grouped. Axis E: examples."""

    kind: Kind
    ids: Sequence[str]
    """A name for each example that errors and comparisons use, such as "test.csv:17"; no two alike."""
    shown: Sequence[str]
    """What the report shows of each example's input. For tags the tokens joined; for spans the question."""
    truth: Sequence[Any]
    """What is right; see the table above."""
    labels: Sequence[str] = ()
    """Every label or tag a model may give, in the order of its probabilities."""
    slices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Columns to break the score down by, such as language: one value an example, None for unknown."""
    units: Sequence[Any] | None = None
    """What an example belongs to if several are drawn together, such as an article. Each alone unless given."""
    unit: str = "examples"
    """What such a unit is called."""
    language: str = ""
    """For spans and texts the language of the answers, such as zh: it chooses how they are compared."""
    out_of_scope: str | None = None
    """The label of examples that belong to none of the classes, if there are such."""
    metrics: Mapping[str, Ratio] = field(default_factory=dict)
    """For sums, the scores by name, the main one first."""
    main: str | None = None
    """The score the report leads with; the usual one of the kind unless given."""

    def __len__(self) -> int:
        return len(self.ids)

    def groups(self) -> Ints | None:
        """For each example the number of its unit, or None where each stands alone."""
        if self.units is None:
            return None
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(value, len(numbers)) for value in self.units], np.int64)

    def label_numbers(self, values: Sequence[Any]) -> Ints:
        """Labels as numbers by their place in `labels`; the out-of-scope label is -1 if it is not among them."""
        place = {label: number for number, label in enumerate(self.labels)}
        return np.array([place.get(value, -1) for value in values], np.int64)


@dataclass(frozen=True)
class System:
    """One system's answers to the examples of a test: a trained model of one seed, or a rival."""

    name: str
    answers: Sequence[Any]
    probabilities: Sequence[Sequence[float]] | None = None
    confidence: Sequence[float] | None = None
    """How sure it was of each answer, for kinds without probabilities; any scale that grows with sureness."""
    meaning: str = ""
    """What it is, in a sentence."""
    seed: int | None = None
    digest: str = ""
    """Of the model artefact that answered."""
    trained_rows: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def check(test: Labelled, systems: Sequence[System]) -> None:
    """Raise DataError, naming rows, where truth or answers cannot be scored."""
    _check_lengths(test, systems)
    if not len(test):
        raise DataError("the test has no examples", fix="give prepare a larger test split")
    seen: set[str] = set()
    twice = [name for name in test.ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"two examples have the same id {twice[0]!r}", fix="number the rows")
    if test.kind in ("classes", "multilabel"):
        _check_labels(test)
    if test.kind == "tags":
        for system in systems:
            uneven = [n for n, x, y in zip(test.ids, test.truth, system.answers, strict=True) if len(x) != len(y)]
            if uneven:
                raise DataError(f"{system.name} gave another number of tags than there are tokens", where=uneven[0])


def _check_lengths(test: Labelled, systems: Sequence[System]) -> None:
    lengths = {"shown": len(test.shown), "truth": len(test.truth)}
    lengths |= {f"slices of {name}": len(values) for name, values in test.slices.items()}
    lengths |= {f"answers of {system.name}": len(system.answers) for system in systems}
    lengths |= {f"probabilities of {s.name}": len(s.probabilities) for s in systems if s.probabilities is not None}
    lengths |= {f"confidence of {s.name}": len(s.confidence) for s in systems if s.confidence is not None}
    if test.units is not None:
        lengths["units"] = len(test.units)
    wrong = [f"{count} {what}" for what, count in lengths.items() if count != len(test)]
    if wrong:
        raise DataError(f"{len(test)} examples but {wrong[0]}", fix="give one of each for every example")


def _check_labels(test: Labelled) -> None:
    known = set(test.labels) | ({test.out_of_scope} - {None})
    values = ([label] if test.kind == "classes" else label for label in test.truth)
    strange = [(name, label) for name, row in zip(test.ids, values, strict=True) for label in row if label not in known]
    if strange:
        rows = ", ".join(name for name, _ in strange[:NAMED]) + (", …" if len(strange) > NAMED else "")
        raise DataError(
            f"{len(strange)} test examples have a label the model was never shown, such as {strange[0][1]!r}",
            where=rows,
            fix=nearest(str(strange[0][1]), map(str, test.labels)),
        )


def plain(value: Any) -> Any:
    """A truth or an answer as JSON can hold it: lists for tuples, sets and arrays, numbers for numpy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value))
    return [plain(one) for one in value] if isinstance(value, list | tuple | np.ndarray) else value
