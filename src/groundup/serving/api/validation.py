"""What is wrong with a body, in one error that names the key as a client wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from groundup.errors import nearest
from groundup.serving.api.errors import ApiError, bad

SHOWN = 64
"""Characters of a value that are shown."""
MOST = 3
"""Mistakes that are told at once."""


def explained(form: type[BaseModel], error: ValidationError) -> ApiError:
    """The refusal of a body that does not have its form."""
    return of_details(form, error.errors(include_url=False, include_context=False))


def of_details(form: type[BaseModel] | None, details: Sequence[Any]) -> ApiError:
    """The refusal for what pydantic found; the first mistake names the key, and the others are told with it."""
    said: list[str] = []
    for detail in details:
        text = _said(form, detail)
        if text not in said:
            said.append(text)
    more = f", and {len(said) - MOST} more" if len(said) > MOST else ""
    param = _path(details[0]["loc"]) or None
    code = "unknown_parameter" if details[0]["type"] == "extra_forbidden" else "invalid_value"
    return bad("; ".join(said[:MOST]) + more, param, code=code)


def _said(form: type[BaseModel] | None, detail: Any) -> str:
    path = _path(detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in form.model_fields.items()] if form else []
        guess = f": {nearest(path, known)}" if known and "." not in path and "[" not in path else ""
        return f"unknown parameter {path!r}{guess}"
    if detail["type"] == "missing":
        return f"{path or 'the body'} is missing" if path else "a JSON body is needed"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    found = detail.get("input")
    shown = "" if isinstance(found, dict | list) else f" (found {_short(found)})"
    return f"{path or 'the body'}: {message}{shown}"


def _path(location: Sequence[Any]) -> str:
    """`messages[0].role` from pydantic's ("body", "messages", 0, "role"); what names no key is left out."""
    text = ""
    for part in location[1:] if location[:1] == ("body",) else location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif str(part).isidentifier() and str(part) not in ("str", "int", "float", "bool"):
            text += f".{part}" if text else str(part)
    return text[:256]


def _short(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
