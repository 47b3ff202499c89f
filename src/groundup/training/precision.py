"""The precision a run computes in: `fp32`, or `bf16` with fp32 master weights.

bf16 halves the memory of activations everywhere and is many times faster on GPUs, but on a CPU
without matrix units it can take twice as long; so `auto` measures matrix products in both and takes
bf16 only where it clearly wins. Losses, norms' statistics and optimizer state stay in fp32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from groundup.training.device import gemm_rate

Precision = Literal["fp32", "bf16"]

# Casting weights and activations back and forth eats into the gain of the products.
WORTHWHILE = 1.3
# What a whole measured step must gain for the loss of digits to be worth it.
WORTHWHILE_STEP = 1.1


def pick(wanted: Precision | Literal["auto"], device: str) -> tuple[Precision, str]:
    """The precision for `auto` or a name, and the reason in words (with the measurement)."""
    if wanted != "auto":
        return wanted, "asked for"
    try:
        gain = gemm_rate(device, torch.bfloat16) / gemm_rate(device, torch.float32)
    except RuntimeError:
        return "fp32", f"{device} has no bf16 products"
    chosen: Precision = "bf16" if gain >= WORTHWHILE else "fp32"
    return chosen, f"bf16 products run at {gain:.2f}x the rate of fp32 here"


def computing_in(precision: Precision, device: str) -> AbstractContextManager[object]:
    """A context in which matrix products run in `precision`; parameters and gradients stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)
