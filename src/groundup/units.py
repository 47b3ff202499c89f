"""Human units, in and out: `5M` tokens, `8Ki` tokens, `5%`, `30min`, `2GiB`.

k, M, B (or G) and T are decimal; Ki, Mi, Gi and Ti are binary. The annotated types at the end are
what recipe sections use, so a unit is parsed once, at the recipe's border, and is a plain number
everywhere else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

SCALES = {
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "B": 10**9,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*$")


def parse_count(value: Any) -> int:
    """A whole number from `1000`, `"1k"`, `"8Ki"`, `"2.5M"` or `1e6`.

    Raises ValueError for a negative number, an unknown unit, or a result that is not whole.
    """
    number, unit = _split(value, "a count such as 500, 20k, 5M or 8Ki")
    if unit not in SCALES:
        raise ValueError(f"unknown unit {unit!r} in {value!r}; use one of {_listed(SCALES)}")
    count = number * SCALES[unit]
    if abs(count - round(count)) > 1e-6 * max(1.0, count):
        raise ValueError(f"{value!r} is not a whole number")
    return round(count)


def parse_bytes(value: Any) -> int:
    """A number of bytes from `"2GiB"`, `"500MB"` or a plain count."""
    if isinstance(value, str):
        value = re.sub(r"(?<=[A-Za-z0-9\s])B$", "", value.strip()) if value.strip() != "B" else value
    return parse_count(value)


def parse_share(value: Any) -> float:
    """A share in [0, 1] from `"5%"` or `0.05`. Raises ValueError outside that range."""
    number, unit = _split(value, "a share such as 5% or 0.05")
    if unit not in ("", "%"):
        raise ValueError(f"unknown unit {unit!r} in {value!r}; write 5% or 0.05")
    share = number / 100 if unit == "%" else number
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not between 0% and 100%")
    return share


def parse_duration(value: Any) -> float:
    """Seconds from `"30min"`, `"2h"`, `"45s"` or a plain number of seconds."""
    number, unit = _split(value, "a duration such as 45s, 30min or 2h")
    if unit and unit not in SECONDS:
        raise ValueError(f"unknown unit {unit!r} in {value!r}; use one of {_listed(SECONDS)}")
    return number * SECONDS[unit or "s"]


def parse_steps_or_share(value: Any) -> int | float:
    """`100` (steps) or `"2%"` (of all steps, returned as a float of at most 1, and read back as such)."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return parse_share(value)
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    return parse_count(value)


def _split(value: Any, wanted: str) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {wanted}")
    if isinstance(value, int | float):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{value!r} is not {wanted}")
        return float(value), ""
    match = _NUMBER.match(value)
    if match is None:
        raise ValueError(f"{value!r} is not {wanted}")
    return float(match[1].replace("_", "")), match[2]


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(name for name in names if name)


def show_count(count: float) -> str:
    """`1234567` as `1.23M`: three significant figures, decimal."""
    for scale, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(count) >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.3g}" if count % 1 else str(int(count))


def show_bytes(count: float) -> str:
    """`1536` as `1.5 KiB`."""
    for scale, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(count) >= scale:
            return f"{count / scale:.{4 if count / scale >= 1000 else 3}g} {unit}"
    return f"{int(count)} B"


def show_seconds(seconds: float) -> str:
    """`95` as `1 min 35 s`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


_UNIT = {"type": ["integer", "number", "string"]}
Count = Annotated[int, BeforeValidator(parse_count), WithJsonSchema({**_UNIT, "examples": ["5M", "8Ki", 500]})]
"""A whole number, zero or more, with an optional unit."""
PositiveCount = Annotated[Count, Field(gt=0)]
"""A whole number, one or more, with an optional unit."""
Bytes = Annotated[int, BeforeValidator(parse_bytes), WithJsonSchema({**_UNIT, "examples": ["2GiB"]})]
"""A number of bytes."""
Share = Annotated[float, BeforeValidator(parse_share), WithJsonSchema({**_UNIT, "examples": ["5%", 0.05]})]
"""A share between 0 and 1, also written with a percent sign."""
Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema({**_UNIT, "examples": ["30min"]})]
"""Seconds, also written with a unit."""
StepsOrShare = Annotated[
    int | float,
    BeforeValidator(parse_steps_or_share),
    WithJsonSchema({**_UNIT, "examples": ["2%", 100]}),
]
"""A number of steps, or a share of all steps."""
