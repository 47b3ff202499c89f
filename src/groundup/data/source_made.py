"""Rows made from files whose rows are not lines; `data/source_formats.py` says which kinds those are."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from groundup.data.source_files import SourceFile
from groundup.data.source_paths import unreadable
from groundup.errors import DataError

LEFT_OUT = "left out: "
"""What a reason begins with where a recipe's wish, and no flaw of the data, leaves a row out."""


class Made(NamedTuple):
    """One row: a mapping, or the reason why there is none."""

    place: int
    """Its number in the file from 1: of JSON the row, of text the line, of pictures the picture."""
    row: dict[str, Any] | list[Any] | None
    bad: str = ""


@dataclass(frozen=True)
class Rows:
    """The rows of a file and how far its bytes have been read."""

    rows: Generator[Made, None, None]
    taken: Callable[[int], int]
    """Stored bytes that the first n rows account for."""


def damaged(file: SourceFile, error: Exception) -> DataError:
    """The error for a file that the system does not let us read, or whose packing is broken."""
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(file.name, error)
    return DataError(f"{file.name!r} is damaged: {error}", fix="fetch the file again, or add it to `exclude`")
