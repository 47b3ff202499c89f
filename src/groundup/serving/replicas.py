"""Several engine processes behind one front: a client that routes, fails over, and restarts them in turn.

Replicas are engine processes, not whole servers. The front does little for a token (one frame, one decoded
piece), while what must be one thing stays one thing without a store shared over processes: rate limits and
quotas of a key, the queue's bounds, batch jobs, metrics, canaries. There is no proxy in between, and the
router sees token ids, so that it hashes exactly the blocks that the prefix cache keeps. Whole servers on
several hosts are what `groundup deploy` writes manifests for.

A request that no engine has answered yet is given to another replica when its own is gone or full: nobody
notices a crash or a restart. One that had begun ends with `engine_gone`, since its text cannot be taken
back; a rolling restart therefore waits until a replica has nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from groundup.serving import wire
from groundup.serving.client import Client, EngineFault, EngineGone, Token
from groundup.serving.models import Facts, Options
from groundup.serving.router import NoReplica, Router
from groundup.serving.wire import Finished, Pong

ELSEWHERE = frozenset({"engine_gone", "queue_full", "shutting_down"})
"""Codes of failures after which another replica is asked."""
SHARE = "kv_usage"
"""The one figure of `Pong.stats` that is a share: of several replicas the largest is reported, not the sum."""
POLL_S = 0.02
log = logging.getLogger("groundup.replicas")
T = TypeVar("T")


class Engine(Protocol):
    """One replica: an engine process and whoever watches it, as `supervisor.Supervisor` is."""

    @property
    def client(self) -> Client:
        """What the engine is asked by."""

    async def start(self) -> None:
        """Start the process; what its client had loaded before is loaded again."""

    async def stop(self) -> None:
        """End the process. Whatever is in flight fails."""


class Replicas:
    """The engines `make(name)` as one `client.Client`. Use `start` before and `stop` after."""

    def __init__(self, make: Callable[[str], Engine], count: int) -> None:
        assert count >= 1, "a server needs an engine"
        self.make = make
        self.engines: dict[str, Engine] = {str(number): make(str(number)) for number in range(count)}
        self.router = Router(self.engines)
        self._restarting = asyncio.Lock()
        self._facts: dict[str, Facts] = {}
        self._loads: dict[str, tuple[str, Options | None]] = {}
        self._adapter_loads: dict[tuple[str, str], str] = {}

    async def start(self) -> None:
        """Start all engines, one after the other: a host short of memory shows it at the first."""
        for engine in self.engines.values():
            await engine.start()

    async def stop(self) -> None:
        """End all engines."""
        await asyncio.gather(*(engine.stop() for engine in self.engines.values()))

    # Models: on every replica, or on none.

    @property
    def models(self) -> Mapping[str, Facts]:
        """What is loaded, by name; an engine that is being started anew has it again in a moment."""
        return self._facts

    async def load(self, model: str, path: str, options: Options | None = None) -> Facts:
        """Verify and open a model on every replica. Raises EngineFault, and then no replica has it."""
        facts = await self._on_all(
            lambda client: client.load(model, path, options), lambda client: client.unload(model)
        )
        self._loads[model], self._facts[model] = (path, options), facts
        return facts

    async def unload(self, model: str) -> None:
        """Let a model go everywhere."""
        self._loads.pop(model, None)
        self._facts.pop(model, None)
        self._adapter_loads = {pair: path for pair, path in self._adapter_loads.items() if pair[0] != model}
        await self._on_all(lambda client: client.unload(model))

    async def load_adapter(self, model: str, adapter: str, path: str) -> Mapping[str, Any]:
        """Verify and open an adapter on every replica. Raises EngineFault, and then no replica has it."""
        facts = await self._on_all(
            lambda client: client.load_adapter(model, adapter, path),
            lambda client: client.unload_adapter(model, adapter),
        )
        self._adapter_loads[model, adapter] = path
        return facts

    async def unload_adapter(self, model: str, adapter: str) -> None:
        """Let an adapter go everywhere."""
        self._adapter_loads.pop((model, adapter), None)
        await self._on_all(lambda client: client.unload_adapter(model, adapter))

    async def _on_all(
        self, do: Callable[[Client], Awaitable[T]], undo: Callable[[Client], Awaitable[None]] | None = None
    ) -> T:
        """Do something on each replica in turn, under the lock of restarts; on a fault undo it where it was done."""
        async with self._restarting:
            done: list[Client] = []
            try:
                for engine in self.engines.values():
                    result = await do(engine.client)
                    done.append(engine.client)
            except EngineFault:
                for client in done if undo is not None else ():
                    assert undo is not None
                    await undo(client)
                raise
            return result

    # Work.

    async def generate(self, request: wire.Generate) -> AsyncGenerator[Token | Finished, None]:
        """The tokens of a text, and Finished as the last; see `Client.generate`."""
        failed: dict[str, EngineFault] = {}
        while True:
            name = self._take(request.model, request.ids, request.adapter, failed)
            any_yet = False
            try:
                async with aclosing(self.engines[name].client.generate(request)) as events:
                    async for event in events:
                        any_yet = True
                        yield event
                return
            except EngineFault as fault:
                if any_yet or fault.code not in ELSEWHERE:
                    raise
                failed[name] = fault
            finally:
                self.router.done(name)

    async def answer(self, request: wire.Answer) -> wire.Answered:
        """Answers to rows, from the replica that has least to do."""
        return await self._elsewhere(lambda client: client.answer(request), request.model)

    async def score(self, request: wire.Score) -> list[float]:
        """Log-probabilities of given tokens."""
        return await self._elsewhere(lambda client: client.score(request), request.model, request)

    async def _elsewhere(
        self, ask: Callable[[Client], Awaitable[T]], model: str, request: wire.Score | None = None
    ) -> T:
        failed: dict[str, EngineFault] = {}
        ids, adapter = (request.ids, request.adapter) if request is not None else ((), None)
        while True:
            name = self._take(model, ids, adapter, failed)
            try:
                return await ask(self.engines[name].client)
            except EngineFault as fault:
                if fault.code not in ELSEWHERE:
                    raise
                failed[name] = fault
            finally:
                self.router.done(name)

    def _take(self, model: str, ids: Any, adapter: str | None, failed: Mapping[str, EngineFault]) -> str:
        try:
            return self.router.take(model, ids, adapter=adapter, avoid=failed)
        except NoReplica:
            # A full replica says when to come again; one that is gone only that it is.
            faults = sorted(failed.values(), key=lambda fault: fault.code != "queue_full")
            raise (faults[0] if faults else EngineGone("every engine is being restarted", retry_after_s=5)) from None

    # Health.

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return all(engine.client.is_draining for engine in self.engines.values())

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return sum(engine.client.in_flight for engine in self.engines.values())

    @property
    def is_open(self) -> bool:
        """Whether some engine takes work."""
        return any(engine.client.is_open for engine in self.engines.values())

    @property
    def progress(self) -> Mapping[str, float]:
        """By model, when an engine last made progress with it, by the event loop's clock."""
        found: dict[str, float] = {}
        for engine in self.engines.values():
            for model, when in engine.client.progress.items():
                found[model] = max(when, found.get(model, when))
        return found

    @property
    def stats(self) -> Pong | None:
        """What the engines last said of themselves, added up; None until one has."""
        pongs = [pong for pong in self.stats_by_engine.values() if pong is not None]
        return _added(pongs) if pongs else None

    @property
    def stats_by_engine(self) -> dict[str, Pong | None]:
        """What each engine last said of itself."""
        return {name: engine.client.stats for name, engine in self.engines.items()}

    async def ping(self) -> Pong:
        """The answers of all engines that take work, added up. Raises EngineGone if none answers."""
        asked = [self.engines[name].client.ping() for name in self.router.replicas]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        pongs = [answer for answer in answers if isinstance(answer, Pong)]
        if not pongs:
            raise EngineGone("no engine answers")
        return _added(pongs)

    def drain(self) -> None:
        """Refuse new work everywhere."""
        for engine in self.engines.values():
            engine.client.drain()

    async def rolling_restart(self, *, grace_s: float = 60.0) -> None:
        """Start every engine anew, one at a time, without losing a request that ends within `grace_s`.

        A replica gets no new work, finishes what it has, is stopped, started, given its models, and takes
        work again before the next one's turn. A single engine is replaced by a second one first, which
        needs the memory of both for a moment. Raises EngineFault if a new engine does not come up; the
        other replicas then go on as before.
        """
        async with self._restarting:
            for name in list(self.engines):
                if len(self.engines) == 1:
                    await self._replace(name, grace_s)
                else:
                    self.router.remove(name)
                    try:
                        await self._finish(name, grace_s)
                        await self.engines[name].stop()
                        await self._fresh(name)
                    finally:
                        self.router.add(name)  # one that did not come up answers `engine_gone`, and others are asked
                log.info("engine restarted", extra={"engine": name})

    async def _replace(self, name: str, grace_s: float) -> None:
        """Put a new engine, under another name, in the place of the only one."""
        other = "1" if name == "0" else "0"
        new = self.make(other)
        await new.start()
        await self._load_into(new)
        self.engines[other] = new
        self.router.add(other)
        self.router.remove(name)
        await self._finish(name, grace_s)
        await self.engines.pop(name).stop()

    async def _fresh(self, name: str) -> None:
        self.engines[name] = engine = self.make(name)
        await engine.start()
        await self._load_into(engine)

    async def _load_into(self, engine: Engine) -> None:
        for model, (path, options) in self._loads.items():
            await engine.client.load(model, path, options)
        for (model, adapter), path in self._adapter_loads.items():
            await engine.client.load_adapter(model, adapter, path)

    async def _finish(self, name: str, grace_s: float) -> None:
        if not await _until(lambda: not self.router.loads.get(name), grace_s):
            log.warning("engine restarted with work left", extra={"engine": name, "requests": self.router.loads[name]})


async def _until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so; False if it is not in time."""
    try:
        async with asyncio.timeout(seconds):
            while not is_so():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    return True


def _added(pongs: list[Pong]) -> Pong:
    """Several engines as one."""
    stats: dict[str, dict[str, float]] = {}
    for pong in pongs:
        for model, figures in pong.stats.items():
            of_model = stats.setdefault(model, {})
            for key, value in figures.items():
                before = of_model.get(key, 0.0)
                of_model[key] = max(before, value) if key == SHARE else before + value
    return Pong(max(pong.number for pong in pongs), sum(pong.steps for pong in pongs), stats)
