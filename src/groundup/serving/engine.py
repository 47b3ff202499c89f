"""The engine of a generating model: requests in, tokens out, many texts at a time (continuous batching).

`add` takes a request or refuses it, `step` computes a few tokens of some requests and says what came of it, and
between two steps anything can be cancelled. There is no thread and no I/O here: who drives the engine calls `step`
as long as it `has_work`. Requests that have mistakes, whose grammar fails or whose logits are no numbers fail alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from groundup.errors import GroundupError, UserError, nearest
from groundup.runtimes._contract import ServingRuntime
from groundup.serving.blocks import BLOCK, CacheManager, root_digest
from groundup.serving.grammar import Grammars
from groundup.serving.requests import Event, Failed, Finished, Reason, Request, Scored, Sequence, Token, waiting_tokens
from groundup.serving.sampler import Choice, choose_all
from groundup.serving.scheduler import Chunk, Limits, Scheduler

GRAMMAR_WAIT_S = 0.01
"""How long a step that has nothing to compute waits for a grammar."""
RATE_WEIGHT = 0.1
"""What one step counts in the running mean of tokens a second."""
LONGEST_RETRY_S = 60.0

_log = logging.getLogger(__name__)


class QueueFull(UserError):
    """No more requests are taken for now: come again after `retry_after_s` seconds."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(what, fix=f"send the request again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Engine:
    """A generating model at work.

    `cache_bytes` is the memory for keys and values; `digest` is the model's, which cached beginnings are bound to.
    Without `grammars`, requests with a grammar are refused. Without `shares_across_keys`, a beginning that one key
    computed is not reused for another: how fast an answer comes then tells nothing about what others ask. Raises
    UserError for a model that does not continue texts, and for a cache that is too small for any.
    """

    def __init__(
        self,
        runtime: ServingRuntime,
        *,
        cache_bytes: int,
        limits: Limits | None = None,
        digest: str = "",
        grammars: Grammars | None = None,
        shares_prefixes: bool = True,
        shares_across_keys: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not runtime.causal:
            raise UserError("this model does not continue texts", fix="serve it for what it was trained for")
        self.runtime, self.digest, self.grammars, self.clock = runtime, digest, grammars, clock
        self.limits = limits or Limits()
        self.shares_across_keys = shares_across_keys
        most_tokens = cache_bytes // runtime.token_bytes
        rows = runtime.new_rows(block=BLOCK, most_tokens=most_tokens)
        shares = shares_prefixes and runtime.capabilities.shares_prefixes
        self.cache = CacheManager(rows, blocks=most_tokens // BLOCK, shares=shares)
        if not self.cache.fits(1, 1):
            least = rows.row_length(1) * runtime.token_bytes
            fix = f"give it {least} at least; {runtime.token_bytes} bytes hold one token"
            raise UserError(f"a cache of {cache_bytes} bytes holds no text", fix=fix)
        self.scheduler = Scheduler(self.cache, runtime.capabilities, self.limits)
        self.adapters: dict[str, str] = {}
        """Digests of loaded adapters by name."""
        self.steps = 0
        self._sequences: dict[int, Sequence] = {}
        self._events: list[Event] = []
        self._arrivals = 0
        self._rate = 0.0
        self._prompt_tokens = self._generated_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do, or to say."""
        return bool(self._sequences or self._events)

    def add(self, request: Request) -> None:
        """Take a request on. Raises UserError for one that cannot be served, and QueueFull if too many wait."""
        self._check(request)
        owner = "" if self.shares_across_keys else request.key
        root = root_digest(self.digest, self.adapters[request.adapter] if request.adapter else "", owner)
        now = self.clock()
        sequence = Sequence(request, root=root, number=self._arrivals, now=now)
        if not sequence.is_judged and request.sampling.max_new_tokens == 0:
            self._events.append(Finished(request.id, "length"))
            return
        self._require_place(sequence)
        if request.grammar is not None and self.grammars is not None:
            sequence.pending = self.grammars.start(request.grammar, now)
        sequence.sampler.see(request.ids, self.runtime.vocab_size)
        self._arrivals += 1
        self._sequences[request.id] = sequence
        self.scheduler.add(sequence)

    def cancel(self, request_id: int) -> None:
        """Stop a request; its place is free at once. One that has ended, or never was, is nobody's mistake."""
        if request_id in self._sequences:
            self._end(self._sequences[request_id], "cancelled")

    def step(self) -> list[Event]:
        """Compute the next tokens, and say what happened since the last step."""
        self._look_around()
        chunks = self.scheduler.plan(self.clock())
        if chunks:
            self._compute(chunks)
        elif pending := [s.pending for s in self._sequences.values() if s.pending]:
            pending[0].wait(GRAMMAR_WAIT_S)
        events, self._events = self._events, []
        return events

    def stats(self) -> dict[str, float]:
        """Figures of now (running, waiting, waiting_tokens, kv_usage) and counts since the start.

        `prefix_queries` are tokens of prompts that were looked for among shared beginnings, `prefix_hits` those found.
        """
        waiting, cache = self.scheduler.waiting, self.cache
        return {
            "running": len(self.scheduler.running),
            "waiting": len(waiting),
            "waiting_tokens": waiting_tokens(waiting),
            "kv_usage": cache.usage,
            "prefix_queries": cache.queries,
            "prefix_hits": cache.hits,
            "preemptions": self.scheduler.preemptions,
            "prompt_tokens": self._prompt_tokens,
            "generated_tokens": self._generated_tokens,
            "steps": self.steps,
        }

    def load_adapter(self, name: str, folder: Path) -> str:
        """Make an adapter in PEFT's layout available to requests by a name; returns its digest.

        Raises UserError for a name in use or an adapter that does not fit the model, ArtifactError for damaged files.
        """
        self.adapters[name] = self.runtime.load_adapter(name, folder)
        return self.adapters[name]

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises UserError if requests still use it, or there is none of that name."""
        self._require_adapter(name)
        users = sum(sequence.request.adapter == name for sequence in self._sequences.values())
        if users:
            raise UserError(f"{users} requests use the adapter {name!r}", fix="wait for them to end, or cancel them")
        self.runtime.unload_adapter(name)
        del self.adapters[name]

    # ------------------------------------------------------------------------------------------ taking requests

    def _check(self, request: Request) -> None:
        """Raise UserError for a request that cannot be served."""
        size, room, vocab_size = len(request.ids), self.runtime.max_tokens, self.runtime.vocab_size
        if request.id in self._sequences:
            raise UserError(f"a request with the id {request.id} is under way", fix="give each an id of its own")
        if not size:
            raise UserError("the prompt is empty", fix="begin it with the start or end-of-text token")
        if size > room:
            fix = f"shorten it by {size - room} tokens, or serve a model with a longer context"
            raise UserError(f"the prompt is {size} tokens long and the model reads {room}", fix=fix)
        _require_tokens(request.ids, vocab_size, "the prompt")
        _require_tokens(request.sampling.logit_bias, vocab_size, "logit_bias")
        _require_tokens(request.stop_ids, vocab_size, "stop_ids")
        longest = min(room, size + request.sampling.max_new_tokens)
        if not self.cache.fits(size, size if request.score_from is not None else longest):
            total = self.cache.total * BLOCK
            fix = "shorten the prompt or max_new_tokens, or give the server more cache"
            raise UserError(f"a text of up to {longest} tokens does not fit a cache of {total}", fix=fix)
        if request.score_from is not None and not 1 <= request.score_from < size:
            what = f"tokens from position {request.score_from} on cannot be judged in a text of {size}"
            raise UserError(what, fix=f"give a position from 1 to {size - 1}")
        if request.adapter is not None:
            self._require_adapter(request.adapter)
        if request.grammar is not None and self.grammars is None:
            raise UserError("this model's texts cannot be held to a grammar", fix="ask without grammar or schema")

    def _require_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise UserError(f"no adapter named {name!r} is loaded", fix=nearest(name, self.adapters))

    def _require_place(self, sequence: Sequence) -> None:
        """Raise QueueFull if there are as many waiting as may wait, in requests or in tokens."""
        scheduler, limits = self.scheduler, self.limits
        next_in = max(0, limits.max_sequences - len(scheduler.running))
        tokens = waiting_tokens(scheduler.waiting)
        too_many = len(scheduler.waiting) >= limits.max_waiting + next_in
        too_long = bool(scheduler.waiting) and tokens + sequence.remaining > limits.max_waiting_tokens
        if too_many or too_long:
            seconds = tokens / self._rate if self._rate else 1.0
            what = f"{len(scheduler.waiting)} requests of {tokens} tokens are waiting, as many as may"
            raise QueueFull(what, min(max(1.0, seconds), LONGEST_RETRY_S))

    # -------------------------------------------------------------------------------------------------- a step

    def _look_around(self) -> None:
        """End what has no time left, and let those go on whose grammar was read."""
        now = self.clock()
        for sequence in list(self._sequences.values()):
            deadline_s, pending = sequence.request.deadline_s, sequence.pending
            if deadline_s is not None and now >= sequence.arrived + deadline_s:
                self._end(sequence, "deadline")
            elif pending is not None and pending.is_done(now):
                self._constrain(sequence)

    def _constrain(self, sequence: Sequence) -> None:
        request, pending = sequence.request, sequence.pending
        assert self.grammars is not None and pending is not None and request.grammar is not None
        try:
            sequence.constraint = self.grammars.constrain(request.grammar, pending.matcher(), request.stop_ids)
            sequence.pending = None
        except Exception as error:
            self._fail(sequence, error)

    def _compute(self, chunks: list[Chunk]) -> None:
        """One call of the model for the chunks of a plan, and what follows from its logits."""
        begun, tokens = self.clock(), sum(chunk.stop - chunk.start for chunk in chunks)
        done, logits_WV = self._forward(chunks)
        writing: list[tuple[Sequence, int]] = []
        place = 0
        for chunk in done:
            sequence = chunk.sequence
            wanted = sequence.wanted(chunk.stop)
            sequence.computed = chunk.stop
            if sequence.is_judged:
                self._judge(sequence, wanted, logits_WV[place : place + len(wanted)])
            elif wanted:
                writing.append((sequence, place))
            place += len(wanted)
        if writing:
            self._write([sequence for sequence, _ in writing], _rows(logits_WV, [place for _, place in writing]))
        self.steps += 1
        rate = tokens / max(1e-6, self.clock() - begun)
        self._rate += (RATE_WEIGHT if self._rate else 1.0) * (rate - self._rate)

    def _forward(self, chunks: list[Chunk]) -> tuple[list[Chunk], Tensor]:
        """The chunks that could be computed, and the logits that are wanted of them, in their order.

        Where a call fails, each chunk is computed alone, so that only those fail that cannot be.
        """
        try:
            return chunks, self._call(chunks)
        except Exception as error:
            if len(chunks) == 1:
                self._fail(chunks[0].sequence, error)
                return [], torch.empty(0, self.runtime.vocab_size)
            parts = [self._forward([chunk]) for chunk in chunks]
            found = [logits_WV for done, logits_WV in parts if done]
            logits_WV = torch.cat(found) if found else torch.empty(0, self.runtime.vocab_size)
            return [chunk for done, _ in parts for chunk in done], logits_WV

    def _call(self, chunks: list[Chunk]) -> Tensor:
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        wanted: list[int] = []
        adapters: dict[int, str] = {}
        for sequence, start, stop in chunks:
            assert sequence.row is not None, "a planned sequence has a row"
            wanted += [len(ids) + position - start for position in sequence.wanted(stop)]
            ids += sequence.ids[start:stop]
            positions += range(start, stop)
            rows += [sequence.row] * (stop - start)
            if sequence.request.adapter is not None:
                adapters[sequence.row] = sequence.request.adapter
        return self.runtime.step(ids, positions, rows, self.cache.cache, wanted=wanted, adapters=adapters)

    def _judge(self, sequence: Sequence, wanted: range, logits_WV: Tensor) -> None:
        """The log-probabilities of a text's own tokens, as far as they are computed."""
        if wanted:
            targets = torch.tensor([sequence.request.ids[position + 1] for position in wanted])
            logprobs_W = logits_WV.float().cpu().log_softmax(-1).gather(1, targets[:, None])[:, 0]
            if not torch.isfinite(logprobs_W).all():
                self._fail_of_bad_logits(sequence)
                return
            sequence.sound = sequence.computed
            sequence.logprobs += logprobs_W.tolist()
        if not sequence.remaining:
            self._prompt_tokens += len(sequence.request.ids)
            self._leave(sequence)
            self._events.append(Scored(sequence.id, tuple(sequence.logprobs)))

    def _write(self, sequences: list[Sequence], logits_RV: Tensor) -> None:
        """The next token of each sequence from its logits."""
        allowed: list[Tensor | None] = []
        able: list[int] = []
        for row, sequence in enumerate(sequences):
            try:
                constraint = sequence.constraint
                allowed.append(None if constraint is None else torch.from_numpy(constraint.allowed()))
                able.append(row)
            except Exception as error:
                self._fail(sequence, error)
        sequences = [sequences[row] for row in able]
        for sequence, choice in zip(sequences, self._choose(sequences, _rows(logits_RV, able), allowed), strict=True):
            if isinstance(choice, Exception):
                self._fail(sequence, choice)
            elif choice is None:
                self._fail_of_bad_logits(sequence)
            else:
                self._took(sequence, choice)

    def _choose(
        self, sequences: list[Sequence], logits_RV: Tensor, allowed: list[Tensor | None]
    ) -> list[Choice | Exception | None]:
        """A choice for each sequence, or the fault that kept it from one; None if its logits are no numbers."""
        if not sequences:
            return []
        try:
            return [*choose_all([sequence.sampler for sequence in sequences], logits_RV, allowed)]
        except Exception as error:
            if len(sequences) == 1:
                return [error]
            rows = range(len(sequences))
            return [self._choose([sequences[r]], logits_RV[r : r + 1], [allowed[r]])[0] for r in rows]

    def _took(self, sequence: Sequence, choice: Choice) -> None:
        """A text goes on by a token, and perhaps ends with it."""
        sequence.sound = sequence.computed
        if sequence.first_token is None or sequence.promised:
            self.cache.keep(sequence)
        if sequence.first_token is None:
            sequence.first_token = self.clock()
            self._prompt_tokens += len(sequence.request.ids)
        try:
            if sequence.constraint is not None:
                sequence.constraint.accept(choice.id)
        except Exception as error:
            self._fail(sequence, error)
            return
        sequence.ids.append(choice.id)
        self._generated_tokens += 1
        self._events.append(Token(sequence.id, choice))
        reason = self._reason_to_end(sequence, choice.id)
        if reason is not None:
            self._end(sequence, reason)

    def _reason_to_end(self, sequence: Sequence, token: int) -> Reason | None:
        if sequence.ends_with(token) or (sequence.constraint is not None and sequence.constraint.is_complete):
            return "stop"
        written = len(sequence.ids) - len(sequence.request.ids)
        # A token at the last position can still be followed by one that is never read.
        is_full = len(sequence.ids) > self.runtime.max_tokens
        return "length" if is_full or written >= sequence.request.sampling.max_new_tokens else None

    # -------------------------------------------------------------------------------------------------- ends

    def _end(self, sequence: Sequence, reason: Reason) -> None:
        self._leave(sequence)
        self._events.append(sequence.finished(reason, self.clock()))

    def _leave(self, sequence: Sequence) -> None:
        """Give back all that a sequence has; what it computed stays for others as far as there is room."""
        self.cache.keep(sequence)
        del self._sequences[sequence.id]
        self.scheduler.remove(sequence)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        if isinstance(error, UserError):
            event = Failed(sequence.id, "bad_request", error.what, error.fix)
        else:
            _log.error("request %s failed", sequence.id, exc_info=error)
            what = error.what if isinstance(error, GroundupError) else "the engine failed on this request"
            event = Failed(sequence.id, "internal", what, "send it again; if it fails again, see the server's log")
        self._drop(sequence, event)

    def _fail_of_bad_logits(self, sequence: Sequence) -> None:
        what, fix = "the model's logits are not numbers", "its weights are damaged, or this input is too much for them"
        self._drop(sequence, Failed(sequence.id, "bad_logits", what, fix))

    def _drop(self, sequence: Sequence, event: Failed) -> None:
        del self._sequences[sequence.id]
        self.scheduler.remove(sequence)
        self._events.append(event)


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    """Some rows; all of them without a copy."""
    return logits if rows == list(range(len(logits))) else logits[torch.tensor(rows, dtype=torch.int64)]


def _require_tokens(ids: Iterable[int], vocab_size: int, where: str) -> None:
    """Raise UserError for an id that the model has no token for."""
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        fix = f"ids are from 0 to {vocab_size - 1}: use the model's own tokenizer"
        raise UserError(f"{where} holds {wrong}, which is no token of this model", fix=fix)
