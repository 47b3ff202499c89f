"""Training recordings that sound different in every epoch: faster, earlier, louder, noisier, with gaps.

What is changed is drawn from a generator of each row's own, which follows from (seed, epoch, index): micro-batches,
workers and resuming change nothing. Samples are changed here; SpecAugment's masks are only drawn here, as shares of
time and of pitch, and the model lays them over the frames it makes (`nn/mel.py::masked`).

Axes: S samples, N masks.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from groundup.config import Section
from groundup.units import Count, Share

Wave = NDArray[np.float32]
Masks = NDArray[np.float32]
DARKEST = 2.0
"""The largest exponent of noise whose power falls as 1 / f^a: 0 is white, 1 pink, 2 brown."""


class SpecAugment(Section):
    """Stretches of time and of pitch that are hidden (Park et al. 2019, §2, without the warp)."""

    times: Count = 2
    """Stretches of time."""
    time: Share = 0.2
    """The longest of them, as a share of the recording."""
    bands: Count = 2
    """Stretches of pitch."""
    band: Share = 0.2
    """The widest of them, as a share of the bands."""


class AudioAugment(Section):
    """Changes to training recordings, drawn anew for each in every epoch, in the order of these keys."""

    speed: Annotated[Share, Field(le=0.5)] = 0.0
    """Play it up to so much faster or slower, and so higher or deeper, around its middle (Ko et al. 2015)."""
    shift_ms: float = Field(default=0.0, ge=0)
    """Move it up to so many milliseconds earlier or later; silence comes in."""
    gain_db: float = Field(default=0.0, ge=0, le=60)
    """Make it up to so many decibels louder or quieter; what is then too loud is cut off."""
    noise_db: tuple[float, float] | None = None
    """Put noise of a random colour, from white to brown, under it: so many decibels below it at least and at most."""
    masks: SpecAugment | None = None
    """Hide stretches of time and of pitch."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.noise_db is not None and self.noise_db[0] > self.noise_db[1]:
            raise ValueError(f"{list(self.noise_db)} is no range: write the smaller number first")
        if not (self.speed or self.shift_ms or self.gain_db or self.noise_db or self.masks):
            raise ValueError("nothing is left to change recordings by: give `speed`, `shift_ms`, `masks`, …")
        return self


def changed(wave_S: Wave, how: AudioAugment, rate: int, draw: np.random.Generator) -> Wave:
    """Samples in ±1 after every change but the masks; those given stay as they are."""
    if how.speed:
        wave_S = played(wave_S, 1 + draw.uniform(-how.speed, how.speed))
    if how.shift_ms:
        most = round(how.shift_ms * rate / 1000)
        wave_S = shifted(wave_S, int(draw.integers(-most, most + 1)))
    if how.gain_db:
        wave_S = wave_S * np.float32(10 ** (draw.uniform(-how.gain_db, how.gain_db) / 20))
    if how.noise_db is not None:
        wave_S = noisy(wave_S, draw.uniform(*how.noise_db), draw.uniform(0, DARKEST), draw)
    return np.asarray(np.clip(wave_S, -1, 1), np.float32)


def played(wave_S: Wave, speed: float) -> Wave:
    """The recording played so many times as fast around its middle: as long as before, silence beyond its ends."""
    middle = (len(wave_S) - 1) / 2
    places = middle + (np.arange(len(wave_S)) - middle) * speed
    return np.asarray(np.interp(places, np.arange(len(wave_S)), wave_S, left=0, right=0), np.float32)


def shifted(wave_S: Wave, later: int) -> Wave:
    """The recording moved by so many samples, earlier if negative; silence comes in."""
    moved = np.zeros_like(wave_S)
    if abs(later) >= len(wave_S):
        return moved
    if later >= 0:
        moved[later:] = wave_S[: len(wave_S) - later]
    else:
        moved[:later] = wave_S[-later:]
    return moved


def noisy(wave_S: Wave, below_db: float, colour: float, draw: np.random.Generator) -> Wave:
    """The recording with noise whose power falls as 1 / f^colour, so many decibels below that of its sound.

    The power of its sound is the mean over samples that are not zero, so that silence filled in does not count.
    """
    power = float(np.square(wave_S, dtype=np.float64).sum()) / max(1, int(np.count_nonzero(wave_S)))
    spectrum = np.fft.rfft(draw.standard_normal(len(wave_S)))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (colour / 2)
    spectrum[0] = 0  # no constant part
    noise_S = np.fft.irfft(spectrum, len(wave_S))
    loudness = float(np.square(noise_S).mean())
    if not power or not loudness:
        return wave_S
    return np.asarray(wave_S + noise_S * np.sqrt(power / loudness / 10 ** (below_db / 10)), np.float32)


def masks(how: SpecAugment, draw: np.random.Generator) -> tuple[Masks, Masks]:
    """Masks of time and of pitch, (N,2) each: begin and end as shares of the whole.

    The length is even between nothing and the longest, the place even among those where it fits (Park et al. 2019).
    """
    return _spans(how.times, how.time, draw), _spans(how.bands, how.band, draw)


def _spans(count: int, longest: float, draw: np.random.Generator) -> Masks:
    lengths = draw.uniform(0, longest, count)
    begins = draw.uniform(0, 1, count) * (1 - lengths)
    return np.stack([begins, begins + lengths], 1).astype(np.float32)
