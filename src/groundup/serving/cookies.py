"""Sessions of the page: a key is exchanged once for a cookie that no script can read.

A session is 32 random bytes in the cookie and an entry here, found by their SHA-256; nothing in the cookie can
be forged, and signing out ends it for good. It ends with its key: each request asks the ring again. Sessions
live in memory, so a restart signs everybody out, which is the safe side. `SameSite=Strict` keeps the cookie
out of requests that other sites cause, `HttpOnly` out of scripts, `__Host-` (under TLS) to this host alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from groundup.config import Section
from groundup.serving.refusals import Receive, Refused, Scope, header
from groundup.units import Bytes, Duration, PositiveCount


class SessionSettings(Section):
    """How long a browser stays signed in."""

    idle: Duration = 8 * 3600.0
    """Seconds without a request after which a session ends."""
    longest: Duration = 7 * 86400.0
    """Seconds after which a session ends in any case."""
    max_sessions: PositiveCount = 10_000
    """How many there may be; a new one ends the one that was silent longest."""
    per_key: PositiveCount = 64
    """How many of one key; a new one ends its own that was silent longest, and nobody else's."""
    always_secure: bool = False
    """Mark the cookie `Secure` even where a request came without TLS: a proxy in front ends it."""
    max_body: Bytes = 4096
    """The longest body of a request to sign in."""
    body_time: Duration = 10.0
    """Seconds in which that body must come."""


@dataclass(slots=True)
class Session:
    """An open session: the key that opened it, and its times in seconds of the clock."""

    key_id: str
    digest: str
    opened: float
    seen: float


class Sessions:
    """The open sessions of a server."""

    def __init__(self, settings: SessionSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self._clock = settings, clock
        self._open: OrderedDict[str, Session] = OrderedDict()

    def open(self, key_id: str, digest: str) -> str:
        """A new session of a key; returns what its cookie holds."""
        now, token = self._clock(), secrets.token_urlsafe(32)
        own = [place for place, session in self._open.items() if session.key_id == key_id]
        for place in own[: max(0, len(own) + 1 - self.settings.per_key)]:
            del self._open[place]
        self._open[_place(token)] = Session(key_id, digest, now, now)
        while len(self._open) > self.settings.max_sessions:
            self._open.popitem(last=False)
        return token

    def find(self, token: str) -> Session | None:
        """The session of a cookie, kept alive by being asked for; None if it has ended."""
        place, now = _place(token), self._clock()
        session = self._open.get(place)
        if session is None:
            return None
        if now - session.seen >= self.settings.idle or now - session.opened >= self.settings.longest:
            del self._open[place]
            return None
        session.seen = now
        self._open.move_to_end(place)
        return session

    def close(self, token: str | None) -> None:
        """End a session, if there is one."""
        if token is not None:
            self._open.pop(_place(token), None)


def _place(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def token_of(scope: Scope, settings: SessionSettings) -> str | None:
    """What the session cookie of a request holds, or None. A cookie given twice counts as none."""
    wanted = cookie_name(scope, settings)
    found = []
    for name, value in scope["headers"]:
        if name.lower() == b"cookie":
            pairs = (part.strip().partition("=") for part in value.decode("latin-1").split(";"))
            found += [content for key, _, content in pairs if key == wanted]
    return found[0] if len(found) == 1 and len(found[0]) <= 128 else None


def cookie_name(scope: Scope, settings: SessionSettings) -> str:
    """`__Host-groundup` under TLS. Without, the port is in the name: cookies are not kept apart by port."""
    server = scope.get("server")
    port = server[1] if server and server[1] is not None else 0
    return "__Host-groundup" if is_secure(scope, settings) else f"groundup_{port}"


def is_secure(scope: Scope, settings: SessionSettings) -> bool:
    """Whether the browser reached this server by TLS."""
    return settings.always_secure or scope.get("scheme") in ("https", "wss")


def cookie(scope: Scope, settings: SessionSettings, token: str | None) -> tuple[bytes, bytes]:
    """The header that sets the cookie, or with None takes it away."""
    age = f"Max-Age={int(settings.longest)}" if token is not None else "Max-Age=0"
    parts = [f"{cookie_name(scope, settings)}={token or ''}", "Path=/", age, *guards(scope, settings)]
    return b"set-cookie", "; ".join(parts).encode("ascii")


def guards(scope: Scope, settings: SessionSettings) -> list[str]:
    """What keeps the cookie from scripts, from other sites and from plain HTTP."""
    return ["HttpOnly", "SameSite=Strict", *(["Secure"] if is_secure(scope, settings) else [])]


async def presented_key(scope: Scope, receive: Receive, settings: SessionSettings) -> tuple[str, bool]:
    """The key in the body of a request to sign in, and whether a form sent it. Raises Refused."""
    try:
        async with asyncio.timeout(settings.body_time):
            body = await _short_body(receive, settings.max_body)
    except TimeoutError:
        raise Refused(408, "body_timeout", "the key came too slowly", headers={"connection": "close"}) from None
    kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    found: object = None
    try:
        if kind == "application/x-www-form-urlencoded":
            found = parse_qs(body.decode("utf-8"), max_num_fields=8).get("key", [None])[0]
        elif kind == "application/json":
            data = json.loads(body.decode("utf-8"))
            found = data.get("key") if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        pass
    if not isinstance(found, str):
        raise Refused(400, "no_key", "the body holds no key", fix='send {"key": "gu_…"} as application/json')
    return found.strip(), kind != "application/json"


async def _short_body(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "incomplete_body", "the request ended before its body")
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, "body_too_large", f"a key takes less than {most} bytes")
        if not message.get("more_body", False):
            return bytes(body)
