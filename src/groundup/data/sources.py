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
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import zstandard
from pydantic import Field, field_validator

from groundup.config import Section
from groundup.errors import DataError

Kind = Literal["text", "jsonl", "csv", "tsv", "parquet"]
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""The kind a suffix stands for; `.gz`, `.zst` and `.zip` are looked through."""
PACKED = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_ALSO_TEXT = (".log", ".html", ".htm", ".xml", ".tex", ".py", ".c", ".h", ".cpp", ".java", ".js", ".ts", ".go", ".rs")
_MAGIC = re.compile(r"[*?\[]")
_CACHES = frozenset({"__pycache__"})
_INSTALLED = _CACHES | {"site-packages", "dist-packages"}


class Source(Section):
    """Where documents come from, and how a file becomes documents."""

    kind: Literal["auto", "text", "jsonl", "csv", "tsv", "parquet"] = "auto"
    """How to read the files; `auto` goes by the suffix."""
    paths: list[str]
    """Files, folders or globs (`**` for any depth). `~` is the home folder, `{stdlib}` the folder of
    Python's standard library; other paths are relative to the current directory."""
    exclude: list[str] = Field(default=[])
    """Globs of files to leave out, written like `paths`; one that begins with `**/` holds anywhere."""
    document: Literal["file", "line", "paragraph"] = "file"
    """What one document of a text file is; paragraphs are divided by empty lines."""
    text_field: str | list[str] = "text"
    """The column that holds the text, or several that are joined by line ends. In JSONL a dotted path
    (`meta.body`) reaches inside; a list of strings found there is joined by line ends."""
    keep: list[str] = Field(default=[])
    """Other columns to carry into the corpus, for example `label`."""
    columns: list[str] | None = None
    """Names of the columns of a CSV or TSV file without a header line."""
    quotes: bool | None = None
    """Whether double quotes enclose fields of a CSV or TSV file; by default they do in CSV only."""
    encoding: str = "auto"
    """Character encoding; `auto` finds UTF-8, UTF-16 and GB18030."""
    licence: str = ""
    """Licence of the data, carried into every artefact made from it."""
    split: Literal["train", "validation", "test"] | None = None
    """Put all documents of this source into one split, instead of dividing them."""

    @field_validator("paths", "exclude", "keep", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("paths")
    @classmethod
    def _at_least_one(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one file, folder or glob")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if value != "auto":
            try:
                "".encode(value)
            except LookupError:
                raise ValueError(f"no encoding named {value!r}; try auto, utf-8, utf-16, gb18030 or latin-1") from None
        return value


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
        """Unpacked size, estimated for packed files from how well text usually packs."""
        factor = {"gzip": 3.5, "zstd": 3.5}.get(self.packing, 3.0 if self.kind == "parquet" else 1.0)
        return int(self.size * factor)


def find_files(source: Source, index: int = 0) -> list[SourceFile]:
    """The files of a source in a fixed order, each once.

    Raises DataError for a path without matches, and for one that cannot be read or told a kind.
    """
    left_out = [_Exclusion(pattern) for pattern in source.exclude]
    found: dict[str, SourceFile] = {}
    for pattern in source.paths:
        names = _Names(pattern)
        matches = [p for p in _matches(pattern, source.kind) if not any(out.covers(p, names.top) for out in left_out)]
        if not matches:
            raise DataError(f"no file matches {pattern!r}", fix=_why_none(pattern, source))
        for path in matches:
            for file in _describe(path, names, source, index):
                found.setdefault(f"{file.path}\0{file.member}", file)
    return sorted(found.values(), key=lambda file: file.name)


def expand(pattern: str) -> str:
    """A path as the system knows it: `{stdlib}` and `~` filled in, symbolic links untouched."""
    if "{stdlib}" in pattern:
        pattern = pattern.replace("{stdlib}", sysconfig.get_path("stdlib"))
    return os.path.abspath(os.path.expanduser(pattern))


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a file or folder that the system refuses to open."""
    reason = (error.strerror or type(error).__name__).lower()
    fix = f"give yourself the right to read it (chmod u+r {name}), or add it to `exclude`"
    return DataError(f"cannot read {name!r}: {reason}", fix=fix)


def _matches(pattern: str, kind: str) -> Iterator[str]:
    """Paths of the files a pattern names, in a fixed order; hidden files and byte-code caches never."""
    place = expand(pattern)
    skip = _INSTALLED if "{stdlib}" in pattern else _CACHES
    if os.path.isdir(place):
        _refuse_unreadable(place, pattern)
        for path in _walk(place, skip, depth=None):
            found = _kind(path)
            if found is not None and kind in ("auto", found):
                yield path
    elif _MAGIC.search(place) and os.path.isdir(fixed_part(place)):
        fixed, fits = fixed_part(place), _expression(place)
        _refuse_unreadable(fixed, pattern)
        depth = None if "**" in place else place.count(os.sep) - fixed.rstrip(os.sep).count(os.sep)
        yield from (path for path in _walk(fixed, skip, depth) if fits.fullmatch(path))
    elif os.path.isfile(place):
        yield place


def _walk(folder: str, skip: frozenset[str], depth: int | None) -> Iterator[str]:
    """Files below a folder, down to `depth` levels; what is hidden or in `skip` is passed by."""

    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error)

    for root, folders, names in os.walk(folder, onerror=refuse):
        level = 1 + os.path.relpath(root, folder).count(os.sep) + (root != folder)
        deeper = depth is None or level < depth
        folders[:] = sorted(n for n in folders if deeper and not n.startswith(".") and n not in skip)
        yield from (os.path.join(root, name) for name in sorted(names) if not name.startswith("."))


def _refuse_unreadable(folder: str, pattern: str) -> None:
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise unreadable(pattern, PermissionError(13, "permission denied"))


def _kind(name: str) -> Kind | None:
    """The kind a file's suffix stands for, looking through a packing suffix; None if unknown."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in PACKED:
        inner = os.path.splitext(stem)[1]
        return KINDS.get(inner) or ("text" if suffix == ".zip" or inner in _ALSO_TEXT else None)
    return KINDS.get(suffix)


def _describe(path: str, names: _Names, source: Source, index: int) -> Iterator[SourceFile]:
    """The file at a path as a SourceFile; for an archive, one for each member that fits."""
    kind = source.kind if source.kind != "auto" else _kind(path) or _text_by_suffix(path)
    if kind is None:
        known = ", ".join(KINDS)
        fix = f"say `kind: text` (or jsonl, csv, tsv, parquet); `auto` knows {known}, also with .gz, .zst and .zip"
        raise DataError(f"cannot tell the kind of {path!r} from its suffix", fix=fix)
    name, folder = names.name(path), names.folder(path)
    if path.lower().endswith(".zip"):
        yield from _members(path, name, source, index)
    else:
        yield SourceFile(path, name, kind, index, folder=folder, size=os.path.getsize(path))


def _text_by_suffix(path: str) -> Kind | None:
    return "text" if os.path.splitext(path.lower())[1] in _ALSO_TEXT else None


def _members(path: str, name: str, source: Source, index: int) -> Iterator[SourceFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
    except OSError as error:
        raise unreadable(name, error) from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{name!r} is no zip archive ({error})", fix="fetch it again, or `exclude` it") from error
    for entry in entries:
        base = entry.filename.rpartition("/")[2]
        if entry.is_dir() or base.startswith((".", "_")) or "__MACOSX" in entry.filename:
            continue
        found = _kind(base)
        kind = source.kind if source.kind != "auto" else found
        if kind is not None and kind != "parquet" and found in (kind, None):
            top = entry.filename.partition("/")[0]
            yield SourceFile(path, f"{name}!{entry.filename}", kind, index, entry.filename, top, entry.file_size)


def fixed_part(pattern: str) -> str:
    """The folder below which a pattern varies: everything before its first wildcard."""
    parts = pattern.split(os.sep)
    wild = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    return os.sep.join(parts[:wild]) or os.sep


class _Names:
    """Turns paths that a pattern matched into the names and top folders of the corpus."""

    def __init__(self, pattern: str) -> None:
        place = expand(pattern)
        wild = _MAGIC.search(pattern) is not None
        self.root = fixed_part(place) if wild else place
        self.written = (fixed_part(pattern) if wild else pattern).rstrip(os.sep)
        if wild and not pattern.startswith(os.sep) and self.written == "":
            self.written = "."
        self.top = self.root if wild or os.path.isdir(place) else os.path.dirname(place)

    def name(self, path: str) -> str:
        """The path with the beginning that the recipe wrote: `~/…`, `{stdlib}/…` or relative."""
        if path == self.root:
            return self.written.replace(os.sep, "/")
        below = _below(path, self.root)
        return (below if self.written == "." else f"{self.written}{os.sep}{below}").replace(os.sep, "/")

    def folder(self, path: str) -> str:
        """The first folder below the fixed part of the pattern, or the file's own name."""
        return _below(path, self.top).partition(os.sep)[0]


def _below(path: str, root: str) -> str:
    return path[len(root) :].lstrip(os.sep)


class _Exclusion:
    """A glob of files and folders to leave out.

    One that begins with `**` holds below the fixed part of each path, wherever that lies.
    """

    def __init__(self, pattern: str) -> None:
        self.anywhere = pattern.startswith("**")
        self.expression = _expression(pattern if self.anywhere else expand(pattern))

    def covers(self, path: str, root: str) -> bool:
        """Whether a file found below `root`, or a folder it lies in, is left out."""
        return self.expression.match(_below(path, root) if self.anywhere else path) is not None


def _expression(pattern: str) -> re.Pattern[str]:
    """A glob as an expression that also matches the folders a path lies in. `*` stops at a slash."""
    parts = re.split(r"(\*\*/?|\*|\?|\[!?[^]]+\])", pattern.rstrip(os.sep))
    written = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    known = [
        written.get(p) or (p.replace("[!", "[^") if p[:1] == "[" and p[-1:] == "]" else re.escape(p)) for p in parts
    ]
    return re.compile("".join(known) + "(?=/|$)")


def _why_none(pattern: str, source: Source) -> str:
    place = expand(pattern)
    if os.path.isdir(place):
        suffixes = ", ".join(s for s, kind in KINDS.items() if source.kind in ("auto", kind))
        return f"the folder holds no {suffixes} file; name others by a glob such as {pattern.rstrip('/')}/**/*.py"
    parent = Path(fixed_part(place) if _MAGIC.search(place) else place)
    while not parent.exists():
        missing, parent = parent, parent.parent
        if parent.exists():
            return f"{str(missing)!r} does not exist (paths are relative to {os.getcwd()!r})"
    return f"{str(parent)!r} exists, but nothing in it fits; is a part of the pattern misspelt, or `exclude` too wide?"
