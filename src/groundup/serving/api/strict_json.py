"""JSON as a request may hold it: what parsers disagree on, or choke on, is refused before anything reads it.

Refused are bodies that are too long or too deep, names given twice, NaN and infinities, numbers beyond 64 bits, and
halves of characters (lone surrogates), which no tokenizer can read. So what comes out can be written again, and
means the same to whoever reads it next.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from groundup.serving.api.errors import ApiError, bad

DEEPEST = 64
"""Levels of nesting; a JSON schema of a large form has some twenty."""
LARGEST = 1 << 63
"""Integers are below this in size: what the rest of the world reads as a number."""


def parse(body: bytes, *, deepest: int = DEEPEST) -> Any:
    """The value of a JSON text in UTF-8. Raises ApiError (400) saying what is wrong with it."""
    try:
        found = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_mapping,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except UnicodeDecodeError as error:
        raise _refused(f"it is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise _refused(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _refused(f"it is nested deeper than {deepest} levels") from error
    _require_sane(found, deepest)
    return found


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise _refused(f"the name {twice[:80]!r} is given twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _refused(f"{name} is no number in JSON")


def _integer(text: str) -> int:
    # Looked at as text first: reading a million digits takes seconds.
    if len(text) > 20 or not -LARGEST <= int(text) < LARGEST:
        raise _refused(f"the number {text[:24]}{'…' if len(text) > 24 else ''} does not fit 64 bits")
    return int(text)


def _number(text: str) -> float:
    value = float(text) if len(text) <= 64 else math.inf
    if not math.isfinite(value):
        raise _refused(f"the number {text[:24]}{'…' if len(text) > 24 else ''} is too large, or written too long")
    return value


def _require_sane(value: Any, deepest: int) -> None:
    """Raise ApiError for what is nested too deep, and for strings that hold half of a character."""
    level, depth = [value], 0
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _require_whole(item)
            elif isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        depth += any(isinstance(item, dict | list) for item in level)
        if depth > deepest:
            raise _refused(f"it is nested deeper than {deepest} levels")
        level = inner


def _require_whole(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise _refused(f"a string holds {code}, half of a pair that stands for one character") from error


def _refused(what: str) -> ApiError:
    return bad(f"the body is no JSON that can be used: {what}", code="invalid_json")
