"""What is computed next: the plan of a serving engine, step by step.

Every step computes some tokens of some sequences, in one call of the model. A sequence has tokens that are known
(its prompt and what was written so far) and of these some that the cache holds; the others remain. A sequence that
is being written has one that remains, its last; a new prompt has all. So a plan is nothing but a list of chunks:

1. every sequence that is being written gets its one token, oldest first;
2. a step's budget of tokens goes to prompts that were begun, and what is left of it to the next that wait.

Long prompts are so read in pieces beside the writing of others, and hold nobody up for longer than a step (chunked
prefill, Agrawal et al. 2023). Who is next among those that wait: the smallest priority; then the key that was
served least (Sheng et al. 2024, "Fairness in Serving Large Language Models": tokens are counted by key, and a key
that comes back starts level with the least served); then who came first.

Where a sequence that grows finds no room in the cache, the last in rank gives its row up, and is computed again
when there is room: its tokens are known, so nothing is lost but time. The first in rank always goes on, so
everything ends.

Kwon et al. 2023 (vLLM); Yu et al. 2022 (Orca).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from groundup.runtimes._contract import Capabilities
from groundup.serving.blocks import CacheManager
from groundup.serving.requests import Sequence

MOST_KEYS = 4096
"""Keys whose tokens are remembered while they have nothing to do."""


@dataclass(frozen=True)
class Limits:
    """What an engine takes on."""

    max_sequences: int = 64
    """Texts that are made at the same time at most."""
    step_tokens: int = 256
    """Tokens of prompts that are computed in one step at most: what a long prompt may hold up the others."""
    max_waiting: int = 256
    """Requests that may wait."""
    max_waiting_tokens: int = 262_144
    """Tokens of all that wait together."""


class Chunk(NamedTuple):
    """Tokens of a sequence to compute: those it has from `start` to `stop`."""

    sequence: Sequence
    start: int
    stop: int


class Scheduler:
    """Sequences that wait, sequences that run, and what comes next.

    It plans by what a runtime can do (`capabilities`), and never looks into its memory.
    """

    def __init__(self, cache: CacheManager, capabilities: Capabilities, limits: Limits) -> None:
        self.cache, self.capabilities, self.limits = cache, capabilities, limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.served: dict[str, int] = {}
        """Tokens computed by key, counted from where the key began."""
        self.preemptions = 0
        self._reads_prompt = False

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self._level(sequence.request.key)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its row is free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.cache.close(sequence)
        else:
            self.waiting.remove(sequence)

    def plan(self, now: float) -> list[Chunk]:
        """What the next step computes; empty if there is nothing to do, or nothing can be done yet."""
        if not self.capabilities.mixes_phases:
            return self._plan_one_phase(now)
        before = self.preemptions
        writing = self._next_tokens()
        reading = self._prompts(self.limits.step_tokens)
        if self.preemptions == before:  # who was just sent back would otherwise be the next to come
            room = self.limits.step_tokens - sum(chunk.stop - chunk.start for chunk in reading)
            reading += self._admissions(room, now)
        return self._settled(writing + reading)

    def _next_tokens(self) -> list[Chunk]:
        """One token of every sequence that is being written, if need be at the cost of those last in rank."""
        chunks = []
        for sequence in sorted(self.running, key=_rank):
            if sequence.row is not None and sequence.remaining == 1 and self._has_room(sequence):
                chunks.append(Chunk(sequence, sequence.computed, sequence.computed + 1))
        return chunks

    def _has_room(self, sequence: Sequence) -> bool:
        """Room for the next token; False if the sequence had to give way itself."""
        while not self.cache.grow(sequence, len(sequence.ids)):
            last = max(self.running, key=_rank)
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.close(sequence)
        self.waiting.append(sequence)
        self.preemptions += 1

    def _prompts(self, room: int) -> list[Chunk]:
        """Pieces of the prompts that were begun, first in rank first."""
        chunks = []
        for sequence in sorted(self.running, key=_rank):
            if sequence.remaining > 1 and room > 0:
                stop = min(sequence.computed + room, len(sequence.ids))
                chunks.append(Chunk(sequence, sequence.computed, stop))
                room -= stop - sequence.computed
        return chunks

    def _admissions(self, room: int, now: float) -> list[Chunk]:
        """Beginnings of prompts that waited, as long as there is room for them everywhere."""
        chunks = []
        while room > 0 and len(self.running) < self.limits.max_sequences:
            sequence = next(filter(self._is_ready, sorted(self.waiting, key=self._turn)), None)
            # Nobody overtakes one that is too long for now: it would wait for ever.
            if sequence is None or not self.cache.open(sequence):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if sequence.admitted is None:
                sequence.admitted = now
            stop = min(sequence.computed + room, len(sequence.ids))
            chunks.append(Chunk(sequence, sequence.computed, stop))
            self._count(sequence, len(sequence.ids) - sequence.computed)
            room -= stop - sequence.computed
        return chunks

    def _plan_one_phase(self, now: float) -> list[Chunk]:
        """The same for a runtime that reads a prompt alone and whole: prompts and next tokens take turns."""
        prompts = [] if self._reads_prompt and self.running else self._admissions(1, now)
        self._reads_prompt = bool(prompts)
        if prompts:
            return self._settled([Chunk(first.sequence, first.start, len(first.sequence.ids)) for first in prompts[:1]])
        return self._settled(self._next_tokens())

    def _is_ready(self, sequence: Sequence) -> bool:
        """Whether it waits for nothing but its turn: neither for its grammar nor for a beginning under way."""
        return sequence.pending is None and not self.cache.is_coming(sequence)

    def _turn(self, sequence: Sequence) -> tuple[int, int, int]:
        request = sequence.request
        return request.priority, self.served[request.key], sequence.number

    def _settled(self, chunks: list[Chunk]) -> list[Chunk]:
        """The plan, rows moved together, and the tokens that are being written counted for their keys."""
        self.cache.cache.compact()
        for chunk in chunks:
            if chunk.sequence.first_token is not None and chunk.stop == len(chunk.sequence.ids):
                self._count(chunk.sequence, 1)
        return chunks

    def _count(self, sequence: Sequence, tokens: int) -> None:
        self.served[sequence.request.key] += tokens

    def _level(self, key: str) -> None:
        """Let a key that has nothing to do begin level with the least served of those that have."""
        active = {sequence.request.key for sequence in (*self.waiting, *self.running)}
        if key not in active:
            least = min((self.served[other] for other in active), default=0)
            self.served[key] = max(self.served.get(key, 0), least)
        if len(self.served) > MOST_KEYS:
            self.served = {other: count for other, count in self.served.items() if other in active or other == key}


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
