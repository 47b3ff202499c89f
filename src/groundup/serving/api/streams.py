"""A stream of events as an answer over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from groundup.serving.api import errors
from groundup.serving.api.events import SILENCE, event
from groundup.serving.api.responses import error_response


class EventStream(Response):
    """A stream of server-sent events that is cancelled with its client, and never silent for long.

    What fails before the first event is an ordinary error answer. What fails later is one more event with an error
    object, after which the stream ends without [DONE].
    """

    def __init__(self, events: AsyncGenerator[bytes, None], *, keep_alive_s: float) -> None:
        super().__init__(media_type="text/event-stream")
        self.events, self.keep_alive_s = events, keep_alive_s
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"  # proxies of nginx's kind would hold pieces back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with contextlib.aclosing(self.events) as events:
            first = asyncio.ensure_future(anext(events))
            try:
                await asyncio.wait({first}, timeout=self.keep_alive_s)
                if first.done() and (error := first.exception()) is not None and isinstance(error, Exception):
                    await error_response(errors.of(error))(scope, receive, send)
                    return
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send(events, first, send)
            finally:
                first.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await first

    async def _send(self, events: AsyncGenerator[bytes, None], first: asyncio.Future[bytes], send: Send) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(max(0.0, last + self.keep_alive_s - loop.time()))
                if loop.time() >= last + self.keep_alive_s:
                    await out(SILENCE)

        async def out(data: bytes, *, more: bool = True) -> None:
            nonlocal last
            last = loop.time()
            await send({"type": "http.response.body", "body": data, "more_body": more})

        alive = asyncio.create_task(keep_alive())
        try:
            if not first.done():
                await out(SILENCE)
            await out(await first)
            async for data in events:
                await out(data)
        except Exception as error:
            await out(event(errors.of(error).as_data()))
        finally:
            alive.cancel()
        await out(b"", more=False)
