"""Adaptive batching of rows for one model: computed together when that is worth waiting for, and at once when not.

Rows of all requests wait in one queue for each key and are taken from the keys in turn, so a request of a thousand
rows holds up nobody else's single one. A batch goes when it is full (rows or tokens), when its oldest row has waited
`max_wait_s`, or straight away while the machine has nothing else to do: waiting for company costs time only where
there is other work to share it with.

A row that cannot be read, or breaks the computation, fails alone: its batch is halved until the culprit stands by
itself. A row with a file in it is encoded elsewhere (`unpacking.py`) and waits for its batch when it comes back.
Everything is bounded; a request whose deadline passes before all its rows are computed fails whole.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from groundup.errors import GroundupError
from groundup.serving import faults, wire
from groundup.serving.answerers import Answerer, Encoded, NotNumbers
from groundup.serving.faults import Full as Full
from groundup.serving.wire import Frame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much is computed together, how long it is waited for, and how much may wait."""

    max_rows: int = 64
    max_tokens: int = 8192
    max_wait_s: float = 0.005
    max_waiting_rows: int = 4096
    max_waiting_tokens: int = 1 << 20


@dataclass
class Job:
    """One request: what came of each row so far."""

    id: int
    due: float
    """The clock's time by which it must be done; infinite for none."""
    answers: list[Any]
    tokens: list[int]
    missing: int
    is_over: bool = False
    """Cancelled or failed: its rows are not worth computing."""

    def answered(self) -> Frame:
        """What is sent when all rows are there."""
        return wire.Answered(self.id, self.answers, self.tokens)


@dataclass(frozen=True)
class Waiting:
    """A row that waits for its batch."""

    job: Job
    place: int
    row: Encoded
    since: float


@dataclass(frozen=True)
class Unread:
    """A row that is being encoded elsewhere: it has a file in it."""

    job: Job
    place: int
    key: str
    row: Future[Encoded]


@dataclass
class Figures:
    """What was done since the start."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    computing_s: float = 0.0
    by_rows: dict[int, int] = field(default_factory=dict)
    """How many batches had so many rows."""


class Batcher:
    """The rows that wait for one model. One thread only; nothing here blocks but the computation itself."""

    def __init__(self, answerer: Answerer, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.answerer, self.limits, self.clock = answerer, limits, clock
        self.figures = Figures()
        self.waiting_rows = self.waiting_tokens = 0
        self._queues: dict[str, deque[Waiting]] = {}
        """By key; the key whose turn it is comes first."""
        self._jobs: dict[int, Job] = {}
        self._unread: list[Unread] = []

    # ------------------------------------------------------------------------------ requests come and go

    def take(self, request: wire.Answer) -> list[Frame]:
        """Take a request. What is sent back at once: the answers, if none of its rows could be read. Raises Full."""
        self._require_room(len(request.rows))
        now = self.clock()
        due = math.inf if request.deadline_s is None else now + request.deadline_s
        size = len(request.rows)
        job = Job(request.id, due, [None] * size, [0] * size, size)
        readable: list[Waiting] = []
        unread: list[Unread] = []
        try:
            for place, row in enumerate(request.rows):
                self._begin(job, place, row, request.key, readable, unread)
            tokens = sum(one.row.tokens for one in readable)
            if self.waiting_tokens and self.waiting_tokens + tokens > self.limits.max_waiting_tokens:
                raise self._full(f"{self.waiting_tokens} tokens are waiting already, and this request has {tokens}")
        except Full:
            for one in unread:
                one.row.cancel()
            raise
        if not job.missing:
            return [job.answered()]
        self._jobs[job.id] = job
        self._unread += unread
        for waiting in readable:
            self._queue(waiting, request.key)
        return []

    def _begin(self, job: Job, place: int, row: Any, key: str, readable: list[Waiting], unread: list[Unread]) -> None:
        """Encode a row, or have it encoded. Raises Full."""
        try:
            encoded = self.answerer.encode(row, key)
        except Full:
            raise
        except Exception as error:
            self._put(job, place, _failed(error))
            return
        if isinstance(encoded, Future):
            unread.append(Unread(job, place, key, encoded))
            return
        job.tokens[place] = encoded.tokens
        readable.append(Waiting(job, place, encoded, self.clock()))

    def _queue(self, one: Waiting, key: str) -> None:
        self._queues.setdefault(key, deque()).append(one)
        self.waiting_rows += 1
        self.waiting_tokens += one.row.tokens

    def cancel(self, number: int) -> None:
        """Give up a request; it is no mistake if there is none of that number."""
        job = self._jobs.pop(number, None)
        if job is not None:
            job.is_over = True
            self._sweep()

    def clear(self) -> list[Frame]:
        """Give up everything, because the model goes."""
        gone: list[Frame] = [
            wire.Failed(number, "unknown_model", "the model was unloaded", "ask for another") for number in self._jobs
        ]
        self._jobs.clear()
        self._queues.clear()
        for one in self._unread:
            one.row.cancel()
        self._unread.clear()
        self.waiting_rows = self.waiting_tokens = 0
        return gone

    def _require_room(self, rows: int) -> None:
        waiting = self.waiting_rows + len(self._unread)
        if waiting and waiting + rows > self.limits.max_waiting_rows:
            raise self._full(f"{waiting} rows are waiting already, and this request has {rows}")

    def _full(self, what: str) -> Full:
        spent = self.figures.computing_s
        rate = self.figures.tokens / spent if spent else 10_000.0
        return Full(what, retry_after_s=min(60.0, max(1.0, self.waiting_tokens / max(rate, 1.0))))

    # ------------------------------------------------------------------------------ computing

    @property
    def has_work(self) -> bool:
        """Whether any row waits, or is being read."""
        return self.waiting_rows > 0 or bool(self._unread)

    def due_in(self, *, is_idle: bool) -> float | None:
        """Seconds until there is something to do: 0 for now, None while nothing waits."""
        if not self.has_work:
            return None
        if any(one.row.done() for one in self._unread):
            return 0.0
        now = self.clock()
        nearest = min(job.due for job in self._jobs.values())
        if not self.waiting_rows:
            return max(0.0, nearest - now) if math.isfinite(nearest) else None
        if is_idle or self.waiting_rows >= self.limits.max_rows or self.waiting_tokens >= self.limits.max_tokens:
            return 0.0
        oldest = min(queue[0].since for queue in self._queues.values())
        return max(0.0, min(oldest + self.limits.max_wait_s, nearest) - now)

    def step(self, *, is_idle: bool) -> list[Frame]:
        """Compute one batch if one is due, and say what became of whom."""
        frames = [*self._expire(), *self._read()]
        if not self.waiting_rows or self.due_in(is_idle=is_idle) != 0.0:
            return frames
        batch = self._next_batch()
        start = time.perf_counter()
        for one, answer in zip(batch, self._computed(batch), strict=True):
            self._put(one.job, one.place, answer)
        self.figures.computing_s += time.perf_counter() - start
        self.figures.batches += 1
        self.figures.rows += len(batch)
        self.figures.tokens += sum(one.row.tokens for one in batch)
        self.figures.by_rows[len(batch)] = self.figures.by_rows.get(len(batch), 0) + 1
        whole = {one.job.id: one.job for one in batch if not one.job.missing and not one.job.is_over}
        for number in whole:
            self._jobs.pop(number, None)
        return [*frames, *(job.answered() for job in whole.values())]

    def stats(self) -> dict[str, float]:
        """The figures of `wire.Pong`."""
        done = self.figures
        return {
            "running": 0,
            "waiting": self.waiting_rows + len(self._unread),
            "waiting_tokens": self.waiting_tokens,
            "batches": done.batches,
            "rows": done.rows,
            "prompt_tokens": done.tokens,
        }

    def _read(self) -> list[Frame]:
        """Queue the rows that were read meanwhile; the answers of requests that end because none could be."""
        done = [one for one in self._unread if one.row.done()]
        if not done:
            return []
        self._unread = [one for one in self._unread if not one.row.done()]
        for one in done:
            error = one.row.exception()
            if error is not None:
                self._put(one.job, one.place, _failed(error))
                continue
            encoded = one.row.result()
            one.job.tokens[one.place] = encoded.tokens
            self._queue(Waiting(one.job, one.place, encoded, self.clock()), one.key)
        over = {one.job.id: one.job for one in done if not one.job.missing}
        for number in over:
            self._jobs.pop(number, None)
        return [job.answered() for job in over.values()]

    def _next_batch(self) -> list[Waiting]:
        """One row of each key in turn, until the batch is full; at least one."""
        chosen: list[Waiting] = []
        tokens = 0
        while self._queues and len(chosen) < self.limits.max_rows:
            key, queue = next(iter(self._queues.items()))
            if chosen and tokens + queue[0].row.tokens > self.limits.max_tokens:
                break
            one = queue.popleft()
            chosen.append(one)
            tokens += one.row.tokens
            del self._queues[key]
            if queue:
                self._queues[key] = queue  # to the end of the line
        self.waiting_rows -= len(chosen)
        self.waiting_tokens -= tokens
        return chosen

    def _computed(self, batch: Sequence[Waiting]) -> list[Any]:
        """The answers to a batch; the rows that break it, each by itself, are errors."""
        try:
            given = self.answerer.answer([one.row for one in batch])
            return [answer if _is_finite(answer) else _failed(NotNumbers()) for answer in given]
        except Exception as error:
            if len(batch) == 1:
                return [_failed(error)]
            half = len(batch) // 2
            return [*self._computed(batch[:half]), *self._computed(batch[half:])]

    def _put(self, job: Job, place: int, answer: Any) -> None:
        job.answers[place] = answer
        job.missing -= 1

    def _expire(self) -> list[Frame]:
        """Fail the requests whose time is over before they were computed."""
        now = self.clock()
        late = [job for job in self._jobs.values() if job.due <= now]
        for job in late:
            job.is_over = True
            del self._jobs[job.id]
        if late:
            self._sweep()
        what, fix = "the deadline passed while the request waited", "allow more time, or send it when less is going on"
        return [wire.Failed(job.id, "deadline", what, fix) for job in late]

    def _sweep(self) -> None:
        """Drop the rows of requests that are over."""
        for unread in [one for one in self._unread if one.job.is_over]:
            unread.row.cancel()
            self._unread.remove(unread)
        for key, queue in list(self._queues.items()):
            kept = deque(one for one in queue if not one.job.is_over)
            if kept:
                self._queues[key] = kept
            else:
                del self._queues[key]
        rows = [one for queue in self._queues.values() for one in queue]
        self.waiting_rows, self.waiting_tokens = len(rows), sum(one.row.tokens for one in rows)


def _failed(error: BaseException) -> dict[str, Any]:
    """What stands in the place of an answer that failed: a caller's mistake, or a fault of ours, which is logged."""
    if isinstance(error, GroundupError):
        code = "bad_logits" if isinstance(error, NotNumbers) else "bad_request"
        return {"error": {"code": code, "message": error.what, "fix": error.fix}}
    faults.note(log, "a row could not be computed", error)
    return {"error": {"code": "internal", "message": "the row could not be computed", "fix": "see the server's log"}}


def _is_finite(answer: Any) -> bool:
    """Whether all numbers of an answer are numbers: its own, those of a list, those of a mapping."""
    if isinstance(answer, float):
        return math.isfinite(answer)
    if isinstance(answer, Mapping):
        return all(map(_is_finite, answer.values()))
    if isinstance(answer, list):
        return all(map(_is_finite, answer))
    return True
