"""Adapters written here give the same logits in PEFT, and PEFT's give the same here."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.checkpoints.peft import BASE, CONFIG, TASK_TYPES, WEIGHTS, load_adapter, save_adapter
from groundup.errors import ArtifactError, UserError
from groundup.nn import token_tables
from groundup.nn.network import Network, create

IDS = torch.arange(22).reshape(2, 11) + 5  # none of them padding
CLASSES: dict[tuple[str, str], Any] = {
    ("gpt", "language"): transformers.LlamaForCausalLM,
    ("gpt", "sequence"): transformers.LlamaForSequenceClassification,
    ("gpt2", "language"): transformers.GPT2LMHeadModel,
    ("gpt2", "tokens"): transformers.GPT2ForTokenClassification,
    ("bert", "masked_language"): transformers.BertForMaskedLM,
    ("bert", "sequence"): transformers.BertForSequenceClassification,
    ("bert", "span"): transformers.BertForQuestionAnswering,
    ("bert", "embedding"): transformers.BertModel,
    ("roberta", "sequence"): transformers.RobertaForSequenceClassification,
    ("distilbert", "sequence"): transformers.DistilBertForSequenceClassification,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora"},
    "rslora": {"adapter": "lora", "rank_stabilised": True, "rank": 6},
    "dora": {"adapter": "dora", "targets": "attention"},
}
CASES = [(*case, method) for case in CLASSES for method in METHODS if "language" in case[1] or method == "lora"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]


def base(folder: Path, name: str = "gpt", kind: str = "language", **sizes: Any) -> Path:
    """A small published model on disk."""
    model = catalog.load("models", name)
    config = model.Config(**{**model.TINY, "initialiser_std": 0.2, **sizes})
    outputs = 3 if kind in ("sequence", "tokens") else None
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    hugging_face.save(folder, create(model, config, kind, outputs=outputs, seed=3), generation=generation)
    return folder


def adapted(folder: Path, adapter: str = "lora", *, grown: int = 0, **options: Any) -> Network:
    """The model in a folder with an adapter that has moved, as training would move it; new tokens if it has grown."""
    module, network = catalog.load("adapters", adapter), hugging_face.load(folder)
    network = token_tables.grow(network, grown or 61)
    module.wrap(network, module.Config(**options), seed=5, new_tokens=bool(grown))
    disturb(network)
    return network


@torch.no_grad()
def disturb(network: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    for p in network.parameters():
        if p.requires_grad:
            p.add_(torch.randn(p.shape, generator=draw) * 0.1)
    network.eval()


@torch.no_grad()
def ours(network: Network) -> Tensor:
    found = network({"input_ids": IDS, "attention_mask": torch.ones_like(IDS, dtype=torch.bool)})
    return found.hidden if network.head_kind == "embedding" else torch.as_tensor(found.logits)


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    found = model(input_ids=IDS)
    if hasattr(found, "start_logits"):
        return torch.stack([found.start_logits, found.end_logits], -1)
    return torch.as_tensor(found.logits if hasattr(found, "logits") else found.last_hidden_state)


def opened(kind: Any, folder: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(kind.from_pretrained(folder), adapter).eval()


@pytest.mark.parametrize(("name", "kind", "method"), CASES)
def test_peft_opens_what_we_write(name: str, kind: str, method: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", name, kind)
    network = adapted(folder, **METHODS[method])
    save_adapter(tmp_path / "adapter", network, base=folder)
    found = opened(CLASSES[name, kind], folder, tmp_path / "adapter")
    assert torch.allclose(theirs(found), ours(network), atol=1e-5)
    again = load_adapter(hugging_face.load(folder), tmp_path / "adapter")
    assert torch.equal(ours(again), ours(network))
    assert torch.allclose(theirs(found.merge_and_unload()), ours(merged(again)), atol=1e-4)


def merged(network: Network) -> Network:
    found: Network = catalog.load("adapters", "lora").merge(network)
    return found


@pytest.mark.parametrize(("name", "kind", "method"), CASES)
def test_we_open_what_peft_writes(name: str, kind: str, method: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", name, kind)
    by_family = {"gpt": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"], "distilbert": ["q_lin", "ffn.lin1"]}
    targets = by_family.get(name, ["query", "value"])
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=targets, use_dora=method == "dora", use_rslora=method == "rslora",
        fan_in_fan_out=name == "gpt2", rank_pattern={targets[0]: 2}, alpha_pattern={rf"{targets[1]}": 5},
        task_type=TASK_TYPES.get(kind),
    )  # fmt: skip
    model = peft.get_peft_model(CLASSES[name, kind].from_pretrained(folder), config)
    disturb(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    network = load_adapter(hugging_face.load(folder), tmp_path / "adapter")
    assert torch.allclose(ours(network), theirs(model), atol=1e-5)
    save_adapter(tmp_path / "ours", network, base=folder)
    assert torch.allclose(theirs(opened(CLASSES[name, kind], folder, tmp_path / "ours")), theirs(model), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_peft(method: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    network = adapted(folder, **METHODS[method])
    save_adapter(tmp_path / "adapter", network, base=folder)
    model = peft.PeftModel.from_pretrained(
        CLASSES["gpt", "language"].from_pretrained(folder), tmp_path / "adapter", is_trainable=True
    )
    torch.as_tensor(network({"input_ids": IDS}).logits).square().mean().backward()  # type: ignore[no-untyped-call]
    model(input_ids=IDS).logits.square().mean().backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert len(found) == len(wanted) > 0
    for name, grad in wanted.items():
        ours_ = name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight")
        assert torch.allclose(found[ours_], grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_new_tokens_travel_with_the_adapter(name: str, tie: bool, tmp_path: Path) -> None:
    """PEFT wants the base's tables resized first, as it says itself; we do it."""
    folder = base(tmp_path / "base", name, tie_embeddings=tie)
    network = adapted(folder, grown=66, targets="attention")
    save_adapter(tmp_path / "adapter", network, base=folder)
    again = load_adapter(hugging_face.load(folder), tmp_path / "adapter")
    assert again.config.vocabulary == 66  # type: ignore[attr-defined]
    assert torch.equal(ours(again), ours(network))
    resized = CLASSES[name, "language"].from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resized.resize_token_embeddings(66, mean_resizing=False)
        found = peft.PeftModel.from_pretrained(resized, tmp_path / "adapter").eval()
    assert torch.allclose(theirs(found), ours(network), atol=1e-5)
    hugging_face.save(tmp_path / "merged", merged(again), generation={"bos_token_id": 1, "eos_token_id": 2})
    whole = CLASSES[name, "language"].from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(theirs(whole), ours(network), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("tie", [True, False])
def test_we_open_tables_that_peft_trained(tie: bool, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", tie_embeddings=tie)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", ensure_weight_tying=tie,
        modules_to_save=["embed_tokens"] if tie else ["embed_tokens", "lm_head"],
    )  # fmt: skip
    bare = CLASSES["gpt", "language"].from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare.resize_token_embeddings(70, mean_resizing=False)
        model = peft.get_peft_model(bare, config)
    disturb(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    network = load_adapter(hugging_face.load(folder), tmp_path / "adapter")
    assert torch.allclose(ours(network), theirs(model), atol=1e-5)


def test_a_family_that_transformers_computes_takes_adapters_too(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = transformers.GPTNeoXConfig(vocab_size=61, max_position_embeddings=32, **sizes)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "base")
    network = adapted(tmp_path / "base", "dora")
    save_adapter(tmp_path / "adapter", network, base=tmp_path / "base")
    found = opened(transformers.GPTNeoXForCausalLM, tmp_path / "base", tmp_path / "adapter")
    assert torch.allclose(theirs(found), ours(network), atol=1e-5)
    again = load_adapter(hugging_face.load(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(ours(merged(again)), ours(network), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_of_a_quantised_base_knows_the_whole_one(bits: int, tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", adapted(folder, base_bits=bits), base=folder)
    load_adapter(hugging_face.load(folder), tmp_path / "adapter")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", adapted(folder), base=folder)
    other = base(tmp_path / "other", dropout=0.1, initialiser_std=0.1)
    with pytest.raises(UserError, match="the adapter belongs to another base: its digest is"):
        load_adapter(hugging_face.load(other), tmp_path / "adapter")
    (tmp_path / "adapter" / BASE).unlink()
    load_adapter(hugging_face.load(other), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"another model: model.layers.0.*lora_. is \("):
        load_adapter(hugging_face.load(base(tmp_path / "wide", d_model=16, n_kv_heads=1)), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"another model: there is no model.layers.0.mlp.down_proj") as caught:
        load_adapter(hugging_face.load(base(tmp_path / "two", "gpt2")), tmp_path / "adapter")
    assert str(folder) in caught.value.fix


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "an adapter of the type 'IA3'"),
        ({"trainable_token_indices": [3]}, "uses trainable_token_indices"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "began by changing its base"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", adapted(folder), base=folder)
    path = tmp_path / "adapter" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        load_adapter(hugging_face.load(folder), tmp_path / "adapter")


def test_damaged_adapters(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    whole = tmp_path / "adapter"
    save_adapter(whole, adapted(folder), base=folder)
    network = hugging_face.load(folder)
    for name in (CONFIG, WEIGHTS):
        broken = shutil.copytree(whole, tmp_path / f"without {name}")
        (broken / name).unlink()
        with pytest.raises(UserError, match=f"{name} cannot be read|there is no {name}"):
            load_adapter(network, broken)
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((whole / WEIGHTS).read_bytes()[:500])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_adapter(network, cut)
    half = shutil.copytree(whole, tmp_path / "half")
    weights = {name: tensor for name, tensor in load_file(whole / WEIGHTS).items() if "q_proj.lora_B" not in name}
    save_file(weights, half / WEIGHTS)
    with pytest.raises(UserError, match="belongs to another model"):
        load_adapter(network, half)


def test_the_same_adapter_gives_the_same_bytes_and_short_names(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "gpt2")
    for name in ("one", "two"):
        save_adapter(tmp_path / name, adapted(folder, targets="attention"), base=folder)
    for name in (CONFIG, WEIGHTS, BASE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / CONFIG).read_text())["target_modules"] == ["attn.c_proj", "c_attn"]


def test_nothing_to_save_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(tmp_path / "adapter", hugging_face.load(base(tmp_path / "base")), base="x")
