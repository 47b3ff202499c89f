"""Real engine processes: killed, stopped, orphaned, drained. The server stays, and says what happened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from groundup.serving import wire
from groundup.serving.client import EngineClient, EngineFault, EngineGone
from groundup.serving.health import Health
from groundup.serving.models import Options
from groundup.serving.supervisor import Supervisor, Watch
from groundup.serving.wire import Finished

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
OPTIONS = Options(device="cpu", cache_bytes=8 << 20)
LONG = {"max_new_tokens": 250, "ignore_eos": True, "temperature": 0}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")


@asynccontextmanager
async def engine(**watch: Any) -> AsyncGenerator[tuple[EngineClient, Supervisor, list[str]]]:
    client = EngineClient()
    causes: list[str] = []
    supervisor = Supervisor(
        client, Watch(threads=1, first_delay_s=0.05, **watch), restarted=lambda cause, why: causes.append(cause)
    )
    await supervisor.start()
    try:
        yield client, supervisor, causes
    finally:
        await supervisor.stop()


async def text(client: EngineClient, ids: list[int], sampling: dict[str, Any]) -> list[int]:
    found: list[int] = []
    async for event in client.generate(wire.Generate("m", ids, sampling)):
        if not isinstance(event, Finished):
            found.append(event.id)
    return found


async def until(is_so: Callable[[], bool], seconds: float = 60.0) -> float:
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < seconds, "it did not come about in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - start


def test_an_engine_that_dies_or_hangs_comes_back_with_its_models(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with engine(silent_s=2.0, ping_every_s=0.1) as (client, supervisor, causes):
            await client.load("m", str(make_model()), OPTIONS)
            await client.load("classify", str(make_model("text_classification")), OPTIONS)
            before = await text(client, [5, 9], LONG)
            first = supervisor.process
            assert first is not None

            # A signal for the whole group, such as Ctrl-C, is the supervisor's to act on.
            first.send_signal(signal.SIGTERM)
            first.send_signal(signal.SIGINT)
            assert await text(client, [5, 9], LONG) == before

            # It is the server that is held up, with the engine's answer waiting: nothing hangs.
            first.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.3)
            first.send_signal(signal.SIGCONT)
            time.sleep(2.5)  # longer than the engine may be silent
            await asyncio.sleep(0.5)
            assert (supervisor.restarts, supervisor.state) == (0, "up")

            # Killed in the middle of several texts.
            running = [asyncio.create_task(text(client, [5, i], LONG | {"max_new_tokens": 240})) for i in range(40)]
            await asyncio.sleep(0.05)
            start = time.monotonic()
            first.kill()
            found = await asyncio.gather(*running, return_exceptions=True)
            assert time.monotonic() - start < 2, "those in flight hear of it at once"
            gone = [one for one in found if isinstance(one, EngineGone)]
            assert gone and all("ended" in fault.what and fault.fix for fault in gone)
            assert len(gone) + sum(isinstance(one, list) for one in found) == 40
            with suppress(EngineFault):  # while it is away, a clear refusal
                await text(client, [5], LONG)
            await until(lambda: client.is_open)
            assert supervisor.process is not None and supervisor.process.pid != first.pid
            assert (supervisor.restarts, causes) == (1, ["crash"])
            assert await text(client, [5, 9], LONG) == before, "the same model, the same text"
            answered = await client.answer(wire.Answer("classify", [{"text": "the red train"}]))
            assert "label" in answered.answers[0]

            # Stopped, it is silent, though its process is there.
            second = supervisor.process
            second.send_signal(signal.SIGSTOP)
            with pytest.raises(EngineGone, match="hung"):
                await text(client, [5], LONG)
            await until(lambda: client.is_open)
            assert causes == ["crash", "hang"] and second.poll() is not None
            assert await text(client, [5, 9], LONG) == before

    runs(body())


def test_draining_finishes_what_runs_and_refuses_what_comes(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with engine() as (client, supervisor, _):
            await client.load("m", str(make_model()), OPTIONS)
            running = [asyncio.create_task(text(client, [5, i], LONG)) for i in range(8)]
            await asyncio.sleep(0.05)
            ending = asyncio.create_task(supervisor.drain(30))
            await asyncio.sleep(0)
            with pytest.raises(EngineFault) as caught:
                await text(client, [5], LONG)
            assert caught.value.code == "shutting_down"
            assert await ending is True
            assert all(len(ids) == 250 for ids in await asyncio.gather(*running))
            assert supervisor.process is not None and supervisor.process.poll() == 0

    runs(body())


def test_draining_without_grace_tells_those_it_cuts_off(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with engine() as (client, supervisor, _):
            await client.load("m", str(make_model()), OPTIONS)
            running = [asyncio.create_task(text(client, [5, i], LONG)) for i in range(30)]
            await asyncio.sleep(0.05)
            assert await supervisor.drain(0.0) is False
            found = await asyncio.gather(*running, return_exceptions=True)
            assert any(isinstance(one, EngineGone) and "shut down" in one.what for one in found)
            assert supervisor.process is not None and supervisor.process.poll() is not None

    runs(body())


def test_readiness_is_progress(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with engine(silent_s=60.0) as (client, supervisor, _):
            health = Health(client, every_s=0.1, fresh_s=1.0)
            assert health.is_ready, "a server without models has nothing to wait for"
            await client.load("m", str(make_model()), OPTIONS)
            await client.load("embed", str(make_model("embedding")), OPTIONS)
            await client.load("tag", str(make_model("token_tagging")), OPTIONS)
            assert not health.is_ready and sorted(health.silent()) == ["embed", "m", "tag"]
            task = asyncio.create_task(health.run())
            await until(lambda: health.is_ready, 10)
            await asyncio.sleep(1.5)
            assert health.is_ready, "probes keep it fresh"
            assert supervisor.process is not None
            supervisor.process.send_signal(signal.SIGSTOP)
            await until(lambda: not health.is_ready, 5)
            supervisor.process.send_signal(signal.SIGCONT)
            await until(lambda: health.is_ready, 10)
            client.drain()
            assert not health.is_ready
            task.cancel()

    runs(body())


def test_a_burst_does_not_starve_the_probe(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with engine() as (client, _, _):
            await client.load("m", str(make_model()), Options(device="cpu", cache_bytes=8 << 20, max_sequences=2))
            health = Health(client, every_s=0.05, fresh_s=5.0)
            task = asyncio.create_task(health.run())
            burst = [asyncio.create_task(text(client, [5, i], LONG | {"max_new_tokens": 100})) for i in range(24)]
            await until(lambda: health.is_ready, 10)
            while not all(one.done() for one in burst):
                assert health.is_ready
                await asyncio.sleep(0.05)
            await asyncio.gather(*burst)
            task.cancel()

    runs(body())


def test_an_engine_that_cannot_start_is_an_error(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        supervisor = Supervisor(EngineClient(), Watch(threads=1))
        with pytest.raises(EngineGone):
            await supervisor.start()
        assert supervisor.state == "stopped"
        await supervisor.stop()

    runs(body())


SERVER = """
import asyncio, sys
from groundup.serving.client import EngineClient
from groundup.serving.supervisor import Supervisor, Watch

async def main():
    supervisor = Supervisor(EngineClient(), Watch(threads=1))
    await supervisor.start()
    print(supervisor.process.pid, "torch" in sys.modules, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_server_that_is_killed_leaves_no_engine_behind_and_never_had_torch() -> None:
    front = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    number, has_torch = front.stdout.readline().split()
    assert has_torch == "False", "the front does without torch"
    back = psutil.Process(int(number))
    os.kill(front.pid, signal.SIGKILL)
    front.wait(10)
    front.stdout.close()
    gone, _ = psutil.wait_procs([back], timeout=15)
    assert gone, "the engine process outlived the server"


STARTER = """
import subprocess, sys, time
code = "import time; from groundup.serving import process; process.settle(); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_an_engine_that_hangs_does_not_outlive_its_server_either() -> None:
    """It sleeps in the middle of a step: nobody in it looks at the socket."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    back = psutil.Process(int(starter.stdout.readline()))
    back.terminate()
    time.sleep(0.3)
    assert back.is_running() and back.status() != psutil.STATUS_ZOMBIE
    starter.kill()
    starter.wait(10)
    starter.stdout.close()
    gone, _ = psutil.wait_procs([back], timeout=15)
    assert gone
