"""An HTTP client that takes little of the processor it shares with the server it measures.

One `asyncio.Protocol` a connection, kept for the next request. While an answer comes it notes when each piece came
and takes the piece out of its chunk, nothing more; events and JSON are read once all is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

END = b"\r\n"
LONGEST_ANSWER_S = 300.0


@dataclass
class Reply:
    """What came back, and when; times are those of `time.perf_counter`."""

    sent_s: float
    status: int = 0
    """0: the connection ended before there was any."""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended_s: float = 0.0
    is_whole: bool = False
    """Whether it came to the end that its head announced."""
    why: str = ""
    """If not: what happened instead."""

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def seconds(self) -> float:
        return self.ended_s - self.sent_s

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def events(self) -> list[tuple[float, str]]:
        """The data of each server-sent event, and when its end came."""
        found, rest = [], b""
        for when, piece in self.pieces:
            *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for one in whole:
                lines = [line[5:].strip() for line in one.split(b"\n") if line.startswith(b"data:")]
                if lines:
                    found.append((when, b"\n".join(lines).decode("utf-8", "replace")))
        return found


class Connection(asyncio.Protocol):
    """A connection to a server, for one request after the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reply = Reply(0.0)
        self.buffer = bytearray()
        self.done: asyncio.Future[None] | None = None
        self.left: int | None = None
        """Bytes of the body still to come, or of the chunk with its end; None: until the connection ends."""
        self.is_chunked = self.in_body = False
        self.leave_after: int | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    @classmethod
    async def open(cls, url: str) -> Connection:
        """A connection to the server at a URL. Raises OSError."""
        parts = urlsplit(url)
        _, made = await asyncio.get_running_loop().create_connection(cls, parts.hostname, parts.port)
        return made

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def ask(
        self,
        request: bytes | Sequence[bytes],
        *,
        leave_after: int | None = None,
        leave_after_s: float | None = None,
        patience_s: float = LONGEST_ANSWER_S,
    ) -> Reply:
        """Send a request and wait for its answer; the reply says how it ended, and nothing is raised.

        With `leave_after` the connection is cut once so many pieces of the body have come, with `leave_after_s` after
        so many seconds. A request in parts is sent part by part, until the server answers.
        """
        self.reply = reply = Reply(time.perf_counter())
        self.done, self.leave_after, self.in_body = asyncio.get_running_loop().create_future(), leave_after, False
        self.buffer.clear()
        try:
            async with asyncio.timeout(leave_after_s or patience_s):
                for part in [request] if isinstance(request, bytes) else request:
                    if not self.is_open or reply.status:
                        break
                    assert self.transport is not None
                    self.transport.write(part)
                    await self.writable.wait()
                if not self.is_open and not self.done.done():
                    self._end("the connection was closed")
                await asyncio.shield(self.done)  # a timeout would cancel it, and how it ended is still to be said
        except TimeoutError:
            self._end("left" if leave_after_s else f"no end within {patience_s:g} s")
            self.close()
        return reply

    # ------------------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.writable.set()
        is_end = self.in_body and self.left is None and not self.is_chunked
        self._end("" if is_end else f"the connection was closed{f' ({error})' if error else ''}")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.buffer += data
        if not self.in_body and not self._head():
            return
        self._take(now)
        if self.leave_after is not None and len(self.reply.pieces) >= self.leave_after and not self._is_done():
            self._end("left")
            self.close()

    # ------------------------------------------------------------------------------ an answer

    def _is_done(self) -> bool:
        return self.done is None or self.done.done()

    def _end(self, why: str) -> None:
        if not self._is_done():
            assert self.done is not None
            self.reply.ended_s, self.reply.why, self.reply.is_whole = time.perf_counter(), why, not why
            self.done.set_result(None)

    def _head(self) -> bool:
        """Read the head, once it is there whole."""
        head, mark, rest = bytes(self.buffer).partition(2 * END)
        if not mark:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        self.reply.status = int(first.split(" ", 2)[1])
        self.reply.headers = headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        self.buffer = bytearray(rest)
        self.is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self.left = 0 if self.is_chunked else int(headers["content-length"]) if "content-length" in headers else None
        self.left = 0 if self.reply.status in (204, 304) else self.left
        self.in_body = True
        return True

    def _take(self, now: float) -> None:
        """Take what has come of the body."""
        if self.is_chunked:
            self._take_chunks(now)
            return
        if self.buffer:
            self.reply.pieces.append((now, bytes(self.buffer)))
            self.left = None if self.left is None else self.left - len(self.buffer)
            self.buffer.clear()
        if self.left is not None and self.left <= 0:
            self._finish()

    def _take_chunks(self, now: float) -> None:
        """Take whole chunks; those that came together are one piece."""
        taken, place, buffer = [], 0, self.buffer
        while (end := buffer.find(END, place)) >= 0:
            size = int(buffer[place:end].split(b";")[0], 16)
            after = end + 2 + size + 2
            if len(buffer) < after:
                break
            if size == 0:
                place = after
                self._keep(now, taken)
                self._finish()
                taken = []
                break
            taken.append(bytes(buffer[end + 2 : end + 2 + size]))
            place = after
        self._keep(now, taken)
        del buffer[:place]

    def _keep(self, now: float, taken: list[bytes]) -> None:
        if taken:
            self.reply.pieces.append((now, b"".join(taken)))

    def _finish(self) -> None:
        self._end("")
        if self.reply.headers.get("connection", "").lower() == "close":
            self.close()


def written(
    url: str,
    path: str,
    body: Mapping[str, Any] | bytes | None = None,
    *,
    key: str | None = None,
    method: str = "",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as it goes over the wire: a GET without a body, a POST of JSON with one."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"host": urlsplit(url).netloc, "content-length": str(len(content)), "content-type": "application/json"}
    given |= {"authorization": f"Bearer {key}"} if key else {}
    given |= dict(headers or {})
    head = f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1\r\n"
    return (head + "".join(f"{name}: {value}\r\n" for name, value in given.items())).encode() + END + content
