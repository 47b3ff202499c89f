"""A linear layer that stays as it is, and a trained change of low rank beside it: LoRA, DoRA, QLoRA.

The layer computes W x + b + s · B A x, where W and b are frozen, A and B are trained and s is a fixed
number. DoRA trains, in addition, the length of each row of W + s · B A. The names of the trained weights
are those of published adapters.

Axes: N positions, I inputs, O outputs, R rank.
Hu et al. 2021 (LoRA); Liu et al. 2024 (DoRA); Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.config import Named
from groundup.nn.dropout import dropout as dropped
from groundup.nn.quantised import QUANTISED, Bits, frozen_product

BEFORE = "digest_before"
"""The attribute of a tensor that was rounded for use: the digest of what it was."""
NUMBERS = "numbers"
"""The attribute of a tensor whose numbers lie elsewhere: a function that gives them."""
TRAINED = ("lora_A", "lora_B", "lora_magnitude_vector")
"""What an adapted layer trains; the last one in DoRA only."""


class AdaptedLinear(nn.Linear):
    """A frozen linear layer with a trained change of low rank.

    It takes the weights of `plain` over and leaves it empty, to be filled again by `merged`. Adapters are
    fp32 whatever the base is: they are small, and their updates too fine for sixteen bits.
    """

    squares: Tensor
    weight: nn.Parameter | None  # type: ignore[assignment]

    def __init__(
        self,
        plain: nn.Linear,
        *,
        rank: int,
        scaling: float,
        generator: torch.Generator,
        dropout: float = 0.0,
        trains_magnitude: bool = False,
        bits: Bits | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.rank, self.scaling, self.dropout, self.bits = rank, scaling, dropout, bits
        # A tuple hides the emptied layer from registration.
        self.plain = (plain,)
        weight_OI = cast(nn.Parameter, plain.weight)
        self.register_parameter("weight", None if bits else weight_OI)
        self.register_parameter("bias", plain.bias)
        self.requires_grad_(False)
        plain.register_parameter("weight", None)
        plain.register_parameter("bias", None)
        self.frozen = QUANTISED[bits](weight_OI) if bits else None
        # Told before the matrix is gone: which base this is an adapter of.
        self.base_digest = digest(weight_OI) if bits else ""
        self.base_error = relative_error(self.matrix(), weight_OI) if bits else 0.0
        device = weight_OI.device
        # Normal, as in the paper (section 4.1), with the variance of its authors' code.
        drawn_RI = torch.randn(rank, self.in_features, generator=generator) / (3 * self.in_features) ** 0.5
        self.lora_A = nn.Parameter(drawn_RI.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if trains_magnitude:
            self.register_buffer("squares", self.matrix().float().square().sum(1), persistent=False)
            self.lora_magnitude_vector = nn.Parameter(self.squares.sqrt())

    def matrix(self) -> Tensor:
        """The frozen matrix (O, I) in its own type; unpacked if it is kept in few bits."""
        if self.frozen is not None:
            unpacked: Tensor = self.frozen()
            return unpacked
        assert self.weight is not None, "only a quantised layer is without its matrix"
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) to (…, O). Dropout is on the way into A only (the authors' code; also in DoRA)."""
        x_NI = input.reshape(-1, self.in_features)
        magnitude_O = self.lora_magnitude_vector
        out_NO = self._base(x_NI, self.bias if magnitude_O is None else None)
        dropped_NI = dropped(x_NI, self.dropout, self.training) if self.dropout else x_NI
        low_NR = F.linear(dropped_NI, self.lora_A.to(x_NI.dtype))
        # In place: the base's result is needed for no gradient, and the sum costs one pass instead of three.
        out_NO = out_NO.addmm_(low_NR.to(out_NO.dtype), self.lora_B.t().to(out_NO.dtype), alpha=self.scaling)
        if magnitude_O is not None:
            gain_O = (magnitude_O / self.norms()).to(out_NO.dtype)
            bias_O = None if self.bias is None else self.bias.to(out_NO.dtype)
            out_NO = out_NO * gain_O if bias_O is None else torch.addcmul(bias_O, out_NO, gain_O)
        return out_NO.view(*input.shape[:-1], self.out_features)

    def _base(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        if self.frozen is not None:
            return frozen_product(x_NI, self.frozen, bias_O)
        return F.linear(x_NI, self.matrix(), bias_O)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """The length of each row of W + s · B A, (O,) in fp32, a constant to the gradient (DoRA, section 4.3).

        By ‖w + s·a‖² = ‖w‖² + 2s·w·a + s²·‖a‖², so that the sum of the two matrices is never made.
        """
        a_RI, b_OR, s = self.lora_A, self.lora_B, self.scaling
        crossed_O = (F.linear(self.matrix().float(), a_RI) * b_OR).sum(1)
        own_O = ((b_OR @ (a_RI @ a_RI.t())) * b_OR).sum(1)
        return (self.squares + 2 * s * crossed_O + s * s * own_O).clamp(min=0).sqrt()

    @torch.no_grad()
    def change(self) -> Tensor:
        """s · B A, (O, I) in fp32."""
        return self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer it was made from, of the same type, filled with what this one computes.

        The sum is made in fp32 and stored in the base's own type. A base kept in few bits is unpacked and stays
        as the adapter saw it: it is not the matrix of the checkpoint (`base_error` says how far it is from it).
        """
        base = self.matrix()
        sum_OI = base.float() + self.change()
        if self.lora_magnitude_vector is not None:
            sum_OI = sum_OI * (self.lora_magnitude_vector / self.norms())[:, None]
        (plain,) = self.plain
        plain.register_parameter("weight", nn.Parameter(sum_OI.to(base.dtype)))
        plain.register_parameter("bias", None if self.bias is None else nn.Parameter(self.bias.detach()))
        plain.train(self.training)
        return plain


@dataclass(frozen=True)
class Adaptation:
    """What a network knows of the adapter in it, as `network.adapter`."""

    config: Named
    whole: tuple[str, ...]
    """Names of the modules that train whole, beside the adapted layers."""


def digest(tensor: Tensor) -> str:
    """SHA-256 in hex of a tensor's values as fp32, so of the same values in whichever type; of one that was rounded for
    use, of what it was before."""
    before: str | None = getattr(tensor, BEFORE, None)
    if before is not None:
        return before
    elsewhere: Callable[[], Tensor] | None = getattr(tensor, NUMBERS, None)
    if elsewhere is not None:
        tensor = elsewhere()
    plain = tensor.to_dense() if tensor.is_mkldnn else tensor
    values = plain.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def adapted_layers(network: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """The adapted layers of a network with their names."""
    for name, module in network.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The size of the difference over the size of what was wanted, by root mean square."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30))
