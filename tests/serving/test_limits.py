"""What one request and one key may use, to the byte, the token and the second."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.errors import UserError
from groundup.serving import keys, usage
from groundup.serving.keys import KeyLimits, Principal
from groundup.serving.limits import Limits, LimitSettings, require_shallow
from groundup.serving.rates import Accounts, Bucket, Meter, show_wait
from groundup.serving.refusals import Refused
from groundup.serving.security import Guards, SecuritySettings
from groundup.serving.usage import Usage, day_of, month_of

FILE = Path("usage.sqlite")
NOON = 1_790_000_000.0
"""2026-09-21 14:13:20 UTC."""


def key(**limits: int) -> Principal:
    return Principal("k", "k", frozenset({"infer"}), KeyLimits(**limits))


@pytest.fixture
def accounts(clock: Any) -> Accounts:
    clock.now = NOON
    return Accounts(Usage(clock=clock), KeyLimits(), max_sockets=2, clock=clock, now=clock)


# Buckets and meters


def test_a_bucket_holds_a_minute_and_refills_steadily(clock: Any) -> None:
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.wait_s(1) == pytest.approx(1)
    clock.now += 0.5
    assert bucket.wait_s(1) == pytest.approx(0.5)
    clock.now += 1000
    assert bucket.wait_s(60) == 0, "no more than full"
    assert bucket.wait_s(61) == float("inf")
    clock.now -= 5000
    assert bucket.wait_s(60) == 0, "a clock that goes back takes nothing"


def test_a_changed_limit_keeps_what_was_used(accounts: Accounts) -> None:
    account = accounts.of(key(tokens_per_minute=100))
    Meter(account).reserve(80)
    account = accounts.of(key(tokens_per_minute=200))
    assert account.tokens is not None
    assert account.tokens.level == pytest.approx(120)
    assert accounts.of(key()).tokens is None


def test_tokens_are_reserved_and_settled(accounts: Accounts) -> None:
    account = accounts.of(key(tokens_per_minute=100, tokens_per_day=1000))
    meter = Meter(account)
    meter.reserve(90)
    with pytest.raises(Refused) as refused:
        Meter(account).reserve(20)
    assert refused.value.headers["retry-after"] == "6"
    meter.settle(10, 5)
    meter.close()
    meter.close()
    assert account.tokens is not None
    assert account.tokens.level == pytest.approx(85), "75 of the 90 came back"
    assert account.usage.used(day_of(NOON), "k") == 15
    assert account.reserved == 0


def test_an_answer_longer_than_reserved_is_paid_for(accounts: Accounts) -> None:
    account = accounts.of(key(tokens_per_minute=100))
    meter = Meter(account)
    meter.reserve(10)
    meter.settle(100, 50)
    meter.close()
    assert account.tokens is not None
    assert account.tokens.wait_s(1) == pytest.approx(51 * 60 / 100)


@pytest.mark.parametrize(("failed", "billed"), [(True, 0), (False, 40)])
def test_what_is_never_settled_is_billed_unless_it_failed(failed: bool, billed: int, accounts: Accounts) -> None:
    account = accounts.of(key())
    meter = Meter(account)
    meter.reserve(40)
    meter.close(failed=failed)
    assert account.usage.used(month_of(NOON), "k") == billed


def test_a_request_that_can_never_fit_is_told_so(accounts: Accounts) -> None:
    meter = Meter(accounts.of(key(tokens_per_minute=100)))
    with pytest.raises(Refused, match="101 tokens") as refused:
        meter.reserve(101)
    assert "retry-after" not in refused.value.headers
    assert refused.value.headers["x-should-retry"] == "false"


def test_quotas_count_what_is_reserved_and_end_with_their_period(accounts: Accounts, clock: Any) -> None:
    account = accounts.of(key(tokens_per_day=100, tokens_per_month=150))
    first = Meter(account)
    first.reserve(60)
    with pytest.raises(Refused) as refused:
        Meter(account).reserve(60)
    until_midnight = 86400 - NOON % 86400
    assert int(refused.value.headers["retry-after"]) == pytest.approx(until_midnight, abs=1)
    first.settle(100, 0)
    first.close()
    clock.now += until_midnight
    second = Meter(account)
    second.reserve(50)
    with pytest.raises(Refused) as refused:
        Meter(account).reserve(1)
    assert int(refused.value.headers["retry-after"]) == pytest.approx(9 * 86400, abs=1), "of September, on the 22nd"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80), st.booleans()), max_size=30))
def test_nothing_stays_reserved(requests: list[tuple[int, int, bool]]) -> None:
    account = Accounts(Usage(), KeyLimits(), max_sockets=1).of(key(tokens_per_minute=100, tokens_per_day=500))
    for reserved, used, failed in requests:
        meter = Meter(account)
        try:
            meter.reserve(reserved)
        except Refused:
            continue
        if not failed:
            meter.settle(used, 0)
        meter.close(failed=failed)
    assert account.reserved == 0
    assert account.tokens is not None
    assert account.tokens.level <= account.tokens.size


def test_waits_are_written_as_openai_writes_them() -> None:
    assert [show_wait(s) for s in (0, 0.12, 1.5, 59.99, 360, 3661)] == ["0ms", "120ms", "1.5s", "60s", "6m0s", "61m1s"]


def test_late_work_is_billed_to_its_key_while_that_is_good() -> None:
    file = Path("keys.json")
    key_id, _ = keys.create(file, "a", limits=KeyLimits(tokens_per_day=10))
    guards = Guards(SecuritySettings(), keys=file)
    meter = guards.meter_of(key_id)
    meter.reserve(8)
    with pytest.raises(Refused, match="quota"):
        guards.meter_of(key_id).reserve(8)
    meter.close()
    assert guards.usage.used(day_of(time.time()), key_id) == 8
    keys.revoke(file, key_id)
    guards = Guards(SecuritySettings(), keys=file)
    for gone in (key_id, "AAAAAAAA"):
        with pytest.raises(Refused, match="no longer good"):
            guards.meter_of(gone)
    assert Guards(SecuritySettings(), keys=None).meter_of("").account.key == "anonymous"


# Usage on disk


def test_use_outlives_the_process_and_is_shared() -> None:
    first, second = Usage(FILE), Usage(FILE)
    now = time.time()
    first.add("k", 10)
    second.add("k", 5)
    first.flush()
    second.flush()
    assert second.used(day_of(now), "k") == 15
    first.flush()
    assert first.used(month_of(now), "k") == 15
    second.add("k", 1)
    first.close()
    second.close()
    assert usage.read(FILE, now) == {"k": (16, 16)}
    third = Usage(FILE)
    assert third.used(day_of(now), "k") == 16
    third.close()
    assert FILE.stat().st_mode & 0o077 == 0


def test_use_is_kept_in_memory_while_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []
    kept = Usage(FILE, complain=complaints.append)
    kept.add("k", 7)

    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(usage.sqlite3, "connect", full)
        kept.flush()
        assert kept.used(day_of(time.time()), "k") == 7
    assert any("disk is full" in text for text in complaints)
    kept.close()
    assert usage.read(FILE, time.time()) == {"k": (7, 7)}


def test_a_file_that_is_no_database_is_a_clear_error() -> None:
    FILE.write_text("this is not a database, and long enough to be looked at " * 20)
    with pytest.raises(UserError, match="cannot be kept"):
        Usage(FILE)
    with pytest.raises(UserError, match="cannot be read"):
        usage.read(FILE, 0.0)


def test_months_end_where_they_end() -> None:
    from groundup.serving.rates import _end_of

    assert time.gmtime(_end_of("2026-12"))[:3] == (2027, 1, 1)
    assert time.gmtime(_end_of("2028-02-28"))[:3] == (2028, 2, 29)
    assert time.gmtime(_end_of("2026-02"))[:3] == (2026, 3, 1)


# Bodies


@given(st.recursive(st.none() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)), st.booleans(), st.booleans())  # fmt: skip  # noqa: E501
def test_depth_is_that_of_the_parsed_value(value: Any, ascii_only: bool, indented: bool) -> None:
    def depth(item: Any) -> int:
        if isinstance(item, dict | list):
            return 1 + max((depth(inner) for inner in (item.values() if isinstance(item, dict) else item)), default=0)
        return 0

    body = json.dumps(value, ensure_ascii=ascii_only, indent=1 if indented else None).encode("utf-8", "surrogatepass")
    deepest = depth(value)
    require_shallow(body, max(1, deepest))
    if deepest > 1:
        with pytest.raises(Refused, match="nested more than"):
            require_shallow(body, deepest - 1)


@pytest.mark.parametrize(
    "body",
    [
        b'"\\\\"' + b"[" * 5, b'"\\""' + b"[" * 5, b'"[[[[[\\\\\\"]"' + b"[" * 5, b'{"a":' * 5, b"[{" * 3,
        b"[]" + b"[" * 5, ("[" * 5).encode("utf-16"), ("[" * 5).encode("utf-32-le"),
    ],
)  # fmt: skip
def test_nesting_cannot_be_hidden(body: bytes) -> None:
    with pytest.raises(Refused):
        require_shallow(body, 4)


def test_ten_megabytes_of_nesting_take_no_time() -> None:
    strings = b'"a\\"",' * 1_500_000
    for body in (b"[" * 10_000_000, b'{"a":' * 2_000_000, b"[[]," * 2_500_000, strings + b"[" * 100):
        start = time.process_time()
        with pytest.raises(Refused):
            require_shallow(body, 64)
        assert time.process_time() - start < 2


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it got, and bills what it was asked to."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if body.startswith(b"reserve "):
        scope["groundup.meter"].reserve(int(body.split()[1]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
    if body == b"wait":
        assert (await receive())["type"] == "http.disconnect"


def limited(app: Any = echo, limits: KeyLimits | None = None, **settings: Any) -> Any:
    accounts = Accounts(Usage(), KeyLimits(), max_sockets=2, clock=lambda: 0.0)
    guarded = Limits(app, accounts, LimitSettings(**settings))

    async def known(scope: Any, receive: Any, send: Any) -> None:
        scope["groundup.key"] = Principal("k", "k", frozenset({"infer"}), limits or KeyLimits())
        await guarded(scope, receive, send)

    return known


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["/v1/x", "/v1/files"])
def test_a_body_arrives_as_it_was_sent(path: str, wire: Any) -> None:
    parts = [bytes([number]) * 1000 for number in range(10)]
    assert wire.call(limited(), "POST", path, body=parts).body == b"".join(parts)
    assert wire.call(limited(max_body=10_000, max_upload=10_000), "POST", path, body=parts).status == 200
    assert wire.call(limited(max_body=9_999, max_upload=9_999), "POST", path, body=parts).status == 413


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "٣", "", "99999999999999999999999"])
def test_a_length_that_is_no_length_is_refused(length: str, wire: Any) -> None:
    given = length.encode("utf-8").decode("latin-1")
    assert wire.call(limited(), "POST", "/v1/x", [("content-length", given)]).status in (400, 413)


def test_a_client_that_leaves_early_is_not_answered(wire: Any) -> None:
    sent = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
    assert wire.call(limited(), "POST", "/v1/x", sent=sent).messages == []


def test_a_long_answer_is_no_slow_body(wire: Any) -> None:
    """Waiting for a client to leave, while an upload is worked on, is not waiting for its body."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await asyncio.sleep(0.2)
        assert not gone.done()
        gone.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert wire.call(limited(slow, body_time=0.05), "POST", "/v1/files", body=b"x").status == 200


@pytest.mark.parametrize("habit", ["raises", "answers 500", "answers 400", "says nothing"])
def test_a_refusal_stands_whatever_the_application_makes_of_it(habit: str, wire: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            scope["groundup.meter"].reserve(1000)
        except Refused:
            if habit == "raises":
                raise RuntimeError("an application that chokes") from None
            if habit.startswith("answers"):
                await send({"type": "http.response.start", "status": int(habit.split()[1]), "headers": []})
                await send({"type": "http.response.body", "body": b"oh"})

    reply = wire.call(limited(app, KeyLimits(tokens_per_minute=100)), "POST", "/v1/x")
    assert (reply.status, reply.code) == (429, "rate_limit_exceeded")


def test_an_error_of_the_applications_stays_its_own(wire: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        wire.call(limited(app), "POST", "/v1/x")


def test_an_answer_that_was_begun_is_cut_off_in_time(wire: Any) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.01)

    reply = wire.call(limited(endless, max_time=0.1), "GET", "/v1/x")
    assert reply.status == 200
    assert reply.messages[-1]["more_body"], "the server closes the connection, as the answer has no end"


def test_answers_say_what_is_left(wire: Any) -> None:
    app = limited(limits=KeyLimits(requests_per_minute=60, tokens_per_minute=600))
    reply = wire.call(app, "POST", "/v1/x", body=b"reserve 100")
    assert (reply["x-ratelimit-limit-requests"], reply["x-ratelimit-remaining-requests"]) == ("60", "59")
    assert (reply["x-ratelimit-limit-tokens"], reply["x-ratelimit-remaining-tokens"]) == ("600", "500")
    assert reply["x-ratelimit-reset-requests"] == "1s"
    assert reply["x-ratelimit-reset-tokens"] == "10s"
    refused = wire.call(app, "POST", "/v1/x", body=b"reserve 600")
    assert refused.status == 429
    assert refused["x-ratelimit-limit-tokens"] == "600"
    assert int(refused["retry-after"]) >= 1
    assert not any("ratelimit" in name for name, _ in wire.call(limited(), "POST", "/v1/x").headers)


def test_a_place_is_free_again_however_a_request_ends(wire: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/raises":
            raise KeyError("mine")
        await echo(scope, receive, send)

    guarded = limited(app, KeyLimits(concurrent=1))
    for path, body in (("/v1/raises", b""), ("/v1/x", b"reserve 5"), ("/v1/x", b"[" * 100)):
        try:
            wire.call(guarded, "POST", path, body=body)
        except KeyError:
            continue
    assert wire.call(guarded, "POST", "/v1/x", body=b"a").status == 200


@given(st.binary(max_size=300), st.lists(st.tuples(st.sampled_from(["content-length", "content-encoding", "content-type"]), st.text(st.characters(max_codepoint=255), max_size=20)), max_size=3, unique_by=lambda pair: pair[0]))  # fmt: skip  # noqa: E501
def test_any_body_is_answered_or_refused(wire: Any, body: bytes, headers: list[tuple[str, str]]) -> None:
    if body.startswith(b"reserve"):
        return
    reply = wire.call(limited(max_body=200, max_depth=3), "POST", "/v1/x", headers, body)
    assert reply.status in (200, 400, 413, 415)
