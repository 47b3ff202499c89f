"""Images as they are given: in a corpus, by a user from Python or the command line, or over HTTP.

An image is the bytes of a file of any format that `data/images.py` reads; the same in base64 (what JSON can
carry); a path, which must be a `Path` object, so that no text that somebody sends can name a file of this
machine; or an array of pixels, such as one of NumPy or a picture that Pillow opened.
"""

from __future__ import annotations

import base64
import binascii
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from groundup.data import images
from groundup.data.images import BadImage, Framing, Pixels

_DATA = "data:"
"""How a data URI begins: `data:image/png;base64,…`."""


def pixels_of(given: Any, framing: Framing) -> Pixels:
    """The pixels of an image, (height, width, channels), in a form. Raises BadImage for what is none."""
    if isinstance(given, bytes | bytearray | memoryview):
        return images.decode(bytes(given), framing)
    if isinstance(given, PathLike):
        return images.decode(_read(Path(given)), framing)
    if isinstance(given, str):
        return images.decode(_from_text(given), framing)
    if given is None:
        raise BadImage("no image")
    return images.framed(_from_array(given), framing)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > images.LARGEST_FILE:
            raise BadImage(f"a file too large ({path})")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"a file that cannot be read ({path}: {error.strerror or error})") from error


def _from_text(given: str) -> bytes:
    text = given.partition(",")[2] if given.startswith(_DATA) else given
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(
            "a text that is no image in base 64", fix="give bytes, base64, a pathlib.Path or an array"
        ) from (error)


def _from_array(given: Any) -> Pixels:
    """uint8 (height, width, channels) of an array with 0 to 255 in whole numbers, or 0 to 1 in others."""
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise BadImage(f"an array of rows of different lengths ({error})") from error
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise BadImage(f"an array of the shape {array.shape}", fix="give (height, width), or (height, width, 1 or 3)")
    images.check_pixels(*array.shape[:2])
    most = 1 if array.dtype.kind == "f" else 255
    if array.dtype.kind not in "uif" or not (array.min() >= 0 and array.max() <= most):
        raise BadImage("an array of other numbers than pixels", fix="give whole numbers 0 to 255, or 0 to 1 as floats")
    return np.rint(array * 255).astype(np.uint8) if array.dtype.kind == "f" else array.astype(np.uint8)
