"""Who asked for what, when, and what came of it: one line of JSON for each request.

A line holds the time, the request's id, the key's id and name, the address, method and path (never the query,
which may hold what somebody pasted), status, the code of a refusal, tokens, the model's digest, and how long it
took. It holds no prompts unless `prompts` asks for them. Lines are written by a thread from a bounded queue, so
no request waits for a disk; what does not fit is counted and the count logged. Files are rotated by size and the
oldest removed, so the log cannot fill a disk; requests without a good key get a small share of it, so nobody can
push others' lines out by knocking.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from groundup.config import Section
from groundup.errors import UserError
from groundup.serving.auth import address_of, is_open
from groundup.serving.rates import Bucket, Meter
from groundup.serving.refusals import App, Message, Receive, Scope, Send
from groundup.units import Bytes, PositiveCount

LONGEST_PATH = 512
KNOCKS_PER_MINUTE = 120
CLIENT_LEFT = 499
"""The status of a request whose client left before it was answered, as nginx writes it."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)


class AuditSettings(Section):
    """What is logged of each request, and how much is kept."""

    path: str | None = None
    """The file; older parts get `.1`, `.2`, … after its name. Without it nothing is logged."""
    prompts: bool = False
    """Log the bodies of requests too."""
    max_prompt: Bytes = 64 << 10
    """The most that is logged of a body."""
    max_file: Bytes = 64 << 20
    """A file that would grow beyond this is put aside and a new one begun."""
    max_files: PositiveCount = 8
    """How many are kept, the current one included."""
    max_waiting: PositiveCount = 10_000
    """Lines that may wait to be written; more are dropped and counted."""


class AuditLog:
    """A file of lines, written by a thread of its own.

    Raises UserError if the file cannot be opened. `close` writes what waits. Lines reach the disk when the system
    writes them there: the last ones are lost with the machine's power, not with the process.
    """

    def __init__(self, settings: AuditSettings, *, complain: Callable[[str], None] | None = None) -> None:
        assert settings.path is not None, "a log needs a file"
        self.settings, self.path = settings, Path(settings.path)
        self._complain = complain or (lambda text: None)
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(settings.max_waiting)
        self._dropped = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            fix = "give the server a folder it may write, or leave `path` out"
            raise UserError(
                f"the audit log cannot be written ({error.strerror})", where=str(self.path), fix=fix
            ) from error
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def write(self, entry: dict[str, Any]) -> None:
        """Log an entry, or drop it if too many wait. Never blocks."""
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits and close the file."""
        self._waiting.put(None)
        self._thread.join()
        self._file.close()

    def _open(self) -> IO[bytes]:
        return open(self.path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))

    def _write_all(self) -> None:
        while (entry := self._waiting.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                entry["dropped_before"] = dropped
            try:
                self._write(json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
            except OSError as error:
                self._dropped += 1
                self._complain(f"the audit log cannot be written to {self.path} ({error.strerror})")

    def _write(self, line: bytes) -> None:
        size = self._file.tell()
        if size and size + len(line) > self.settings.max_file:
            self._rotate()
        self._file.write(line)
        if self._waiting.empty():
            self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self.settings.max_files - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                os.replace(newer, older)
        if self.settings.max_files == 1:
            self.path.unlink()
        self._file = self._open()


class Audit:
    """ASGI middleware in front of everything: gives each request its id, and logs how it ended.

    The id is `x-request-id` as the client sent it if that is sane, otherwise a new one; it is in
    `scope["groundup.request_id"]` and in the headers of every answer. `rejected` is told the code of each
    refusal, for metrics. What an application puts into the mapping `scope["groundup.audit"]` (model, adapter, …)
    is logged with the rest.
    """

    def __init__(
        self,
        app: App,
        log: AuditLog | None = None,
        *,
        rejected: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.log, self.rejected, self._clock = app, log, rejected or (lambda code: None), clock
        self._knocks, self._unlogged = Bucket(KNOCKS_PER_MINUTE, clock), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request_id = scope.setdefault("groundup.request_id", request_id_of(scope))
        noted: dict[str, Any] = scope.setdefault("groundup.audit", {})
        seen = _Seen(scope, request_id.encode(), send)
        taken = self._taken(receive, seen)
        started = self._clock()
        try:
            await self.app(scope, taken, seen.send)
        except Exception:
            seen.status = seen.status or 500
            raise
        finally:
            if "groundup.refusal" in scope:
                self.rejected(scope["groundup.refusal"])
            if self.log is not None and not is_open(scope):  # health checks come every second, and say nothing
                self._write(self.log, scope, seen, noted | {"seconds": round(self._clock() - started, 4)})

    def _taken(self, receive: Receive, seen: _Seen) -> Receive:
        if self.log is None or not self.log.settings.prompts:
            return receive
        return seen.reading(receive, self.log.settings.max_prompt)

    def _write(self, log: AuditLog, scope: Scope, seen: _Seen, noted: dict[str, Any]) -> None:
        if "groundup.key" not in scope:
            if self._knocks.wait_s(1):
                self._unlogged += 1
                return
            self._knocks.take(1)
        entry = described(scope, seen.status, seen.digest)
        for name, value in noted.items():
            entry.setdefault(name, value)  # what is seen here is not for the application to change
        if self._unlogged:
            entry["unlogged_before"], self._unlogged = self._unlogged, 0
        if seen.body is not None:
            entry["body"] = seen.body.decode("utf-8", "replace")
        log.write(entry)


class _Seen:
    """What passes between a client and the application, as far as it is logged."""

    def __init__(self, scope: Scope, request_id: bytes, send: Send) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None
        self.digest: str | None = None
        self.body: bytes | None = None

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self.status = message.get("status", 101)
            headers = list(message.get("headers", ()))
            names = {name.lower(): value for name, value in headers}
            self.digest = names.get(b"x-model-digest", b"").decode("latin-1") or None
            if b"x-request-id" not in names:
                headers.append((b"x-request-id", self._request_id))
            message["headers"] = headers
        elif message["type"] == "websocket.close" and self.status is None:
            self.status = 403
        await self._send(message)

    def reading(self, receive: Receive, most: int) -> Receive:
        """`receive` that keeps the beginning of the body."""
        self.body = b""

        async def receive_kept() -> Message:
            message = await receive()
            if message["type"] == "http.request" and self.body is not None and len(self.body) < most:
                self.body += message.get("body", b"")[: most - len(self.body)]
            return message

        return receive_kept


def request_id_of(scope: Scope) -> str:
    """The id a client gave its request, if it is short and plain enough for logs; otherwise a new one."""
    given = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
    text = bytes(given[0]).decode("latin-1") if len(given) == 1 else ""
    return text if _REQUEST_ID.fullmatch(text) else f"req_{uuid.uuid4().hex}"


def described(scope: Scope, status: int | None, digest: str | None) -> dict[str, Any]:
    """The line of a request, without what the application noted."""
    principal, meter = scope.get("groundup.key"), scope.get("groundup.meter")
    entry: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": scope["groundup.request_id"],
        "key": principal.id if principal is not None else None,
        "name": principal.name if principal is not None else None,
        "address": address_of(scope),
        "method": scope.get("method", "WEBSOCKET"),
        "path": str(scope["path"])[:LONGEST_PATH],
        "status": status if status is not None else CLIENT_LEFT,
    }
    if "groundup.refusal" in scope:
        entry["refused"] = scope["groundup.refusal"]
    if isinstance(meter, Meter) and meter.is_settled:
        entry |= {"prompt_tokens": meter.prompt_tokens, "completion_tokens": meter.completion_tokens}
    if digest is not None:
        entry["digest"] = digest
    return entry
