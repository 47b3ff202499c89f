"""Safetensors files written one tensor at a time, so that a model never has to fit into memory twice.

The format is a length (eight bytes, little-endian), a JSON header of that length which says each
tensor's type, shape and place, and the tensors end to end. As shapes are known before values, the
header can be written first and each tensor made, written and dropped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Types of tensors and what the format calls them."""
_ALIGNMENT = 8


@dataclass(frozen=True)
class Planned:
    """A tensor that is made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32


def write(path: Path, tensors: Sequence[Planned]) -> None:
    """Write a safetensors file, in the order of names; whole or not at all.

    Raises ValueError if a tensor comes out in another shape or type than was planned, or twice.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    if len({tensor.name for tensor in ordered}) != len(ordered):
        raise ValueError("two tensors have the same name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(_header(ordered))
            for planned in ordered:
                file.write(_bytes(planned))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(tensors: Sequence[Planned]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        described[tensor.name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(planned: Planned) -> Any:
    """The bytes of a tensor, as an array that can be written without another copy."""
    made = planned.make()
    if tuple(made.shape) != planned.shape or made.dtype != planned.dtype:
        came = f"{tuple(made.shape)} {made.dtype}"
        raise ValueError(f"{planned.name} was planned as {planned.shape} {planned.dtype} and came as {came}")
    flat = made.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
