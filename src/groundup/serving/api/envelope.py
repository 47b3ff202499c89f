"""What surrounds every request of the application: it ends with its client, and its answer says which model it is of.

A layer of ASGI around the routes, so that it holds for all of them, those of a page that somebody mounts too.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundup.serving.api import errors
from groundup.serving.api.calling import DIGEST
from groundup.serving.api.responses import error_response

OPEN = frozenset({"/livez", "/readyz"})
"""What answers without a key, and therefore says nothing else."""
REQUEST_ID = "groundup.request_id"
log = logging.getLogger("groundup.api")


class Envelope:
    """ASGI middleware; `digests` says what is served, for answers that are about no one model.

    A client that leaves before its answer is whole has its work cancelled: whatever the route awaits is left, and
    what that was doing in the engine ends with it.
    """

    def __init__(self, app: ASGIApp, digests: Callable[[], str]) -> None:
        self.app, self.digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_named_outside = REQUEST_ID in scope
        request_id = scope.setdefault(REQUEST_ID, uuid.uuid4().hex)
        has_begun = False

        async def send_marked(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = [] if is_named_outside else [(b"x-request-id", request_id.encode("ascii"))]
                if scope["path"] not in OPEN and (digest := scope.get(DIGEST) or self.digests()):
                    headers.append((b"x-model-digest", digest.encode("ascii")))
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            await _until_gone(self.app, scope, receive, send_marked)
        except Exception as error:
            log.exception("a request failed")
            if not has_begun:
                await error_response(errors.of(error))(scope, receive, send_marked)


async def _until_gone(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application until it has answered, or its client has left."""
    gone, is_read = asyncio.Event(), asyncio.Event()
    is_whole = False

    async def hear() -> Message:
        if is_read.is_set():  # from here on `watch` listens
            await gone.wait()
            return {"type": "http.disconnect"}
        message = await receive()
        if message["type"] == "http.disconnect":
            gone.set()
        if not message.get("more_body"):
            is_read.set()
        return message

    async def watch() -> None:
        await is_read.wait()
        while not gone.is_set() and (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def say(message: Message) -> None:
        nonlocal is_whole
        is_whole = message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    answering = asyncio.ensure_future(app(scope, hear, say))
    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and not is_whole:  # servers say that a client left when its answer is whole, too
            answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
    finally:
        for task in (answering, watching):
            task.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)
