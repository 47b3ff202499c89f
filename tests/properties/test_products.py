"""Another library for matrix products gives the same numbers, wherever the products are taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.models import gpt
from groundup.nn import products
from groundup.nn.attention import Causal
from groundup.nn.losses import linear_cross_entropy

pytestmark = pytest.mark.skipif("onednn" not in products.libraries("cpu"), reason="this torch carries no oneDNN")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def both(run: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    """The same value and gradients with oneDNN as with torch's own library, in a block and by its end."""
    expected = run()
    wanted = torch.autograd.grad(expected, inputs)
    with products.multiplying("onednn"):
        assert products.current() == "onednn"
        found = run()
    assert products.current() == "torch"
    close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), wanted, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [(7,), (3, 5), (2, 3, 4)])
def test_a_linear_layer_is_the_same(rows: tuple[int, ...], has_bias: bool) -> None:
    x, weight, bias = normal(*rows, 24), normal(40, 24), normal(40)
    inputs = [x, weight, bias] if has_bias else [x, weight]
    both(lambda: F.linear(x, weight, bias if has_bias else None).square().sum(), inputs)


def test_transposed_views_and_frozen_weights_are_taken_as_they_are() -> None:
    x, weight = normal(6, 24, 10), normal(24, 40)
    both(lambda: F.linear(x.transpose(1, 2), weight.t()).square().sum(), [x, weight])
    frozen = weight.detach()
    both(lambda: F.linear(x.transpose(1, 2), frozen.t()).square().sum(), [x])


def test_the_chunked_loss_is_the_same() -> None:
    features, weight, labels = normal(50, 16), normal(30, 16), torch.arange(50) % 30
    both(lambda: linear_cross_entropy(features, weight, labels, chunk=8)[0], [features, weight])


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_whole_network_is_the_same(checkpointed: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    network = gpt.build(gpt.Config(**{**gpt.TINY, "vocab_size": 61}))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.checkpoint_activations = checkpointed
    ids, weights = torch.arange(48).view(2, 24), list(network.parameters())

    def run() -> Tensor:
        hidden: Tensor = network(ids, Causal())
        return hidden.square().sum()

    expected = torch.autograd.grad(run(), weights)

    def chosen() -> Tensor:
        with products.multiplying("onednn"):
            return run()

    found = (torch.compile(chosen, fullgraph=True, backend="aot_eager") if compiled else chosen)()
    for ours, theirs in zip(torch.autograd.grad(found, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_other_precisions_are_left_alone() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x, weight = normal(5, 24).to(dtype), normal(40, 24).to(dtype)
        with products.multiplying("onednn"):
            found = F.linear(x, weight)
        assert torch.equal(found, F.linear(x, weight))


def test_an_error_ends_the_block() -> None:
    with pytest.raises(RuntimeError, match="mat1"), products.multiplying("onednn"):
        torch.mm(normal(2, 3), normal(2, 3))
    assert products.current() == "torch"
    x, weight = normal(5, 24), normal(40, 24)
    assert F.linear(x, weight).grad_fn.name() != "GeneratedBackwardFor_groundup_linear_default"  # type: ignore[union-attr]


def test_the_operator_keeps_the_rules_of_its_kind() -> None:
    torch.library.opcheck(products._linear, (normal(4, 8), normal(6, 8), normal(6)))


def test_the_gain_is_a_ratio_of_measured_rates() -> None:
    assert 0.1 < products.gain(budget_s=0.01) < 10


MULTIPLY = """
import random, sys
import psutil, torch
from groundup.nn import products
if sys.argv[1] == "few":
    products.remember_few_sizes()
weights = [torch.ops.mkldnn._reorder_linear_weight(torch.ones(size, 256), 32) for size in (512, 768, 1024)]
def growth(sizes, before=psutil.Process().memory_info().rss):
    for rows in sizes:
        for weight in weights:
            torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 256), weight, None, "none", [], "")
    return (psutil.Process().memory_info().rss - before) / 1e6
sizes = random.Random(1).sample(range(1, 361), 360)
print(growth(sizes[:180]), growth(sizes[180:]))
"""


@pytest.mark.skipif("onednn" not in products.libraries("cpu"), reason="this torch carries no oneDNN")
def test_a_server_remembers_the_kernels_of_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays when ever new numbers of tokens come: with what the libraries keep by themselves, it does not."""
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    grown = {}
    for which in ("few", "many"):
        command = [sys.executable, "-c", MULTIPLY, which]
        first, last = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        grown[which] = last - first
    print(f"MB more for 180 further sizes of three products: {grown}")
    assert grown["few"] < 60 < 2 * 60 < grown["many"]
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "77")
    monkeypatch.setenv(names[0], "")  # so that it is put back in the end
    monkeypatch.delenv(names[0])
    products.remember_few_sizes()
    assert [os.environ[name] for name in names] == [str(products.KERNELS), "77"], "unless the environment says"
