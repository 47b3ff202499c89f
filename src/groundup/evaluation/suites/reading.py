"""Opening the files that test suites come in: folders, zips, CSV and JSON lines, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from groundup.errors import DataError


def text_of(path: Path) -> str:
    """The whole of a text file, unpacked if its name ends in .gz. Raises DataError if it cannot be read."""
    try:
        packed = path.read_bytes()
        return (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"cannot read the file ({error})", where=str(path), fix="give a UTF-8 file") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line. Raises DataError, naming the line, for anything else."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"no JSON ({error})", where=f"{path}:{number}", fix="one object a line") from error
        if not isinstance(found, dict):
            raise DataError(f"expected an object, found {line[:40]!r}", where=f"{path}:{number}")
        yield number, found


def tables(place: Path, split: str) -> Iterator[tuple[str, list[list[str]]]]:
    """The CSV files `SPLIT/NAME.csv` of a folder or a zip: where each lies, and its rows, sorted by name.

    Raises DataError if there are none.
    """
    found = sorted(_members(place, split))
    if not found:
        fix = f"a folder or zip that holds {split}/*.csv"
        raise DataError(f"no {split}/*.csv there", where=str(place), fix=fix)
    for name, text in found:
        yield name, [row for row in csv.reader(io.StringIO(text)) if row]


def _members(place: Path, split: str) -> Iterator[tuple[str, str]]:
    if place.is_dir():
        for path in (place / split).glob("*.csv"):
            yield str(path), text_of(path)
        return
    try:
        with zipfile.ZipFile(place) as packed:
            for name in packed.namelist():
                inner = PurePosixPath(name)
                if inner.suffix == ".csv" and inner.parent.name == split and not inner.name.startswith("."):
                    yield f"{place}/{name}", packed.read(name).decode("utf-8-sig")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the archive ({error})", where=str(place), fix="give a folder or a zip") from error
