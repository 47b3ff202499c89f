"""Matrices kept in 8 or 4 bits for products that need no gradient of them: the frozen base of QLoRA.

Nothing is ever multiplied in few bits: for each product the matrix is unpacked to the type it had, and
in the backward pass it is unpacked again instead of being kept. So memory falls and time rises a little.

Axes: N positions, I inputs, O outputs, G groups of 64 values.
Dettmers et al. 2023 (QLoRA, section 3); Dettmers et al. 2022 (one scale for each row of 8-bit values).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn import products

Bits = Literal[4, 8]
GROUP = 64
"""Values that share one scale in 4 bits."""
SCALE_GROUP = 256
"""Scales that share one scale of their own (double quantisation)."""


def normal_float_levels() -> list[float]:
    """The 16 values of NF4, from -1 to 1: equally likely quantiles of a normal distribution.

    QLoRA, section 3 and appendix E: eight levels below zero, seven above it and zero itself; the outermost
    quantile lies halfway between those that 15 and 16 levels would end at.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    quantile = NormalDist().inv_cdf

    def above_zero(levels: int) -> list[float]:
        return [quantile(outermost + (0.5 - outermost) * i / levels) for i in range(levels)]

    values = [-value for value in above_zero(7)] + [0.0] + above_zero(8)
    largest = max(values)
    return sorted(value / largest for value in values)


class Int8Matrix(nn.Module):
    """A matrix (O, I) as 8-bit integers, with one scale for each output."""

    codes: Tensor
    scale: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.dtype = weight_OI.dtype
        full_OI = weight_OI.detach().float()
        scale_O1 = (full_OI.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
        codes_OI = (full_OI / scale_O1).round().to(torch.int8)
        # Not saved: they follow from the checkpoint that was wrapped.
        self.register_buffer("codes", codes_OI, persistent=False)
        self.register_buffer("scale", scale_O1, persistent=False)

    def forward(self) -> Tensor:
        """The matrix (O, I) in the type it had."""
        return (self.codes.float() * self.scale).to(self.dtype)


class NormalFloat4Matrix(nn.Module):
    """A matrix (O, I) as NF4: two values a byte, one scale for 64 values, itself an 8-bit number.

    Scales are stored as 8-bit integers around their mean, 256 to a scale of their own. The paper has 8-bit
    floats there; scales of one matrix lie so close together that even steps lose less.
    """

    codes: Tensor
    pairs: Tensor
    scale_codes: Tensor
    scale_scale: Tensor
    scale_mean: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.dtype, self.shape = weight_OI.dtype, weight_OI.shape
        levels = torch.tensor(normal_float_levels(), device=weight_OI.device)
        values = weight_OI.detach().float().flatten()
        values_GK = F.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
        self._keep_scales(values_GK.abs().amax(1))
        shares_GK = values_GK / self._scales().clamp(min=1e-30)[:, None]
        codes = torch.bucketize(shares_GK.flatten(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        self.register_buffer("codes", codes[0::2] | codes[1::2] << 4, persistent=False)
        # One look-up gives both values of a byte.
        pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], 1)
        self.register_buffer("pairs", pairs, persistent=False)

    def _keep_scales(self, scale_G: Tensor) -> None:
        mean = scale_G.mean()
        rest = F.pad(scale_G - mean, (0, -len(scale_G) % SCALE_GROUP)).view(-1, SCALE_GROUP)
        step = (rest.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
        self.groups = len(scale_G)
        self.register_buffer("scale_codes", (rest / step).round().to(torch.int8), persistent=False)
        self.register_buffer("scale_scale", step, persistent=False)
        self.register_buffer("scale_mean", mean, persistent=False)

    def _scales(self) -> Tensor:
        scale_G: Tensor = (self.scale_codes.float() * self.scale_scale).flatten()[: self.groups] + self.scale_mean
        return scale_G

    def forward(self) -> Tensor:
        """The matrix (O, I) in the type it had."""
        shares = F.embedding(self.codes.int(), self.pairs).view(-1, GROUP)
        values = (shares * self._scales()[:, None]).flatten()[: self.shape.numel()]
        return values.view(self.shape).to(self.dtype)


QUANTISED: dict[int, type[Int8Matrix] | type[NormalFloat4Matrix]] = {8: Int8Matrix, 4: NormalFloat4Matrix}
"""How a matrix is kept, by bits."""


def frozen_product(x_NI: Tensor, matrix: Int8Matrix | NormalFloat4Matrix, bias_O: Tensor | None) -> Tensor:
    """x wᵀ + bias, (N, O), with a gradient of x alone."""
    if torch.compiler.is_compiling():
        # A compiler decides by itself what it keeps for the backward pass.
        return F.linear(x_NI, matrix(), bias_O)
    out_NO: Tensor = _FrozenProduct.apply(x_NI, matrix, bias_O)  # type: ignore[no-untyped-call]
    return out_NO


class _FrozenProduct(torch.autograd.Function):
    """Unpacks the matrix in both passes and keeps it in neither."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, matrix: nn.Module, bias_O: Tensor | None) -> Tensor:
        ctx.matrix, ctx.library, ctx.dtype = matrix, products.current(), x_NI.dtype
        return F.linear(x_NI, matrix(), bias_O)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (slope_NO,) = slopes
        weight_IO = ctx.matrix().to(slope_NO.dtype).t()
        is_fp32 = slope_NO.dtype == torch.float32 and slope_NO.device.type == "cpu"
        library: products.Matmul = ctx.library if is_fp32 else "torch"
        return products.product(slope_NO, weight_IO, library).to(ctx.dtype), None, None
