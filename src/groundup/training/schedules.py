"""Learning-rate schedules: how much of the peak rate a step uses.

Each is a section of the recipe (`schedule: {name: cosine, warmup: 2%}`) with a method `shape` that
gives the share of the peak at a step after warmup; `factor` puts the linear warmup before it. All
are pure functions of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import SerializeAsAny

from groundup.config import OneOf, Section
from groundup.units import Share, StepsOrShare


class Schedule(Section):
    """What every schedule has: a linear warmup from near zero to the peak rate."""

    warmup: StepsOrShare = 0.02
    """Steps, or share of all steps, over which the rate rises linearly to its peak."""

    @abstractmethod
    def shape(self, step: int, steps: int, warmup_steps: int) -> float:
        """The share of the peak rate at a step at or after the end of warmup."""


class Constant(Schedule):
    """The peak rate throughout."""

    name: Literal["constant"] = "constant"

    def shape(self, step: int, steps: int, warmup_steps: int) -> float:
        return 1.0


class Linear(Schedule):
    """A straight line from the peak to `final` of it at the last step."""

    name: Literal["linear"] = "linear"
    final: Share = 0.0
    """The share of the peak rate reached at the end."""

    def shape(self, step: int, steps: int, warmup_steps: int) -> float:
        return 1 - (1 - self.final) * _progress(step, warmup_steps, steps)


class Cosine(Schedule):
    """Half a cosine from the peak to `final` of it (Loshchilov & Hutter 2017, one cycle)."""

    name: Literal["cosine"] = "cosine"
    final: Share = 0.1
    """The share of the peak rate reached at the end."""

    def shape(self, step: int, steps: int, warmup_steps: int) -> float:
        falling = (1 + math.cos(math.pi * _progress(step, warmup_steps, steps))) / 2
        return self.final + (1 - self.final) * falling


class InverseSquareRoot(Schedule):
    """The peak times the square root of warmup / step (Vaswani et al. 2017, section 5.3)."""

    name: Literal["inverse_square_root"] = "inverse_square_root"

    def shape(self, step: int, steps: int, warmup_steps: int) -> float:
        start = max(1, warmup_steps)
        return math.sqrt(start / max(start, step))


class WarmupStableDecay(Schedule):
    """The peak until the last `decay`, then down to `final` (Hu et al. 2024, MiniCPM, section 4).

    The fall is linear, which Hägele et al. 2024 found as good as the exponential one.
    """

    name: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    decay: StepsOrShare = 0.2
    """Steps, or share of all steps, over which the rate falls at the end."""
    final: Share = 0.0
    """The share of the peak rate reached at the end."""

    def shape(self, step: int, steps: int, warmup_steps: int) -> float:
        start = max(warmup_steps, steps - as_steps(self.decay, steps))
        return 1 - (1 - self.final) * _progress(max(step, start), start, steps)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "inverse_square_root": InverseSquareRoot,
    "warmup_stable_decay": WarmupStableDecay,
}

AnySchedule = Annotated[SerializeAsAny[Schedule], OneOf("schedule", SCHEDULES)]
"""The type of a recipe field that names a schedule."""


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """The share of the peak rate that step `step` (counted from 0) of `steps` uses, in (0, 1].

    The first step of a warmup of n steps uses 1/n, its last the peak: no step is wasted at zero.
    """
    warmup_steps = as_steps(schedule.warmup, steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return schedule.shape(step, steps, warmup_steps)


def as_steps(value: float, steps: int) -> int:
    """A recipe's steps-or-share as steps: whole numbers are steps, fractions a share of `steps`."""
    return round(value * steps) if isinstance(value, float) else int(value)


def _progress(step: int, start: int, steps: int) -> float:
    """How far a step is between `start` and the last step, in [0, 1]."""
    return min(1.0, (step - start) / max(1, steps - 1 - start))
