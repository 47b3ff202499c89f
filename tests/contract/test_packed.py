"""Weights that are laid out for a server: the same products, names and digests, and nobody packed who should not be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from groundup import catalog
from groundup.checkpoints.peft import base_digest
from groundup.errors import UserError
from groundup.nn import packed, products
from groundup.nn.adapted import digest
from groundup.nn.many_adapters import AdapterSet, LowRankChange
from groundup.nn.network import Network, create
from groundup.nn.packed import PackedLinear, PartLinear, TableHead, Together
from groundup.runtimes.torch import TorchRuntime

pytestmark = pytest.mark.skipif("onednn" not in products.libraries("cpu"), reason="this torch carries no oneDNN")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of any size are worth it."""
    monkeypatch.setattr(packed, "LEAST", 1)
    monkeypatch.setattr(packed, "gain", lambda layer: 2.0)
    yield


def network(family: str = "gpt", head: str = "language", **changes: Any) -> Network:
    model: Any = catalog.load("models", family)
    outputs = None if head == "language" else 3
    return (
        create(model, model.Config(**model.TINY | changes), head, outputs=outputs, seed=3).eval().requires_grad_(False)
    )


def ids(of: Network, count: int = 30) -> torch.Tensor:
    return torch.randint(0, of.config.vocabulary, (2, count), generator=torch.Generator().manual_seed(1))  # type: ignore[attr-defined]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (32, 48), (300, 48), (2, 5, 48), (0, 48), (3, 0, 48)])
def test_products_are_those_of_the_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    plain = nn.Linear(48, 100, bias=bias)
    laid_out, x = PackedLinear(plain), torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(laid_out(x), plain(x), rtol=1e-5, atol=1e-5)
        strided = torch.randn(*shape[:-1], 96)[..., ::2]
        torch.testing.assert_close(laid_out(strided), plain(strided), rtol=1e-5, atol=1e-5)
    assert laid_out.weight.shape == plain.weight.shape and torch.equal(laid_out.weight.to_dense(), plain.weight)
    assert isinstance(laid_out, nn.Linear), "what looks for linear layers finds it"


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_are_multiplied_together_give_what_each_gives_alone(bias: bool) -> None:
    alone = [nn.Linear(48, outputs, bias=bias) for outputs in (100, 32, 7)]
    together = Together(alone)
    parts = [PartLinear(plain, together, number) for number, plain in enumerate(alone)]
    x, y = torch.randn(2, 5, 48), torch.randn(2, 5, 48)
    asked = [(0, x), (1, x), (2, x), (2, x), (0, y), (1, x), (1, y), (0, x), (0, x), (2, y)]
    with torch.inference_mode():
        for number, given in asked:
            torch.testing.assert_close(parts[number](given), alone[number](given), rtol=1e-5, atol=1e-5)
        assert parts[2](torch.empty(0, 48)).shape == (0, 7)
    for part, plain in zip(parts, alone, strict=True):
        assert part.weight.shape == plain.weight.shape and digest(part.weight) == digest(plain.weight)
        assert part.weight.isnan().all(), "whoever takes them for numbers shall notice"


def test_what_is_laid_out_remembers_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(products, "remember_few_sizes", lambda: asked.append(True))
    TorchRuntime(network()).pack()
    assert asked == [True]


@pytest.mark.usefixtures("always")
def test_layers_multiplied_together_are_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = network(), []
    packed.pack(made)
    once = packed.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        calls.append(tuple(weight.shape))
        return once(x, weight, bias)

    monkeypatch.setattr(packed, "linear", counted)
    with torch.inference_mode():
        made({"input_ids": ids(made)})
    assert len(calls) == 4 * made.config.n_layers  # type: ignore[attr-defined]
    for layer in made.modules():
        if isinstance(layer, PartLinear):
            assert layer.whole._read is None, "nothing is held after a step"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("tie", [True, False])
def test_a_network_answers_as_before_and_keeps_its_names_and_its_digest(tie: bool) -> None:
    made = network(tie_embeddings=tie)
    batch = {"input_ids": ids(made)}
    with torch.inference_mode():
        wanted = made(batch).logits
    names, digest = {name: value.shape for name, value in made.state_dict().items()}, base_digest(made)
    linears = sum(isinstance(layer, nn.Linear) for layer in made.modules())
    assert packed.pack(made) == linears > 10
    assert all(type(one) in (PackedLinear, PartLinear) for one in made.modules() if isinstance(one, nn.Linear))
    assert sum(type(one) is PartLinear for one in made.modules()) == 5 * made.config.n_layers  # type: ignore[attr-defined]
    assert isinstance(made.head, TableHead) == tie
    with torch.inference_mode():
        torch.testing.assert_close(made(batch).logits, wanted, rtol=1e-4, atol=1e-5)
        assert made.head(torch.empty(0, made.config.d_model)).shape == (0, made.config.vocabulary)  # type: ignore[attr-defined]
    assert {name: value.shape for name, value in made.state_dict().items()} == names
    assert base_digest(made) == digest, "an adapter still finds its base"
    assert packed.pack(made) == 0, "nothing is left to do"


@pytest.mark.usefixtures("always")
def test_steps_with_a_cache_give_the_same_logits_and_adapters_add_to_them() -> None:
    plain, laid_out = TorchRuntime(network()), TorchRuntime(network())
    laid_out.pack()
    layer = "model.layers.0.self_attn.q_proj"
    width = plain.network.get_submodule(layer).out_features
    change = LowRankChange(torch.randn(2, width), torch.randn(width, 2))
    text = ids(plain.network)[0].tolist()
    found = []
    for runtime in (plain, laid_out):
        adapters = AdapterSet(runtime.network)
        adapters.add("loud", {layer: change})
        cache = runtime.new_cache(sequences=1, tokens=30)
        nothing = runtime.step(text[:12], range(12), [0] * 12, cache, wanted=[])  # as of a long prompt's beginning
        assert nothing.shape == (0, runtime.vocab_size)
        first = runtime.step(text[12:20], range(12, 20), [0] * 8, cache)
        with adapters.reading(["loud"], torch.device("cpu")), torch.inference_mode():
            second = runtime.step(text[20:21], [20], [0], cache)
        third = runtime.step(text[21:22], [21], [0], cache)
        found.append(torch.cat([first, second, third]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0][1], found[0][2])


@pytest.mark.usefixtures("always")
def test_a_classifier_is_laid_out_but_for_its_own_head() -> None:
    made = network("bert", "sequence")
    batch = {"input_ids": ids(made), "attention_mask": torch.ones(2, 30, dtype=torch.bool)}
    with torch.inference_mode():
        wanted = made(batch).logits
        packed.pack(made)
        torch.testing.assert_close(made(batch).logits, wanted, rtol=1e-4, atol=1e-5)


def test_who_gains_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed.pack(network()) == 0, "a small network"
    monkeypatch.setattr(packed, "LEAST", 1)
    monkeypatch.setattr(packed, "gain", lambda layer: 0.9)
    assert packed.pack(network()) == 0, "a machine on which it is slower"
    monkeypatch.setattr(packed, "gain", lambda layer: 2.0)
    assert packed.pack(network().to(torch.bfloat16)) == 0, "another precision"
    assert packed.pack(nn.Sequential(nn.Conv2d(1, 2, 3))) == 0, "no linear layers"
    monkeypatch.setattr(packed.products, "libraries", lambda device, dtype: ("torch",))
    assert packed.pack(network()) == 0, "no such library"


def test_the_gain_is_measured() -> None:
    assert 0.2 < packed.gain(nn.Linear(512, 1024)) < 50


needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor does not multiply bf16"
)


@needs_bf16
@pytest.mark.parametrize("tie", [True, False])
def test_rounded_weights_answer_nearly_the_same_and_adapters_still_find_their_base(tie: bool) -> None:
    made = network(tie_embeddings=tie, attention_bias="all")
    batch, digest = {"input_ids": ids(made)}, base_digest(made)
    with torch.inference_mode():
        wanted = made(batch).logits
        assert packed.pack(made, "bf16") > 10, "asked for, whatever the size"
        found = made(batch).logits
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05 * float(wanted.abs().max()))
    kinds = {name: layer.weight.dtype for name, layer in made.named_modules() if isinstance(layer, PackedLinear)}
    assert kinds.pop("lm_head", torch.float32) == torch.float32 and set(kinds.values()) == {torch.bfloat16}
    assert base_digest(made) == digest
    name = "model.layers.0.mlp.up_proj"
    layer = made.get_submodule(name)
    x = torch.randn(5, layer.in_features)
    before, change = layer(x), LowRankChange(torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))
    adapters = AdapterSet(made)
    adapters.add("loud", {name: change})
    with adapters.reading(["loud"] * 5, torch.device("cpu")):
        torch.testing.assert_close(made.get_submodule(name)(x), before + x @ change.down.T @ change.up.T)
    assert base_digest(made) == digest, "with an adapter beside them too"


def test_bf16_is_refused_where_nothing_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_is_for", lambda weight: False)
    with pytest.raises(UserError, match="bf16 need a CPU"):
        packed.pack(network(), "bf16")
