"""Every protection does something: each is tried, then switched off and tried again, and the difference must show.

A case is a way to do what should not be possible. It gives True if the server held. With the rule replaced by one
that allows everything it must give False: so the case meets this rule and no other, and the day somebody removes
the rule, the first half fails.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from groundup.serving import audit, auth, connections, cookies, edge, keys, limits, rates, tls
from groundup.serving.auth import Auth
from groundup.serving.edge import EdgeSettings
from groundup.serving.keys import ANYBODY, KeyLimits
from groundup.serving.limits import LimitSettings
from groundup.serving.rates import Bucket, Meter
from groundup.serving.security import Guards, SecuritySettings

FILE = Path("keys.json")
LIMITS = LimitSettings(max_body=100, max_upload=200, max_depth=4, max_sockets=1)


class World:
    """A guarded application that answers everything, and two keys: one that infers, and one that also administers."""

    def __init__(self, wire: Any, **settings: Any) -> None:
        self.ask, self._call, self.scope_of = wire.ask, wire.call, wire.scope_of
        self.key_id, self.key = keys.create(FILE, "infer")
        self.guards = Guards(
            SecuritySettings(limits=settings.pop("limits", LIMITS), **settings), keys=FILE, rejected=lambda code: None
        )
        self.app = self.guards.protect(self.answer)
        self.reached: list[dict[str, Any]] = []
        self.work: Callable[[Meter], Any] | None = None

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The application: reads the whole body, does its work, says yes."""
        self.reached.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": "yes"})
            return
        while (await receive()).get("more_body"):
            pass
        if self.work is not None:
            await self.work(scope.get("groundup.meter"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"yes"})

    def __call__(self, method: str, path: str, *headers: tuple[str, str], key: str | None = None, **more: Any) -> Any:
        given = [*headers, ("authorization", f"Bearer {key}")] if key is not None else list(headers)
        return self._call(self.app, method, path, given, **more)

    def sign_in(self) -> str:
        """The cookie of a session."""
        body = json.dumps({"key": self.key}).encode()
        reply = self("POST", "/session", ("content-type", "application/json"), body=body)
        assert reply.status == 200, reply
        return str(reply["set-cookie"]).partition(";")[0]


@pytest.fixture
def make(wire: Any) -> Callable[..., World]:
    return lambda **settings: World(wire, **settings)


Make = Callable[..., World]
BIG = b"x" * 101


def without_a_key(make: Make) -> bool:
    return bool(make()("GET", "/v1/models").status == 401)


def with_a_wrong_key(make: Make) -> bool:
    return bool(make()("GET", "/v1/models", key="gu_AAAAAAAA_" + "0" * 43).status == 401)


def with_a_good_id_and_a_wrong_secret(make: Make) -> bool:
    world = make()
    return bool(world("GET", "/v1/models", key=f"gu_{world.key_id}_{'0' * 43}").status == 401)


def beside_an_open_path(make: Make) -> bool:
    world = make()
    return all(
        world("GET", path).status == 401 for path in ("/livez/", "/livez/x", "/readyz.json", "/LIVEZ", "//livez")
    )


def without_the_scope(make: Make) -> bool:
    world = make()
    return bool(world("POST", "/v1/admin/models", key=world.key).status == 403)


def many_wrong_keys(make: Make) -> bool:
    world = make()
    wrong = [world("GET", "/v1/models", key="gu_AAAAAAAA_" + "0" * 43) for _ in range(auth.WRONG_PER_MINUTE + 1)]
    good = world("GET", "/v1/models", key=world.key)
    return (
        wrong[0].status == 401 and wrong[-1].status == 429 and int(wrong[-1]["retry-after"]) >= 1 and good.status == 200
    )


def a_foreign_page_posts_with_the_cookie(make: Make) -> bool:
    world = make()
    cookie = ("cookie", world.sign_in())
    own = world("POST", "/v1/chat/completions", cookie, ("origin", "http://127.0.0.1:8000"))
    foreign = world("POST", "/v1/chat/completions", cookie, ("origin", "http://127.0.0.1:9000"))
    return bool(own.status == 200 and foreign.status == 403)


def a_foreign_page_opens_a_websocket_with_the_cookie(make: Make) -> bool:
    world = make()
    cookie = ("cookie", world.sign_in())
    sent = [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}]
    foreign = world("WEBSOCKET", "/_page/socket", cookie, ("origin", "https://evil.example"), sent=sent)
    return foreign.status is None and foreign.messages[-1]["type"] == "websocket.close"


def two_keys_at_once(make: Make) -> bool:
    world = make()
    other = keys.create(FILE, "other")[1]
    return bool(world("GET", "/v1/models", ("x-api-key", other), key=world.key).status == 400)


def a_header_twice(make: Make) -> bool:
    world = make()
    twice = (("content-type", "application/json"), ("content-type", "text/plain"))
    return bool(world("GET", "/v1/models", *twice, key=world.key).status == 400)


def a_rebound_name(make: Make) -> bool:
    world = make()
    return bool(world("GET", "/v1/models", ("host", "evil.example:8000"), key=world.key).status == 421)


def too_many_headers(make: Make) -> bool:
    world = make()
    many = [(f"x-{number}", "a") for number in range(200)]
    return bool(world("GET", "/v1/models", *many, key=world.key).status == 431)


def another_site_reads(make: Make) -> bool:
    world = make(edge=EdgeSettings(origins=("https://app.example",)))
    named = world("GET", "/v1/models", ("origin", "https://app.example"), key=world.key)
    other = world("GET", "/v1/models", ("origin", "https://evil.example"), key=world.key)
    names = {name for name, _ in other.headers}
    return named["access-control-allow-origin"] == "https://app.example" and not any(
        "access-control" in n for n in names
    )


def a_foreign_page_frames_an_answer(make: Make) -> bool:
    world = make()
    headers = dict(world("GET", "/docs", key=world.key).headers)
    return headers.get("x-frame-options") == "SAMEORIGIN" and headers.get("x-content-type-options") == "nosniff"


def a_script_reads_the_cookie(make: Make) -> bool:
    world = make()
    body = json.dumps({"key": world.key}).encode()
    reply = world("POST", "/session", ("content-type", "application/json"), body=body, scheme="https")
    parts = {part.strip() for part in reply["set-cookie"].split(";")}
    return {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} <= parts and reply["set-cookie"].startswith("__Host-")


def a_stated_length(make: Make) -> bool:
    """Refused by what is stated: nothing of the body is ever taken."""
    world, taken = make(), []

    async def attempt() -> Any:
        return await world.ask(
            world.app, "POST", "/v1/x", [("authorization", f"Bearer {world.key}"), ("content-length", "101")], sent=[]
        )

    async def impatient() -> bool:
        try:
            reply = await asyncio.wait_for(attempt(), 1)
        except TimeoutError:
            return False
        taken.append(reply)
        return bool(reply.status == 413)

    return asyncio.run(impatient())


def a_body_without_a_length(make: Make) -> bool:
    world = make()
    reply = world("POST", "/v1/x", key=world.key, body=[b"x" * 60, b"x" * 60])
    return bool(reply.status == 413 and not world.reached)


def an_upload_that_goes_on(make: Make) -> bool:
    world = make()
    reply = world("POST", "/v1/files", key=world.key, body=[b"x" * 60] * 4)
    return bool(reply.status == 413 and reply.code == "body_too_large")


def a_body_that_trickles(make: Make) -> bool:
    world = make(limits=LIMITS.model_copy(update={"body_time": 0.2}))
    reply = world("POST", "/v1/x", key=world.key, body=[b"x"] * 6, pause_s=0.06)
    return bool(reply.status == 408 and not world.reached)


def a_compressed_body(make: Make) -> bool:
    world = make()
    return bool(world("POST", "/v1/x", ("content-encoding", "gzip"), key=world.key, body=b"x").status == 415)


def deep_json(make: Make) -> bool:
    world = make()
    fine = world("POST", "/v1/x", key=world.key, body=b"[" * 4 + b"]" * 4 + b'"' + b"[" * 40 + b'"')
    return bool(fine.status == 200 and world("POST", "/v1/x", key=world.key, body=b"[" * 50).status == 400)


def work_without_end(make: Make) -> bool:
    world = make(limits=LIMITS.model_copy(update={"max_time": 0.3}))

    async def work(meter: Meter) -> None:
        await asyncio.sleep(0.5)

    world.work = work
    reply = world("POST", "/v1/x", key=world.key)
    return bool(reply.status == 408 and reply.code == "request_timeout")


def limited(**given: int) -> dict[str, Any]:
    return {"limits": LIMITS.model_copy(update={"per_key": KeyLimits(**given)})}


def too_many_requests(make: Make) -> bool:
    world = make(**limited(requests_per_minute=2))
    replies = [world("GET", "/v1/models", key=world.key) for _ in range(3)]
    return [reply.status for reply in replies] == [200, 200, 429] and int(replies[2]["retry-after"]) == 30


def too_many_at_once(make: Make) -> bool:
    world = make(**limited(concurrent=2))

    async def work(meter: Meter) -> None:
        await asyncio.sleep(0.05)

    world.work = work

    async def crowd() -> list[int]:
        headers = [("authorization", f"Bearer {world.key}")]
        replies = await asyncio.gather(*(world.ask(world.app, "GET", "/v1/models", headers) for _ in range(3)))
        return sorted(reply.status for reply in replies)

    return asyncio.run(crowd()) == [200, 200, 429]


def reserving(tokens: int) -> Callable[[Meter], Any]:
    async def work(meter: Meter) -> None:
        meter.reserve(tokens)
        meter.settle(tokens, 0)

    return work


def too_many_tokens(make: Make) -> bool:
    world = make(**limited(tokens_per_minute=100))
    world.work = reserving(60)
    first, second = (world("POST", "/v1/x", key=world.key) for _ in range(2))
    return first.status == 200 and second.status == 429 and second.error["type"] == "tokens"


def a_spent_quota(make: Make) -> bool:
    world = make(**limited(tokens_per_day=100))
    world.work = reserving(60)
    first, second = (world("POST", "/v1/x", key=world.key) for _ in range(2))
    return first.status == 200 and second.status == 429 and second.code == "insufficient_quota"


def too_many_websockets(make: Make) -> bool:
    world = make()

    async def crowd() -> int | None:
        headers = [("authorization", f"Bearer {world.key}")]
        stays = asyncio.create_task(world.ask(world.app, "WEBSOCKET", "/s", headers))
        await asyncio.sleep(0.01)
        leaves = [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}]
        reply = await world.ask(world.app, "WEBSOCKET", "/s", headers, sent=leaves)
        stays.cancel()
        return None if reply.status is None else int(reply.status)

    return asyncio.run(crowd()) is None


def a_long_message(make: Make) -> bool:
    world = make(limits=LIMITS.model_copy(update={"max_message": 10}))
    long = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "é" * 6},
        {"type": "websocket.disconnect"},
    ]
    reply = world("WEBSOCKET", "/s", key=world.key, sent=long)
    closed = [message for message in reply.messages if message["type"] == "websocket.close"]
    return [message["code"] for message in closed] == [1009]


def a_key_revoked_while_a_websocket_is_open(make: Make) -> bool:
    world, clock = make(), [1e9]
    ring = world.guards.ring
    assert ring is not None
    ring._clock = lambda: clock[0]
    headers = [("authorization", f"Bearer {world.key}")]
    said: list[str] = []

    async def receive() -> dict[str, Any]:
        if not said:
            return {"type": "websocket.connect"}
        if said[-1] == "websocket.accept":
            return {"type": "websocket.receive", "text": "a"}
        if len(said) > 2:
            return {"type": "websocket.disconnect"}
        keys.revoke(FILE, world.key_id)
        clock[0] += 10
        return {"type": "websocket.receive", "text": "b"}

    async def send(message: dict[str, Any]) -> None:
        said.append(message["type"])

    asyncio.run(world.app(world.scope_of("WEBSOCKET", "/s", headers), receive, send))
    return said == ["websocket.accept", "websocket.send", "websocket.close"]


def knocking_fills_the_log(make: Make) -> bool:
    world = make(audit=audit.AuditSettings(path="audit.jsonl"))
    for _ in range(audit.KNOCKS_PER_MINUTE + 30):
        world("GET", "/v1/models")
    world.guards.close()
    return len(Path("audit.jsonl").read_text().splitlines()) == audit.KNOCKS_PER_MINUTE


def allow(*_: Any, **__: Any) -> None:
    return None


def starts_with_open(scope: Any) -> bool:
    return str(scope["path"]).lower().lstrip("/").startswith(("livez", "readyz"))


def raw_receive(self: Any, scope: Any, receive: Any, send: Any) -> Any:
    return receive


CASES: list[tuple[Callable[[Make], bool], Any, str, Any]] = [
    (without_a_key, Auth, "_admit", lambda self, scope: ANYBODY),
    (with_a_wrong_key, auth, "require_good", lambda *_: ANYBODY),
    (with_a_good_id_and_a_wrong_secret, keys.hmac, "compare_digest", lambda a, b: True),
    (beside_an_open_path, auth, "is_open", starts_with_open),
    (without_the_scope, auth, "require_scope", allow),
    (many_wrong_keys, auth.Failures, "wait_s", lambda self, scope: 0.0),
    (a_foreign_page_posts_with_the_cookie, auth, "require_own_origin", allow),
    (a_foreign_page_opens_a_websocket_with_the_cookie, auth, "require_own_origin", allow),
    (two_keys_at_once, auth, "presented_in_headers", lambda scope: dict(scope["headers"])[b"x-api-key"].decode()),
    (a_header_twice, edge, "require_single_headers", allow),
    (a_rebound_name, edge, "require_known_host", allow),
    (too_many_headers, edge, "require_small_head", allow),
    (another_site_reads, edge, "may_read", lambda origin, origins: True),
    (a_foreign_page_frames_an_answer, edge, "missing_guards", lambda headers: []),
    (a_script_reads_the_cookie, cookies, "guards", lambda scope, settings: []),
    (a_stated_length, limits, "require_length", allow),
    (a_body_without_a_length, limits, "require_received", allow),
    (an_upload_that_goes_on, limits, "require_received", allow),
    (a_body_that_trickles, limits, "in_patience", lambda receive, *_: receive()),
    (a_compressed_body, limits, "require_plain_encoding", allow),
    (deep_json, limits, "require_shallow", allow),
    (work_without_end, limits, "in_time", lambda work, *_: work),
    (too_many_requests, rates, "refuse_requests", allow),
    (too_many_at_once, rates, "refuse_concurrency", allow),
    (too_many_tokens, rates, "refuse_rate", allow),
    (a_spent_quota, rates, "refuse_quota", allow),
    (too_many_websockets, rates, "refuse_sockets", allow),
    (a_long_message, limits, "message_size", lambda message: 0),
    (a_key_revoked_while_a_websocket_is_open, Auth, "_watched", raw_receive),
    (knocking_fills_the_log, Bucket, "wait_s", lambda self, amount: 0.0),
]


@pytest.mark.parametrize(("attempt", "owner", "rule", "off"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_protection_holds_until_it_is_switched_off(
    attempt: Callable[[Make], bool], owner: Any, rule: str, off: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attempt(make), "the server did not hold"
    for file in (FILE, Path("audit.jsonl")):
        file.unlink(missing_ok=True)
    monkeypatch.setattr(owner, rule, off)
    assert not attempt(make), f"without {rule} nothing changed: this case does not try it"


# Rules whose cases need a real socket, a real file or a disk, and stand in the files named.
ELSEWHERE = {
    "require_private": "test_tls.py",
    "guarded_protocol": "test_connections.py",
}


@pytest.mark.smoke
@pytest.mark.parametrize("module", [auth, edge, limits, rates, tls, connections])
def test_every_rule_has_a_case(module: ModuleType) -> None:
    """A rule is a function that turns something away: `require_…`, `refuse_…`, `in_…`, `is_open`, `may_…`."""
    named = re.compile(r"(require|refuse|in|may|guarded)_\w+|is_open|message_size")
    rules = {
        name
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and named.fullmatch(name)
    }
    tried = {rule for _, _, rule, _ in CASES} | set(ELSEWHERE)

    assert rules <= tried, f"no case switches off {sorted(rules - tried)}"
