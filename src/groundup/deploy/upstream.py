"""Another HTTP server as an ASGI application: a child process that is started, watched and spoken to.

Used where something else must own the process: vLLM behind our keys, and whole groundup servers behind Ray's
proxy. `Child` is the process, `Upstream` forwards requests to it, one connection each and streaming in both
directions, and `Hosted` is both as one application with a lifespan. A client that leaves closes its
connection to the child, which ends the work there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11

from groundup.errors import StageFailed
from groundup.serving.refusals import App, Receive, Scope, Send

Address = Path | tuple[str, int]
"""A Unix socket, or a host and port."""
READ = 1 << 16
CONNECT_S = 5.0
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"}
    | {b"transfer-encoding", b"upgrade", b"host"}
)
"""Headers about one connection only (RFC 9110 §7.6.1), and the name under which we were called."""
log = logging.getLogger("groundup.upstream")


class UpstreamGone(Exception):
    """The server behind ended in the middle of an answer."""


class Upstream:
    """Forwards HTTP requests to a server. One that cannot be reached is a 503 with a clear error."""

    def __init__(self, address: Address, *, drops: frozenset[bytes] = frozenset()) -> None:
        """`drops` are names of headers, in lower case, that the server behind is not told."""
        self.address, self.drops = address, drops | HOP_BY_HOP

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await connect(self.address)
        except (OSError, TimeoutError):
            await unavailable(send)
            return
        try:
            await _Exchange(scope, receive, send, reader, writer, self.drops).run()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class _Exchange:
    """One request and its answer over one connection."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        drops: frozenset[bytes],
    ) -> None:
        self.scope, self.receive, self.send, self.reader, self.writer = scope, receive, send, reader, writer
        self.drops = drops
        self.http = h11.Connection(h11.CLIENT)
        self.has_begun = False

    async def run(self) -> None:
        asking = asyncio.create_task(self._ask())
        answering = asyncio.create_task(self._answer())
        try:
            # `_ask` ends when the client has left; the answer is what is waited for.
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or asking.exception() is not None:
                # A server may refuse a body it has not read to the end: what it said before it closed counts.
                await asyncio.wait_for(answering, CONNECT_S)
        except (OSError, h11.RemoteProtocolError, TimeoutError) as error:
            if self.has_begun:
                raise UpstreamGone("the server behind ended in the middle of an answer") from error
            await unavailable(self.send)
        finally:
            for task in (asking, answering):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _ask(self) -> None:
        """Send the request as it comes in, then wait until the client leaves."""
        scope = self.scope
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in self.drops]
        headers += [(b"host", b"localhost"), (b"connection", b"close")]
        if not any(name.lower() == b"content-length" for name, _ in headers) and scope["method"] not in ("GET", "HEAD"):
            headers.append((b"transfer-encoding", b"chunked"))
        target = scope.get("raw_path") or scope["path"].encode("utf-8")
        target += b"?" + scope["query_string"] if scope.get("query_string") else b""
        await self._write(h11.Request(method=scope["method"], target=target, headers=headers))
        is_over = False
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return
            if message.get("body"):
                await self._write(h11.Data(data=message["body"]))
            if not message.get("more_body") and not is_over:
                is_over = True
                await self._write(h11.EndOfMessage())

    async def _write(self, event: Any) -> None:
        self.writer.write(self.http.send(event))
        await self.writer.drain()

    async def _answer(self) -> None:
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(READ))
            elif isinstance(event, h11.Response):
                self.has_begun = True
                headers = [(name, value) for name, value in event.headers if name.lower() not in HOP_BY_HOP]
                await self.send({"type": "http.response.start", "status": event.status_code, "headers": headers})
            elif isinstance(event, h11.Data):
                await self.send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            elif isinstance(event, h11.EndOfMessage):
                await self.send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed before it answered")


async def connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the server. Raises OSError."""
    if isinstance(address, Path):
        return await asyncio.open_unix_connection(str(address))
    return await asyncio.open_connection(*address)


async def unavailable(send: Send) -> None:
    """Answer that the server behind is not there, as OpenAI's clients expect an error."""
    what = "the engine is starting or has ended; send the request again"
    body = json.dumps({"error": {"message": what, "type": "server_error", "param": None, "code": "engine_gone"}})
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"5")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


async def ask(address: Address, path: str, *, timeout_s: float = CONNECT_S) -> tuple[int, bytes]:
    """The status and body of a GET of the server behind; (0, b"") if it does not answer in time."""
    status, parts = 0, []

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    over = False

    async def receive() -> Any:
        nonlocal over
        if over:
            await asyncio.Event().wait()
        over = True
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    try:
        async with asyncio.timeout(timeout_s):
            await Upstream(address)(scope, receive, send)
    except (TimeoutError, UpstreamGone):
        return 0, b""
    return status, b"".join(parts)


@dataclass
class Child:
    """A server process. `start` waits until `ready` (a path) answers 200; `stop` lets it drain."""

    command: Sequence[str]
    address: Address
    ready: str
    environment: Mapping[str, str]
    start_s: float = 1800.0
    grace_s: float = 30.0
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the process. Raises StageFailed if it ends, or is not ready in time."""
        log.info("starting %s", " ".join(self.command))
        given = os.environ | dict(self.environment)
        self.process = subprocess.Popen(self.command, env=given, stdin=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(self.start_s):
                while (await ask(self.address, self.ready))[0] != 200:
                    if self.process.poll() is not None:
                        what = f"{self.command[0]} ended with exit code {self.process.returncode} before it was ready"
                        raise StageFailed(what, fix="its own last lines say why")
                    await asyncio.sleep(0.2)
        except TimeoutError:
            await self.stop()
            raise StageFailed(f"{self.command[0]} was not ready after {self.start_s:.0f} s") from None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    async def stop(self) -> None:
        """End the process: SIGTERM, and after the grace time SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            await asyncio.to_thread(self.process.wait, self.grace_s + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)


class Hosted:
    """A child and what forwards to it as one ASGI application, started and stopped with the application's lifespan.

    A child that ends is started again, with growing pauses; requests get a 503 meanwhile.
    """

    def __init__(self, child: Child, app: App | None = None) -> None:
        self.child, self.app = child, app or Upstream(child.address)
        self.restarts = 0
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through the lifespan."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        assert (await receive())["type"] == "lifespan.startup", "a lifespan begins with its startup"
        try:
            await self.child.start()
        except StageFailed as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        self._watching = asyncio.create_task(self._watch(), name="child")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._watching.cancel()
        await self.child.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        pause = 0.5
        while True:
            await asyncio.sleep(pause)
            if self.child.is_alive:
                pause = 0.5
                continue
            self.restarts += 1
            pause = min(2 * pause, 30.0)
            log.error("%s ended; starting it again", self.child.command[0])
            with suppress(StageFailed):
                await self.child.start()
