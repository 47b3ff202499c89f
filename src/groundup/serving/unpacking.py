"""Files that users send, unpacked in processes that may die of it.

A picture of a few kilobytes can fill gigabytes, and a decoder written in C can be sent into an endless loop or worse.
The functions that read files look at what a header promises first, and that is enough for the files one can think
of. For the others a row with a file in it is encoded by its task in a process of its own, which the operating system
grants only so much memory and this one only so much time. It needs no torch and no weights, only the task. What
comes back are arrays, small and of known shapes. Meanwhile the engine goes on with everything else; a process that
had to be ended is replaced, and only the row it died of fails.

This file is also the program of these processes. Both ways a message is two lengths, a JSON object, and the bytes
that it tells of.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from groundup import config
from groundup.config import Named
from groundup.errors import DataError, GroundupError
from groundup.serving import process as processes
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
START_S = 60.0
"""Seconds that a process may take to begin."""
LENGTHS = struct.Struct(">II")
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
        child = Child(self.seconds, self.memory)
        try:
            while (row := self._next()) is not None:
                if row.future.set_running_or_notify_cancel():
                    try:
                        row.future.set_result(row.made(child.encode(row.section, row.example)))
                    except BaseException as error:
                        row.future.set_exception(error)
                with suppress(OSError):  # the engine has ended meanwhile
                    self.wake()
        finally:
            child.close()

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


class Child:
    """A process that encodes rows; started when it is first needed, and again when it had to be ended."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None

    def encode(self, section: Named, example: Mapping[str, Any]) -> Columns:
        """The columns of an example. Raises DataError for one that cannot be read, or not within the limits."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None, "it was started with pipes"
        blobs = {name: value for name, value in example.items() if isinstance(value, bytes)}
        plain = {name: value for name, value in example.items() if name not in blobs}
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.seconds, end)
        timer.start()
        try:
            _write(process.stdin, {"task": config.dump(section), "row": plain, "blobs": _sizes(blobs)}, blobs)
            answer = _read(process.stdout)
        except OSError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            if late.is_set():
                what = f"the file was not read within {self.seconds:g} s"
                raise DataError(what, fix="send a smaller one, or write it anew with another program")
            raise DataError("the file cannot be read: its decoder broke down", fix="write it anew with another program")
        return _columns(*answer)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The allocator reserves 64 MB more for each thread otherwise, and memory is limited as it is reserved.
                env=os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C in the terminal is for the server
            )
            # What it needs to begin is not the row's time.
            assert self._process.stdout is not None, "it was started with pipes"
            timer = threading.Timer(START_S, self._process.kill)
            timer.start()
            is_up = _read(self._process.stdout) is not None
            timer.cancel()
            if not is_up:
                self.close()
                raise GroundupError("the process that reads files did not start", fix="see `groundup doctor`")
        assert self._process is not None, "it was just started"
        return self._process


def _columns(head: Mapping[str, Any], body: bytes) -> Columns:
    """The columns of an answer. Raises DataError where it is a refusal."""
    refused = head.get("refused")
    if refused is not None:
        raise DataError(refused["what"], fix=refused["fix"])
    if "fault" in head:
        raise RuntimeError(f"{head['fault']} where a row was encoded")
    found: Columns = dict(head["lists"])
    start = 0
    for name, (kind, size) in head["arrays"].items():
        found[name] = np.frombuffer(body, kind, count=size // np.dtype(kind).itemsize, offset=start)
        start += size
    return found


def _write(pipe: IO[bytes], head: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
    """Write a message. Raises OSError when nobody reads it."""
    data = json.dumps(head).encode("ascii")
    pipe.write(LENGTHS.pack(len(data), sum(map(len, blobs.values()))) + data)
    for blob in blobs.values():
        pipe.write(blob)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """A message; None where there is none any more, or half of one."""
    lengths = pipe.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    first, rest = LENGTHS.unpack(lengths)
    data, body = pipe.read(first), pipe.read(rest)
    return (json.loads(data), body) if len(data) == first and len(body) == rest else None


def _sizes(blobs: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(value) for name, value in blobs.items()}


# ------------------------------------------------------------------------------ in the process


def _serve() -> None:
    """Answer each row with its columns, until nobody asks any more."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    _write(target, {}, {})
    while (asked := _read(source)) is not None:
        head, arrays = _answer(*asked)
        del asked  # before the next is read: memory is limited
        _write(target, head, {name: array.tobytes() for name, array in arrays.items()})


def _answer(head: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The head of an answer, and the arrays that it tells of."""
    example, start = dict(head["row"]), 0
    for name, size in head["blobs"].items():
        example[name] = body[start : start + size]
        start += size
    try:
        found = _task(json.dumps(head["task"])).encode(example)
    except MemoryError:
        what = "the file needs more memory to be read than it is given"
        return {"refused": {"what": what, "fix": "send a smaller one"}}, {}
    except GroundupError as error:
        return {"refused": {"what": error.what, "fix": error.fix}}, {}
    except Exception as error:
        return {"fault": type(error).__name__}, {}
    arrays = {name: np.ravel(value) for name, value in found.items() if isinstance(value, np.ndarray)}
    lists = {name: value for name, value in found.items() if name not in arrays}
    kinds = {name: (array.dtype.str, array.nbytes) for name, array in arrays.items()}
    return {"arrays": kinds, "lists": lists}, arrays


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
    _serve()


if __name__ == "__main__":
    main()
