"""What an answer has to look like, as a grammar: a JSON schema, a regular expression, or Lark.

A request says so by `response_format` (OpenAI) or by one of vLLM's `guided_…` keys. Here the grammar is only put
together; the engine compiles it, with limits, and refuses what is wrong with it.
"""

from __future__ import annotations

import json
from typing import Any

from groundup.errors import UserError
from groundup.serving import grammar
from groundup.serving.api.errors import bad
from groundup.serving.api.schemas import ResponseFormat, Sampled


def grammar_of(body: Sampled) -> str | None:
    """The grammar of a request, or None if its answer is free.

    Raises ApiError, naming the key, for one that asks for several, and for one that is too long or too deep.
    """
    found = {name: value for name, value in _asked(body).items() if value is not None}
    if not found:
        return None
    if len(found) > 1:
        first, second, *_ = found
        raise bad(f"{first} and {second} cannot both decide what the answer looks like", second, fix="send one")
    name, value = next(iter(found.items()))
    try:
        if name == "guided_regex":
            return grammar.from_regex(value)
        if name in ("guided_grammar", "guided_choice"):
            return grammar.from_lark(value)
        return grammar.from_json_schema(value)
    except UserError as error:
        raise bad(error.what, name, fix=error.fix) from error


def _asked(body: Sampled) -> dict[str, Any]:
    return {
        "response_format": _schema(body.response_format),
        "guided_json": body.guided_json,
        "guided_regex": body.guided_regex,
        "guided_grammar": body.guided_grammar,
        "guided_choice": _choice(body.guided_choice),
    }


def _schema(wanted: ResponseFormat | None) -> Any:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        fix = '{"type": "json_schema", "json_schema": {"name": …, "schema": …}}'
        raise bad("response_format has no json_schema", "response_format.json_schema", fix=fix)
    return wanted.json_schema.schema_


def _choice(texts: list[str] | None) -> str | None:
    return None if texts is None else "start: " + " | ".join(json.dumps(text) for text in texts)
