"""What a stage tells the user while it works, and what the user tells a stage.

A `Reporter` is passed down; the command line draws it with rich, `--quiet` and the library use the
silent base class, `--json` prints one object a line. Interruption is a flag that long loops poll, so
that a stage stops at a point where its state is whole.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Reporter:
    """Receives progress and says nothing; subclasses show it."""

    def start(self, stage: str, doing: str = "") -> None:
        """A stage begins."""

    def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
        """`done` of `total` units of `doing`; `figures` are shown beside (loss=…, tokens_s=…)."""

    def note(self, text: str) -> None:
        """One line that stays on the screen."""

    def finish(self, stage: str, **figures: Any) -> None:
        """A stage has ended well."""

    def close(self) -> None:
        """Nothing more will be reported."""


class JsonReporter(Reporter):
    """One JSON object per event on standard error; standard output is the result's alone."""

    def __init__(self, every_s: float = 1.0) -> None:
        self.every_s, self.last = every_s, 0.0

    def _print(self, **event: Any) -> None:
        shown = {key: value for key, value in event.items() if value not in (None, "")}
        print(json.dumps(shown, default=str), file=sys.stderr, flush=True)

    def start(self, stage: str, doing: str = "") -> None:
        self._print(event="start", stage=stage, doing=doing)

    def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
        if time.monotonic() - self.last >= self.every_s:
            self.last = time.monotonic()
            self._print(event="progress", doing=doing, done=done, total=total, **figures)

    def note(self, text: str) -> None:
        self._print(event="note", text=text)

    def finish(self, stage: str, **figures: Any) -> None:
        self._print(event="finish", stage=stage, **figures)


_requested = False


def interrupt_requested() -> bool:
    """Whether SIGINT or SIGTERM has arrived since `interruptible` began."""
    return _requested


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a flag; a second SIGINT raises KeyboardInterrupt."""
    global _requested
    _requested = False

    def request(number: int, frame: FrameType | None) -> None:
        global _requested
        if _requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        _requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
