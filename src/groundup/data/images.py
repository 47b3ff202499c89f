"""Pictures: files become arrays of pixels, in the same way wherever groundup reads one.

`decode` is the only reader of image files: `prepare` calls it for the files of a source, tasks for the pictures of
a corpus, the server for what a client sends. It trusts nobody: sizes are looked at before anything is unpacked,
and a file that is broken, moving, or of an unknown kind is refused with a reason in one line.

A corpus holds pictures as PNG files written by `to_png`. These few kinds of PNG are read back by NumPy alone,
several times faster than by Pillow; every other file needs Pillow.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, WithJsonSchema

from groundup.config import Section
from groundup.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]
"""Shape (height, width, channels), with 1 channel (grey) or 3 (red, green, blue)."""
Fit = Literal["crop", "pad", "stretch"]

MOST_PIXELS = 50_000_000
"""Pixels a picture may have; a file that promises more is refused before it is unpacked."""
LARGEST_FILE = 32 << 20
"""Bytes an image file may have."""
LONGEST_SIDE = 4096
"""Pixels of a side that a recipe may ask for."""
FORMATS = {"JPEG": "JPEG", "PNG": "PNG", "BMP": "BMP", "GIF": "GIF", "PPM": "PPM", "WEBP": "WebP", "TIFF": "TIFF"}
"""The formats that are read, by Pillow's names and by their own. Pillow knows some forty more, each a risk."""
_MARKS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
)
"""Where a file of a format has which bytes."""
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF's orientation → the number of Pillow's transposition that undoes it."""
_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose 32-bit greyscale is 16-bit greyscale in fact."""
_MODES = {"I": "32 bits of grey", "F": "floating point", "LAB": "Lab colours"}
_SMALL = 4096
"""Bytes of pixels below which a filter costs more time than it saves space."""
_GAP = 2
"""A JPEG may be unpacked at a half, a quarter or an eighth if that still leaves so many times the size asked for."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}
"""PNG's types of colour that `to_png` writes, and their channels."""
_NONE, _SUB, _UP = 0, 1, 2


class BadImage(DataError):
    """A file that is no picture, or none that is taken. `what` is the kind of fault, with details in brackets."""


def _height_and_width(value: Any) -> tuple[int, int] | None:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if value is None:
        return None
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= LONGEST_SIDE for side in pair):
        raise ValueError(f"{value!r} is no size: give one side (28) or [height, width], each 1 to {LONGEST_SIDE}")
    return pair[0], pair[1]


class Framing(Section):
    """The form that pictures are brought to."""

    size: Annotated[
        tuple[int, int] | None,
        BeforeValidator(_height_and_width),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": 1, "maximum": LONGEST_SIDE},
                    {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
                    {"type": "null"},
                ]
            }
        ),
    ] = None
    """Pixels of a side, or [height, width]. Unless given, pictures keep their sizes."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour. Unless given: 3 of image files, and of `idx` what the file has."""
    fit: Fit = "crop"
    """How a picture of other proportions is brought to `size`: `crop` scales the shorter side and cuts the ends of
    the longer one, `pad` scales the longer side and puts black beside, `stretch` scales both."""


AS_IT_IS = Framing()


def decode(data: bytes, framing: Framing = AS_IT_IS) -> Pixels:
    """The pixels of an image file: (height, width, channels), upright, 8 bits, grey or RGB, brought to a form.

    The orientation that a camera noted is applied, palettes become colours, what is transparent shows white, CMYK
    becomes RGB, and 16 bits are scaled to 8. Colour profiles are not applied. Raises BadImage for files that are
    empty, too large, of another format, broken, cut off, of more than MOST_PIXELS, or of several frames.
    """
    if not data:
        raise BadImage("empty file")
    if len(data) > LARGEST_FILE:
        raise BadImage(f"a file too large ({len(data) >> 20} MiB, where {LARGEST_FILE >> 20} MiB are allowed)")
    pixels = _own_png(data)
    return _unpacked(data, framing) if pixels is None else framed(pixels, framing)


def framed(pixels: Pixels, framing: Framing) -> Pixels:
    """Pixels brought to a form; the same array where they have it."""
    height, width, channels = pixels.shape
    if framing.size in (None, (height, width)) and framing.channels in (None, channels):
        return pixels
    return _shaped(_pillow().fromarray(pixels[:, :, 0] if channels == 1 else pixels), framing)


def digest(pixels: Pixels) -> str:
    """SHA-256 of the pixels and their shape, in hexadecimal: equal for equal pictures, however they were packed."""
    shape = "x".join(map(str, pixels.shape))
    return hashlib.sha256(f"{shape}\n".encode() + pixels.tobytes()).hexdigest()


def check_pixels(height: int, width: int) -> None:
    """Raise BadImage for a picture that is too large to be unpacked."""
    if height * width > MOST_PIXELS:
        raise BadImage(f"more than {MOST_PIXELS // 1_000_000} million pixels ({width} × {height})")


def _pillow() -> Any:
    """Pillow's module `Image`. Raises MissingExtra where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", "vision", needed_for="reading image files") from None
    return Image


def _unpacked(data: bytes, framing: Framing) -> Pixels:
    picture = _opened(data)
    check_pixels(picture.height, picture.width)
    kind = FORMATS[picture.format or "JPEG"]
    try:
        if kind != "JPEG" and getattr(picture, "is_animated", False):
            raise BadImage(f"several pictures in one file ({kind})")
        if kind == "PNG":
            picture.verify()  # its checksums, which reading the pixels would pass over
            picture = _opened(data)
        if framing.size is not None:
            picture.draft(None, (_GAP * max(framing.size), _GAP * max(framing.size)))
        picture.load()
        return _shaped(_upright(_plain(picture), picture), framing)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # what a decoder raises about a spoilt file can be anything at all
        raise BadImage(f"broken or cut off {kind} ({_one_line(error)})") from error


def _opened(data: bytes) -> ImageFile:
    """The file with its header read. Raises BadImage if that cannot be done."""
    pillow = _pillow()
    try:
        picture: ImageFile = pillow.open(io.BytesIO(data), formats=tuple(FORMATS))
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise BadImage(f"more than {MOST_PIXELS // 1_000_000} million pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # as above
        kind = next((kind for place, mark, kind in _MARKS if data.startswith(mark, place)), None)
        if kind is not None:
            raise BadImage(f"broken or cut off {kind} (its header cannot be read)") from error
        *others, last = FORMATS.values()
        raise BadImage(f"no image of a known format ({', '.join(others)} or {last})") from error
    if picture.format == "MPO":  # a JPEG of a telephone with a second picture behind, of which the first is meant
        picture.format = "JPEG"
    return picture


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def _plain(picture: ImageFile) -> Image:
    """The picture in 8 bits, grey or RGB, what is transparent over white."""
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format in _SIXTEEN_BITS):
        values = np.asarray(picture).astype(np.int64)
        shades: Image = _pillow().fromarray(((values * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8))
        return shades
    if picture.has_transparency_data:
        white = _pillow().new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        flat: Image = white.convert("RGB")
        return flat.convert("L") if mode in ("1", "L", "LA", "La") else flat
    if mode == "1":
        return picture.convert("L")
    if mode in ("P", "PA", "CMYK", "YCbCr", "HSV", "RGBX"):
        return picture.convert("RGB")
    if mode not in ("L", "RGB"):
        raise BadImage(f"pixels of a kind that is not read ({_MODES.get(mode, mode)})")
    return picture


def _upright(picture: Image, file: ImageFile) -> Image:
    """The picture turned as its file's EXIF says; broken EXIF says nothing, and is no reason to refuse a picture."""
    try:
        turn = _TURNS.get(int(file.getexif().get(_ORIENTATION, 1)))
    except Exception:
        return picture
    return picture if turn is None else picture.transpose(_pillow().Transpose(turn))


def _shaped(picture: Image, framing: Framing) -> Pixels:
    """A grey or RGB picture brought to a form, as an array."""
    mode = {1: "L", 3: "RGB", None: picture.mode}[framing.channels]
    if picture.mode != mode:
        picture = picture.convert(mode)
    if framing.size is not None and framing.size != (picture.height, picture.width):
        height, width = framing.size
        picture = _FITS[framing.fit](picture, width, height)
    pixels = np.array(picture, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _scaled(picture: Image, width: int, height: int, box: tuple[float, float, float, float] | None = None) -> Image:
    """A part of the picture at another size; every pixel of the part counts, so nothing flickers (antialiased)."""
    return picture.resize((width, height), _pillow().Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _cropped(picture: Image, width: int, height: int) -> Image:
    scale = min(picture.width / width, picture.height / height)
    across, down = min(picture.width, width * scale), min(picture.height, height * scale)
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    box = (left, top, min(picture.width, left + across), min(picture.height, top + down))
    return _scaled(picture, width, height, box)


def _padded(picture: Image, width: int, height: int) -> Image:
    scale = max(picture.width / width, picture.height / height)
    across, down = max(1, round(picture.width / scale)), max(1, round(picture.height / scale))
    canvas: Image = _pillow().new(picture.mode, (width, height))
    canvas.paste(_scaled(picture, across, down), ((width - across) // 2, (height - down) // 2))
    return canvas


_FITS: dict[Fit, Callable[[Any, int, int], Any]] = {"crop": _cropped, "pad": _padded, "stretch": _scaled}


def to_png(pixels: Pixels) -> bytes:
    """A PNG file that holds the pixels, (height, width, channels) with 1 or 3 channels; always the same bytes."""
    height, width, channels = pixels.shape
    if pixels.dtype != np.uint8 or channels not in _CHANNELS.values() or not pixels.size:
        raise ValueError(f"expected uint8 (height, width, 1 or 3), found {pixels.dtype} {pixels.shape}")
    colour = next(kind for kind, count in _CHANNELS.items() if count == channels)
    kind, filtered = _filtered(pixels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = kind
    rows[:, 1:] = filtered.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"".join(
        (_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)), _chunk(b"IEND", b""))
    )


def _filtered(pixels: Pixels) -> tuple[int, Pixels]:
    """One of PNG's filters for all rows, and what it leaves: the one whose remainders are smallest."""
    if pixels.size < _SMALL:
        return _NONE, pixels
    sub, up = pixels.copy(), pixels.copy()
    sub[:, 1:] -= pixels[:, :-1]
    up[1:] -= pixels[:-1]
    sizes = {kind: int(np.abs(left.view(np.int8).astype(np.int16)).sum()) for kind, left in ((_SUB, sub), (_UP, up))}
    return (_SUB, sub) if sizes[_SUB] < sizes[_UP] else (_UP, up)


def _chunk(name: bytes, content: bytes) -> bytes:
    return b"".join(
        (len(content).to_bytes(4, "big"), name, content, zlib.crc32(content, zlib.crc32(name)).to_bytes(4, "big"))
    )


def _own_png(data: bytes) -> Pixels | None:
    """The pixels of a PNG as `to_png` writes it; None for any other file.

    Raises BadImage for one of too many pixels.
    """
    if len(data) < 57 or data[:16] != _SIGNATURE + b"\0\0\0\rIHDR" or data[37:41] != b"IDAT":
        return None
    width, height, depth, colour, *how = struct.unpack(">IIBBBBB", data[16:29])
    end = 41 + int.from_bytes(data[33:37], "big")
    if (depth, how) != (8, [0, 0, 0]) or colour not in _CHANNELS or data[end + 4 :] != _chunk(b"IEND", b""):
        return None
    check_pixels(height, width)
    sums = int.from_bytes(data[29:33], "big"), int.from_bytes(data[end : end + 4], "big")
    if sums != (zlib.crc32(data[12:29]), zlib.crc32(data[37:end])) or not height * width:
        return None
    rows = _inflated(data[41:end], height, 1 + width * _CHANNELS[colour])
    if rows is None or rows[0, 0] > _UP or (rows[:, 0] != rows[0, 0]).any():
        return None
    pixels = rows[:, 1:].reshape(height, width, _CHANNELS[colour])
    if rows[0, 0] == _NONE:
        return pixels.copy()
    return np.cumsum(pixels, axis=1 if rows[0, 0] == _SUB else 0, dtype=np.uint8)


def _inflated(packed: bytes, height: int, stride: int) -> Pixels | None:
    """The unpacked rows of a PNG; None if they are not as many as its header says."""
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(packed, height * stride + 1)
    except zlib.error:
        return None
    if not unpacker.eof or len(rows) != height * stride:
        return None
    return np.frombuffer(rows, np.uint8).reshape(height, stride)
