"""What stands before vLLM: routes, keys, limits, tokens per key, readiness and metrics.

vLLM listens on a Unix socket in a folder that only this user may enter, so nobody reaches it but through here:
with a key set, vLLM protects `/v1` alone and leaves others open (its docs/usage/security.md). The routes in
`ROUTES` go through and no others.

What is counted per key follows from the `usage` of vLLM's answers. A streamed answer is asked to carry one
(`stream_options`), and the chunk with it is taken out again where the client did not ask. `/metrics` is ours
(HTTP, keys, rejections) followed by vLLM's own, whose names `serving/telemetry.py` shares.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from groundup.deploy.upstream import Child, Hosted, Upstream, ask
from groundup.deploy.vllm import ENVIRONMENT, Options, command
from groundup.errors import MissingExtra
from groundup.serving.models import Facts
from groundup.serving.observed import Observed
from groundup.serving.refusals import App, Message, Receive, Refused, Scope, Send, refuse
from groundup.serving.security import Guards
from groundup.serving.telemetry import Telemetry

ROUTES = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
}
"""What goes through to vLLM. Its other routes pause it, change its weights or load adapters from anywhere."""
SECRETS = frozenset({b"authorization", b"x-api-key", b"cookie"})
"""Headers that are between a client and us."""
STALE_S = 30.0
"""After so long without a token, readiness is proven by a request of one token."""
MOST_ANSWER = 1 << 24
"""Bytes of an answer that are kept to read its `usage`."""


class Vllm:
    """The ASGI application in front of vLLM: routes, tokens per key, health and metrics. Guards stand before it."""

    def __init__(self, upstream: App, child: Child, telemetry: Telemetry, models: Iterable[str]) -> None:
        self.upstream, self.child, self.telemetry, self.names = upstream, child, telemetry, list(models)
        self._proven: float | None = None
        self._proving: asyncio.Task[bool] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope.get("path", ""), scope.get("method", "")
        if scope["type"] != "http":
            await self.upstream(scope, receive, send)
        elif path in ("/livez", "/readyz"):
            good = path == "/livez" or await self._is_ready()
            await _respond(send, 200 if good else 503, b"yes" if good else b"no")
        elif path == "/metrics" and method == "GET":
            await self._metrics(send)
        elif ROUTES.get(path) != method:
            code, what = (405, f"{path} is asked with {ROUTES[path]}") if path in ROUTES else (404, f"no route {path}")
            await refuse(scope, receive, send, Refused(code, "not_found", what[:200]))
        else:
            scope["route"] = _Route(path)
            await self._forward(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await self.upstream(scope, receive, send)
            return
        body = await _body(receive)
        try:
            data = json.loads(body)
            if not isinstance(data, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            await refuse(scope, receive, send, Refused(400, "bad_json", f"the body is no JSON object: {error}"))
            return
        asked_usage = (data.get("stream_options") or {}).get("include_usage") is True
        if data.get("stream") is True:
            data["stream_options"] = {"include_usage": True}
            body = json.dumps(data).encode()
        counting = _Counting(self, scope, send, data, hides_usage=not asked_usage)
        scope["headers"] = [
            *(pair for pair in scope["headers"] if pair[0].lower() not in (b"content-length", b"transfer-encoding")),
            (b"content-length", str(len(body)).encode()),
        ]
        try:
            counting.reserve()
            await self.upstream(scope, _replayed(body, receive), counting.send)
        except Refused as refusal:
            await refuse(scope, receive, send, refusal)
        finally:
            counting.close()

    def heard(self) -> None:
        """A token came from vLLM just now."""
        self._proven = time.monotonic()

    async def _is_ready(self) -> bool:
        """Whether vLLM produced a token lately, for a client or for us."""
        if self._proven is not None and time.monotonic() - self._proven < STALE_S:
            return True
        if self._proving is None or self._proving.done():
            self._proving = asyncio.create_task(self._prove())
        return await asyncio.shield(self._proving)

    async def _prove(self) -> bool:
        asked = {"model": self.names[0], "prompt": "a", "max_tokens": 1, "temperature": 0}
        body, status = json.dumps(asked).encode(), 0

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        try:
            async with asyncio.timeout(STALE_S):
                await self.upstream(scope, _replayed(body, None), note)
        except (TimeoutError, OSError):
            return False
        if status == 200:
            self.heard()
        self.telemetry.engine_ready(status == 200)
        return status == 200

    async def _metrics(self, send: Send) -> None:
        ours, content_type = self.telemetry.exposition()
        status, theirs = await ask(self.child.address, "/metrics")
        # Names that both have (process_…, and ours with `--metrics-prefix vllm`) are ours, and not said twice.
        rest = _without(theirs.decode("utf-8", "replace"), _families(ours.decode())) if status == 200 else ""
        await _respond(send, 200, ours + rest.encode(), content_type)


class _Counting:
    """Passes an answer on and reads from it how many tokens it took."""

    def __init__(self, owner: Vllm, scope: Scope, send: Send, data: Mapping[str, Any], *, hides_usage: bool) -> None:
        self.owner, self._send, self.data, self.hides_usage = owner, send, data, hides_usage
        self.id, self.meter = str(scope.get("groundup.request_id", id(self))), scope.get("groundup.meter")
        self.streams = data.get("stream") is True
        self.held, self.usage, self.status = b"", dict[str, Any](), 0
        key = getattr(scope.get("groundup.key"), "id", "")
        model = str(data.get("model", ""))
        known = model if model in owner.names else "other"
        operation = "chat" if "messages" in data else "text_completion"
        owner.telemetry.request_started(self.id, model=known, key=key, operation=operation)

    def reserve(self) -> None:
        """Set aside the longest answer asked for. The prompt is settled later: vLLM has the tokenizer."""
        most = self.data.get("max_completion_tokens") or self.data.get("max_tokens") or 0
        if self.meter is not None:
            self.meter.reserve(most if isinstance(most, int) and most > 0 else 0)

    async def send(self, message: Message) -> None:
        """Pass one message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.streams:
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() != b"content-length"]
        elif self.status == 200 and message.get("body"):
            message["body"] = self._events(message["body"]) if self.streams else self._whole(message["body"])
        await self._send(message)

    def _whole(self, body: bytes) -> bytes:
        if len(self.held) + len(body) <= MOST_ANSWER:
            self.held += body
        return body

    def _events(self, body: bytes) -> bytes:
        """The events of a stream that are complete; the one that holds nothing but `usage` may be left out."""
        *events, self.held = (self.held + body).split(b"\n\n")
        return b"".join(event + b"\n\n" for event in events if self._passes(event))

    def _passes(self, event: bytes) -> bool:
        try:
            data = json.loads(event.removeprefix(b"data:"))
        except ValueError:
            return True  # [DONE], or a comment
        self.usage = data.get("usage") or self.usage
        if data.get("choices"):
            self.owner.heard()
            self.owner.telemetry.token(self.id)
            return True
        return not self.hides_usage

    def close(self) -> None:
        """The answer has ended, or will not come."""
        if not self.streams and self.held:
            try:
                self.usage = json.loads(self.held).get("usage") or {}
                self.owner.heard()
            except (ValueError, AttributeError):
                self.usage = {}
        prompt, answer = (int(self.usage.get(f"{part}_tokens") or 0) for part in ("prompt", "completion"))
        if self.meter is not None:
            self.meter.settle(prompt, answer)
        reason = "stop" if self.status == 200 and self.usage else "cancelled" if self.status in (0, 200) else "error"
        self.owner.telemetry.request_finished(self.id, reason, prompt_tokens=prompt, generated_tokens=answer)


class _Route:
    """What `Observed` reads a request's route from."""

    def __init__(self, path: str) -> None:
        self.path = path


def application(
    facts: Facts,
    name: str,
    options: Options,
    *,
    guards: Guards,
    telemetry: Telemetry,
    adapters: Mapping[str, Path] | None = None,
    grace_s: float = 30.0,
) -> App:
    """The whole server for one model and its adapters: guards, front and vLLM itself, started by the lifespan.

    Raises MissingExtra without vLLM.
    """
    if shutil.which("vllm") is None:
        raise MissingExtra("vllm", "vllm", needed_for="--engine vllm")
    folder = Path(tempfile.mkdtemp(prefix="groundup-vllm-"))  # mode 0700: only this user gets to the socket
    socket = folder / "vllm.sock"
    words = command(facts, name, socket, options, adapters=adapters)
    child = Child(words, socket, "/health", ENVIRONMENT, grace_s=grace_s)
    front = Vllm(Upstream(socket, drops=SECRETS), child, telemetry, [name, *(adapters or ())])
    telemetry.expect(models=[name])
    return Observed(guards.protect(Hosted(child, front)), telemetry)


async def _body(receive: Receive) -> bytes:
    """The whole body; the guards have bounded it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive | None) -> Receive:
    """A body that was read already, and then what the client does."""
    is_first = True

    async def again() -> Message:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": body, "more_body": False}
        if receive is None:
            await asyncio.Event().wait()
            raise AssertionError("waits for ever")
        return await receive()

    return again


async def _respond(send: Send, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _families(text: str) -> set[str]:
    """The names of the metrics that an exposition describes."""
    return {line.split(maxsplit=3)[2] for line in text.splitlines() if line.startswith("# TYPE ")}


def _without(text: str, names: set[str]) -> str:
    """An exposition without some metrics."""
    kept: list[str] = []
    skips = False
    for line in text.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            skips = line.split(maxsplit=3)[2] in names
        if not skips:
            kept.append(line)
    return "\n".join(kept) + "\n"
