"""Connections that hold a place and do nothing with it: slow heads, and readers that stop reading.

An application behind ASGI sees a request once its head is complete, and cannot close a connection. These two
attacks live outside of that: sending a head byte by byte (slowloris), and not reading an answer, so that it
stays in memory. Both are ended here, by the protocol that uvicorn runs for each connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from groundup.config import Section
from groundup.errors import MissingExtra
from groundup.units import Bytes, Duration, PositiveCount


class ConnectionSettings(Section):
    """How long a connection may do nothing, and how many one address may hold."""

    head_time: Duration = 10.0
    """Seconds in which the head of a request must come, from its first byte or from connecting."""
    stall_time: Duration = 60.0
    """Seconds that a client may leave an answer unread before it is cut off."""
    idle: Duration = 30.0
    """Seconds that a connection is kept for the next request."""
    max_head: Bytes = 64 << 10
    """The longest head that is read at all."""
    per_address: PositiveCount = 512
    """Connections of one address at the same time."""


def guarded_protocol(settings: ConnectionSettings) -> type[asyncio.Protocol]:
    """The class to give uvicorn as `http=`. Raises MissingExtra without uvicorn."""
    try:
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as error:
        raise MissingExtra("uvicorn", "serve", needed_for="a server") from error
    held: Counter[str] = Counter()

    # h11 rather than httptools: it bounds the length of a head, and reads requests in the strictest way.
    class Guarded(H11Protocol):
        """One connection, with a timer for what it must do next."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.head_timer: asyncio.TimerHandle | None = None
            self.stall_timer: asyncio.TimerHandle | None = None
            self.address: str | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.address = str((transport.get_extra_info("peername") or ("local",))[0])
            held[self.address] += 1
            if held[self.address] > settings.per_address:
                transport.abort()
                return
            self.expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self.let_go()
            super().connection_lost(exc)

        def let_go(self) -> None:
            """Stop the timers and free the place. Again, it does nothing."""
            _cancel(self.head_timer)
            _cancel(self.stall_timer)
            if self.address is not None:
                held[self.address] -= 1
                held.pop(self.address) if not held[self.address] else None
                self.address = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_protocol() is not self:
                self.let_go()  # a websocket from here on, under a protocol of its own
            elif self.cycle is not None and not self.cycle.response_complete:
                _cancel(self.head_timer)
                self.head_timer = None
            elif self.head_timer is None:
                self.expect_head()

        def expect_head(self) -> None:
            """Give the client so long to send the head of a request."""
            self.head_timer = self.loop.call_later(settings.head_time, self.transport.abort)

        def pause_writing(self) -> None:
            """The client does not read; abort, since closing would wait for it to read the rest."""
            super().pause_writing()
            self.stall_timer = self.loop.call_later(settings.stall_time, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self.stall_timer)
            self.stall_timer = None

    return Guarded


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def uvicorn_options(settings: ConnectionSettings) -> dict[str, Any]:
    """What to give `uvicorn.Config` besides the application, so that the guards are in force."""
    return {
        "http": guarded_protocol(settings),
        "h11_max_incomplete_event_size": settings.max_head,
        "timeout_keep_alive": int(settings.idle),
        "server_header": False,
    }
