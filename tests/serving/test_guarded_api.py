"""The guards in front of the real application and a real model: what is billed is what was computed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from groundup.serving import keys
from groundup.serving.audit import AuditSettings
from groundup.serving.keys import KeyLimits
from groundup.serving.limits import LimitSettings
from groundup.serving.security import Guards, SecuritySettings
from groundup.serving.usage import day_of

FILE, LOG = Path("keys.json"), Path("audit.jsonl")


class Front:
    """A guarded application with a model in it, and a key with limits."""

    def __init__(self, app: Any, wire: Any, limits: KeyLimits) -> None:
        self.key_id, key = keys.create(FILE, "a", limits=limits)
        self.headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
        settings = SecuritySettings(audit=AuditSettings(path=str(LOG)), limits=LimitSettings(max_body=4096))
        self.guards = Guards(settings, keys=FILE)
        self.app, self.wire = self.guards.protect(app), wire

    async def ask(self, **body: Any) -> Any:
        body = {"model": "plain", "prompt": "the", "max_tokens": 4, "ignore_eos": True} | body
        return await self.wire.ask(self.app, "POST", "/v1/completions", self.headers, json.dumps(body).encode())

    def used(self) -> int:
        return self.guards.usage.used(day_of(time.time()), self.key_id)


@pytest.fixture
def fronted(serve_api: Any, make_model: Any, wire: Any, runs: Any) -> Callable[..., None]:
    """A function that runs a test with a front whose key has these limits."""

    def run(test: Callable[[Front], Coroutine[Any, Any, None]], **limits: int) -> None:
        async def body() -> None:
            async with serve_api({"plain": make_model()}) as app:
                front = Front(app, wire, KeyLimits(**limits))
                await test(front)
                front.guards.close()

        runs(body())

    return run


def test_what_is_billed_is_what_was_computed(fronted: Any) -> None:
    async def test(front: Front) -> None:
        found = await front.ask(n=2)
        usage = json.loads(found.body)["usage"]
        assert found.status == 200, found
        assert front.used() == usage["total_tokens"] > 0
        reserved = usage["prompt_tokens"] + 8
        assert found["x-ratelimit-remaining-tokens"] == str(10 - reserved), "as reserved, and one comes back in 6 s"
        front.guards.accounts._accounts.clear()
        streamed = await front.ask(stream=True, stream_options={"include_usage": True})
        assert streamed.status == 200
        pieces = [json.loads(line[6:]) for line in streamed.body.decode().splitlines() if line.startswith("data: {")]
        assert front.used() == usage["total_tokens"] + pieces[-1]["usage"]["total_tokens"]
        account = front.guards.accounts._accounts[front.key_id]
        assert (account.reserved, account.running) == (0, 0)

    fronted(test, tokens_per_minute=10)
    logged = [json.loads(line) for line in LOG.read_text().splitlines()]
    assert [entry["status"] for entry in logged] == [200, 200]
    assert all(entry["prompt_tokens"] and entry["completion_tokens"] and entry["digest"] for entry in logged)


@pytest.mark.parametrize("stream", [False, True])
def test_a_spent_quota_is_a_429_before_anything_is_computed(stream: bool, fronted: Any) -> None:
    async def test(front: Front) -> None:
        refused = await front.ask(stream=stream, max_tokens=50)
        assert (refused.status, refused.code) == (429, "insufficient_quota")
        assert int(refused["retry-after"]) > 0
        assert front.used() == 0
        assert (await front.ask(stream=stream, max_tokens=5)).status == 200

    fronted(test, tokens_per_day=30)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_pays_for_what_it_took_and_frees_its_place(stream: bool, fronted: Any) -> None:
    async def test(front: Front) -> None:
        body = {"model": "plain", "prompt": "the", "max_tokens": 200, "ignore_eos": True, "stream": stream}
        left = asyncio.Event()
        begun = asyncio.Event()
        sent = [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive() -> Any:
            if sent:
                return sent.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            begun.set()

        scope = front.wire.scope_of("POST", "/v1/completions", front.headers)
        task = asyncio.create_task(front.app(scope, receive, send))
        if stream:
            await asyncio.wait_for(begun.wait(), 20)
        else:
            await asyncio.sleep(0.05)
        left.set()
        await asyncio.wait_for(task, 20)
        account = front.guards.accounts._accounts[front.key_id]
        assert (account.reserved, account.running) == (0, 0)
        assert 0 <= front.used() < 200, "not what was reserved"

    fronted(test)


def test_mistakes_cost_nothing(fronted: Any) -> None:
    async def test(front: Front) -> None:
        for body in ({"model": "none"}, {"n": 99}, {"prompt": "x" * 5000}, {"max_tokens": -1}, {"prompt": [[]]}):
            reply = await front.ask(**body)
            assert 400 <= reply.status < 500, (body, reply)
            assert reply.error["message"]
        assert front.used() == 0

    fronted(test, tokens_per_minute=1000)
