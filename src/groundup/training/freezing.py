"""Which layers learn, when, and how fast: what fine-tuning does to keep what was learnt before.

Everything here is a function of the step, so a resumed run needs no state for it. Depths are those of
`groundup.nn.depth`: 0 for tables of tokens and positions, then the blocks, and the head on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from groundup.config import Section
from groundup.nn.depth import depths
from groundup.nn.network import Network
from groundup.training.optimizers import Rate
from groundup.training.schedules import as_steps
from groundup.units import PositiveCount, StepsOrShare


class Layers(Section):
    """How layers differ in what they learn. By default they do not."""

    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The learning rate of each layer as a share of that of the layer above it, the head on top; 0.65 to 0.95 is
    usual for encoders. 1: all alike."""
    head_lr: Rate | None = None
    """The peak learning rate of the head, and of what else lies above the last layer; `optimizer.lr` if null."""
    frozen: Literal["nothing", "embeddings", "backbone"] | PositiveCount = "nothing"
    """What never learns: nothing, the tables of tokens and positions (embeddings), all but what lies above the last
    layer (backbone), or so many of the lowest layers (a number; tables included)."""
    unfreeze_every: StepsOrShare | None = None
    """Gradual unfreezing: begin with the head alone, and let one layer more learn every so many steps (or share of
    all steps: 1 / epochs for one an epoch), from the top. null: all from the start."""

    @property
    def is_plain(self) -> bool:
        """Whether all layers learn alike from the start."""
        return self == Layers()

    @model_validator(mode="after")
    def _something_to_unfreeze(self) -> Self:
        if self.frozen == "backbone" and self.unfreeze_every is not None:
            raise ValueError(
                "a frozen backbone is never unfrozen: leave out `unfreeze_every`, or set `frozen: nothing`"
            )
        if self.frozen == "backbone" and self.lr_decay != 1:
            raise ValueError("a frozen backbone has no learning rates: leave out `lr_decay`, or set `frozen: nothing`")
        return self


def freeze(network: nn.Module, layers: Layers) -> None:
    """Take what never learns out of training, in place. What is frozen already, as under an adapter, stays so."""
    lowest = _lowest(network, layers)
    if lowest:
        found = depths(_network(network))
        for name, p in network.named_parameters():
            p.requires_grad_(p.requires_grad and found[name] >= lowest)


def lr_scales(network: nn.Module, layers: Layers, lr: float) -> dict[str, float]:
    """By the name of a weight, what `lr` is multiplied by for it (Howard & Ruder 2018, section 3.2)."""
    if layers.lr_decay == 1 and layers.head_lr is None:
        return {}
    found = depths(_network(network))
    top = max(found.values())
    head = 1.0 if layers.head_lr is None else layers.head_lr / lr
    return {name: head if depth == top else layers.lr_decay ** (top - depth) for name, depth in found.items()}


class Unfreezing:
    """Layers that begin to learn one after the other (Howard & Ruder 2018, section 3.3)."""

    def __init__(self, network: nn.Module, layers: Layers, steps: int) -> None:
        """`steps` are those of the whole run."""
        self.every = None if layers.unfreeze_every is None else max(1, as_steps(layers.unfreeze_every, steps))
        self.top, self.held = 0, list[tuple[int, nn.Parameter]]()
        if self.every is not None:
            found = depths(_network(network))
            self.top = max(found.values())
            self.held = [(found[name], p) for name, p in network.named_parameters() if p.requires_grad]

    def lowest(self, step: int) -> int:
        """The lowest depth that learns in a step; the steps count from 0."""
        return 0 if self.every is None else max(0, self.top - step // self.every)

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """A block in which only the layers of a step ask for gradients; optimizers leave the others alone."""
        lowest = self.lowest(step)
        waiting = [p for depth, p in self.held if depth < lowest]
        for p in waiting:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in waiting:
                p.requires_grad_(True)


def summary(network: nn.Module, layers: Layers, lr: float) -> list[dict[str, float | int]]:
    """A row for each depth that learns: its weights and its peak rate, for the plan and the log."""
    scales: Mapping[str, float] = lr_scales(network, layers, lr)
    rows: dict[int, dict[str, float | int]] = {}
    lowest = _lowest(network, layers)
    for name, depth in depths(_network(network)).items():
        p = network.get_parameter(name)
        if p.requires_grad and depth >= lowest:
            row = rows.setdefault(depth, {"depth": depth, "weights": 0, "lr": lr * scales.get(name, 1.0)})
            row["weights"] += p.numel()
    return [rows[depth] for depth in sorted(rows)]


def _lowest(network: nn.Module, layers: Layers) -> int:
    """The lowest depth that ever learns."""
    if layers.frozen == "nothing":
        return 0
    if layers.frozen == "embeddings":
        return 1
    top = max(depths(_network(network)).values())
    return top if layers.frozen == "backbone" else min(top, int(layers.frozen) + 1)


def _network(network: nn.Module) -> Network:
    assert isinstance(network, Network), "only a network of a known model has layers to tell apart"
    return network
