"""An answer as it comes: tokens become whole characters, stop strings and calls are found.

Leaving any of these iterations cancels the work in the engine: that is how a client who hung up, a stop string and a
failed sibling all stop what nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from groundup.errors import GroundupError
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import ApiError
from groundup.serving.api.generating import Order
from groundup.serving.api.tools import Call
from groundup.serving.client import Token
from groundup.serving.stops import StopStrings
from groundup.serving.wire import Finished
from groundup.text.streaming import StreamDecoder
from groundup.text.tokenizers import Tokenizer

PRIMING = 64
"""Tokens of the prompt that the decoder reads before it shows what follows."""
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Piece:
    """What became certain of an answer: text in whole characters, calls, and the tokens that brought them."""

    text: str
    tokens: tuple[Token, ...] = ()
    """Since the last piece, where their log-probabilities were asked for."""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How an answer ended."""

    reason: FinishReason
    tokens: int
    """Of the answer, the one that ended it included."""
    cached_tokens: int = 0
    """Of the prompt, found in the cache."""
    stop: str | int | None = None
    """The stop string, or the token, that ended it."""
    detail: str | None = None
    """`deadline`, where it was time that cut it off."""


class Visible:
    """A tokenizer that shows some of its special tokens: those by which a model marks calls."""

    def __init__(self, tokenizer: Tokenizer, visible: frozenset[int]) -> None:
        self._tokenizer, self._hidden = tokenizer, tokenizer.special_ids - visible

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        """The text of ids."""
        return self._tokenizer.decode([token for token in ids if token not in self._hidden])


class Reading:
    """One answer being read: `push` tokens, get pieces; `flush` what was held back at its end."""

    def __init__(self, order: Order) -> None:
        tokenizer = order.served.texts.tokenizer
        self._decoder = StreamDecoder(
            Visible(tokenizer, order.visible) if order.visible else tokenizer, skip_special=True
        )
        self._decoder.prime(order.ids[-PRIMING:])
        self._stops = StopStrings(order.stops)
        self._calls = order.offered.reader() if order.offered else None
        self._keeps = order.logprobs is not None
        self._tokens: list[Token] = []

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    @property
    def has_calls(self) -> bool:
        """Whether a function was called."""
        return self._calls is not None and bool(self._calls.found)

    def push(self, token: Token) -> Piece | None:
        """What became certain by one more token, often its text, sometimes nothing."""
        if self._keeps:
            self._tokens.append(token)
        return self._piece(self._stops.push(self._decoder.push(token.id)))

    def flush(self) -> Piece | None:
        """What was held back, when the answer has ended."""
        tail = "" if self.stop is not None else self._stops.push(self._decoder.flush()) + self._stops.flush()
        return self._piece(tail, final=True)

    def _piece(self, text: str, *, final: bool = False) -> Piece | None:
        calls: Sequence[Call] = ()
        if self._calls is not None:
            text, calls = self._calls.push(text)
            text += self._calls.flush() if final else ""
        if not text and not calls and not (final and self._tokens):
            return None
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(text, tokens, tuple(calls))


class Counts(Protocol):
    """Who counts the tokens of a request: `metering.Metered`."""

    completion_tokens: int


async def answer(
    api: Api, caller: Caller, order: Order, number: int, counts: Counts
) -> AsyncGenerator[Piece | Ending, None]:
    """The pieces of one answer, and its Ending as the last; `number` tells it from others to the same prompt.

    Raises EngineFault, and ApiError if it had no time.
    """
    reading, count, ended_by = Reading(order), 0, None
    observed = _Observed(api, caller, order, number)
    try:
        async with contextlib.aclosing(api.client.generate(order.request(caller, number))) as events:
            async for event in events:
                if isinstance(event, Finished):
                    observed.finished(event)
                    break
                count += 1
                counts.completion_tokens += 1
                observed.token()
                if event.id in order.stop_ids:
                    ended_by = event.id
                    continue
                piece = reading.push(event)
                if piece is not None:
                    yield piece
                if reading.stop is not None:
                    break
        piece = reading.flush()
        if piece is not None:
            yield piece
        ending = _ending(reading, observed.end, count, ended_by)
        observed.ended("stop")  # by a stop string: all else was said by the engine
        yield ending
    except GroundupError:
        observed.ended("error")
        raise
    finally:
        observed.ended("cancelled")


def _ending(reading: Reading, end: Finished | None, count: int, ended_by: int | None) -> Ending:
    cached = end.cached_tokens if end else 0
    if end is not None and end.reason == "deadline" and not count:
        fix = "ask for less, allow more time (`timeout`), or come again when the server is less busy"
        raise ApiError(408, "deadline", "the time was over before the answer began", fix=fix, retry_after_s=1)
    if end is not None and end.reason == "cancelled":
        raise ApiError(503, "shutting_down", "the answer was cancelled by the server", retry_after_s=1)
    is_cut = reading.stop is None and end is not None and end.reason in ("length", "deadline")
    reason: FinishReason = "length" if is_cut else "tool_calls" if reading.has_calls else "stop"
    detail = "deadline" if end is not None and end.reason == "deadline" and is_cut else None
    return Ending(reason, count, cached, reading.stop if reading.stop is not None else ended_by, detail)


class _Observed:
    """What the figures of the server are told of one answer."""

    def __init__(self, api: Api, caller: Caller, order: Order, number: int) -> None:
        self.telemetry, self.id = api.telemetry, f"{caller.request_id}-{id(order):x}-{number}"
        self.end: Finished | None = None
        if self.telemetry is not None:
            self.telemetry.request_started(
                self.id,
                model=order.served.name,
                key=caller.key,
                operation=order.operation,
                prompt_tokens=len(order.ids),
            )

    def token(self) -> None:
        if self.telemetry is not None:
            self.telemetry.token(self.id)

    def finished(self, end: Finished) -> None:
        self.end = end
        if self.telemetry is not None:
            self.telemetry.request_finished(
                self.id,
                end.reason,
                cached_tokens=end.cached_tokens,
                queue_s=end.queue_s,
                prefill_s=end.prefill_s,
                decode_s=end.decode_s,
            )

    def ended(self, reason: str) -> None:
        """Say how it ended; the first that is said of an end counts."""
        if self.telemetry is not None:
            self.telemetry.request_finished(self.id, reason)


async def merged(
    sources: Sequence[AsyncGenerator[Piece | Ending, None]],
) -> AsyncGenerator[tuple[int, Piece | Ending], None]:
    """The items of several answers as they come, each with the number of its answer. One that fails ends all."""
    if len(sources) == 1:
        async with contextlib.aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    ready: asyncio.Queue[tuple[int, Piece | Ending | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pour(source, place, ready)) for place, source in enumerate(sources)]
    try:
        for _ in range(len(tasks)):
            while True:
                place, found = await ready.get()
                if found is None:
                    break
                if isinstance(found, Exception):
                    raise found
                yield place, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pour(
    source: AsyncGenerator[Piece | Ending, None],
    place: int,
    ready: asyncio.Queue[tuple[int, Piece | Ending | Exception | None]],
) -> None:
    try:
        async with contextlib.aclosing(source) as items:
            async for item in items:
                ready.put_nowait((place, item))
        ready.put_nowait((place, None))
    except Exception as error:
        ready.put_nowait((place, error))


@dataclass(frozen=True)
class Whole:
    """A finished answer."""

    text: str
    calls: tuple[Call, ...]
    tokens: tuple[Token, ...]
    ending: Ending


async def whole(sources: Sequence[AsyncGenerator[Piece | Ending, None]]) -> list[Whole]:
    """All answers, finished, in order."""
    pieces: list[list[Piece]] = [[] for _ in sources]
    endings: dict[int, Ending] = {}
    async with contextlib.aclosing(merged(sources)) as items:
        async for place, item in items:
            if isinstance(item, Ending):
                endings[place] = item
            else:
                pieces[place].append(item)
    return [
        Whole(
            "".join(piece.text for piece in found),
            tuple(call for piece in found for call in piece.calls),
            tuple(token for piece in found for token in piece.tokens),
            endings[place],
        )
        for place, found in enumerate(pieces)
    ]
