"""Log-mel frames: how loud a sound is at each pitch, a hundred times a second.

A window slides over the samples; of each stretch under it the power at every frequency is summed into bands that
are as wide as pitches the ear tells apart (narrow below, wide above), and the logarithm is taken. The filters are
fixed: they are tables, not weights, and follow from the settings.

Frames are made by the task, of whole batches, and models read them as `features`: so every network of features can
hear, what it listens to can be shown as a picture of time and pitch, and no runtime needs a Fourier transform. The
settings are the task's; they travel with the model, so that no one gives it frames made otherwise.

Axes: B examples, S samples, W samples of a window, T frames, F frequencies, M bands, N masks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.nn.mel_bands import Mel, mel_of

FULL = 32768.0
"""What the largest sample of 16 bits stands for: 1."""
FLOOR = 1e-6
"""Added to the power of a band before its logarithm is taken, so that silence has one: somewhat above the power of
rounding samples to 16 bits."""


class LogMel(nn.Module):
    """Samples to log-mel frames, by fixed tables."""

    hann: Tensor
    filters: Tensor

    def __init__(self, mel: Mel, rate: int) -> None:
        """Raises UserError for bands that the rate cannot give."""
        super().__init__()
        self.mel, self.width, self.hop = mel, mel.window(rate), mel.hop(rate)
        self.points, self.standardise = mel.transform(rate), mel.standardise
        self.quietest = None if mel.range_db is None else mel.range_db * math.log(10) / 10
        self.register_buffer("hann", torch.hann_window(self.width, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", mel_filters(mel, rate), persistent=False)

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """(B,S) samples, int16 or real in ±1, to (B,T,M) float32: logarithms of power, then standardised.

        Frame t is centred on sample t · hop; beyond the ends there is silence. Float32 throughout, also under
        autocast: a logarithm of few digits would lose the quiet sounds.
        """
        with torch.autocast(waveform_BS.device.type, enabled=False):
            wave_BS = waveform_BS.float() / (FULL if waveform_BS.dtype == torch.int16 else 1.0)
            before = self.width // 2
            padded_BS = F.pad(wave_BS, (before, self.width - before))
            frames_BTW = padded_BS.unfold(1, self.width, self.hop) * self.hann
            spectrum_BTF = torch.fft.rfft(frames_BTW, n=self.points)
            power_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
            frames_BTM = (power_BTF @ self.filters + FLOOR).log()
            if self.quietest is not None:
                frames_BTM = frames_BTM.maximum(frames_BTM.amax((1, 2), keepdim=True) - self.quietest)
            return standardised(frames_BTM, self.standardise)


def mel_filters(mel: Mel, rate: int) -> Tensor:
    """(F,M) float32: what each frequency gives to each band.

    Triangles whose corners are evenly spaced in mel; each rises from the middle of the band below to 1 at its own and
    falls to the middle of the band above (Davis & Mermelstein 1980). Raises UserError for bands above half the
    rate, and for one so narrow that no frequency falls into it.
    """
    high = mel.high_hz or rate / 2
    if high > rate / 2 or high <= mel.low_hz:
        what = (
            f"bands from {mel.low_hz:g} to {high:g} Hz, and {rate} samples a second say nothing above {rate / 2:g} Hz"
        )
        raise UserError(what, where="mel.high_hz", fix="leave `high_hz` out, or take the recordings at a higher rate")
    corners = torch.linspace(mel_of(mel.low_hz), mel_of(high), mel.bands + 2, dtype=torch.float64)
    hz_M = 700.0 * (10.0 ** (corners / 2595.0) - 1.0)  # back from mel
    points = mel.transform(rate)
    hz_F = torch.arange(points // 2 + 1, dtype=torch.float64) * (rate / points)
    left, middle, right = hz_M[:-2], hz_M[1:-1], hz_M[2:]
    rise_FM = (hz_F[:, None] - left) / (middle - left)
    fall_FM = (right - hz_F[:, None]) / (right - middle)
    filters_FM = torch.minimum(rise_FM, fall_FM).clamp(min=0.0)
    empty = (filters_FM.sum(0) == 0).nonzero().flatten()
    if len(empty):
        band = int(empty[0])
        what = f"band {band + 1} of {mel.bands}, around {hz_M[band + 1]:.0f} Hz, is narrower than the spectrum is fine"
        raise UserError(what, where="mel.bands", fix="take fewer `bands`, or a longer `window_ms`")
    return filters_FM.float()


def standardised(frames_BTM: Tensor, how: str) -> Tensor:
    """Frames less the mean of their example (of each of its bands), divided by the spread of what is left.

    Less the mean of each band is cepstral mean normalisation before the cosine transform (Atal 1974): a microphone
    or a room multiplies every spectrum alike, which in logarithms is a constant.
    """
    if how == "none":
        return frames_BTM
    centred_BTM = frames_BTM - frames_BTM.mean(1 if how == "band" else (1, 2), keepdim=True)
    return centred_BTM / (centred_BTM.square().mean((1, 2), keepdim=True) + 1e-5).sqrt()


def masked(frames_BTM: Tensor, time_masks_BN2: Tensor | None, band_masks_BN2: Tensor | None) -> Tensor:
    """Frames in which stretches of time and of pitch are hidden behind the example's mean.

    A mask is (begin, end) in shares of the whole, so who draws it needs to know no number of frames; one whose end is
    not above its begin hides nothing. Park et al. 2019, §2 (SpecAugment without the warp).
    """
    mean_B11 = frames_BTM.mean((1, 2), keepdim=True)
    for axis, masks_BN2 in ((1, time_masks_BN2), (2, band_masks_BN2)):
        if masks_BN2 is None:
            continue
        count = frames_BTM.shape[axis]
        middles = (torch.arange(count, device=frames_BTM.device) + 0.5) / count
        inside_BNX = (middles >= masks_BN2[..., :1]) & (middles < masks_BN2[..., 1:])
        hidden_BX = inside_BNX.any(1)
        frames_BTM = torch.where(hidden_BX.unsqueeze(3 - axis), mean_B11, frames_BTM)
    return frames_BTM
