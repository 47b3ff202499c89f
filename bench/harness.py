"""Fair comparisons: rivals take turns on an idle machine, and ratios come with intervals.

Every rival is a process of its own that builds its model once, then computes `n` steps whenever it is
told to and sleeps in between, so compiling and loading are outside the measurement and no two of them
ever compute at the same time. In every round each rival has one turn, in an order that rotates. A
ratio is taken within a round, where both sides saw the same machine, and the interval is Student's t
over the logarithms of the rounds' ratios.

The rules (idle cores, turns, at least five rounds, equal threads, data and optimizer, final losses
within 1 %) are those of every benchmark here; see README.md in this folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CACHE = ROOT / ".groundup" / "bench"

# Two-sided 95 % quantiles of Student's t for 1, 2, 3, … degrees of freedom, then the normal one.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


class BenchError(Exception):
    """The comparison cannot be made, or would not be fair."""


@dataclass(frozen=True)
class Rival:
    """One side of a comparison: its name in the table, the interpreter, and the worker's command line."""

    name: str
    python: Path
    script: str
    arguments: tuple[str, ...] = ()

    def is_installed(self) -> bool:
        return self.python.is_file()


@dataclass
class Turns:
    """What a rival did: one entry a round."""

    rates: list[float] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    start_s: float = 0.0
    peak_bytes: int = 0
    versions: str = ""

    @property
    def last_loss(self) -> float:
        """Mean training loss of the last round's steps."""
        return statistics.fmean(self.losses[-1])


class Worker:
    """A rival's process, spoken to in lines of JSON."""

    def __init__(self, rival: Rival, job: Path, threads: int) -> None:
        self.rival = rival
        self.log = job.parent / f"{rival.name.replace(' ', '-').replace('/', '-')}.log"
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        script = ROOT / "bench" / "workers" / rival.script
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(rival.python), str(script), str(job), *rival.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The worker's answer. Raises BenchError with the end of its log if it has died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that is an answer; libraries that print to standard output are passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                answer: dict[str, Any] = json.loads(line[1:])
                return answer
        raise self._died()

    def _died(self) -> BenchError:
        self.process.wait()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return BenchError(f"{self.rival.name} ended with code {self.process.returncode}:\n{tail}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def busy_share(seconds: float = 2.0) -> float:
    """The share of all cores' time that something used over the last `seconds`."""
    return psutil.cpu_percent(interval=seconds) / 100


def wait_until_idle(*, limit: float = 0.08, patience_s: float = 60.0) -> None:
    """Return once the cores are idle. Raises BenchError naming the busiest processes if they never are."""
    deadline = time.monotonic() + patience_s
    while (busy := busy_share()) > limit:
        if time.monotonic() > deadline:
            raise BenchError(
                f"the cores are {busy:.0%} busy, so a comparison would measure the neighbours: {_busiest()}.\n"
                "Wait, or pass --even-if-busy; the table will then say so."
            )


def _busiest() -> str:
    processes = list(psutil.process_iter(["name", "pid"]))
    for process in processes:
        process.cpu_percent()
    time.sleep(1.0)
    shares = []
    for process in processes:
        try:
            shares.append((process.cpu_percent(), process.info["name"], process.pid))
        except psutil.Error:
            continue
    return ", ".join(f"{name} ({pid}) {share:.0f} %" for share, name, pid in sorted(shares, reverse=True)[:3])


def take_turns(
    workers: Sequence[Worker],
    *,
    rounds: int,
    steps: int,
    rate: Callable[[dict[str, Any]], float],
    unit: str,
    before: Callable[[], None],
    after: Callable[[int], None] = lambda number: None,
) -> dict[str, Turns]:
    """Each worker's turns: `rounds` times `steps` steps, the first worker's place in a round moving on.

    `rate` turns a worker's answer into what is compared, in `unit`. `before` runs ahead of each turn (the check
    that the machine is idle), `after` ends a round.
    """
    found = {worker.rival.name: Turns() for worker in workers}
    for number in range(rounds):
        shift = number % len(workers)
        for worker in [*workers[shift:], *workers[:shift]]:
            before()
            answer = worker.ask("steps", count=steps)
            turns = found[worker.rival.name]
            turns.rates.append(rate(answer))
            turns.losses.append(answer["losses"])
            turns.peak_bytes = answer["peak_bytes"]
            shown = f"{turns.rates[-1]:>10,.0f} {unit}"
            say(f"round {number + 1}/{rounds}  {worker.rival.name:<28} {shown}  loss {turns.last_loss:.4f}")
        after(number)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the paired ratios ours/theirs, and its 95 % interval (Student's t on logs).

    With a single pair the interval is (0, inf): nothing is known of the spread.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(middle), 0.0, math.inf
    quantile = T_95[len(logs) - 2] if len(logs) - 2 < len(T_95) else 1.96
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def show_ratio(found: tuple[float, float, float]) -> str:
    """`1.27 [1.24, 1.30]`."""
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the header and all columns but the first aligned right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])


def machine() -> str:
    """One line: processor, cores, memory, system, Python."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        pairs = (line.partition(":") for line in info.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        flags = facts.get("flags", "").split()
        widest = [name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
        cpu = " with ".join([facts.get("model name", cpu), *widest[:1]])  # names of rented processors say little
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{cpu}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
    )


def gib(count: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{count / 2**30:.2f} GiB"


def say(text: str) -> None:
    """Progress, on standard error, so that standard output is the table alone."""
    print(text, file=sys.stderr, flush=True)
