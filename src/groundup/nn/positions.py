"""Where a token stands: rotary positions, and the fixed sinusoids of the first Transformer.

Axes: B rows, T tokens, S positions of a table, H heads, K dimensions of a head, D model width.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.config import Section
from groundup.units import PositiveCount


class RopeScaling(Section):
    """How rotary frequencies are stretched to a context longer than the one trained on."""

    kind: Literal["linear", "llama3"]
    """linear: positions divided by `factor` (Chen et al. 2023). llama3: only slow frequencies are."""
    factor: float = Field(gt=0)
    """How many times longer the context becomes."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """llama3: wavelengths above original_context / low_freq_factor are stretched in full."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """llama3: wavelengths below original_context / high_freq_factor stay as they are."""
    original_context: PositiveCount = 8192
    """llama3: the context that was trained on, in tokens."""

    @model_validator(mode="after")
    def _bands_are_apart(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}: "
                "frequencies between the two are mixed"
            )
        return self


class Rotary(nn.Module):
    """Tables of cosines and sines for the positions of a context; no parameters, nothing saved.

    Su et al. 2021. The two halves of a head are rotated against each other, as in published Llama
    weights (the paper rotates neighbours; the two differ by a permutation of the dimensions).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, context: int, theta: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        # On the CPU by name: a network built on the meta device still needs real tables.
        frequencies_K = rotary_frequencies(head_dim, theta, scaling)
        angles_SK = torch.arange(context, dtype=torch.float32, device="cpu")[:, None] * frequencies_K
        self.register_buffer("cos", angles_SK.cos(), persistent=False)
        self.register_buffer("sin", angles_SK.sin(), persistent=False)

    def forward(self, positions_BT: Tensor | None, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `rotate`: (T,1,K/2) for positions 0…T-1, or (B,T,1,K/2) for given ones."""
        if positions_BT is None:
            cos, sin = self.cos[:length], self.sin[:length]
        else:
            cos, sin = self.cos[positions_BT], self.sin[positions_BT]
        return cos.unsqueeze(-2).to(dtype), sin.unsqueeze(-2).to(dtype)


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per position of each pair of dimensions, (K/2,) float32: theta^(-2i/K), then scaled."""
    exponents_K = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    frequencies_K = 1.0 / theta**exponents_K
    match scaling:
        case None:
            return frequencies_K
        case RopeScaling(kind="linear"):
            return frequencies_K / scaling.factor
        case _:
            return _scaled_as_llama3(frequencies_K, scaling)


def _scaled_as_llama3(frequencies_K: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies divided by the factor, fast ones kept, those between mixed (Llama 3.1, 2024)."""
    turns_K = scaling.original_context * frequencies_K / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_K = ((turns_K - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies_K * (kept_K + (1.0 - kept_K) / scaling.factor)


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads turned by their positions' angles, (B,T,H,K); `cos` and `sin` come from `Rotary`."""
    first, second = x_BTHK.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def sinusoids(context: int, d_model: int) -> Tensor:
    """The fixed position table of the first Transformer, (S, D) float32 (Vaswani et al. 2017, §3.5).

    Dimension 2i holds sin(position / 10000^(2i/D)) and 2i+1 its cosine. `d_model` must be even.
    """
    frequencies_D = 1.0 / 10000.0 ** (torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu") / d_model)
    angles_SD = torch.arange(context, dtype=torch.float64, device="cpu")[:, None] * frequencies_D
    return torch.stack((angles_SD.sin(), angles_SD.cos()), dim=-1).flatten(1).float()


class Sinusoids(nn.Module):
    """The fixed position table with all sines before all cosines, as Marian lays it out; nothing saved.

    The dimensions are those of `sinusoids` in another order, which a trained layer cannot tell apart.
    """

    table: Tensor

    def __init__(self, context: int, d_model: int) -> None:
        super().__init__()
        interleaved_SD = sinusoids(context, d_model)
        self.register_buffer("table", torch.cat((interleaved_SD[:, ::2], interleaved_SD[:, 1::2]), 1), persistent=False)

    def forward(self, positions_BT: Tensor | None, length: int) -> Tensor:
        """Vectors of positions 0…T-1, (T,D), or of the given ones, (B,T,D)."""
        return self.table[:length] if positions_BT is None else F.embedding(positions_BT, self.table)


class PositionTable(nn.Module):
    """One vector per position, trained or the fixed sinusoids; published as an embedding's `weight`."""

    weight: Tensor

    def __init__(self, context: int, d_model: int, *, fixed: bool = False) -> None:
        super().__init__()
        if fixed:
            self.register_buffer("weight", sinusoids(context, d_model))
        else:
            self.weight = nn.Parameter(torch.empty(context, d_model))

    def forward(self, positions_BT: Tensor | None, length: int) -> Tensor:
        """Vectors of positions 0…T-1, (T,D), or of the given ones, (B,T,D)."""
        return self.weight[:length] if positions_BT is None else F.embedding(positions_BT, self.weight)


def check_even(d_model: int, positions: str) -> None:
    """Raise ValueError for sinusoidal positions of odd width: sines and cosines come in pairs."""
    if positions == "sinusoidal" and d_model % 2:
        raise ValueError(f"positions: sinusoidal needs an even d_model, and it is {d_model}")
