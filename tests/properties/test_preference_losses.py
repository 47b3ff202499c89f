"""Losses of preferences beside the papers' equations, written out in plain numbers, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groundup import catalog
from groundup.data import layout
from groundup.data.packing import IGNORED
from groundup.nn import preference_losses as losses
from groundup.nn import products
from groundup.nn.network import create

log_probs = st.floats(-30, -0.01)
Pair = Callable[[Tensor, Tensor], Tensor]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(st.floats(-20, 20), st.floats(-20, 20), st.sampled_from([0.05, 0.1, 1.0]), st.sampled_from([0.0, 0.2]))
def test_dpo_is_equation_7(chosen: float, rejected: float, beta: float, smoothing: float) -> None:
    h = beta * (chosen - rejected)
    wanted = -(1 - smoothing) * math.log(sigmoid(h)) - smoothing * math.log(sigmoid(-h))
    found = losses.dpo(one(chosen), one(rejected), beta=beta, label_smoothing=smoothing)
    assert float(found) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(st.floats(-20, 20), st.floats(-20, 20), st.sampled_from([0.05, 0.1, 1.0]))
def test_ipo_is_equation_17(chosen: float, rejected: float, beta: float) -> None:
    assert float(losses.ipo(one(chosen), one(rejected), beta=beta)) == pytest.approx(
        (chosen - rejected - 1 / (2 * beta)) ** 2
    )


@given(log_probs, log_probs)
def test_simpo_is_equation_6(chosen: float, rejected: float) -> None:
    wanted = -math.log(sigmoid(2.0 * chosen - 2.0 * rejected - 1.6))
    assert float(losses.simpo(one(chosen), one(rejected), beta=2.0, gamma=1.6)) == pytest.approx(wanted, abs=1e-12)


@given(st.floats(-6, -0.01), st.floats(-6, -0.01))
def test_orpo_is_equations_4_to_7(chosen: float, rejected: float) -> None:
    def odds(log_prob: float) -> float:
        return math.exp(log_prob) / (1 - math.exp(log_prob))

    wanted = -chosen - 0.1 * math.log(sigmoid(math.log(odds(chosen) / odds(rejected))))
    assert float(losses.orpo(one(chosen), one(rejected), beta=0.1)) == pytest.approx(wanted, rel=1e-9)


@given(st.floats(-20, 20), st.booleans(), st.floats(0, 5))
def test_kto_is_equation_8(ratio: float, is_desirable: bool, point: float) -> None:
    beta, weight = 0.1, (1.3, 0.7)[not is_desirable]
    value = weight * sigmoid(beta * (ratio - point)) if is_desirable else weight * sigmoid(beta * (point - ratio))
    flag = torch.tensor([is_desirable])
    found = losses.kto(one(ratio), flag, torch.tensor(point), beta=beta, desirable_weight=1.3, undesirable_weight=0.7)
    assert float(found) == pytest.approx(weight - value, rel=1e-6)


@pytest.mark.smoke
def test_the_hand_derived_gradient_of_dpo() -> None:
    """-β σ(-βh) by the chosen, its opposite by the rejected (Rafailov et al. 2023, section 4)."""
    chosen, rejected = one(1.5).requires_grad_(), one(-0.5).requires_grad_()
    losses.dpo(chosen, rejected, beta=0.1).backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None and rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.1 * sigmoid(-0.2))
    assert float(rejected.grad) == -float(chosen.grad)


def test_where_training_begins_every_loss_has_its_known_value() -> None:
    """At first model and reference are the same, so h = 0."""
    zero = one(0.0)
    assert float(losses.dpo(zero, zero, beta=0.1)) == pytest.approx(math.log(2))
    assert float(losses.ipo(zero, zero, beta=0.1)) == pytest.approx(25)
    assert float(losses.kto(zero, torch.tensor([True]), torch.tensor(0.0), beta=0.1)) == 0.5
    assert float(losses.reference_point(torch.tensor([-3.0, 1.0]))) == 0
    assert float(losses.reference_point(torch.tensor([3.0, -1.0]))) == 1


PAIRED: list[Pair] = [
    lambda c, r: losses.dpo(c, r, beta=0.1),
    lambda c, r: losses.dpo(c, r, beta=0.1, label_smoothing=0.1),
    lambda c, r: losses.simpo(c, r, beta=2.0, gamma=1.0),
    lambda c, r: losses.orpo(c, r, beta=0.1),
]


@pytest.mark.parametrize("loss", PAIRED)
def test_a_better_chosen_answer_never_costs_more(loss: Pair) -> None:
    steps = torch.linspace(-4, -0.1, 30, dtype=torch.float64)
    assert (loss(steps, torch.full_like(steps, -2.0)).diff() < 0).all()
    assert (loss(torch.full_like(steps, -2.0), steps).diff() > 0).all()


def test_extreme_log_probabilities_stay_finite() -> None:
    for chosen, rejected in ((-1e-9, -900.0), (-900.0, -1e-9), (0.0, 0.0)):
        pair = torch.tensor([chosen], requires_grad=True), torch.tensor([rejected], requires_grad=True)
        for loss in PAIRED:
            found = loss(*pair)
            assert found.isfinite().all()
            assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), pair))


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_log_probabilities_of_sequences_are_the_textbook_s(is_flat: bool, chunk: int | None) -> None:
    model = catalog.load("models", "gpt")
    network = create(model, model.Config(**model.TINY), "language", seed=1).double().eval()
    draw = torch.Generator().manual_seed(3)
    rows = []
    for length in (7, 3, 12, 3):
        ids = torch.randint(0, 61, (length,), generator=draw)
        labels = torch.where(torch.rand(length, generator=draw) < 0.6, torch.roll(ids, -1), IGNORED)
        rows.append({"input_ids": ids.numpy(), "labels": labels.numpy()})
    batch = layout.collate(rows, fill={}, is_flat=is_flat)
    found, counts = losses.sequence_log_probs(network(batch), batch["labels"], chunk=chunk)
    wanted = []
    for row in rows:
        alone = layout.padded([row], {})
        logits = network(alone).logits[0]
        wanted.append(-torch.nn.functional.cross_entropy(logits, alone["labels"][0], reduction="sum"))
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-9, atol=1e-9)
    assert counts.tolist() == [int((row["labels"] != IGNORED).sum()) for row in rows]
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    mine = torch.autograd.grad((found * weights).sum(), list(network.parameters()))
    theirs = torch.autograd.grad((torch.stack(wanted) * weights).sum(), list(network.parameters()))
    for first, second in zip(mine, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("library", products.libraries("cpu"))
def test_scores_that_are_computed_again_are_multiplied_by_the_same_library(library: products.Matmul) -> None:
    model = catalog.load("models", "gpt")
    network = create(model, model.Config(**model.TINY), "language", seed=1).eval()
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(3))
    slopes = []
    for chosen in ("torch", library):
        with products.multiplying(chosen):
            found, _ = losses.sequence_log_probs(network({"input_ids": ids}), ids, chunk=4)
        slopes.append(torch.autograd.grad(found.sum(), list(network.parameters())))
    for first, second in zip(*slopes, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
