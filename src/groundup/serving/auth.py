"""Nothing behind this is reached without a key: routes, websockets, static files, pages of documentation.

A key comes as `Authorization: Bearer`, as `x-api-key`, or through the session cookie that `POST /session` gives
in exchange for it. Open are `/livez` and `/readyz`, which say yes or no, and `/session`, which asks for a key
itself. Everything else is refused unless it is proved to be allowed, whether the application knows the path or
not, so a route that somebody adds later is closed from its first day.

Wrong keys are limited by address. A good key is let in all the same, so nobody is locked out by a neighbour's
mistakes; guessing is hopeless with or without the limit, which only keeps the noise out of logs and processor.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from groundup.serving.cookies import Sessions, SessionSettings, cookie, presented_key, token_of
from groundup.serving.edge import require_own_origin
from groundup.serving.keys import ANYBODY, SCOPES, KeyRing, Principal, Verdict
from groundup.serving.rates import Bucket
from groundup.serving.refusals import (
    POLICY_VIOLATION,
    App,
    Message,
    Receive,
    Refused,
    Scope,
    Send,
    header,
    refuse,
    respond,
    route_of,
)
from groundup.serving.sign_in import HEADERS, page

OPEN = frozenset({"/livez", "/readyz"})
SESSION, SESSION_END = "/session", "/session/end"
ANY = frozenset(SCOPES)
RULES: tuple[tuple[str, frozenset[str]], ...] = (
    ("/metrics", frozenset({"metrics", "admin"})),
    ("/v1/admin", frozenset({"admin"})),
    ("/v1/load_lora_adapter", frozenset({"admin"})),
    ("/v1/unload_lora_adapter", frozenset({"admin"})),
    ("/v1/models", frozenset({"infer", "admin"})),
    ("/v1", frozenset({"infer"})),
    ("/", ANY),
)
"""Paths, and all below them, with the scopes of which a key must have one. The first that fits holds."""
CHALLENGE = {"www-authenticate": 'Bearer realm="groundup"'}
WRONG_PER_MINUTE = 20
MAX_ADDRESSES = 4096
_BEARER = re.compile(r"bearer +([!-~]{1,512})", re.ASCII | re.IGNORECASE)


class Auth:
    """ASGI middleware that puts the `Principal` of a request into `scope["groundup.key"]`, or refuses it.

    Without a ring everybody may do everything, as `--no-auth-i-understand` asks; requests that a browser sends
    for pages of other sites are still refused. `origins` are the sites that may use the server from a browser.
    """

    def __init__(
        self,
        app: App,
        ring: KeyRing | None,
        *,
        sessions: SessionSettings | None = None,
        origins: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.ring, self.origins = app, ring, origins
        self.settings = sessions or SessionSettings()
        self.sessions = Sessions(self.settings, clock=clock)
        self.failures = Failures(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_open(scope):
            await self.app(scope, receive, send)
            return
        route = route_of(scope)
        try:
            if self.ring is not None and scope["type"] == "http" and route in (SESSION, SESSION_END):
                await self._session(self.ring, scope, receive, send)
                return
            principal = self._admit(scope)
            require_scope(route, principal)
        except Refused as refusal:
            await refuse(scope, receive, send, refusal, page=sign_in_page(scope, refusal))
            return
        scope["groundup.key"] = principal
        watched = self._watched(scope, receive, send) if scope["type"] == "websocket" else receive
        await self.app(scope, watched, send)

    def _admit(self, scope: Scope) -> Principal:
        """Whose request it is. Raises Refused."""
        if self.ring is None:
            require_own_origin(scope, others=self.origins, needed=False)
            return ANYBODY
        presented = presented_in_headers(scope)
        if presented is not None:
            return require_good(self.ring.check(presented), scope, self.failures)
        session = self.sessions.find(token_of(scope, self.settings) or "")
        if session is None:
            fix = "send a key as `Authorization: Bearer gu_…`; `groundup keys create` makes one"
            raise Refused(401, "missing_api_key", "this needs an API key", fix=fix, headers=CHALLENGE)
        require_own_origin(scope)
        scope["groundup.session"] = (session.key_id, session.digest)
        return require_good(self.ring.renew(session.key_id, session.digest), scope, self.failures)

    def _watched(self, scope: Scope, receive: Receive, send: Send) -> Receive:
        """`receive` of a websocket that closes it once its key has been revoked or has expired."""
        presented = presented_in_headers(scope)
        key_id, digest = scope.get("groundup.session", ("", ""))

        async def receive_watched() -> Message:
            message = await receive()
            if self.ring is None or message["type"] != "websocket.receive":
                return message
            verdict = self.ring.check(presented) if presented is not None else self.ring.renew(key_id, digest)
            if verdict.principal is not None:
                return message
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": f"key {verdict.problem}"})
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}

        return receive_watched

    async def _session(self, ring: KeyRing, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /session` signs in, `GET` says who is signed in, `DELETE` (or `POST /session/end`) signs out."""
        method, is_end = scope["method"], route_of(scope) == SESSION_END
        if method == "POST" and not is_end:
            await self._sign_in(ring, scope, receive, send)
        elif method == "GET" and not is_end:
            await respond(scope, send, 200, [JSON], _described(self._admit(scope)))
        elif method == "DELETE" or (method == "POST" and is_end):
            require_own_origin(scope, needed=False)
            self.sessions.close(token_of(scope, self.settings))
            home = [(b"location", _home(scope))] if is_end else []
            await respond(scope, send, 303 if is_end else 204, [*home, cookie(scope, self.settings, None)])
        else:
            raise Refused(405, "method_not_allowed", f"{method} is not for {route_of(scope)}")

    async def _sign_in(self, ring: KeyRing, scope: Scope, receive: Receive, send: Send) -> None:
        require_own_origin(scope, needed=False)
        presented, is_form = await presented_key(scope, receive, self.settings)
        verdict = ring.check(presented)
        principal = require_good(verdict, scope, self.failures)
        scope["groundup.key"] = principal
        # Whoever planted a session before must not share the new one.
        self.sessions.close(token_of(scope, self.settings))
        set_cookie = cookie(scope, self.settings, self.sessions.open(principal.id, verdict.digest))
        if is_form:
            await respond(scope, send, 303, [(b"location", _home(scope)), set_cookie])
        else:
            await respond(scope, send, 200, [JSON, set_cookie], _described(principal))


JSON = (b"content-type", b"application/json")


class Failures:
    """Wrong keys by address: a bucket for each, of the addresses seen last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def wait_s(self, scope: Scope) -> float:
        """Count a wrong key; seconds to wait if the address has sent too many, else 0."""
        address = address_of(scope)
        bucket = self._buckets.setdefault(address, Bucket(WRONG_PER_MINUTE, self._clock))
        self._buckets.move_to_end(address)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        wait_s = bucket.wait_s(1)
        if not wait_s:
            bucket.take(1)
        return wait_s


def address_of(scope: Scope) -> str:
    """The address a request comes from; of IPv6 the first 64 bits, which one customer has to himself."""
    client = scope.get("client")
    if not client:
        return "local"
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return str(client[0])
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


# Each rule stands alone, so that a test can switch it off and see what it was for.


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key: a health check, by its exact path."""
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and route_of(scope) in OPEN


def presented_in_headers(scope: Scope) -> str | None:
    """The key in the headers of a request, or None. Raises Refused for two that differ, or another scheme."""
    authorization, plain = header(scope, b"authorization"), header(scope, b"x-api-key")
    bearer = None
    if authorization is not None:
        found = _BEARER.fullmatch(authorization)
        if found is None:
            fix = "send `Authorization: Bearer gu_…`"
            raise Refused(401, "invalid_api_key", "the Authorization header is malformed", fix=fix, headers=CHALLENGE)
        bearer = found[1]
    if bearer is not None and plain is not None and bearer != plain:
        raise Refused(400, "two_api_keys", "the request holds two different keys", fix="send one of them")
    return bearer if bearer is not None else plain


def require_good(verdict: Verdict, scope: Scope, failures: Failures) -> Principal:
    """The principal of a key that is good. Raises Refused (401), or 429 if wrong keys keep coming."""
    if verdict.principal is not None:
        return verdict.principal
    wait_s = failures.wait_s(scope)
    if wait_s:
        what = "too many wrong keys have come from this address"
        raise Refused(429, "too_many_wrong_keys", what, fix="wait, then send a valid one", retry_after_s=wait_s)
    what = "the API key is not valid here" if verdict.problem == "unknown" else f"the API key is {verdict.problem}"
    fix = "check it; `groundup keys list` shows the keys, `groundup keys create` makes one"
    raise Refused(401, "invalid_api_key", what, fix=fix, headers=CHALLENGE)


def require_scope(route: str, principal: Principal) -> None:
    """Raise Refused (403) if a key has none of the scopes that a path needs."""
    needed = next(scopes for path, scopes in RULES if is_below(route, path))
    if not needed & principal.scopes:
        wanted = " or ".join(sorted(needed))
        what = f"this needs a key with the scope {wanted}; this key has {', '.join(sorted(principal.scopes))}"
        raise Refused(403, "insufficient_scope", what, fix=f"groundup keys create --scope {sorted(needed)[0]}")


def is_below(route: str, path: str) -> bool:
    """Whether a route is a path of the rules, or below it."""
    return path == "/" or route == path or route.startswith(f"{path}/")


def sign_in_page(scope: Scope, refusal: Refused) -> bytes | None:
    """The page to sign in, for a browser that lacks a key; None for programs."""
    if scope["type"] != "http" or refusal.code not in ("missing_api_key", "invalid_api_key", "too_many_wrong_keys"):
        return None
    values = {name.lower(): value for name, value in scope["headers"]}
    if b"text/html" not in values.get(b"accept", b""):
        return None
    refusal.headers.update(HEADERS)
    refusal.headers.pop("www-authenticate", None)  # a browser would ask with a window of its own
    problem = {"missing_api_key": "", "invalid_api_key": "wrong"}.get(refusal.code, "often")
    action = str(scope.get("root_path") or "").rstrip("/") + SESSION
    return page(action, languages=values.get(b"accept-language", b"").decode("latin-1"), problem=problem)


def _home(scope: Scope) -> bytes:
    return (str(scope.get("root_path") or "").rstrip("/") + "/").encode("latin-1")


def _described(principal: Principal) -> bytes:
    found: dict[str, Any] = {"id": principal.id, "name": principal.name, "scopes": sorted(principal.scopes)}
    return json.dumps(found, ensure_ascii=False).encode()
