"""Log-mel frames are those of a plain loop over the formulas, and the filters those of others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import audio_utils

from groundup.errors import UserError
from groundup.nn.mel import FLOOR, LogMel, masked, mel_filters, standardised
from groundup.nn.mel_bands import Mel, mel_of

PLAIN = Mel(standardise="none")


def by_hand(wave: NDArray[np.float64], mel: Mel, rate: int) -> NDArray[np.float64]:
    """(T,M): one frame, one frequency and one band after the other."""
    width, hop, points = mel.window(rate), mel.hop(rate), mel.transform(rate)
    padded = np.concatenate([np.zeros(width // 2), wave, np.zeros(width - width // 2)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    corners = np.linspace(mel_of(mel.low_hz), mel_of(mel.high_hz or rate / 2), mel.bands + 2)
    hz = [700 * (10 ** (corner / 2595) - 1) for corner in corners]
    frames = np.zeros((1 + len(wave) // hop, mel.bands))
    for t in range(len(frames)):
        piece = padded[t * hop : t * hop + width] * hann
        angles = -2j * np.pi * np.outer(np.arange(points // 2 + 1), np.arange(width)) / points
        power = np.abs(np.exp(angles) @ piece) ** 2
        for m in range(mel.bands):
            below, own, above = hz[m], hz[m + 1], hz[m + 2]
            for k, loud in enumerate(power):
                f = k * rate / points
                rise, fall = (f - below) / (own - below), (above - f) / (above - own)
                frames[t, m] += max(0.0, min(rise, fall)) * loud
    return np.log(frames + FLOOR)


@pytest.mark.parametrize(
    ("mel", "rate", "samples"),
    [
        (PLAIN, 8000, 900),
        (Mel(bands=12, window_ms=25, hop_ms=12.5, low_hz=60, high_hz=3000, standardise="none"), 8000, 801),
        (Mel(bands=7, window_ms=3.5, hop_ms=2, standardise="none"), 11_025, 300),
    ],
)
def test_frames_are_those_of_the_formulas(mel: Mel, rate: int, samples: int) -> None:
    wave = 0.3 * np.random.default_rng(3).standard_normal(samples)
    found = LogMel(mel, rate)(torch.tensor(wave[None], dtype=torch.float32))[0]
    assert found.shape == (mel.frames(rate, samples), mel.bands)
    np.testing.assert_allclose(found.numpy(), by_hand(wave, mel, rate), atol=2e-4, rtol=0)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_filters_are_those_of_transformers(rate: int) -> None:
    theirs = audio_utils.mel_filter_bank(
        num_frequency_bins=PLAIN.transform(rate) // 2 + 1,
        num_mel_filters=PLAIN.bands,
        min_frequency=PLAIN.low_hz,
        max_frequency=rate / 2,
        sampling_rate=rate,
        norm=None,
        mel_scale="htk",
    )
    np.testing.assert_allclose(mel_filters(PLAIN, rate).numpy(), theirs, atol=1e-6)


def test_frames_are_those_of_transformers() -> None:
    rate, wave = 16_000, 0.2 * np.random.default_rng(4).standard_normal(16_000)
    width = PLAIN.window(rate)
    theirs = audio_utils.spectrogram(
        np.concatenate([np.zeros(width // 2), wave, np.zeros(width)]),
        window=audio_utils.window_function(width, "hann"),
        frame_length=width,
        hop_length=PLAIN.hop(rate),
        fft_length=PLAIN.transform(rate),
        center=False,
        power=2.0,
        mel_filters=mel_filters(PLAIN, rate).numpy(),
        mel_floor=0.0,
    )
    ours = LogMel(PLAIN, rate)(torch.tensor(wave[None], dtype=torch.float32))[0]
    np.testing.assert_allclose(ours.numpy(), np.log(theirs.T + FLOOR)[: len(ours)], atol=1e-3, rtol=0)


def test_16_bits_and_real_numbers_give_the_same_frames_and_rows_do_not_touch() -> None:
    samples = torch.randint(-9000, 9000, (3, 4000), dtype=torch.int16)
    mel = LogMel(Mel(), 8000)
    assert torch.equal(mel(samples), mel(samples.float() / 32768))
    torch.testing.assert_close(mel(samples)[1:2], mel(samples[1:2]), atol=1e-5, rtol=0)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    rate, hz = 8000, 1000.0
    frames = LogMel(PLAIN, rate)(torch.sin(2 * math.pi * hz * torch.arange(rate) / rate)[None])[0]
    middles = np.linspace(mel_of(PLAIN.low_hz), mel_of(rate / 2), PLAIN.bands + 2)[1:-1]
    assert int(frames[50].argmax()) == int(np.abs(middles - mel_of(hz)).argmin())
    silent = LogMel(PLAIN, rate)(torch.zeros(1, rate))
    torch.testing.assert_close(silent, torch.full_like(silent, math.log(FLOOR)))
    assert LogMel(Mel(), rate)(torch.zeros(1, rate)).abs().max() < 0.01  # rounding, not blown up


def test_what_is_too_quiet_counts_as_silence() -> None:
    wave = torch.zeros(2, 8000)
    wave[:, 2000:5000] = torch.sin(torch.arange(3000) / 3) * torch.tensor([[0.5], [0.05]])
    plain = LogMel(PLAIN, 8000)(wave)
    found = LogMel(PLAIN.model_copy(update={"range_db": 30.0}), 8000)(wave)
    for one, before in zip(found, plain, strict=True):
        limit = before.max() - 3 * math.log(10)
        torch.testing.assert_close(one, before.clamp(min=float(limit)))
    assert torch.equal(found[0] == found[0].min(), found[1] == found[1].min()), "a quiet voice has the same silence"


def test_what_standardising_takes_away_makes_no_difference() -> None:
    frames = torch.randn(4, 30, 8)
    louder, other_microphone = frames + 3, frames + torch.randn(1, 1, 8)
    for how in ("example", "band"):
        made = standardised(frames, how)
        torch.testing.assert_close(made, standardised(louder, how), atol=1e-5, rtol=0)
        torch.testing.assert_close(made.square().mean((1, 2)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised(frames, "band"), standardised(other_microphone, "band"), atol=1e-5, rtol=0)
    assert standardised(frames, "none") is frames


def test_masks_hide_what_lies_between_their_ends() -> None:
    frames = torch.arange(2 * 10 * 4, dtype=torch.float32).reshape(2, 10, 4)
    times = torch.tensor([[[0.2, 0.4]], [[0.5, 0.5]]])
    bands = torch.tensor([[[0.0, 0.0], [0.75, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = masked(frames, times, bands)
    assert torch.equal(found[1], frames[1])
    assert (found[0, 2:4] == frames[0].mean()).all()
    assert (found[0, :, 3] == frames[0].mean()).all()
    assert torch.equal(found[0, 4:, :3], frames[0, 4:, :3])
    assert masked(frames, None, None) is frames


def test_bands_that_the_rate_cannot_give_are_explained() -> None:
    with pytest.raises(UserError, match="say nothing above 4000 Hz"):
        LogMel(Mel(high_hz=5000), 8000)
    with pytest.raises(UserError, match="narrower than the spectrum is fine"):
        LogMel(Mel(bands=400), 8000)
    with pytest.raises(ValueError, match="must be above low_hz"):
        Mel(low_hz=300, high_hz=200)
