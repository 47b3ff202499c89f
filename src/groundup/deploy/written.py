"""Writing what a deployment consists of: a folder of files that a person reads, and changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from groundup.artifact import write_whole
from groundup.errors import UserError


class Files:
    """A folder that files are written into; nothing that is there already is replaced by something else.

    Raises UserError, before a byte is written over, for a file that exists with other content.
    """

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        self.folder, self.force = folder, force
        self.written: list[Path] = []

    def write(self, name: str, text: str) -> None:
        """Write one file, its folder made."""
        path = self.folder / name
        if not self.force and path.is_file() and path.read_text(encoding="utf-8") != text:
            fix = "give another folder with --out, or --force to replace what is there"
            raise UserError("the file exists and is not what would be written", where=str(path), fix=fix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        self.written.append(path)


def yaml_text(data: Any) -> str:
    """Plain data as YAML, long texts as blocks."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(_blocks(data), out)
    return out.getvalue()


def _blocks(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _blocks(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_blocks(value) for value in data]
    return LiteralScalarString(data) if isinstance(data, str) and "\n" in data else data
