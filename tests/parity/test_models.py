"""The same weights give the same logits as in transformers, in both directions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.errors import ArtifactError, GroundupError, UserError
from groundup.nn.attention import Cached
from groundup.nn.kv_cache import KeyValueCache
from groundup.nn.network import Network, create

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.15, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, one kv head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, all heads, every bias": (
        "Llama",
        {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "llama 3 positions": ("Llama", {"rope_parameters": LLAMA3}),
    "linear positions": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 10}),
    "mistral within its window": ("Mistral", {"sliding_window": 40}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Biases and norms away from zero and one, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def ids(vocabulary: int, rows: int = 3, length: int = 30) -> torch.Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


def decoder(kind: str) -> transformers.PreTrainedModel:
    family, options = DECODERS[kind]
    config = getattr(transformers, f"{family}Config")(**SIZES | options)
    return randomise(getattr(transformers, f"{family}ForCausalLM")(config))


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 0.5, "logits this small would agree by accident"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_agree_both_ways(kind: str, tmp_path: Path) -> None:
    theirs = decoder(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = hugging_face.load(tmp_path / "theirs")
    input_ids = ids(97)
    agree(ours({"input_ids": input_ids}).logits, theirs(input_ids).logits)
    hugging_face.save(tmp_path / "ours", ours, generation=hugging_face.read_generation(tmp_path / "theirs"))
    reopened, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(reopened.eval()(input_ids).logits, theirs(input_ids).logits)
    assert reopened.generation_config.eos_token_id == 2


@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
def test_random_decoders_open_in_transformers(seed: int, tmp_path: Path) -> None:
    """Sizes and options drawn at random; those with no published class are drawn again."""
    draw, model = random.Random(seed), catalog.load("models", "gpt")
    while True:
        groups, n_kv_heads = draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
        config = model.Config(
            vocab_size=draw.randint(20, 90),
            d_model=draw.randint(4, 12) * 4,
            n_layers=draw.randint(1, 3),
            n_heads=groups * n_kv_heads,
            n_kv_heads=n_kv_heads,
            head_dim=2 * draw.randint(2, 9),
            d_ff=draw.randint(8, 70),
            context=draw.randint(20, 50),
            rope_theta=draw.choice([1e4, 1e6]),
            norm_eps=draw.choice([1e-5, 1e-6]),
            attention_bias=draw.choice(["none", "qkv", "all"]),
            mlp_bias=draw.random() < 0.3,
            qk_norm=draw.random() < 0.4,
            tie_embeddings=draw.random() < 0.5,
            initialiser_std=0.3,
        )
        if config.to_hugging_face("language")["model_type"] != "groundup_gpt":
            break
    network = create(model, config, "language", seed=seed)
    randomise(network, seed)
    hugging_face.save(tmp_path, network)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    input_ids = ids(config.vocabulary, length=20)
    agree(network({"input_ids": input_ids}).logits, theirs.eval()(input_ids).logits)
    assert hugging_face.load(tmp_path).config == config


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_inner": 40},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
    ],
)
def test_gpt2_agrees_both_ways(options: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=48, n_layer=3, n_head=6, n_positions=64, bos_token_id=1, eos_token_id=2, **options
    )
    theirs = randomise(transformers.GPT2LMHeadModel(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = hugging_face.load(tmp_path / "theirs")
    input_ids = ids(97)
    agree(ours({"input_ids": input_ids}).logits, theirs(input_ids).logits)
    hugging_face.save(tmp_path / "ours", ours)
    reopened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(reopened(input_ids).logits, theirs(input_ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForPreTraining"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_bert_agrees_both_ways(head: str, activation: str, tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if not key.endswith("token_id")}
    config = transformers.BertConfig(**sizes | {"hidden_act": activation, "type_vocab_size": 3})
    theirs = randomise(getattr(transformers, head)(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = hugging_face.load(tmp_path / "theirs")
    input_ids = ids(97)
    types = (torch.arange(30) // 10).expand(3, -1)
    real = torch.arange(30) < torch.tensor([[30], [21], [7]])
    outputs = ours({"input_ids": input_ids, "token_type_ids": types, "attention_mask": real})
    expected = theirs(input_ids, token_type_ids=types, attention_mask=real.long())
    agree(outputs.logits[real], expected[0][real])
    if head == "BertForPreTraining":
        agree(outputs.next_sentence_logits, expected.seq_relationship_logits)
    hugging_face.save(tmp_path / "ours", ours)
    reopened, report = getattr(transformers, head).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(reopened.eval()(input_ids)[0], theirs(input_ids)[0])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_of_a_decoder_agree(side: str, tmp_path: Path) -> None:
    theirs = decoder("llama")
    theirs.save_pretrained(tmp_path)
    real = torch.arange(30) < torch.tensor([[30], [21], [7]])
    real = real.flip(1) if side == "left" else real
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": ids(97), "attention_mask": real, "positions": positions}
    expected = theirs(ids(97), attention_mask=real.long(), position_ids=positions).logits
    agree(hugging_face.load(tmp_path)(batch).logits[real], expected[real])


@torch.no_grad()
def test_a_real_model_agrees(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data("models/stories260K") / "hf"
    ours, theirs = hugging_face.load(folder), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    input_ids = ids(512, rows=2, length=200)
    agree(ours({"input_ids": input_ids}).logits, theirs(input_ids).logits)
    hugging_face.save(tmp_path, ours, tokenizer_folder=folder, generation=hugging_face.read_generation(folder))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids).logits, theirs(input_ids).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    start = tokenizer("Once upon a time", return_tensors="pt").input_ids
    told = tokenizer.decode(again.generate(start, max_new_tokens=30, do_sample=False)[0])
    assert told == tokenizer.decode(greedy(ours, start, 30)[0])


def greedy(network: Network, start: torch.Tensor, count: int) -> torch.Tensor:
    tokens = start
    for _ in range(count):
        tokens = torch.cat((tokens, network({"input_ids": tokens}).logits[:, -1:].argmax(-1)), 1)
    return tokens


def cache_for(network: Network, rows: int, slots: int) -> KeyValueCache:
    config = network.config
    heads = getattr(config, "n_kv_heads", config.n_heads)
    head_dim = getattr(config, "head_dim", config.d_model // config.n_heads)
    return KeyValueCache(n_layers=config.n_layers, rows=rows, slots=slots, n_kv_heads=heads, head_dim=head_dim)


def step(network: Network, cache: KeyValueCache, tokens: torch.Tensor, starts: list[int], rows: list[int]):
    attend = Cached(cache, starts, tokens.shape[1], rows)
    return network({"input_ids": tokens, "positions": attend.positions_BT}, attend).logits


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_decoding_with_a_cache_equals_the_full_forward(name: str) -> None:
    model = catalog.load("models", name)
    network = create(model, model.Config(**model.TINY, initialiser_std=0.3), "language", seed=1).eval()
    tokens = ids(61, rows=2, length=24)
    full = network({"input_ids": tokens}).logits
    cache = cache_for(network, rows=4, slots=24)
    # Two prompts of different lengths in rows that are no neighbours, the second one in two pieces.
    pieces = [
        (step(network, cache, tokens[:1, :9], [0], [3]), full[:1, :9]),
        (step(network, cache, tokens[1:, :3], [0], [1]), full[1:, :3]),
        (step(network, cache, tokens[1:, 3:6], [3], [1]), full[1:, 3:6]),
    ]
    for offset in range(12):
        now = torch.stack((tokens[0, 9 + offset], tokens[1, 6 + offset]))[:, None]
        expected = torch.stack((full[0, 9 + offset], full[1, 6 + offset]))[:, None]
        pieces.append((step(network, cache, now, [9 + offset, 6 + offset], [3, 1]), expected))
    for ours, expected in pieces:
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt", "gpt2", "bert"])
@pytest.mark.parametrize("changes", [{}, {"norm_order": "flipped", "positions": "sinusoidal"}])
def test_packed_documents_are_as_if_alone(name: str, changes: dict[str, str]) -> None:
    model = catalog.load("models", name)
    if name == "gpt" and changes:
        pytest.skip("gpt has rotary positions and norms before its sublayers only")
    if changes:
        changes = changes | {"norm_order": "pre" if name == "bert" else "post"}
    network = create(model, model.Config(**model.TINY, **changes, initialiser_std=0.3), next(iter(model.HEADS)), seed=1)
    network.eval()
    tokens = ids(61, rows=1, length=24)
    lengths = [7, 1, 12, 4]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = network({"input_ids": tokens, "document_ids": documents.int(), "positions": positions}).hidden
    alone = [network({"input_ids": part}).hidden for part in tokens.split(lengths, 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = decoder("qwen2").to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = hugging_face.load(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    agree(ours({"input_ids": ids(97)}).logits, theirs(ids(97)).logits)
    assert next(hugging_face.load(tmp_path, dtype=dtype).parameters()).dtype == dtype


@torch.no_grad()
def test_sharded_weights_are_read(tmp_path: Path) -> None:
    theirs = decoder("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    agree(hugging_face.load(tmp_path)({"input_ids": ids(97)}).logits, theirs(ids(97)).logits)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(ArtifactError, match="names shards that are not there: model-00002"):
        hugging_face.load(tmp_path)


@torch.no_grad()
def test_a_config_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    theirs = decoder("llama 3 positions")
    theirs.save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    rope = given.pop("rope_parameters")
    given |= {"torch_dtype": given.pop("dtype"), "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(given))
    agree(hugging_face.load(tmp_path)({"input_ids": ids(97)}).logits, theirs(ids(97)).logits)


@torch.no_grad()
def test_bare_backbones_and_first_names_are_read(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=6, n_positions=64)
    theirs = randomise(transformers.GPT2LMHeadModel(config))
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    agree(hugging_face.load(tmp_path)({"input_ids": ids(97)}).logits, theirs(ids(97)).logits)


@torch.no_grad()
def test_the_first_bert_checkpoints_are_read(tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if not key.endswith("token_id")}
    theirs = randomise(transformers.BertForPreTraining(transformers.BertConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    masked = hugging_face.load(tmp_path, head="masked_language")
    agree(masked({"input_ids": ids(97)}).logits, theirs(ids(97)).prediction_logits)
    given = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(given))
    agree(hugging_face.load(tmp_path)({"input_ids": ids(97)}).logits, theirs(ids(97)).prediction_logits)


@torch.no_grad()
def test_a_new_head_begins_by_seed_on_the_stored_backbone(tmp_path: Path) -> None:
    model = catalog.load("models", "bert")
    network = create(model, model.Config(**model.TINY), "masked_language", seed=1).eval()
    hugging_face.save(tmp_path, network)
    one, same = (hugging_face.load(tmp_path, head="pretraining", seed=4) for _ in range(2))
    other = hugging_face.load(tmp_path, head="pretraining", seed=5)
    batch = {"input_ids": ids(61, length=20)}
    assert torch.equal(one(batch).logits, network(batch).logits)
    assert torch.equal(one(batch).next_sentence_logits, same(batch).next_sentence_logits)
    assert not torch.equal(one(batch).next_sentence_logits, other(batch).next_sentence_logits)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt", {"qk_norm": True, "attention_bias": "qkv"}),
        ("gpt2", {"norm_order": "post"}),
        ("bert", {"norm_order": "pre"}),
    ],
)
def test_what_no_published_class_computes_is_refused_there_by_name(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = catalog.load("models", name)
    network = create(model, model.Config(**model.TINY, **changes), next(iter(model.HEADS)), seed=1).eval()
    hugging_face.save(tmp_path, network)
    with pytest.raises(ValueError, match=f"groundup_{name}"):
        transformers.AutoModel.from_pretrained(tmp_path)
    again = hugging_face.load(tmp_path)
    assert again.config == network.config
    batch = {"input_ids": ids(61, length=20)}
    assert torch.equal(again(batch).logits, network(batch).logits)


def test_sinusoidal_positions_open_in_transformers(tmp_path: Path) -> None:
    model = catalog.load("models", "gpt2")
    network = create(model, model.Config(**model.TINY, positions="sinusoidal"), "language", seed=1).eval()
    assert "transformer.wpe.weight" not in dict(network.named_parameters())
    hugging_face.save(tmp_path, network)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(ids(61)).logits, network({"input_ids": ids(61)}).logits, atol=1e-4, rtol=0)
    assert hugging_face.load(tmp_path).config.positions == "sinusoidal"


def spoil_config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        given = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(given))

    return spoil


def spoil_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return spoil


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM = "model.norm.weight"
SPOILS: list[tuple[Callable[[Path], object], type[GroundupError], str]] = [
    (truncate, ArtifactError, "model.safetensors: the weights cannot be read"),
    (pickle_only, UserError, "only pickled weights .pytorch_model.bin., which are never opened"),
    (lambda folder: (folder / "model.safetensors").unlink(), ArtifactError, "there is no model.safetensors"),
    (lambda folder: (folder / "config.json").unlink(), UserError, "config.json cannot be read"),
    (lambda folder: (folder / "config.json").write_text("{"), UserError, "config.json cannot be read"),
    (lambda folder: (folder / "config.json").write_text("[]"), UserError, "does not hold a mapping"),
    (spoil_weights(lambda w: w.pop(NORM)), ArtifactError, f"1 tensors are missing: {NORM}"),
    (spoil_weights(lambda w: w.update(extra=w[NORM].clone())), ArtifactError, "1 tensors are unexpected: extra"),
    (
        spoil_weights(lambda w: w.update({NORM: torch.ones(5)})),
        ArtifactError,
        rf"{NORM} is \(5,\), expected \(48,\)",
    ),
    (spoil_weights(lambda w: w.update({NORM: w[NORM].to(torch.int8)})), ArtifactError, "stored as int8"),
    (
        spoil_config(tie_word_embeddings=True),
        ArtifactError,
        "lm_head.weight should be tied to model.embed_tokens.weight",
    ),
    (spoil_config(model_type="lama"), UserError, "no model opens the family 'lama'\n  fix: did you mean 'llama'"),
    (spoil_config(rope_parameters={"rope_type": "yarn", "factor": 2.0}), UserError, "sets 'rope_type' to 'yarn'"),
    (spoil_config(hidden_act="gelu"), UserError, "sets 'hidden_act' to 'gelu'"),
    (spoil_config(hidden_size=None), UserError, "no value for 'hidden_size'"),
    (spoil_config(num_key_value_heads=5), UserError, "n_heads 6 is not a multiple of n_kv_heads 5"),
    (spoil_config(num_hidden_layers="many"), UserError, "n_layers"),
    (spoil_config(quantization_config={"quant_method": "gptq"}), UserError, "quantized"),
    (spoil_config(architectures=[]), UserError, "a backbone without a head"),
]


@pytest.mark.parametrize(("spoil", "error", "sentence"), SPOILS)
def test_broken_directories_are_explained(
    spoil: Callable[[Path], object], error: type[GroundupError], sentence: str, tmp_path: Path
) -> None:
    decoder("llama").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=sentence) as caught:
        hugging_face.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.fix


def test_a_checkpoint_is_inspected_without_its_weights(tmp_path: Path) -> None:
    decoder("qwen2").save_pretrained(tmp_path)
    network = hugging_face.inspect(tmp_path)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == decoder("qwen2").num_parameters()
    spoil_config(num_hidden_layers=4)(tmp_path)
    with pytest.raises(ArtifactError, match=r"tensors are missing: model\.layers\.3"):
        hugging_face.inspect(tmp_path)


@torch.no_grad()
def test_a_backbone_alone_opens_with_its_pooler_left_out(tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if not key.endswith("token_id")}
    theirs = randomise(transformers.BertModel(transformers.BertConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    assert hugging_face.inspect(tmp_path).head_kind == "embedding"
    agree(hugging_face.load(tmp_path)({"input_ids": ids(97)}).hidden, theirs(ids(97)).last_hidden_state)
    with_pooler = hugging_face.load(tmp_path, "sequence", outputs=3)
    assert torch.equal(with_pooler.backbone.pooler.dense.weight, theirs.pooler.dense.weight)
