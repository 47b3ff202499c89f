"""Image files of every kind become upright pixels in 8 bits, or are refused for a reason that says which."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from groundup.config import parse
from groundup.data import images
from groundup.data.images import BadImage, Framing, Pixels, decode, digest, framed, to_png
from groundup.errors import MissingExtra

SHADES = np.linspace(0, 255, 24 * 40).reshape(24, 40).round().astype(np.uint8)
COLOURS: Pixels = np.stack([SHADES, 255 - SHADES, SHADES // 2], axis=-1)


def file_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


def coloured() -> Image.Image:
    return Image.fromarray(COLOURS)


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG whose header promises many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    packed = (len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_what_is_packed_without_loss_comes_back(kind: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode(file_of(coloured(), kind, **options)), COLOURS)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_what_is_packed_with_loss_comes_near(kind: str) -> None:
    found = decode(file_of(coloured(), kind)).astype(int)
    assert found.shape == COLOURS.shape and np.abs(found - COLOURS).mean() < 4


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda upright: upright),
        (2, lambda upright: upright[:, ::-1]),
        (3, lambda upright: upright[::-1, ::-1]),
        (4, lambda upright: upright[::-1]),
        (5, lambda upright: upright.transpose(1, 0, 2)),
        (6, lambda upright: np.rot90(upright, 1)),
        (7, lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda upright: np.rot90(upright, -1)),
    ],
)
def test_pictures_are_turned_as_the_camera_noted(
    kind: str, orientation: int, stored: Callable[[Pixels], Pixels]
) -> None:
    """The numbers are those of EXIF 2.3, table 6: which edge of the scene the first row and column are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    as_stored = np.ascontiguousarray(stored(COLOURS))
    found = decode(file_of(Image.fromarray(as_stored), kind, exif=exif.tobytes(), **options)).astype(int)
    assert found.shape == COLOURS.shape
    assert np.abs(found - COLOURS).mean() < 2


@pytest.mark.smoke
def test_every_colouring_becomes_grey_or_rgb() -> None:
    grey = Image.fromarray(SHADES)
    np.testing.assert_array_equal(decode(file_of(grey, "PNG"))[:, :, 0], SHADES)
    assert decode(file_of(grey, "JPEG")).shape == (24, 40, 1)
    palette = coloured().convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    np.testing.assert_array_equal(decode(file_of(palette, "PNG")), np.array(palette.convert("RGB")))
    np.testing.assert_array_equal(np.unique(decode(file_of(grey.convert("1"), "PNG"))), [0, 255])
    cmyk = decode(file_of(coloured().convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(cmyk - COLOURS).mean() < 4


@pytest.mark.smoke
def test_what_is_transparent_shows_white() -> None:
    half = coloured().convert("RGBA")
    half.putalpha(Image.fromarray(np.where(np.arange(40) < 20, 0, 255).astype(np.uint8)[None].repeat(24, 0)))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        found = decode(file_of(half, kind, **options))
        assert (found[:, :20] == 255).all()
        np.testing.assert_array_equal(found[:, 20:], COLOURS[:, 20:])
    palette = Image.fromarray(SHADES // 64).convert("P")
    found = decode(file_of(palette, "PNG", transparency=0))
    assert (found[SHADES < 64] == 255).all() and not (found[SHADES >= 64] == 255).any()
    grey = Image.fromarray(SHADES).convert("LA")
    grey.putalpha(0)
    found = decode(file_of(grey, "PNG"))
    assert found.shape == (24, 40, 1) and (found == 255).all()


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 127, 128, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
    found = decode(file_of(Image.fromarray(wide), kind))[:, :, 0]
    np.testing.assert_array_equal(found, np.array([[0, 0, 0, 1], [128, 254, 255, 255]]))


def two_frames(kind: str) -> bytes:
    return file_of(coloured(), kind, save_all=True, append_images=[Image.fromarray(255 - COLOURS)])


def floating() -> Image.Image:
    return Image.fromarray(SHADES.astype(np.float32))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty file"),
    "a text": (lambda: b"hello", "no image of a known format (JPEG, PNG, BMP, GIF, PPM, WebP or TIFF)"),
    "an SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known format"),
    "an icon": (lambda: file_of(coloured(), "ICO"), "no image of a known format"),
    "a cut JPEG": (lambda: file_of(coloured(), "JPEG")[:-80], "broken or cut off JPEG (image file is truncated"),
    "the head of a JPEG": (lambda: file_of(coloured(), "JPEG")[:20], "broken or cut off JPEG (its header"),
    "a cut PNG": (lambda: file_of(coloured(), "PNG")[:-60], "broken or cut off PNG"),
    "a cut GIF": (lambda: file_of(coloured(), "GIF")[:-400], "broken or cut off GIF"),
    "a cut WebP": (lambda: file_of(coloured(), "WEBP")[:-100], "broken or cut off WebP"),
    "a cut TIFF": (lambda: file_of(coloured(), "TIFF")[:100], "broken or cut off TIFF"),
    "a cut BMP": (lambda: file_of(coloured(), "BMP")[:100], "broken or cut off BMP"),
    "a spoilt PNG of ours": (lambda: spoilt(to_png(COLOURS)), "broken or cut off PNG"),
    "an animated GIF": (lambda: two_frames("GIF"), "several pictures in one file (GIF)"),
    "an animated WebP": (lambda: two_frames("WEBP"), "several pictures in one file (WebP)"),
    "an animated PNG": (lambda: two_frames("PNG"), "several pictures in one file (PNG)"),
    "a TIFF of two pages": (lambda: two_frames("TIFF"), "several pictures in one file (TIFF)"),
    "floating point": (lambda: file_of(floating(), "TIFF"), "pixels of a kind that is not read (floating point)"),
    "a bomb": (lambda: png_of_size(100_000, 100_000), "more than 50 million pixels"),
    "a bomb within Pillow's limit": (lambda: png_of_size(8000, 7000), "more than 50 million pixels (8000 × 7000)"),
    "one where Pillow warns": (lambda: png_of_size(10_000, 9_500), "more than 50 million pixels"),
}


def spoilt(data: bytes) -> bytes:
    return data[:-30] + bytes([data[-30] ^ 255]) + data[-29:]


@pytest.mark.smoke
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_line(name: str) -> None:
    make, reason = REFUSED[name]
    data = make()
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.what.startswith(reason)
    assert "\n" not in caught.value.what


@pytest.mark.smoke
def test_a_bomb_costs_no_memory() -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    plain = to_png(np.zeros((1, 1, 1), np.uint8))
    ours = plain[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + plain[33:]
    for bomb in (png_of_size(100_000, 100_000), ours):
        tracemalloc.start()
        with pytest.raises(BadImage, match="million pixels"):
            decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.smoke
def test_a_file_too_large_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_FILE", 1 << 20)
    with pytest.raises(BadImage, match=r"a file too large \(2 MiB, where 1 MiB are allowed\)"):
        decode(bytes(2 << 20))


@pytest.mark.smoke
def test_the_first_picture_of_a_telephone_is_the_one_meant() -> None:
    """Telephones append a second picture to their JPEG (MPO), which does not make it an animation."""
    data = file_of(coloured(), "MPO", save_all=True, append_images=[coloured().resize((8, 8))], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode(data).shape == COLOURS.shape


@pytest.mark.smoke
def test_broken_exif_is_no_reason_to_refuse_a_picture() -> None:
    data = file_of(coloured(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        assert decode(data).shape == COLOURS.shape


@pytest.mark.smoke
def test_the_fits_keep_what_they_promise() -> None:
    """A picture of three squares: red, green, blue."""
    squares = np.zeros((10, 30, 3), np.uint8)
    for place in range(3):
        squares[:, 10 * place : 10 * place + 10, place] = 255
    cropped = framed(squares, Framing(size=(20, 20)))
    assert cropped.shape == (20, 20, 3) and (cropped[:, 3:-3] == [0, 255, 0]).all(), "the middle is what stays"
    padded = framed(squares, Framing(size=(30, 30), fit="pad"))
    assert not padded[:10].any() and not padded[20:].any(), "what is put beside is black"
    np.testing.assert_array_equal(padded[10:20], squares)
    stretched = framed(squares, Framing(size=(12, 12), fit="stretch"))
    assert stretched[:, 0].argmax(-1).tolist() == [0] * 12 and stretched[:, 11].argmax(-1).tolist() == [2] * 12
    assert framed(squares, Framing(size=(10, 30))) is squares
    tall = framed(squares.transpose(1, 0, 2).copy(), Framing(size=(15, 5)))
    assert tall.shape == (15, 5, 3) and set(tall.argmax(-1).ravel()) == {0, 1, 2}


@pytest.mark.smoke
def test_scaling_down_counts_every_pixel() -> None:
    """A fine chequerboard becomes even grey; picking single pixels would give black or white."""
    board = ((np.add.outer(np.arange(512), np.arange(512)) % 2) * 255).astype(np.uint8)[:, :, None]
    for fit in ("crop", "pad", "stretch"):
        small = framed(board, Framing(size=(32, 32), fit=fit))  # type: ignore[arg-type]
        assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3
    found = decode(file_of(Image.fromarray(board[:, :, 0]), "JPEG", quality=95), Framing(size=(32, 32)))
    assert np.abs(found[2:-2, 2:-2].astype(int) - 127).max() <= 3


@pytest.mark.smoke
def test_channels_are_as_asked_for() -> None:
    grey = decode(to_png(COLOURS), Framing(channels=1))
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (24, 40, 1) and np.abs(grey[:, :, 0] - luma).max() <= 1
    three = decode(to_png(SHADES[:, :, None]), Framing(channels=3))
    np.testing.assert_array_equal(three, SHADES[:, :, None].repeat(3, axis=2))


@pytest.mark.smoke
def test_the_form_is_checked_where_the_recipe_is() -> None:
    assert parse(Framing, {"size": 28})[0] == Framing(size=(28, 28))
    assert parse(Framing, {"size": [20, 30], "fit": "pad"})[0] == Framing(size=(20, 30), fit="pad")
    for wrong in (0, -3, [10], [10, 20, 30], "28 px", 5000, True, [28.5, 28]):
        (mistake,) = parse(Framing, {"size": wrong})[1]
        assert "is no size: give one side (28) or [height, width]" in mistake.what
    assert parse(Framing, {"channels": 2})[1] and parse(Framing, {"fit": "squeeze"})[1]


@pytest.mark.smoke
def test_our_own_files_are_read_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = file_of(coloured(), "JPEG")
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.testing.assert_array_equal(decode(to_png(COLOURS)), COLOURS)
    with pytest.raises(MissingExtra, match=r"pip install 'groundup\[vision\]'"):
        decode(jpeg)


@pytest.mark.smoke
def test_settings_of_pillow_stay_as_they_are() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for make, _ in REFUSED.values():
        with pytest.raises(BadImage):
            decode(make())
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.smoke
def test_digests_tell_pictures_apart_by_their_pixels_and_shapes() -> None:
    flat = np.zeros((4, 6, 1), np.uint8)
    assert digest(flat) == digest(decode(file_of(Image.fromarray(flat[:, :, 0]), "BMP")))
    assert len({digest(flat), digest(flat.reshape(6, 4, 1)), digest(flat.reshape(4, 2, 3)), digest(flat + 1)}) == 4


@pytest.mark.smoke
def test_only_pictures_become_png() -> None:
    for wrong in (np.zeros((2, 2, 1)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 1), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            to_png(wrong)  # type: ignore[arg-type]
