"""Recordings: what users' files hold, as samples of one rate and length; and samples written as WAV.

`decode` is the only way from a file to samples: prepare, encoding and serving all call it, so a model hears in
use what it heard in training. WAV is read here (PCM of 8 to 32 bits, floating point, any number of channels);
FLAC by the package soundfile. Nothing is allocated on the word of a header: how much it claims is compared with
what is there, and with what a recording may have, first.

Axes: S samples.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import struct
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from groundup.config import Section
from groundup.errors import DataError, MissingExtra
from groundup.units import PositiveCount

if TYPE_CHECKING:
    from groundup.data.sources import Source

Samples = NDArray[np.int16]
Wave = NDArray[np.float64]
Place = Literal["centre", "start"]

RATES = (4_000, 192_000)
"""Samples a second, the least and the most: what lies outside is no recording but a broken header."""
LARGEST_FILE = 32 << 20
"""Bytes of a file: as many as prepare reads of one."""
LONGEST_S = 600.0
"""Seconds that a recording may last. Cut longer ones into pieces first: a model hears a second or ten."""
MOST_SAMPLES = 1 << 26
"""Samples of all channels that one file may hold, so that a small packed one cannot fill the memory."""
QUIET_DB = 40.0
"""What stays so far below the loudest stretch of a recording, at its ends, is taken for silence."""
STRETCH_S = 0.01
"""Seconds over which loudness is measured where silence is looked for."""
FULL = 32768.0
"""What the largest sample of 16 bits stands for: 1."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
CODECS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "ADPCM", 80: "MPEG", 85: "MP3"}
UNKNOWN = 0xFFFF_FFFF
"""What stands for the length of a WAV file where it was not known when the header was written."""
FOLDERS = r"(?P<label>[^/]+)/(?:(?P<speaker>[^/]+)_nohash_\d+|[^/]+)"
"""How files are named where a recipe does not say: CLASS/SPEAKER_nohash_N.wav, or CLASS/anything.wav."""


class Sound(Section):
    """What recordings are brought to, and what their paths say of them."""

    rate: Annotated[PositiveCount, Field(ge=RATES[0], le=RATES[1])] = 16_000
    """Samples a second. 8000 hold a voice as a telephone does, 16,000 all of it."""
    file_name: str | None = None
    """A regular expression for the end of a path, without its suffix, whose named groups become columns:
    `(?P<label>[0-9])_(?P<speaker>[a-z]+)_[0-9]+`. Unless given the folder is the label, and in files named
    SPEAKER_nohash_N the speaker is known."""

    @field_validator("file_name")
    @classmethod
    def _has_named_groups(cls, value: str | None) -> str | None:
        try:
            groups = re.compile(value or FOLDERS).groupindex
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        if not groups:
            raise ValueError(f"{value!r} has no named group, such as (?P<label>[a-z]+)")
        return value

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row of a recording has beside its text: the recording, and what its path says."""
        return ("audio", *re.compile(self.file_name or FOLDERS).groupindex)


class _Format(NamedTuple):
    """How the samples of a file are written."""

    codec: int
    channels: int
    rate: int
    width: int
    """Bytes of a sample."""


def decode(
    data: bytes,
    name: str,
    *,
    rate: int | None = None,
    seconds: float | None = None,
    place: Place = "centre",
    trim: bool = False,
) -> Samples:
    """The samples of a WAV or FLAC file, (S,) int16: its channels averaged, at `rate`, `seconds` long.

    Without `rate` or `seconds` they are the file's own. With `trim`, silence at both ends goes first; what is too
    long is then cut and what is too short filled up with silence, around the `centre` or from the `start` on. A
    file of one channel and 16 bits that has the rate already comes back bit for bit.

    Raises DataError, naming the file, for one that is none, is empty, damaged, too long or of an impossible rate;
    MissingExtra for FLAC without soundfile.
    """
    try:
        found_rate, held = _read(data)
    except ValueError as error:
        raise DataError(str(error), where=name, fix="write it as WAV of 16 bits, or leave it out") from error
    rate = rate or found_rate
    samples: Samples = held
    if held.dtype != np.int16 or rate != found_rate:
        samples = _as_int16(_resampled(held, found_rate, rate))
    if trim:
        samples = trimmed(samples, rate)
    return samples if seconds is None else fit(samples, round(seconds * rate), place)


def file_of(given: Any, name: str) -> bytes:
    """The bytes of a recording's file, however it is given: as bytes, in base 64 (what JSON can carry), or as a path.

    A path must be a `Path` object, so that no text that somebody sends can name a file of this machine. Raises
    DataError, naming the row, for what is none of these, and for a file that cannot be read or is too large.
    """
    fix = "give the bytes of a WAV or FLAC file, base 64 of them, or a pathlib.Path"
    try:
        if isinstance(given, bytes | bytearray | memoryview):
            return bytes(given)
        if isinstance(given, PathLike):
            with Path(given).open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
            if len(data) > LARGEST_FILE:
                raise DataError(f"a file of more than {LARGEST_FILE >> 20} MiB ({given})", where=name, fix=fix)
            return data
        if isinstance(given, str):
            return base64.b64decode(given.partition(",")[2] if given.startswith("data:") else given, validate=True)
    except OSError as error:
        raise DataError(f"a file that cannot be read ({given}: {error.strerror})", where=name, fix=fix) from error
    except ValueError as error:
        raise DataError("a text that is no recording in base 64", where=name, fix=fix) from error
    raise DataError(f"no recording but a {type(given).__name__}", where=name, fix=fix)


def rate_of(data: bytes, name: str) -> int:
    """Samples a second of a WAV file, by its header. Raises DataError, naming the file, if it is none."""
    try:
        return _layout(_chunks(data)).rate
    except ValueError as error:
        raise DataError(str(error), where=name, fix="prepare the recordings with `kind: audio`") from error


def to_wav(samples: Samples, rate: int) -> bytes:
    """A WAV file of one channel and 16 bits: the same samples and rate always give the same bytes."""
    data = samples.astype("<i2").tobytes()
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE" + layout + struct.pack("<4sI", b"data", len(data)) + data
    )


def fit(samples: Samples, count: int, place: Place = "centre") -> Samples:
    """(count,): samples cut, or filled up with silence, around the `centre` or from the `start` on."""
    spare = len(samples) - count
    before = abs(spare) // 2 if place == "centre" else 0
    if spare >= 0:
        return samples[before : before + count]
    return np.pad(samples, (before, -spare - before))


def trimmed(samples: Samples, rate: int, quiet_db: float = QUIET_DB) -> Samples:
    """The samples from the first stretch that is not silent to the last; all of them if none is louder than another."""
    width = max(1, round(STRETCH_S * rate))
    count = -(-len(samples) // width)
    stretches = np.pad(samples.astype(np.float64), (0, count * width - len(samples))).reshape(count, width)
    power = (stretches**2).mean(1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-quiet_db / 10))
    return samples[loud[0] * width : (loud[-1] + 1) * width] if len(loud) else samples


def read(data: bytes, name: str, source: Source) -> dict[str, Any] | str:
    """The row of a file of kind `audio`, or why it cannot be used.

    `audio` is a WAV file of one channel and 16 bits at the source's rate, `text` the digest of it; what the path
    says, such as `label` and `speaker`, are columns.
    """
    sound = source.audio or Sound()
    groups = named_groups(name, sound.file_name)
    if groups is None:
        return (
            f"a path that does not fit `file_name` ({name})"
            if sound.file_name
            else "a path without a folder that names the class"
        )
    try:
        wav = to_wav(decode(data, name, rate=sound.rate), sound.rate)
    except DataError as error:
        return error.what
    return {"text": hashlib.sha256(wav).hexdigest(), "audio": wav, **groups}


def named_groups(name: str, pattern: str | None) -> Mapping[str, str | None] | None:
    """What the path of a file says of it, by the named groups of an expression; None if it does not fit.

    The expression is for the end of the path, from the beginning of a folder's or the file's name on, without the
    suffix.
    """
    path = re.sub(r"\.\w+$", "", name.replace("!", "/"))
    found = re.search(rf"(?:^|/)(?:{pattern or FOLDERS})$", path)
    return found.groupdict() if found else None


def _read(data: bytes) -> tuple[int, NDArray[Any]]:
    """Rate and samples: int16 as they are where the file has one channel of them, otherwise real numbers in ±1.

    Raises ValueError with the reason why there are none.
    """
    if not data:
        raise ValueError("empty file")
    if len(data) > LARGEST_FILE:
        raise ValueError(f"a file too large ({len(data)} bytes; {LARGEST_FILE} are the most)")
    rate, wave = _read_flac(data) if data[:4] == b"fLaC" else _read_wav(data)
    if not len(wave):
        raise ValueError("a recording without samples")
    return rate, wave


def _read_wav(data: bytes) -> tuple[int, NDArray[Any]]:
    chunks = _chunks(data)
    layout = _layout(chunks)
    if "data" not in chunks:
        raise ValueError("a recording without samples (no chunk named data)")
    held, frame = chunks["data"], layout.channels * layout.width
    count = len(held) // frame
    _require_size(count, layout.channels, layout.rate)
    raw = np.frombuffer(held, np.uint8, count * frame)
    if layout.codec == PCM and layout.width == 2 and layout.channels == 1:
        return layout.rate, raw.view("<i2").astype(np.int16)
    return layout.rate, _as_real(raw, layout).reshape(count, layout.channels).mean(1)


def _chunks(data: bytes) -> dict[str, memoryview]:
    """The first chunk of each name in a RIFF file. Raises ValueError for another file, and for one cut short."""
    if data[:4] in (b"RIFX", b"RF64") or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("no WAV or FLAC file")
    found: dict[str, memoryview] = {}
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        left = len(data) - at - 8
        if name == b"data" and size == UNKNOWN:
            size = left
        if size > left:
            raise ValueError(f"cut short ({left} bytes where the header promises {size})")
        found.setdefault(name.decode("latin-1").strip(), memoryview(data)[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return found


def _layout(chunks: Mapping[str, memoryview]) -> _Format:
    """How samples are written, by the chunk `fmt`. Raises ValueError for what is not read, or contradicts itself."""
    held = chunks.get("fmt", b"")
    if len(held) < 16:
        raise ValueError("a broken WAV header (no whole chunk named fmt)")
    codec, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", held)
    if codec == EXTENSIBLE and len(held) >= 26:
        codec = struct.unpack_from("<H", held, 24)[0]
    if codec not in (PCM, FLOAT):
        raise ValueError(f"samples of a kind that is not read (WAV format {codec}, {CODECS.get(codec, 'unknown')})")
    width = frame // channels if channels else 0
    if not channels or frame != width * channels or not 0 < bits <= 8 * width:
        raise ValueError(f"a broken WAV header ({channels} channels of {bits} bits in {frame} bytes)")
    if width not in ((1, 2, 3, 4) if codec == PCM else (4, 8)):
        raise ValueError(f"samples of a kind that is not read (WAV format {codec} of {8 * width} bits)")
    _require_rate(rate)
    return _Format(codec, channels, rate, width)


def _as_real(raw: NDArray[np.uint8], layout: _Format) -> Wave:
    """Samples of all channels in turn, (frames * channels,), as real numbers in ±1."""
    if layout.codec == FLOAT:
        wave = raw.view(f"<f{layout.width}").astype(np.float64)
        if not np.isfinite(wave).all():
            raise ValueError("a sample that is no number (NaN or infinite)")
        return np.clip(wave, -1.0, 1.0)
    if layout.width == 1:
        return (raw.astype(np.float64) - 128) / 128
    if layout.width == 3:  # as the upper three bytes of four
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        return wide.reshape(-1).view("<i4") / 2.0**31
    return raw.view(f"<i{layout.width}") / 2.0 ** (8 * layout.width - 1)


def _read_flac(data: bytes) -> tuple[int, Wave]:
    try:
        import soundfile  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("soundfile", "speech", needed_for="reading FLAC") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _require_rate(file.samplerate)
            _require_size(file.frames, file.channels, file.samplerate)
            promised = file.frames
            wave = file.read(dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"a damaged FLAC file ({str(error).rstrip('.')})") from error
    if len(wave) < promised:
        raise ValueError(f"cut short ({len(wave)} samples where the header promises {promised})")
    return int(file.samplerate), np.asarray(wave.mean(1))


def _require_rate(rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"an impossible rate ({rate} samples a second; {RATES[0]} to {RATES[1]} are read)")


def _require_size(count: int, channels: int, rate: int) -> None:
    if count > LONGEST_S * rate or count * channels > MOST_SAMPLES:
        found = f"{count / rate:.0f} s, {count * channels} samples"
        raise ValueError(f"too long ({found}; {LONGEST_S:.0f} s and {MOST_SAMPLES} samples are the most)")


def _resampled(wave: NDArray[Any], old: int, new: int) -> Wave:
    """The samples at another rate, as real numbers in ±1.

    By a polyphase filter, a sinc under a Kaiser window (beta 5), which lets nothing above half the lower rate
    through (Crochiere & Rabiner 1983, §3.3).
    """
    real: Wave = wave / FULL if wave.dtype == np.int16 else wave
    if old == new:
        return real
    from scipy.signal import resample_poly  # type: ignore[import-untyped]  # takes a moment to import

    shared = math.gcd(old, new)
    return np.asarray(resample_poly(real, new // shared, old // shared))


def _as_int16(wave: Wave) -> Samples:
    """Real numbers in ±1 as 16 bits, rounded; what is louder is cut off."""
    return np.clip(np.rint(wave * FULL), -FULL, FULL - 1).astype(np.int16)
