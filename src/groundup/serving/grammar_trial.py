"""Reading a grammar on trial, in a process that may die of it.

llguidance bounds the work that a grammar asks for, but not all of it: a few thousand characters can keep it busy for
minutes, fill the memory or, nested deeply enough, exhaust the stack, which ends the process. So each new grammar is
first read here, against the 256 bytes as vocabulary, with limits of the operating system on memory and of the caller
on time. Only what passed is read by the process that serves.

This file is also the program of that process (see `child.py`). It needs neither torch nor a model.
"""

from __future__ import annotations

import threading
from typing import Any

from groundup.errors import UserError
from groundup.serving import process as processes
from groundup.serving.child import Child, Ended, answer_all

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


class Trial(Child):
    """The process in which grammars are tried."""

    def __init__(self, seconds: float = TRIAL_S) -> None:
        super().__init__(__name__, seconds=seconds, does="tries grammars")

    def read(self, grammar: str) -> None:
        """Try a grammar. Raises UserError for one that has mistakes, takes too long or asks for too much memory."""
        try:
            mistake = self.ask({"grammar": grammar})[0]["mistake"]
        except Ended as end:
            if end.late:
                raise UserError(f"the grammar was not read within {self.seconds:g} s", fix=SIMPLER) from end
            raise UserError(f"the grammar cannot be read within {MEMORY >> 20} MB of memory", fix=SIMPLER) from end
        if mistake:
            raise refused(mistake)


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
    """Answer each grammar with what is wrong with it, "" for nothing."""
    import llguidance

    tokenizer, limits = llguidance.LLTokenizer("byte"), llguidance.LLParserLimits(**LIMITS)

    def answer(head: dict[str, Any], _: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
        matcher = llguidance.LLMatcher(tokenizer, head["grammar"], log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return {"mistake": matcher.get_error() if matcher.is_error() else ""}, {}

    answer_all(answer)


if __name__ == "__main__":
    import llguidance  # noqa: F401 - loaded before memory is limited

    processes.limit_memory(STACK + MEMORY)  # where that is not known, time alone limits it
    in_deep_thread(_serve).join()
