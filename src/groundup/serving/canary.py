"""Whether a candidate may replace the current model: tried on a share of the traffic, decided by evidence.

A canary is `running` until it is `promoted` or `rolled_back`. Three things are judged, each against a
threshold the operator sets:

- errors: how much more often the candidate fails than the current model may;
- latency: the candidate must not take longer than `slower` × the current model's time more often than not;
- agreement: how far the candidate's answers to shadowed requests (asked of both, shown from the current
  model) must agree with the current model's, on average.

Every judgement is a sequential test that may be looked at after each request, with a stated error: a
candidate that is within a threshold is rolled back with a probability of at most `alpha` over all three
together; one that is beyond any threshold is promoted with a probability of at most `beta`, whenever one
looks. (One bets against the claim "the mean is not beyond the threshold"; by Ville's inequality a fair game
multiplies a stake by 1/alpha with a probability of at most alpha, ever. Waudby-Smith & Ramdas 2023,
"Estimating means of bounded random variables by betting", §4; the bets here are a fixed mixture.)

The tests hold for requests that chance put into an arm. Those that asked for one by a header are answered
and not counted: whoever asks is no random sample.

Pure state: no clock, no I/O, so that a simulation can drive it. `canary_client.py` puts it to work.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from groundup.config import Section
from groundup.units import PositiveCount, Share

Arm = Literal["current", "candidate"]
State = Literal["running", "promoted", "rolled_back"]
_OPEN = Field(gt=0, lt=1)
BETS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.9)
"""Shares of the largest safe stake; the mixture does nearly as well as the best of them."""
RESTARTS = 2
"""Engine restarts during a canary that roll it back: what brings the engine down harms both arms."""
UNPAIRED = 64
"""Outcomes of one arm that wait for one of the other."""


class Plan(Section):
    """How a candidate is tried."""

    steps: tuple[Annotated[Share, _OPEN], ...] = (0.05, 0.2, 0.5)
    """The candidate's share of the traffic, step by step."""
    step_pairs: PositiveCount = 50
    """Compared pairs of requests after which the next step begins, unless it was rolled back."""
    shadow: Annotated[Share, Field(gt=0)] = 0.1
    """Of the current model's requests, how many are asked of the candidate too, to compare the answers."""
    errors: Annotated[Share, _OPEN] = 0.02
    """How much more often the candidate may fail, in points: 2% allows 3% where the current model has 1%."""
    slower: Annotated[float, Field(ge=1)] = 1.25
    """How many times the current model's latency the candidate may take, in the middle."""
    agreement: Annotated[Share, _OPEN] = 0.8
    """The least mean agreement with the current model. A candidate that is *meant* to answer otherwise needs less."""
    alpha: Annotated[float, _OPEN] = 0.05
    """Probability of rolling back a candidate that is within every threshold, at most."""
    beta: Annotated[float, _OPEN] = 0.05
    """Probability of promoting a candidate that is beyond one, at most."""
    most_pairs: PositiveCount = 5000
    """Pairs after which a canary that nothing has decided is rolled back as `undecided`."""

    @model_validator(mode="after")
    def _rises(self) -> Plan:
        if list(self.steps) != sorted(self.steps) or not self.steps:
            raise ValueError(f"steps must rise, and there must be one: {list(self.steps)}")
        return self


@dataclass
class Judgement:
    """A sequential test on which side of `threshold` the mean of observations in [0, 1] lies."""

    threshold: float
    bad_above: bool
    """Whether a mean above the threshold is the bad side."""
    count: int = 0
    total: float = 0.0
    above: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    """Logarithms of what each bet on "above the threshold" has made of a stake of 1."""
    below: list[float] = field(default_factory=lambda: [0.0] * len(BETS))

    def add(self, value: float) -> None:
        """One observation. Raises ValueError outside [0, 1]: the test would not hold."""
        if not 0 <= value <= 1:
            raise ValueError(f"{value!r} is not between 0 and 1")
        self.count += 1
        self.total += value
        gap = value - self.threshold
        for number, bet in enumerate(BETS):
            # The largest stakes that cannot be lost whole: 1 / threshold upwards, 1 / (1 - threshold) downwards.
            self.above[number] += math.log1p(bet * gap / self.threshold)
            self.below[number] += math.log1p(-bet * gap / (1 - self.threshold))

    @property
    def mean(self) -> float | None:
        """The mean so far."""
        return self.total / self.count if self.count else None

    def is_bad(self, alpha: float) -> bool:
        """Whether the mean is beyond the threshold, with a probability of error of at most alpha."""
        return _made(self.above if self.bad_above else self.below) >= 1 / alpha

    def is_good(self, beta: float) -> bool:
        """Whether the mean is within the threshold, with a probability of error of at most beta."""
        return _made(self.below if self.bad_above else self.above) >= 1 / beta


def _made(logs: list[float]) -> float:
    """What a stake of 1, spread evenly over the bets, has become."""
    highest = max(logs)
    if highest > 700:  # beyond a float, and decided long ago
        return math.inf
    return sum(math.exp(each) for each in logs) / len(logs)


@dataclass(frozen=True)
class Outcome:
    """How a request ended: whether the model answered, and after how many seconds (to the first token)."""

    ok: bool
    latency_s: float


class Canary:
    """The trial of one candidate. Ask `arm` for each request, tell it `observe` and `agree`, read `state`."""

    def __init__(self, plan: Plan, *, salt: str = "") -> None:
        self.plan, self.salt = plan, salt
        self.state: State = "running"
        self.cause = ""
        """What decided: errors, latency, agreement, undecided, restarts, operator, or `evidence` for a promotion."""
        self.step = 0
        self.pairs = 0
        self.restarts = 0
        self.judged = {
            "errors": Judgement((1 + plan.errors) / 2, bad_above=True),
            "latency": Judgement(0.5, bad_above=True),
            "agreement": Judgement(plan.agreement, bad_above=False),
        }
        self._unpaired: dict[Arm, deque[Outcome]] = {
            "current": deque(maxlen=UNPAIRED),
            "candidate": deque(maxlen=UNPAIRED),
        }

    @property
    def weight(self) -> float:
        """The candidate's share of the traffic now."""
        return {"promoted": 1.0, "rolled_back": 0.0}.get(self.state, self.plan.steps[self.step])

    def arm(self, request_id: str, wanted: Arm | None = None) -> tuple[Arm, bool]:
        """Who answers a request, and whether it counts as evidence.

        `wanted` is what the client asked for by a header. It is honoured while the canary runs; afterwards the
        model that was chosen answers everybody.
        """
        if self.state == "running" and wanted is not None:
            return wanted, False
        chosen: Arm = "candidate" if self._draw("arm", request_id) < self.weight else "current"
        return chosen, self.state == "running"

    def shadows(self, request_id: str) -> bool:
        """Whether a request that the current model answers is asked of the candidate too."""
        return self.state == "running" and self._draw("shadow", request_id) < self.plan.shadow

    def _draw(self, what: str, request_id: str) -> float:
        """A number in [0, 1) that is the same for the same request, and cannot be chosen without the salt."""
        digest = hashlib.blake2b(f"{self.salt}\0{what}\0{request_id}".encode("utf-8", "surrogatepass"), digest_size=8)
        return int.from_bytes(digest.digest()) / 2**64

    def observe(self, arm: Arm, outcome: Outcome) -> None:
        """A request that counts was answered, or failed by a fault of the model or engine.

        Outcomes of the two arms are compared in pairs, in the order in which they come.
        """
        if self.state != "running":
            return
        self._unpaired[arm].append(outcome)
        current, candidate = self._unpaired["current"], self._unpaired["candidate"]
        if not (current and candidate):
            return
        old, new = current.pop(), candidate.popleft()
        current.clear()  # the next one is compared with a request of its own time
        self.pairs += 1
        self.judged["errors"].add((1 + (not new.ok) - (not old.ok)) / 2)
        if old.ok and new.ok:
            self.judged["latency"].add(float(new.latency_s > self.plan.slower * old.latency_s))
        self._decide()

    def agree(self, agreement: float) -> None:
        """How far both models agreed on a shadowed request, in [0, 1]."""
        if self.state == "running":
            self.judged["agreement"].add(agreement)
            self._decide()

    def engine_restarted(self) -> None:
        """An engine process that serves both models had to be started again."""
        self.restarts += 1
        if self.state == "running" and self.restarts >= RESTARTS:
            self._end("rolled_back", "restarts")

    def promote(self) -> None:
        """Let the candidate answer everybody, because the operator says so."""
        self._end("promoted", "operator")

    def roll_back(self) -> None:
        """Let the current model answer everybody, because the operator says so."""
        self._end("rolled_back", "operator")

    def _decide(self) -> None:
        share = self.plan.alpha / len(self.judged)  # so that all three together err with alpha at most
        for name, judgement in self.judged.items():
            if judgement.is_bad(share):
                return self._end("rolled_back", name)
        reached = min(self.pairs // self.plan.step_pairs, len(self.plan.steps))
        self.step = min(reached, len(self.plan.steps) - 1)
        # A candidate that is beyond one threshold must fool that one test: no division here.
        convinced = all(judgement.is_good(self.plan.beta) for judgement in self.judged.values())
        if convinced and reached == len(self.plan.steps):
            self._end("promoted", "evidence")
        elif self.pairs >= self.plan.most_pairs:
            self._end("rolled_back", "undecided")

    def _end(self, state: State, cause: str) -> None:
        self.state, self.cause = state, cause

    def as_data(self) -> dict[str, Any]:
        """Everything, as plain data: the report of a canary, and what `of_data` continues from."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "salt": self.salt,
            "state": self.state,
            "cause": self.cause,
            "step": self.step,
            "weight": self.weight,
            "pairs": self.pairs,
            "restarts": self.restarts,
            "judged": {name: asdict(judgement) | {"mean": judgement.mean} for name, judgement in self.judged.items()},
        }

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Canary:
        """A canary that goes on where one was stopped. Unpaired outcomes are forgotten."""
        canary = cls(Plan(**data["plan"]), salt=data["salt"])
        canary.state, canary.cause = data["state"], data["cause"]
        canary.step, canary.pairs, canary.restarts = data["step"], data["pairs"], data["restarts"]
        for name, held in data["judged"].items():
            canary.judged[name] = Judgement(**{key: value for key, value in held.items() if key != "mean"})
        return canary
