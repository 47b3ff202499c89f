"""What the front process and the engine process say to each other, and how it is written.

The front (HTTP, keys, tokenizers; no torch) and the engine (torch and its threads) are two processes joined by a
socket pair. Each message is one frozen dataclass; on the wire it is a frame: four bytes with the length of what
follows, then a JSON object whose `kind` is the name of the class. The engine deals in token ids; texts, chat
templates and stop strings stay with the front. Columns of bytes (images, sound) travel as base64.

Both ends trust each other's frames but not what users put in them: every value a user chose is plain data that the
engine checks again, and a mistake in it is `Failed` for that request alone.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from groundup.errors import GroundupError

MAX_FRAME = 256 << 20
"""Bytes of the longest frame that is read; a longer one means that the two ends lost step."""
LENGTH = struct.Struct(">I")

Code = Literal[
    "bad_request",
    "unknown_model",
    "unknown_adapter",
    "queue_full",
    "deadline",
    "bad_logits",
    "shutting_down",
    "engine_gone",
    "internal",
]
"""Why a request failed. bad_request: a mistake of the caller's, `fix` says what to do; queue_full: come again after
`retry_after_s`; deadline: it had no time left; bad_logits: the model's scores were no numbers; shutting_down: no new
work is taken; engine_gone: the engine process ended under it; internal: a fault of ours."""
Reason = Literal["stop", "length", "cancelled", "deadline"]
"""Why a text ended. stop: with one of its `stop_ids` (or its grammar was complete)."""


class WireError(GroundupError):
    """A frame that cannot be read: the two ends are not of one version, or lost step."""


KINDS: dict[str, type[Frame]] = {}
"""Every message by its kind."""


@dataclass(frozen=True)
class Frame:
    """The base of all messages; `kind` is the class's name."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__
        KINDS[cls.__name__] = cls

    def as_data(self) -> dict[str, Any]:
        """The frame as plain data for JSON."""
        return {"kind": self.kind, **vars(self)}

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Frame:
        """The frame of plain data. Raises TypeError for fields that it does not have."""
        return cls(**data)


# ---------------------------------------------------------------------------------------- front → engine


@dataclass(frozen=True)
class Load(Frame):
    """Open a model and serve it under a name. Answered by Loaded, or by Failed with the same id."""

    id: int
    model: str
    path: str
    """What `models.describe` reads: a model artefact, runs/RECIPE/STAGE or a Hugging Face directory."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `models.Options`."""


@dataclass(frozen=True)
class Unload(Frame):
    """Let a model go; what it still had to do is cancelled. Answered by Done."""

    id: int
    model: str


@dataclass(frozen=True)
class LoadAdapter(Frame):
    """Open an adapter of a generating model. Answered by Loaded, or by Failed with the same id."""

    id: int
    model: str
    adapter: str
    path: str


@dataclass(frozen=True)
class UnloadAdapter(Frame):
    """Let an adapter go. Answered by Done."""

    id: int
    model: str
    adapter: str


@dataclass(frozen=True)
class Generate(Frame):
    """Continue a prompt. Answered by Tokens as they are made, and then Finished or Failed.

    `id` is given by the client; leave it 0.
    """

    model: str
    ids: Sequence[int]
    """The whole prompt as token ids, start token included."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `sampler.Sampling`; those that are missing have its defaults. Its `stop` strings are the front's
    business and are refused here."""
    stop_ids: Sequence[int] = ()
    """Tokens that end the text; the one that did is still reported as a token."""
    adapter: str | None = None
    grammar: str | None = None
    """A grammar in llguidance's form; the text is held to it."""
    priority: int = 0
    """Smaller comes first."""
    key: str = ""
    """Whose request it is: keys get equal shares of a full engine."""
    deadline_s: float | None = None
    """Seconds from now after which the text ends where it is, with the reason `deadline`."""
    id: int = 0


@dataclass(frozen=True)
class Answer(Frame):
    """Answer rows with a model of a labelled task, or turn texts into vectors. Answered by Answered or Failed."""

    model: str
    rows: Sequence[Mapping[str, Any]]
    """Each with the columns that the task reads; values are plain data, or bytes."""
    key: str = ""
    deadline_s: float | None = None
    id: int = 0

    def as_data(self) -> dict[str, Any]:
        """The frame as plain data; which columns of which rows were bytes is said beside them."""
        blobs = [(i, name) for i, row in enumerate(self.rows) for name, value in row.items() if type(value) is bytes]
        if not blobs:
            return super().as_data()
        rows = [dict(row) for row in self.rows]
        for place, name in blobs:
            rows[place][name] = base64.b64encode(rows[place][name]).decode("ascii")
        return super().as_data() | {"rows": rows, "blobs": blobs}

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Answer:
        """The frame of plain data, its bytes restored."""
        for place, name in data.pop("blobs", ()):
            data["rows"][place][name] = base64.b64decode(data["rows"][place][name])
        return cls(**data)


@dataclass(frozen=True)
class Score(Frame):
    """The log-probabilities of given tokens under a generating model. Answered by Scored or Failed."""

    model: str
    ids: Sequence[int]
    from_position: int = 1
    """The first position whose token is scored, by what stands before it: at least 1."""
    adapter: str | None = None
    key: str = ""
    deadline_s: float | None = None
    id: int = 0


@dataclass(frozen=True)
class Cancel(Frame):
    """Stop a request; its place is free within one step. One that has ended already is nobody's mistake."""

    id: int


@dataclass(frozen=True)
class Ping(Frame):
    """Answered by a Pong with the same number, by the loop that does the work: a hung engine is silent."""

    number: int


@dataclass(frozen=True)
class Stop(Frame):
    """End the engine process."""


# ---------------------------------------------------------------------------------------- engine → front


@dataclass(frozen=True)
class Ready(Frame):
    """The engine process is up and reads frames."""

    pid: int
    threads: int
    """Compute threads of torch."""


@dataclass(frozen=True)
class Loaded(Frame):
    """A model or an adapter is there. `facts` are the fields of `models.Facts`, or the adapter's."""

    id: int
    model: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Done(Frame):
    """What was asked by the frame with this id is done, and there is nothing to say about it."""

    id: int


@dataclass(frozen=True)
class Tokens(Frame):
    """The tokens of one step, of all sequences: (request id, token, its log-probability or None, alternatives).

    Alternatives are pairs (token, log-probability), best first.
    """

    tokens: Sequence[tuple[int, int, float | None, Sequence[tuple[int, float]]]]


@dataclass(frozen=True)
class Finished(Frame):
    """A text ended; the figures say what it cost. All tokens of it were sent before."""

    id: int
    reason: Reason
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the cache of shared prefixes."""
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Answered(Frame):
    """The answers to the rows of an Answer, in order; a row that failed has `{"error": {code, message, fix}}`."""

    id: int
    answers: Sequence[Mapping[str, Any]]
    tokens: Sequence[int] = ()
    """Tokens that were read of each row."""


@dataclass(frozen=True)
class Scored(Frame):
    """The log-probabilities, in nats, of the tokens from `from_position` to the last."""

    id: int
    logprobs: Sequence[float]


@dataclass(frozen=True)
class Failed(Frame):
    """A request failed, and only that one; with id None, something that belongs to no request."""

    id: int | None
    code: Code
    message: str
    fix: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Pong(Frame):
    """The loop came by. `steps` counts what it has computed since it began."""

    number: int
    steps: int
    stats: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By model: running, waiting, waiting_tokens, kv_usage (0…1), prefix_queries, prefix_hits (tokens), preemptions,
    prompt_tokens, generated_tokens, batches, rows; counters count from the engine's start."""


# ---------------------------------------------------------------------------------------- frames as bytes


def encode(frame: Frame) -> bytes:
    """A frame as bytes, its length first. Raises WireError for one that is too long or holds what JSON cannot."""
    try:
        # Escaped to ASCII: lone surrogates, which are no UTF-8, survive for the engine to refuse.
        body = json.dumps(frame.as_data(), separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"a {frame.kind} cannot be written as JSON: {error}") from error
    if len(body) > MAX_FRAME:
        raise WireError(f"a {frame.kind} of {len(body)} bytes is longer than a frame may be ({MAX_FRAME})")
    return LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> Frame:
    """The frame of a body (without its length). Raises WireError."""
    try:
        data = json.loads(bytes(body))
        return KINDS[data.pop("kind")].of_data(data)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise WireError(f"unreadable frame: {error!r}", fix="front and engine are not of one version") from error


class Frames:
    """Frames from bytes that arrive in pieces of any size: `feed` what came, get what is whole."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises WireError for one that cannot be read."""
        self._held += data
        while len(self._held) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._held)
            if length > MAX_FRAME:
                raise WireError(f"a frame of {length} bytes is announced, more than there may be ({MAX_FRAME})")
            end = LENGTH.size + length
            if len(self._held) < end:
                return
            body = bytes(self._held[LENGTH.size : end])
            del self._held[:end]
            yield decode(body)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held: at the end of a connection, whether the last frame was whole."""
        return not self._held
