"""A function spread over processes, its results in the order of its inputs.

The processes are started afresh rather than forked: a fork in the middle of a program that uses
threads (torch, tokenizers, pyarrow) can hang. They ignore Ctrl-C, which is for the parent to handle,
and they end with it, even when it is killed, because their pipe then closes. Each holds one item at a
time, so memory is a few items however long the stream.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from groundup.errors import StageFailed

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[R]:
    """`function(item)` for every item, in order, computed by `processes` processes.

    With one process everything happens here. `function`, items and results must be picklable.
    An exception in a process is raised here; a process that dies raises StageFailed.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    workers = [_Worker(function) for _ in range(processes)]
    try:
        yield from _in_turn(workers, iter(items))
    finally:
        for worker in workers:
            worker.stop()


def _in_turn(workers: list[_Worker], items: Iterator[Any]) -> Iterator[Any]:
    """Results worker by worker: item i goes to worker i modulo n, so order needs no bookkeeping."""
    busy = [worker for worker in workers if worker.give(items)]
    while busy:
        worker = busy.pop(0)
        result = worker.take()
        if worker.give(items):
            busy.append(worker)
        yield result


class _Worker:
    """One process and the parent's end of its pipe."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with _without_main(function):
            self.process.start()
        theirs.close()

    def give(self, items: Iterator[Any]) -> bool:
        """Send the next item; False if there is none."""
        for item in items:
            try:
                self.pipe.send(item)
            except OSError as error:
                raise self._died() from error
            return True
        return False

    def take(self) -> Any:
        """The result of the item sent last, or its exception, raised."""
        try:
            ok, result = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if not ok:
            raise result
        return result

    def stop(self) -> None:
        """Close the pipe, which ends an idle process, and end a busy one."""
        self.pipe.close()
        self.process.join(timeout=0.2)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()

    def _died(self) -> StageFailed:
        self.process.join(timeout=5)
        what = f"a worker process ended unexpectedly (exit code {self.process.exitcode})"
        return StageFailed(what, fix="most often memory ran out: run with fewer processes, or on a larger machine")


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: answer items until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while True:
        try:
            item = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, function(item)
        except Exception as error:
            answer = False, _portable(error)
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception as error:  # what came out cannot be sent
            pipe.send((False, _quoted(error)))


def _portable(error: Exception) -> Exception:
    """The exception itself if it can be put together again elsewhere, else a StageFailed that quotes it."""
    try:
        copy.copy(error)  # takes it apart and together as sending does
    except Exception:
        return _quoted(error)
    return error


def _quoted(error: Exception) -> StageFailed:
    return StageFailed("a worker process failed:\n" + "".join(traceback.format_exception(error)))


@contextmanager
def _without_main(function: Callable[[Any], Any]) -> Iterator[None]:
    """Hide the main module while a process starts, so that it is not run again there.

    A fresh process imports the program's main module first. A user's script without
    `if __name__ == "__main__"` would start itself over; nothing here needs it, unless the function
    was defined in it.
    """
    main = sys.modules["__main__"]
    if b"__main__" in bytes(ForkingPickler.dumps(function)):
        yield
        return
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
