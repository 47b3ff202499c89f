"""What fine-tuning adds to a run: layers that differ, and a regulariser. Pretraining has neither."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from groundup.training import objective
from groundup.training.arithmetic import Arithmetic
from groundup.training.freezing import Layers
from groundup.training.objective import Batch, Forward, Objective
from groundup.training.regularisers import Regulariser


@dataclass(frozen=True)
class Methods:
    """The methods of a run, as sections; by default a plain one."""

    layers: Layers = field(default_factory=Layers)
    regulariser: Regulariser | None = None

    @property
    def compiles(self) -> bool:
        """Whether the forward pass can be one graph."""
        return self.regulariser is None or self.regulariser.COMPILES

    def forward(self, network: nn.Module, task: Objective, arithmetic: Arithmetic) -> Forward:
        """The forward pass of the run, as `objective.forward` gives it."""
        if self.regulariser is None:
            return objective.forward(network, task, arithmetic)
        return self.regulariser.forward(network, task, arithmetic)

    def counts(self, task: Objective, batch: Batch) -> dict[str, int]:
        """The counts of a micro-batch, by part of the loss."""
        added = self.regulariser
        return task.counts(batch) | ({added.PART: added.count(batch)} if added else {})
