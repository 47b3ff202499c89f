"""IDX, the format in which MNIST and its successors are published: pictures in one file, labels in another.

A file begins with two zero bytes, a code of the type of its values and the number of its dimensions, then the
dimensions as big-endian 32-bit numbers, then the values. Pictures are uint8 in (count, height, width), sometimes with
channels behind; labels are whole numbers in (count,). Both are read side by side, a picture at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import zstandard

from groundup.data.images import BadImage, check_pixels
from groundup.data.source_files import SourceFile
from groundup.data.source_made import Made, Rows, damaged
from groundup.data.sources import Source
from groundup.errors import DataError

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Codes of types of values."""
_REFETCH = "fetch the file again, or check that `paths` names the right files"
_ORDER = "`kind: idx` takes `paths: [images, labels]`, in this order"


@dataclass(frozen=True)
class _Header:
    """What the beginning of a file says of the rest."""

    type: str
    shape: tuple[int, ...]
    bytes: int
    """Bytes before the first value."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one picture or label."""
        return math.prod(self.shape[1:]) * np.dtype(self.type).itemsize


def open_idx(files: Sequence[SourceFile], source: Source) -> Rows:
    """The rows of a file of pictures and one of labels (or of pictures alone), not decoded.

    A row has `image` (raw bytes), `shape` (height, width, channels) and `label`. Raises DataError for a file that is
    none of the kind, for counts that differ, and, when it comes to that, for one that ends early or late.
    """
    headers = [_header(file) for file in files]
    _check_pictures(files[0], headers[0])
    if len(files) > 1:
        _check_labels(files[1], headers[1])
        counts = [header.shape[0] for header in headers]
        if counts[0] != counts[1]:
            what = f"{files[0].name!r} holds {counts[0]} images and {files[1].name!r} {counts[1]} labels"
            raise DataError(what, fix="name two files that belong together")
    for file, header in zip(files, headers, strict=True):
        _check_size(file, header)
    count, stored = headers[0].shape[0], sum(file.size for file in files)
    return Rows(_rows(files, headers), lambda done: stored * done // count)


def _header(file: SourceFile) -> _Header:
    try:
        with file.open() as stream:
            mark = stream.read(4)
            if len(mark) < 4 or mark[:2] != b"\0\0" or mark[2] not in TYPES or not 1 <= mark[3] <= 4:
                begins = f"it begins with {mark.hex(' ')}" if mark else "it is empty"
                what = f"{file.name!r} is no IDX file: {begins}, where 00 00, a type and 1 to 4 dimensions are due"
                raise DataError(what, fix=_REFETCH)
            sizes = stream.read(4 * mark[3])
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise damaged(file, error) from error
    if len(sizes) < 4 * mark[3]:
        raise DataError(f"{file.name!r} ends within its header", fix=_REFETCH)
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    return _Header(TYPES[mark[2]], shape, 4 + len(sizes))


def _check_pictures(file: SourceFile, header: _Header) -> None:
    """Raise DataError unless a file holds pictures that can be taken."""
    of = f"{np.dtype(header.type).name} of shape {_written(header.shape)}"
    if len(header.shape) == 1:
        raise DataError(f"{file.name!r} holds {header.shape[0]} labels, where images are due", fix=_ORDER)
    if len(header.shape) not in (3, 4) or (len(header.shape) == 4 and header.shape[3] not in (1, 3)):
        raise DataError(f"{file.name!r} holds no images, but {of}", fix="images are (count, height, width)")
    if header.type != "uint8":
        raise DataError(f"{file.name!r} holds {of}, where pixels are uint8", fix="scale them to 0 to 255 first")
    if 0 in header.shape:
        raise DataError(f"{file.name!r} holds no images: its shape is {_written(header.shape)}", fix=_REFETCH)
    try:
        check_pixels(header.shape[1], header.shape[2])
    except BadImage as bad:
        raise DataError(f"images of {file.name!r} have {bad.what}", fix=_REFETCH) from None


def _check_labels(file: SourceFile, header: _Header) -> None:
    """Raise DataError unless a file holds labels."""
    if len(header.shape) != 1:
        raise DataError(f"{file.name!r} holds values of shape {_written(header.shape)}, no labels", fix=_ORDER)
    if np.dtype(header.type).kind not in "iu":
        raise DataError(f"{file.name!r} holds {np.dtype(header.type).name} labels", fix="labels are whole numbers")


def _check_size(file: SourceFile, header: _Header) -> None:
    """Raise DataError for a file that is not packed and has not the size that its header promises."""
    due = header.bytes + header.shape[0] * header.item_bytes
    if not file.packing and file.size != due:
        raise DataError(f"{file.name!r} has {file.size} bytes, where its header promises {due}", fix=_REFETCH)


def _written(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _rows(files: Sequence[SourceFile], headers: Sequence[_Header]) -> Generator[Made, None, None]:
    shape = [*headers[0].shape[1:], 1][:3]
    with ExitStack() as stack:
        try:
            streams = [stack.enter_context(file.open()) for file in files]
            for stream, header in zip(streams, headers, strict=True):
                stream.read(header.bytes)
            for place in range(1, headers[0].shape[0] + 1):
                row: dict[str, object] = {"image": _item(streams[0], files[0], headers[0], place), "shape": shape}
                if len(files) > 1:
                    row["label"] = int(
                        np.frombuffer(_item(streams[1], files[1], headers[1], place), headers[1].type)[0]
                    )
                yield Made(place, row)
            for stream, file in zip(streams, files, strict=True):
                if stream.read(1):
                    raise DataError(
                        f"{file.name!r} goes on after the {headers[0].shape[0]} items it promises", fix=_REFETCH
                    )
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise damaged(files[0], error) from error


def _item(stream: IO[bytes], file: SourceFile, header: _Header, place: int) -> bytes:
    """The next picture or label of a file."""
    data = stream.read(header.item_bytes)
    if len(data) < header.item_bytes:
        raise DataError(
            f"{file.name!r} ends after {place - 1} of the {header.shape[0]} items it promises", fix=_REFETCH
        )
    return data
