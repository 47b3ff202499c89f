"""HumanEval: small programs written by a model and tried against their tests (Chen et al. 2021).

Running what a model wrote is running a stranger's program. It happens only where the user said so in as
many words, in a child process without network, with little time and memory, in a folder of its own that
is thrown away, and with a guard against the usual accidents: deleting, overwriting, starting programs.
The guard is no prison for a program that means harm; for such, use a machine that you can lose.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groundup.errors import DataError, StageFailed, UserError
from groundup.evaluation.metrics.additive import Additive, mean
from groundup.evaluation.suites.reading import json_lines

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a model's function ends."""
MAX_NEW_TOKENS = 1024
FLAG = "--run-generated-code"
CHILD = Path(__file__).with_name("_child.py")
SECONDS = 5.0
MEMORY_BYTES = 1 << 30
NO_GUARD = 97
"""What the child exits with if it could not be cut off; never what a program under test can choose."""
Outcome = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True)
class Task:
    """A function to write: its beginning, and the program that tries it."""

    id: str
    prompt: str
    test: str
    entry_point: str

    def program(self, completion: str) -> str:
        """What is run: the function as written, its tests, and the call that raises if one fails."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


def humaneval(path: Path) -> list[Task]:
    """The tasks of a file: lines of JSON with task_id, prompt, test and entry_point."""
    made = []
    for number, row in json_lines(path):
        missing = [key for key in ("task_id", "prompt", "test", "entry_point") if not isinstance(row.get(key), str)]
        if missing:
            raise DataError(f"no {missing[0]!r} in a task of HumanEval", where=f"{path}:{number}")
        made.append(Task(row["task_id"], row["prompt"], row["test"], row["entry_point"]))
    return made


def ended(text: str) -> str:
    """A model's text up to where its function ends."""
    return text[: min((place for place in map(text.find, STOPS) if place >= 0), default=len(text))]


def run(program: str, *, allowed: bool, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """How a program ended: passed if it ran to its end within its limits.

    Raises UserError unless `allowed`, and StageFailed where a child cannot be cut off from the network.
    """
    if not allowed:
        fix = f"add {FLAG} if you accept that programs written by the model run on this machine"
        raise UserError("scoring programs means running code that a model wrote", fix=fix)
    if sys.platform != "linux":
        raise UserError("generated code is run on Linux only, where it can be cut off", fix="use a Linux machine")
    with tempfile.TemporaryDirectory(prefix="groundup-code-") as folder:
        place = Path(folder) / "program.py"
        place.write_text(program, encoding="utf-8")
        command = [sys.executable, "-I", str(CHILD), str(place), str(math.ceil(seconds)), str(memory_bytes)]
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = child.wait(seconds + 1)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            _end(child)
    if code == NO_GUARD:
        fix = "allow user namespaces, or run in a container that allows them"
        raise StageFailed("this machine does not let a child process be cut off from the network", fix=fix)
    return "timed out" if code == -signal.SIGXCPU else "passed" if code == 0 else "failed"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def pass_rate(outcomes: Sequence[Outcome]) -> Additive:
    """The share of tasks whose one program passed: pass@1 of greedy decoding."""
    return mean("pass_at_1", [outcome == "passed" for outcome in outcomes])


def pass_at_k(passed: int, drawn: int, k: int) -> float:
    """The chance that one of k programs passes, told from more that were drawn (Chen et al. 2021, eq. 1)."""
    if drawn - passed < k:
        return 1.0
    return 1.0 - math.prod((drawn - passed - i) / (drawn - i) for i in range(k))
