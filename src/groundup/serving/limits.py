"""What one request may ask of the server: bytes, nesting, time, and its key's share of requests and tokens.

The body is taken whole before the application sees any of it, so an application never waits for a slow client,
never parses what is too long or too deep, and no request holds memory beyond its limit. Uploads, which may be
larger, pass through as they come and are counted on the way.

A refusal is final: once a body proved too long or `Meter.reserve` said no, the client gets that answer,
whatever the application makes of the exception.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable

import numpy as np

from groundup.config import Section
from groundup.serving.keys import ANYBODY, KeyLimits
from groundup.serving.rates import Accounts, Meter
from groundup.serving.refusals import (
    TOO_BIG,
    App,
    Message,
    Receive,
    Refused,
    Scope,
    Send,
    header,
    refuse,
    route_of,
)
from groundup.units import Bytes, Duration, PositiveCount


class LimitSettings(Section):
    """Limits of one request, and those of keys that have none of their own."""

    max_body: Bytes = 8 << 20
    """The longest body of a request."""
    max_upload: Bytes = 256 << 20
    """The longest body of a request to one of `uploads`."""
    uploads: tuple[str, ...] = ("/v1/files",)
    """Paths that take files."""
    max_depth: PositiveCount = 64
    """Levels of nesting in a JSON body."""
    body_time: Duration = 30.0
    """Seconds in which a body must come, and one more for each 64 KiB."""
    max_time: Duration = 900.0
    """Seconds in which a request must be answered to the end."""
    max_message: Bytes = 1 << 20
    """The longest message of a websocket."""
    max_sockets: PositiveCount = 16
    """Websockets of one key at the same time."""
    per_key: KeyLimits = KeyLimits(concurrent=256)
    """Limits of keys that have none of their own."""


SLOWEST_BYTES_S = 64 << 10


class _Gone(Exception):
    """The client left before its request was whole."""


class Limits:
    """ASGI middleware behind `Auth`. Puts the `Meter` of a request into `scope["groundup.meter"]`."""

    def __init__(self, app: App, accounts: Accounts, settings: LimitSettings | None = None) -> None:
        self.app, self.accounts, self.settings = app, accounts, settings or LimitSettings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "groundup.key" not in scope:  # a health check: nobody's account, and no body worth reading
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            with self.accounts.request(scope["groundup.key"]) as meter:
                scope["groundup.meter"] = answer.meter = meter
                try:
                    await self._within(scope, receive, answer)
                finally:
                    meter.close(failed=answer.status is None or answer.status >= 400)
        except _Gone:
            return
        except Refused as refusal:
            if answer.status is None:
                await refuse(scope, receive, send, refusal)
            elif answer.refusal is None:
                raise

    async def _within(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        settings, route = self.settings, route_of(scope)
        is_upload = any(route == path or route.startswith(f"{path}/") for path in settings.uploads)
        most = settings.max_upload if is_upload else settings.max_body
        require_plain_encoding(scope)
        require_length(scope, most)
        if is_upload:
            received = _counted(receive, most, settings, answer)
        else:
            body = await read_body(receive, most, settings)
            if not body or is_form(scope):
                pass  # files in forms are no JSON, and nothing reads them as such
            elif len(body) <= _PIECE:
                require_shallow(body, settings.max_depth)
            else:  # takes up to a tenth of a second: others' tokens should not wait for it
                await asyncio.to_thread(require_shallow, body, settings.max_depth)
            received = _replayed(body, receive)
        await in_time(self._answered(scope, received, answer), settings.max_time, answer)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            # The application choked on a refusal that has been sent in its place, or is to be.
            if answer.final() is None:
                raise
        refusal = answer.final()
        if refusal is not None and answer.status is None:
            raise refusal

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self.accounts.socket(scope.get("groundup.key", ANYBODY)):
                await self.app(scope, _short_messages(receive, send, self.settings.max_message), send)
        except Refused as refusal:
            await refuse(scope, receive, send, refusal)


class _Answer:
    """What is sent back: with the headers of rate limits, or replaced by a refusal if there was one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.meter: Meter | None = None
        self.refusal: Refused | None = None
        """Raised on the way in, where the application may have caught it."""

    def final(self) -> Refused | None:
        """The refusal that is the answer, whatever the application says."""
        return self.refusal or (self.meter.refusal if self.meter is not None else None)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.final() is not None:
                return
            self.status = message["status"]
            if self.meter is not None:
                message["headers"] = [*message.get("headers", ()), *self.meter.account.headers()]
        elif self.status is None:
            return  # the body of an answer that was replaced
        await self._send(message)


# Each rule stands alone, so that a test can switch it off and see what it was for.


def require_plain_encoding(scope: Scope) -> None:
    """Raise Refused (415) for a compressed body: a few bytes may unpack to gigabytes."""
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.lower() != "identity":
        what = f"the body is encoded as {encoding[:40]!r}"
        raise Refused(415, "unsupported_encoding", what, fix="send it as it is, without Content-Encoding")


def require_length(scope: Scope, most: int) -> None:
    """Raise Refused (413) for a body whose stated length is over the limit, before any of it is read."""
    stated = header(scope, b"content-length")
    if stated is not None and (not stated.isascii() or not stated.isdigit()):
        raise Refused(400, "invalid_content_length", "the Content-Length header is no number")
    if stated is not None and (len(stated) > 19 or int(stated) > most):
        raise _too_long(most)


def is_form(scope: Scope) -> bool:
    """Whether a body says that it is a form of parts: whoever takes these counts them before reading any."""
    return (header(scope, b"content-type") or "").partition(";")[0].strip().lower() == "multipart/form-data"


def require_received(size: int, most: int) -> None:
    """Raise Refused (413) once more has come than the limit, whatever length was stated, or none."""
    if size > most:
        raise _too_long(most)


def _too_long(most: int) -> Refused:
    return Refused(413, "body_too_large", f"the body is longer than {most} bytes", fix="send it in several requests")


def require_shallow(body: bytes, most: int) -> None:
    """Raise Refused (400) for JSON nested deeper than `most` levels, or not in UTF-8.

    Counted without a parser, in time linear in the body: brackets outside strings, which escaped quotes do not
    end. UTF-16 and UTF-32, which JSON parsers may read too, are recognised by the zero bytes they need.
    """
    if body.count(b"[") + body.count(b"{") <= most:
        return
    if b"\0" in body:
        raise Refused(400, "invalid_json", "the body is not JSON in UTF-8")
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, delete=_NO_MARKS)
    quotes = depth = 0
    for start in range(0, len(marks), _PIECE):  # piece by piece, so that the first that is too deep ends it
        codes = np.frombuffer(marks, np.uint8, count=min(_PIECE, len(marks) - start), offset=start)
        seen = np.cumsum(codes == ord('"'), dtype=np.int32) + quotes
        depths = np.cumsum(_STEPS[codes] * (seen % 2 == 0), dtype=np.int32) + depth
        if depths.max() > most:
            raise Refused(400, "nested_too_deep", f"the body is nested more than {most} levels deep")
        quotes, depth = int(seen[-1]), int(depths[-1])


_PIECE = 64 << 10
_NO_MARKS = bytes(code for code in range(256) if code not in b'"[]{}')
_STEPS = np.array([(code in b"[{") - (code in b"]}") for code in range(256)], dtype=np.int8)


async def read_body(receive: Receive, most: int, settings: LimitSettings) -> bytes:
    """The whole body. Raises Refused (413, 408) if it is too long or too slow."""
    parts: list[bytes] = []
    size, clock = 0, asyncio.get_running_loop().time
    start = clock()
    while True:
        message = await in_patience(receive, start, size, settings)
        if message["type"] != "http.request":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        require_received(size, most)
        if not message.get("more_body", False):
            return b"".join(parts)


async def in_patience(receive: Receive, start: float, size: int, settings: LimitSettings) -> Message:
    """The next part of a body. Raises Refused (408) if the body comes slower than a modem would send it."""
    try:
        async with asyncio.timeout_at(start + settings.body_time + size / SLOWEST_BYTES_S):
            return await receive()
    except TimeoutError:
        what = f"the body came too slowly ({size} bytes so far)"
        raise Refused(408, "body_timeout", what, headers={"connection": "close"}) from None


async def in_time(work: Awaitable[None], most_s: float, answer: _Answer) -> None:
    """Wait for the application. Cancels it, and raises Refused (408) if it has not begun to answer in time."""
    try:
        async with asyncio.timeout(most_s) as limit:
            await work
    except TimeoutError:
        if not limit.expired():
            raise
        if answer.status is None:
            fix = "ask for a shorter answer"
            raise Refused(408, "request_timeout", f"no answer within {most_s:g} s", fix=fix) from None
        # Begun and not ended: returning makes the server close the connection, which a client can tell from an end.


def _counted(receive: Receive, most: int, settings: LimitSettings, answer: _Answer) -> Receive:
    size, start, is_whole = 0, math.nan, False

    async def receive_counted() -> Message:
        nonlocal size, start, is_whole
        if is_whole:
            return await receive()  # waits for the client to leave, which may take its time
        start = asyncio.get_running_loop().time() if math.isnan(start) else start
        try:
            message = await in_patience(receive, start, size, settings)
            size += len(message.get("body", b""))
            require_received(size, most)
        except Refused as refusal:
            answer.refusal = refusal
            raise
        is_whole = not message.get("more_body", False)
        return message

    return receive_counted


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _short_messages(receive: Receive, send: Send, most: int) -> Receive:
    async def receive_short() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive" and message_size(message) > most:
            await send({"type": "websocket.close", "code": TOO_BIG, "reason": f"more than {most} bytes"})
            return {"type": "websocket.disconnect", "code": TOO_BIG}
        return message

    return receive_short


def message_size(message: Message) -> int:
    """Bytes of a websocket's message."""
    return len(message.get("bytes") or b"") or len((message.get("text") or "").encode("utf-8", "surrogatepass"))
