"""What a run minimises, as the loop sees it: a network, losses as sums and counts, rows.

The loss of a step is the sum over the task's parts of (sum over the whole batch) / (count over the
whole batch). Counts are known from the labels before the first backward pass, so each micro-batch
can be divided by the whole batch's count, and how a batch is cut changes nothing.

B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from groundup.data.layout import one_by_one
from groundup.nn import batch_norm
from groundup.progress import interrupt_requested
from groundup.training.arithmetic import Arithmetic

Batch = Mapping[str, Tensor]
Parts = dict[str, tuple[Tensor, Tensor]]
Forward = Callable[[dict[str, Tensor], dict[str, Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Objective:
    """A task's losses. `loss` trains, `held_out` validates (without label smoothing)."""

    loss: Callable[[Any, Batch], Parts]
    held_out: Callable[[Any, Batch], Parts]
    counts: Callable[[Batch], dict[str, int]]
    """Trained labels by part of the loss, told from a batch alone."""
    scores: Callable[[Any, Batch], Mapping[str, Tensor]] | None = None
    """Sums per row of what else is watched on held-out rows."""
    joint: Callable[[Sequence[Tensor], Sequence[Batch]], Parts] | None = None
    """The loss of several micro-batches together, from what the network's head gives of each; for losses that
    compare the examples of a whole step with each other (`training/joint.py`)."""
    watched: Mapping[str, Any] = field(default_factory=dict)
    """By name, what turns those sums into a score: anything with `of(sums)`."""


def shares(counts: Sequence[Mapping[str, int]], device: str) -> dict[str, Tensor]:
    """One over the count of each part over all micro-batches; 0 for a part without any label.

    With data parallelism the counts would be added over ranks here, and nowhere else.
    """
    totals = {part: sum(c[part] for c in counts) for part in counts[0]}
    return {part: torch.tensor(1 / n if n else 0.0, device=device) for part, n in totals.items()}


def forward(network: nn.Module, objective: Objective, arithmetic: Arithmetic) -> Forward:
    """A function of (batch, shares) giving the loss to differentiate and each part of it, detached.

    It is one piece, so that torch.compile sees network and loss as one graph.
    """

    def run(batch: dict[str, Tensor], parts_share: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with arithmetic.on():
            parts = objective.loss(network(batch), batch)
        losses = [total * parts_share[part] for part, (total, _) in parts.items()]
        if len(losses) == 1:
            return losses[0], losses[0].detach().reshape(1)
        stacked = torch.stack(losses)
        return stacked.sum(), stacked.detach()

    return run


def to_device(batch: Batch, device: str) -> dict[str, Tensor]:
    """A batch on a device; copying from page-locked memory does not wait."""
    return {key: value if device == "cpu" else value.to(device, non_blocking=True) for key, value in batch.items()}


@torch.no_grad()
def validate(
    network: nn.Module, objective: Objective, batches: Iterable[Batch], arithmetic: Arithmetic
) -> dict[str, float] | None:
    """The held-out loss: `validation_loss`, and `validation_PART` for each part if there are several.

    What the objective watches beside comes as `validation_NAME`.

    None if the run was asked to stop meanwhile; nothing if no row has a label.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    watched: dict[str, float] = {}
    network.eval()
    for batch in batches:
        if interrupt_requested():
            network.train()
            return None
        inputs = to_device(batch, arithmetic.device)
        with arithmetic.on():
            outputs = network(inputs)
            parts = objective.held_out(outputs, inputs)
            scores = objective.scores(outputs, inputs) if objective.scores else {}
        for name, values in scores.items():
            watched[name] = watched.get(name, 0.0) + float(values.sum())
        for part, (total, count) in parts.items():
            sums[part] = sums.get(part, 0.0) + float(total)
            counts[part] = counts.get(part, 0) + int(count)
    network.train()
    means = {part: sums[part] / counts[part] for part in sums if counts[part]}
    each = {f"validation_{part}": mean for part, mean in means.items()} if len(means) > 1 else {}
    each |= {f"validation_{name}": float(score.of(watched)) for name, score in objective.watched.items()}
    return {"validation_loss": sum(means.values()), **each} if means else {}


@torch.no_grad()
def losses_by_row(network: nn.Module, objective: Objective, batch: Batch, arithmetic: Arithmetic) -> list[float]:
    """The loss of each row alone, to tell which rows are the offending ones."""
    found = []
    for one in one_by_one(batch):
        row = to_device(one, arithmetic.device)
        with arithmetic.on(), batch_norm.frozen(network):
            parts = objective.loss(network(row), row)
        found.append(sum(float(total) / max(1, int(count)) for total, count in parts.values()))
    return found
