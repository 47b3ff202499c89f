"""Reading a grammar on trial, in a process that may die of it.

llguidance bounds the work that a grammar asks for, but not all of it: a few thousand characters can keep it busy for
minutes, fill the memory or, nested deeply enough, exhaust the stack, which ends the process. So each new grammar is
first read here, against the 256 bytes as vocabulary, with limits of the operating system on memory and of the caller
on time. Only what passed is read by the process that serves.

This file is also the program of that process: lines of JSON in, lines of JSON out. It needs neither torch nor a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

from groundup.errors import GroundupError, UserError
from groundup.serving import process as processes

TRIAL_S = 3.0
"""Seconds that reading a grammar may take."""
MEMORY = 64 << 20
"""Bytes that it may take; a schema of 1,500 properties takes six million."""
STACK = 64 << 20
"""Bytes of the stack of a thread that reads grammars: nesting is limited by the length of a grammar alone."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""llguidance's own limits."""
SIMPLER = "use a smaller grammar or schema: fewer alternatives, fewer optional parts, smaller counts of repetition"


class Trial:
    """The process in which grammars are tried; started when it is first needed, and again when it had to be ended."""

    def __init__(self, seconds: float = TRIAL_S) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def read(self, grammar: str) -> None:
        """Try a grammar. Raises UserError for one that has mistakes, takes too long or asks for too much memory."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None, "it was started with pipes"
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.seconds, end)
        timer.start()
        try:
            process.stdin.write(json.dumps(grammar) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        if answer:
            message = json.loads(answer)
            if message:
                raise refused(message)
            return
        self.close()
        if late.is_set():
            raise UserError(f"the grammar was not read within {self.seconds:g} s", fix=SIMPLER)
        raise UserError(f"the grammar cannot be read within {MEMORY >> 20} MB of memory", fix=SIMPLER)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                # The allocator reserves 64 MB more for each thread otherwise, and memory is limited as it is reserved.
                env=os.environ | {"MALLOC_ARENA_MAX": "1"},
                start_new_session=True,  # Ctrl-C in the terminal is for the server
            )
            # What it needs to begin is not the grammar's time.
            assert self._process.stdout is not None, "it was started with pipes"
            if not self._process.stdout.readline():
                self.close()
                raise GroundupError("the process that tries grammars did not start", fix="see `groundup doctor`")
        assert self._process is not None, "it was just started"
        return self._process


def refused(message: str) -> UserError:
    """The error for what llguidance says against a grammar."""
    first = message.strip().splitlines()[0][:300] if message.strip() else "no reason given"
    return UserError(f"the grammar cannot be used: {first}", fix="correct it, or make it simpler")


def in_deep_thread(work: Any) -> threading.Thread:
    """A thread with a deep stack that runs `work`, started."""
    before = threading.stack_size(STACK)
    try:
        thread = threading.Thread(target=work, daemon=True, name="grammar")
        thread.start()
    finally:
        threading.stack_size(before)
    return thread


def _serve() -> None:
    """Answer each grammar with what is wrong with it, "" for nothing, until nobody asks any more."""
    import llguidance

    tokenizer, limits = llguidance.LLTokenizer("byte"), llguidance.LLParserLimits(**LIMITS)
    print(json.dumps(""), flush=True)
    for line in sys.stdin:
        matcher = llguidance.LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        print(json.dumps(matcher.get_error() if matcher.is_error() else ""), flush=True)
        del matcher  # before the next is read: memory is limited


if __name__ == "__main__":
    import llguidance  # noqa: F401 - loaded before memory is limited

    processes.limit_memory(STACK + MEMORY)  # where that is not known, time alone limits it
    in_deep_thread(_serve).join()
