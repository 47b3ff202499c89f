"""How weights begin, by name. Norms begin at one and biases at zero whatever the name.

All random numbers come from one generator on the CPU in the order of the modules, so a seed gives the
same weights on every device. A module with weights of its own, such as a recurrent layer, says by `begin`
how they begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from groundup.nn.layers import ResidualLinear
from groundup.nn.positions import PositionTable

Draw = Callable[[Tensor, float, torch.Generator], None]


@runtime_checkable
class Begins(Protocol):
    """A module that knows how its own weights begin."""

    def begin(self, draw: Callable[[Tensor], None], generator: torch.Generator, std: float) -> None:
        """Set the module's own weights in place; `draw` fills a matrix by the initialiser that was named.

        `std` is that of embedding tables. Parameters named `bias` or `bias_…` are set to zero before.
        """


def normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with normal numbers of the given standard deviation."""
    nn.init.normal_(weight, std=std, generator=generator)


def xavier(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Uniform in ±√(6 / (fan_in + fan_out)); `std` plays no part (Glorot & Bengio 2010, eq. 16)."""
    nn.init.xavier_uniform_(weight, generator=generator)


def kaiming(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Normal with variance 2 / fan_in; `std` plays no part (He et al. 2015, eq. 10)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def zeros(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """All zero: only to show that nothing can be learnt from there."""
    nn.init.zeros_(weight)


INITIALISERS: dict[str, Draw] = {
    "normal": normal,
    "scaled_normal": normal,
    "xavier": xavier,
    "kaiming": kaiming,
    "zeros": zeros,
}
"""By recipe name. `scaled_normal` is normal with the layers that write to the residual stream divided
by √(2 · n_layers), so that its variance does not grow with depth (Radford et al. 2019, §2.3)."""


def initialise(module: nn.Module, *, name: str, std: float, n_layers: int, seed: int) -> None:
    """Set every weight of `module` in place, by initialiser name and seed.

    `n_layers` counts blocks of two residual writes each. Embedding tables are normal with `std`
    (zero under `zeros`): fan-in has no meaning for a table that is looked up.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear | _ConvNd):
            shrink = math.sqrt(2 * n_layers) if name == "scaled_normal" and isinstance(part, ResidualLinear) else 1.0
            _draw(part.weight, INITIALISERS[name], std / shrink, generator)
        elif isinstance(part, nn.Embedding | PositionTable) and isinstance(part.weight, nn.Parameter):
            _draw(part.weight, zeros if name == "zeros" else normal, std, generator)
        elif isinstance(part, nn.LayerNorm | nn.RMSNorm | _BatchNorm) and part.weight is not None:
            nn.init.ones_(part.weight)
        for key, parameter in part.named_parameters(recurse=False):
            if key == "bias" or key.startswith("bias_"):
                nn.init.zeros_(parameter)
        if isinstance(part, Begins):
            part.begin(partial(_draw, draw=INITIALISERS[name], std=std, generator=generator), generator, std)


@torch.no_grad()
def _draw(weight: Tensor, draw: Draw, std: float, generator: torch.Generator) -> None:
    drawn = torch.empty(weight.shape, dtype=torch.float32)
    draw(drawn, std, generator)
    weight.copy_(drawn)
