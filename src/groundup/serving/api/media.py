"""Files in the rows of a request: images and recordings, as base64, as data: URIs, or as parts of a form.

What is looked at here, before anything is unpacked: how many bytes a file has, and by its first bytes what it is; a
name or a media type that a client gives is nobody's word. How many pixels or seconds a header promises is looked at
by the function that reads the file, in a process apart (`unpacking.py`). A path is never opened: a text in the place
of a file is base64, or it is refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.serving.api.errors import ApiError, bad
from groundup.serving.models import Facts

UPLOADED = "file"
"""What a row calls the file of a form, whose sender need not know the name of the model's column."""
LONGEST_PATH = 4096
SHOWN = 40


def _webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _wav(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def _begins(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(beginnings)


KINDS: Mapping[str, Mapping[str, Callable[[bytes], bool]]] = {
    "image": {
        "PNG": _begins(b"\x89PNG\r\n\x1a\n"),
        "JPEG": _begins(b"\xff\xd8\xff"),
        "WebP": _webp,
        "GIF": _begins(b"GIF87a", b"GIF89a"),
        "BMP": _begins(b"BM"),
        "TIFF": _begins(b"II*\0", b"MM\0*"),
        "PPM": _begins(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    },
    "audio": {"WAV": _wav, "FLAC": _begins(b"fLaC")},
}
"""The kinds of files that are read of each medium, by how they begin."""
OTHERS: Mapping[str, Callable[[bytes], bool]] = {
    "MP3": _begins(b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"),
    "Ogg": _begins(b"OggS"),
    "Matroska or WebM": _begins(b"\x1aE\xdf\xa3"),
    "MP4, HEIC or AVIF": lambda data: data[4:8] == b"ftyp",
    "PDF": _begins(b"%PDF"),
    "ZIP": _begins(b"PK\x03\x04"),
    "gzip": _begins(b"\x1f\x8b"),
    "HTML, SVG or XML": _begins(b"<"),
}
"""Others that are recognised, so that their sender is told what was sent."""


def kind_of(data: bytes) -> tuple[str, str]:
    """What a file is by its first bytes: its medium ("" for none that is read) and its name ("" for an unknown one)."""
    for medium, kinds in KINDS.items():
        for name, is_one in kinds.items():
            if is_one(data):
                return medium, name
    return "", next((name for name, is_one in OTHERS.items() if is_one(data)), "")


def opened(facts: Facts, rows: Sequence[Any], *, most_bytes: int, beside: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a request to a model whose rows have files in them, each file as bytes.

    `beside` is the folder from which rows of this machine's own user may name files; None for everybody else's.
    Raises ApiError, naming the row, for a file that is missing, too long, or of another kind.
    """
    return [_row(facts, row, f"input[{place}]", most_bytes, beside) for place, row in enumerate(rows)]


def _row(facts: Facts, row: Any, where: str, most_bytes: int, beside: Path | None) -> dict[str, Any]:
    first = next(iter(facts.media))
    found = dict(row) if isinstance(row, Mapping) else {first: row}
    if isinstance(found.get(UPLOADED), bytes):
        found = {first: found.pop(UPLOADED), **found}
    for column, medium in facts.media.items():
        place = f"{where}.{column}"
        if found.get(column) is None:
            fix = f"send it as base64 in the column {column!r}, or as the part {UPLOADED!r} of a form"
            raise bad(f"there is no {medium}", place, fix=fix)
        data = _bytes(found[column], place, most_bytes, beside)
        _require(data, medium, place, most_bytes)
        found[column] = data
    return found


def _bytes(value: Any, where: str, most_bytes: int, beside: Path | None) -> bytes:
    """The file that a value stands for."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise bad(f"a file is a text in base64 and not a {type(value).__name__}", where, fix="send base64")
    text = value
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise bad("a data: URI without base64", where, fix="data:image/png;base64,…")
    elif beside is not None and (path := _path(text, beside)) is not None:
        return _read(path, where, most_bytes)
    if len(text) // 4 * 3 > most_bytes + 3:
        raise _too_long(most_bytes, where)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        shown = ascii(text[:SHOWN] + ("…" if len(text) > SHOWN else ""))
        what = f"{shown} is no base64" + (" and no file" if beside is not None else "")
        fix = "send the content of the file in base64, or as a part of a form; paths are not opened"
        raise bad(what, where, fix=fix if beside is None else "give base64, or a path") from error


def _path(text: str, beside: Path) -> Path | None:
    """The file that a text names, from a folder on; None if it names none."""
    if not 0 < len(text) <= LONGEST_PATH or "\0" in text:
        return None
    path = beside / Path(text).expanduser()
    try:
        return path if path.is_file() else None
    except OSError:  # a part of it is longer than a name can be
        return None


def _read(path: Path, where: str, most_bytes: int) -> bytes:
    if path.stat().st_size > most_bytes:
        raise _too_long(most_bytes, where)
    try:
        return path.read_bytes()
    except OSError as error:
        raise bad(f"{str(path)!r} cannot be read ({error.strerror})", where) from error


def _require(data: bytes, medium: str, where: str, most_bytes: int) -> None:
    """Raise ApiError for a file that is empty (400), too long (413) or of another kind (415)."""
    if not data:
        raise bad("an empty file", where, fix="send one with something in it")
    if len(data) > most_bytes:
        raise _too_long(most_bytes, where)
    found, name = kind_of(data)
    if found != medium:
        *others, last = KINDS[medium]
        wanted = f"{', '.join(others)} or {last}"
        what = f"the file is {f'of the kind {name}' if name else 'of no kind that is known'}, and {wanted} is read"
        raise ApiError(415, "unsupported_media_type", what, param=where, fix=f"send {wanted}")


def _too_long(most_bytes: int, where: str) -> ApiError:
    what = f"the file is longer than {most_bytes} bytes"
    return ApiError(413, "file_too_large", what, param=where, fix="send a smaller one")
