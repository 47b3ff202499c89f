"""Who is let in, with what, and what they are told otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.serving import keys
from groundup.serving.auth import Auth, Failures, address_of
from groundup.serving.cookies import Sessions, SessionSettings
from groundup.serving.edge import Edge, EdgeSettings, hosts_of
from groundup.serving.keys import KeyRing, Principal

FILE = Path("keys.json")
FORM = ("content-type", "application/x-www-form-urlencoded")
JSON = ("content-type", "application/json")
OWN = ("origin", "http://127.0.0.1:8000")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that says who asked."""
    principal: Principal | None = scope.get("groundup.key")
    body = (principal.id if principal is not None else "nobody").encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def key() -> str:
    return keys.create(FILE, "a", scopes=("infer", "admin"))[1]


@pytest.fixture
def guarded(key: str, clock: Any) -> Auth:
    return Auth(answer, KeyRing(FILE, clock=clock), clock=clock)


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


def sign_in(wire: Any, app: Any, key: str, **more: Any) -> Any:
    return wire.call(app, "POST", "/session", [JSON, OWN], json.dumps({"key": key}).encode(), **more)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["authorization", "x-api-key", "cookie"])
def test_a_key_is_taken_in_three_ways(name: str, wire: Any, guarded: Auth, key: str) -> None:
    if name == "cookie":
        value = sign_in(wire, guarded, key)["set-cookie"].partition(";")[0]
    else:
        value = f"Bearer {key}" if name == "authorization" else key
    reply = wire.call(guarded, "GET", "/v1/models", [(name, value)])
    assert (reply.status, reply.body.decode()) == (200, key.split("_")[1])


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_needs_no_key_and_only_to_be_read(path: str, wire: Any, guarded: Auth) -> None:
    assert wire.call(guarded, "GET", path).body == b"nobody"
    assert wire.call(guarded, "HEAD", path).status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert wire.call(guarded, method, path).status == 401


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/models", "/v1/chat/completions", "/metrics", "/docs", "/openapi.json", "/favicon.ico",
     "/_nicegui/x.js", "/static/../livez", "/livez%2f", "/nothing/here", "//", "", "/v1/admin/models", "/session"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PATCH", "TRACE", "WEBSOCKET"])
def test_without_a_key_nothing_is_reached(method: str, path: str, wire: Any, guarded: Auth) -> None:
    reply = wire.call(guarded, method, path)
    assert b"nobody" not in reply.body
    if method == "WEBSOCKET":
        assert reply.status is None
    else:
        # POST /session asks for a key itself, and here finds none; what else it does not know it refuses.
        assert reply.status == 401 or (path == "/session" and reply.status in (400, 405))


def test_an_unknown_path_looks_like_a_known_one(wire: Any, guarded: Auth) -> None:
    first, second = (wire.call(guarded, "GET", path) for path in ("/v1/models", "/v1/nothing"))
    assert (first.status, first.body, first.headers) == (second.status, second.body, second.headers)


def test_refusals_are_openais(wire: Any, guarded: Auth, key: str) -> None:
    missing = wire.call(guarded, "GET", "/v1/models")
    assert missing.error | {"message": "", "fix": ""} == {
        "type": "authentication_error", "param": None, "code": "missing_api_key", "message": "", "fix": "",
    }  # fmt: skip
    assert missing["www-authenticate"].startswith("Bearer")
    assert wire.call(guarded, "GET", "/v1/models", [bearer("gu_nonsense")]).code == "invalid_api_key"
    infer = keys.create(FILE, "b")[1]
    ring = KeyRing(FILE)
    forbidden = wire.call(Auth(answer, ring), "POST", "/v1/admin/models", [bearer(infer)])
    assert (forbidden.status, forbidden.error["type"], forbidden.code) == (
        403,
        "permission_error",
        "insufficient_scope",
    )


@pytest.mark.parametrize(
    ("scope", "path", "status"),
    [
        ("infer", "/v1/chat/completions", 200), ("infer", "/v1/models", 200), ("infer", "/", 200),
        ("infer", "/metrics", 403), ("infer", "/v1/admin", 403), ("infer", "/v1/load_lora_adapter", 403),
        ("infer", "/v1/administrators", 200), ("admin", "/v1/admin/models", 200), ("admin", "/v1/models", 200),
        ("admin", "/v1/chat/completions", 403), ("admin", "/metrics", 200), ("metrics", "/metrics", 200),
        ("metrics", "/v1/models", 403), ("metrics", "/v1/chat/completions", 403),
    ],
)  # fmt: skip
def test_a_scope_opens_its_own_paths(scope: str, path: str, status: int, wire: Any) -> None:
    text = keys.create(FILE, "a", scopes=(scope,))[1]
    assert wire.call(Auth(answer, KeyRing(FILE)), "GET", path, [bearer(text)]).status == status


def test_a_server_mounted_below_a_path_keeps_its_rules(wire: Any, guarded: Auth) -> None:
    assert wire.call(guarded, "GET", "/models/livez", root_path="/models").status == 200
    assert wire.call(guarded, "GET", "/models/livez", root_path="/other").status == 401
    infer = keys.create(FILE, "b")[1]
    inside = Auth(answer, KeyRing(FILE))
    assert wire.call(inside, "GET", "/m/v1/admin/x", [bearer(infer)], root_path="/m").status == 403


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic abc", "bearer\tx", "Bearer a b", "Bearer é"])
def test_a_malformed_header_is_a_401(value: str, wire: Any, guarded: Auth) -> None:
    assert wire.call(guarded, "GET", "/v1/models", [("authorization", value)]).status == 401


def test_a_good_header_is_not_spoilt_by_an_old_cookie(wire: Any, guarded: Auth, key: str) -> None:
    headers = [bearer(key), ("cookie", "groundup_8000=gone")]
    assert wire.call(guarded, "POST", "/v1/chat/completions", headers).status == 200


# Sessions


def test_a_browser_without_a_key_gets_a_page_to_sign_in(wire: Any, guarded: Auth) -> None:
    for language, word in (("en-GB,en", "API key"), ("zh-CN,zh;q=0.9", "API 密钥")):
        reply = wire.call(guarded, "GET", "/", [("accept", "text/html,*/*"), ("accept-language", language)])
        assert reply.status == 401, "a page, and still a refusal"
        assert word in reply.body.decode()
        assert "script" not in reply.body.decode()
        assert "default-src 'none'" in reply["content-security-policy"]
        assert reply["cache-control"] == "no-store"


def test_the_page_signs_in_and_out(wire: Any, guarded: Auth, key: str) -> None:
    html = ("accept", "text/html")
    wrong = wire.call(guarded, "POST", "/session", [FORM, OWN, html], urlencode({"key": "gu_wrong"}).encode())
    assert wrong.status == 401
    assert 'role="alert"' in wrong.body.decode()
    done = wire.call(guarded, "POST", "/session", [FORM, OWN, html], urlencode({"key": f" {key}\n"}).encode())
    assert (done.status, done["location"]) == (303, "/")
    cookie = ("cookie", "other=1; " + done["set-cookie"].partition(";")[0])
    assert json.loads(wire.call(guarded, "GET", "/session", [cookie]).body)["name"] == "a"
    out = wire.call(guarded, "DELETE", "/session", [cookie, OWN])
    assert out.status == 204
    assert "Max-Age=0" in out["set-cookie"]
    assert wire.call(guarded, "GET", "/v1/models", [cookie]).status == 401, "the session has ended, not only its cookie"


def test_the_cookie_holds_nothing_of_the_key(wire: Any, guarded: Auth, key: str) -> None:
    cookies = {sign_in(wire, guarded, key)["set-cookie"].partition(";")[0] for _ in range(3)}
    assert len(cookies) == 3
    assert not any(part in cookie for cookie in cookies for part in key.split("_")[1:])


def test_signing_in_ends_the_session_that_was_there(wire: Any, guarded: Auth, key: str) -> None:
    planted = ("cookie", sign_in(wire, guarded, key)["set-cookie"].partition(";")[0])
    wire.call(guarded, "POST", "/session", [JSON, OWN, planted], json.dumps({"key": key}).encode())
    assert wire.call(guarded, "GET", "/v1/models", [planted]).status == 401


def test_a_session_ends_with_its_key(wire: Any, guarded: Auth, key: str, clock: Any) -> None:
    cookie = ("cookie", sign_in(wire, guarded, key)["set-cookie"].partition(";")[0])
    keys.rotate(FILE, key.split("_")[1], overlap_s=0)
    clock.now += keys.LOOK_EVERY_S
    assert wire.call(guarded, "GET", "/v1/models", [cookie]).status == 401


def test_a_session_ends_by_silence_and_by_age(clock: Any) -> None:
    sessions = Sessions(SessionSettings(idle=10, longest=25, max_sessions=2), clock=clock)
    token = sessions.open("a", "0")
    for _ in range(2):
        clock.now += 9
        assert sessions.find(token) is not None
    clock.now += 9
    assert sessions.find(token) is None, "25 seconds are over"
    quiet = sessions.open("a", "0")
    clock.now += 10
    assert sessions.find(quiet) is None
    first, second, third = (sessions.open("a", "0") for _ in range(3))
    assert [sessions.find(each) is not None for each in (first, second, third)] == [False, True, True]


def test_no_key_can_end_the_sessions_of_others(clock: Any) -> None:
    sessions = Sessions(SessionSettings(per_key=2, max_sessions=10), clock=clock)
    other = sessions.open("b", "0")
    tokens = [sessions.open("a", "0") for _ in range(30)]
    assert sessions.find(other) is not None
    assert [sessions.find(token) is not None for token in tokens[-3:]] == [False, True, True]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([OWN], 200),
        ([("sec-fetch-site", "same-origin")], 200),
        ([], 403),
        ([("sec-fetch-site", "same-site")], 403),
        ([("sec-fetch-site", "none")], 403),
        ([("origin", "null")], 403),
        ([("origin", "https://127.0.0.1:8000")], 403),
        ([("origin", "http://127.0.0.1:8000.evil.example")], 403),
        ([("origin", "http://localhost:8000")], 403),
    ],
)
def test_a_cookie_acts_only_for_its_own_page(
    headers: list[tuple[str, str]], status: int, wire: Any, guarded: Auth, key: str
) -> None:
    cookie = ("cookie", sign_in(wire, guarded, key)["set-cookie"].partition(";")[0])
    assert wire.call(guarded, "POST", "/v1/chat/completions", [cookie, *headers]).status == status
    assert wire.call(guarded, "GET", "/v1/models", [cookie, *headers]).status == 200, "reading is for CORS to forbid"


def test_another_site_cannot_sign_its_visitor_in(wire: Any, guarded: Auth, key: str) -> None:
    body = urlencode({"key": key}).encode()
    reply = wire.call(guarded, "POST", "/session", [FORM, ("origin", "https://evil.example")], body)
    assert reply.status == 403
    assert "set-cookie" not in dict(reply.headers)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([JSON], b"[" * 4000, 400), ([JSON], b"{}", 400), ([JSON], b'{"key": 1}', 400), ([JSON], b"\xff", 400),
        ([FORM], b"x=1", 400), ([FORM], b"&".join([b"key=1"] * 20), 400), ([], b"key=1", 400),
        ([JSON], b"x" * 5000, 413),
    ],
)  # fmt: skip
def test_a_bad_request_to_sign_in_is_a_4xx(
    headers: list[tuple[str, str]], body: bytes, status: int, wire: Any, guarded: Auth
) -> None:
    assert wire.call(guarded, "POST", "/session", headers, body).status == status


def test_two_servers_on_one_host_keep_their_cookies_apart(wire: Any, guarded: Auth, key: str) -> None:
    first = sign_in(wire, guarded, key)
    second = sign_in(wire, guarded, key, server=("127.0.0.1", 9000))
    assert first["set-cookie"].partition("=")[0] != second["set-cookie"].partition("=")[0]


# Addresses, hosts, other sites


def test_wrong_keys_are_counted_by_address_and_forgotten(clock: Any, wire: Any) -> None:
    failures = Failures(clock)
    scope = wire.scope_of("GET", "/", client=("10.0.0.1", 1))
    waits = [failures.wait_s(scope) for _ in range(25)]
    assert not any(waits[:20])
    assert all(waits[20:])
    assert not failures.wait_s(wire.scope_of("GET", "/", client=("10.0.0.2", 1))), "a neighbour is not locked out"
    clock.now += 60
    assert not failures.wait_s(scope)


def test_a_flood_of_addresses_takes_no_memory(clock: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.serving.auth.MAX_ADDRESSES", 10)
    failures = Failures(clock)
    for number in range(100):
        failures.wait_s(wire.scope_of("GET", "/", client=(f"10.0.0.{number}", 1)))
    assert len(failures._buckets) == 10


def test_a_network_of_ipv6_is_one_address(wire: Any) -> None:
    first, second, other = (
        address_of(wire.scope_of("GET", "/", client=(text, 1)))
        for text in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")
    )
    assert first == second != other
    assert address_of(wire.scope_of("GET", "/", client=None)) == "local"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200), ("localhost.", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost@evil.example", 400), ("", 400),
        ("localhost:8000:1", 400), ("127.0.0.1:8000/", 400), ("0x7f000001", 421),
    ],
)  # fmt: skip
def test_on_loopback_only_its_own_names_are_answered(host: str, status: int, wire: Any) -> None:
    assert wire.call(Edge(answer), "GET", "/livez", [("host", host)]).status == status


def test_names_that_are_answered() -> None:
    assert hosts_of("0.0.0.0", ()) is None
    assert hosts_of("0.0.0.0", ("Api.Example",)) == {"api.example"}
    assert {"localhost", "127.0.0.1", "[::1]", "gpu.lan"} <= (hosts_of("127.0.0.1", ("gpu.lan",)) or set())


def test_a_preflight_is_answered_for_named_origins_alone(wire: Any, guarded: Auth) -> None:
    app = Edge(guarded, EdgeSettings(origins=("https://app.example",)))
    wanted = "authorization,x-stainless-os"
    asked = [("access-control-request-method", "POST"), ("access-control-request-headers", wanted)]
    fine = wire.call(app, "OPTIONS", "/v1/chat/completions", [("origin", "https://app.example"), *asked])
    assert (fine.status, fine["access-control-allow-origin"]) == (204, "https://app.example")
    assert fine["access-control-allow-headers"] == wanted
    assert "access-control-allow-credentials" not in dict(fine.headers), "cookies are for the own page"
    for origin in ("https://evil.example", "https://app.example.evil", "null", "http://app.example"):
        other = wire.call(app, "OPTIONS", "/v1/chat/completions", [("origin", origin), *asked])
        assert other.status == 401
        assert not any(name.startswith("access-control") for name, _ in other.headers)


def test_without_a_key_asked_for_other_sites_are_still_kept_out(wire: Any) -> None:
    app = Auth(answer, None, origins=("https://app.example",))
    assert wire.call(app, "POST", "/v1/admin/models").body == b"anonymous", "as was asked for in so many words"
    assert wire.call(app, "POST", "/v1/models", [("origin", "https://evil.example")]).status == 403
    assert wire.call(app, "POST", "/v1/models", [("sec-fetch-site", "cross-site")]).status == 403
    assert wire.call(app, "POST", "/v1/models", [("origin", "https://app.example")]).status == 200


def test_a_websocket_is_refused_with_a_status_where_the_server_can(wire: Any, guarded: Auth) -> None:
    able = {"websocket.http.response": {}}
    reply = wire.call(guarded, "WEBSOCKET", "/s", extensions=able)
    assert (reply.status, reply.code) == (401, "missing_api_key")
    closed = wire.call(guarded, "WEBSOCKET", "/s")
    assert [message["type"] for message in closed.messages] == ["websocket.close"]


# Whatever a client sends, it is refused, not served and not an error of the server's.

names = st.sampled_from(["authorization", "x-api-key", "cookie", "origin", "host", "content-type", "accept", "x-x"])
values = st.text(st.characters(max_codepoint=255), max_size=200) | st.sampled_from(
    [
        "Bearer gu_aaaaaaaa_" + "a" * 43,
        "groundup_8000=x; groundup_8000=y",
        "groundup_8000",
        "null",
        "text/html",
        "127.0.0.1",
    ]
)
paths = st.text(max_size=50).map(lambda text: "/" + text)


@settings(max_examples=300)
@given(headers=st.lists(st.tuples(names, values), max_size=6), path=paths, method=st.sampled_from(["GET", "POST", "X"]))
def test_malformed_requests_are_refused_cleanly(
    wire: Any, headers: list[tuple[str, str]], path: str, method: str
) -> None:
    if not FILE.exists():
        keys.create(FILE, "a")
    reply = wire.call(Edge(Auth(answer, KeyRing(FILE))), method, path, headers)
    assert reply.status is not None
    assert 400 <= reply.status < 500 or path in ("/livez", "/readyz")
