"""Load and faults: half an hour at twice what the server can do, with clients that leave, requests that are wrong, and
an engine that is killed five times.

    .venv/bin/python bench/soak.py                       30 minutes; writes bench/results/soak.md
    .venv/bin/python bench/soak.py --minutes 3           what `make test` runs

First some clients ask as fast as they are answered: that is the capacity. Then requests arrive at random at twice
that rate, whether or not the server keeps up. What must hold: no 5xx but 503 around a kill; no answer that is cut
off or missing; the time to the first token bounded by what may wait; memory that stays.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil
import soak_models
import soak_page
from harness import RESULTS, BenchError, say
from serve_client import Connection, Reply, written
from serve_servers import Server, groundup_server
from soak_traffic import KINDS, Ask, Kind, Site, judged

MAX_RUNNING, MAX_WAITING = 16, 32
KILLS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""When the engine is killed, as shares of the time. The second half is left alone, so that memory can be watched."""
CALIBRATING_CLIENTS = 24
TIMES_CAPACITY = 2.0
MARGIN_S = 1.0
"""How much before a kill, and after the engine is back, a 503 still belongs to it: what was sent in between."""
SETTLING_MINUTES = 5.0
"""After a start, memory may grow for so long: caches fill."""
MOST_GROWTH = 1.0
"""MB a minute that memory may grow by after that."""
SLACK = 1.5
"""By how much the 99th percentile may exceed what a full queue takes on average."""
PATIENCE_S = 120.0
KEPT_FAULTS = 50


@dataclass
class Kill:
    """One death of the engine."""

    pid: int
    at_s: float
    back_s: float = float("inf")
    """When the server was ready again."""


@dataclass
class Tally:
    """What came of all requests. Times are seconds since the beginning."""

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    excused: list[tuple[float, float, str]] = field(default_factory=list)
    """Began, ended, what: right only around a kill."""
    texts: list[tuple[float, int]] = field(default_factory=list)
    """When texts were finished, and how many."""
    memory: list[tuple[float, int, int, float, float]] = field(default_factory=list)
    """When, the process ids of front and engine (0: there is none), their MB."""
    late_s: list[float] = field(default_factory=list)
    """How late this client itself was woken, which is in every time that it takes."""
    kills: list[Kill] = field(default_factory=list)


class Soak:
    """One run against one server."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self.server, self.seconds = server, options.minutes * 60
        self.draw = random.Random(options.seed)
        self.site = Site(server.url, server.key or "", soak_models.texts())
        self.tally, self.began = Tally(), time.monotonic()
        self.running: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    async def capacity(self, seconds: float) -> float:
        """Requests a second that are answered when clients wait for their answers."""
        good = [kind for kind in KINDS if kind.is_good]
        end, done = time.monotonic() + seconds, 0

        async def client() -> None:
            nonlocal done
            while time.monotonic() < end:
                (kind,) = self.draw.choices(good, [one.weight for one in good])
                reply = await self._asked(kind.make(self.site, self.draw))
                done += reply.status == 200

        await asyncio.gather(*(client() for _ in range(CALIBRATING_CLIENTS)))
        if not done:
            raise self.server.failed("the server answered nothing while its capacity was measured")
        return done / seconds

    async def run(self, rate: float) -> None:
        """Send good requests at this rate, and the others beside them, for the whole time."""
        self.began = time.monotonic()
        beside = [asyncio.create_task(one) for one in (self._kill(), self._watch(), self._notice_lateness())]
        weight = sum(kind.weight for kind in KINDS) / sum(kind.weight for kind in KINDS if kind.is_good)
        due = 0.0
        while due < self.seconds:
            due += self.draw.expovariate(rate * weight)
            if due > self.now:
                await asyncio.sleep(due - self.now)
            (kind,) = self.draw.choices(KINDS, [one.weight for one in KINDS])
            task = asyncio.create_task(self._one(kind))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        await asyncio.gather(*self.running)
        for task in beside:
            task.cancel()
        for found in await asyncio.gather(*beside, return_exceptions=True):
            if isinstance(found, Exception):
                raise found

    async def _asked(self, ask: Ask) -> Reply:
        try:
            connection = await Connection.open(self.site.url)
        except OSError as error:
            return Reply(time.perf_counter(), why=f"no connection: {error}")
        reply = await connection.ask(
            ask.request, leave_after=ask.leave_after, leave_after_s=ask.leave_after_s, patience_s=PATIENCE_S
        )
        connection.close()
        return reply

    async def _one(self, kind: Kind) -> None:
        tally, began = self.tally, self.now
        ask = kind.make(self.site, self.draw)
        tally.sent[kind.name] += 1
        verdict = judged(kind, ask, await self._asked(ask))
        tally.statuses[kind.name, verdict.status] += 1
        if verdict.first_s is not None:
            tally.first_s.append(verdict.first_s)
        if verdict.fault:
            tally.faults.append(f"at {began:.1f} s, {kind.name}: {verdict.status}, {verdict.fault}")
        elif verdict.needs_kill:
            tally.excused.append((began, self.now, f"{kind.name}: {verdict.status}"))
        elif verdict.status == "200":
            tally.texts.append((self.now, ask.generated))

    # ------------------------------------------------------------------------------ beside the traffic

    async def _kill(self) -> None:
        """Kill the engine at its times, each time once it is back from the last."""
        for share in KILLS:
            await asyncio.sleep(max(0.0, share * self.seconds - self.now))
            engine = self._engine()
            if engine is None:
                raise self.server.failed("there is no engine to kill")
            kill = Kill(engine.pid, self.now)
            self.tally.kills.append(kill)
            engine.kill()
            say(f"{self.now:6.1f} s  killed the engine, process {kill.pid}")
            while not await self._is_back(kill.pid):
                await asyncio.sleep(0.2)
            kill.back_s = self.now
            say(f"{self.now:6.1f} s  ready again after {kill.back_s - kill.at_s:.1f} s")

    async def _is_back(self, dead: int) -> bool:
        engine = self._engine()
        if engine is None or engine.pid == dead:
            return False
        return (await self._asked(Ask(written(self.site.url, "/readyz")))).status == 200

    async def _watch(self) -> None:
        """Note the memory of both processes, and say now and then how it goes."""
        front, said = psutil.Process(self.server.process.pid), 0.0
        while True:
            engine = self._engine()
            megabytes = [0.0, 0.0]
            for place, process in enumerate((front, engine)):
                with contextlib.suppress(psutil.Error):
                    megabytes[place] = process.memory_info().rss / 1e6 if process is not None else 0.0
            self.tally.memory.append((self.now, front.pid, engine.pid if engine else 0, *megabytes))
            if self.now - said >= 60:
                said, sent = self.now, sum(self.tally.sent.values())
                shown = f"{megabytes[0]:.0f} + {megabytes[1]:.0f} MB, {len(self.running)} in flight"
                say(f"{self.now:6.1f} s  {sent:,} requests, {len(self.tally.faults)} faults, {shown}")
            await asyncio.sleep(min(10.0, self.seconds / 60))

    async def _notice_lateness(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.1
            await asyncio.sleep(0.1)
            self.tally.late_s.append(loop.time() - due)

    def _engine(self) -> psutil.Process | None:
        for process in self.server.processes():
            with contextlib.suppress(psutil.Error):
                if "groundup.serving.worker" in process.cmdline():
                    return process
        return None


# ---------------------------------------------------------------------------------------- what must hold


def growth(points: list[tuple[float, float]]) -> float | None:
    """Megabytes a minute by least squares, of (seconds, megabytes); None where there are too few to tell."""
    if len(points) < 10:
        return None
    times, sizes = np.array(points).T
    return float(np.polyfit(times / 60, sizes, 1)[0])


def growths(tally: Tally) -> dict[str, float | None]:
    """How both processes' memory grew once they had settled; of the engine, in its last life."""
    memory = tally.memory
    last = memory[-1][2]
    born = next(when for when, _, engine, *_ in memory if engine == last)
    settled = SETTLING_MINUTES * 60
    return {
        "front": growth([(when, front) for when, _, _, front, _ in memory if when > settled]),
        "engine": growth([(at, size) for at, _, pid, _, size in memory if pid == last and at > born + settled]),
    }


def unexcused(tally: Tally) -> list[str]:
    """Failures that no kill explains."""
    spans = [(kill.at_s - MARGIN_S, kill.back_s + MARGIN_S) for kill in tally.kills]
    return [
        f"at {began:.1f} to {ended:.1f} s, {what}, and nothing was killed"
        for began, ended, what in tally.excused
        if not any(began < back and ended > at for at, back in spans)
    ]


def first_bound_s(tally: Tally, seconds: float) -> float:
    """How long a full queue takes: what may run and wait, over the texts finished a second while the engine was up.

    Twice this client's own lateness comes on top: when it sends, and when it reads.
    """
    down = sum(min(kill.back_s, seconds) - kill.at_s for kill in tally.kills)
    rate = sum(count for _, count in tally.texts) / max(1.0, seconds - down)
    late_s = float(np.quantile(tally.late_s or [0.0], 0.99))
    return SLACK * (MAX_RUNNING + MAX_WAITING) / rate + 2 * late_s if rate else float("inf")


def broken(tally: Tally, seconds: float) -> list[str]:
    """Every rule that was broken."""
    found = []
    if len(tally.kills) != len(KILLS) or any(kill.back_s == float("inf") for kill in tally.kills):
        found.append(f"{len(tally.kills)} engines were killed and {len(KILLS)} should have been, and come back")
    p99, bound = float(np.quantile(tally.first_s or [float("inf")], 0.99)), first_bound_s(tally, seconds)
    if not p99 <= bound:
        found.append(f"the 99th percentile of the time to the first token is {p99:.1f} s, over {bound:.1f} s")
    if not any(status == "429" for _, status in tally.statuses):
        found.append("nothing was refused: that was no overload")
    for name, slope in growths(tally).items():
        if slope is not None and slope > MOST_GROWTH:
            found.append(f"the memory of the {name} grew by {slope:.2f} MB a minute")
    return [*found, *unexcused(tally), *tally.faults]


# ---------------------------------------------------------------------------------------- the whole


async def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start, measure the capacity, load, stop; everything as plain data."""
    models = [f"--model={name}={path}" for name, path in soak_models.models().items()]
    limits = ["--max-sequences", str(MAX_RUNNING), "--max-queue", str(MAX_WAITING), "--cache", "64MiB"]
    # This one address stands for everybody's.
    limits += ["--set", "security.connections.per_address=4096"]
    server = await groundup_server([*models, *limits], folder, options.threads)
    try:
        run = Soak(server, options)
        capacity = await run.capacity(min(30.0, options.minutes * 5))
        rate = capacity * TIMES_CAPACITY
        say(f"capacity: {capacity:.1f} requests a second; sending {rate:.1f}, and the wrong ones beside them")
        began = datetime.datetime.now().astimezone()
        await run.run(rate)
        ended = datetime.datetime.now().astimezone()
    finally:
        code = await asyncio.to_thread(server.stop)
    found = [] if code == 0 else [f"the server ended with code {code}"]
    if "Traceback" in (log := server.log.read_text(errors="replace")):
        found.append(f"a traceback in the server's log: {log.partition('Traceback')[2][:500]}")
    return _described(run, options, capacity, (began, ended), [*found, *broken(run.tally, run.seconds)])


def _described(
    run: Soak, options: argparse.Namespace, capacity: float, when: tuple[Any, Any], found: list[str]
) -> dict[str, Any]:
    tally = run.tally
    first = tally.first_s or [0.0]
    quantiles = {"p50": float(np.median(first)), "p99": float(np.quantile(first, 0.99))}
    return {
        "command": " ".join(["bench/soak.py", *sys.argv[1:]]),
        "machine": harness.machine(),
        "threads": options.threads,
        "began": when[0].isoformat(timespec="seconds"),
        "ended": when[1].isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "capacity": capacity,
        "sent": sum(tally.sent.values()),
        "kinds": {
            kind.name: {status: n for (name, status), n in sorted(tally.statuses.items()) if name == kind.name}
            for kind in KINDS
        },
        "first_s": {"count": len(tally.first_s)} | quantiles,
        "first_bound_s": first_bound_s(tally, run.seconds),
        "late_p99_s": float(np.quantile(tally.late_s or [0.0], 0.99)),
        "excused": len(tally.excused),
        "kills": [{"pid": kill.pid, "at_s": kill.at_s, "back_s": kill.back_s} for kill in tally.kills],
        "memory": _by_minute(tally),
        "growth": growths(tally),
        "broken": found[:KEPT_FAULTS],
        "broken_count": len(found),
    }


def _by_minute(tally: Tally) -> list[dict[str, float]]:
    """The first look of each minute."""
    found: dict[int, dict[str, float]] = {}
    for at, _, pid, front, engine in tally.memory:
        told = {"minute": int(at // 60), "front_mb": front, "engine_mb": engine, "engine_pid": pid}
        found.setdefault(int(at // 60), told)
    return [*found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the engine")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--no-save", dest="save", action="store_false", help="print the page only")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="groundup-soak-") as folder:
            found = asyncio.run(soak(options, Path(folder)))
    except BenchError as error:
        sys.exit(f"error: {error}")
    page = soak_page.page(found)
    if options.save:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "soak.md").write_text(page)
    print(page)
    if found["broken"]:
        lines = "\n".join(found["broken"])
        sys.exit(f"error: {found['broken_count']} things went wrong:\n{lines}")


if __name__ == "__main__":
    main()
