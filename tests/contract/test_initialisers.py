"""Initialisers by name: their spread, and why all-zero weights cannot learn."""

from __future__ import annotations

import math

import pytest
import torch

from groundup import catalog
from groundup.nn.initialisers import INITIALISERS
from groundup.nn.losses import linear_cross_entropy
from groundup.nn.network import Network, create

WIDE = {"vocab_size": 500, "d_model": 128, "n_layers": 2, "n_heads": 4, "d_ff": 384, "context": 32}


def network_with(name: str, initialiser: str, std: float = 0.02) -> Network:
    model = catalog.load("models", name)
    config = model.Config(**WIDE, initialiser=initialiser, initialiser_std=std)
    return create(model, config, next(iter(model.HEADS)), seed=1)


def train(network: Network, steps: int = 30) -> list[float]:
    """The loss at each of some steps on one small batch."""
    ids = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        out = network({"input_ids": ids[:, :-1]})
        features = out.head.features(out.hidden)
        total, count = linear_cross_entropy(features, out.head.weight, ids[:, 1:], bias_V=out.head.bias)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    return losses


@pytest.mark.parametrize(
    ("initialiser", "plain", "residual"),
    [
        ("normal", 0.05, 0.05),
        ("scaled_normal", 0.05, 0.05 / math.sqrt(2 * 2)),
        ("xavier", math.sqrt(2 / (128 + 384)), math.sqrt(2 / (128 + 384))),
        ("kaiming", math.sqrt(2 / 128), math.sqrt(2 / 384)),
        ("zeros", 0.0, 0.0),
    ],
)
def test_the_spread_is_the_published_one(initialiser: str, plain: float, residual: float) -> None:
    mlp = network_with("gpt2", initialiser, std=0.05).backbone.h[1].mlp
    assert mlp.c_fc.weight.std().item() == pytest.approx(plain, rel=0.02)
    assert mlp.c_proj.weight.std().item() == pytest.approx(residual, rel=0.02)


@pytest.mark.parametrize("name", ["gpt", "gpt2", "bert"])
@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_norms_begin_at_one_and_biases_at_zero(name: str, initialiser: str) -> None:
    for key, parameter in network_with(name, initialiser).named_parameters():
        if key.endswith("bias"):
            assert not parameter.any(), key
        elif "norm" in key.lower() or ".ln_" in key:
            assert (parameter == 1).all(), key


@pytest.mark.parametrize("name", ["gpt", "gpt2", "bert"])
@pytest.mark.parametrize("initialiser", [key for key in INITIALISERS if key != "zeros"])
def test_random_weights_learn(name: str, initialiser: str) -> None:
    losses = train(network_with(name, initialiser))
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_all_zeros_never_move(name: str) -> None:
    """Zero weights make every hidden state zero, and each gradient is a product with one of them.

    So the loss stays what guessing gives, ln(vocabulary), and after 30 steps each matrix is still zero.
    """
    network = network_with(name, "zeros")
    losses = train(network)
    assert losses == pytest.approx([math.log(500)] * 30, rel=1e-6)
    assert all(not p.any() for p in network.parameters() if p.dim() == 2)


def test_with_zeros_bert_learns_only_how_frequent_tokens_are() -> None:
    """The one parameter that feels the labels without passing a matrix is the output's bias."""
    network = network_with("bert", "zeros")
    losses = train(network)
    moved = [key for key, p in network.named_parameters() if p.any() and "LayerNorm.weight" not in key]
    assert moved == ["cls.predictions.bias"]
    assert losses[-1] < losses[0]


def test_equal_weights_stay_equal() -> None:
    """Why constants other than zero do not help: all units of a layer get the same gradient for ever."""
    network = network_with("gpt2", "normal")
    mlp = network.backbone.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight.fill_(0.01)
        mlp.c_proj.weight.fill_(0.01)
    train(network, steps=5)
    assert not torch.allclose(mlp.c_fc.weight, torch.full_like(mlp.c_fc.weight, 0.01), atol=1e-4)
    torch.testing.assert_close(mlp.c_fc.weight, mlp.c_fc.weight[:1].expand_as(mlp.c_fc.weight), atol=1e-5, rtol=0)
