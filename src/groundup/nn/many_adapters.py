"""Several adapters over one base in one call: each token is read with its own, or with none.

A linear layer computes W x + b for all tokens together, then adds s · B A x of each adapter for its own tokens.
The base stays as it was: it is held once, however many adapters there are.

Axes: N tokens of a call, I inputs, O outputs, R rank.
Hu et al. 2021 (LoRA); many of them in one batch: Chen et al. 2023 (Punica), Sheng et al. 2023 (S-LoRA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError, nearest


@dataclass(frozen=True)
class LowRankChange:
    """What an adapter adds to a layer: up · down · x."""

    down: Tensor
    """A, (R, I)."""
    up: Tensor
    """s · B, (O, R), the strength s of the change already in it."""


class Route:
    """Which tokens of the call that is being computed belong to which adapter; shared by all layers."""

    def __init__(self) -> None:
        self.tokens: dict[str, Tensor | slice] = {}


class ManyAdaptedLinear(nn.Linear):
    """A linear layer with a change of low rank for each of any number of adapters.

    It takes the weights of `plain` over, under the same names.
    """

    def __init__(self, plain: nn.Linear, route: Route) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.product = plain.forward
        """Multiplies with these weights, however they are laid out."""
        self.route = route
        self.changes: dict[str, LowRankChange] = {}
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) to (…, O); the N tokens of a call are all leading axes together."""
        out = self.product(input)
        for name, tokens in self.route.tokens.items():
            change = self.changes.get(name)
            if change is not None:
                x_NI, out_NO = input.reshape(-1, self.in_features), out.view(-1, self.out_features)
                added_NO = F.linear(F.linear(x_NI[tokens], change.down), change.up)
                out_NO[tokens] += added_NO
        return out


class AdapterSet:
    """The adapters of a network by name. The network's layers are replaced as adapters need it, weights kept."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.names: set[str] = set()
        self._route = Route()

    def add(self, name: str, changes: Mapping[str, LowRankChange]) -> None:
        """Make changes, by full names of layers, available under a name. Raises UserError for a name in use."""
        if name in self.names:
            raise UserError(f"an adapter named {name!r} is loaded already", fix="unload it first, or choose a name")
        for layer_name, change in changes.items():
            layer = self._layer(layer_name)
            # Beside weights that were laid out, all else is in fp32.
            place = layer.weight.device, torch.float32 if layer.weight.is_mkldnn else layer.weight.dtype
            layer.changes[name] = LowRankChange(change.down.to(*place), change.up.to(*place))
        self.names.add(name)

    def remove(self, name: str) -> None:
        """Forget an adapter. Raises UserError if there is none of that name."""
        if name not in self.names:
            raise UserError(f"no adapter named {name!r} is loaded", fix=nearest(name, self.names))
        for layer in self.network.modules():
            if isinstance(layer, ManyAdaptedLinear):
                layer.changes.pop(name, None)
        self.names.discard(name)

    @contextmanager
    def reading(self, adapters_N: Sequence[str | None], device: torch.device) -> Iterator[None]:
        """A block whose calls read token i of a flat batch with the adapter `adapters_N[i]`, or with none.

        Raises UserError for a name that is not loaded.
        """
        strangers = set(adapters_N) - self.names - {None}
        if strangers:
            name = cast(str, min(strangers, key=str))
            raise UserError(f"no adapter named {name!r} is loaded", fix=nearest(name, self.names))
        places: dict[str, list[int]] = {}
        for place, name_ in enumerate(adapters_N):
            if name_ is not None:
                places.setdefault(name_, []).append(place)
        self._route.tokens = {name: _as_index(found, device) for name, found in places.items()}
        try:
            yield
        finally:
            self._route.tokens = {}

    def _layer(self, name: str) -> ManyAdaptedLinear:
        found = self.network.get_submodule(name)
        if isinstance(found, ManyAdaptedLinear):
            return found
        if not isinstance(found, nn.Linear) or found.weight is None:
            raise UserError(f"{name} is no plain linear layer, so nothing can be added to it", fix="merge the adapter")
        layer = ManyAdaptedLinear(found, self._route)
        self.network.set_submodule(name, layer)
        return layer


def _as_index(places: list[int], device: torch.device) -> Tensor | slice:
    """Places as what picks them fastest: neighbours need no copy."""
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        return slice(first, last + 1)
    return torch.tensor(places, device=device)
