"""What a step adds to its loss against overfitting: R-Drop, and adversarial training on embeddings.

Each is a section of the recipe (`regulariser: {name: r_drop, alpha: 1}`) that turns a network and an
objective into another forward pass. How a batch is cut into micro-batches changes nothing: divergences are
summed and divided by the count of the whole batch, and perturbations are sized for each example alone. All
that is random is drawn after the seed of the micro-batch, so a resumed run draws the same.

B rows, T tokens, N tokens of a flat batch, E examples, D model width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from groundup.config import OneOf, Section
from groundup.errors import UserError
from groundup.nn import divergences, token_tables
from groundup.nn.network import Network
from groundup.training import objective
from groundup.training.arithmetic import Arithmetic
from groundup.training.objective import Batch, Forward, Objective
from groundup.units import PositiveCount

Positive = Annotated[float, Field(gt=0)]
SlopesAt = Callable[[Sequence[Tensor]], list[Tensor]]
"""The gradients of a loss by perturbations, at given ones."""


class Regulariser(Section):
    """What every regulariser has."""

    PART: ClassVar[str]
    """The name of the part of the loss that it adds, the last one."""
    COMPILES: ClassVar[bool] = True
    """Whether its forward pass can be one graph."""

    @abstractmethod
    def forward(self, network: nn.Module, task: Objective, arithmetic: Arithmetic) -> Forward:
        """A function as `objective.forward` gives it, whose loss has the part `PART` too."""

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """What the part is divided by, of a micro-batch."""


class RDrop(Regulariser):
    """Two forward passes with different dropout, pulled towards each other (Liang et al. 2021, section 2).

    The loss is the paper's divided by two, so that it is of the size it has without: the mean of the two
    cross-entropies, and alpha / 4 times the KL divergences in both directions (of numbers, the squared
    difference). Costs two forward and backward passes. The network needs dropout.
    """

    PART = "r_drop"
    name: Literal["r_drop"] = "r_drop"
    alpha: Positive = 1.0
    """Weight of the divergence, as in the paper; 0.5 to 5 is usual."""

    def forward(self, network: nn.Module, task: Objective, arithmetic: Arithmetic) -> Forward:
        def run(batch: dict[str, Tensor], share: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            with arithmetic.on():
                one, two = network(batch), network(batch)
                first, second = task.loss(one, batch), task.loss(two, batch)
                apart = self.alpha / 4 * divergences.symmetric(one, two, batch)
            means = [(first[part][0] + second[part][0]) / 2 * share[part] for part in first]
            stacked = torch.stack([*means, apart * share[self.PART]])
            return stacked.sum(), stacked.detach()

        return run

    def count(self, batch: Batch) -> int:
        return int(divergences.trained(batch).sum())


class Fgm(Regulariser):
    """One step up the loss on the embeddings of each example, and learning from there too (Miyato et al. 2017).

    Costs two forward and backward passes. The perturbation of an example has the length `epsilon` over all
    its tokens together (section 3; here embeddings are taken as they are, not normalised).
    """

    PART = "adversarial"
    COMPILES = False
    name: Literal["fgm"] = "fgm"
    epsilon: Positive = 1.0
    """Length of the perturbation of an example's embeddings."""
    weight: Positive = 1.0
    """Weight of the loss under the perturbation, beside that without, which has 1."""

    def forward(self, network: nn.Module, task: Objective, arithmetic: Arithmetic) -> Forward:
        """The gradient of the loss without perturbation is left in place; that under it is for the caller to make."""
        plain, embeddings = objective.forward(network, task, arithmetic), Embeddings(network)

        def run(batch: dict[str, Tensor], share: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            with embeddings.noted() as zeros:
                loss, each = plain(batch, share)
                torch.autograd.backward(loss)
            slopes = [zero.grad for zero in zeros if zero.grad is not None]
            added = self._worst(slopes, lambda at: self._slopes(plain, embeddings, at, batch, share), batch)
            with embeddings.moved(added):
                disturbed = self.weight * plain(batch, share)[0]
            return disturbed, torch.cat([each, disturbed.detach().reshape(1)])

        return run

    def count(self, batch: Batch) -> int:
        return 1  # its losses are divided by the counts of the task's own parts

    def _worst(self, slopes: Sequence[Tensor], slopes_at: SlopesAt, batch: Batch) -> list[Tensor]:
        return [self.epsilon * directions(slope, of) for slope, of in zip(slopes, sides(batch), strict=False)]

    @staticmethod
    def _slopes(
        plain: Forward, embeddings: Embeddings, at: Sequence[Tensor], batch: dict[str, Tensor], share: dict[str, Tensor]
    ) -> list[Tensor]:
        """The gradient of the loss by the perturbation, at a perturbation; no weight receives any."""
        points = [point.requires_grad_() for point in at]
        with embeddings.moved(points):
            return list(torch.autograd.grad(plain(batch, share)[0], points))


class Pgd(Fgm):
    """Several steps up the loss, kept within a ball (Madry et al. 2018, section 2.1), then learning as in FGM.

    Costs a forward and backward pass more for each step after the first.
    """

    name: Literal["pgd"] = "pgd"  # type: ignore[assignment]
    steps: PositiveCount = 3
    """Steps of the perturbation."""
    step_size: Positive = 0.3
    """Length of a step, for each example."""

    def _worst(self, slopes: Sequence[Tensor], slopes_at: SlopesAt, batch: Batch) -> list[Tensor]:
        lengths = sides(batch)[: len(slopes)]
        found = [torch.zeros_like(slope) for slope in slopes]
        for step in range(self.steps):
            slopes = slopes_at(found) if step else slopes
            found = [self._nearer(*one) for one in zip(found, slopes, lengths, strict=True)]
        return found

    def _nearer(self, at: Tensor, slope: Tensor, lengths: Tensor | None) -> Tensor:
        """A step up the slope, and back to the ball."""
        moved = at.detach() + self.step_size * directions(slope, lengths)
        return moved * (self.epsilon / norms(moved, lengths).clamp(min=self.epsilon))


REGULARISERS: dict[str, type[Regulariser]] = {"r_drop": RDrop, "fgm": Fgm, "pgd": Pgd}

AnyRegulariser = Annotated[SerializeAsAny[Regulariser], OneOf("regulariser", REGULARISERS)]
"""The type of a recipe field that names a regulariser."""


class Embeddings:
    """What a network looks up for its tokens, where it can be read and moved.

    Only the tables of tokens count, not those of positions. A network that looks up twice (sources and
    targets of a translation) has two.
    """

    def __init__(self, network: nn.Module) -> None:
        """Raises UserError for a network that looks nothing up: one of images, say."""
        everywhere = [module for module in network.modules() if isinstance(module, nn.Embedding)][:1]
        of_tokens = list(token_tables.embeddings(network).values()) if isinstance(network, Network) else everywhere
        if not of_tokens:
            what = "fgm and pgd move what a network looks up for its tokens, and this one reads none"
            raise UserError(what, where="regulariser", fix="use r_drop, or leave the regulariser out")
        self.tables = of_tokens

    @contextmanager
    def noted(self) -> Iterator[list[Tensor]]:
        """A block in which zeros are added to each look-up; the list of them has their gradients afterwards."""
        zeros: list[Tensor] = []

        def add(module: nn.Module, inputs: Any, found: Tensor) -> Tensor:
            zeros.append(torch.zeros_like(found).requires_grad_())
            return found + zeros[-1]

        with self._hooked(add):
            yield zeros

    @contextmanager
    def moved(self, by: Sequence[Tensor]) -> Iterator[None]:
        """A block in which the look-ups of a forward pass are moved, the first by the first and so on."""
        left = iter(by)

        def add(module: nn.Module, inputs: Any, found: Tensor) -> Tensor:
            return found + next(left)

        with self._hooked(add):
            yield

    @contextmanager
    def _hooked(self, add: Any) -> Iterator[None]:
        handles = [table.register_forward_hook(add) for table in self.tables]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def sides(batch: Batch) -> list[Tensor | None]:
    """The lengths of a flat batch's examples by look-up: of its sources, and of the targets where it has some."""
    return [batch.get("lengths"), batch.get("decoder_lengths")]


def norms(of_BTD: Tensor, lengths_E: Tensor | None) -> Tensor:
    """The Euclidean length of each example, at each of its tokens: (B,1,1), or (1,N,1) of a flat batch."""
    if lengths_E is None or of_BTD.shape[0] != 1:
        sizes_B: Tensor = of_BTD.flatten(1).norm(dim=1)
        return sizes_B[:, None, None]
    owner_N = torch.repeat_interleave(torch.arange(len(lengths_E), device=of_BTD.device), lengths_E)
    squares_E = of_BTD.new_zeros(len(lengths_E)).index_add(0, owner_N, of_BTD[0].square().sum(1))
    return squares_E.sqrt()[owner_N][None, :, None]


def directions(slope_BTD: Tensor, lengths_E: Tensor | None) -> Tensor:
    """Each example's slope at length one; zero where it is zero, as of an example without labels."""
    found = norms(slope_BTD, lengths_E)
    return slope_BTD / torch.where(found > 0, found, 1.0)
