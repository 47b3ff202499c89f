"""Changes to recordings: what each does, that nothing leaves ±1, and that draws decide alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from groundup.data.audio_changes import AudioAugment, SpecAugment, changed, masks, noisy, played, shifted
from groundup.data.order import generator

RATE = 8000
ALL = AudioAugment(speed=0.1, shift_ms=50, gain_db=6, noise_db=(5, 30), masks=SpecAugment())


def tone(hz: float = 500, seconds: float = 0.5, loud: float = 0.5) -> NDArray[np.float32]:
    return (loud * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def pitch(wave: NDArray[np.float32]) -> float:
    """The loudest frequency in Hz."""
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 5000))
def test_a_change_follows_from_seed_epoch_and_index_and_stays_in_bounds(seed: int, epoch: int, index: int) -> None:
    wave = tone(loud=0.99)
    before = wave.copy()
    one, same = (changed(wave, ALL, RATE, generator(seed, epoch, index, 11)) for _ in range(2))
    assert np.array_equal(one, same)
    assert np.array_equal(wave, before), "what was given was written to"
    assert one.dtype == np.float32
    assert one.shape == wave.shape
    assert np.abs(one).max() <= 1
    for other in ((seed + 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)):
        assert not np.array_equal(one, changed(wave, ALL, RATE, generator(*other, 11)))


def test_faster_is_higher_and_shorter_around_the_middle() -> None:
    assert pitch(played(tone(), 1.25)) == pytest.approx(625, abs=4)
    assert pitch(played(tone(), 0.8)) == pytest.approx(400, abs=4)
    fast = played(tone(), 1.25)
    assert len(fast) == len(tone())
    assert not fast[:390].any()
    assert fast[420:-420].any()
    np.testing.assert_allclose(played(tone(), 1.0), tone(), atol=1e-6)


@given(st.integers(-60, 60))
def test_shifting_moves_and_lets_silence_in(later: int) -> None:
    wave = np.arange(1, 51, dtype=np.float32)
    found = shifted(wave, later)
    wanted = [wave[i - later] if 0 <= i - later < 50 else 0 for i in range(50)]
    assert found.tolist() == wanted


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_lies_as_far_below_as_was_asked_for(colour: float) -> None:
    wave = np.concatenate([np.zeros(4000, np.float32), tone()])
    noise = noisy(wave, 20, colour, np.random.default_rng(1)) - wave
    below = 10 * np.log10(np.square(tone()).mean() / np.square(noise).mean())
    assert below == pytest.approx(20, abs=0.01)
    power = np.square(np.abs(np.fft.rfft(noise)))
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(4, 11)]
    falls = -np.polyfit(range(len(octaves)), 10 * np.log10(octaves), 1)[0]
    assert falls == pytest.approx(10 * np.log10(2) * colour, abs=1.5)


def test_silence_stays_silent_but_for_nothing() -> None:
    silence = np.zeros(800, np.float32)
    assert not changed(silence, ALL, RATE, np.random.default_rng(0)).any()


def test_gain_is_in_decibels_and_even() -> None:
    how = AudioAugment(gain_db=6)
    gains = [
        20 * np.log10(np.abs(changed(tone(loud=0.1), how, RATE, generator(0, 0, i, 11))).max() / 0.1)
        for i in range(1000)
    ]
    assert max(map(abs, gains)) <= 6.01
    assert np.mean(gains) == pytest.approx(0, abs=0.4)
    assert np.std(gains) == pytest.approx(12 / np.sqrt(12), abs=0.2)


@given(st.integers(0, 10_000))
def test_masks_lie_within_and_are_no_longer_than_allowed(seed: int) -> None:
    how = SpecAugment(times=3, time=0.3, bands=1, band=0.5)
    times, bands = masks(how, np.random.default_rng(seed))
    assert times.shape == (3, 2)
    assert bands.shape == (1, 2)
    for spans, longest in ((times, 0.3), (bands, 0.5)):
        assert (spans >= 0).all()
        assert (spans <= 1).all()
        lengths = spans[:, 1] - spans[:, 0]
        assert (lengths >= 0).all()
        assert (lengths <= longest + 1e-6).all()


def test_a_section_that_changes_nothing_or_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        AudioAugment()
    with pytest.raises(ValueError, match="smaller number first"):
        AudioAugment(noise_db=(30, 5))
