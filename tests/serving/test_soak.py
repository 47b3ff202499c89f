"""Three minutes of what production does to a server: too much, wrong, gone halfway, and an engine that dies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'groundup[serve]'")
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import soak_traffic

    return soak_traffic


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import soak

    return soak


@pytest.mark.slow
def test_the_server_survives_three_minutes() -> None:
    command = [sys.executable, str(BENCH / "soak.py"), "--minutes", "3", "--no-save"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert "Every rule held" in done.stdout


# ------------------------------------------------------------------------------- that the load test would notice


def reply(status: int, body: bytes = b"{}", *, why: str = "", **headers: str) -> Any:
    from serve_client import Reply

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(0.0, status, named, [(0.1, body)] if body else [], 0.2, not why, why)


REFUSED = json.dumps({"error": {"message": "no", "code": "some_code"}}).encode()


@pytest.mark.parametrize(
    ("name", "status", "body", "more", "fault"),
    [
        ("chat", 200, b"{}", {}, ""),
        ("chat", 200, b"{", {}, "no JSON"),
        ("chat", 200, b"{", {"why": "the connection was closed"}, "no whole answer"),
        ("chat", 0, b"", {"why": "the connection was closed"}, "no whole answer"),
        ("chat", 400, REFUSED, {}, "not [200]"),
        ("chat", 429, REFUSED, {"retry_after": "1"}, ""),
        ("chat", 429, REFUSED, {}, "without Retry-After"),
        ("chat", 500, REFUSED, {}, "not [200]"),
        ("chat", 503, b"no object", {}, "without its object"),
        ("no JSON", 400, REFUSED, {}, ""),
        ("no JSON", 400, b"Internal Server Error", {}, "without its object"),
        ("no JSON", 200, b"{}", {}, "not [400]"),
        ("chat, streamed", 200, b'data: {"choices": []}\n\ndata: [DONE]\n\n', {}, ""),
        ("chat, streamed", 200, b'data: {"choices": []}\n\n', {}, "just ended"),
        ("chat, streamed", 200, b'data: {"error": {"message": "m", "code": "internal"}}\n\n', {}, "internal"),
        ("left in the stream", 200, b"data: {}\n\n", {"why": "left"}, ""),
        ("left in the stream", 500, REFUSED, {}, "not [200]"),
        ("left in the stream", 500, b"", {"why": "left"}, "answered 500"),
        ("left in the stream", 429, b"", {"why": "left"}, ""),
    ],
)
def test_what_is_wrong_is_noticed(
    traffic: ModuleType, name: str, status: int, body: bytes, more: dict[str, str], fault: str
) -> None:
    kind = next(one for one in traffic.KINDS if one.name == name)
    ask = traffic.Ask(b"", streams="stream" in name, leave_after=1 if "left" in name else None)
    verdict = traffic.judged(kind, ask, reply(status, body, **more))
    assert (fault in verdict.fault) if fault else not verdict.fault


def test_a_503_needs_an_engine_that_was_killed(soak: ModuleType) -> None:
    tally = soak.Tally(kills=[soak.Kill(1, 10.0, 15.0)], excused=[(9.5, 11.0, "a"), (15.5, 16.0, "b"), (30, 31, "c")])
    assert [text.partition(", ")[2] for text in soak.unexcused(tally)] == ["c, and nothing was killed"]


def test_growth_is_megabytes_a_minute(soak: ModuleType) -> None:
    assert soak.growth([(10.0 * i, 100 + 0.5 * i) for i in range(12)]) == pytest.approx(3.0)
    assert soak.growth([(0.0, 1.0)]) is None


def test_a_queue_that_is_not_bounded_shows(soak: ModuleType) -> None:
    """Two texts a second: a full queue takes (16 + 32) / 2 seconds, and half as much again is let pass."""
    tally = soak.Tally(texts=[(float(i), 2) for i in range(60)], memory=[(0.0, 1, 2, 10.0, 10.0)])
    tally.kills = [soak.Kill(1, float(i), float(i)) for i in range(5)]
    tally.statuses["chat", "429"] = 1
    assert soak.first_bound_s(tally, 60) == pytest.approx(1.5 * 48 / 2)
    tally.first_s = [35.0] * 100
    assert soak.broken(tally, 60) == []
    tally.first_s = [37.0] * 100
    assert "time to the first token" in soak.broken(tally, 60)[0]
