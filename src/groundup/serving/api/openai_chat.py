"""`POST /v1/chat/completions`: messages in, the assistant's next turn out, whole or piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from groundup.serving import grammar
from groundup.serving.api import logprobs, structured
from groundup.serving.api.calling import Api, Caller, now
from groundup.serving.api.errors import bad
from groundup.serving.api.events import DONE, event, events_of
from groundup.serving.api.generating import Order, most_tokens, order
from groundup.serving.api.metering import Metered
from groundup.serving.api.reading import Ending, Piece, Whole, answer, merged, whole
from groundup.serving.api.registry import Served, require_chat
from groundup.serving.api.schemas import ChatRequest, ToolChoice
from groundup.serving.api.tools import Offered
from groundup.text.conversations import turns
from groundup.text.prompt import Rendered

ROLES = {"developer": "system"}
"""What OpenAI calls roles that templates know by another name."""
SMALL_CHAT = 4096
"""Characters up to which a chat is rendered at once; a longer one in a thread, so that nobody waits for it."""


async def chat(api: Api, caller: Caller, body: ChatRequest) -> dict[str, Any]:
    """The answer to a chat as one object. Raises ApiError, and EngineFault."""
    made = await _order(api, caller, body)
    with Metered(caller, len(made.ids), _most(made) * (body.n or 1)) as meter:
        found = await whole([answer(api, caller, made, number, meter) for number in range(body.n or 1)])
        usage = meter.usage([one.ending for one in found])
    choices = [_choice(made.served, body, place, one) for place, one in enumerate(found)]
    return _head(caller, made.served, "chat.completion") | {"choices": choices, "usage": usage}


async def stream(api: Api, caller: Caller, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    """The answer to a chat as events. Raises like `chat` before the first, if it fails by then."""
    made = await _order(api, caller, body)
    head = _head(caller, made.served, "chat.completion.chunk")
    chunk = events_of(head, ',"usage":null' if body.wants_usage else "")
    endings: list[Ending] = []
    sent: dict[int, int] = {}
    with Metered(caller, len(made.ids), _most(made) * (body.n or 1)) as meter:
        sources = [answer(api, caller, made, number, meter) for number in range(body.n or 1)]
        async with contextlib.aclosing(merged(sources)) as items:
            async for place, item in items:
                if place not in sent:
                    sent[place] = 0
                    yield chunk(_delta(place, {"role": "assistant", "content": ""}))
                if isinstance(item, Ending):
                    endings.append(item)
                    yield chunk(_delta(place, {}, finish=item))
                    continue
                yield chunk(_delta(place, _content(item, sent[place]), told=_told(made.served, body, item)))
                sent[place] += len(item.calls)
        usage = meter.usage(endings)
    if body.wants_usage:
        yield event(head | {"choices": [], "usage": usage})
    yield DONE


async def _order(api: Api, caller: Caller, body: ChatRequest) -> Order:
    served = caller.asks(api, body.model, "generate")
    require_chat(served)
    offered = _offered(served, body)
    rendered = await _rendered(served, body, offered)
    prompt = served.texts.prompt(body.chat_template_kwargs)
    asked = body.max_completion_tokens or body.max_tokens
    return order(
        api,
        caller,
        served,
        body,
        rendered.ids,
        max_new_tokens=most_tokens(api, asked, served, len(rendered.ids)),
        stop_ids=prompt.stop_ids,
        stops=prompt.stop_strings,
        grammar=_grammar(body, offered),
        offered=offered,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        operation="chat",
    )


async def _rendered(served: Served, body: ChatRequest, offered: Offered | None) -> Rendered:
    """The chat as the model reads it. Raises ApiError, naming the message, for what cannot be rendered."""
    messages = _messages(body)
    tools = list(offered.tools) if offered else None
    size = sum(len(message.get("content") or "") for message in messages)
    if size > served.texts.context:  # else it is short whatever its tokens
        served.texts.require_short("".join(message.get("content") or "" for message in messages))
    prompt = served.texts.prompt(body.chat_template_kwargs)
    if size < SMALL_CHAT:
        return prompt.render(messages, tools, add_generation_prompt=True)
    return await asyncio.to_thread(prompt.render, messages, tools, add_generation_prompt=True)


def _messages(body: ChatRequest) -> list[dict[str, Any]]:
    """The messages in the form that templates are written for. Raises ApiError."""
    given = []
    for place, message in enumerate(body.messages):
        if not isinstance(message.get("role"), str):
            raise bad("a message has no role", f"messages[{place}].role", fix="system, user, assistant or tool")
        role = ROLES.get(message["role"], message["role"])
        given.append({**message, "role": role, "content": _text(message.get("content"), place)})
    try:
        return turns(given)
    except ValueError as error:
        raise bad(f"the messages cannot be read: {error}", "messages") from error


def _text(content: Any, place: int) -> str | None:
    """The text of a message, of a list of parts too. Raises ApiError for anything but text."""
    where = f"messages[{place}].content"
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise bad(f"this model reads text, and a part is {str(kind)[:64]!r}", where, fix='{"type": "text", …}')
    return "".join(part["text"] for part in parts)


def _offered(served: Served, body: ChatRequest) -> Offered | None:
    """The functions that may be called. Raises ApiError where the model's template knows no calls."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise bad("tool_choice asks for a call, and no tools are given", "tool_choice", fix="send tools as well")
        return None
    if choice == "none":
        return None
    form = served.texts.call_form
    if form is None:
        what = f"the chat template of {served.name!r} shows no calls of functions, so the model never saw one"
        raise bad(what, "tools", fix="leave tools out, or ask a model that was trained to call functions")
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools]
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) != len(names):
        raise bad("two tools have the same name", "tools")
    if isinstance(choice, ToolChoice):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not tools:
            what = f"tool_choice names {choice.function.name[:64]!r}, which is none of the tools"
            raise bad(what, "tool_choice", fix=f"tools: {', '.join(names)}")
    is_forced = choice == "required" or isinstance(choice, ToolChoice)
    several = body.parallel_tool_calls is not False and not isinstance(choice, ToolChoice)
    return Offered(tools, form, is_forced, several)


def _grammar(body: ChatRequest, offered: Offered | None) -> str | None:
    own = structured.grammar_of(body)
    forced = offered.grammar() if offered else None
    if forced is None:
        return own
    if own is not None:
        raise bad("an answer cannot be both a call of a function and held to a grammar of its own", "tool_choice")
    return grammar.from_lark(forced)


def _most(made: Order) -> int:
    return int(made.sampling["max_new_tokens"])


def _head(caller: Caller, served: Served, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{caller.request_id}",
        "object": kind,
        "created": now(),
        "model": served.name,
        "system_fingerprint": served.digest,
    }


def _choice(served: Served, body: ChatRequest, place: int, found: Whole) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": found.text or (None if found.calls else "")}
    message["refusal"] = None
    if found.calls:
        message["tool_calls"] = [call.as_data() for call in found.calls]
    told = logprobs.of_chat(served.texts, found.tokens) if body.logprobs else None
    end = found.ending
    return {"index": place, "message": message, "logprobs": told, "finish_reason": end.reason, **_why(end)}


def _why(end: Ending) -> dict[str, Any]:
    """vLLM's `stop_reason`, and the limit that cut an answer off where that was time."""
    return {"stop_reason": end.stop} | ({"finish_detail": end.detail} if end.detail else {})


def _delta(
    place: int, delta: Mapping[str, Any], *, finish: Ending | None = None, told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    more = _why(finish) if finish is not None else {}
    reason = finish.reason if finish is not None else None
    return {"index": place, "delta": delta, "logprobs": told, "finish_reason": reason, **more}


def _content(piece: Piece, before: int) -> dict[str, Any]:
    """What a piece adds to the message. `before`: how many calls were sent already."""
    delta: dict[str, Any] = {"content": piece.text} if piece.text or not piece.calls else {}
    if piece.calls:
        delta["tool_calls"] = [call.as_data(before + place) for place, call in enumerate(piece.calls)]
    return delta


def _told(served: Served, body: ChatRequest, piece: Piece) -> dict[str, Any] | None:
    return logprobs.of_chat(served.texts, piece.tokens) if body.logprobs else None
