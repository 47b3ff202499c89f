"""What the HTTP interface allows a request, and where it keeps files and batch jobs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from groundup.config import Section
from groundup.units import Bytes, Duration, PositiveCount


class Settings(Section):
    """Limits of one request, and of the jobs beside them."""

    max_file: Bytes = 256 << 20
    """The longest file of a batch job."""
    max_files: PositiveCount = 1000
    """How many files are kept for one key."""
    max_media: Bytes = 8 << 20
    """The longest image or recording in a row. It comes in a body, which has a limit of its own."""
    max_parts: PositiveCount = 64
    """The most parts of a form: files, and fields beside them."""
    max_new_tokens: PositiveCount = 4096
    """The most tokens of an answer, and how many a chat may have that asks for no limit."""
    max_rows: PositiveCount = 256
    """The most rows (texts, pairs) of one request to a labelled task or for vectors."""
    max_time: Duration = 600.0
    """Seconds after which an answer ends where it is. A request may ask for less with `timeout`."""
    keep_alive: Duration = 10.0
    """Seconds of silence in a stream after which a comment is sent, so that nobody in between hangs up."""
    batch_concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests of batch jobs that are in the engine at once; they come after all others."""
