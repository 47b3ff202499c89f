"""The tokens and tags of a row, as a corpus of tagged sentences holds them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from groundup.errors import DataError, nearest


def tokens(column: str, example: Mapping[str, Any], *, required: bool = False) -> list[str]:
    """The tokens; of a row that has only a text, its words and its Chinese characters, unless tokens are `required`.

    Raises DataError, naming the row, if there is no list of strings.
    """
    found = example.get(column)
    if column not in example and not required and isinstance(example.get("text"), str):
        return words(example["text"])
    if not isinstance(found, list) or not all(isinstance(token, str) for token in found):
        what = f"no list of tokens in the column {column!r}"
        fix = "repair or leave out the row"
        if column not in example:
            fix = f"{nearest(column, example)}; prepare carries the columns that its source names under `keep`"
        raise DataError(what, where=str(example.get("source", "")), fix=fix)
    return found


def words(text: str) -> list[str]:
    """The tokens of a text that nobody has cut: what stands between spaces, wide characters one by one."""
    spaced = (f" {c} " if unicodedata.east_asian_width(c) in "WF" else c for c in text)
    return "".join(spaced).split()


def tags(column: str, example: Mapping[str, Any], count: int) -> list[str] | None:
    """The tags of a row of so many tokens, or None if it has none.

    Raises DataError, naming the row, if there is another number of them.
    """
    found = example.get(column)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != count:
        many = f"{len(found)} tags" if isinstance(found, list) else "no list of tags"
        what = f"{many} for {count} tokens in the column {column!r}"
        raise DataError(what, where=str(example.get("source", "")), fix="repair or leave out the row")
    return [str(tag) for tag in found]
