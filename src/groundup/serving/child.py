"""Work that may run away, in a process of its own: asked one thing at a time, ended when an answer takes too long.

Both ways a message is two lengths, a JSON object, and the bytes that it tells of. The program of such a process loads
what it needs, limits its memory (`process.limit_memory`) and calls `answer_all`.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from groundup.errors import GroundupError

START_S = 60.0
"""Seconds that a process may take to begin."""
LENGTHS = struct.Struct(">II")
Blobs = Mapping[str, bytes]
"""Bytes by name; the head of a message says how long each is."""


class Ended(Exception):
    """A process ended without an answer; `late` where that was because its time was up."""

    def __init__(self, late: bool) -> None:
        super().__init__("late" if late else "broken down")
        self.late = late


class Child:
    """`python -m MODULE ARGUMENTS`, started when it is first needed, and again when it had to be ended.

    `seconds` is the time that an answer may take, `does` what the process does, for the error where it does not start.
    """

    def __init__(self, module: str, *arguments: str, seconds: float, does: str) -> None:
        self.command = [sys.executable, "-m", module, *arguments]
        self.seconds, self.does = seconds, does
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, head: Mapping[str, Any], blobs: Blobs | None = None) -> tuple[dict[str, Any], bytes]:
        """The answer to a message. Raises Ended where there is none, GroundupError if the process does not start."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None, "it was started with pipes"
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.seconds, end)
        timer.start()
        try:
            _write(process.stdin, head, blobs or {})
            answer = _read(process.stdout)
        except OSError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            raise Ended(late.is_set())
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        process = self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The allocator reserves 64 MB more for each thread otherwise, and memory is limited as it is reserved.
            env=os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is for the server
        )
        assert process.stdout is not None, "it was started with pipes"
        # What it needs to begin is not the time of what is asked of it.
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        is_up = _read(process.stdout) is not None
        timer.cancel()
        if not is_up:
            self.close()
            raise GroundupError(f"the process that {self.does} did not start", fix="see `groundup doctor`")
        return process


def answer_all(answer: Callable[[dict[str, Any], bytes], tuple[Mapping[str, Any], Blobs]]) -> None:
    """In the process: answer each message, until nobody asks any more."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    _write(target, {}, {})
    while (asked := _read(source)) is not None:
        head, blobs = answer(*asked)
        del asked  # before the next is read: memory is limited
        _write(target, head, blobs)


def sizes(blobs: Blobs) -> dict[str, int]:
    """The lengths of blobs by name, for the head of their message."""
    return {name: len(value) for name, value in blobs.items()}


def cut(body: bytes, lengths: Mapping[str, int]) -> dict[str, bytes]:
    """The blobs of a message by name, given their lengths."""
    found, start = {}, 0
    for name, length in lengths.items():
        found[name] = body[start : start + length]
        start += length
    return found


def _write(pipe: IO[bytes], head: Mapping[str, Any], blobs: Blobs) -> None:
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
