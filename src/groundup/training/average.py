"""The exponential moving average of the weights, and of batch norm's running means with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundup.nn import batch_norm


class Average:
    """An exponential moving average of the weights (Polyak & Juditsky 1992, as used since Inception).

    The decay rises from 0.1 with the steps, min(decay, (1 + n) / (10 + n)), so that the random start
    is soon forgotten. Batch norm's running means and variances, which belong to the weights they were seen
    with, are averaged alike.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.weights |= batch_norm.averages(network)
        self.tensors = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Take the weights of a step into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self.weights.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; twice is nothing."""
        for name, p in self.weights.items():
            kept = p.detach().clone()
            p.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
