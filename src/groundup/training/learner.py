"""What is being trained: a network, its optimizers and the average of its weights.

It computes gradients, applies them, and turns into named tensors and back. When to do what is the
loop's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundup.training import devices, freezing, joint, objective, optimizers
from groundup.training.average import Average
from groundup.training.choices import Choices
from groundup.training.methods import Methods
from groundup.training.objective import Batch, Objective
from groundup.training.settings import TrainingSection

PLAIN = Methods()


@dataclass(frozen=True)
class Figures:
    """What is known of a step before its update."""

    loss: float
    parts: dict[str, float]
    """The loss by the parts of the task."""
    grad_norm: float


class Learner:
    """A network with everything that moves its weights, on the device and in the precision chosen."""

    def __init__(
        self,
        network: nn.Module,
        objective_: Objective,
        settings: TrainingSection,
        choices: Choices,
        methods: Methods = PLAIN,
        steps: int = 1,
    ) -> None:
        """`steps` are those of the whole run; only methods that change on the way look at them."""
        self.network, self.objective = network, objective_
        self.settings, self.choices, self.methods = settings, choices, methods
        freezing.freeze(network, methods.layers)
        self.unfreezing = freezing.Unfreezing(network, methods.layers, steps)
        lr_scales = freezing.lr_scales(network, methods.layers, settings.optimizer.lr)
        self.weights = optimizers.Weights(network, lr_scales)
        self.optimizers = settings.optimizer.build(self.weights, choices.device)
        self.average = Average(network, settings.ema) if settings.ema else None
        self._counted: tuple[list[dict[str, int]], dict[str, Tensor]] = ([], {})
        self.trained = [p for p in network.parameters() if p.requires_grad]
        eager = methods.forward(network, objective_, choices.arithmetic)
        # Shapes never change, so one graph is made for them and no guard has to watch them.
        self.forward = torch.compile(eager, dynamic=False) if choices.compile and methods.compiles else eager

    def gradients(self, parts: Sequence[Batch], step: int) -> Figures:
        """Loss and gradient of a whole batch, cut into `parts`; the gradients are left in place.

        What is random in it (dropout) is a function of (seed, step, part), so that there is no state
        of a generator to keep.
        """
        device = self.choices.device
        share = self._shares([self.methods.counts(self.objective, part) for part in parts])
        losses: Tensor | None = None
        with self.unfreezing.at(step):
            if self.objective.joint is not None and len(parts) > 1:
                losses = self._joint_gradients(parts, share, step)
                parts = ()
            for micro, part in enumerate(parts):
                devices.seed(draw(self.settings.seed, step, micro), device)
                loss, each = self.forward(objective.to_device(part, device), share)
                torch.autograd.backward(loss)
                losses = each if losses is None else losses + each
        if self.settings.l1:
            _add_l1(self.weights.decayed, self.settings.l1)
        # With data parallelism gradients and losses are summed over ranks here.
        norm = total_norm(self._grads())
        assert losses is not None, "a step has at least one micro-batch"
        *found, grad_norm = torch.cat([losses.float(), norm.float().reshape(1)]).tolist()
        return Figures(sum(found), dict(zip(share, found, strict=True)), grad_norm)

    def labels(self, parts: Sequence[Batch]) -> int:
        """The number of labels that the loss of a batch was divided by; of several parts the least."""
        counts = [self.methods.counts(self.objective, part) for part in parts]
        return min(sum(one[name] for one in counts) for name in counts[0])

    def _shares(self, counts: list[dict[str, int]]) -> dict[str, Tensor]:
        """One over the count of each part; as a rule the counts are those of the last step, and so are the tensors."""
        if self._counted[0] != counts:
            self._counted = (counts, objective.shares(counts, self.choices.device))
        return self._counted[1]

    def _joint_gradients(self, parts: Sequence[Batch], share: dict[str, Tensor], step: int) -> Tensor:
        """The parts of a loss that compares the examples of a whole batch; the gradients are left in place."""
        assert self.objective.joint is not None, "only such a loss has a joint one"

        def vectors(batch: Batch) -> Tensor:
            with self.choices.arithmetic.on():
                found: Tensor = self.network(batch).logits
            return found

        batches = [objective.to_device(part, self.choices.device) for part in parts]

        def seed(micro: int) -> None:
            devices.seed(draw(self.settings.seed, step, micro), self.choices.device)

        return joint.gradients(vectors, self.objective.joint, batches, share, seed)

    def update(self, lr: float, grad_norm: float, step: int) -> None:
        """Apply the gradients in place, shortened to `grad_clip`, and move the average."""
        optimizers.set_lr(self.optimizers, lr)
        limit = self.settings.grad_clip
        if limit is not None and grad_norm > limit:
            torch._foreach_mul_(self._grads(), limit / grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.forget()
        if self.average:
            self.average.move(step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block in which the network has its averaged weights, if there are any."""
        if self.average:
            self.average.swap()
        try:
            yield
        finally:
            if self.average:
                self.average.swap()

    def forget(self) -> None:
        """Drop the gradients."""
        for p in self.trained:
            p.grad = None

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to go on from: named tensors, and the optimizers' entries that are no tensors."""
        tensors, others = optimizers.state_of(self.optimizers, self.network)
        named = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        return self._own() | named, others

    def load(self, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> None:
        """Take back what `tensors` gave."""
        self.load_weights(tensors)
        entries = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
        optimizers.load_state(self.optimizers, self.network, entries | dict(others))

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back the weights and their average, and nothing else."""
        for name, tensor in self._own().items():
            tensor.copy_(tensors[name])

    def _own(self) -> dict[str, Tensor]:
        """Weights, buffers and averages by name, but for weights that never train: they are where they came from."""
        kept = self.network.state_dict(keep_vars=True)
        named = self.network.named_parameters()
        own: dict[str, Tensor] = {f"network.{name}": p for name, p in named if p.requires_grad}
        own |= {f"network.{name}": b for name, b in self.network.named_buffers() if name in kept}
        own |= {f"average.{name}": t for name, t in self.average.tensors.items()} if self.average else {}
        return own

    def _grads(self) -> list[Tensor]:
        return [p.grad for p in self.trained if p.grad is not None]


def total_norm(grads: list[Tensor]) -> Tensor:
    """The Euclidean norm of gradients of one device and type: `torch.nn.utils.get_total_norm`, which sorts first."""
    if len({grad.dtype for grad in grads}) != 1:
        return torch.nn.utils.get_total_norm(grads, foreach=True)
    found: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return found


def draw(*place: int) -> int:
    """A seed for a place in the run: the same on every machine, unrelated for neighbours."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.no_grad()
def _add_l1(weights: Sequence[Tensor], amount: float) -> None:
    for p in weights:
        if p.grad is not None:
            p.grad.add_(p.sign(), alpha=amount)
