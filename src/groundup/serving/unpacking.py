"""Files that users send, unpacked in processes that may die of it.

A picture of a few kilobytes can fill gigabytes, and a decoder written in C can be sent into an endless loop or worse.
The functions that read files look at what a header promises first, and that is enough for the files one can think
of. For the others a row with a file in it is encoded by its task in a process of its own, which the operating system
grants only so much memory and this one only so much time. It needs no torch and no weights, only the task. What
comes back are arrays, small and of known shapes. Meanwhile the engine goes on with everything else; a process that
had to be ended is replaced, and only the row it died of fails.

This file is also the program of these processes (see `child.py`).
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from groundup import config
from groundup.config import Named
from groundup.errors import DataError, GroundupError
from groundup.serving import process as processes
from groundup.serving.child import Child, Ended, answer_all, cut, sizes
from groundup.serving.faults import Full

SECONDS = 10.0
"""Seconds that one row may take; a photo of fifty million pixels takes about one."""
MEMORY = 768 << 20
"""Bytes that it may take beside the process itself."""
HANDS = 2
"""Processes at most: more would only take time from the models."""
IDLE_S = 60.0
"""Seconds without a row after which a process ends."""
MOST_BYTES = 256 << 20
"""Bytes of all rows that may wait."""
Columns = dict[str, Any]
"""What `encode` of a task gives: arrays and lists of numbers by name."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class _Row:
    """A row that waits."""

    section: Named
    example: Mapping[str, Any]
    made: Callable[[Columns], Any]
    future: Future[Any]
    size: int


class Unpacker:
    """Rows with files in them, encoded elsewhere; the rows of different keys take turns.

    `wake` is called, from another thread, whenever a row is done.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        *,
        hands: int = HANDS,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.wake, self.hands, self.seconds, self.memory, self.most_bytes = wake, hands, seconds, memory, most_bytes
        self._changed = threading.Condition()
        self._queues: dict[str, deque[_Row]] = {}
        """By key; the key whose turn it is comes first."""
        self._waiting_bytes = 0
        self._working = self._idle = 0
        self._is_closed = False

    def submit(
        self, section: Named, example: Mapping[str, Any], made: Callable[[Columns], Made], *, key: str = ""
    ) -> Future[Made]:
        """What `made` makes of the encoded columns of an example of a task. Raises Full.

        The future has DataError for a row that the task cannot read, or that takes too much time or memory.
        """
        size = sum(len(value) for value in example.values() if isinstance(value, bytes))
        future: Future[Made] = Future()
        with self._changed:
            if self._waiting_bytes and self._waiting_bytes + size > self.most_bytes:
                raise Full(f"{self._waiting_bytes >> 20} MB of files are waiting to be read already", 1.0)
            self._waiting_bytes += size
            self._queues.setdefault(key, deque()).append(_Row(section, example, made, future, size))
            if sum(map(len, self._queues.values())) > self._idle and self._working < self.hands:
                self._working += 1
                threading.Thread(target=self._work, name="unpacking", daemon=True).start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """End the processes when they have done what they are at."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        """Have one process encode row after row, until nobody has asked for a while."""
        encoder = Encoder(self.seconds, self.memory)
        try:
            while (row := self._next()) is not None:
                if row.future.set_running_or_notify_cancel():
                    try:
                        row.future.set_result(row.made(encoder.encode(row.section, row.example)))
                    except BaseException as error:
                        row.future.set_exception(error)
                with suppress(OSError):  # the engine has ended meanwhile
                    self.wake()
        finally:
            encoder.close()

    def _next(self) -> _Row | None:
        """The row whose turn it is, waiting for one; None when it is time to end."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._queues or self._is_closed, IDLE_S)
            self._idle -= 1
            if not self._queues or self._is_closed:
                self._working -= 1
                return None
            key, queue = next(iter(self._queues.items()))
            row = queue.popleft()
            del self._queues[key]
            if queue:
                self._queues[key] = queue  # to the end of the line
            self._waiting_bytes -= row.size
            return row


class Encoder(Child):
    """A process that encodes rows."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        super().__init__(__name__, str(memory), seconds=seconds, does="reads files")

    def encode(self, section: Named, example: Mapping[str, Any]) -> Columns:
        """The columns of an example. Raises DataError for one that cannot be read, or not within the limits."""
        blobs = {name: value for name, value in example.items() if isinstance(value, bytes)}
        plain = {name: value for name, value in example.items() if name not in blobs}
        try:
            head, body = self.ask({"task": config.dump(section), "row": plain, "blobs": sizes(blobs)}, blobs)
        except Ended as end:
            if end.late:
                what = f"the file was not read within {self.seconds:g} s"
                raise DataError(what, fix="send a smaller one, or write it anew with another program") from end
            what = "the file cannot be read: its decoder broke down"
            raise DataError(what, fix="write it anew with another program") from end
        return _columns(head, body)


def _columns(head: Mapping[str, Any], body: bytes) -> Columns:
    """The columns of an answer. Raises DataError where it is a refusal."""
    refused = head.get("refused")
    if refused is not None:
        raise DataError(refused["what"], fix=refused["fix"])
    if "fault" in head:
        raise RuntimeError(f"{head['fault']} where a row was encoded")
    lists: Columns = head["lists"]
    arrays = cut(body, head["arrays"])
    return lists | {name: np.frombuffer(data, head["kinds"][name]) for name, data in arrays.items()}


# ------------------------------------------------------------------------------ in the process


def _answer(head: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The head of an answer, and the arrays that it tells of."""
    try:
        found = _task(json.dumps(head["task"])).encode(head["row"] | cut(body, head["blobs"]))
    except MemoryError:
        what = "the file needs more memory to be read than it is given"
        return {"refused": {"what": what, "fix": "send a smaller one"}}, {}
    except GroundupError as error:
        return {"refused": {"what": error.what, "fix": error.fix}}, {}
    except Exception as error:
        return {"fault": type(error).__name__}, {}
    kinds = {name: value.dtype.str for name, value in found.items() if isinstance(value, np.ndarray)}
    lists = {name: value for name, value in found.items() if name not in kinds}
    arrays = {name: found[name].tobytes() for name in kinds}
    return {"kinds": kinds, "arrays": sizes(arrays), "lists": lists}, arrays


_tasks: dict[str, Any] = {}


def _task(section: str) -> Any:
    """The task of a section, opened once."""
    from groundup import catalog

    if section not in _tasks:
        opened = config.named("tasks", json.loads(section))
        _tasks[section] = catalog.load("tasks", opened.name).Task(opened, None, 1)
    return _tasks[section]


def main() -> None:
    """Encode rows: `python -m groundup.serving.unpacking BYTES`, which it may have beside what it has at first."""
    with suppress(ImportError):  # loaded before memory is limited
        from PIL import Image

        Image.init()
    processes.limit_memory(int(sys.argv[1]))
    answer_all(_answer)


if __name__ == "__main__":
    main()
