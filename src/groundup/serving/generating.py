"""A model that continues texts, as the engine process keeps it: frames become requests, events become frames.

The engine proper (`engine.py`) knows nothing of processes. Here it is fed, and replaced by a fresh one over the same
weights when it breaks in the middle of a step, because then nobody knows what state it is in.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from groundup.errors import GroundupError, UserError, nearest
from groundup.runtimes.torch import TorchRuntime
from groundup.serving import faults, models, requests, wire
from groundup.serving.engine import Engine
from groundup.serving.grammar import Grammars
from groundup.serving.models import Facts, Options
from groundup.serving.requests import Event, Request
from groundup.serving.sampler import Sampling, sampling
from groundup.serving.scheduler import Limits
from groundup.serving.wire import Frame
from groundup.text.tokenizers import Tokenizer

log = logging.getLogger(__name__)


class Unknown(GroundupError):
    """A model or an adapter that is not loaded."""

    def __init__(self, code: wire.Code, what: str, *, fix: str) -> None:
        super().__init__(what, fix=fix)
        self.code = code


class Generating:
    """One model that continues texts and judges given ones, with its adapters. One thread only."""

    def __init__(self, name: str, runtime: TorchRuntime, facts: Facts, options: Options, *, cache_bytes: int) -> None:
        self.name, self.runtime, self.facts, self.options = name, runtime, facts, options
        self.cache_bytes = cache_bytes
        self.grammars: Grammars | None = None
        self.why_no_grammars: UserError | None = None
        try:
            self.grammars = Grammars(Tokenizer.load(facts.folder), runtime.vocab_size)
        except UserError as error:  # the tokenizer is of another kind, or llguidance is not installed
            self.why_no_grammars = error
        self.engine = self._new_engine()
        self._mine: set[int] = set()
        """Requests that have not ended."""

    def _new_engine(self) -> Engine:
        options = self.options
        limits = Limits(
            max_sequences=options.max_sequences,
            step_tokens=options.step_tokens,
            max_waiting=options.max_waiting,
            max_waiting_tokens=options.max_waiting_tokens,
        )
        return Engine(
            self.runtime,
            cache_bytes=self.cache_bytes,
            limits=limits,
            digest=self.facts.digest,
            grammars=self.grammars,
            shares_prefixes=options.shares_prefixes,
            shares_across_keys=options.shares_across_keys,
        )

    # ------------------------------------------------------------------------------ requests come and go

    def take(self, frame: wire.Generate | wire.Score) -> list[Frame]:
        """Take a request. Raises UserError for one that makes no sense, Unknown for its adapter, and QueueFull."""
        if frame.adapter is not None and frame.adapter not in self.engine.adapters:
            what = f"no adapter {frame.adapter!r} is loaded for {self.name!r}"
            raise Unknown("unknown_adapter", what, fix=nearest(frame.adapter, self.engine.adapters))
        if self.why_no_grammars is not None and isinstance(frame, wire.Generate) and frame.grammar is not None:
            raise self.why_no_grammars
        self.engine.add(_request(frame))
        self._mine.add(frame.id)
        return []

    def cancel(self, number: int) -> None:
        """Give up a request; it is no mistake if there is none of that number."""
        self.engine.cancel(number)

    def clear(self) -> list[Frame]:
        """Give up everything, because the model goes."""
        return self._abandon("unknown_model", "the model was unloaded", "ask for another")

    def _abandon(self, code: wire.Code, what: str, fix: str) -> list[Frame]:
        gone, self._mine = sorted(self._mine), set()
        return [wire.Failed(number, code, what, fix) for number in gone]

    # ------------------------------------------------------------------------------ adapters

    def load_adapter(self, name: str, path: str) -> dict[str, str]:
        """Check and open an adapter; its digest and folder. Raises UserError and ArtifactError."""
        folder = models.check_adapter(path, public_key=self.options.public_key)
        return {"digest": self.engine.load_adapter(name, folder), "folder": str(folder)}

    def unload_adapter(self, name: str) -> None:
        """Let an adapter go. Raises UserError if there is none of that name, or texts still need it."""
        self.engine.unload_adapter(name)

    # ------------------------------------------------------------------------------ computing

    @property
    def has_work(self) -> bool:
        """Whether there is a text to go on with."""
        return self.engine.has_work

    def due_in(self, *, is_idle: bool) -> float | None:
        """Seconds until there is something to do: 0 for now, None for nothing."""
        return 0.0 if self.has_work else None

    def step(self, *, is_idle: bool) -> list[Frame]:
        """Compute one step, and say what came of it: all tokens in one frame, then who ended."""
        try:
            frames = _frames(self.engine.step())
        except Exception as error:
            faults.note(log, f"the engine of {self.name!r} failed in the middle of a step", error)
            adapters = self.engine.adapters
            self.engine = self._new_engine()
            self.engine.adapters |= adapters
            what = f"the engine of {self.name!r} failed in the middle of a step ({type(error).__name__})"
            return self._abandon("internal", what, "send the request again; see the server's log")
        self._mine -= {frame.id for frame in frames if isinstance(frame, wire.Finished | wire.Scored | wire.Failed)}
        return frames

    @property
    def promised_bytes(self) -> int:
        """Memory that the cache may still take."""
        return int(self.cache_bytes * (1 - self.engine.cache.usage))

    def stats(self) -> dict[str, float]:
        """The figures of `wire.Pong`."""
        return self.engine.stats()


def _request(frame: wire.Generate | wire.Score) -> Request:
    """A frame as the engine takes it. Raises UserError for settings that make no sense."""
    ids = tuple(_token(token) for token in frame.ids)
    if isinstance(frame, wire.Score):
        return Request(
            id=frame.id,
            ids=ids,
            sampling=Sampling(),
            adapter=frame.adapter,
            key=frame.key,
            deadline_s=frame.deadline_s,
            score_from=frame.from_position,
        )
    settings = sampling(frame.sampling)
    if settings.stop:
        raise UserError("stop strings are found where tokens become text", fix="leave `stop` to the API")
    return Request(
        id=frame.id,
        ids=ids,
        sampling=settings,
        stop_ids=frozenset(_token(token) for token in frame.stop_ids),
        adapter=frame.adapter,
        grammar=frame.grammar,
        priority=frame.priority,
        key=frame.key,
        deadline_s=frame.deadline_s,
    )


def _token(value: object) -> int:
    if type(value) is not int:
        raise UserError(f"{value!r} is no token", fix="give the ids of tokens: whole numbers")
    return value


def _frames(events: Sequence[Event]) -> list[Frame]:
    """What happened in a step as frames, tokens first."""
    tokens: list[tuple[int, int, float | None, Sequence[tuple[int, float]]]] = []
    ends: list[Frame] = []
    for event in events:
        match event:
            case requests.Token():
                choice = event.choice
                tokens.append((event.id, choice.id, choice.logprob, choice.alternatives))
            case requests.Finished():
                ends.append(wire.Finished(**vars(event)))
            case requests.Scored():
                ends.append(wire.Scored(event.id, event.logprobs))
            case requests.Failed():
                ends.append(wire.Failed(event.id, cast(wire.Code, event.code), event.message, event.fix))
    return [wire.Tokens(tokens), *ends] if tokens else ends
