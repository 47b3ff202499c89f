"""Chats out of data rows, in the layouts that people keep them in.

Which layout a row has is told from its columns:
- `messages`: a list of `{"role", "content"}`, with `tool_calls` and the like where there are any;
- `conversations`: a list of `{"from", "value"}` (ShareGPT), whose `function_call` and `observation` turns
  become tool calls and their results;
- `instruction`, and beside it `input`, `output`, `system`, `history` (Alpaca);
- `prompt` and `completion`, strings or lists of messages.

`system` and `tools` may stand beside any of them, and what is structured may be JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.errors import DataError

Message = dict[str, Any]
LAYOUTS = ("messages", "conversations", "instruction", "prompt")
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""What other layouts call a role."""


@dataclass(frozen=True)
class Conversation:
    """A chat as it is rendered: its messages, and the functions that may be called in it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


def conversation(row: Mapping[str, Any], *, needs_answer: bool = True) -> Conversation:
    """The chat of a data row.

    `needs_answer` says that an `output` or `completion` must be there, as in rows to learn from.
    Raises DataError, naming the row, for one that holds no chat or an unreadable one.
    """
    layout = next((name for name in LAYOUTS if row.get(name) is not None), None)
    if layout is None:
        held = ", ".join(sorted(key for key in row if key not in ("text", "id", "source"))) or "none"
        fix = f"name one of {', '.join(LAYOUTS)} under `keep` of the prepare stage; columns beside text: {held}"
        raise DataError("the row holds no chat", where=_where(row), fix=fix)
    try:
        if layout in ("messages", "conversations"):
            messages = turns(row[layout])
        elif layout == "instruction":
            messages = _alpaca(row, needs_answer)
        else:
            messages = [*turns(row["prompt"], "user"), *_completion(row, needs_answer)]
        return Conversation([*_system(row, messages), *messages], tools(row.get("tools")))
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(row, layout, error) from error


def reply(row: Mapping[str, Any], column: str) -> list[Message]:
    """The messages of an answer: of a string, one assistant's turn. Raises DataError, naming the row."""
    value = row.get(column)
    if value is None:
        fix = f"name {column!r} under `keep` of the prepare stage"
        raise DataError(f"the row has no {column!r}", where=_where(row), fix=fix)
    try:
        return turns(value, "assistant")
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(row, column, error) from error


def turns(value: Any, role: str = "user") -> list[Message]:
    """Messages of a list, of one mapping, of JSON text, or of plain text said in a role. Raises ValueError."""
    if isinstance(value, str):
        parsed = _json(value, list) if value.lstrip().startswith("[") else None
        if not isinstance(parsed, list) or not all(isinstance(item, Mapping) for item in parsed):
            return [{"role": role, "content": value}]
        value = parsed
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise ValueError(f"a chat is a list of messages, not {type(value).__name__}")
    return [_message(item) for item in value]


def tools(value: Any) -> list[dict[str, Any]] | None:
    """JSON schemas of functions from a list or its JSON text; None where there is none. Raises ValueError."""
    if isinstance(value, str):
        value = _json(value, list) if value.strip() else None
    if not value:
        return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ValueError("`tools` is a list of JSON schemas")
    return [dict(tool) for tool in value]


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"a message is a mapping with role and content, not {item!r}")
    if "role" not in item and "from" not in item:
        raise ValueError(f"a message without a role: {_short(item)}")
    said = item.get("content", item.get("value"))
    who = str(item.get("role", item.get("from")))
    rest = {key: value for key, value in item.items() if key not in ("role", "from", "content", "value")}
    if who == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(call) for call in _calls(said)], **rest}
    message = {"role": ROLES.get(who, who), "content": said, **rest}
    if message.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in _calls(message["tool_calls"])]
    return {key: value for key, value in message.items() if value is not None}


def _calls(value: Any) -> list[Any]:
    parsed = _json(value, (list, dict)) if isinstance(value, str) else value
    return parsed if isinstance(parsed, list) else [parsed]


def _call(call: Any) -> dict[str, Any]:
    """A tool call as templates expect it: `{"type": "function", "function": {"name", "arguments"}}`.

    Arguments given as JSON text become the mapping they stand for: templates write it as JSON themselves.
    """
    if not isinstance(call, Mapping):
        raise ValueError(f"a tool call is a mapping with name and arguments, not {call!r}")
    function = dict(call["function"]) if isinstance(call.get("function"), Mapping) else dict(call)
    named = {key: call[key] for key in ("id",) if isinstance(call.get("function"), Mapping) and call.get(key)}
    if not isinstance(function.get("name"), str):
        raise ValueError(f"a tool call without a name: {_short(call)}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments, dict) if arguments.strip() else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _alpaca(row: Mapping[str, Any], needs_answer: bool) -> list[Message]:
    parts = [str(row[key]) for key in ("instruction", "input") if row.get(key)]
    past = row.get("history") or []
    rounds = _json(past, list) if isinstance(past, str) else past
    messages: list[Message] = []
    for question, answer in rounds:
        messages += [{"role": "user", "content": str(question)}, {"role": "assistant", "content": str(answer)}]
    messages.append({"role": "user", "content": "\n".join(parts)})
    if needs_answer:
        messages.append({"role": "assistant", "content": str(row["output"])})
    return messages


def _completion(row: Mapping[str, Any], needs_answer: bool) -> list[Message]:
    return turns(row["completion"], "assistant") if needs_answer else []


def _system(row: Mapping[str, Any], messages: Sequence[Message]) -> list[Message]:
    given = row.get("system")
    has_one = bool(messages) and messages[0]["role"] == "system"
    return [{"role": "system", "content": str(given)}] if given and not has_one else []


def _json(text: str, kind: type | tuple[type, ...]) -> Any:
    found = json.loads(text)
    if not isinstance(found, kind):
        raise ValueError(f"JSON of another kind than expected: {_short(found)}")
    return found


def _unreadable(row: Mapping[str, Any], column: str, error: Exception) -> DataError:
    what = f"no {error} in the row" if isinstance(error, KeyError) else str(error)
    return DataError(f"{column!r} cannot be read as a chat: {what}", where=_where(row), fix="repair or remove the row")


def _where(row: Mapping[str, Any]) -> str:
    return str(row.get("source", ""))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
