"""How long steps take, without what lies between them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


class Clock:
    """Seconds per step; what is paused (validation, saving) does not count."""

    def __init__(self) -> None:
        self.last, self.total, self.steps, self.typical = time.perf_counter(), 0.0, 0, 0.0

    def step(self) -> float:
        """Seconds since the last step ended. The first one (warming up, compiling) is left out of the mean."""
        now = time.perf_counter()
        seconds, self.last = max(now - self.last, 1e-9), now
        if self.steps:
            self.total += seconds
            self.typical += (seconds - self.typical) / min(self.steps, 20)
        self.steps += 1
        return seconds

    @property
    def mean(self) -> float:
        """Mean seconds per step so far."""
        return self.total / (self.steps - 1) if self.steps > 1 else math.inf

    def paused(self) -> _Pause:
        """A block whose time does not count."""
        return _Pause(self)


@dataclass
class _Pause:
    clock: Clock
    start: float = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.last += time.perf_counter() - self.start
