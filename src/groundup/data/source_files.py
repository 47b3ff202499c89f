"""The files a recipe names: which they are, how they are opened, and what is wrong with them.

A source is a list of paths: files, folders or globs (`**` works). Each file found becomes a
`SourceFile` with the name it will have in the corpus. That name never contains the absolute part of
a path that depends on the machine: `~/books/a.txt` stays `~/books/a.txt`, and `{stdlib}/json/tool.py`
stays as it is, so that the same data gives the same corpus everywhere.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast, get_args

import zstandard

from groundup.data.source_paths import MAGIC, Exclusion, Names, expression, fixed_part, matches, unreadable
from groundup.data.sources import DIGESTED, KINDS, NAMED_KINDS, TOGETHER, Kind, Source
from groundup.errors import DataError
from groundup.places import expand

PACKED = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_ALSO_TEXT = (".log", ".html", ".htm", ".xml", ".tex", ".py", ".c", ".h", ".cpp", ".java", ".js", ".ts", ".go", ".rs")
_MEMBER = re.compile(r"(.*\.zip)!(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class SourceFile:
    """One file to read, or one member of a zip archive."""

    path: str
    """Where it is on this machine."""
    name: str
    """What it is called in the corpus: as the recipe wrote it, globs filled in."""
    kind: Kind
    source: int = 0
    """Position of its source in the recipe."""
    member: str = ""
    """The file inside the archive at `path`; empty for an ordinary file."""
    folder: str = ""
    """First folder below the fixed part of the glob, or the file's own name if it lies at the top."""
    size: int = 0
    """Bytes as stored (of a member: unpacked)."""

    @property
    def packing(self) -> str:
        """`gzip`, `zstd`, `zip` or, for a plain file, an empty string."""
        return "zip" if self.member else PACKED.get(Path(self.path).suffix.lower(), "")

    def open(self) -> IO[bytes]:
        """The unpacked bytes as a stream. Raises DataError if the file cannot be opened."""
        return self.open_counted()[0]

    def open_counted(self) -> tuple[IO[bytes], Callable[[], int]]:
        """The unpacked bytes as a stream, and a function that tells how many stored bytes it has taken."""
        try:
            return self._open()
        except OSError as error:
            raise unreadable(self.name, error) from error
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{self.name!r} is no zip archive ({error})", fix="fetch it again, or `exclude` it"
            ) from error

    def _open(self) -> tuple[IO[bytes], Callable[[], int]]:
        if self.packing == "zip":
            member = zipfile.ZipFile(self.path).open(self.member)  # noqa: SIM115 - the caller closes it
            return member, member.tell
        raw = open(self.path, "rb")  # noqa: SIM115 - the stream made of it owns and closes it
        match self.packing:
            case "gzip":
                stream: Any = gzip.GzipFile(fileobj=raw)
                stream.myfileobj = raw  # closed with the stream
            case "zstd":
                unpacked = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True)
                stream = io.BufferedReader(cast(io.RawIOBase, unpacked), 1 << 18)
            case _:
                stream = raw
        return stream, raw.tell

    def expected_bytes(self) -> int:
        """Unpacked size, estimated for packed files from how well text and pictures usually pack."""
        factor = {"gzip": 3.5, "zstd": 3.5}.get(self.packing, 3.0 if self.kind == "parquet" else 1.0)
        if self.kind in ("images", "webdataset"):  # a JPEG's pixels take several times its size as PNG
            factor = 4.0
        return int(self.size * factor)


def find_files(source: Source, index: int = 0) -> list[SourceFile]:
    """The files of a source in a fixed order, each once.

    Raises DataError for a path without matches, and for one that cannot be read or told a kind.
    """
    left_out = [Exclusion(pattern) for pattern in source.exclude]
    found: dict[str, SourceFile] = {}
    for written in source.paths:
        inside = _MEMBER.fullmatch(written)
        pattern, member = (inside[1], inside[2]) if inside else (written, None)
        names = Names(pattern)
        paths = [path for path, listed in matches(pattern) if not listed or _fits(path, source.kind)]
        paths = [path for path in paths if not any(out.covers(path, names.top) for out in left_out)]
        files = [file for path in paths for file in _describe(path, names, source, index, member)]
        if not paths or (member and not files):
            raise DataError(f"no file matches {written!r}", fix=_why_none(pattern, source, member if paths else None))
        if source.kind in TOGETHER and len(files) != 1:
            what = f"{written!r} names {len(files)} files, but each path of `kind: {source.kind}` is one column"
            raise DataError(what, fix="name one file for each column, and further files in a source of their own")
        for file in files:
            found.setdefault(f"{file.path}\0{file.member}", file)
    return list(found.values()) if source.kind in TOGETHER else sorted(found.values(), key=lambda file: file.name)


def _fits(name: str, kind: str) -> bool:
    """Whether a file found in a folder or an archive is one of a kind, by its suffix."""
    found = _kind(name)
    stem, suffix = os.path.splitext(name.lower())
    inner = os.path.splitext(stem)[1] if suffix in PACKED else suffix
    if kind in NAMED_KINDS:
        return inner in NAMED_KINDS[kind]
    return found is not None and kind in ("auto", found)


def _kind(name: str) -> Kind | None:
    """The kind a file's suffix stands for, looking through a packing suffix; None if unknown."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in PACKED:
        inner = os.path.splitext(stem)[1]
        return KINDS.get(inner) or ("text" if suffix == ".zip" or inner in _ALSO_TEXT else None)
    return KINDS.get(suffix)


def _describe(path: str, names: Names, source: Source, index: int, member: str | None) -> Iterator[SourceFile]:
    """The file at a path as a SourceFile; for an archive, one for each member that fits."""
    kind = source.kind if source.kind != "auto" else _kind(path) or _by_suffix(path)
    if kind is None:
        known = ", ".join(KINDS)
        others = ", ".join(kind for kind in get_args(Kind) if kind != "text")
        fix = f"say `kind: text` (or {others}); `auto` knows {known}, also with .gz, .zst and .zip"
        raise DataError(f"cannot tell the kind of {path!r} from its suffix", fix=fix)
    name, folder = names.name(path), names.folder(path)
    if path.lower().endswith(".zip"):
        yield from _members(path, name, source, index, member)
    else:
        yield SourceFile(path, name, kind, index, folder=folder, size=os.path.getsize(path))


def _by_suffix(path: str) -> Kind | None:
    """The kind of a file that a recipe names, where a folder's listing would pass it by."""
    stem, suffix = os.path.splitext(path.lower())
    inner = os.path.splitext(stem)[1] if suffix in PACKED else suffix
    return "json" if inner == ".json" else "text" if suffix in _ALSO_TEXT else None


def _members(path: str, name: str, source: Source, index: int, wanted: str | None) -> Iterator[SourceFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
    except OSError as error:
        raise unreadable(name, error) from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{name!r} is no zip archive ({error})", fix="fetch it again, or `exclude` it") from error
    fits = expression(wanted) if wanted else None
    for entry in entries:
        base = entry.filename.rpartition("/")[2]
        if entry.is_dir() or base.startswith((".", "_")) or "__MACOSX" in entry.filename:
            continue
        found = _kind(base)
        if fits is not None:
            is_wanted, found = fits.fullmatch(entry.filename) is not None, found or _by_suffix(base) or "text"
        else:
            is_wanted = (found is None and source.kind not in DIGESTED) or _fits(base, source.kind)
        kind = source.kind if source.kind != "auto" else found
        if is_wanted and kind is not None and kind != "parquet":
            top = entry.filename.partition("/")[0]
            yield SourceFile(path, f"{name}!{entry.filename}", kind, index, entry.filename, top, entry.file_size)


def _why_none(pattern: str, source: Source, member: str | None) -> str:
    place = expand(pattern)
    if member is not None:
        return f"the archive holds no such file as {member!r}; list it with: unzip -l {pattern}"
    if os.path.isdir(place):
        named = NAMED_KINDS.get(source.kind) or {s for s, kind in KINDS.items() if source.kind in ("auto", kind)}
        suffixes = ", ".join(s for s in (*KINDS, *sorted(named - KINDS.keys())) if s in named)
        return f"the folder holds no {suffixes} file; name others by a glob such as {pattern.rstrip('/')}/**/*.py"
    parent = Path(fixed_part(place) if MAGIC.search(place) else place)
    while not parent.exists():
        missing, parent = parent, parent.parent
        if parent.exists():
            return f"{str(missing)!r} does not exist (paths are relative to {os.getcwd()!r})"
    return f"{str(parent)!r} exists, but nothing in it fits; is a part of the pattern misspelt, or `exclude` too wide?"
