"""Pictures as lines of numbers: a picture a line, its pixels row by row, its label before or behind them.

MNIST and its successors go round in this form as CSV, with a line of names first or without one, and scikit-learn
bundles small digits in it. Pictures are grey.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from groundup.config import Section
from groundup.units import PositiveCount


class PixelLines(Section):
    """How a line of numbers becomes a picture."""

    label: Literal["first", "last", "none"] = "first"
    """Where the label stands on a line, if there is one."""
    white: PositiveCount = 255
    """The number of a white pixel; 0 is black."""
    shape: tuple[PositiveCount, PositiveCount] | None = None
    """Height and width of the pictures in pixels. Unless given, they are square."""


def picture_of(fields: list[str], section: PixelLines) -> dict[str, Any] | str:
    """The row of a line: `image` (raw bytes), `shape` (height, width, 1) and `label`; or why there is none."""
    values, label = fields, None
    if section.label != "none":
        label = fields[0 if section.label == "first" else -1].strip()
        values = fields[1:] if section.label == "first" else fields[:-1]
    try:
        pixels = np.array(values, np.float64)
    except ValueError:
        return "a pixel that is no number"
    side = math.isqrt(len(values))
    height, width = section.shape or (side, side)
    if not values or height * width != len(values):
        return (
            f"no picture ({len(values)} pixels, where {'a square' if section.shape is None else height * width} is due)"
        )
    if not (pixels.min() >= 0 and pixels.max() <= section.white):
        return f"a pixel outside 0 to {section.white}"
    row: dict[str, Any] = {"image": np.rint(pixels * (255 / section.white)).astype(np.uint8).tobytes()}
    row["shape"] = [height, width, 1]
    return row if label is None else row | {"label": int(label) if label.isdecimal() else label}


def is_heading(fields: list[str]) -> bool:
    """Whether a first line names columns: none of its fields is a number."""
    return not any(_is_number(field) for field in fields)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
