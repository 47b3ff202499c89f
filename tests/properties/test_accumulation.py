"""How a batch is cut into micro-batches changes nothing: gradients equal those of one large batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup import catalog
from groundup.config import named
from groundup.data.packing import IGNORED
from groundup.nn.losses import cross_entropy
from groundup.nn.network import Network, Outputs, create
from groundup.training.choices import Choices
from groundup.training.learner import Learner
from groundup.training.objective import Batch, Objective, Parts
from groundup.training.settings import TrainingSection

CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
T = 12


def language(outputs: Outputs, batch: Batch) -> Parts:
    return {"loss": cross_entropy(outputs.logits, batch["labels"])}


def pretraining(outputs: Outputs, batch: Batch) -> Parts:
    pairs = cross_entropy(outputs.next_sentence_logits, batch["next_sentence_label"])
    return {"masked": cross_entropy(outputs.logits, batch["labels"]), "next_sentence": pairs}


def count(key: str, batch: Batch) -> int:
    return int((batch[key] != IGNORED).sum())


OBJECTIVES = {
    "gpt": Objective(language, language, lambda b: {"loss": count("labels", b)}),
    "bert": Objective(
        pretraining,
        pretraining,
        lambda b: {"masked": count("labels", b), "next_sentence": count("next_sentence_label", b)},
    ),
}


def network(name: str) -> Network:
    model = catalog.load("models", name)
    head = {"gpt": "language", "bert": "pretraining"}[name]
    section = named("models", {"name": name, **model.TINY})
    return create(model, section, head, seed=3)  # type: ignore[arg-type]


def batch_of(rows: int, seed: int) -> dict[str, Tensor]:
    """Rows with very different numbers of labels, so that a mean of means would be far off."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 61, (rows, T))
    for row in range(rows):
        labels[row, rng.integers(1, T + 1) :] = IGNORED
    return {
        "input_ids": torch.from_numpy(rng.integers(0, 61, (rows, T))),
        "labels": torch.from_numpy(labels),
        "next_sentence_label": torch.from_numpy(rng.integers(0, 2, rows)),
    }


def gradients(name: str, parts: list[dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    learner = Learner(network(name), OBJECTIVES[name], TrainingSection(), CHOICES)
    figures = learner.gradients(parts, step=0)
    found = {n: p.grad.clone() for n, p in learner.network.named_parameters() if p.grad is not None}
    return figures.loss, found


@pytest.mark.parametrize("name", ["gpt", "bert"])
@given(cuts=st.sets(st.integers(min_value=1, max_value=5), max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_accumulated_gradients_are_those_of_one_large_batch(name: str, cuts: set[int], seed: int) -> None:
    whole = batch_of(6, seed)
    edges = [0, *sorted(cuts), 6]
    parts = [{k: v[a:b] for k, v in whole.items()} for a, b in itertools.pairwise(edges)]
    loss, grads = gradients(name, [whole])
    cut_loss, cut_grads = gradients(name, parts)
    assert cut_loss == pytest.approx(loss, abs=1e-6)
    for key, grad in grads.items():
        assert torch.allclose(grad, cut_grads[key], atol=1e-6, rtol=1e-5), key


def test_the_loss_is_a_mean_over_labels_not_over_rows() -> None:
    """One row with 12 labels and one with 1: the mean is over 13 labels."""
    batch = batch_of(2, 0)
    batch["labels"][0] = torch.arange(T)
    batch["labels"][1] = IGNORED
    batch["labels"][1, 0] = 7
    model = network("gpt").train()
    loss, _ = gradients("gpt", [{k: v[i : i + 1] for k, v in batch.items()} for i in range(2)])
    with torch.no_grad():
        total, number = cross_entropy(model(batch).logits, batch["labels"])
    assert int(number) == 13
    assert loss == pytest.approx(float(total / number), abs=1e-6)


def test_a_part_without_any_label_adds_nothing() -> None:
    batch = batch_of(2, 1)
    batch["next_sentence_label"][:] = IGNORED
    loss, grads = gradients("bert", [batch])
    assert np.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in grads.values())
