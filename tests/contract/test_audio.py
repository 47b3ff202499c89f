"""Recordings: what is read of WAV and FLAC files, what is refused, and what becomes of rate, length and silence."""

from __future__ import annotations

import base64
import io
import math
import struct
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from groundup.data.audio import Sound, decode, file_of, fit, named_groups, rate_of, to_wav, trimmed
from groundup.errors import DataError, MissingExtra

pytestmark = pytest.mark.smoke

RATE = 8000


def tone(hz: float = 440.0, seconds: float = 0.1, rate: int = RATE, loud: float = 0.5) -> NDArray[np.int16]:
    places = np.arange(round(seconds * rate)) / rate
    return np.rint(loud * 32767 * np.sin(2 * np.pi * hz * places)).astype(np.int16)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def layout(
    codec: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, more: bytes = b""
) -> tuple[bytes, bytes]:
    frame = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", codec, channels, rate, rate * frame, frame, bits) + more


def test_16_bits_of_one_channel_come_back_bit_for_bit() -> None:
    samples = np.random.default_rng(1).integers(-32768, 32768, 500).astype(np.int16)
    assert np.array_equal(decode(to_wav(samples, RATE), "a.wav"), samples)
    assert np.array_equal(decode(to_wav(samples, RATE), "a.wav", rate=RATE), samples)
    assert to_wav(samples, RATE) == to_wav(samples.copy(), RATE)


def test_what_is_written_is_what_the_standard_library_reads_and_writes() -> None:
    samples, file = tone(), io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(RATE)
        opened.writeframes(samples.tobytes())
    assert to_wav(samples, RATE) == file.getvalue()
    assert rate_of(to_wav(samples, 11_025), "a.wav") == 11_025


@pytest.mark.parametrize(
    ("codec", "bits", "written"),
    [
        (1, 8, lambda x: (np.rint(x * 128) + 128).clip(0, 255).astype(np.uint8).tobytes()),
        (1, 16, lambda x: np.rint(x * 2**15).astype("<i2").tobytes()),
        (1, 24, lambda x: np.rint(x * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()),
        (1, 32, lambda x: np.rint(x * 2**31).astype("<i4").tobytes()),
        (3, 32, lambda x: x.astype("<f4").tobytes()),
        (3, 64, lambda x: x.astype("<f8").tobytes()),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_kind_of_sample_is_read_and_channels_are_averaged(
    codec: int, bits: int, written: Any, channels: int
) -> None:
    wanted = 0.5 * np.sin(np.arange(200) / 7)
    apart = np.linspace(-0.3, 0.3, channels) if channels > 1 else np.zeros(1)  # their mean is nothing
    data = riff(layout(codec, channels, bits=bits), (b"data", written((wanted[:, None] + apart).reshape(-1))))
    found = decode(data, "a.wav")
    assert found.dtype == np.int16
    assert np.abs(found / 32768 - wanted).max() < (1 / 128 if bits == 8 else 1 / 32000)


def test_the_extensible_header_other_chunks_and_an_unknown_length_are_understood() -> None:
    samples = tone()
    more = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + b"\0" * 14
    data = riff((b"LIST", b"odd"), layout(0xFFFE, more=more), (b"data", samples.tobytes()), (b"id3 ", b"x"))
    assert np.array_equal(decode(data, "a.wav"), samples)
    streamed = bytearray(to_wav(samples, RATE))
    streamed[40:44] = b"\xff" * 4
    assert np.array_equal(decode(bytes(streamed), "a.wav"), samples)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"ID3 an MP3 file, perhaps", "no WAV or FLAC file"),
        (b"RIFF", "no WAV or FLAC file"),
        (to_wav(np.zeros(0, np.int16), RATE), "a recording without samples"),
        (riff(layout()), "a recording without samples"),
        (riff((b"data", b"\0" * 10)), "a broken WAV header"),
        (riff((b"fmt ", b"\1\0"), (b"data", b"\0" * 10)), "a broken WAV header"),
        (riff(layout(channels=0), (b"data", b"\0" * 10)), "a broken WAV header"),
        (riff(layout(rate=100), (b"data", b"\0" * 10)), "an impossible rate"),
        (riff(layout(rate=4_000_000), (b"data", b"\0" * 10)), "an impossible rate"),
        (riff(layout(codec=6, bits=8), (b"data", b"\0" * 10)), "samples of a kind that is not read"),
        (riff(layout(codec=3, bits=16), (b"data", b"\0" * 10)), "samples of a kind that is not read"),
        (to_wav(tone(), RATE)[:-1], "cut short"),
        (to_wav(tone(), RATE)[:50], "cut short"),
        (riff(layout(3, bits=32), (b"data", struct.pack("<2f", 0.5, math.nan))), "a sample that is no number"),
        (riff(layout(3, bits=64), (b"data", struct.pack("<2d", 0.5, math.inf))), "a sample that is no number"),
        (riff(layout(bits=8, rate=4000), (b"data", b"\x80" * (4000 * 601))), "too long"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line_with_the_file(data: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(data, "clips/a.wav")
    kind = caught.value.what.partition(" (")[0]
    assert (kind, caught.value.where) == (reason, "clips/a.wav")
    assert "\n" not in caught.value.what


@settings(deadline=None)  # the first of them imports the filter
@given(st.binary(max_size=80), st.integers(0, 44))
def test_no_bytes_raise_anything_else(noise: bytes, place: int) -> None:
    whole = to_wav(tone(seconds=0.01), RATE)
    for data in (noise, whole[:12] + noise, whole[:place] + noise + whole[place + len(noise) :]):
        try:
            decode(data, "a.wav", rate=4000, seconds=0.01)
        except DataError as error:
            assert error.where == "a.wav"


def test_a_header_that_claims_hours_costs_nothing() -> None:
    data = bytearray(to_wav(tone(), RATE))
    data[40:44] = struct.pack("<I", 0xFFFF_FFF0)
    with pytest.raises(DataError, match="cut short"):
        decode(bytes(data), "a.wav")


@pytest.mark.parametrize("rate", [4000, 11_025, 16_000, 22_050, 44_100, 48_000, 12_347])
def test_a_tone_keeps_its_pitch_at_another_rate(rate: int) -> None:
    found = decode(to_wav(tone(1000, 0.5, rate), rate), "a.wav", rate=RATE)
    assert len(found) == math.ceil(round(0.5 * rate) * RATE / rate)
    middle = found[1000:3000] / 32767
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(1000, 3000) / RATE)
    assert np.abs(middle - wanted).max() < 0.01


def test_what_a_lower_rate_cannot_hold_is_filtered_out_not_folded_back() -> None:
    found = decode(to_wav(tone(7000, 0.5, 16_000), 16_000), "a.wav", rate=RATE)
    assert np.abs(found[200:-200]).max() < 0.002 * 32768


def test_too_long_is_cut_and_too_short_filled_up() -> None:
    samples = np.arange(1, 11, dtype=np.int16)
    assert fit(samples, 4).tolist() == [4, 5, 6, 7]
    assert fit(samples, 4, "start").tolist() == [1, 2, 3, 4]
    assert fit(samples[:3], 6).tolist() == [0, 1, 2, 3, 0, 0]
    assert fit(samples[:3], 6, "start").tolist() == [1, 2, 3, 0, 0, 0]
    assert fit(samples[:0], 2).tolist() == [0, 0]
    assert len(decode(to_wav(tone(), RATE), "a.wav", seconds=0.25, rate=16_000)) == 4000


def test_silence_at_the_ends_goes_and_silence_within_stays() -> None:
    silence = np.zeros(800, np.int16)
    spoken = np.concatenate([tone(), silence, tone()])
    found = trimmed(np.concatenate([silence, spoken, silence]), RATE)
    assert np.array_equal(found, spoken)
    assert np.array_equal(trimmed(silence, RATE), silence)
    assert len(trimmed(silence[:0], RATE)) == 0


def test_flac_is_read_like_wav() -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.random.default_rng(2).integers(-9000, 9000, 4000).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16")
    assert np.array_equal(decode(file.getvalue(), "a.flac"), samples)
    for broken in (file.getvalue()[:300], b"fLaC" + b"\0" * 60, file.getvalue()[:-500]):
        with pytest.raises(DataError, match=r"damaged FLAC|cut short|too long|samples"):
            decode(broken, "a.flac")
    hours = io.BytesIO()
    soundfile.write(hours, np.zeros(4000 * 700, np.int16), 4000, format="FLAC", subtype="PCM_16")
    assert len(hours.getvalue()) < 200_000
    with pytest.raises(DataError, match="too long"):
        decode(hours.getvalue(), "a.flac")


def test_flac_without_soundfile_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtra, match="speech"):
        decode(b"fLaC and more", "a.flac")


def test_a_recording_is_given_as_bytes_base_64_or_a_path(tmp_path: Path) -> None:
    data = to_wav(tone(), RATE)
    (tmp_path / "a.wav").write_bytes(data)
    text = base64.b64encode(data).decode()
    for held in (data, bytearray(data), text, f"data:audio/wav;base64,{text}", tmp_path / "a.wav"):
        assert file_of(held, "row 3") == data
    with pytest.raises(DataError, match="a file that cannot be read"):
        file_of(tmp_path / "b.wav", "row 3")
    for text in (str(tmp_path / "a.wav"), None, 7):  # no text names a file
        with pytest.raises(DataError, match=r"row 3: .*no recording") as caught:
            file_of(text, "row 3")
        assert "pathlib.Path" in caught.value.fix


def test_the_path_says_class_and_speaker() -> None:
    digits = r"(?P<label>\d)_(?P<speaker>\w+)_\d+"
    assert named_groups("fsdd.zip!recordings/7_theo_3.wav", digits) == {"label": "7", "speaker": "theo"}
    assert named_groups("recordings/x7_theo_3.wav", digits) is None
    assert named_groups("sc/yes/0a7c2a8d_nohash_0.wav", None) == {"label": "yes", "speaker": "0a7c2a8d"}
    assert named_groups("sc/yes/first.wav", None) == {"label": "yes", "speaker": None}
    assert named_groups("first.wav", None) is None
    assert Sound(file_name=digits).columns == ("audio", "label", "speaker") == Sound().columns
