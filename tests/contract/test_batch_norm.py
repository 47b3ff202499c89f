"""What training promises for networks with batch norm: nothing is cut unasked, and plan says what cutting does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from groundup import catalog
from groundup.config import parse
from groundup.data.ledger import Ledger
from groundup.data.loader import stack
from groundup.nn import batch_norm
from groundup.nn.losses import cross_entropy
from groundup.nn.network import Network, create
from groundup.training import labelled_outlook
from groundup.training.assembly import Material
from groundup.training.choices import Choices
from groundup.training.labelled import LabelledAssembly
from groundup.training.objective import Parts, losses_by_row
from groundup.training.settings import LabelledTrainingSection

CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
ROWS, F = 64, 6
mlp: Any = catalog.load("models", "mlp")


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


class Points:
    """Points on two sides of a plane."""

    lengths = np.ones(ROWS, np.int64)

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        self.features = draw.normal(size=(ROWS, F)).astype(np.float32)
        self.label = (self.features.sum(1) > 0).astype(np.int64)

    def __len__(self) -> int:
        return ROWS

    def row(self, index: int, epoch: int) -> dict[str, Any]:
        return {"features": self.features[index], "label": np.asarray(self.label[index])}

    def ledger(self) -> Ledger:
        return Ledger(documents=ROWS, rows=ROWS, tokens=ROWS, trained=ROWS, masked=0)


class Sides:
    """Which side of the plane a point is on: a task as small as can be."""

    head, outputs, context, tokenizer = "features", 2, 1, None
    metrics: Mapping[str, Any] = {}

    def rows(self, shards: Any, seed: int, *, held_out: bool = False) -> Any:
        return Points()

    def collate(self, rows: Sequence[Any], *, flat: bool = False) -> dict[str, Tensor]:
        return stack(rows, fill={})

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        return {"loss": len(batch["label"])}

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Parts:
        return {"loss": cross_entropy(outputs.logits, batch["label"])}


def assembly(*, normed: bool = True, **wanted: Any) -> LabelledAssembly:
    given = {"task": "text_classification", "batch_rows": 32, "precision": "fp32", "compile": False} | wanted
    config, mistakes = parse(LabelledTrainingSection, given)
    assert config is not None, mistakes

    def start() -> Network:
        section = mlp.Config(n_features=F, widths=(8,), batch_norm=normed)
        return create(mlp, section, "features", outputs=2, seed=1)

    task = Sides()
    return LabelledAssembly(config, Material(None, Points()), CHOICES, task=task, plain_task=task, start=start)  # type: ignore[arg-type]


def test_a_batch_is_not_cut_by_itself_and_the_choice_says_why() -> None:
    at = assembly()
    choices = at.settle()
    assert choices.micro_batches == 1
    assert choices.reasons["micro_batches"].startswith("batch norm: what passes together changes the result")
    assert "batch norm" not in assembly(normed=False).settle().reasons["micro_batches"]
    assert [int(layer.num_batches_tracked) for layer in batch_norm.layers(at.network)] == [0], "measuring taught it"


def test_plan_says_what_micro_batches_do_where_they_are_asked_for() -> None:
    def told(at: LabelledAssembly) -> list[str]:
        return [line for line in labelled_outlook.warnings(at.config, at, 100, ROWS) if "batch norm" in line]

    at = assembly(micro_batch_rows=8)
    assert at.settle().micro_batches == 4
    (line,) = told(at)
    assert "each micro-batch of 8 examples, not from the step's 32" in line
    assert told(assembly()) == told(assembly(normed=False, micro_batch_rows=8)) == []


def test_operations_of_a_step_are_those_that_the_model_counts() -> None:
    at = assembly()
    assert at.flops_per_step == 3 * 32 * 2 * (F * 8 + 8 * 2)


def test_the_loss_of_a_single_row_can_be_asked_for_while_training() -> None:
    at = assembly()
    batch = at.collate([at.rows.row(i, 0) for i in range(4)])
    found = losses_by_row(at.network.train(), at.objective, batch, CHOICES.arithmetic)
    assert len(found) == 4
    assert [int(layer.num_batches_tracked) for layer in batch_norm.layers(at.network)] == [0]
