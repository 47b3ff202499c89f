"""What a run decides by measuring: once for all seeds of a stage, and never for what is too short to matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groundup.models.rnn import Config, Recurrent
from groundup.training import arithmetic as arithmetics
from groundup.training import choices as choosing
from groundup.training.choices import Choices, Extent
from groundup.training.objective import Batch, Objective, Parts
from groundup.training.settings import TrainingSection

CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
LONG = Extent(steps=10_000, batch_rows=4, flops_per_step=1e12)
SHORT = Extent(steps=1, batch_rows=4, flops_per_step=1.0)


class Line(nn.Module):
    """One product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Tensor:
        out: Tensor = self.layer(batch["features"])
        return out


def loss(outputs: Tensor, batch: Batch) -> Parts:
    return {"loss": ((outputs**2).sum(), torch.tensor(len(outputs)))}


OBJECTIVE = Objective(loss, loss, lambda batch: {"loss": len(batch["features"])})


def settled(width: int, extent: Extent = LONG) -> Choices:
    batch = {"features": torch.ones(1, width)}
    return choosing.settle(CHOICES, TrainingSection(compile=False), extent, Line(width), OBJECTIVE, batch)


def test_a_second_seed_computes_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two precisions and two libraries are nearly equally fast, and each measurement turns out differently."""
    seconds = iter([1.2, 1.0, 1.0, 1.0, 1.0, 1.2, 1.0, 1.0])  # fp32 and bf16 in turn; then what a step takes

    def tried(*given: Any) -> float:
        return next(seconds)

    monkeypatch.setattr(arithmetics, "bf16_gain", lambda device: 2.0)
    monkeypatch.setattr(choosing, "try_step", tried)
    monkeypatch.setattr(choosing, "_gains", {})
    libraries = iter([("onednn", "it was faster"), ("torch", "it was faster this time")])
    monkeypatch.setattr(arithmetics, "faster_library", lambda: next(libraries))
    monkeypatch.setattr(choosing, "_libraries", {})
    first, second = settled(8), settled(8)
    assert (first.precision, first.matmul) == (second.precision, second.matmul) == ("bf16", "onednn")
    assert settled(9).precision == "fp32", "another network is measured for itself"


def test_a_short_run_is_not_measured_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "try_step", lambda *given: pytest.fail("nothing is measured"))
    found = settled(8, SHORT)
    assert (found.precision, found.matmul, found.compile) == ("fp32", "torch", False)
    assert "too short" in found.reasons["precision"]


def test_a_recurrent_network_is_not_compiled_even_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of its loop would be written out, again for every mixture of lengths."""
    monkeypatch.setattr(choosing, "missing_compiler", lambda device: None)
    asked, batch = TrainingSection(compile=True), {"features": torch.ones(1, 8)}
    assert choosing.settle(CHOICES, asked, SHORT, Line(8), OBJECTIVE, batch).compile
    unrolling = Line(8)
    unrolling.layer.add_module("loop", Recurrent(Config(d_model=8, d_hidden=8, vocab_size=8)))
    found = choosing.settle(CHOICES, asked, SHORT, unrolling, OBJECTIVE, batch)
    assert not found.compile and "recurrent" in found.reasons["compile"]


@pytest.mark.parametrize(
    ("flops", "offered", "asked", "expected"),
    [
        (1e6, 16, "auto", 1),
        (6e7, 2, "auto", 2),
        (1.7e8, 16, "auto", 8),
        (1e12, 16, "auto", 16),
        (1e6, 16, 16, 16),
    ],
)
def test_threads_are_as_many_as_a_step_keeps_busy(flops: float, offered: int, asked: Any, expected: int) -> None:
    """Two of them make a small step slower, and slow as a snail while another program wants a core."""
    choices = Choices(device="cpu", device_words="cpu", threads=offered, deterministic=True)
    settings = TrainingSection(compile=False, threads=asked)
    assert choosing.busy_threads(choices, settings, flops, Line(8))[0] == expected


def test_threads_on_a_gpu_are_those_of_the_system() -> None:
    choices = Choices(device="cuda", device_words="cuda", threads=16, deterministic=True)
    assert choosing.busy_threads(choices, TrainingSection(), 1.0, Line(8)) == (16, "what the system offers")
