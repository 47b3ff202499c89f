"""The canary at work: shares, headers, shadows, and users who never pay for a trial."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from groundup.errors import UserError
from groundup.serving import wire
from groundup.serving.canary import Canary, Plan
from groundup.serving.canary_client import CanaryClient, CanaryHeader, agreement, choice, require_comparable, resumed
from groundup.serving.client import EngineFault, Token
from groundup.serving.models import Facts
from groundup.serving.telemetry import Telemetry
from groundup.serving.wire import Finished, Pong


def facts(folder: str, **given: Any) -> Facts:
    values: dict[str, Any] = {
        "folder": folder, "kind": "answer", "task": "text_classification", "family": "bert", "digest": "d",
        "context": 9, "vocab_size": 9, "parameters": 9, "weight_bytes": 9, "read_bytes": 9, "token_bytes": 0,
        "chats": False,
    }  # fmt: skip
    return Facts(**values | given)


@dataclass
class Two:
    """A client with an old and a new model: both count on from the last token, the new one as a test says."""

    models: dict[str, Facts] = field(default_factory=lambda: {"m": facts("m"), "m-next": facts("n")})
    stats: Pong | None = None
    fault: EngineFault | None = None
    drift: int = 0
    asked: list[str] = field(default_factory=list)
    shadowed: list[str] = field(default_factory=list)

    async def generate(self, request: wire.Generate) -> AsyncGenerator[Token | Finished, None]:
        (self.shadowed if request.key == "canary" else self.asked).append(request.model)
        if request.model == "m-next" and self.fault is not None:
            raise self.fault
        for number in range(4):
            await asyncio.sleep(0)
            yield Token(request.ids[-1] + number + (self.drift if request.model == "m-next" and number > 1 else 0))
        yield Finished(1, "stop")

    async def answer(self, request: wire.Answer) -> wire.Answered:
        (self.shadowed if request.key == "canary" else self.asked).append(request.model)
        if request.model == "m-next" and self.fault is not None:
            raise self.fault
        label = "b" if request.model == "m-next" and self.drift else "a"
        return wire.Answered(1, [{"label": label, "score": 0.5} for _ in request.rows])


def trial(inner: Two, **settings: Any) -> CanaryClient:
    plan = Plan(**{"steps": (0.5,), "shadow": 1.0, **settings})
    return CanaryClient(inner, Canary(plan), current="m", candidate="m-next")  # type: ignore[arg-type]


async def text(client: CanaryClient, model: str = "m") -> list[int]:
    request = wire.Generate(model, [1, 2], key="k", sampling={"temperature": 1.0})
    found = []
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                break  # as the API does
            found.append(event.id)
    return found


async def settle(client: CanaryClient) -> None:
    if client._shadowing is not None:
        await client._shadowing


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_both_arms_answer_and_the_current_ones_answers_are_compared() -> None:
    async def test() -> None:
        inner = Two()
        client = trial(inner)
        for _ in range(200):
            assert await text(client) == [2, 3, 4, 5]
            await settle(client)
        counts = Counter(inner.asked)
        assert 70 < counts["m"] < 130 and counts["m"] + counts["m-next"] == 200
        assert Counter(inner.shadowed) == {"m": counts["m"], "m-next": counts["m"]}
        judged = client.canary.judged
        assert judged["agreement"].mean == 1.0 and judged["errors"].count > 60
        assert await text(client, "m-next") == [2, 3, 4, 5] and inner.asked[-1] == "m-next"  # by its own name

    run(test())


@pytest.mark.parametrize("kind", ["generate", "answer"])
def test_users_never_see_a_candidate_that_fails(kind: str) -> None:
    async def test() -> None:
        inner = Two(fault=EngineFault("bad_logits", "no numbers"))
        client, ended = trial(inner), []
        client.decided = ended.append
        for _ in range(100):
            if kind == "generate":
                assert await text(client) == [2, 3, 4, 5]
            else:
                assert (await client.answer(wire.Answer("m", [{}]))).answers[0]["label"] == "a"
            await settle(client)
        assert (client.canary.state, client.canary.cause) == ("rolled_back", "errors")
        assert ended == [client.canary]  # once
        assert 8 <= Counter(inner.asked)["m-next"] <= 40  # a dozen pairs, and those that found no partner

    run(test())


def test_a_callers_mistake_is_no_failure_of_the_candidate() -> None:
    async def test() -> None:
        inner = Two(fault=EngineFault("bad_request", "too long"))
        client = trial(inner)
        failed = 0
        for _ in range(60):
            try:
                await text(client)
            except EngineFault:
                failed += 1
        assert failed > 10 and client.canary.judged["errors"].count == 0

    run(test())


@pytest.mark.parametrize("kind", ["generate", "answer"])
def test_a_candidate_that_answers_otherwise_is_rolled_back_for_it(kind: str) -> None:
    async def test() -> None:
        client = trial(Two(drift=7))
        for _ in range(300):
            if kind == "generate":
                await text(client)
            else:
                await client.answer(wire.Answer("m", [{"text": "x"}]))
            await settle(client)
        assert (client.canary.state, client.canary.cause) == ("rolled_back", "agreement")
        assert client.canary.judged["agreement"].mean == (0.5 if kind == "generate" else 0.0)

    run(test())


def test_no_shadow_runs_while_others_wait_and_never_two_at_once() -> None:
    async def test() -> None:
        inner = Two(stats=Pong(1, 1, {"m": {"waiting": 1}}))
        client = trial(inner)
        for _ in range(20):
            await text(client)
        assert not inner.shadowed
        inner.stats = None
        await asyncio.gather(*(text(client) for _ in range(20)))
        await settle(client)
        assert 0 < len(inner.shadowed) <= 20

    run(test())


def test_what_the_operator_is_shown() -> None:
    pytest.importorskip("prometheus_client")

    async def test() -> None:
        figures = Telemetry()
        inner = Two(fault=EngineFault("internal", "x"))
        client = CanaryClient(
            inner,  # type: ignore[arg-type]
            Canary(Plan(steps=(0.5,))),
            current="m",
            candidate="m-next",
            telemetry=figures,
        )
        for _ in range(100):
            await text(client)
        shown = figures.exposition()[0].decode()
        assert 'groundup:canary_decisions_total{cause="errors",state="rolled_back"} 1.0' in shown
        assert 'groundup:canary_weight{model_name="m"} 0.0' in shown
        assert 'groundup:canary_requests_total{arm="candidate",outcome="error"}' in shown

    run(test())


def test_a_header_asks_for_an_arm_and_one_says_who_answered(wire: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = choice.get()
        assert asked is not None
        asked.used = asked.wanted or "current"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for header, used in (("candidate", "candidate"), ("Current", "current"), ("both", "current"), ("", "current")):
        reply = wire.call(CanaryHeader(app), "POST", "/v1/completions", [("x-groundup-canary", header)])
        assert reply["x-groundup-canary"] == used
    assert choice.get() is None


def test_a_trial_goes_on_after_a_restart_if_it_is_the_same_trial(tmp_path: Any) -> None:
    report = tmp_path / "state" / "canary.json"
    one, other, plan = facts("m"), facts("n", digest="e"), Plan(steps=(0.5,))

    async def test() -> None:
        inner = Two(models={"m": one, "m-next": other})
        canary = resumed(report, plan, one, other)
        client = CanaryClient(inner, canary, current="m", candidate="m-next", report=report)  # type: ignore[arg-type]
        inner.models = {}  # an engine that is just being started again
        for _ in range(60):
            await text(client)
        client.roll_back()

    run(test())
    again = resumed(report, plan, one, other)
    assert (again.state, again.cause) == ("rolled_back", "operator") and again.pairs > 10
    assert resumed(report, plan, one, facts("n", digest="f")).state == "running"  # another candidate
    assert resumed(report, Plan(steps=(0.4,)), one, other).pairs == 0  # another plan
    report.write_text("{")
    assert resumed(report, plan, one, other).pairs == 0


def test_models_that_cannot_be_compared_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="token_tagging"):
        require_comparable(facts("a"), facts("b", task="token_tagging"))
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(name)
    one, other = (facts(str(tmp_path / name), kind="generate", task="chat") for name in "ab")
    require_comparable(one, one)
    with pytest.raises(UserError, match="tokenizer"):
        require_comparable(one, other)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ({"label": "a", "score": 0.9}, {"label": "a", "score": 0.2}, 1.0),
        ({"label": "a"}, {"label": "b"}, 0.0),
        ({"label": "a"}, {"text": "a"}, 0.0),
        ([1.0, 0.0], [1.0, 0.0], 1.0),
        ([1.0, 0.0], [-1.0, 0.0], 0.0),
        ([1.0, 1.0], [1.0, 0.0], 2**-0.5),
        ({"embedding": [3.0, 4.0]}, {"embedding": [4.0, 3.0]}, 0.96),
        (["B", "I"], ["B", "O"], 0.0),
        (["B"], ["B", "I"], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 1.0),
    ],
)
def test_how_far_two_answers_agree(one: Any, other: Any, wanted: float) -> None:
    assert agreement(one, other) == pytest.approx(wanted)
