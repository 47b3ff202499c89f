"""WebDataset: tar archives, of which every few members in a row are one sample.

`000017.jpg`, `000017.cls` and `000017.json` are a picture, its label and what else is known of it: members whose
names agree up to the first dot of the file's name belong together, and follow each other. Archives are read from
front to back, a sample at a time, and nothing is written anywhere: a member called `../../etc/passwd` is a name.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import IO, Any, NamedTuple

import zstandard

from groundup.data.images import LARGEST_FILE
from groundup.data.source_files import SourceFile
from groundup.data.source_made import Made, Rows, damaged
from groundup.data.sources import Source
from groundup.errors import DataError

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})
"""What follows the first dot of a picture's name."""
TEXTS = frozenset({"cls", "txt", "json"})
"""The same of a label (a number or a name), of a text, and of a mapping."""
LARGEST_TEXT = 1 << 20
"""Bytes a label, a text or a mapping may have."""
_BROKEN: tuple[type[Exception], ...] = (vars(tarfile)["InvalidHeaderError"], vars(tarfile)["TruncatedHeaderError"])
"""Documented in `tarfile`'s source alone; the others of their family mean that the archive ends."""
_ABOUT_OTHERS = (b"x", b"g", b"X", b"L", b"K")
"""Types of headers that say something of the members behind them (POSIX.1-2001, GNU)."""


class _Part(NamedTuple):
    """A member of a sample."""

    key: str
    kind: str
    data: bytes
    too_large: bool


class _Member(tarfile.TarInfo):
    """A member whose header is checked: `tarfile` takes a broken one in the middle for the end of the archive.

    Names and remarks longer than a header come as blocks that `tarfile` reads whole, whatever their size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _ABOUT_OTHERS and found.size > LARGEST_TEXT:
            raise tarfile.ReadError(f"a member's name or remarks have {found.size} bytes")
        return found

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except _BROKEN as error:
            raise tarfile.ReadError(f"a member's header is broken ({error})") from error


def open_shard(files: Sequence[SourceFile], source: Source) -> Rows:
    """The samples of an archive as rows, not decoded: `image` as it stands, `label`, `key`, and `cls`, `txt`, `json`.

    A sample without a picture, or without the label that `keep` asks for, is a bad row. Raises DataError for an
    archive that is none or is cut off, as soon as that shows.
    """
    file, position = files[0], [0]
    return Rows(_rows(file, source, position), lambda _: min(file.size, position[0]))


def _rows(file: SourceFile, source: Source, position: list[int]) -> Generator[Made, None, None]:
    """The samples of an archive, and in `position` how many of its bytes have been taken for them."""
    labelled = "label" in source.kept.values()
    place, held = 0, list[_Part]()
    stream, taken = file.open_counted()
    with closing(stream):
        try:
            for part in _parts(stream):
                if held and held[0].key != part.key:
                    place, position[0] = place + 1, taken()
                    yield _sample(place, held, labelled)
                    held = []
                held.append(part)
        except (tarfile.TarError, OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise damaged(file, error) from error
    position[0] = file.size
    if held:
        yield _sample(place + 1, held, labelled)
    elif not place:
        kinds = ", ".join(f".{kind}" for kind in sorted(PICTURES))
        raise DataError(f"{file.name!r} holds no samples: no member is one of {kinds}", fix="check `kind` and `paths`")


def _parts(stream: IO[bytes]) -> Iterator[_Part]:
    """The members that belong to samples, in order."""
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        held: list[tarfile.TarInfo] = vars(archive)["members"]
        while (member := archive.next()) is not None:
            held.clear()  # or the archive holds on to every member there was
            folder, _, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            kind = kind.lower()
            if not member.isreg() or not stem or kind not in PICTURES | TEXTS:
                continue
            too_large = member.size > (LARGEST_TEXT if kind in TEXTS else LARGEST_FILE)
            opened = None if too_large else archive.extractfile(member)
            yield _Part(f"{folder}/{stem}" if folder else stem, kind, opened.read() if opened else b"", too_large)


def _sample(place: int, parts: Sequence[_Part], labelled: bool) -> Made:
    """The row of the members of one sample, or why there is none."""
    row: dict[str, Any] = {"key": parts[0].key}
    for part in parts:
        column, name = "image" if part.kind in PICTURES else part.kind, f"{part.key}.{part.kind}"
        if part.too_large:
            return Made(place, None, f"a member too large ({name})")
        if column in row:
            return Made(place, None, f"two members of one kind in a sample ({name})")
        try:
            row[column] = part.data if column == "image" else _value(part.kind, part.data)
        except (ValueError, RecursionError):
            return Made(place, None, f"a member that is no {'JSON' if part.kind == 'json' else 'UTF-8'} ({name})")
    about = row.get("json")
    row["label"] = row.get("cls", about.get("label", about.get("cls")) if isinstance(about, dict) else None)
    if "image" not in row:
        return Made(place, None, f"a sample without an image ({row['key']})")
    if labelled and row["label"] is None:
        return Made(place, None, f"a sample without a label ({row['key']})")
    return Made(place, row)


def _value(kind: str, data: bytes) -> Any:
    """What a member holds: a mapping, a text, or of a label a whole number if it is one."""
    text = data.decode("utf-8")
    if kind == "json":
        return json.loads(text)
    return int(text) if kind == "cls" and text.strip().isdecimal() else text.strip()
