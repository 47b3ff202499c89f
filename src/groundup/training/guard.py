"""When a loss is trouble: not finite, or far above what the last steps gave.

The measure is robust: the distance to the median of recent losses in median absolute deviations, so
one wild value does not widen what counts as normal. A few rows that are simply wrong are no trouble,
though: where nearly all is learnt, one mislabelled row of a small batch is far from the median. What to
do then follows Chowdhery et al. 2022 (PaLM, section 5.1): go back to a state from before and leave the
offending batches out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOW = 64
"""How many recent losses are compared with."""
LEAST = 16
"""With fewer than this, only a loss that is not finite counts."""
FLOOR = 0.02
"""Deviations below this share of the median are taken as this: a flat curve is not a hair trigger."""
WRONG = 40.0
"""Nats that a few rows which nobody could guess add to the loss of a batch before it is divided by its labels: four
or so of them. A jump that these explain is none; in a batch of thousands of tokens it is next to nothing."""
REPEATED, WITHIN_STEPS = 3, 1000
"""So many troubles within so many steps stop the run."""
SCALE = 1.4826
"""From median absolute deviation to standard deviation, for normally distributed values."""


@dataclass
class Position:
    """Where a run stands: everything that a resumed run must know besides tensors."""

    step: int = 0
    """Updates done."""
    evaluated: int = -1
    """The step of the last validation."""
    skipped: list[int] = field(default_factory=list)
    """Batches left out, ascending."""
    recent: list[float] = field(default_factory=list)
    """The last losses, oldest first."""
    troubles: list[dict[str, Any]] = field(default_factory=list)
    """What went wrong, with step, batch, reason and rows."""
    best_step: int | None = None
    """The step with the lowest validation loss, if early stopping is on."""
    best_loss: float | None = None
    best_validation: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    """Validations since then."""
    validation: dict[str, float] = field(default_factory=dict)
    """The last validation's figures."""

    def batch(self, step: int | None = None) -> int:
        """The batch that a step (the coming one) takes: its number, moved on past the skipped ones."""
        batch = self.step if step is None else step
        for skipped in self.skipped:
            batch += skipped <= batch
        return batch

    def remember(self, loss: float) -> None:
        """Take a step's loss into the window."""
        self.recent = [*self.recent[-(WINDOW - 1) :], loss]

    def compare(self, loss: float, min_delta: float) -> None:
        """Take a validation loss into account: a new best, or one more without."""
        if self.best_loss is None or loss < self.best_loss - min_delta:
            self.best_loss, self.best_step, self.best_validation = loss, self.step, self.validation
            self.waited = 0
        else:
            self.waited += 1


def trouble(
    recent: Sequence[float],
    loss: float,
    grad_norm: float,
    deviations: float | None,
    labels: Callable[[], int] | None = None,
) -> str | None:
    """What is wrong with a step's loss and gradient, in words; None if nothing is.

    `labels` tells by how many labels the loss was divided; without it any jump counts.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient's norm is {grad_norm}"
    if deviations is None or len(recent) < LEAST:
        return None
    median = statistics.median(recent)
    least = FLOOR * abs(median)
    if loss <= median or (least and (loss - median) / least <= deviations):
        return None  # as nearly always; the spread, which takes longer to find, can only bring it nearer
    spread = max(SCALE * statistics.median(abs(x - median) for x in recent), least)
    if not spread:
        return None  # every loss was zero, so there is no measure of how far this one is from them
    if (loss - median) / spread <= deviations or (labels and loss - median <= WRONG / max(1, labels())):
        return None
    return f"the loss jumped from about {median:.3f} to {loss:.3f}"


def blamed(position: Position, *, is_spike: bool) -> list[int]:
    """The batches to leave out after trouble at the coming step.

    A loss that is finite but far too high was computed before its own update, so the update before
    it is suspected as well.
    """
    steps = [position.step - 1, position.step] if is_spike and position.step else [position.step]
    return [position.batch(step) for step in steps]


def is_repeated(troubles: Sequence[dict[str, Any]], step: int) -> bool:
    """Whether trouble has come so often lately that going on makes no sense."""
    return len([t for t in troubles if t["step"] > step - WITHIN_STEPS]) >= REPEATED
