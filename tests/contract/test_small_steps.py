"""What makes a step of a small network quick: nothing of it may change a bit of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from groundup import console as screen
from groundup.training import devices, guard
from groundup.training import log as logs
from groundup.training.learner import total_norm
from groundup.training.optimizers import OPTIMIZERS, Weights, load_state, set_lr, state_of


class Two(nn.Module):
    """Two layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


@pytest.mark.parametrize(("name", "torchs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adams_step_is_torchs(name: str, torchs: Any) -> None:
    """Bit for bit, also where a weight has no gradient, and after a state is put back."""
    ours, theirs = Two(), Two()
    (found,) = OPTIMIZERS[name](weight_decay=0.1).build(Weights(ours), "cpu")
    options = {key: value for key, value in found.defaults.items() if key != "decoupled_weight_decay"}
    expected = torchs(Weights(theirs).groups(0.1), **options)
    for step in range(6):
        for model in (ours, theirs):
            model(torch.linspace(-1, step, 12).reshape(2, 6)).square().sum().backward()
            for p in model.first.parameters():
                p.grad = None if step == 4 else p.grad
        for optimizer in (found, expected):
            set_lr([optimizer], 0.01 * (step + 1))
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        if step == 2:
            tensors, others = state_of([found], ours)
            load_state([found], ours, {key: value.clone() for key, value in tensors.items()} | others)
    mine, yours = state_of([found], ours)[0], state_of([expected], theirs)[0]
    assert mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


def test_the_norm_of_all_gradients_is_torchs() -> None:
    grads = [torch.randn(5, 3), torch.randn(7), torch.randn(())]
    assert torch.equal(total_norm(grads), torch.nn.utils.get_total_norm(grads, foreach=True))
    mixed = [*grads, torch.randn(4).double()]
    assert torch.allclose(total_norm(mixed).double(), torch.cat([g.double().flatten() for g in mixed]).norm())
    assert total_norm([]) == 0


def test_a_seed_for_the_cpu_is_torchs() -> None:
    devices.seed(12345, "cpu")
    found = torch.rand(3)
    torch.manual_seed(12345)
    assert torch.equal(found, torch.rand(3))


def test_losses_that_were_all_zero_are_no_measure_of_a_jump() -> None:
    """As the hinge loss is on what is told apart with a margin."""
    assert guard.trouble([0.0] * guard.WINDOW, 0.5, 1.0, 12.0) is None
    assert guard.trouble([0.0] * guard.WINDOW, 0.0, 0.0, 12.0) is None


def test_figures_are_on_disk_before_a_state_is(tmp_path: Path) -> None:
    log = logs.Log(tmp_path, [], name="test")
    for step in range(5):
        log.figures(step, {"loss": 1.0})
    log.flush()
    written = (tmp_path / logs.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == list(range(5))
    log.close()


def test_a_bar_is_not_moved_more_often_than_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "DRAW_EVERY_S", 1000.0)
    reporter = screen.ConsoleReporter(Console(force_terminal=True, quiet=True))
    drawn: list[tuple[str, float]] = []
    monkeypatch.setattr(reporter, "_draw", lambda doing, done, total, shown: drawn.append((doing, done)))
    for doing in ("training", "evaluating"):
        for done in range(1, 11):
            reporter.advance(doing, done, 10, loss=1.0)
    assert drawn == [("training", 1), ("training", 10), ("evaluating", 1), ("evaluating", 10)]
