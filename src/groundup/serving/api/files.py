"""Files of batch jobs, as OpenAI's `/v1/files` has them: what was sent, and what jobs wrote.

A file is two: its content, and a JSON file that says what it is and whose. They are named by ids drawn here, never by
what a client calls them. Content is written under another name and renamed, so there are no half files.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundup.artifact import write_whole
from groundup.serving.api.calling import Caller, now
from groundup.serving.api.errors import ApiError, bad

ID = re.compile(r"(file|batch)-[0-9a-f]{24}")
PURPOSES = ("batch",)
LONGEST_NAME = 255


@dataclass(frozen=True)
class File:
    """What is known of a file beside its content."""

    id: str
    owner: str
    """The id of the key that may read it; other keys do not see it."""
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def as_data(self) -> dict[str, Any]:
        """OpenAI's file object."""
        data = asdict(self)
        del data["owner"]
        return {**data, "object": "file", "status": "processed"}


class Files:
    """The files under a folder."""

    def __init__(self, folder: Path, *, max_file: int, max_files: int) -> None:
        self.folder, self.max_file, self.max_files = folder, max_file, max_files
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.part"):
            unfinished.unlink()

    async def write(self, caller: Caller, name: str, purpose: str, content: AsyncIterator[bytes]) -> File:
        """Keep a file that is sent. Raises ApiError for one that is too long, and for too many."""
        if purpose not in PURPOSES:
            raise bad(f"files are not kept for {purpose[:64]!r}", "purpose", fix=f"one of: {', '.join(PURPOSES)}")
        if sum(file.owner == caller.key for file in self._all()) >= self.max_files:
            raise bad(f"{self.max_files} files are kept for this key already", "file", fix="delete some")
        new = new_id("file")
        part = self.folder / f"{new}.part"
        size = 0
        try:
            with part.open("wb") as file:
                async for piece in content:
                    size += len(piece)
                    if size > self.max_file:
                        what = f"the file is longer than {self.max_file} bytes"
                        raise ApiError(413, "file_too_large", what, param="file", fix="split it")
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            return self._keep(part, File(new, caller.key, name[:LONGEST_NAME], purpose, size, now()))
        finally:
            part.unlink(missing_ok=True)

    def adopt(self, path: Path, owner: str, name: str, purpose: str) -> File:
        """Keep a file that was written here, and remove it from where it was."""
        return self._keep(path, File(new_id("file"), owner, name, purpose, path.stat().st_size, now()))

    def get(self, caller: Caller, file_id: str) -> File:
        """What is known of a file. Raises ApiError (404) where there is none that the caller may see."""
        path = self.folder / f"{file_id}.json"
        if ID.fullmatch(file_id) and path.is_file():
            found = File(**json.loads(path.read_text(encoding="utf-8")))
            if may_see(caller, found.owner):
                return found
        raise ApiError(404, "file_not_found", f"there is no file {file_id[:64]!r}", param="file_id")

    def listed(self, caller: Caller) -> list[File]:
        """The files that the caller may see, newest first."""
        found = [file for file in self._all() if may_see(caller, file.owner)]
        return sorted(found, key=lambda file: (-file.created_at, file.id))

    def content(self, file: File) -> Path:
        """Where the content lies."""
        return self.folder / f"{file.id}.jsonl"

    def delete(self, file: File) -> None:
        """Remove a file for good."""
        (self.folder / f"{file.id}.json").unlink(missing_ok=True)
        self.content(file).unlink(missing_ok=True)

    def _keep(self, path: Path, file: File) -> File:
        os.replace(path, self.content(file))
        write_whole(self.folder / f"{file.id}.json", json.dumps(asdict(file)))
        return file

    def _all(self) -> Iterator[File]:
        for path in self.folder.glob("file-*.json"):
            yield File(**json.loads(path.read_text(encoding="utf-8")))


def new_id(kind: str) -> str:
    """A name that nobody can guess."""
    return f"{kind}-{secrets.token_hex(12)}"


def may_see(caller: Caller, owner: str) -> bool:
    """Whether a caller may see what a key owns: its own, and an administrator everything."""
    return caller.key == owner or "admin" in caller.scopes
