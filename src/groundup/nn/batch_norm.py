"""What batch norm needs of those who train it: it is the one layer that looks at other examples than its own.

In training it divides by the mean and variance of what passes together, and keeps running averages of
them as buffers; in evaluation it divides by these averages, so an answer depends on no neighbour (Ioffe &
Szegedy 2015, §3.1). Three things follow:

- The buffers are part of a model: they are saved with the weights, in artefacts and in training states, and
  averaged with them where weights are averaged.
- A step that is cut into micro-batches is not the undivided step: means and variances are those of a
  micro-batch. So a batch is never cut by itself, and plan says so where the recipe asks for it.
- Looking at a network (measuring its speed, asking for the loss of one row) must not teach it: `frozen`.

Ghost batches (Hoffer et al. 2017) make a virtue of the second point; here it is only told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

AVERAGES = ("running_mean", "running_var")
COUNT = "num_batches_tracked"
"""The name of the one buffer that is a whole number: how many batches have been seen."""


def layers(network: nn.Module) -> list[_BatchNorm]:
    """The layers of batch norm in a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def averages(network: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of a network, by name."""
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            found |= {f"{name}.{key}": getattr(module, key) for key in AVERAGES}
    return found


def materialise(module: nn.Module, device: torch.device | str) -> None:
    """Give a layer of batch norm whose buffers have only shapes their memory and their first values, in place."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or not module.running_mean.is_meta:
        return
    for key in (*AVERAGES, COUNT):
        only_shape = getattr(module, key)
        setattr(module, key, torch.empty(only_shape.shape, dtype=only_shape.dtype, device=device))
    module.reset_running_stats()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """A block in which batch norm computes as in evaluation, and learns nothing.

    A single row, which has no variance to divide by, can then pass in the midst of training.
    """
    learning = [layer for layer in layers(network) if layer.training]
    for layer in learning:
        layer.eval()
    try:
        yield
    finally:
        for layer in learning:
            layer.train()


@contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """A block after which the running averages are again what they were before."""
    buffers = [buffer for layer in layers(network) for buffer in layer.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def note(rows: int, micro_rows: int) -> str | None:
    """What to tell of a step of `rows` examples that is cut into pieces of `micro_rows`; None if it is not."""
    if micro_rows >= rows:
        return None
    return (
        f"batch norm takes its means and variances from each micro-batch of {micro_rows} examples, not from the "
        f"step's {rows}: the result is not that of an undivided step"
    )
