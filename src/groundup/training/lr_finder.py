"""A learning rate read off one short run in which the rate grows from step to step (Smith 2017, section 3.3).

Far too small a rate leaves the loss where it is, far too large a one blows it up, and a good one lies
where it falls. Two ways to read the curve are those that are usual since fastai: where it falls steepest,
and the middle of its longest fall. Batches differ more than neighbouring rates do, so the curve is smoothed
first, evenly to both sides: a running mean would lag, and move every reading to higher rates.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from groundup.errors import Interrupted, StageFailed
from groundup.progress import Reporter, interrupt_requested
from groundup.training.choices import Choices
from groundup.training.loop import Job
from groundup.training.settings import TrainingSection

SMOOTHING = 0.03
"""Width of the bell that losses are averaged under, as a share of all steps."""
RECENT = 5
"""Steps whose mean loss tells whether it has blown up."""
BLOWN_UP = 4.0
"""The multiple of the least such mean at which the run ends."""
WORTHWHILE = 0.02
"""The share of the whole fall that two losses must differ by to count as a fall."""
LEAST = 8
"""Steps without which there is no curve."""


@dataclass(frozen=True)
class Finding:
    """The curve and what it suggests."""

    rates: list[float]
    losses: list[float]
    """Smoothed."""
    steepest: float | None
    """Where the loss falls fastest; None if it never falls."""
    valley: float | None
    """The middle of the longest fall: the safer of the two, and the one to take."""

    @property
    def suggested(self) -> float:
        """The rate to take, to two digits. Raises StageFailed if the loss never falls."""
        if self.valley is None:
            fix = "look at the data and the loss first; or try other limits of the rate"
            raise StageFailed("the loss falls at no learning rate", fix=fix)
        return float(f"{self.valley:.1e}")

    def as_data(self) -> dict[str, Any]:
        """The finding as plain data."""
        return dataclasses.asdict(self)


def find(
    job: Job,
    settings: TrainingSection,
    choices: Choices,
    *,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    reporter: Reporter | None = None,
) -> Finding:
    """The finding of a run of up to `steps` steps from `lowest` to `highest`; weights are afterwards as they were.

    It learns from the training batches and looks at nothing else. Layers that unfreeze later learn from the
    start here. Raises StageFailed if the loss is broken from the start, Interrupted after a signal.
    """
    layers = job.methods.layers.model_copy(update={"unfreeze_every": None})
    job = dataclasses.replace(job, methods=dataclasses.replace(job.methods, layers=layers))
    was_training = job.network.training
    job.network.train()
    learner = job.learner(settings, choices)
    before = {name: tensor.detach().clone() for name, tensor in learner.tensors()[0].items()}
    rates, losses, least = list[float](), list[float](), math.inf
    try:
        for step in range(steps):
            if interrupt_requested():
                raise Interrupted("interrupted while looking for a learning rate", fix="run the same command again")
            lr = lowest * (highest / lowest) ** (step / max(1, steps - 1))
            parts = [job.loader.micro_batch(step, m)[0] for m in range(job.loader.micro_batches)]
            figures = learner.gradients(parts, step)
            mean = statistics.fmean([*losses[1 - RECENT :], figures.loss])
            if not math.isfinite(mean) or mean > BLOWN_UP * least:
                break
            least = min(least, mean)
            rates.append(lr)
            losses.append(figures.loss)
            learner.update(lr, figures.grad_norm, step)
            if reporter:
                reporter.advance("looking for a learning rate", step + 1, steps, loss=figures.loss, lr=lr)
    finally:
        learner.forget()
        learner.load_weights(before)
        job.network.train(was_training)
    if len(losses) < LEAST:
        fix = "look at the data, or begin with a lower rate"
        raise StageFailed(f"the loss breaks after {len(losses)} steps, at a rate of {lowest:g} and above", fix=fix)
    smooth = smoothed(losses, max(1.0, SMOOTHING * steps))
    return Finding(rates, smooth, steepest(rates, smooth), valley(rates, smooth))


def smoothed(losses: Sequence[float], width: float) -> list[float]:
    """Losses averaged with their neighbours under a bell of a width in steps; at the ends with those there are."""

    def around(i: int) -> float:
        weights = [math.exp(-(((i - j) / width) ** 2) / 2) for j in range(len(losses))]
        return math.fsum(w * loss for w, loss in zip(weights, losses, strict=True)) / math.fsum(weights)

    return [around(i) for i in range(len(losses))]


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the loss falls fastest on a logarithmic scale of rates; None if it never falls."""
    logs = [math.log(rate) for rate in rates]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairwise(zip(logs, losses, strict=True))]
    if not slopes or min(slopes) >= 0:
        return None
    at = slopes.index(min(slopes))
    return math.sqrt(rates[at] * rates[at + 1])


def valley(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate in the middle of the longest fall; None if no loss is below the first.

    The longest fall is the longest sequence of ever lower losses, gaps allowed; losses that differ by less than
    `WORTHWHILE` of the whole fall count as equal, or it would begin long before anything happens. It is taken to
    begin as many steps before its end as it has losses, so that stray high ones long before play no part.
    """
    whole = max(losses[:1], default=0.0) - min(losses, default=0.0)
    if whole <= 0:
        return None
    levels = [round(loss / (WORTHWHILE * whole)) for loss in losses]
    lengths = list[int]()
    for i, level in enumerate(levels):
        lengths.append(1 + max((lengths[j] for j in range(i) if levels[j] > level), default=0))
    end = lengths.index(max(lengths))
    return rates[end - max(lengths) // 2]
