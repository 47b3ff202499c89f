"""`POST /v1/completions`: texts continued, whole or piece by piece."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.serving import wire
from groundup.serving.api import logprobs, structured
from groundup.serving.api.calling import Api, Caller, now
from groundup.serving.api.errors import bad
from groundup.serving.api.events import DONE, event, events_of
from groundup.serving.api.generating import Order, most_tokens, order
from groundup.serving.api.metering import Metered
from groundup.serving.api.reading import Ending, Piece, Whole, answer, merged, whole
from groundup.serving.api.registry import Served
from groundup.serving.api.schemas import CompletionRequest
from groundup.serving.client import Token

MOST_TEXTS = 128
"""Answers of one request: prompts times n."""


@dataclass(frozen=True)
class _Prompt:
    """A prompt, and what of it is shown before its answers."""

    order: Order
    echo: str
    told: tuple[Token, ...]
    """Its own tokens, where their log-probabilities are asked for."""


async def complete(api: Api, caller: Caller, body: CompletionRequest) -> dict[str, Any]:
    """The continuations as one object. Raises ApiError, and EngineFault."""
    prompts = await _prompts(api, caller, body)
    served, n = prompts[0].order.served, body.n or 1
    read = sum(len(prompt.order.ids) for prompt in prompts)
    with Metered(caller, read, _most(prompts, body)) as meter:
        if body.max_tokens == 0:
            found = [Whole("", (), (), Ending("length", 0)) for _ in range(len(prompts) * n)]
        else:
            found = await whole(_answers(api, caller, prompts, n, meter))
        usage = meter.usage([one.ending for one in found])
    choices = []
    for place, one in enumerate(found):
        prompt = prompts[place // n]
        tokens = (*prompt.told, *one.tokens)
        offset = 0 if prompt.told else len(prompt.echo)
        told = logprobs.of_completion(served.texts, tokens, offset=offset) if body.logprobs is not None else None
        choices.append(_choice(place, prompt.echo + one.text, told, one.ending))
    return _head(caller, served) | {"choices": choices, "usage": usage}


async def stream(api: Api, caller: Caller, body: CompletionRequest) -> AsyncGenerator[bytes, None]:
    """The continuations as events. Raises like `complete` before the first, if it fails by then."""
    if body.max_tokens == 0:
        raise bad("a stream of no tokens", "max_tokens", fix="ask without stream")
    prompts = await _prompts(api, caller, body)
    served, n = prompts[0].order.served, body.n or 1
    head = _head(caller, served)
    chunk = events_of(head, ',"usage":null' if body.wants_usage else "")
    places = [len(prompts[place // n].echo) for place in range(len(prompts) * n)]
    endings: list[Ending] = []
    begun: set[int] = set()
    read = sum(len(prompt.order.ids) for prompt in prompts)
    with Metered(caller, read, _most(prompts, body)) as meter:
        async with contextlib.aclosing(merged(_answers(api, caller, prompts, n, meter))) as items:
            async for place, item in items:
                prompt = prompts[place // n]
                if place not in begun and prompt.echo:
                    told = logprobs.of_completion(served.texts, prompt.told) if prompt.told else None
                    yield chunk(_choice(place, prompt.echo, told, None))
                begun.add(place)
                if isinstance(item, Ending):
                    endings.append(item)
                    yield chunk(_choice(place, "", None, item))
                    continue
                yield chunk(_choice(place, item.text, _told(served, body, item, places[place]), None))
                places[place] += len(item.text)
        usage = meter.usage(endings)
    if body.wants_usage:
        yield event(head | {"choices": [], "usage": usage})
    yield DONE


def _answers(
    api: Api, caller: Caller, prompts: Sequence[_Prompt], n: int, meter: Metered
) -> list[AsyncGenerator[Piece | Ending, None]]:
    return [answer(api, caller, prompt.order, number, meter) for prompt in prompts for number in range(n)]


async def _prompts(api: Api, caller: Caller, body: CompletionRequest) -> list[_Prompt]:
    served = caller.asks(api, body.model, "generate")
    if body.best_of not in (None, 1, body.n or 1):
        raise bad("best_of is not offered", "best_of", fix="ask for n answers and choose among them")
    if body.max_tokens == 0 and not body.echo:
        raise bad("no tokens are asked for, and no echo", "max_tokens", fix="ask for at least one token")
    given = _listed(body.prompt)
    if not given or len(given) * (body.n or 1) > MOST_TEXTS:
        raise bad(f"{len(given)} prompts with {body.n or 1} answers each", "prompt", fix=f"1 to {MOST_TEXTS} in all")
    grammar = structured.grammar_of(body)
    return [await _prompt(api, caller, served, body, one, grammar) for one in given]


async def _prompt(
    api: Api, caller: Caller, served: Served, body: CompletionRequest, given: str | list[int], grammar: str | None
) -> _Prompt:
    texts = served.texts
    if isinstance(given, str):
        ids = [*texts.beginning.before(given), *await texts.encode(given)]
    else:
        wrong = next((token for token in given if not 0 <= token < served.facts.vocab_size), None)
        if wrong is not None:
            fix = f"ids are 0 to {served.facts.vocab_size - 1}"
            raise bad(f"{wrong} is no token of this model", "prompt", fix=fix)
        ids = list(given)
    made = order(
        api,
        caller,
        served,
        body,
        ids,
        # OpenAI's default where nothing is said; null is no limit but the server's.
        max_new_tokens=most_tokens(api, body.max_tokens, served, len(ids)),
        stop_ids=texts.tokenizer.stop_ids,
        grammar=grammar,
        logprobs=body.logprobs,
    )
    if not body.echo:
        return _Prompt(made, "", ())
    shown = given if isinstance(given, str) else texts.tokenizer.decode(ids)
    return _Prompt(made, shown, await _scored(api, caller, made) if body.logprobs is not None else ())


async def _scored(api: Api, caller: Caller, made: Order) -> tuple[Token, ...]:
    """The prompt's own tokens with their log-probabilities; nothing says how likely the first is."""
    served = made.served
    asked = wire.Score(
        model=served.model, ids=made.ids, adapter=served.adapter, key=caller.key, deadline_s=made.deadline_s
    )
    found = await api.client.score(asked) if len(made.ids) > 1 else []
    tokens = [Token(made.ids[0]), *(Token(i, p) for i, p in zip(made.ids[1:], found, strict=True))]
    hidden = len(made.ids) - len(_without_start(served, made.ids))
    return tuple(tokens[hidden:])


def _without_start(served: Served, ids: list[int]) -> list[int]:
    """The ids without the start token, which is no part of what was asked."""
    start = list(served.texts.beginning.always)
    return ids[len(start) :] if start and ids[: len(start)] == start else ids


def _listed(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [one for one in prompt if not isinstance(one, int)]


def _most(prompts: Sequence[_Prompt], body: CompletionRequest) -> int:
    return sum(int(prompt.order.sampling["max_new_tokens"]) for prompt in prompts) * (body.n or 1)


def _head(caller: Caller, served: Served) -> dict[str, Any]:
    return {
        "id": f"cmpl-{caller.request_id}",
        "object": "text_completion",
        "created": now(),
        "model": served.name,
        "system_fingerprint": served.digest,
    }


def _choice(place: int, text: str, told: dict[str, Any] | None, end: Ending | None) -> dict[str, Any]:
    more: dict[str, Any] = {"stop_reason": end.stop} if end is not None else {}
    if end is not None and end.detail:
        more["finish_detail"] = end.detail
    reason = end.reason if end is not None else None
    return {"index": place, "text": text, "logprobs": told, "finish_reason": reason, **more}


def _told(served: Served, body: CompletionRequest, piece: Piece, offset: int) -> dict[str, Any] | None:
    return logprobs.of_completion(served.texts, piece.tokens, offset=offset) if body.logprobs is not None else None
