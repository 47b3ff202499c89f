"""A canary at work: a client that lets a candidate answer some of a model's requests, and compares.

It stands between the API and the engines and is a `client.Client` itself. Both models are loaded, the
candidate under a name of its own; requests for the current model are given to one of the two. The front
encodes prompts with the current model's tokenizer, so a candidate that generates must have the same one:
the same base fine-tuned further, compressed or pruned. For a model that answers rows nothing is asked.

A request that the candidate fails before it has said anything is answered by the current model: users do
not pay for a trial. It counts as the candidate's failure all the same.

Shadows ask both models the same thing apart from the request itself, greedily and briefly: sampling
would make two equal models disagree. One runs at a time, and none while others wait for the engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from groundup.artifact import digest_file, write_whole
from groundup.errors import UserError
from groundup.serving import wire
from groundup.serving.canary import Arm, Canary, Outcome, Plan
from groundup.serving.client import Client, EngineFault, Token
from groundup.serving.models import Facts, Options
from groundup.serving.refusals import App, Message, Receive, Scope, Send
from groundup.serving.telemetry import Telemetry
from groundup.serving.wire import Finished

HEADER = "x-groundup-canary"
"""A request's header asks for an arm (`candidate` or `current`); the response's says which one answered."""
FAULTS = frozenset({"internal", "bad_logits", "engine_gone"})
"""Codes of failures that are a model's or its engine's, not the caller's."""
SHADOW_TOKENS = 32
REPORT_EVERY = 10
"""Comparisons after which the report is written anew."""
log = logging.getLogger("groundup.canary")


@dataclass
class Choice:
    """What one HTTP request asked for, and who answered."""

    wanted: Arm | None = None
    used: Arm | None = None


choice: ContextVar[Choice | None] = ContextVar("groundup_canary", default=None)


class CanaryClient:
    """The client `inner`, with a canary between the models `current` and `candidate`.

    report is the file that says how it stands, from which it goes on after a restart; see `resumed`. decided
    is called once, when the canary ends. Raises UserError for models that cannot be compared.
    """

    def __init__(
        self,
        inner: Client,
        canary: Canary,
        *,
        current: str,
        candidate: str,
        telemetry: Telemetry | None = None,
        report: Path | None = None,
        decided: Callable[[Canary], None] | None = None,
    ) -> None:
        require_comparable(inner.models[current], inner.models[candidate])
        self.report, self._reported = report, -REPORT_EVERY
        self._digests = {"current": inner.models[current].digest, "candidate": inner.models[candidate].digest}
        self.inner, self.canary, self.telemetry = inner, canary, telemetry
        self.current, self.candidate, self.decided = current, candidate, decided
        self._shadowing: asyncio.Task[None] | None = None
        self._was_running = canary.state == "running"
        self._note()

    # What is not about the canary goes through.

    @property
    def stats(self) -> wire.Pong | None:
        """What the engine last said of itself."""
        return self.inner.stats

    @property
    def models(self) -> Mapping[str, Facts]:
        """What is loaded, by name; the candidate has one too, and can be asked by it."""
        return self.inner.models

    @property
    def is_draining(self) -> bool:
        return self.inner.is_draining

    @property
    def is_open(self) -> bool:
        return self.inner.is_open

    @property
    def progress(self) -> Mapping[str, float]:
        return self.inner.progress

    @property
    def in_flight(self) -> int:
        return self.inner.in_flight

    async def load(self, model: str, path: str, options: Options | None = None) -> Facts:
        return await self.inner.load(model, path, options)

    async def unload(self, model: str) -> None:
        await self.inner.unload(model)

    async def load_adapter(self, model: str, adapter: str, path: str) -> Mapping[str, Any]:
        return await self.inner.load_adapter(model, adapter, path)

    async def unload_adapter(self, model: str, adapter: str) -> None:
        await self.inner.unload_adapter(model, adapter)

    async def score(self, request: wire.Score) -> list[float]:
        return await self.inner.score(request)

    async def ping(self) -> wire.Pong:
        return await self.inner.ping()

    def drain(self) -> None:
        if self._shadowing is not None:
            self._shadowing.cancel()
        self.inner.drain()

    # Requests for the current model.

    async def generate(self, request: wire.Generate) -> AsyncGenerator[Token | Finished, None]:
        """The tokens of a text from either model, and Finished as the last."""
        if request.model != self.current or request.adapter is not None:
            async with aclosing(self.inner.generate(request)) as events:
                async for event in events:
                    yield event
            return
        number, arm, counts = self._choose()
        if arm == "candidate":
            any_yet = False
            try:
                async with aclosing(self._timed(replace(request, model=self.candidate), arm, counts)) as events:
                    async for event in events:
                        any_yet = True
                        yield event
                return
            except EngineFault as fault:
                if any_yet or fault.code not in FAULTS:
                    raise
        async with aclosing(self._timed(request, "current", counts and arm == "current")) as events:
            async for event in events:
                if isinstance(event, Finished) and counts and arm == "current" and self.canary.shadows(number):
                    self._shadow(lambda: self._compare_texts(request))  # before the end: nobody may ask for more
                yield event

    async def answer(self, request: wire.Answer) -> wire.Answered:
        """Answers to rows from either model."""
        if request.model != self.current:
            return await self.inner.answer(request)
        number, arm, counts = self._choose()
        if arm == "candidate":
            try:
                return await self._timed_answer(replace(request, model=self.candidate), arm, counts)
            except EngineFault as fault:
                if fault.code not in FAULTS:
                    raise
        answered = await self._timed_answer(request, "current", counts and arm == "current")
        if counts and arm == "current" and self.canary.shadows(number):
            self._shadow(lambda: self._compare_answers(request, answered))
        return answered

    def _choose(self) -> tuple[str, Arm, bool]:
        asked = choice.get()
        number = uuid.uuid4().hex  # not the request's own id, which a client may set
        arm, counts = self.canary.arm(number, asked.wanted if asked else None)
        if asked is not None:
            asked.used = arm
        return number, arm, counts

    async def _timed(self, request: wire.Generate, arm: Arm, counts: bool) -> AsyncGenerator[Token | Finished, None]:
        started, first = time.perf_counter(), None
        try:
            async with aclosing(self.inner.generate(request)) as events:
                async for event in events:
                    first = first or time.perf_counter()
                    if isinstance(event, Finished):
                        self._observe(arm, Outcome(True, first - started), counts)
                    yield event
        except EngineFault as fault:
            self._failed(arm, fault, started, counts)
            raise

    async def _timed_answer(self, request: wire.Answer, arm: Arm, counts: bool) -> wire.Answered:
        started = time.perf_counter()
        try:
            answered = await self.inner.answer(request)
        except EngineFault as fault:
            self._failed(arm, fault, started, counts)
            raise
        faults = [row["error"].get("code") for row in answered.answers if isinstance(row.get("error"), Mapping)]
        ok = not FAULTS & set(faults)
        self._observe(arm, Outcome(ok, time.perf_counter() - started), counts)
        return answered

    def _failed(self, arm: Arm, fault: EngineFault, started: float, counts: bool) -> None:
        asked = choice.get()
        if asked is not None:
            asked.used = "current"
        if fault.code in FAULTS:
            self._observe(arm, Outcome(False, time.perf_counter() - started), counts)

    def _observe(self, arm: Arm, outcome: Outcome, counts: bool) -> None:
        if counts:
            self.canary.observe(arm, outcome)
            if self.telemetry is not None:
                self.telemetry.canary_observed(arm, outcome.ok)
            self._note()

    # Shadows.

    def _shadow(self, compare: Callable[[], Awaitable[float]]) -> None:
        is_busy = self._shadowing is not None and not self._shadowing.done()
        if not is_busy and not self._others_wait():
            self._shadowing = asyncio.create_task(self._run_shadow(compare), name="canary shadow")

    def _others_wait(self) -> bool:
        stats = self.inner.stats.stats if self.inner.stats else {}
        return any(figures.get("waiting", 0) > 0 for figures in stats.values())

    async def _run_shadow(self, compare: Callable[[], Awaitable[float]]) -> None:
        with suppress(EngineFault):  # failures are judged where users see them
            self.canary.agree(await compare())
            self._note()

    async def _compare_texts(self, request: wire.Generate) -> float:
        """The share of greedy tokens before the first that differs."""
        old, new = [await self._greedy(request, model) for model in (self.current, self.candidate)]
        same = next((n for n, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(old), len(new)) if same is None else same
        return same / max(len(old), len(new), 1) if old or new else 1.0

    async def _greedy(self, request: wire.Generate, model: str) -> list[int]:
        most = min(SHADOW_TOKENS, request.sampling.get("max_new_tokens") or SHADOW_TOKENS)
        sampling = {"temperature": 0.0, "max_new_tokens": most}
        # The least urgent of all, and nobody's: it must not count against a key's share of the engine.
        asked = replace(request, model=model, sampling=sampling, priority=1 << 20, key="canary")
        return [event.id async for event in self.inner.generate(asked) if isinstance(event, Token)]

    async def _compare_answers(self, request: wire.Answer, old: wire.Answered) -> float:
        new = await self.inner.answer(replace(request, model=self.candidate, key="canary"))
        pairs = list(zip(old.answers, new.answers, strict=True))
        return sum(agreement(one, other) for one, other in pairs) / len(pairs) if pairs else 1.0

    def _note(self) -> None:
        """Tell whoever watches how the canary stands; once, that it has ended."""
        self._write()
        if self.telemetry is not None:
            mean = self.canary.judged["agreement"].mean
            self.telemetry.canary(self.current, weight=self.canary.weight, agreement=mean)
        if self._was_running and self.canary.state != "running":
            self._was_running = False
            log.warning("canary %s: %s", self.canary.state, self.canary.cause, extra={"canary": self.canary.as_data()})
            if self.telemetry is not None:
                self.telemetry.canary_decided(self.canary.state, self.canary.cause)
            if self.decided is not None:
                self.decided(self.canary)

    def _write(self) -> None:
        """Keep how it stands: every so often, and when it has ended."""
        is_over = self.canary.state != "running"
        done = self.canary.pairs + self.canary.judged["agreement"].count
        if self.report is None or (done - self._reported < REPORT_EVERY and not (is_over and self._was_running)):
            return
        self._reported = done
        self.report.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.report, json.dumps(self._digests | self.canary.as_data(), indent=1))

    def promote(self) -> None:
        """End the canary: the candidate answers from now on."""
        self.canary.promote()
        self._note()

    def roll_back(self) -> None:
        """End the canary: the current model answers from now on."""
        self.canary.roll_back()
        self._note()

    def engine_restarted(self) -> None:
        """An engine that serves both models was started again; the supervisor says so."""
        self.canary.engine_restarted()
        self._note()


def resumed(report: Path, plan: Plan, current: Facts, candidate: Facts) -> Canary:
    """The canary that a report tells of, if it was between the same models by the same plan; else a new one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(report.read_text(encoding="utf-8"))
        same = (data["current"], data["candidate"]) == (current.digest, candidate.digest)
        if same and data["plan"] == plan.model_dump(mode="json"):
            return Canary.of_data(data)
    return Canary(plan, salt=uuid.uuid4().hex)


def require_comparable(current: Facts, candidate: Facts) -> None:
    """Raise UserError unless the candidate can answer what the current model is asked."""
    if (current.kind, current.task) != (candidate.kind, candidate.task):
        what = f"the candidate is for {candidate.task}, the current model for {current.task}"
        raise UserError(what, where="--canary", fix="try a model of the same task")
    if current.kind == "generate" and _tokenizer(current) != _tokenizer(candidate):
        fix = "a candidate needs the same tokenizer; serve the two side by side under two names instead"
        raise UserError("the candidate's tokenizer is another than the current model's", where="--canary", fix=fix)


def _tokenizer(facts: Facts) -> str:
    return digest_file(Path(facts.folder) / "tokenizer.json")


def agreement(one: Any, other: Any) -> float:
    """How far two answers agree, in [0, 1].

    Two vectors by their cosine (below 0 is 0); what holds no vector is the same (1) or not (0), where
    scores and probabilities, any float, do not matter.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return 0.0
        return min((agreement(one[key], other[key]) for key in one), default=1.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if one and other and all(isinstance(each, float) for each in (*one, *other)):
            return _cosine(cast(list[float], list(one)), cast(list[float], list(other)))
        if len(one) != len(other):
            return 0.0
        return min((agreement(a, b) for a, b in zip(one, other, strict=True)), default=1.0)
    if isinstance(one, float) and isinstance(other, float):
        return 1.0
    return float(one == other)


def _cosine(one: list[float], other: list[float]) -> float:
    if len(one) != len(other):
        return 0.0
    norms = math.hypot(*one) * math.hypot(*other)
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return min(1.0, max(0.0, product / norms)) if norms else float(one == other)


class CanaryHeader:
    """ASGI middleware: reads and answers the header `x-groundup-canary`; see HEADER."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = next((value for name, value in scope["headers"] if name.lower() == HEADER.encode()), b"")
        arms: dict[bytes, Arm] = {b"candidate": "candidate", b"current": "current"}
        made = Choice(arms.get(asked.lower()))
        token = choice.set(made)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and made.used is not None:
                named = (HEADER.encode(), made.used.encode())
                message["headers"] = [*message.get("headers", ()), named]
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        finally:
            choice.reset(token)
