"""What the learning-rate finder reads off a curve, and that it leaves everything as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundup.errors import StageFailed
from groundup.training.choices import Choices
from groundup.training.loop import Job
from groundup.training.lr_finder import Finding, find, smoothed, steepest, valley
from groundup.training.objective import Batch, Objective, Parts
from groundup.training.optimizers import Adam, Sgd
from groundup.training.settings import TrainingSection

CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
RATES = [10.0 ** (i / 10 - 6) for i in range(61)]


class Line(nn.Module):
    """y = w x, to be learnt from exact examples of y = 3 x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 1))

    def forward(self, batch: Batch) -> Tensor:
        return batch["x"] @ self.weight


def squared(out: Tensor, batch: Batch) -> Parts:
    return {"loss": ((out - 3 * batch["x"].sum(1, keepdim=True)).square().sum(), torch.tensor(len(out)))}


class Points:
    """Batches of points; `spoilt` gives ones that no number can be made of."""

    micro_batches = 2

    def __init__(self, spoilt: bool = False) -> None:
        self.spoilt, self.taken = spoilt, list[int]()

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        self.taken.append(step)
        x = torch.from_numpy(np.random.default_rng([step, micro]).standard_normal((8, 4), np.float32))
        return {"x": x * float("nan") if self.spoilt else x}, np.arange(8)


def job(loader: Points) -> Job:
    return Job(Line(), Objective(squared, squared, lambda batch: {"loss": 8}), loader, 50, 64, 1.0)


def settings(**optimizer: Any) -> TrainingSection:
    return TrainingSection(optimizer=Sgd(**optimizer) if optimizer else Adam(), grad_clip=None)


def test_the_steepest_point_of_a_known_curve() -> None:
    """A logistic fall is steepest in its middle."""
    losses = [1 / (1 + math.exp(3 * (math.log10(rate) + 3))) for rate in RATES]
    assert steepest(RATES, losses) == pytest.approx(1e-3, rel=0.15)
    assert steepest(RATES, list(range(61))) is None


def test_the_valley_is_the_middle_of_the_longest_fall() -> None:
    fall = [3.0] * 20 + [3 - 0.1 * i for i in range(1, 22)] + [9.0] * 20
    assert valley(RATES, fall) == RATES[(19 + 40) // 2]
    bumpy = [3 - 0.1 * i + (0.15 if i % 7 == 3 else 0) for i in range(61)]
    assert RATES[25] < float(valley(RATES, bumpy) or 0) < RATES[40]
    assert valley(RATES, [1.0] * 61) is None
    slow_then_fast = [1 - 1e-4 * i for i in range(40)] + [0.996 - 0.05 * i for i in range(1, 22)]
    assert RATES[45] < float(valley(RATES, slow_then_fast) or 0) < RATES[55], "what hardly falls does not count"


def test_smoothing_moves_nothing_to_either_side() -> None:
    step = [1.0] * 30 + [0.0] * 31
    found = smoothed(step, 3)
    assert found[29] == pytest.approx(1 - found[30]) and found[0] == pytest.approx(1) and max(found) <= 1
    assert steepest(RATES, found) == pytest.approx(math.sqrt(RATES[29] * RATES[30]))


def test_the_suggestion_learns_and_everything_is_as_it_was() -> None:
    loader = Points()
    work = job(loader)
    with torch.no_grad():
        work.network.weight.fill_(0.5)  # type: ignore[operator]
    work.network.eval()
    found = find(work, settings(lr=0.1), CHOICES, lowest=1e-5, highest=10)
    assert torch.equal(work.network.get_parameter("weight"), torch.full((4, 1), 0.5)) and not work.network.training
    assert all(p.grad is None for p in work.network.parameters())
    assert len(found.rates) == len(found.losses) < 100, "it ends where the loss blows up"
    assert found.steepest is not None and 1e-3 < found.suggested < found.rates[-1]
    again = find(job(Points()), settings(lr=7.0), CHOICES, lowest=1e-5, highest=10)
    assert again.rates[0] == 1e-5, "the recipe's own rate plays no part"
    assert found.as_data()["valley"] == found.valley
    learner = work.learner(settings(lr=0.1), CHOICES)
    work.network.train()
    losses = []
    for step in range(30):
        figures = learner.gradients([loader.micro_batch(step, 0)[0]], step)
        learner.update(found.suggested, figures.grad_norm, step)
        losses.append(figures.loss)
    assert losses[-1] < 0.6 * losses[0]


def test_a_loss_that_is_broken_or_never_falls_is_said() -> None:
    with pytest.raises(StageFailed, match="the loss breaks after 0 steps"):
        find(job(Points(spoilt=True)), settings(), CHOICES)
    with pytest.raises(StageFailed, match="falls at no learning rate"):
        _ = Finding([1e-3], [1.0], None, None).suggested
