"""Every route the application knows, asked without a key and with keys that may not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.serving import keys
from groundup.serving.auth import OPEN, RULES, is_below
from groundup.serving.security import Guards, SecuritySettings

pytest.importorskip("fastapi", reason="the application: pip install 'groundup[serve]'")
FILE = Path("keys.json")
READING = {"/", "/studio/{digest}/{name}", "/docs", "/openapi.json", "/metrics"}
"""What may lie outside `/v1`: it is read, and changes nothing."""


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """The application with nothing behind it: a request that reached it would fail."""
    from groundup.serving.api.app import create_app
    from groundup.serving.api.calling import Api
    from groundup.serving.api.registry import Registry
    from groundup.serving.api.settings import Settings

    client: Any = None
    return create_app(Api(client, Registry(client), Settings()), state=tmp_path / "state", is_ready=lambda: True)


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of mounted applications too; a websocket's method is WEBSOCKET."""
    while not hasattr(app, "routes"):
        app = app.app
    for route in app.routes:
        inner = getattr(route, "original_router", route)  # FastAPI keeps routers that were included whole
        if getattr(inner, "routes", None) is not None:
            yield from ((method, getattr(route, "path", "") + path) for method, path in routes_of(inner))
        elif "WebSocket" in type(route).__name__:
            yield "WEBSOCKET", route.path
        else:
            yield from ((method, route.path) for method in getattr(route, "methods", None) or {"GET"})


def filled(path: str) -> str:
    """A path with something in place of its parameters."""
    return re.sub(r"\{[^}]+\}", "x", path)


@pytest.mark.smoke
def test_without_a_key_no_route_answers_but_yes_and_no(app: Any, wire: Any) -> None:
    keys.create(FILE, "a")
    guarded = Guards(SecuritySettings(), keys=FILE).protect(app)
    walked = list(routes_of(app))
    described = {filled(path) for path in app.app.openapi()["paths"]}
    assert described <= {filled(path) for _, path in walked}, "what is described has been walked"
    for method, path in walked:
        reply = wire.call(guarded, method, filled(path))
        if path in OPEN and method in ("GET", "HEAD"):
            assert reply.status in (200, 503), (method, path)
            assert reply.body in (b"yes", b"no", b"")
        else:
            assert reply.status == 401, (method, path)
        for other in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            if path not in OPEN:
                assert wire.call(guarded, other, filled(path)).status == 401, (other, path)


def test_each_route_needs_the_scope_that_its_place_says(app: Any, wire: Any) -> None:
    texts = {scope: keys.create(FILE, scope, scopes=(scope,))[1] for scope in keys.SCOPES}

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    guarded = Guards(SecuritySettings(), keys=FILE).protect(reached)
    for method, path in routes_of(app):
        if path in OPEN:
            continue
        needed = next(scopes for prefix, scopes in RULES if is_below(path, prefix))
        for scope, text in texts.items():
            reply = wire.call(guarded, method, filled(path), [("authorization", f"Bearer {text}")])
            assert reply.status == (204 if scope in needed else 403), (method, path, scope)


def test_what_administers_lies_where_the_rules_look_for_it(app: Any) -> None:
    """A route that loads, ends or changes something needs `admin`; outside `/v1` nothing changes anything."""
    for method, path in routes_of(app):
        needed = next(scopes for prefix, scopes in RULES if is_below(path, prefix))
        if re.search(r"admin|load|drain|pause|resume|weights|shutdown|restart|canary", path):
            assert needed == {"admin"}, (method, path)
        if not path.startswith("/v1/") and path not in OPEN:
            assert method in ("GET", "HEAD"), (method, path)
            assert path in READING or needed != keys.SCOPES, (method, path)
