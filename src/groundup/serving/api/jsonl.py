"""Files of JSON lines that are appended to, and may have been cut short by whatever ended their writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def mended(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; what follows the last of them is cut off. Empty where there is no file."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    good = 0
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                break
            found.append(entry)
            good += len(line)
    if good != path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(good)
    return found
