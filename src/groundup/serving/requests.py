"""What the engine is asked, what it says, and what it knows of a text that is being made.

Requests and events are plain frozen data. A `Sequence` is a request on its way: all its tokens so far, how many of
them the cache holds, and where.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from groundup.serving.grammar import Constraint, Pending
from groundup.serving.sampler import Choice, Sampler, Sampling

Reason = Literal["stop", "length", "cancelled", "deadline"]
"""Why a text ended: by a token of `stop_ids` or a complete grammar, at a limit, or from outside."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to continue, or (with `score_from`) one whose own tokens are to be judged."""

    id: int
    ids: tuple[int, ...]
    """The whole prompt, start token included."""
    sampling: Sampling = field(default_factory=Sampling)
    """How to continue; its stop strings are the business of who turns tokens into text."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text. The one that did is among the tokens given out."""
    adapter: str | None = None
    grammar: str | None = None
    """What the text is held to, as `grammar.from_json_schema` and its neighbours write it."""
    priority: int = 0
    """Smaller comes first."""
    key: str = ""
    """Whose it is: keys get equal shares of a full engine."""
    deadline_s: float | None = None
    """Seconds from now after which the text ends where it is."""
    score_from: int | None = None
    """Make no text: give the log-probabilities of the prompt's tokens from this position (at least 1) on."""


@dataclass(frozen=True)
class Token:
    """The next token of a text."""

    id: int
    choice: Choice


@dataclass(frozen=True)
class Finished:
    """A text ended; all its tokens were given out before."""

    id: int
    reason: Reason
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the store of shared beginnings."""
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Scored:
    """The log-probabilities, in nats, of the tokens from `score_from` to the last."""

    id: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Failed:
    """One request failed, and no other. Codes: bad_request, bad_logits, internal."""

    id: int
    code: str
    message: str
    fix: str = ""


Event = Token | Finished | Scored | Failed


class Sequence:
    """A request on its way through the engine."""

    def __init__(self, request: Request, *, root: bytes, number: int, now: float) -> None:
        self.request, self.root, self.number, self.arrived = request, root, number, now
        """`root` is what its blocks' digests begin with; `number` counts arrivals."""
        judged = request.score_from is not None
        # What follows the last token is not asked for when a text is judged, so that one is never read.
        self.ids = list(request.ids[:-1] if judged else request.ids)
        self.sampler = Sampler(request.sampling, request.stop_ids)
        self.pending: Pending | None = None
        """The grammar while it is being compiled."""
        self.constraint: Constraint | None = None
        self.row: int | None = None
        """Its row of the cache while it runs."""
        self.computed = 0
        """Tokens that the cache holds."""
        self.sound = 0
        """Of these, how many are known to be numbers: those before logits that were."""
        self.digests: list[bytes] = []
        """Of its full blocks, as far as they were asked for."""
        self.saved = 0
        """Blocks that were offered to the store or came from it."""
        self.promised: list[bytes] = []
        """Digests of blocks that it is computing and will offer."""
        self.cached_tokens = 0
        self.logprobs: list[float] = []
        self.admitted: float | None = None
        self.first_token: float | None = None

    @property
    def id(self) -> int:
        """The request's."""
        return self.request.id

    @property
    def remaining(self) -> int:
        """Tokens that are known and not yet computed: 1 for a text that is being written."""
        return len(self.ids) - self.computed

    @property
    def is_judged(self) -> bool:
        """Whether log-probabilities are asked for instead of a text."""
        return self.request.score_from is not None

    @property
    def rank(self) -> tuple[int, int]:
        """What comes first among those that run; the last is the first to go when memory is short."""
        return self.request.priority, self.number

    @property
    def reusable(self) -> int:
        """Tokens of the beginning whose logits nobody asks for, so that they may come from elsewhere."""
        return min(self._next_judged, len(self.ids) - 1) if self.is_judged else len(self.ids) - 1

    def wanted(self, stop: int) -> range:
        """The positions whose logits are wanted once the tokens before `stop` are computed."""
        if self.is_judged:
            return range(max(self.computed, self._next_judged), stop)
        return range(stop - 1, stop) if stop == len(self.ids) else range(0)

    @property
    def _next_judged(self) -> int:
        """The first position whose logits are still asked for; what was judged before a preemption stays judged."""
        assert self.request.score_from is not None, "asked of texts that are judged only"
        return self.request.score_from - 1 + len(self.logprobs)

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the text."""
        return token in self.request.stop_ids and not self.request.sampling.ignore_eos

    def finished(self, reason: Reason, now: float) -> Finished:
        """The event of its end, with what it cost."""
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first_token is None else self.first_token
        return Finished(
            self.id,
            reason,
            cached_tokens=self.cached_tokens,
            queue_s=admitted - self.arrived,
            prefill_s=first - admitted,
            decode_s=now - first,
        )


def waiting_tokens(sequences: Collection[Sequence]) -> int:
    """Tokens that sequences have to have computed."""
    return sum(sequence.remaining for sequence in sequences)
