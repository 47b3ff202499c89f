"""The engine process is started here, watched, and started again when it dies or hangs.

A process of its own, because what can go wrong in it takes the process along: the system kills the largest when
memory runs out, and a kernel that crashes or never returns cannot be caught. The server stays up meanwhile. What
was in flight fails at once with a clear error; what comes is told when to try again.

The watch is by progress: the loop that computes also answers pings, so an engine that hangs in a step is silent,
whatever its process looks like. Before such a one is killed it writes where each of its threads stands.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from groundup.serving import logs
from groundup.serving.client import EngineClient, EngineGone
from groundup.serving.fit import engine_threads

log = logging.getLogger(__name__)

Cause = Literal["crash", "hang"]
State = Literal["new", "starting", "up", "restarting", "draining", "stopped"]
BUFFER = 1 << 20
"""Bytes between the processes: what the engine may be ahead of a front that is busy."""
LIKELY_START_S = 5.0
"""How long a start usually takes, which is what clients are told to wait."""
SECOND_CHANCE_S = 5.0
"""How long an engine that was silent for too long is waited for once more."""
DUMP_S = 0.5
"""How long a hung engine has to write down where it stands."""


@dataclass(frozen=True)
class Watch:
    """How the engine process is started and watched."""

    threads: int | None = None
    """Compute threads; see `fit.engine_threads` unless given."""
    start_s: float = 180.0
    """How long a start may take, without models."""
    ping_every_s: float = 1.0
    silent_s: float = 120.0
    """An engine that has not answered for so long hangs: longer than any single step takes, a batch of translations
    by a large model too. Whoever asks /readyz hears of it sooner (`health.Health`)."""
    first_delay_s: float = 0.2
    """How long to wait before the first restart; doubled for each that follows closely."""
    longest_delay_s: float = 30.0
    settled_s: float = 60.0
    """An engine that lived so long is sound: the next restart begins with the first delay again."""
    log_format: logs.Format = "text"
    grace_s: float = 30.0
    """How long running work may take when the server is asked to stop."""


class Supervisor:
    """One engine process behind one client. All methods run in the client's event loop."""

    def __init__(
        self, client: EngineClient, watch: Watch | None = None, *, restarted: Callable[[Cause, str], None] | None = None
    ) -> None:
        """`restarted` is told why, each time the engine has to be started again."""
        self.client, self.watch = client, watch or Watch()
        self.state: State = "new"
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._restarted = restarted
        self._watching: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None

    @property
    def threads(self) -> int:
        """Compute threads of the engine."""
        return self.watch.threads or engine_threads()

    async def start(self) -> None:
        """Start the engine process and the watch over it; what the client had loaded before is loaded again.

        Raises EngineGone if it does not come up.
        """
        self.state = "starting"
        try:
            await self._spawn()
        except (EngineGone, OSError):
            self.state = "stopped"
            raise
        await self._restore()
        self._watching = asyncio.create_task(self._keep_up(), name="engine watch")

    async def drain(self, grace_s: float | None = None) -> bool:
        """Take no new work, let what runs finish, and end the engine; whether all of it was finished in time."""
        self.state = "draining"
        self.client.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + (self.watch.grace_s if grace_s is None else grace_s)
        while self.client.in_flight and loop.time() < end:
            await asyncio.sleep(0.02)
        is_finished = not self.client.in_flight
        await self.stop()
        return is_finished

    async def stop(self) -> None:
        """End the engine process now; what is in flight raises EngineGone."""
        self.state = "stopped"
        for task in (self._watching, self._restoring):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        with suppress(EngineGone):
            await self.client.stop()
        await self.client.detach("the server was shut down before this was finished")
        await self._reap(patience_s=5.0)

    # ------------------------------------------------------------------------------ one life

    async def _spawn(self) -> None:
        """Start a process and join the client to it. Raises EngineGone, and OSError if there is no starting any."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        try:
            with theirs:
                self.process = _launch(theirs, self.threads, self.watch.log_format)
        except OSError:
            ours.close()
            raise
        try:
            ready = await self.client.attach(ours, timeout_s=self.watch.start_s)
        except EngineGone:
            await self._reap(patience_s=0.5)
            raise
        log.info("engine process %d is up with %d compute threads", ready.pid, ready.threads)

    async def _keep_up(self) -> None:
        """Wait for the engine's end, and start it again, over and over."""
        delay = self.watch.first_delay_s
        loop = asyncio.get_running_loop()
        while True:
            born = loop.time()
            cause, why = await self._ending()
            self.state = "restarting"
            self.restarts += 1
            if loop.time() - born > self.watch.settled_s:
                delay = self.watch.first_delay_s
            log.error("%s; starting it again in %.1f s", why, delay)
            if self._restarted is not None:
                self._restarted(cause, why)
            self.client.retry_after_s = delay + LIKELY_START_S
            await asyncio.sleep(delay)
            delay = min(2 * delay, self.watch.longest_delay_s)
            try:
                await self._spawn()
            except (EngineGone, OSError) as error:
                log.error("the engine did not come up: %s", error)
                continue
            # Beside the watch, which goes on meanwhile: the engine may die of what it loads.
            self._restoring = asyncio.create_task(self._restore(), name="models being loaded again")

    async def _restore(self) -> None:
        """Load what the engine before had; what cannot be loaded now, because memory is short, is tried again."""
        delay = self.watch.ping_every_s
        with suppress(EngineGone):  # the watch sees that too
            while faults := await self.client.restore():
                delay = min(2 * delay, self.watch.longest_delay_s)
                for fault in faults:
                    log.error("a model could not be loaded again (next attempt in %.0f s): %s", delay, fault)
                await asyncio.sleep(delay)
            self.state = "up"

    async def _ending(self) -> tuple[Cause, str]:
        """Wait until the engine has ended, or end it because it hangs; what happened, also in words."""
        gone = asyncio.create_task(self.client.gone())
        try:
            while not gone.done():
                try:
                    if await self._is_silent():
                        return "hang", await self._end_hung()
                except EngineGone:
                    break
                await asyncio.wait([gone], timeout=self.watch.ping_every_s)
        finally:
            gone.cancel()
        await self._reap(patience_s=2.0)
        return "crash", f"the engine process {_ended(self.process)}"

    async def _is_silent(self) -> bool:
        """Whether the engine does not answer. Raises EngineGone."""
        # Asked twice: it may be this process that was held up, with the answer waiting behind the alarm.
        for patience_s in (self.watch.silent_s, min(self.watch.silent_s, SECOND_CHANCE_S)):
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.client.ping()
                    return False
        return True

    async def _end_hung(self) -> str:
        assert self.process is not None
        why = f"the engine process hung: no answer for {self.watch.silent_s:g} s"
        if hasattr(signal, "SIGUSR1"):
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(DUMP_S)
        self.process.kill()
        await self.client.detach(why)
        await self._reap(patience_s=2.0)
        return why

    async def _reap(self, *, patience_s: float) -> None:
        """Wait for the process's end, and see to it if it does not come."""
        if self.process is None:
            return
        try:
            await asyncio.to_thread(self.process.wait, patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)


def _launch(theirs: socket.socket, threads: int, log_format: logs.Format) -> subprocess.Popen[bytes]:
    """Start the engine process with its end of the socket pair."""
    # -P: what lies in the current folder is not imported in the place of a library.
    command = [sys.executable, "-P", "-m", "groundup.serving.worker"]
    command += ["--threads", str(threads), "--log-format", log_format]
    given = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if sys.platform == "win32":
        process = subprocess.Popen(command, env=given, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(theirs.share(process.pid))
        process.stdin.close()
        return process
    number = theirs.fileno()
    return subprocess.Popen([*command, "--socket", str(number)], env=given, stdin=subprocess.DEVNULL, pass_fds=[number])


def _ended(process: subprocess.Popen[bytes] | None) -> str:
    """How a process ended, in words."""
    code = process.returncode if process is not None else None
    if code is None or code >= 0:
        return f"ended by itself (exit code {code})"
    name = signal.Signals(-code).name if -code in {int(one) for one in signal.Signals} else str(-code)
    hint = ": often what the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
