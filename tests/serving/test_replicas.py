"""Several engines behind one client: who answers, what a crash costs, and a rolling restart that loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.nn.network import create
from groundup.serving import wire
from groundup.serving.client import EngineClient, EngineFault, EngineGone, Token
from groundup.serving.replicas import Replicas
from groundup.serving.supervisor import Supervisor, Watch
from groundup.serving.wire import Finished, Pong
from groundup.text.pipelines import SPECIALS, build, finish
from groundup.text.tokenizers import Tokenizer


class Counter:
    """A client whose model counts: after [.., n] come n + 1, n + 2, … It breaks where a test says so."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.models: dict[str, Any] = {}
        self.stats: Pong | None = Pong(1, 5, {"m": {"running": 2, "kv_usage": 0.25 * (1 + int(name))}})
        self.fault: EngineFault | None = None
        self.fault_after = 0
        self.running = 0
        self.slow = asyncio.Event()
        self.slow.set()

    @property
    def in_flight(self) -> int:
        return self.running

    async def load(self, model: str, path: str, options: Any = None) -> Any:
        if path == f"broken on {self.name}":
            raise EngineFault("bad_request", "no model")
        self.models[model] = path
        return path

    async def unload(self, model: str) -> None:
        del self.models[model]

    async def load_adapter(self, model: str, adapter: str, path: str) -> Mapping[str, Any]:
        return {"digest": path}

    async def unload_adapter(self, model: str, adapter: str) -> None:
        self.log.append(f"unload {adapter}")

    async def generate(self, request: wire.Generate) -> AsyncGenerator[Token | Finished, None]:
        self.running += 1
        self.log.append(self.name)
        try:
            for number in range(3):
                if self.fault is not None and number == self.fault_after:
                    raise self.fault
                await self.slow.wait()
                yield Token(request.ids[-1] + number + 1)
            yield Finished(1, "length")
        finally:
            self.running -= 1

    async def answer(self, request: wire.Answer) -> wire.Answered:
        if self.fault is not None:
            raise self.fault
        return wire.Answered(1, [{"label": self.name}])

    async def score(self, request: wire.Score) -> list[float]:
        return [0.0]

    async def ping(self) -> Pong:
        if self.fault is not None:
            raise self.fault
        assert self.stats is not None
        return self.stats

    def drain(self) -> None:
        self.fault = EngineFault("shutting_down", "bye")


class Small:
    """An engine around a Counter."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.client: Any = Counter(name, log)
        self.log, self.name = log, name

    async def start(self) -> None:
        self.log.append(f"start {self.name}")

    async def stop(self) -> None:
        assert not self.client.running, "stopped with work left"
        self.log.append(f"stop {self.name}")


def make(count: int) -> tuple[Replicas, list[str]]:
    log: list[str] = []
    return Replicas(lambda name: Small(name, log), count), log


def counter(replicas: Replicas, name: str) -> Counter:
    client = replicas.engines[name].client
    assert isinstance(client, Counter)
    return client


async def tokens(replicas: Replicas, ids: list[int]) -> list[int]:
    request = wire.Generate("m", ids)
    return [event.id async for event in replicas.generate(request) if isinstance(event, Token)]


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


LONG = list(range(100))


def test_one_beginning_goes_to_one_engine() -> None:
    async def test() -> None:
        replicas, log = make(3)
        for _ in range(5):
            assert await tokens(replicas, LONG) == [100, 101, 102]
        assert len(set(log)) == 1
        assert set(replicas.router.loads.values()) == {0}

    run(test())


@pytest.mark.parametrize("code", ["engine_gone", "queue_full", "shutting_down"])
def test_what_has_not_begun_is_given_to_another_engine(code: Any) -> None:
    async def test() -> None:
        replicas, log = make(2)
        await tokens(replicas, LONG)
        first = log[-1]
        counter(replicas, first).fault = EngineFault(code, "no")
        assert await tokens(replicas, LONG) == [100, 101, 102]
        assert log[-2:] == [first, str(1 - int(first))]
        assert (await replicas.answer(wire.Answer("m", [{}]))).answers
        assert set(replicas.router.loads.values()) == {0}

    run(test())


def test_what_has_begun_ends_with_the_fault_and_a_callers_mistake_is_not_repeated() -> None:
    async def test() -> None:
        replicas, log = make(2)
        for name in "01":
            counter(replicas, name).fault, counter(replicas, name).fault_after = EngineGone("died"), 1
        with pytest.raises(EngineGone):
            await tokens(replicas, LONG)
        assert len(log) == 1
        for name in "01":
            counter(replicas, name).fault, counter(replicas, name).fault_after = EngineFault("bad_request", "bad"), 0
        with pytest.raises(EngineFault, match="bad"):
            await tokens(replicas, LONG)
        assert len(log) == 2 and set(replicas.router.loads.values()) == {0}

    run(test())


def test_when_all_are_full_the_client_is_told_when_to_come_again() -> None:
    async def test() -> None:
        replicas, _ = make(2)
        counter(replicas, "0").fault = EngineGone("died")
        counter(replicas, "1").fault = EngineFault("queue_full", "full", retry_after_s=3)
        with pytest.raises(EngineFault) as found:
            await tokens(replicas, LONG)
        assert (found.value.code, found.value.retry_after_s) == ("queue_full", 3)

    run(test())


def test_leaving_cancels_at_once() -> None:
    async def test() -> None:
        replicas, log = make(2)
        events = replicas.generate(wire.Generate("m", LONG))
        await anext(events)
        await events.aclose()
        assert counter(replicas, log[0]).running == 0 and set(replicas.router.loads.values()) == {0}

    run(test())


def test_a_model_is_on_every_engine_or_on_none() -> None:
    async def test() -> None:
        replicas, _ = make(3)
        await replicas.load("m", "fine")
        assert all(counter(replicas, name).models == {"m": "fine"} for name in "012")
        with pytest.raises(EngineFault):
            await replicas.load("n", "broken on 2")
        assert all("n" not in counter(replicas, name).models for name in "012")
        await replicas.unload("m")
        assert not replicas.models

    run(test())


def test_what_engines_say_is_added_up() -> None:
    async def test() -> None:
        replicas, _ = make(2)
        found = await replicas.ping()
        assert found.stats == {"m": {"running": 4, "kv_usage": 0.5}} and found.steps == 10
        counter(replicas, "0").fault = EngineGone("died")
        assert (await replicas.ping()).steps == 5
        replicas.drain()
        with pytest.raises(EngineGone):
            await replicas.ping()

    run(test())


@pytest.mark.parametrize("count", [1, 3])
def test_a_rolling_restart_waits_for_what_runs_and_loads_what_was_there(count: int) -> None:
    async def test() -> None:
        replicas, log = make(count)
        await replicas.start()
        await replicas.load("m", "path")
        await replicas.load_adapter("m", "a", "lora")
        before = {name: counter(replicas, name) for name in replicas.engines}
        for client in before.values():
            client.slow.clear()
        busy = [asyncio.create_task(tokens(replicas, [*range(number, 64 + number)])) for number in range(6)]
        await asyncio.sleep(0.01)
        restart = asyncio.create_task(replicas.rolling_restart(grace_s=20))
        await asyncio.sleep(0.1)
        assert replicas.models == {"m": "path"}  # also while an engine has nothing
        assert not restart.done() and not any(line.startswith("stop") for line in log)
        later = [asyncio.create_task(tokens(replicas, [*range(number, 64 + number)])) for number in range(6)]
        await asyncio.sleep(0.05)
        for client in before.values():
            client.slow.set()
        await restart
        for number, task in enumerate([*busy, *later]):
            last = 63 + number % 6
            assert await task == [last + 1, last + 2, last + 3]
        assert sum(line.startswith("stop") for line in log) == count
        for name in replicas.engines:
            assert counter(replicas, name) is not before.get(name) and counter(replicas, name).models == {"m": "path"}
        assert replicas.router.replicas == sorted(replicas.engines) and len(replicas.engines) == count

    run(test())


# ------------------------------------------------------------------------------ with real engine processes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "tiny"
    gpt = catalog.load("models", "gpt")
    hugging_face.save(
        place, create(gpt, gpt.Config(**gpt.TINY | {"vocab_size": 300, "context": 256}), "language", seed=3)
    )
    engine = build("bpe")
    finish(engine, "bpe")
    Tokenizer.of_roles(engine, SPECIALS["bpe"]).save(place)
    return place


@pytest.mark.slow
def test_no_request_is_lost_when_real_engines_are_restarted_or_killed(model: Path) -> None:
    async def test() -> None:
        replicas = Replicas(lambda name: Supervisor(EngineClient(), Watch(threads=1, first_delay_s=0.1)), 2)
        await replicas.start()
        try:
            await replicas.load("m", str(model))
            request = wire.Generate("m", [5, 6, 7] * 20, sampling={"max_new_tokens": 4, "temperature": 0.0})
            wanted = [event.id async for event in replicas.generate(request) if isinstance(event, Token)]
            outcomes: list[list[int]] = []
            over = asyncio.Event()

            async def keep_asking() -> None:
                while not over.is_set():
                    outcomes.append([e.id async for e in replicas.generate(request) if isinstance(e, Token)])
                    await asyncio.sleep(0.01)

            asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
            await replicas.rolling_restart(grace_s=20)
            over.set()
            await asyncio.gather(*asking)
            assert len(outcomes) > 10 and all(found == wanted for found in outcomes)

            # Killed between requests: the next is answered by the other engine, at once.
            victim = replicas.engines[replicas.router.take("m", request.ids)]
            replicas.router.done(next(name for name, engine in replicas.engines.items() if engine is victim))
            assert isinstance(victim, Supervisor) and victim.process is not None
            victim.process.kill()
            for _ in range(5):
                found = [event.id async for event in replicas.generate(request) if isinstance(event, Token)]
                assert found == wanted
        finally:
            await replicas.stop()

    asyncio.run(asyncio.wait_for(test(), 240))
