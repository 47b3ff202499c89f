"""How a request is turned away before the application has seen it, over HTTP and over websockets.

A refusal is OpenAI's error object with a status that its client libraries know, so that a program that
talks to this server reads a wrong key or a spent quota as it would read OpenAI's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from groundup.errors import GroundupError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
"""What OpenAI calls the kind of a status; every other refusal is an `invalid_request_error`."""
POLICY_VIOLATION, TOO_BIG, TRY_AGAIN_LATER = 1008, 1009, 1013
"""Codes with which a websocket is closed (RFC 6455 §7.4.1 and its registry)."""


class Refused(GroundupError):
    """A request that is turned away: a status, a code for programs, and headers such as Retry-After.

    It may be raised by what an application calls (`Meter.reserve`): have the application answer it with
    `status`, `headers` and `as_data()`. `kind` is OpenAI's `type` where it does not follow from the status.
    """

    def __init__(
        self,
        status: int,
        code: str,
        what: str,
        *,
        fix: str = "",
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(what, fix=fix)
        self.status, self.code, self.kind = status, code, kind or TYPES.get(status, "invalid_request_error")
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            # Whole seconds, as RFC 9110 §10.2.3 has it, and never 0: that would read as "at once".
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))

    def as_data(self) -> dict[str, Any]:
        """The body of the answer. `message` holds the fix too, as clients show nothing else."""
        message = f"{self.what}. To fix it: {self.fix}" if self.fix else self.what
        error = {"message": message, "type": self.kind, "param": None, "code": self.code, "fix": self.fix or None}
        return {"error": error}


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: Refused, *, page: bytes | None = None) -> None:
    """Answer a request that nothing has answered yet. `page` replaces the error object by HTML.

    A websocket is refused before it opens: with the status and the error where the server can send them,
    otherwise by closing it, which servers answer with 403.
    """
    kind = b"application/json" if page is None else b"text/html; charset=utf-8"
    body = json.dumps(refusal.as_data(), ensure_ascii=False).encode() if page is None else page
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers.items()]
    scope["groundup.refusal"] = refusal.code
    if scope["type"] == "http" and has_long_body(scope):
        headers.append((b"connection", b"close"))  # what is still to come is not worth taking
    if scope["type"] == "websocket":
        await receive()  # websocket.connect, which must be taken before it can be refused
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            busy = refusal.status == 429
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER if busy else POLICY_VIOLATION})
            return
    await respond(scope, send, refusal.status, [(b"content-type", kind), *headers], body)


async def respond(scope: Scope, send: Send, status: int, headers: Headers, body: bytes = b"") -> None:
    """Send a whole response that no cache keeps and no browser guesses the type of."""
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    fixed = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
    await send({"type": f"{prefix}.start", "status": status, "headers": [*headers, *length, *fixed]})
    await send({"type": f"{prefix}.body", "body": b"" if scope.get("method") == "HEAD" else body})


def has_long_body(scope: Scope) -> bool:
    """Whether more than a little of a request may still be to come."""
    stated = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    is_open = any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"])
    return is_open or any(not value.isdigit() or len(value) > 5 for value in stated)


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header that may be given once, or None. Raises Refused (400) if it is given twice.

    Two values let two programs on the way read two different requests.
    """
    found = [value for key, value in scope["headers"] if key.lower() == name]
    if len(found) > 1:
        raise Refused(400, "duplicate_header", f"the header {name.decode()!r} is given {len(found)} times")
    return found[0].decode("latin-1").strip() if found else None


def route_of(scope: Scope) -> str:
    """The path that the application routes by: without what the server is mounted under (`root_path`)."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "").rstrip("/")
    return path[len(root) :] or "/" if root and (path == root or path.startswith(f"{root}/")) else path
