"""What every file in models/ promises: sizes, gradients, and a checkpoint that others open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.checkpoints.naming import as_published
from groundup.config import named
from groundup.errors import UserError
from groundup.nn.losses import linear_cross_entropy
from groundup.nn.network import KeepsActivations, Network, create
from groundup.runtimes.torch import TorchRuntime

CASES = [(name, head) for name in catalog.names("models") for head in catalog.load("models", name).HEADS]
MODELS = catalog.names("models")
OUTPUTS = {"sequence": 3, "tokens": 5, "span": 2, "image": 3, "features": 3, "click": 1}
OTHER_INPUTS = {"bert": ("token_type_ids",), "encoder_decoder": ("decoder_input_ids",)}
"""What transformers' classes read beside `input_ids`."""
OVER_THE_VOCABULARY = ("language", "masked_language", "pretraining", "translation")
OF_TOKENS = [name for name in MODELS if hasattr(catalog.load("models", name), "flops_per_token")]
"""The others read images or rows of features."""
PUBLISHED = [
    (name, head) for name, head in CASES if hasattr(transformers, catalog.load("models", name).ARCHITECTURES[head])
]
"""The others have no class in transformers, which refuses them by name."""


def tiny(name: str, head: str, **changes: object) -> Network:
    model = catalog.load("models", name)
    return create(model, model.Config(**model.TINY | changes), head, outputs=OUTPUTS.get(head), seed=3)


def batch_for(network: Network, rows: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    if network.config.name not in OF_TOKENS:
        if hasattr(network.config, "image_shape"):
            return {"pixel_values": torch.randn(rows, *network.config.image_shape, generator=generator)}
        if hasattr(network.config, "n_entries"):
            shape = (rows, network.config.n_columns)
            entries = torch.randint(0, network.config.n_entries, shape, generator=generator)
            return {"entries": entries, "values": torch.randn(shape, generator=generator)}
        shape = getattr(network.config, "shape", None) or (network.config.n_features,)
        return {"features": torch.randn(rows, *shape, generator=generator)}
    ids = torch.randint(0, network.config.vocab_size, (rows, length), generator=generator)
    types = (torch.arange(length) >= length // 2).long().expand(rows, -1)
    labels = torch.randint(0, network.config.vocab_size, (rows, length), generator=generator)
    batch = {"input_ids": ids, "token_type_ids": types, "labels": labels}
    return batch | ({"decoder_input_ids": labels.roll(1, 1)} if network.head_kind == "translation" else {})


def loss_of(network: Network, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    outputs = network(batch)
    if network.head_kind not in OVER_THE_VOCABULARY:
        scores = outputs.logits.flatten(0, -2)
        target = torch.nn.functional.normalize(torch.randn(scores.shape, generator=torch.Generator().manual_seed(7)))
        return (scores - target).square().mean()
    features = outputs.head.features(outputs.hidden)
    total, count = linear_cross_entropy(features, outputs.head.weight, batch["labels"], bias_V=outputs.head.bias)
    if network.head_kind == "pretraining":
        total = total + outputs.next_sentence_logits.logsumexp(1).sum() - outputs.next_sentence_logits[:, 0].sum()
    return total / count


def test_making_a_network_asks_for_no_compiler() -> None:
    """Importing torch's would cost every command that opens a model 1.5 s."""
    script = """
import sys
from groundup import catalog
from groundup.nn.network import create
outputs = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2])))
for name in catalog.names("models"):
    model = catalog.load("models", name)
    for head in model.HEADS:
        create(model, model.Config(**model.TINY), head, outputs=outputs.get(head), seed=0)
        assert "torch._dynamo" not in sys.modules, (name, head)
"""
    words = [str(word) for pair in OUTPUTS.items() for word in pair]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "head"), CASES)
def test_every_parameter_gets_a_gradient(name: str, head: str) -> None:
    network = tiny(name, head).train()
    loss_of(network, batch_for(network)).backward()
    untouched = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize(("name", "head"), CASES)
def test_a_few_steps_lower_the_loss(name: str, head: str) -> None:
    network = tiny(name, head).train()
    batch = batch_for(network)
    # Convolutions of many numbers jump at the rate that suits small tables; a recurrent state moves slowly.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2 if name in OF_TOKENS else 2e-3)
    losses = []
    for _ in range(8 if name in OF_TOKENS and name != "rnn" else 24):
        loss = loss_of(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_a_saved_network_comes_back_bit_for_bit(name: str, head: str, tmp_path: Path) -> None:
    network = tiny(name, head).eval()
    hugging_face.save(tmp_path / "a", network, generation={"eos_token_id": 1})
    again = hugging_face.load(tmp_path / "a")
    batch = batch_for(network)
    assert again.config == network.config
    assert again.head_kind == head
    assert torch.equal(again(batch).logits, network(batch).logits)
    hugging_face.save(tmp_path / "b", again, generation={"eos_token_id": 1})
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize(("name", "head"), PUBLISHED)
def test_transformers_opens_what_was_saved(name: str, head: str, tmp_path: Path) -> None:
    network = tiny(name, head).eval()
    batch = batch_for(network)
    if name not in OF_TOKENS:
        hugging_face.save(tmp_path, network)
        published = getattr(transformers, catalog.load("models", name).ARCHITECTURES[head])
        theirs, report = published.from_pretrained(tmp_path, output_loading_info=True)
        assert not any({key for key in keys if "pooler" not in key or head != "embedding"} for keys in report.values())
        with torch.no_grad():
            found = theirs.eval()(**batch)
        vectors = found.logits if head == "image" else _vectors(found)
        torch.testing.assert_close(network(batch).logits, vectors, atol=1e-5, rtol=0)
        return
    pad = network.config.vocab_size - 1  # transformers looks for the last token that is not padding
    # … and RoBERTa's positions for the first token that is not padding, whose id its config states.
    ids = batch["input_ids"].clamp(min=getattr(network.config, "pad_id", -1) + 1, max=pad - 1)
    hugging_face.save(tmp_path, network, generation={"pad_token_id": pad})
    published = getattr(transformers, catalog.load("models", name).ARCHITECTURES[head])
    theirs, report = published.from_pretrained(tmp_path, output_loading_info=True)
    assert not any({key for key in keys if "pooler" not in key or head != "embedding"} for keys in report.values())
    others = {key: batch[key] for key in OTHER_INPUTS.get(name, ())}
    with torch.no_grad():
        found = theirs.eval()(input_ids=ids, **others)
    match head:
        case "span":
            expected = torch.stack([found.start_logits, found.end_logits], dim=-1)
        case "embedding":
            reads = network.head.reads  # type: ignore[attr-defined]
            vectors = found.last_hidden_state.mean(1) if reads == "mean" else found.last_hidden_state[:, -1]
            expected = torch.nn.functional.normalize(vectors, dim=-1)
        case _:
            expected = found[0]
    torch.testing.assert_close(network(batch | {"input_ids": ids}).logits, expected, atol=1e-4, rtol=0)


def _vectors(found: object) -> torch.Tensor:
    """What a bare model of images gives for each: the mean of its map, or the first token's vector; of length one."""
    hidden = found.last_hidden_state  # type: ignore[attr-defined]
    return torch.nn.functional.normalize(hidden.mean((2, 3)) if hidden.dim() == 4 else hidden[:, 0], dim=-1)


@pytest.mark.parametrize(("name", "head"), [case for case in CASES if case not in PUBLISHED])
def test_transformers_refuses_what_has_no_published_layout_by_its_name(name: str, head: str, tmp_path: Path) -> None:
    hugging_face.save(tmp_path, tiny(name, head))
    with pytest.raises(ValueError, match=f"groundup_{name}"):
        transformers.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "head"), PUBLISHED)
def test_the_state_dict_has_the_published_names(name: str, head: str, tmp_path: Path) -> None:
    network = tiny(name, head)
    published = getattr(transformers, catalog.load("models", name).ARCHITECTURES[head])
    given = network.config.to_hugging_face(head)
    theirs = published(published.config_class.from_dict(given))
    theirs.save_pretrained(tmp_path)
    names = set(hugging_face.read_weights(tmp_path))
    if head == "embedding":
        names = {f"{network.prefix}.{key}" for key in names if not key.startswith("pooler.")}
    renamed = as_published(catalog.load("models", name), network.state_dict())
    assert set(renamed) == names


@pytest.mark.parametrize(("name", "head"), [case for case in CASES if case[0] in OF_TOKENS])
@torch.no_grad()
def test_padded_and_flat_batches_give_the_same_scores(name: str, head: str) -> None:
    """A padded row of each example, and all examples end to end: the same logits where there are tokens."""
    network = tiny(name, head).eval()
    lengths = torch.tensor([4, 9, 9, 12])
    real = torch.arange(12) < lengths[:, None]
    ids = batch_for(network, rows=4)["input_ids"]
    types = (torch.arange(12) % 2).expand(4, -1)
    positions = torch.cat([torch.arange(int(n)) for n in lengths])[None]
    inputs = {"input_ids": ids * real, "token_type_ids": types * real, "attention_mask": real}
    flat = {"input_ids": ids[real][None], "token_type_ids": types[real][None], "positions": positions}
    flat |= {"lengths": lengths}
    if head == "translation":  # its targets are of the sources' lengths in another order
        turned = {"input_ids": ids.flip(0) * real.flip(0), "attention_mask": real.flip(0)}
        inputs = turned | {"decoder_input_ids": ids * real, "decoder_attention_mask": real}
        flat = {f"decoder_{key}": value for key, value in flat.items() if key != "token_type_ids"}
        flat |= {"input_ids": ids.flip(0)[real.flip(0)][None], "lengths": lengths.flip(0)}
        flat["positions"] = torch.cat([torch.arange(int(n)) for n in lengths.flip(0)])[None]
    padded, found = network(inputs), network(flat)
    assert found.hidden.shape[:2] == (1, 34)  # more tokens than the context of 32: each text counts from zero
    torch.testing.assert_close(found.hidden[0], padded.hidden[real], atol=1e-5, rtol=0)
    expected = padded.logits[real][None] if padded.logits.dim() == 3 else padded.logits
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=0)


VARIANTS = [(name, {}) for name in MODELS if name in OF_TOKENS] + [
    ("gpt", {"tie_embeddings": False, "attention_bias": "qkv"}),
    ("gpt", {"attention_bias": "all", "mlp_bias": True, "qk_norm": True, "head_dim": 14}),
    ("gpt2", {"tie_embeddings": False, "norm_order": "post"}),
    ("gpt2", {"positions": "sinusoidal"}),
    ("bert", {"positions": "sinusoidal", "norm_order": "pre", "token_types": 3}),
    ("roberta", {"positions": "sinusoidal", "norm_order": "pre", "token_types": 3, "pad_id": 0}),
    ("distilbert", {"activation": "relu", "d_ff": 40}),
    ("encoder_decoder", {"norm_order": "pre", "decoder_layers": 3, "activation": "swish"}),
    ("rnn", {"cell": "gru", "d_hidden": 20}),
    ("rnn", {"cell": "elman", "tie_embeddings": True, "d_hidden": 24}),
]
OTHER_VARIANTS = [(name, {}) for name in MODELS if name not in OF_TOKENS] + [
    ("mlp", {"widths": (), "batch_norm": False}),
    ("cnn", {"padding": "same", "dense": (), "kernel_size": 5, "batch_norm": False}),
    ("lenet", {"image_size": (32, 20), "pool": "learned", "connections": "table", "activation": "scaled_tanh"}),
    ("resnet", {"image_size": (33, 47), "block": "bottleneck"}),
    ("resnet", {"image_size": (28, 33), "stem": "small", "depths": (2, 1, 1), "widths": (4, 4, 8), "stem_width": 4}),
    ("efficientnet_lite", {"image_size": (33, 47), "depth": 0.7, "width": 0.5}),
    ("vit", {"image_size": (8, 12), "patch_size": (4, 2), "attention_bias": False}),
    ("speech_resnet", {"frames": 30, "bands": 17, "size": 15}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_parameters_and_flops_are_those_of_the_built_model(name: str, changes: dict[str, object]) -> None:
    model = catalog.load("models", name)
    network = tiny(name, next(iter(model.HEADS)), **changes).eval()
    assert model.parameters(network.config) == sum(p.numel() for p in network.parameters())
    batch = batch_for(network, rows=2, length=16)
    # torch's counter does not know the fused attention of CPUs, but the matrix products of the plain one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        assert network(batch).logits.shape == (2, 16, network.config.vocab_size)
    tokens = 16 * (1 + ("decoder_input_ids" in batch))  # of an example: of the source and of the target
    assert counter.get_total_flops() == 2 * tokens * model.flops_per_token(network.config, tokens)


@pytest.mark.parametrize(("name", "changes"), OTHER_VARIANTS)
def test_parameters_and_flops_of_an_example_are_those_of_the_built_model(name: str, changes: dict[str, object]) -> None:
    model = catalog.load("models", name)
    network = tiny(name, next(iter(model.HEADS)), **changes).eval()
    assert model.parameters(network.config, 3) == sum(p.numel() for p in network.parameters())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        assert network(batch_for(network, rows=2)).logits.shape == (2, network.outputs)
    assert counter.get_total_flops() == 2 * model.flops_per_example(network.config, 3)


@pytest.mark.parametrize(
    ("name", "changes"), [("gpt", {}), ("gpt2", {}), ("gpt2", {"norm_order": "post"}), ("rnn", {})]
)
def test_logits_of_some_tokens_are_those_among_all(name: str, changes: dict[str, object]) -> None:
    """Where only some are wanted, the last layer leaves the others out as soon as their keys and values are known."""
    runtime = TorchRuntime(tiny(name, "language", **changes), max_sequences=2)
    ids = batch_for(runtime.network, rows=1, length=14)["input_ids"][0].tolist()
    call = ids, [*range(9), *range(5)], [0] * 9 + [1] * 5
    seen: list[int] = []
    for module in runtime.network.backbone.modules():  # type: ignore[attr-defined]
        if type(module).__name__ == "FeedForward":
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    among_all = runtime.step(*call, runtime.new_cache(), every=True)
    assert set(seen) <= {14}
    for wanted in ([8, 13], [13, 2, 3], []):
        seen.clear()
        cache = runtime.new_cache()
        torch.testing.assert_close(runtime.step(*call, cache, wanted=wanted), among_all[wanted], rtol=1e-5, atol=1e-6)
        assert name == "rnn" or seen == [14] * (len(seen) - 1) + [len(wanted)]
        whole = runtime.new_cache()
        runtime.step(*call, whole, every=True)
        later, expected = (runtime.step(ids[:2], [9, 5], [0, 1], kept) for kept in (cache, whole))
        torch.testing.assert_close(later, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_a_config_survives_its_published_form(name: str, head: str) -> None:
    model = catalog.load("models", name)
    chosen = {"dropout": 0.25, "attention_dropout": 0.125, "initialiser": "xavier"}
    known = {key: value for key, value in chosen.items() if key in model.Config.model_fields and name != "resnet"}
    config = model.Config(**model.TINY | known)
    described = json.loads(json.dumps(config.to_hugging_face(head)))
    assert model.Config.from_hugging_face(described) == config
    assert named("models", config.dump()) == config


@pytest.mark.parametrize("name", MODELS)
def test_activation_checkpointing_changes_no_bit(name: str) -> None:
    """A backbone that cannot compute its activations again says so."""
    head = next(iter(catalog.load("models", name).HEADS))
    network = tiny(name, head, **{} if name == "resnet" else {"dropout": 0.3}).train()
    gradients = []
    for again in (False, True):
        if again and isinstance(network.backbone, KeepsActivations):
            with pytest.raises(UserError, match="cannot compute its activations a second time"):
                network.backbone.checkpoint_activations = again
            return
        network.backbone.checkpoint_activations = again
        network.zero_grad()
        torch.manual_seed(11)
        loss_of(network, batch_for(network)).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "head"), CASES)
def test_autocast_trains_packed_rows_in_bfloat16(name: str, head: str) -> None:
    network = tiny(name, head).train()
    batch = batch_for(network, rows=3 if name in OF_TOKENS else 64)  # batch norm makes noise of too few images
    if name in OF_TOKENS:
        batch |= {"document_ids": (torch.arange(12) // 5).int().expand(3, -1)}
    full = loss_of(network, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(network, batch)
    loss.backward()
    torch.testing.assert_close(loss, full, rtol=0.02 if name in OF_TOKENS else 0.05, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet"])
def test_dropout_acts_in_training_only(name: str) -> None:
    network = tiny(name, next(iter(catalog.load("models", name).HEADS)), dropout=0.5)
    batch = batch_for(network)
    network.eval()
    assert torch.equal(network(batch).logits, network(batch).logits)
    network.train()
    assert not torch.equal(network(batch).logits, network(batch).logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    model = catalog.load("models", name)
    head = next(iter(model.HEADS))
    one, same = tiny(name, head).state_dict(), tiny(name, head).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    other = create(model, model.Config(**model.TINY), head, outputs=OUTPUTS.get(head), seed=4).state_dict()
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_head_and_a_row_too_long_are_refused(name: str) -> None:
    model = catalog.load("models", name)
    head = next(iter(model.HEADS))
    with pytest.raises(UserError, match="no head for 'languge'"):
        create(model, model.Config(**model.TINY), "languge", seed=0)
    network = tiny(name, head)
    if name in OF_TOKENS:
        with pytest.raises(UserError, match="longer than the model's context of 32"):
            network({"input_ids": torch.zeros(1, 33, dtype=torch.long)})
        return
    with pytest.raises(UserError, match=r"the model reads .*, and the batch has input_ids"):
        network({"input_ids": torch.zeros(1, 5, dtype=torch.long)})
    with pytest.raises(UserError, match=r"(channels|numbers|entries), and the model reads"):
        network({key: torch.zeros(1, 7, 40, 40) for key in batch_for(network)})


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("gpt", {"d_model": 250, "n_heads": 4}, "set d_model to 248 or 252"),
        ("gpt2", {"d_model": 250, "n_heads": 4}, "set d_model to 248 or 252"),
        ("bert", {"d_model": 250, "n_heads": 4}, "set d_model to 248 or 252"),
        ("gpt", {"n_heads": 4, "n_kv_heads": 3}, "set n_kv_heads to one of 1, 2, 4"),
        ("gpt", {"head_dim": 7}, "head_dim 7 is odd"),
        ("gpt", {"rope_scaling": {"kind": "llama3", "factor": 2, "low_freq_factor": 4}}, "must be above"),
        ("gpt2", {"d_model": 33, "n_heads": 3, "positions": "sinusoidal"}, "needs an even d_model"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(name: str, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        catalog.load("models", name).Config(**{"vocab_size": 61} | changes)


def test_the_pretraining_head_is_counted() -> None:
    model = catalog.load("models", "bert")
    network = tiny("bert", "pretraining")
    assert model.parameters(network.config, "pretraining") == sum(p.numel() for p in network.parameters())


def test_compiling_needs_no_break_and_changes_no_result() -> None:
    """The whole step, packed, with activations computed again, as one graph."""
    network = tiny("gpt", "language").train()
    network.backbone.checkpoint_activations = True
    documents = (torch.arange(12) // 5).int().expand(3, -1)
    batch = batch_for(network) | {"document_ids": documents, "positions": (torch.arange(12) % 5).expand(3, -1)}
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    gradients = []
    for step in (loss_of, compiled):
        network.zero_grad()
        step(network, batch).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
