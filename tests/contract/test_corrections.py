"""Each correction of docs/explanation/corrections.md, shown: what is printed fails, what we say holds."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.evaluation.metrics.translation import bleu, chrf
from groundup.models import gpt2, mlp
from groundup.nn.attention import Bidirectional
from groundup.nn.initialisers import initialise
from groundup.nn.losses import IGNORED, cross_entropy
from groundup.training.optimizers import Weights

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "docs" / "explanation" / f"{name}.md"
    for name in ("back-propagation", "convolution", "recurrence", "attention", "corrections")
]
PAGE = PAGES[-1].read_text(encoding="utf-8")
PLACE = re.compile(r"`([\w/]+\.py)`\s+·\s+`([\w.]+)`")
NOT_CORRECTIONS = ("Sources",)


def definitions(tree: ast.AST, prefix: str = "") -> dict[str, ast.AST]:
    """Functions and classes by dotted name."""
    found: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found |= {f"{prefix}{node.name}": node} | definitions(node, f"{prefix}{node.name}.")
    return found


@pytest.mark.smoke
def test_every_correction_has_its_test() -> None:
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    here = set(definitions(ast.parse(Path(__file__).read_text(encoding="utf-8"))))
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        if heading not in NOT_CORRECTIONS:
            assert {"**Printed:**", "**Right:**", "**Here:**"} <= set(re.findall(r"\*\*\w+:\*\*", text)), heading
            named = re.findall(r"`(test_\w+)`", text)
            assert len(named) == 1 and named[0] in here, heading


@pytest.mark.smoke
def test_the_code_that_the_pages_name_exists() -> None:
    for page in PAGES:
        for file, name in PLACE.findall(page.read_text(encoding="utf-8")):
            tree = ast.parse((ROOT / "src" / "groundup" / file).read_text(encoding="utf-8"))
            assert name in definitions(tree), f"{page.name}: {file} · {name}"


def test_the_printed_sign_makes_the_loss_rise() -> None:
    """One sigmoid unit: half the squared error after a step, for each pair of signs."""
    weight, inputs, target, rate = torch.randn(4), torch.randn(4), torch.tensor(1.0), 0.1

    def loss(weight: Tensor) -> Tensor:
        return (torch.sigmoid(weight @ inputs) - target).square() / 2

    answer = torch.sigmoid(weight @ inputs)
    slope = answer * (1 - answer)
    ours, printed = (answer - target) * slope, (target - answer) * slope
    torch.testing.assert_close(ours * inputs, torch.func.grad(loss)(weight))
    assert loss(weight - rate * ours * inputs) < loss(weight)
    assert loss(weight + rate * printed * inputs) < loss(weight), "the other convention, kept to throughout"
    assert loss(weight - rate * printed * inputs) > loss(weight), "as printed: two minus signs"


def test_without_the_transpose_shapes_or_gradients_are_wrong() -> None:
    for outputs, inputs in ((50, 100), (20, 20)):
        layer = nn.Linear(inputs, outputs)
        below, delta = torch.randn(inputs, requires_grad=True), torch.randn(outputs)
        layer(below).backward(delta)
        torch.testing.assert_close(layer.weight.T @ delta, below.grad)
        if outputs != inputs:
            with pytest.raises(RuntimeError, match="size mismatch"):
                layer.weight @ delta
        else:
            assert below.grad is not None and not torch.allclose(layer.weight @ delta, below.grad)


def heads_of(attention: gpt2.Attention, x_BTD: Tensor) -> Tensor:
    """What each head found, (B,T,H,K), before the last projection."""
    found = []

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        found.append(Bidirectional()(q, k, v, layer, dropout=dropout))
        return found[0]

    attention(x_BTD, attend)
    return found[0]


def test_heads_have_their_own_queries_and_are_not_averaged() -> None:
    heads, head_dim = 2, 4
    attention = gpt2.Attention(gpt2.Config(vocab_size=7, d_model=8, n_heads=heads), layer=0)
    x_BTD = torch.randn(1, 5, 8)
    with torch.no_grad():
        before = heads_of(attention, x_BTD)
        attention.c_attn.weight[:head_dim] += 1  # the queries of the first head
        after = heads_of(attention, x_BTD)
        out = attention(x_BTD, Bidirectional())
        torch.testing.assert_close(after[:, :, 1], before[:, :, 1])
        assert not torch.allclose(after[:, :, 0], before[:, :, 0])
        torch.testing.assert_close(out, attention.c_proj(torch.cat([after[:, :, 0], after[:, :, 1]], dim=-1)))
        # A mean does not fit the model's width, and does not know which head was which.
        assert after.mean(2).shape[-1] == head_dim != x_BTD.shape[-1]
        torch.testing.assert_close(after.flip(2).mean(2), after.mean(2))
        assert not torch.allclose(attention.c_proj(after.flip(2).flatten(2)), out)


def test_masked_loss_is_over_hidden_tokens_and_all_words() -> None:
    tokens, words = 6, 11
    scores = torch.randn(tokens, words, requires_grad=True)
    labels = torch.full((tokens,), IGNORED)
    labels[1], labels[4] = 7, 9  # the words that were hidden
    total, count = cross_entropy(scores, labels)
    logs = scores.log_softmax(1)
    torch.testing.assert_close(total / count, -(logs[1, 7] + logs[4, 9]) / 2)
    by_scores = torch.autograd.grad(total, scores)[0]
    assert by_scores[[0, 2, 3, 5]].eq(0).all(), "tokens that were not hidden are not trained"
    assert by_scores[1].ne(0).all(), "every word of the vocabulary is pushed up or down"
    one_hot = F.one_hot(labels.clamp(min=0), words) * (labels != IGNORED)[:, None]
    torch.testing.assert_close(-(one_hot * logs).sum(), total)
    assert (one_hot * logs)[:, :2].sum() == 0, "summed over two words, there is nothing to learn"


def trained(name: str, activation: nn.Module) -> tuple[nn.Sequential, float]:
    """A network with 16 hidden units, and its loss, after 300 steps of learning XOR; one case comes twice."""
    network = nn.Sequential(nn.Linear(2, 16), activation, nn.Linear(16, 1)).double()
    initialise(network, name=name, std=0.02, n_layers=1, seed=7)
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    wanted = (inputs.sum(1) == 1).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network(inputs)[:, 0], wanted)
        loss.backward()
        optimizer.step()
    return network, float(loss.detach())


def test_zero_weights_never_become_different() -> None:
    network, loss = trained("zeros", nn.Sigmoid())
    first, last = network[0].weight, network[2].weight
    # Sigmoids begin at one half, so something is learnt; but all units stay the same unit.
    assert first.abs().min() > 0 and last.abs().min() > 0
    torch.testing.assert_close(first, first[:1].expand_as(first))
    torch.testing.assert_close(last, last[:, :1].expand_as(last))
    assert loss > 0.3, "one unit, sixteen times, cannot learn XOR"
    stuck, loss_of_stuck = trained("zeros", nn.Tanh())
    assert stuck[0].weight.eq(0).all() and stuck[2].weight.eq(0).all() and stuck[2].bias.ne(0).all()
    assert loss_of_stuck > 0.6
    assert trained("xavier", nn.Tanh())[1] < 0.05, "random ones learn it"


def test_layers_correlate_and_numpy_convolves() -> None:
    line, kernel = np.array([0.0, 0, 1, 2, 0, 0, 0]), np.array([1.0, 10, 100])
    layer = nn.Conv1d(1, 1, 3, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(kernel)[None, None]
    computed = layer(torch.tensor(line)[None])[0].detach().numpy()
    np.testing.assert_allclose(computed, np.correlate(line, kernel, mode="valid"))
    np.testing.assert_allclose(computed, np.convolve(line, kernel[::-1], mode="valid"))
    assert not np.allclose(computed, np.convolve(line, kernel, mode="valid"))


def test_a_dense_layer_does_not_flatten() -> None:
    pictures = torch.rand(3, 28, 28)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        nn.Linear(784, 100)(pictures)
    silent, right = nn.Linear(28, 100), nn.Sequential(nn.Flatten(), nn.Linear(784, 100))
    assert silent(pictures).shape == (3, 28, 100)
    torch.testing.assert_close(silent(pictures)[0, 5], silent(pictures[0, 5]))  # each line of pixels by itself
    assert right(pictures).shape == (3, 100)
    counts = [sum(weight.numel() for weight in layer.parameters()) for layer in (silent, right)]
    assert counts == [2_900, 78_500]
    ours = mlp.build(mlp.Config(n_features=784, widths=(100,)))
    assert ours(pictures[:, None]).shape == (3, 100), "one hidden state a picture"
    with pytest.raises(UserError, match="756 numbers, and the model reads 784"):
        ours(pictures[:, None, 1:])


def test_parameters_belong_to_an_object() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

    with pytest.raises(TypeError, match="self"):
        torch.optim.Adam(Net.parameters())  # type: ignore[call-arg]
    net = Net()
    start = net.layer.weight.clone()
    for made_for, moves in ((Net(), False), (net, True)):
        optimizer = torch.optim.Adam(made_for.parameters())
        net.layer(torch.ones(2)).sum().backward()
        optimizer.step()
        assert torch.equal(net.layer.weight, start) is not moves
    ours = [weight for group in Weights(net).groups(0.0) for weight in group["params"]]
    assert {id(weight) for weight in ours} == {id(weight) for weight in net.parameters()}


def test_parameter_counts_follow_from_the_config() -> None:
    table = re.findall(r"^\| (GPT-\d[\w ]*) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in table] == ["GPT-2 small", "GPT-2 medium", "GPT-2 large", "GPT-2 XL", "GPT-3"]
    counts = {}
    for name, *numbers in table:
        layers, d_model, context, printed = (int(number.replace(",", "")) for number in numbers)
        heads = d_model // (128 if name == "GPT-3" else 64)
        config = gpt2.Config(vocab_size=50_257, n_layers=layers, d_model=d_model, n_heads=heads, context=context)
        assert gpt2.parameters(config) == printed, name
        counts[name] = printed
        if layers == 12:
            with torch.device("meta"):  # shapes without memory
                network = gpt2.build(config)
            assert sum(weight.numel() for weight in network.parameters()) == printed
    assert round(counts["GPT-3"] / 1e9) == 175 and round(counts["GPT-2 XL"] / 1e9, 1) in (1.5, 1.6)


def test_accuracy_says_nothing_about_a_translation() -> None:
    wanted = "the old man walked slowly down to the harbour"
    good = "and the old man walked slowly down to the harbour"
    poor = "the old man walked harbour harbour harbour harbour the"

    def places(answer: str) -> float:
        pairs = zip(answer.split(), wanted.split(), strict=False)
        return float(np.mean([ours == theirs for ours, theirs in pairs]))

    assert places(good) == 0 < 0.4 < places(poor)
    for metric in (bleu, chrf):
        of_good, of_poor = (metric([wanted], [answer]).value for answer in (good, poor))
        assert of_good > 80 and of_good > of_poor + 20


def test_a_second_softmax_keeps_the_loss_up() -> None:
    classes, label = 10, torch.tensor([3])
    lowest = math.log(1 + (classes - 1) / math.e)
    assert round(lowest, 2) == 1.46 and round(math.exp(-lowest), 2) == 0.23
    sure = 50 * F.one_hot(label, classes).double()
    once, twice = (float(cross_entropy(scores, label)[0]) for scores in (sure, sure.softmax(1)))
    assert once < 1e-6
    assert math.isclose(twice, lowest, rel_tol=1e-6)
    drawn = torch.randn(1000, classes).double() * 20
    for scores in drawn.softmax(1):
        assert cross_entropy(scores[None], label)[0] >= lowest - 1e-9
