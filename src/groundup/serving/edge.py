"""The first look at a request: its head, the host it was meant for, and the site it comes from.

A web page anywhere may make its visitor's browser send requests to this machine. Three checks keep it out:
the `Host` header must name this server, or a page could rebind its own name to 127.0.0.1 and read the answers
as its own; the `Origin` must be this server's where a browser would add a cookie by itself (see auth.py); and
answers are readable to other sites only if those are named (CORS), and then without cookies.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import Field

from groundup.config import Section
from groundup.serving.refusals import App, Message, Receive, Refused, Scope, Send, header, refuse, respond
from groundup.units import Bytes, PositiveCount

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::[0-9]{1,5})?", re.ASCII)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+(?:, ?[A-Za-z0-9-]+)*", re.ASCII)
ONCE = (b"host", b"content-length", b"authorization", b"x-api-key", b"origin", b"content-type", b"content-encoding")
"""Headers whose second value would let two readers see two requests."""
GUARDS = ((b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"SAMEORIGIN"))
"""Headers that every answer has, unless the application chose its own."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
EXPOSED = b"x-request-id, x-model-digest, retry-after, " + b", ".join(
    f"x-ratelimit-{word}-{name}".encode() for name in ("requests", "tokens") for word in ("limit", "remaining", "reset")
)
"""Headers of an answer that a page of a named origin may read."""


class EdgeSettings(Section):
    """What the head of a request may be."""

    hosts: tuple[str, ...] = ()
    """Names in the `Host` header that are this server's, without ports. Where there are none: loopback's names on
    loopback, any name elsewhere."""
    origins: tuple[Annotated[str, Field(pattern=r"^https?://[a-z0-9\[\]_.:-]+$")], ...] = ()
    """Sites whose pages may use this server from a browser, with keys of their own: `https://app.example.org`."""
    max_headers: PositiveCount = 100
    """How many headers a request may have."""
    max_head: Bytes = 32 << 10
    """The longest head of a request, its path and headers together."""


class Edge:
    """ASGI middleware, in front of authentication. `bind` is the address the server listens on."""

    def __init__(self, app: App, settings: EdgeSettings | None = None, *, bind: str = "127.0.0.1") -> None:
        self.app, self.settings = app, settings or EdgeSettings()
        self.hosts = hosts_of(bind, self.settings.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            require_small_head(scope, self.settings)
            require_single_headers(scope)
            require_known_host(scope, self.hosts)
            origin = header(scope, b"origin")
        except Refused as refusal:
            await refuse(scope, receive, send, refusal)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        added: list[tuple[bytes, bytes]] = []
        if origin is not None and may_read(origin, self.settings.origins):
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
                await _answer_preflight(scope, send, origin)
                return
            added = [*_allowing(origin), (b"access-control-expose-headers", EXPOSED)]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                message["headers"] = [*headers, *missing_guards(headers), *added]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def hosts_of(bind: str, named: tuple[str, ...]) -> frozenset[str] | None:
    """The names that requests may be addressed to, or None for any.

    On loopback only loopback's names, and those named. Elsewhere any: a public server cannot know its names,
    and a page that rebinds one to it gains nothing that it could not reach directly.
    """
    names = frozenset(name.lower() for name in named)
    if is_loopback(bind):
        return names | {*LOOPBACK, bind.lower()}
    return names or None


def is_loopback(bind: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return bind == "localhost" or ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return False


# Each rule stands alone, so that a test can switch it off and see what it was for.


def require_small_head(scope: Scope, settings: EdgeSettings) -> None:
    """Raise Refused (431) for too many headers, or too long ones."""
    count = len(scope["headers"])
    size = len(scope["path"]) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if count > settings.max_headers:
        raise Refused(431, "too_many_headers", f"{count} headers, more than {settings.max_headers}")
    if size > settings.max_head:
        raise Refused(431, "headers_too_large", f"a head of {size} bytes, more than {settings.max_head}")


def require_single_headers(scope: Scope) -> None:
    """Raise Refused (400) if a header that may be given once is given twice."""
    for name in ONCE:
        header(scope, name)


def require_known_host(scope: Scope, hosts: frozenset[str] | None) -> None:
    """Raise Refused (400, 421) if the request was not meant for this server."""
    if hosts is None:
        return
    given = (header(scope, b"host") or "").lower()
    found = _HOST.fullmatch(given)
    if found is None:
        raise Refused(400, "invalid_host", "the Host header is missing or malformed")
    if found[1].rstrip(".") not in hosts:
        fix = "ask the server by the name it was started with, or start it with that name among `hosts`"
        raise Refused(421, "unknown_host", f"{found[1][:80]!r} is no name of this server", fix=fix)


def may_read(origin: str, origins: tuple[str, ...]) -> bool:
    """Whether pages of an origin may read the answers."""
    return origin in origins


def missing_guards(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What keeps browsers from guessing the type of an answer, or showing it inside a foreign page."""
    names = {name.lower() for name, _ in headers}
    return [pair for pair in GUARDS if pair[0] not in names]


def require_own_origin(scope: Scope, *, others: tuple[str, ...] = (), needed: bool = True) -> None:
    """Raise Refused (403) if a browser sends the request for a page that is not this server's.

    For requests that a browser authenticates by itself. Those that change nothing (GET, HEAD) pass: another site
    cannot read their answers. `others` are origins that may all the same. Where none is given, `Sec-Fetch-Site`
    says as much; without either the request is no browser's, and passes unless `needed`.
    """
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
        return
    origin = header(scope, b"origin")
    scheme = {"ws": "http", "wss": "https"}.get(scope.get("scheme", "http"), scope.get("scheme", "http"))
    own = f"{scheme}://{(header(scope, b'host') or '').lower()}"
    if origin is not None:
        is_own = origin.lower() == own or origin in others
    else:
        site = header(scope, b"sec-fetch-site")
        is_own = not needed if site is None else site == "same-origin"
    if not is_own:
        shown = "of no stated origin" if origin is None else f"of {origin[:80]!r}"
        fix = "use an API key in the Authorization header"
        raise Refused(403, "foreign_origin", f"a page {shown} may not act for whoever is signed in here", fix=fix)


async def _answer_preflight(scope: Scope, send: Send, origin: str) -> None:
    """Tell a browser what a page of a named origin may send. It carries no key: the specification forbids it."""
    wanted = header(scope, b"access-control-request-headers") or ""
    headers = [*_allowing(origin), (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS")]
    if _HEADER_NAMES.fullmatch(wanted):
        headers.append((b"access-control-allow-headers", wanted.encode()))
    await respond(scope, send, 204, [*headers, (b"access-control-max-age", b"600")])


def _allowing(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
