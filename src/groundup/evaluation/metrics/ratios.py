"""Scores that are one sum divided by another: nats per label, nats per byte, right answers per question.

A task adds up its sums per unit (a document), and the score of a whole set is the ratio of the sums.
So a score is the same however the set is cut into batches, and a bootstrap over units needs nothing
but their sums: `ratio_interval(sums[above], sums[below]).map(finish)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


def unchanged(value: float) -> float:
    """The value itself."""
    return value


def perplexity(nats: float) -> float:
    """exp(nats), infinite where that overflows."""
    return math.exp(nats) if nats < 709 else math.inf


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)


@dataclass(frozen=True)
class Ratio:
    """finish(sum of `above` / sum of `below`); `finish` is increasing, so it maps intervals too."""

    above: str
    below: str
    finish: Callable[[float], float] = unchanged
    higher_is_better: bool = False

    def of(self, sums: Mapping[str, float]) -> float:
        """The score of these sums; NaN when nothing was counted."""
        return self.finish(sums[self.above] / sums[self.below]) if sums[self.below] else math.nan


FINISHES: dict[str, Callable[[float], float]] = {"unchanged": unchanged, "perplexity": perplexity, "bits": bits}


def as_data(metric: Ratio) -> dict[str, str | bool]:
    """A score as plain data, for a report that is to be read again."""
    finish = next(name for name, function in FINISHES.items() if function is metric.finish)
    return {"above": metric.above, "below": metric.below, "finish": finish, "higher_is_better": metric.higher_is_better}


def from_data(data: Mapping[str, str | bool]) -> Ratio:
    """What `as_data` wrote."""
    finish = FINISHES[str(data["finish"])]
    return Ratio(str(data["above"]), str(data["below"]), finish, bool(data["higher_is_better"]))
