"""The outermost layer of the server: names each request, times it, traces it and writes one line about it.

It stands before authentication, so that refused requests are counted too. The route is read when the
response has ended, since only then the application has matched it; what it did not match is `other`, so
that a scanner's paths do not become labels.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from groundup.serving import logs
from groundup.serving.refusals import App, Message, Receive, Scope, Send
from groundup.serving.telemetry import OTHER, Telemetry

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that are asked every few seconds: counted, but logged only when they fail."""
log = logging.getLogger("groundup.access")


class Observed:
    """ASGI middleware around `app`; see the module's text.

    The request's id is the client's `x-request-id` if that is a short plain word, else a new one. It is in
    `scope["groundup.request_id"]`, in every line logged meanwhile, and in the response's `x-request-id`.
    """

    def __init__(self, app: App, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope["groundup.request_id"] = request_id
        others = [pair for pair in scope["headers"] if pair[0].lower() != b"x-request-id"]
        scope["headers"] = [*others, (b"x-request-id", request_id.encode("ascii"))]  # inner layers go by the same id
        token = logs.request_id.set(request_id)
        try:
            await self._observe(scope, receive, send, headers, request_id)
        finally:
            logs.request_id.reset(token)

    async def _observe(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], request_id: str
    ) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        tracing = self.telemetry.tracing
        span = tracing.http_span(method, scope["path"], headers, request_id) if tracing else None
        started, status, finished = time.perf_counter(), 0, False
        self.telemetry.http_started()

        async def send_named(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                rest = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message["headers"] = [*rest, (b"x-request-id", request_id.encode("ascii"))]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                finished = True
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception:
            status = status or 500
            raise
        finally:
            # A client that left before the answer: nginx's code for it, since HTTP has none.
            status = status if finished or status >= 500 else 499
            route = _route(scope)
            seconds = time.perf_counter() - started
            self.telemetry.http_finished(method, route, status, seconds)
            if tracing and span is not None:
                tracing.end_http_span(span, method=method, route=route, status=status)
            self._write(scope, method, status, seconds)

    def _write(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        if scope["path"] in QUIET and status < 400:
            return
        key = getattr(scope.get("groundup.key"), "id", "")
        extra = {
            "method": method,
            "path": scope["path"],  # without the query, which may hold anything
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "client": (scope.get("client") or ("",))[0],
        }
        extra |= {"key": key} if key else {}
        level = logging.ERROR if status >= 500 else logging.INFO
        log.log(level, "%s %s %d", method, scope["path"], status, extra=extra)


def _route(scope: Scope) -> str:
    """The pattern that the application matched, or `other`."""
    route = scope.get("route")
    found = getattr(route, "path", None)
    if found is None and scope["path"] in QUIET:
        return str(scope["path"])
    return str(found) if isinstance(found, str) and found else OTHER
