"""Globs: which files a pattern of a recipe names, and what they are called in the corpus.

A name never contains the absolute part of a path that depends on the machine; see `data/source_files.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from groundup.errors import DataError
from groundup.places import expand

MAGIC = re.compile(r"[*?\[]")
"""What makes a path a pattern."""
_CACHES = frozenset({"__pycache__"})
_INSTALLED = _CACHES | {"site-packages", "dist-packages"}


def matches(pattern: str) -> Iterator[tuple[str, bool]]:
    """Paths of the files a pattern names, in a fixed order; hidden files and byte-code caches never.

    With each comes whether it was found by looking through a folder, where only files of known kinds count.
    """
    place = expand(pattern)
    skip = _INSTALLED if "{stdlib}" in pattern else _CACHES
    if os.path.isdir(place):
        _refuse_unreadable(place, pattern)
        yield from ((path, True) for path in _walk(place, skip, depth=None))
    elif MAGIC.search(place) and os.path.isdir(fixed_part(place)):
        fixed, fits = fixed_part(place), expression(place)
        _refuse_unreadable(fixed, pattern)
        depth = None if "**" in place else place.count(os.sep) - fixed.rstrip(os.sep).count(os.sep)
        yield from ((path, False) for path in _walk(fixed, skip, depth) if fits.fullmatch(path))
    elif os.path.isfile(place):
        yield place, False


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a file or folder that the system refuses to open."""
    reason = (error.strerror or type(error).__name__).lower()
    fix = f"give yourself the right to read it (chmod u+r {name}), or add it to `exclude`"
    return DataError(f"cannot read {name!r}: {reason}", fix=fix)


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


def fixed_part(pattern: str) -> str:
    """The folder below which a pattern varies: everything before its first wildcard."""
    parts = pattern.split(os.sep)
    wild = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
    return os.sep.join(parts[:wild]) or os.sep


class Names:
    """Turns paths that a pattern matched into the names and top folders of the corpus."""

    def __init__(self, pattern: str) -> None:
        place = expand(pattern)
        wild = MAGIC.search(pattern) is not None
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


class Exclusion:
    """A glob of files and folders to leave out.

    One that begins with `**` holds below the fixed part of each path, wherever that lies.
    """

    def __init__(self, pattern: str) -> None:
        self.anywhere = pattern.startswith("**")
        self.expression = expression(pattern if self.anywhere else expand(pattern))

    def covers(self, path: str, root: str) -> bool:
        """Whether a file found below `root`, or a folder it lies in, is left out."""
        return self.expression.match(_below(path, root) if self.anywhere else path) is not None


def expression(pattern: str) -> re.Pattern[str]:
    """A glob as an expression that also matches the folders a path lies in. `*` stops at a slash."""
    parts = re.split(r"(\*\*/?|\*|\?|\[!?[^]]+\])", pattern.rstrip(os.sep))
    written = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    known = [
        written.get(p) or (p.replace("[!", "[^") if p[:1] == "[" and p[-1:] == "]" else re.escape(p)) for p in parts
    ]
    return re.compile("".join(known) + "(?=/|$)")
