"""From the body of a chat or completion to what the engine is asked: ids, settings, and what ends an answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from groundup.serving import wire
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import bad
from groundup.serving.api.registry import Served, too_long
from groundup.serving.api.schemas import Sampled
from groundup.serving.api.tools import Offered

SEEDS = 1 << 63


@dataclass(frozen=True)
class Order:
    """One prompt with everything that its answers depend on; `n` answers are `n` requests to the engine."""

    served: Served
    ids: list[int]
    sampling: Mapping[str, Any]
    """The fields of `Sampling`, without its stop strings, which are the front's business."""
    seed: int
    stops: tuple[str, ...]
    """Texts before which an answer ends."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    grammar: str | None
    offered: Offered | None
    priority: int
    deadline_s: float
    logprobs: int | None = None
    """How many most likely tokens to tell of beside each chosen one; None tells nothing."""
    operation: Literal["chat", "completion"] = "completion"
    """What it is counted as."""
    visible: frozenset[int] = field(default_factory=frozenset)
    """Special tokens that are part of an answer's text."""

    def request(self, caller: Caller, number: int) -> wire.Generate:
        """What the engine is asked for the answer of this number: each has a seed of its own."""
        return wire.Generate(
            model=self.served.model,
            ids=self.ids,
            sampling={**self.sampling, "seed": (self.seed + number) % SEEDS},
            stop_ids=sorted(self.stop_ids),
            adapter=self.served.adapter,
            grammar=self.grammar,
            priority=self.priority,
            key=caller.key,
            deadline_s=self.deadline_s,
        )


def order(
    api: Api,
    caller: Caller,
    served: Served,
    body: Sampled,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    stops: Sequence[str] = (),
    grammar: str | None = None,
    offered: Offered | None = None,
    logprobs: int | None = None,
    operation: Literal["chat", "completion"] = "completion",
) -> Order:
    """The order for one prompt. Raises ApiError for one that does not fit the model, and for a token it has not."""
    if not ids:
        raise bad("the prompt is empty, and this model has no token to begin a text with", "prompt")
    if len(ids) > served.facts.context:
        raise too_long(len(ids), served.facts.context)
    ends = frozenset() if body.ignore_eos else frozenset(stop_ids)
    return Order(
        served=served,
        ids=list(ids),
        sampling=_sampling(body, served, max_new_tokens, logprobs),
        seed=secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS,
        stops=tuple(dict.fromkeys((*body.stops, *stops))),
        stop_ids=ends,
        grammar=grammar,
        offered=offered,
        priority=(body.priority or 0) + caller.priority,
        deadline_s=caller.deadline_s(api, body.timeout),
        logprobs=logprobs,
        operation=operation,
        visible=offered.form.special_ids if offered else frozenset(),
    )


def most_tokens(api: Api, asked: int | None, served: Served, prompt_tokens: int) -> int:
    """The most tokens of an answer: as asked for, what the server allows, and what the context has room for."""
    # A token at the last position can still be followed by one that is never read.
    room = served.facts.context - prompt_tokens + 1
    return max(1, min(asked or api.settings.max_new_tokens, api.settings.max_new_tokens, room))


def _sampling(body: Sampled, served: Served, max_new_tokens: int, logprobs: int | None) -> dict[str, Any]:
    """The fields of `Sampling` that differ from its defaults. A value that is null is the default."""
    given = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_k": body.top_k if body.top_k and body.top_k > 0 else None,
        "top_p": body.top_p if body.top_p and body.top_p < 1 else None,
        "min_p": body.min_p or None,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty or None,
        "frequency_penalty": body.frequency_penalty or None,
        "logit_bias": _biases(body.logit_bias, served.facts.vocab_size),
        "min_new_tokens": body.min_tokens or None,
        "ignore_eos": body.ignore_eos or None,
        "logprobs": logprobs,
        "max_new_tokens": max_new_tokens,
    }
    if body.top_p == 0:  # the least nucleus there is: the most likely token
        given["top_k"] = 1
    return {name: value for name, value in given.items() if value is not None}


def _biases(given: Mapping[str, float] | None, vocab_size: int) -> dict[str, float] | None:
    """Biases by token id. Raises ApiError for what is no id of this model, and for one that is too large."""
    for name, bias in (given or {}).items():
        if not name.isascii() or not name.isdigit() or len(name) > 9 or int(name) >= vocab_size:
            raise bad(f"{name[:32]!r} is no token of this model", "logit_bias", fix=f"ids are 0 to {vocab_size - 1}")
        if not -100 <= bias <= 100:
            raise bad(f"the bias {bias:g} of token {name} is too large", "logit_bias", fix="-100 to 100")
    return dict(given) if given else None
