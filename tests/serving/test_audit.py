"""The log says who did what, never what was said; it is bounded, and nobody waits for it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.errors import UserError
from groundup.serving import keys
from groundup.serving.audit import Audit, AuditLog, AuditSettings, request_id_of
from groundup.serving.keys import KeyLimits
from groundup.serving.limits import LimitSettings
from groundup.serving.security import Guards, SecuritySettings

PLACE = Path("log/audit.jsonl")
KEYS = Path("keys.json")


def lines(path: Path = PLACE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that bills seven tokens and names its model."""
    await receive()
    scope["groundup.audit"]["model"] = "small"
    meter = scope["groundup.meter"]
    meter.reserve(20)
    meter.settle(5, 2)
    headers = [(b"x-model-digest", b"abc123")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"my secret answer"})


@pytest.mark.smoke
@pytest.mark.parametrize("prompts", [False, True])
def test_a_line_says_who_what_and_how_it_ended(prompts: bool, wire: Any) -> None:
    key_id, key = keys.create(KEYS, "ci")
    told: list[str] = []
    settings = SecuritySettings(
        audit=AuditSettings(path=str(PLACE), prompts=prompts, max_prompt=20),
        limits=LimitSettings(per_key=KeyLimits(tokens_per_day=30)),
    )
    guards = Guards(settings, keys=KEYS, rejected=told.append)
    app = guards.protect(answer)
    headers = [("authorization", f"Bearer {key}"), ("x-request-id", "mine-1")]
    body = b'{"prompt": "my secret question"}'
    first = wire.call(app, "POST", "/v1/completions", headers, body, query_string=b"key=secret")
    assert first["x-request-id"] == "mine-1"
    for _ in range(3):
        last = wire.call(app, "POST", "/v1/completions", headers[:1], body)
    assert wire.call(app, "GET", "/v1/models").status == 401
    guards.close()
    logged = lines()
    assert logged[0].pop("seconds") >= 0
    assert logged[0].pop("time").endswith("+00:00")
    expected = {
        "request_id": "mine-1", "key": key_id, "name": "ci", "address": "127.0.0.1", "method": "POST",
        "path": "/v1/completions", "status": 200, "prompt_tokens": 5, "completion_tokens": 2, "digest": "abc123",
        "model": "small",
    }  # fmt: skip
    assert logged[0] == expected | ({"body": '{"prompt": "my secre'} if prompts else {})
    assert (last.status, logged[3]["refused"]) == (429, "insufficient_quota")
    assert (logged[4]["key"], logged[4]["status"], logged[4]["refused"]) == (None, 401, "missing_api_key")
    assert told == ["insufficient_quota", "insufficient_quota", "missing_api_key"][-len(told) :]
    text = PLACE.read_text()
    assert key.rpartition("_")[2] not in text
    assert "key=secret" not in text
    assert prompts or "secret" not in text


def test_errors_and_clients_that_left_have_a_status_too(wire: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/raises":
            raise KeyError("mine")

    log = AuditLog(AuditSettings(path=str(PLACE)))
    audited = Audit(app, log)
    with pytest.raises(KeyError):
        wire.call(audited, "GET", "/raises")
    wire.call(audited, "GET", "/left\nforged line")
    wire.call(audited, "GET", "/" + "x" * 10_000)
    log.close()
    assert [entry["status"] for entry in lines()] == [500, 499, 499]
    assert lines()[1]["path"] == "/left\nforged line"
    assert len(lines()[2]["path"]) == 512


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_an_id_that_would_spoil_a_log_is_replaced(wire: Any, text: str) -> None:
    found = request_id_of(wire.scope_of("GET", "/", [("x-request-id", text)]))
    assert found.isascii()
    assert 1 <= len(found) <= 64
    assert not set(found) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")


def test_ids_are_new_for_each_request(wire: Any) -> None:
    assert len({request_id_of(wire.scope_of("GET", "/")) for _ in range(100)}) == 100


def test_files_are_rotated_and_the_oldest_go() -> None:
    settings = AuditSettings(path=str(PLACE), max_file=1000, max_files=3)
    log = AuditLog(settings)
    for number in range(200):
        log.write({"number": number})
    log.close()
    names = sorted(path.name for path in PLACE.parent.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(path.stat().st_size <= 1000 for path in PLACE.parent.iterdir())
    kept = [entry["number"] for name in reversed(names) for entry in lines(PLACE.with_name(name))]
    assert kept == list(range(kept[0], 200)), "in order, and nothing missing between"
    again = AuditLog(settings)
    again.write({"number": 200})
    again.close()
    assert lines()[-1] == {"number": 200}, "a restart goes on where it stopped"


@pytest.mark.skipif(os.name == "nt", reason="files have no modes here")
def test_the_log_is_its_owners_alone() -> None:
    log = AuditLog(AuditSettings(path=str(PLACE)))
    log.close()
    assert PLACE.stat().st_mode & 0o777 == 0o600


def test_writing_never_waits_for_the_disk_and_counts_what_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    log = AuditLog(AuditSettings(path=str(PLACE), max_waiting=5))
    honest = log._write

    def slow(line: bytes) -> None:
        stuck.wait(10)
        honest(line)

    monkeypatch.setattr(log, "_write", slow)
    start = time.perf_counter()
    for number in range(100):
        log.write({"number": number})
    assert time.perf_counter() - start < 1
    stuck.set()
    log.close()
    written = lines()
    assert len(written) + sum(entry.get("dropped_before", 0) for entry in written) >= 99
    assert len(written) < 20


def test_a_full_disk_is_said_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []
    log = AuditLog(AuditSettings(path=str(PLACE)), complain=complaints.append)
    honest, full = log._write, [True]

    def write(line: bytes) -> None:
        if full[0]:
            full[0] = False
            raise OSError(28, "No space left on device")
        honest(line)

    monkeypatch.setattr(log, "_write", write)
    log.write({"number": 0})
    log.write({"number": 1})
    log.close()
    assert lines() == [{"number": 1, "dropped_before": 1}]
    assert "No space left" in complaints[0]


def test_a_log_that_cannot_be_opened_is_a_clear_error() -> None:
    Path("log").write_text("a file where a folder is needed")
    with pytest.raises(UserError, match="audit log cannot be written"):
        AuditLog(AuditSettings(path=str(PLACE)))
