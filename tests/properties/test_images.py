"""Pictures: what is written is what is read, and no bytes whatever bring the reader down."""

from __future__ import annotations

import io
import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from groundup.data.images import BadImage, Framing, Pixels, decode, to_png

shapes = st.tuples(st.integers(1, 40), st.integers(1, 60), st.sampled_from([1, 3]))
pictures = shapes.flatmap(lambda shape: arrays(np.uint8, shape))
framings = st.builds(
    Framing,
    size=st.none() | st.tuples(st.integers(1, 30), st.integers(1, 30)),
    channels=st.sampled_from([None, 1, 3]),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
)
KINDS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")


def file_of(kind: str) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise).save(target, kind)
    return target.getvalue()


@given(pictures)
@settings(max_examples=150, deadline=None)
def test_reading_what_was_written_gives_the_same_pixels(pixels: Pixels) -> None:
    written = to_png(pixels)
    np.testing.assert_array_equal(decode(written), pixels)
    assert to_png(pixels) == written


@given(pictures)
@settings(max_examples=80, deadline=None)
def test_pillow_reads_the_same_as_we_do(pixels: Pixels) -> None:
    with Image.open(io.BytesIO(to_png(pixels))) as picture:
        np.testing.assert_array_equal(np.array(picture).reshape(pixels.shape), pixels)


@given(pictures, framings)
@settings(max_examples=100, deadline=None)
def test_every_form_is_kept(pixels: Pixels, framing: Framing) -> None:
    found = decode(to_png(pixels), framing)
    height, width = framing.size or pixels.shape[:2]
    assert found.shape == (height, width, framing.channels or pixels.shape[2])
    assert found.dtype == np.uint8 and found.flags.writeable


@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.integers(0, 200) | st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 3000),
)
@settings(max_examples=400, deadline=None)
def test_spoilt_files_are_read_or_refused(kind: str, changes: list[tuple[int, int]], cut: int | None) -> None:
    spoilt = bytearray(file_of(kind))
    for place, value in changes:
        spoilt[place % len(spoilt)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's opinions about broken metadata
        try:
            pixels = decode(bytes(spoilt[:cut]))
        except BadImage as bad:
            assert bad.what and "\n" not in bad.what
        else:
            assert pixels.ndim == 3 and pixels.dtype == np.uint8


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_bring_the_reader_down(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for beginning in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"P5 ", b"BM"):
            try:
                decode(beginning + data)
            except BadImage as bad:
                assert bad.what
