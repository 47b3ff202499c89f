"""The client alone: what it makes of frames, and what becomes of requests when the other end goes or says nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from groundup.serving import wire
from groundup.serving.client import EngineClient, EngineFault, EngineGone, Token
from groundup.serving.wire import Finished, Frame

Runs = Callable[[Coroutine[Any, Any, None]], None]


class Far:
    """The other end of the socket, held by the test."""

    def __init__(self, joined: socket.socket) -> None:
        self.socket = joined
        joined.setblocking(False)
        self.frames = wire.Frames()
        self.held: list[Frame] = []

    async def send(self, *frames: Frame) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, b"".join(map(wire.encode, frames)))

    async def get(self) -> Any:
        while not self.held:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            assert data, "the client hung up"
            self.held += self.frames.feed(data)
        return self.held.pop(0)


@asynccontextmanager
async def joined(client: EngineClient | None = None) -> AsyncGenerator[tuple[EngineClient, Far]]:
    client = client or EngineClient()
    ours, theirs = socket.socketpair()
    far = Far(theirs)
    await far.send(wire.Ready(1, 2))
    await client.attach(ours)
    try:
        yield client, far
    finally:
        await client.detach("the test is over")
        theirs.close()


def facts(**given: Any) -> dict[str, Any]:
    plain = {"folder": "f", "kind": "generate", "task": "chat", "family": "llama", "digest": "d", "context": 9}
    sizes = {"vocab_size": 9, "parameters": 9, "weight_bytes": 9, "read_bytes": 9, "token_bytes": 9, "chats": True}
    return plain | sizes | {"labels": []} | given


def test_tokens_arrive_one_by_one_and_the_end_last(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):
            stream = client.generate(wire.Generate("m", [1, 2], sampling={"temperature": 0}, key="k"))
            first = asyncio.create_task(anext(stream))
            asked = await far.get()
            assert (asked.model, asked.ids, asked.sampling, asked.key) == ("m", [1, 2], {"temperature": 0}, "k")
            await far.send(wire.Tokens([(asked.id, 7, -0.5, [(7, -0.5), (8, -1.0)]), (999, 1, None, [])]))
            token = await first
            assert isinstance(token, Token) and (token.id, token.logprob) == (7, -0.5)
            assert [tuple(pair) for pair in token.alternatives] == [(7, -0.5), (8, -1.0)]
            await far.send(wire.Tokens([(asked.id, 8, None, [])]), Finished(asked.id, "stop", cached_tokens=1))
            rest = [event async for event in stream]
            assert rest[0] == Token(8, None, []) and isinstance(rest[1], Finished) and rest[1].cached_tokens == 1
            assert client.in_flight == 0 and "m" in client.progress

    runs(body())


def test_leaving_cancels_and_late_tokens_harm_nobody(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):
            async with aclosing(client.generate(wire.Generate("m", [1]))) as stream:
                first = asyncio.create_task(anext(stream))
                asked = await far.get()
                await far.send(wire.Tokens([(asked.id, 7, None, [])]))
                await first
            assert await far.get() == wire.Cancel(asked.id)
            await far.send(wire.Tokens([(asked.id, 8, None, [])]), Finished(asked.id, "cancelled"))
            task = asyncio.create_task(client.answer(wire.Answer("m", [{"text": "a"}])))
            other = await far.get()
            await far.send(wire.Answered(other.id, [{"label": "x"}], [3]))
            assert (await task).answers == [{"label": "x"}]

    runs(body())


def test_a_task_that_is_cancelled_cancels_in_the_engine(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):
            task = asyncio.create_task(client.answer(wire.Answer("m", [{"text": "a"}])))
            asked = await far.get()
            task.cancel()
            assert await far.get() == wire.Cancel(asked.id)
            assert client.in_flight == 0

    runs(body())


def test_a_refusal_is_a_fault_with_its_code(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):
            task = asyncio.create_task(client.score(wire.Score("m", [1, 2])))
            asked = await far.get()
            await far.send(wire.Failed(asked.id, "queue_full", "no room", "come again", 2.5))
            with pytest.raises(EngineFault, match="no room") as caught:
                await task
            assert (caught.value.code, caught.value.fix, caught.value.retry_after_s) == (
                "queue_full",
                "come again",
                2.5,
            )

    runs(body())


def test_everything_in_flight_fails_at_once_when_the_engine_goes(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):

            async def text() -> None:
                async for _ in client.generate(wire.Generate("m", [1])):
                    pass

            waiting = [asyncio.create_task(text()) for _ in range(3)]
            waiting += [asyncio.create_task(client.answer(wire.Answer("m", []))), asyncio.create_task(client.ping())]
            for _ in range(5):
                await far.get()
            far.socket.close()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(one, EngineGone) for one in found)
            with pytest.raises(EngineGone):
                await client.answer(wire.Answer("m", []))

    runs(body())


def test_a_frame_that_is_cut_off_breaks_the_connection_and_not_the_client(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):
            task = asyncio.create_task(client.ping())
            await far.get()
            await asyncio.get_running_loop().sock_sendall(far.socket, b"\xff\xff\xff\xff")
            with pytest.raises(EngineGone, match="broke"):
                await task

    runs(body())


def test_a_new_engine_is_given_what_the_old_one_had(runs: Runs) -> None:
    async def body() -> None:
        client = EngineClient()
        async with joined(client) as (_, far):
            for call in (client.load("m", "/path"), client.load("n", "/other"), client.load_adapter("m", "a", "/a")):
                task = asyncio.create_task(call)
                asked = await far.get()
                await far.send(wire.Loaded(asked.id, asked.model, facts(folder=f"/store/{asked.model}")))
                await task
            assert set(client.models) == {"m", "n"} and ("m", "a") in client.adapters
        async with joined(client) as (_, far):
            assert not client.is_open, "no work before the models are there again"
            with pytest.raises(EngineGone):
                await client.answer(wire.Answer("m", []))
            task = asyncio.create_task(client.restore())
            seen = []
            for _ in range(3):
                asked = await far.get()
                seen.append((asked.kind, asked.model, asked.path))
                short = asked.model == "n"
                answer = wire.Failed(asked.id, "bad_request", "memory is short") if short else None
                await far.send(answer or wire.Loaded(asked.id, asked.model, facts(folder=f"/store/{asked.model}")))
            # Where the paths led to is asked for, whatever a link points at now.
            assert seen == [("Load", "m", "/store/m"), ("Load", "n", "/store/n"), ("LoadAdapter", "m", "/a")]
            assert [fault.what for fault in await task] == ["memory is short"]
            answering = asyncio.create_task(client.answer(wire.Answer("m", [])))
            await far.send(wire.Answered((await far.get()).id, []))
            await answering
            with pytest.raises(EngineGone):
                await client.answer(wire.Answer("n", []))
            assert not client.is_open and set(client.models) == {"m", "n"}

            # Tried again, it is there, but no longer the same model.
            task = asyncio.create_task(client.restore())
            await far.send(wire.Loaded((await far.get()).id, "n", facts(digest="another")))
            undo = await far.get()
            assert isinstance(undo, wire.Unload) and undo.model == "n"
            await far.send(wire.Done(undo.id))
            assert ["no longer what was served" in fault.what for fault in await task] == [True]
            await client.unload("n")
            assert client.is_open and set(client.models) == {"m"}

    runs(body())


def test_a_client_that_drains_takes_nothing_new_and_finishes_the_rest(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, far):
            task = asyncio.create_task(client.answer(wire.Answer("m", [{"text": "a"}])))
            asked = await far.get()
            client.drain()
            with pytest.raises(EngineFault) as caught:
                await client.score(wire.Score("m", [1, 2]))
            assert caught.value.code == "shutting_down"
            await far.send(wire.Answered(asked.id, [{"label": "x"}]))
            assert (await task).answers

    runs(body())


def test_rows_that_cannot_be_sent_are_the_callers_mistake(runs: Runs) -> None:
    async def body() -> None:
        async with joined() as (client, _):
            with pytest.raises(EngineFault) as caught:
                await client.answer(wire.Answer("m", [{"text": object()}]))
            assert caught.value.code == "bad_request" and client.in_flight == 0

    runs(body())


def test_an_engine_that_never_comes_up_is_given_up(runs: Runs) -> None:
    async def body() -> None:
        client = EngineClient()
        ours, theirs = socket.socketpair()
        with theirs, pytest.raises(EngineGone, match="in time"):
            await client.attach(ours, timeout_s=0.05)
        with pytest.raises(EngineGone):
            await client.ping()

    runs(body())
