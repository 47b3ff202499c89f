"""Scores of answers that are sums themselves: how well a text was foreseen, how often an answer was preferred.

Such an example has no truth to compare with. It leaves a mapping of sums (nats, labels, …), and a score
is one of them divided by another, as `Ratio` says.

Axes: E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from groundup.evaluation.metrics.additive import Additive, Floats
from groundup.evaluation.metrics.ratios import Ratio


def scores(metrics: Mapping[str, Ratio], answers: Sequence[Mapping[str, float]]) -> list[Additive]:
    """A score for each metric, in order, over E answers; one without any count is NaN.

    Raises KeyError for an answer that lacks a sum.
    """
    return [
        Additive(
            name,
            np.array([[answer[metric.above], answer[metric.below]] for answer in answers], np.float64).reshape(-1, 2),
            _Divided(metric),
            metric.higher_is_better,
        )
        for name, metric in metrics.items()
    ]


def wins(metric: Ratio, first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]) -> Additive:
    """How often the first system's answer to an example scores better than the second's; ties count half.

    With nats per token of held-out answers it is a win-rate by likelihood: which model foresees more of them better.
    """
    values = np.array([[metric.of(one), metric.of(other)] for one, other in zip(first, second, strict=True)])
    gaps = (values[:, 0] - values[:, 1]) * (1 if metric.higher_is_better else -1)
    shares = (gaps > 0) + 0.5 * (gaps == 0)
    return Additive("win_rate", np.stack([shares, np.ones_like(shares)], 1), lambda sums: sums[..., 0] / sums[..., 1])


class _Divided:
    """finish(first sum / second sum), for sums (…, 2)."""

    def __init__(self, metric: Ratio) -> None:
        self.metric = metric

    def __call__(self, sums: Floats) -> Floats:
        above, below = sums[..., 0], sums[..., 1]
        shares = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
        finished = [value if np.isnan(value) else self.metric.finish(value) for value in np.ravel(shares).tolist()]
        return np.array(finished, np.float64).reshape(np.shape(above))
