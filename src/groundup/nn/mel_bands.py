"""What log-mel frames are made by: the settings, and what follows from them without a sample at hand."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from groundup.config import Section
from groundup.units import PositiveCount


class Mel(Section):
    """How samples become log-mel frames."""

    bands: PositiveCount = 40
    """Pitches that are told apart."""
    window_ms: float = Field(default=30.0, gt=0, le=1000)
    """Length of the window in milliseconds."""
    hop_ms: float = Field(default=10.0, gt=0, le=1000)
    """Milliseconds from one frame to the next."""
    low_hz: float = Field(default=20.0, ge=0)
    """Where the lowest band begins."""
    high_hz: float | None = Field(default=None, gt=0)
    """Where the highest band ends; at half the rate, above which samples say nothing, unless given."""
    range_db: float | None = Field(default=None, gt=0)
    """What lies more than so many decibels below the loudest number of a recording counts as that quiet: silence that
    was filled in then sounds like the silence of any microphone."""
    standardise: Literal["example", "band", "none"] = "band"
    """What is taken away from the frames of an example, and divided by their spread: the mean over all of them
    (`example`: how loud it is), or also that of each band (`band`: how the microphone colours it)."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high_hz is not None and self.high_hz <= self.low_hz:
            raise ValueError(f"high_hz {self.high_hz} must be above low_hz {self.low_hz}")
        return self

    def window(self, rate: int) -> int:
        """Samples of the window."""
        return max(1, round(self.window_ms * rate / 1000))

    def hop(self, rate: int) -> int:
        """Samples from one frame to the next."""
        return max(1, round(self.hop_ms * rate / 1000))

    def frames(self, rate: int, samples: int) -> int:
        """Frames of so many samples: one stands on the first sample, and one on each hop after it."""
        return 1 + samples // self.hop(rate)

    def transform(self, rate: int) -> int:
        """Points of the Fourier transform: a power of two of at least twice the window, filled up with zeros, so that
        no band falls between two frequencies."""
        return int(2 ** math.ceil(math.log2(2 * self.window(rate))))


def mel_of(hz: float) -> float:
    """A frequency on the scale of pitch: 2595 log10(1 + f / 700) (O'Shaughnessy 1987; the formula of HTK)."""
    return 2595.0 * math.log10(1.0 + hz / 700.0)
