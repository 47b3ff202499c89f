"""What the front asks of the engine process, as coroutines: load, generate, answer, score.

One client lives as long as the server. The engine process behind it may die and come back: `attach` joins the
client to a new one, and what was in flight when the old one went raises EngineGone, at once. Leaving an iteration
of `generate` (a client that hung up, a stop string that was found) cancels the request in the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from groundup.errors import GroundupError
from groundup.serving import wire
from groundup.serving.models import Facts, Options
from groundup.serving.remembered import Given, Remembered
from groundup.serving.wire import Finished, Frame, Pong

READ = 1 << 18
"""Bytes that are taken from the socket at once."""


@dataclass(frozen=True)
class Token:
    """One token of a text."""

    id: int
    logprob: float | None = None
    alternatives: Sequence[tuple[int, float]] = ()
    """(token, log-probability), best first, where they were asked for."""


class EngineFault(GroundupError):
    """The engine refused or failed one request; `code` (see `wire.Code`) says which kind of failure it is."""

    def __init__(self, code: wire.Code, what: str, *, fix: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(what, fix=fix)
        self.code, self.retry_after_s = code, retry_after_s


class EngineGone(EngineFault):
    """The engine process is not there: it ended under a request, or is being started. The server is up."""

    def __init__(self, what: str, *, retry_after_s: float | None = None) -> None:
        super().__init__("engine_gone", what, fix="send the request again", retry_after_s=retry_after_s)


Got = Token | Frame | EngineFault
F = TypeVar("F", bound=Frame)


class Client(Protocol):
    """What the API uses: EngineClient over a socket, LocalClient within this process, Replicas of several."""

    @property
    def stats(self) -> Pong | None:
        """What the engine last said of itself."""

    @property
    def models(self) -> Mapping[str, Facts]:
        """What is loaded, by name."""

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""

    @property
    def is_open(self) -> bool:
        """Whether there is an engine, with its models, to take work."""

    @property
    def progress(self) -> Mapping[str, float]:
        """When each model last gave a token or an answer, by the event loop's clock."""

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""

    async def load(self, model: str, path: str, options: Options | None = None) -> Facts:
        """Verify and open a model. Raises EngineFault."""

    async def unload(self, model: str) -> None:
        """Let a model go; its requests are cancelled. Raises EngineFault for one that is not loaded."""

    async def load_adapter(self, model: str, adapter: str, path: str) -> Mapping[str, Any]:
        """Verify and open an adapter of a model; what comes back has its digest. Raises EngineFault."""

    async def unload_adapter(self, model: str, adapter: str) -> None:
        """Let an adapter go. Raises EngineFault."""

    def generate(self, request: wire.Generate) -> AsyncGenerator[Token | Finished, None]:
        """The tokens of a text, and Finished as the last. Raises EngineFault; closing it cancels."""

    async def answer(self, request: wire.Answer) -> wire.Answered:
        """Answers to rows; a row that fails is `{"error": …}` in its place. Raises EngineFault."""

    async def score(self, request: wire.Score) -> list[float]:
        """Log-probabilities of given tokens. Raises EngineFault."""

    async def ping(self) -> Pong:
        """The engine's answer to a call, which becomes `stats`. Raises EngineGone."""

    def drain(self) -> None:
        """Take no new work from now on: it raises EngineFault `shutting_down`. What is in flight goes on."""


class EngineClient:
    """The client of an engine process; see `Client`. All methods run in the event loop that called `attach`."""

    def __init__(self) -> None:
        self.stats: Pong | None = None
        self.models: dict[str, Facts] = {}
        self.adapters: dict[tuple[str, str], Mapping[str, Any]] = {}
        """Facts of adapters by (model, adapter)."""
        self.is_draining = False
        """Whether new work is refused."""
        self.progress: dict[str, float] = {}
        """When each model last gave a token or an answer, by the event loop's clock."""
        self._given = Remembered()
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Queue[Got]] = {}
        self._pings: dict[int, asyncio.Future[Pong]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[wire.Ready] | None = None
        self._gone = asyncio.Event()
        self._why_gone = "the engine has not been started"
        self.retry_after_s: float | None = None
        """What EngineGone suggests; the supervisor knows how long a start takes."""

    async def attach(self, joined: socket.socket, *, timeout_s: float = 120.0) -> wire.Ready:
        """Join an engine process at the other end of a socket pair, and wait until it is up.

        Raises EngineGone if it ends, or is not up in time.
        """
        assert self._writer is None, "attached already: detach first"
        self._given.begin()
        reader, self._writer = await asyncio.open_connection(sock=joined)
        self._gone = asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader), name="engine frames")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ready
        except TimeoutError:
            await self.detach("the engine process did not come up in time")
            raise EngineGone(self._why_gone) from None

    async def detach(self, why: str) -> None:
        """Leave the engine: whatever was in flight raises EngineGone with `why`. Done twice, it does nothing."""
        self._lost(why)
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
            self._reading = None

    async def gone(self) -> None:
        """Wait until the connection has ended."""
        await self._gone.wait()

    @property
    def is_open(self) -> bool:
        """Whether there is an engine to talk to, with the models that it should have."""
        return self._writer is not None and not self._given.missing

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._pending)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "the engine process ended"
        frames = wire.Frames()
        try:
            while data := await reader.read(READ):
                for frame in frames.feed(data):
                    self._take(frame)
        except (ConnectionResetError, BrokenPipeError):  # it ended with frames unread
            pass
        except (OSError, wire.WireError) as error:
            why = f"the connection to the engine broke: {error}"
        finally:
            self._lost(why)

    def _lost(self, why: str) -> None:
        if self._writer is None:
            return
        self._why_gone = why
        self._writer.close()
        self._writer = None
        for queue in self._pending.values():
            queue.put_nowait(self._absent())
        futures: list[asyncio.Future[Any]] = [*self._pings.values(), *([self._ready] if self._ready else [])]
        for waiting in futures:
            if not waiting.done():
                waiting.set_exception(self._absent())
                waiting.exception()  # nobody may be waiting any more
        self._pings.clear()
        self._gone.set()

    def _absent(self) -> EngineGone:
        return EngineGone(self._why_gone, retry_after_s=self.retry_after_s)

    def _take(self, frame: Frame) -> None:
        """Hand a frame to whoever waits for it; what came for a request that was given up is dropped."""
        match frame:
            case wire.Tokens():
                for number, token, logprob, alternatives in frame.tokens:
                    if number in self._pending:
                        self._pending[number].put_nowait(Token(token, logprob, alternatives))
            case Pong():
                self.stats = frame
                waiting = self._pings.pop(frame.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
            case wire.Ready():
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(frame)
            case wire.Failed(id=None):
                pass
            case _:
                number = frame.id  # type: ignore[attr-defined]
                if number in self._pending:
                    self._pending[number].put_nowait(_fault(frame) if isinstance(frame, wire.Failed) else frame)

    async def _send(self, frame: Frame) -> None:
        if self._writer is None:
            raise self._absent()
        try:
            self._writer.write(wire.encode(frame))
            await self._writer.drain()
        except wire.WireError as error:
            raise EngineFault("bad_request", error.what, fix="send plain values: text, numbers, lists") from error
        except OSError as error:
            raise self._absent() from error

    # ------------------------------------------------------------------------------ models

    async def load(self, model: str, path: str, options: Options | None = None) -> Facts:
        """Verify and open a model, and remember it for an engine that has to be started again."""
        self._require_open()
        if model in self.models:
            raise EngineFault("bad_request", f"a model {model!r} is loaded already", fix="unload it first")
        frame = wire.Load(0, model, path, (options or Options()).as_data())
        loaded = await self._ask(frame, wire.Loaded)
        self._given.add(frame, loaded.facts)
        self.models[model] = Facts.of_data(loaded.facts)
        return self.models[model]

    async def unload(self, model: str) -> None:
        """Let a model go; its requests are cancelled."""
        self._require_open()
        if not self._given.is_missing(model):
            await self._ask(wire.Unload(0, model), wire.Done)
        self.models.pop(model, None)
        self.progress.pop(model, None)
        self.adapters = {pair: facts for pair, facts in self.adapters.items() if pair[0] != model}
        self._given.forget(model)

    async def load_adapter(self, model: str, adapter: str, path: str) -> Mapping[str, Any]:
        """Verify and open an adapter of a model."""
        self._require_open(model)
        frame = wire.LoadAdapter(0, model, adapter, path)
        loaded = await self._ask(frame, wire.Loaded)
        self._given.add(frame, loaded.facts)
        self.adapters[model, adapter] = loaded.facts
        return loaded.facts

    async def unload_adapter(self, model: str, adapter: str) -> None:
        """Let an adapter go."""
        self._require_open(model)
        if not self._given.is_missing(model, adapter):
            await self._ask(wire.UnloadAdapter(0, model, adapter), wire.Done)
        self.adapters.pop((model, adapter), None)
        self._given.forget(model, adapter)

    async def restore(self) -> list[EngineFault]:
        """Load into a new engine what the last one had and this one still lacks; what kept it from that.

        A model is served again as soon as it is there. What could not be loaded stays asked for: call again later.
        Raises EngineGone.
        """
        faults: list[EngineFault] = []
        for frame in list(self._given.missing):
            try:
                await self._load_again(frame)
            except EngineGone:
                raise
            except EngineFault as fault:
                faults.append(fault)
        return faults

    async def _load_again(self, frame: Given) -> None:
        loaded = await self._ask(frame, wire.Loaded)
        if frame not in self._given.missing:  # given up meanwhile
            return
        if self._given.is_same(frame, loaded.facts):
            self._given.found(frame)
            return
        if isinstance(frame, wire.Load):
            await self._ask(wire.Unload(0, frame.model), wire.Done)
        else:
            await self._ask(wire.UnloadAdapter(0, frame.model, frame.adapter), wire.Done)
        what = f"{frame.path} is no longer what was served as {frame.model!r}: its digest is another"
        raise EngineFault("bad_request", what, fix="unload the model, and load it anew if that is meant")

    # ------------------------------------------------------------------------------ work

    async def generate(self, request: wire.Generate) -> AsyncGenerator[Token | Finished, None]:
        """The tokens of a text, and Finished as the last; closing the generator cancels the request."""
        self._require_open(request.model, request.adapter)
        async with self._slot() as (number, queue):
            await self._send(replace(request, id=number))
            while True:
                got = await queue.get()
                if isinstance(got, EngineFault):
                    self._pending.pop(number, None)
                    raise got
                if isinstance(got, Finished):
                    self._pending.pop(number, None)
                    yield got
                    return
                assert isinstance(got, Token), f"a {got} in the middle of a text"
                self.progress[request.model] = asyncio.get_running_loop().time()
                yield got

    async def answer(self, request: wire.Answer) -> wire.Answered:
        """Answers to rows, in order."""
        self._require_open(request.model)
        answered = await self._ask(request, wire.Answered)
        if any("error" not in answer for answer in answered.answers):
            self.progress[request.model] = asyncio.get_running_loop().time()
        return answered

    async def score(self, request: wire.Score) -> list[float]:
        """Log-probabilities of the tokens from `from_position` on."""
        self._require_open(request.model, request.adapter)
        return list((await self._ask(request, wire.Scored)).logprobs)

    async def ping(self) -> Pong:
        """The engine's answer to a call. Raises EngineGone; waits as long as the engine is silent."""
        number = next(self._numbers)
        self._pings[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(wire.Ping(number))
            return await self._pings[number]
        finally:
            self._pings.pop(number, None)

    def drain(self) -> None:
        """Refuse new work from now on."""
        self.is_draining = True

    async def stop(self) -> None:
        """Ask the engine process to end."""
        await self._send(wire.Stop())

    def _require_open(self, model: str = "", adapter: str | None = None) -> None:
        if self.is_draining:
            what = "the server is shutting down and takes no new work"
            raise EngineFault("shutting_down", what, fix="send it to another replica, or again later", retry_after_s=5)
        if self._writer is None or self._given.is_missing(model, adapter):
            raise self._absent()

    async def _ask(self, frame: Frame, answered: type[F]) -> F:
        """Send a frame and wait for its one answer."""
        async with self._slot() as (number, queue):
            await self._send(replace(frame, id=number))  # type: ignore[call-arg]
            got = await queue.get()
            self._pending.pop(number, None)
            if isinstance(got, EngineFault):
                raise got
            if isinstance(got, Finished):  # of a Score that was cut short
                raise EngineFault("deadline", "the time was over before the answer came", fix="allow more time")
            assert isinstance(got, answered), f"{frame.kind} was answered by {got}"
            return got

    @asynccontextmanager
    async def _slot(self) -> AsyncGenerator[tuple[int, asyncio.Queue[Got]], None]:
        """A number for a request and what comes back for it; left before the end, the request is cancelled."""
        number = next(self._numbers)
        queue = self._pending[number] = asyncio.Queue()
        try:
            yield number, queue
        finally:
            if self._pending.pop(number, None) is not None and self._writer is not None:
                # Not awaited: this also runs when the task is being cancelled.
                self._writer.write(wire.encode(wire.Cancel(number)))


def _fault(frame: wire.Failed) -> EngineFault:
    return EngineFault(frame.code, frame.message, fix=frame.fix, retry_after_s=frame.retry_after_s)
