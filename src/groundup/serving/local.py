"""The engine without a server: in a thread of this process, behind the same client."""

from __future__ import annotations

import asyncio
import socket
import threading

from groundup.serving.client import EngineClient


class LocalClient(EngineClient):
    """An engine in a thread of this process: for `groundup predict` and for tests; see `Client`.

    `async with LocalClient() as client`. There is no supervisor: an engine that dies stays dead.
    """

    async def __aenter__(self) -> LocalClient:
        from groundup.serving import worker  # brings torch

        ours, theirs = socket.socketpair()
        self._thread = threading.Thread(target=worker.serve, args=(theirs,), name="engine", daemon=True)
        self._thread.start()
        await self.attach(ours)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.detach("the client was closed")
        await asyncio.to_thread(self._thread.join, 30)
