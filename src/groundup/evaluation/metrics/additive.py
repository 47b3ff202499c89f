"""Scores of labelled examples, each made of statistics that add up.

An example leaves a row of statistics (was it right, how many entities were found, …); the score of any
set of examples is a function of the sum of their rows. So a bootstrap, a slice, a paired test and an
average over seeds need nothing but sums, and a whole bootstrap is one product of matrices. Scores that
are no function of sums are told from weights (`Weighted`: how well outsiders are told) or computed anew
from the examples that were drawn (`Recomputed`: a rank correlation).

Axes: E examples (or other units), S statistics, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Finish = Callable[[Floats], Floats]
"""From sums (…, S) to scores (…)."""


class Score(Protocol):
    """What intervals and tests ask of a score."""

    @property
    def name(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    def __len__(self) -> int:
        """How many examples it is made of."""

    @property
    def value(self) -> float:
        """The score of all examples."""

    def take(self, rows: Ints) -> Score:
        """The score of some examples, by number; a number may come twice."""

    def weighted(self, weights_RE: NDArray[Any]) -> Floats:
        """The scores (R,) where example e counts weights[r, e] times."""


@dataclass(frozen=True)
class Additive:
    """A score that is a function of summed statistics."""

    name: str
    statistics: Floats
    """One row an example, (E, S)."""
    finish: Finish
    higher_is_better: bool = True

    def __len__(self) -> int:
        return len(self.statistics)

    @property
    def value(self) -> float:
        """The score of all examples."""
        return float(self.finish(self.statistics.sum(0)))

    def take(self, rows: Ints) -> Additive:
        """The score of some examples, by number."""
        return Additive(self.name, self.statistics[rows], self.finish, self.higher_is_better)

    def by(self, units_E: Ints) -> Additive:
        """The same score made of units of several examples; units_E gives each example's, 0 to U - 1."""
        sums_US = np.zeros((int(units_E.max()) + 1 if len(units_E) else 0, self.statistics.shape[1]))
        np.add.at(sums_US, units_E, self.statistics)
        return Additive(self.name, sums_US, self.finish, self.higher_is_better)

    def weighted(self, weights_RE: NDArray[Any]) -> Floats:
        """The scores (R,) where example e counts weights[r, e] times."""
        return self.finish(weights_RE.astype(np.float64) @ self.statistics)


@dataclass(frozen=True)
class Recomputed:
    """A score that has to be computed anew for every draw of examples."""

    name: str
    size: int
    compute: Callable[[Ints], float]
    """From the numbers of the drawn examples, with repeats, to their score."""
    higher_is_better: bool = True

    def __len__(self) -> int:
        return self.size

    @property
    def value(self) -> float:
        """The score of all examples."""
        return float(self.compute(np.arange(self.size)))

    def take(self, rows: Ints) -> Recomputed:
        """The score of some examples, by number."""
        return Recomputed(self.name, len(rows), lambda drawn: self.compute(rows[drawn]), self.higher_is_better)

    def weighted(self, weights_RE: NDArray[Any]) -> Floats:
        """The scores (R,) where example e counts weights[r, e] times, a whole number."""
        everything = np.arange(self.size)
        return np.array([self.compute(np.repeat(everything, weights_E)) for weights_E in weights_RE])


@dataclass(frozen=True)
class Weighted:
    """A score that is no function of sums but can be told from weights, without drawing anything out."""

    name: str
    size: int
    weigh: Callable[[NDArray[Any]], Floats]
    """From weights (R, E), whole numbers, to scores (R,)."""
    part: Callable[[Ints], Weighted]
    """The same score of some examples."""
    higher_is_better: bool = True

    def __len__(self) -> int:
        return self.size

    @property
    def value(self) -> float:
        """The score of all examples."""
        return float(self.weigh(np.ones((1, self.size), np.int64))[0])

    def take(self, rows: Ints) -> Weighted:
        """The score of some examples, by number."""
        return self.part(rows)

    def weighted(self, weights_RE: NDArray[Any]) -> Floats:
        """The scores (R,) where example e counts weights[r, e] times, a whole number."""
        return self.weigh(weights_RE)


@dataclass(frozen=True)
class Averaged:
    """The mean of one score over several runs on the same examples, such as seeds."""

    parts: tuple[Score, ...]

    @property
    def name(self) -> str:
        """The score that is averaged."""
        return self.parts[0].name

    @property
    def higher_is_better(self) -> bool:
        """As its parts."""
        return self.parts[0].higher_is_better

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def value(self) -> float:
        """The mean over the runs."""
        return float(np.mean([part.value for part in self.parts]))

    def take(self, rows: Ints) -> Averaged:
        """The score of some examples, by number."""
        return Averaged(tuple(part.take(rows) for part in self.parts))

    def weighted(self, weights_RE: NDArray[Any]) -> Floats:
        """The scores (R,) where example e counts weights[r, e] times."""
        return np.asarray(np.mean([part.weighted(weights_RE) for part in self.parts], axis=0))


def averaged(parts: Sequence[Score]) -> Score:
    """One score that is the mean of the runs'; additive if they all are. The runs saw the same examples."""
    if len(parts) == 1:
        return parts[0]
    additive = [part for part in parts if isinstance(part, Additive)]
    if len(additive) < len(parts):
        return Averaged(tuple(parts))
    edges = np.cumsum([part.statistics.shape[1] for part in additive])[:-1]

    def finish(sums: Floats) -> Floats:
        pieces = np.split(sums, edges, axis=-1)
        return np.asarray(np.mean([part.finish(piece) for part, piece in zip(additive, pieces, strict=True)], axis=0))

    statistics_ES = np.concatenate([part.statistics for part in additive], axis=1)
    return Additive(parts[0].name, statistics_ES, finish, parts[0].higher_is_better)


def divided(above: Floats, below: Floats) -> Floats:
    """above / below, and 0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below != 0)


def first_over_second(sums: Floats) -> Floats:
    """The first statistic over the second, 0 where that is 0."""
    return divided(sums[..., 0], sums[..., 1])


def mean(name: str, values_E: Any, *, higher_is_better: bool = True) -> Additive:
    """The mean of one value an example."""
    values = np.asarray(values_E, np.float64)
    return Additive(name, np.stack([values, np.ones(len(values))], 1), first_over_second, higher_is_better)


def ratio(name: str, above_E: Any, below_E: Any, *, higher_is_better: bool = True) -> Additive:
    """sum(above) / sum(below), such as right tags over all tags."""
    pair = np.stack([np.asarray(above_E, np.float64), np.asarray(below_E, np.float64)], 1)
    return Additive(name, pair, first_over_second, higher_is_better)


def ties(values_E: Floats) -> tuple[Ints, Ints]:
    """An order from the least value to the greatest, and where in it each run of equal values begins."""
    order = np.argsort(values_E, kind="stable")
    ordered = values_E[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)
    return order, begins
