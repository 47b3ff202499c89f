"""Server-sent events as OpenAI's streams have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from groundup.serving.api.errors import written

DONE = b"data: [DONE]\n\n"
SILENCE = b": still at work\n\n"
"""A comment, which readers of events skip: it only keeps the connection open."""


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + written(data) + b"\n\n"


def events_of(head: Mapping[str, Any], tail: str = "") -> Callable[[Mapping[str, Any]], bytes]:
    """A function from a choice to its event: what all events of a stream share is written once."""
    begin = f'data: {json.dumps(head, separators=(",", ":"), ensure_ascii=False)[:-1]},"choices":['
    end = f"]{tail}}}\n\n"

    def made(choice: Mapping[str, Any]) -> bytes:
        text = json.dumps(choice, separators=(",", ":"), ensure_ascii=False)
        return f"{begin}{text}{end}".encode("utf-8", "backslashreplace")

    return made
