"""Labelled tasks: classes of whatever a row holds, tags of tokens, answers in passages, …; and scores of texts.

A row is a text, or a mapping with the columns that the model was trained on. The engine has the task itself encode it
and put its answer together, as training and evaluation did.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from groundup.serving import wire
from groundup.serving.api import media
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import bad
from groundup.serving.api.metering import Metered
from groundup.serving.api.registry import Served, too_long
from groundup.serving.api.rows import answered
from groundup.serving.api.schemas import QuestionRequest, Row, RowsRequest, ScoreRequest
from groundup.serving.inputs import ROUTES
from groundup.text import tagged


async def classify(api: Api, caller: Caller, body: RowsRequest) -> dict[str, Any]:
    """For each row its `label`, `labels` or `number`, with the probability of each class."""
    served = served_for(api, caller, body.model, "classify")
    return await _asked(api, caller, served, await _rows(api, served, body.input), body.timeout)


async def tag(api: Api, caller: Caller, body: RowsRequest) -> dict[str, Any]:
    """For each row its `tokens` and `tags`, and the `spans` that these make: label, first token, last, text."""
    served = served_for(api, caller, body.model, "tag")
    column = served.facts.columns.get("tokens", "tokens")
    rows: list[dict[str, Any]] = []
    for row in _listed(body.input):
        # A text is cut here, so that the answer can say into what.
        rows.append({column: tagged.words(row)} if isinstance(row, str) else dict(row))
        text = rows[-1].get("text")
        if column not in rows[-1] and isinstance(text, str):
            rows[-1][column] = tagged.words(text)
    found = await _asked(api, caller, served, rows, body.timeout)
    for row, one in zip(rows, found["data"], strict=True):
        tokens = row[column]
        one |= {"tokens": tokens, "spans": spans(tokens, one["tags"])}
    return found


async def answer(api: Api, caller: Caller, body: QuestionRequest) -> dict[str, Any]:
    """For each question its answer as it stands in the passage, `start` and `end`, and how sure the model is."""
    served = served_for(api, caller, body.model, "answer")
    columns = served.facts.columns
    question, passage = columns.get("question", "question"), columns.get("passage", "context")
    if body.input is not None:
        rows: list[dict[str, Any]] = body.input
    elif body.question is not None and body.context is not None:
        rows = [{question: body.question, passage: body.context}]
    else:
        raise bad("there is no question with a passage", "question", fix="send question and context, or input")
    found = await _asked(api, caller, served, rows, body.timeout)
    for row, one in zip(rows, found["data"], strict=True):
        one["answer"] = one.pop("text")
        start = str(row.get(passage, "")).find(one["answer"]) if one["answer"] else -1
        one |= {"start": start, "end": start + len(one["answer"])} if start >= 0 else {"start": None, "end": None}
    return found


async def translate(api: Api, caller: Caller, body: RowsRequest) -> dict[str, Any]:
    """For each row its translation as `text`, and how likely its tokens are on average."""
    served = served_for(api, caller, body.model, "translate")
    return await _asked(api, caller, served, await _rows(api, served, body.input), body.timeout)


async def score(api: Api, caller: Caller, body: ScoreRequest) -> dict[str, Any]:
    """For each text its log-probability in nats after the prompt: the sum, and that of each token."""
    served = caller.asks(api, body.model, "generate")
    given = [body.text] if isinstance(body.text, str) else body.text
    if not 1 <= len(given) <= api.settings.max_rows:
        raise bad(f"{len(given)} texts in one request", "text", fix=f"send 1 to {api.settings.max_rows}")
    texts = served.texts
    start = [*texts.beginning.before(body.prompt), *await texts.encode(body.prompt)]
    rows = [await texts.encode(text) for text in given]
    if not start:
        raise bad("the first token has nothing before it, so nothing says how likely it is", "prompt", fix="give one")
    for ids in rows:
        if len(start) + len(ids) > served.facts.context:
            raise too_long(len(start) + len(ids), served.facts.context)
    data = []
    with Metered(caller, sum(len(start) + len(ids) for ids in rows)) as meter:
        for place, ids in enumerate(rows):
            found = await _scores(api, caller, served, [*start, *ids], len(start), body.timeout) if ids else []
            entry = {"index": place, "logprob": sum(found), "token_logprobs": found}
            data.append(entry | {"tokens": [texts.tokenizer.spelling(token) for token in ids]})
    return {"object": "list", "model": served.name, "data": data, "usage": meter.usage()}


async def _scores(
    api: Api, caller: Caller, served: Served, ids: Sequence[int], first: int, timeout: float | None
) -> list[float]:
    deadline_s = caller.deadline_s(api, timeout)
    asked = wire.Score(served.model, ids, first, adapter=served.adapter, key=caller.key, deadline_s=deadline_s)
    return await api.client.score(asked)


def served_for(api: Api, caller: Caller, name: str, route: str) -> Served:
    """The model of a name. Raises ApiError for one that is asked at another route."""
    served = caller.asks(api, name, "answer")
    own = ROUTES[served.facts.evaluation]
    if own != route:
        what = f"{name!r} is a model of {served.facts.task}, and cannot be asked this"
        raise bad(what, "model", fix=f"ask it at /v1/{own}", code="wrong_model_kind")
    return served


async def _asked(
    api: Api, caller: Caller, served: Served, rows: Sequence[Mapping[str, Any]], timeout: float | None
) -> dict[str, Any]:
    given, meter = await answered(api, caller, served, rows, timeout)
    data = [{"index": place, **one} for place, one in enumerate(given)]
    usage = {"prompt_tokens": meter.prompt_tokens, "total_tokens": meter.prompt_tokens}
    return {"object": "list", "model": served.name, "data": data, "usage": usage}


async def _rows(api: Api, served: Served, given: Row | list[Row]) -> list[dict[str, Any]]:
    facts = served.facts
    if facts.media:
        read = partial(media.opened, facts, _listed(given), most_bytes=api.settings.max_media)
        return await asyncio.to_thread(read)  # base64 of megabytes takes a while
    column = facts.columns.get("text", "text")
    rows = [{column: row} if isinstance(row, str) else row for row in _listed(given)]
    if any(isinstance(value, bytes) for row in rows for value in row.values()):
        raise bad(f"{served.name!r} reads no files", "input", fix=f"send rows as JSON, with {', '.join(facts.columns)}")
    return rows


def _listed(given: Row | list[Row]) -> list[Row]:
    return given if isinstance(given, list) else [given]


def spans(tokens: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """The spans that tags make: `label`, `first` and `last` token, `text`. Tags of BIO, IOB1 and BIOES alike.

    A span begins at B- and S-, and at any other tag that is not of the span before it.
    """
    found: list[dict[str, Any]] = []
    previous = ""
    for place, tag in enumerate(tags):
        letter, _, label = tag.partition("-")
        if label and (letter in "BS" or previous != label):
            found.append({"label": label, "first": place, "last": place})
        elif label:
            found[-1]["last"] = place
        previous = "" if letter in "ES" else label
    return [one | {"text": _joined(tokens[one["first"] : one["last"] + 1])} for one in found]


def _joined(tokens: Sequence[str]) -> str:
    """Tokens as text: a space between two, but not beside characters that are written without one."""
    text = ""
    for token in tokens:
        is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in text[-1:] + token[:1])
        text += token if not text or is_wide else f" {token}"
    return text
