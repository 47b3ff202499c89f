"""The arithmetic a run computes in: on which device, in which precision, with which library for products.

bf16 (with fp32 master weights) halves the memory of activations everywhere and is many times faster
on GPUs, but on a CPU without matrix units it can take twice as long; so `auto` measures matrix products
in both and takes bf16 only where it clearly wins. Losses, norms' statistics and optimizer state stay in
fp32. For fp32 on a CPU, `groundup.nn.products` says which libraries there are to choose from.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from groundup.nn import products
from groundup.nn.products import Matmul
from groundup.training.devices import gemm_rate

Precision = Literal["fp32", "bf16"]

WORTHWHILE_PRODUCTS = 1.3
"""How much faster bf16 products must be for a whole step in bf16 to be tried: casting eats into the gain."""
WORTHWHILE_STEP = 1.1
"""What a whole measured step must gain for the loss of digits to be worth it."""
WORTHWHILE_LIBRARY = 1.05
"""What another library for products must gain, so that noise does not decide."""


@dataclass(frozen=True)
class Arithmetic:
    """Where and how a run computes."""

    device: str
    precision: Precision = "fp32"
    matmul: Matmul = "torch"

    def on(self) -> AbstractContextManager[Any]:
        """A block in which matrix products run so; parameters and gradients stay fp32."""
        if self.precision == "bf16":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return products.multiplying(self.matmul) if self.matmul != "torch" else nullcontext()


def faster_library() -> tuple[Matmul, str]:
    """The library that multiplies fp32 faster on this CPU, and the reason in words."""
    gain = products.gain()
    chosen: Matmul = "onednn" if gain > WORTHWHILE_LIBRARY else "torch"
    return chosen, f"oneDNN multiplies at {gain:.2f}x the rate of torch's own"


def bf16_gain(device: str) -> float:
    """The rate of bf16 products over that of fp32 ones; 0 if the device has none."""
    try:
        return gemm_rate(device, torch.bfloat16) / gemm_rate(device, torch.float32)
    except RuntimeError:
        return 0.0
