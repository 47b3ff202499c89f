"""What every adapter must do, on every model: start from what was, train only itself, merge to the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groundup import catalog
from groundup.adapters import dora, lora
from groundup.checkpoints import hugging_face
from groundup.config import FromFolder
from groundup.errors import StageFailed, UserError
from groundup.nn import products, token_tables
from groundup.nn.adapted import AdaptedLinear, adapted_layers
from groundup.nn.network import Network, create
from groundup.nn.quantised import QUANTISED, Bits, frozen_product, normal_float_levels
from groundup.nn.shape import TransformerSection

ADAPTERS = catalog.names("adapters")
FOUND = {name: catalog.load("models", name) for name in catalog.names("models")}
LANGUAGE = {
    name: next(iter(model.HEADS))
    for name, model in FOUND.items()
    if issubclass(model.Config, TransformerSection) and hasattr(model, "flops_per_token")
}
"""Every Transformer of tokens, with its head over the vocabulary."""
IDS = torch.arange(24).reshape(2, 12) % 61


def network(name: str = "gpt", **sizes: Any) -> Network:
    model = catalog.load("models", name)
    config = model.Config(**{**model.TINY, "initialiser_std": 0.2, **sizes})
    return create(model, config, LANGUAGE[name], seed=3).eval()


def batch_for(model: Network) -> dict[str, Tensor]:
    """Ids, and a target where the model writes one."""
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS.flip(1)} if model.head_kind == "translation" else {})


def logits(model: Network) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(batch_for(model)).logits
    return found


def wrapped(model: Network, adapter: str = "lora", *, new_tokens: bool = False, **options: Any) -> Network:
    module = catalog.load("adapters", adapter)
    found: Network = module.wrap(model, module.Config(**options), seed=5, new_tokens=new_tokens)
    return found


def disturb(model: Network) -> Network:
    """Move everything that trains, as steps of training would."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draw) * 0.1)
    return model


def backward(model: Network) -> None:
    model(batch_for(model)).logits.square().mean().backward()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", LANGUAGE)
def test_a_new_adapter_changes_nothing(name: str, adapter: str) -> None:
    model = network(name)
    before = logits(model)
    assert torch.allclose(logits(wrapped(model, adapter)), before, atol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", LANGUAGE)
def test_only_the_adapter_trains(name: str, adapter: str) -> None:
    model = wrapped(network(name), adapter)
    names = catalog.load("adapters", adapter).trainable(model)
    assert names and all(".lora_" in each for each in names)
    disturb(model)
    backward(model)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.smoke
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", LANGUAGE)
def test_merging_keeps_the_logits_and_gives_back_the_plain_network(name: str, adapter: str) -> None:
    module, plain = catalog.load("adapters", adapter), network(name)
    keys, types = list(plain.state_dict()), [type(m) for m in plain.modules()]
    model = disturb(wrapped(plain, adapter))
    trained = logits(model)
    assert not torch.allclose(trained, logits(network(name)), atol=1e-2), "the change is a real one"
    merged = module.merge(model)
    found = module.check_merge(trained, logits(merged))
    assert found.relative < 1e-5 and "differ by" in str(found)
    assert list(merged.state_dict()) == keys and [type(m) for m in merged.modules()] == types
    assert all(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_base_in_few_bits_merges_to_what_was_trained(adapter: str, bits: int) -> None:
    module, before = catalog.load("adapters", adapter), logits(network("gpt2"))
    model = disturb(wrapped(network("gpt2"), adapter, base_bits=bits))
    described = module.describe(model)
    assert described.base_bits == bits and 0 < described.base_error < {8: 0.01, 4: 0.12}[bits]
    assert "differs from the checkpoint" in str(described)
    trained = logits(model)
    assert not torch.equal(trained, before)
    assert module.check_merge(trained, logits(module.merge(model))).relative < 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_through_a_base_in_few_bits_are_those_of_the_unpacked_one(bits: Bits) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(20, 100), torch.randn(20)
    matrix = QUANTISED[bits](weight)
    for library in products.libraries("cpu"):
        x, y = torch.randn(7, 100, requires_grad=True), torch.randn(7, 100, requires_grad=True)
        with torch.no_grad():
            y.copy_(x)
        with products.multiplying(library):
            frozen_product(x, matrix, bias).square().sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.functional.linear(y, matrix(), bias).square().sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None and y.grad is not None
        assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-3)


def test_levels_of_nf4_are_the_published_ones() -> None:
    published = [-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
                 0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0]  # fmt: skip
    assert normal_float_levels() == pytest.approx(published, abs=1e-6)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 0.1)])
@pytest.mark.parametrize("shape", [(64, 64), (7, 13), (500, 601)])
def test_few_bits_are_few_and_close(bits: int, most: float, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, dtype=torch.bfloat16)
    matrix = QUANTISED[bits](weight)
    assert matrix().dtype == torch.bfloat16 and matrix().shape == weight.shape
    assert (matrix().float() - weight.float()).norm() / weight.float().norm() < most
    assert not matrix.state_dict(), "the frozen base follows from its checkpoint"
    if shape == (500, 601):
        stored = sum(b.numel() * b.element_size() for b in matrix.buffers())
        assert stored * 8 / weight.numel() < bits + 0.3


def test_types_never_change_silently() -> None:
    model = disturb(wrapped(network().to(torch.bfloat16), "dora"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}, "small updates need it"
    trained = logits(model)
    assert trained.dtype == torch.bfloat16
    merged = dora.merge(model)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert dora.check_merge(trained, logits(merged), dtype=torch.bfloat16).relative > 0


def test_a_merge_that_changes_logits_is_refused() -> None:
    with pytest.raises(StageFailed, match="merging changed what the network computes"):
        lora.check_merge(torch.ones(2, 3), torch.ones(2, 3) * 1.001)
    with pytest.raises(StageFailed, match="merging changed"):
        lora.check_merge(torch.ones(2, 3), torch.full((2, 3), float("nan")))


@pytest.mark.parametrize(("rank", "stabilised", "scaling"), [(4, False, 4.0), (4, True, 8.0), (16, True, 4.0)])
def test_scaling(rank: int, stabilised: bool, scaling: float) -> None:
    model = wrapped(network(), rank=rank, rank_stabilised=stabilised, alpha=16)
    assert {layer.scaling for _, layer in adapted_layers(model)} == {scaling}
    assert {layer.lora_A.shape[0] for _, layer in adapted_layers(model)} == {rank}


def test_ranks_and_alphas_by_layer() -> None:
    model = wrapped(network(), rank=4, alpha=4, ranks={"down_proj": 2, "layers.0.self_attn.q_proj": 1},
                    alphas={"down_proj": 6})  # fmt: skip
    found = {name: (layer.rank, layer.scaling) for name, layer in adapted_layers(model)}
    assert found["model.layers.1.mlp.down_proj"] == (2, 3.0)
    assert found["model.layers.0.self_attn.q_proj"] == (1, 4.0)
    assert found["model.layers.1.self_attn.q_proj"] == (4, 1.0)


@pytest.mark.parametrize(
    ("name", "targets", "ends"),
    [
        ("gpt", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gpt", "all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt", ["v_proj", "layers.0.mlp.up_proj"], {"v_proj", "up_proj"}),
        ("gpt2", "attention", {"c_attn", "c_proj"}),
        ("bert", "attention", {"query", "key", "value", "dense"}),
    ],
)
def test_targets(name: str, targets: Any, ends: set[str]) -> None:
    names = [each for each, _ in adapted_layers(wrapped(network(name), targets=targets))]
    assert {each.rpartition(".")[2] for each in names} == ends
    assert ("model.layers.1.mlp.up_proj" in names) == (targets == "all")
    assert not any("intermediate" in each for each in names) or targets == "all"


def test_a_target_that_is_not_there_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="no linear layer of the backbone named 'q_porj'") as caught:
        wrapped(network(), targets=["q_porj"])
    assert "did you mean 'q_proj'" in caught.value.fix
    with pytest.raises(UserError, match="no module named 'classifier'"):
        wrapped(network(), modules_to_save=["classifier"])


def test_nothing_to_adapt_is_said() -> None:
    with pytest.raises(UserError, match="the model 'gpt' has no linear layers to adapt"):
        wrapped(network(), modules_to_save=["layers"])


def test_a_model_is_not_written_with_its_adapter_unmerged(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="merge the adapter first"):
        hugging_face.save(tmp_path, wrapped(network()))


def test_wrapping_twice_and_merging_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="has an adapter already"):
        wrapped(wrapped(network()))
    with pytest.raises(UserError, match="no adapter to merge"):
        lora.merge(network())


def test_the_same_seed_draws_the_same_adapter() -> None:
    one, other = wrapped(network()).state_dict(), wrapped(network()).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("name", "kind", "whole"),
    [
        ("bert", "sequence", {"classifier", "bert.pooler"}),
        ("bert", "span", {"qa_outputs"}),
        ("roberta", "sequence", {"classifier", "classifier.out_proj"}),
        ("distilbert", "sequence", {"classifier", "pre_classifier"}),
        ("gpt", "tokens", {"score"}),
        ("gpt2", "embedding", set()),
    ],
)
def test_a_new_head_trains_whole(name: str, kind: str, whole: set[str]) -> None:
    model = catalog.load("models", name)
    fresh = create(model, model.Config(**model.TINY), kind, outputs=3, seed=3)
    names = lora.trainable(wrapped(fresh))
    assert {each.rpartition(".")[0].removesuffix(".dense") for each in names if ".lora_" not in each} == whole
    assert not any("pooler" in each for each, _ in adapted_layers(fresh))


def test_dropout_is_on_the_way_into_the_change_only() -> None:
    model = wrapped(network(), dropout=0.5).train()
    before = logits(network())
    assert torch.allclose(logits(model), before, atol=1e-5), "a change of zero has nothing to drop"
    disturb(model)
    assert not torch.allclose(logits(model), logits(model))
    model.eval()
    assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("tie", [True, False])
def test_new_tokens_train_their_rows(tie: bool) -> None:
    model = token_tables.grow(network(tie_embeddings=tie), 64)
    assert logits(model).shape[-1] == 64 and model.config.vocabulary == 64  # type: ignore[attr-defined]
    names = lora.trainable(wrapped(model, new_tokens=True))
    assert "model.embed_tokens.weight" in names and ("lm_head.weight" in names) == (not tie)
    loss = model({"input_ids": torch.tensor([[62, 63, 1]])}).logits.square().mean()
    loss.backward()
    assert model.get_parameter("model.embed_tokens.weight").grad is not None


@pytest.mark.parametrize("name", LANGUAGE)
def test_old_tokens_keep_their_logits_when_the_vocabulary_grows(name: str) -> None:
    before = logits(network(name))
    after = logits(token_tables.grow(network(name), 70))
    assert torch.allclose(after[..., :61], before, atol=1e-6)
    assert torch.allclose(after[..., 61:], before.mean(-1, keepdim=True).expand(-1, -1, 9), atol=1e-4)
    with pytest.raises(UserError, match="the tokenizer has 7 tokens and the model 61"):
        token_tables.grow(network(name), 7)


def test_a_copy_of_a_wrapped_network_is_one_of_its_own() -> None:
    model = disturb(wrapped(network(), "dora"))
    before = logits(model)
    merged = dora.merge(copy.deepcopy(model))
    assert torch.allclose(logits(merged), before, atol=1e-4)
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), AdaptedLinear)
    assert torch.equal(logits(model), before)


def test_checkpointed_layers_learn_the_same() -> None:
    grads = []
    for checkpoints in (False, True):
        model = disturb(wrapped(network(), base_bits=4)).train()
        model.backbone.checkpoint_activations = checkpoints
        backward(model)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_products_go_to_the_library_that_was_chosen() -> None:
    model = disturb(wrapped(network()))
    before = logits(model)
    for library in products.libraries("cpu"):
        with products.multiplying(library):
            assert torch.allclose(logits(model), before, atol=1e-4)


def test_dora_norms_are_those_of_the_sum() -> None:
    layer = next(layer for _, layer in adapted_layers(disturb(wrapped(network(), "dora"))))
    assert torch.allclose(layer.norms(), (layer.matrix() + layer.change()).norm(dim=1), rtol=1e-5)


def test_bfloat16_arithmetic_around_an_adapter() -> None:
    for bits in (None, 4):
        model = disturb(wrapped(network("gpt2"), "dora", base_bits=bits)).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            backward(model)
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g is not None and g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


def test_recipes_name_adapters_by_their_files() -> None:
    assert ADAPTERS == ["dora", "lora"]
    assert FromFolder("adapters").section("dora") is dora.Config
    assert dora.Config(rank=4).dump()["name"] == "dora"
