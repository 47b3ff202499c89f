"""How llama.cpp lays out each family in a GGUF file, and what the published names are.

An architecture is one `Layout`: how its fields become a config.json, what its tensors are called, and
how llama.cpp rearranged some of them. Blocks are numbered; `#` stands for the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundup.checkpoints.streamed import Planned
from groundup.errors import UserError, nearest
from groundup.nn.positions import RopeScaling, rotary_frequencies

if TYPE_CHECKING:
    from groundup.checkpoints.gguf import GgufFile

ROPE_FACTORS = "rope_freqs.weight"
"""What each rotary frequency is divided by: how a GGUF file stores the positions of Llama 3."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,), "attention.scale": (), "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,), "logit_scale": (1.0,),
    "residual_scale": (1.0,), "embedding_scale": (1.0,), "use_parallel_residual": (False,),
    "rope.scaling.attn_factor": (1.0,), "attention.sliding_window_pattern": (),
}  # fmt: skip
"""Fields that change what a model computes, and the values with which they do not."""
_PLAIN = "open a model of the plain kind, or its Hugging Face directory with the extra `bridges`"


@dataclass(frozen=True)
class Layout:
    """One architecture."""

    config: Callable[[GgufFile], dict[str, Any]]
    names: Mapping[str, str]
    """Beginning of a tensor's name (without `.weight` or `.bias`) to the published one."""
    transposed: tuple[str, ...] = ()
    """Those that the published layout keeps as (in, out)."""
    interleaved: Mapping[str, str] = field(default_factory=dict)
    """Those whose heads llama.cpp interleaves, to the config key that counts these heads."""

    @staticmethod
    def context(config: Mapping[str, Any]) -> int:
        """The longest row, in tokens."""
        return int(config.get("max_position_embeddings") or config["n_positions"])


def of(file: GgufFile) -> Layout:
    """The layout of a file. Raises UserError for an architecture or an option that is not known."""
    architecture, where = file.architecture, str(file.path)
    if architecture not in LAYOUTS:
        what = f"the file holds a model of the architecture {architecture!r}, which is not known here"
        raise UserError(what, where=where, fix=nearest(architecture, LAYOUTS))
    for key, allowed in NEUTRAL.items():
        value = file.fields.get(f"{architecture}.{key}")
        if value is not None and value not in allowed:
            raise UserError(f"the file sets {architecture}.{key} to {value!r}, which is not supported", where=where,
                            fix=_PLAIN)  # fmt: skip
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(file.fields.get(f"{architecture}.{key}"), list):
            what = f"{architecture}.{key} differs between layers, which is not supported"
            raise UserError(what, where=where, fix=_PLAIN)
    return LAYOUTS[architecture]


def plan(file: GgufFile, layout: Layout, config: Mapping[str, Any]) -> list[Planned]:
    """Every tensor under its published name, to be made when it is written.

    Raises UserError for a tensor that the layout has no place for.
    """
    planned = []
    for name in file.tensors:
        if name == ROPE_FACTORS or (name == "output.weight" and config.get("tie_word_embeddings")):
            continue
        stem, published = _published(file, layout, name)
        heads = config.get(layout.interleaved.get(stem, ""))
        is_turned, shape = stem in layout.transposed and name.endswith(".weight"), file.shape(name)
        make = _maker(file, name, heads=int(heads) if heads else None, is_turned=is_turned)
        planned.append(Planned(published, shape[::-1] if is_turned else shape, make))
    return planned


def _published(file: GgufFile, layout: Layout, name: str) -> tuple[str, str]:
    """The numberless beginning of a tensor's name, and its whole published name."""
    body, _, suffix = name.rpartition(".")
    number = re.match(r"blk\.(\d+)\.", body)
    stem = re.sub(r"^blk\.\d+\.", "blk.#.", body)
    if stem not in layout.names or suffix not in ("weight", "bias"):
        what = f"the file holds the tensor {name}, which the architecture {file.architecture} has no place for"
        raise UserError(what, where=str(file.path), fix=_PLAIN)
    return stem, f"{layout.names[stem].replace('#', number[1] if number else '')}.{suffix}"


def _maker(file: GgufFile, name: str, *, heads: int | None, is_turned: bool) -> Callable[[], Tensor]:
    def make() -> Tensor:
        tensor = file.tensor(name)
        tensor = tensor if heads is None else halved(tensor, heads)
        return tensor.t().contiguous() if is_turned else tensor

    return make


def halved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in the published order: the two halves of a head, not pairs side by side.

    llama.cpp rotates neighbouring dimensions for its `llama` architecture, the published weights the
    two halves of a head against each other; the rows differ by this permutation.
    """
    pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()


def _decoder(file: GgufFile) -> dict[str, Any]:
    """The keys that all families of the Llama type share."""
    d_model, n_heads = int(file.size("embedding_length")), int(file.size("attention.head_count"))
    rotated = int(file.size("rope.dimension_count", 0))
    head_dim = int(file.size("attention.key_length", rotated or d_model // n_heads))
    if rotated not in (0, head_dim):
        what = f"positions turn {rotated} of the {head_dim} dimensions of a head, which is not supported"
        raise UserError(what, where=str(file.path), fix=_PLAIN)
    return {
        "vocab_size": file.shape("token_embd.weight")[0],
        "hidden_size": d_model,
        "intermediate_size": int(file.size("feed_forward_length")),
        "num_hidden_layers": int(file.size("block_count")),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(file.size("attention.head_count_kv", n_heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(file.size("context_length")),
        "rms_norm_eps": _short(file.size("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": is_tied(file),
        "rope_theta": _short(file.size("rope.freq_base", 10_000.0)),
        "rope_scaling": _scaling(file, head_dim),
    }


def _llama(file: GgufFile) -> dict[str, Any]:
    """Llama, Mistral and SmolLM are one architecture to llama.cpp; a sliding window makes it Mistral."""
    window = file.fields.get("llama.attention.sliding_window")
    has_bias = "blk.0.attn_q.bias" in file.tensors
    return _decoder(file) | {
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "model_type": "mistral" if window else "llama",
        **({"sliding_window": int(window)} if window else {}),
        "attention_bias": has_bias,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _qwen2(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}


def _qwen3(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "use_sliding_window": False,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    }


def _gpt2(file: GgufFile) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": file.shape("token_embd.weight")[0],
        "n_positions": int(file.size("context_length")),
        "n_ctx": int(file.size("context_length")),
        "n_embd": int(file.size("embedding_length")),
        "n_layer": int(file.size("block_count")),
        "n_head": int(file.size("attention.head_count")),
        "n_inner": int(file.size("feed_forward_length")),
        "layer_norm_epsilon": _short(file.size("attention.layer_norm_epsilon")),
        "activation_function": "gelu_new",
        "tie_word_embeddings": is_tied(file),
    }


def _bert(file: GgufFile) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": file.shape("token_embd.weight")[0],
        "hidden_size": int(file.size("embedding_length")),
        "intermediate_size": int(file.size("feed_forward_length")),
        "num_hidden_layers": int(file.size("block_count")),
        "num_attention_heads": int(file.size("attention.head_count")),
        "max_position_embeddings": file.shape("position_embd.weight")[0],
        "type_vocab_size": file.shape("token_types.weight")[0],
        "layer_norm_eps": _short(file.size("attention.layer_norm_epsilon")),
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }


def is_tied(file: GgufFile) -> bool:
    """Whether the output layer is the table of embeddings: not stored, or stored a second time unchanged."""
    if "output.weight" not in file.tensors:
        return True
    output, table = file.tensors["output.weight"], file.tensors["token_embd.weight"]
    is_alike = output.tensor_type == table.tensor_type and output.data.shape == table.data.shape
    return bool(is_alike and (output.data == table.data).all())


def _short(value: float) -> float:
    """The shortest decimal number that is this float32: 1e-5, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _scaling(file: GgufFile, head_dim: int) -> dict[str, Any] | None:
    """The stretching of rotary positions as config.json states it, or None."""
    kind = file.fields.get(f"{file.architecture}.rope.scaling.type") or "none"
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, head_dim)
    factor = float(file.size("rope.scaling.factor", file.size("rope.scale_linear", 1.0)))
    if kind == "none" and factor == 1.0:
        return None
    if kind not in ("none", "linear"):
        raise UserError(f"positions are scaled by {kind!r}, which is not supported", where=str(file.path), fix=_PLAIN)
    return {"rope_type": "linear", "factor": factor}


def _llama3_scaling(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """The options of Llama 3 that give the stored factors.

    The file has the factors only; the contexts that the family was trained on are powers of two, and
    its two bounds are 1 and 4 in every published model. Raises UserError if none gives these factors.
    """
    stored_K = file.tensor(ROPE_FACTORS)
    theta, factor = _short(file.size("rope.freq_base", 10_000.0)), float(f"{float(stored_K.max()):.6g}")
    plain_K = rotary_frequencies(head_dim, theta)
    for original in (2**power for power in range(3, 21)):
        scaling = RopeScaling(kind="llama3", factor=factor, original_context=original)
        factors_K = plain_K / rotary_frequencies(head_dim, theta, scaling)
        if factors_K.shape == stored_K.shape and torch.allclose(factors_K, stored_K, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": original,
            }
    what = f"the factors of rotary positions ({ROPE_FACTORS}) are none that Llama 3 has"
    raise UserError(what, where=str(file.path), fix=_PLAIN)


_DECODER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.#.attn_norm": "model.layers.#.input_layernorm",
    "blk.#.attn_q": "model.layers.#.self_attn.q_proj",
    "blk.#.attn_k": "model.layers.#.self_attn.k_proj",
    "blk.#.attn_v": "model.layers.#.self_attn.v_proj",
    "blk.#.attn_output": "model.layers.#.self_attn.o_proj",
    "blk.#.ffn_norm": "model.layers.#.post_attention_layernorm",
    "blk.#.ffn_gate": "model.layers.#.mlp.gate_proj",
    "blk.#.ffn_up": "model.layers.#.mlp.up_proj",
    "blk.#.ffn_down": "model.layers.#.mlp.down_proj",
}
_QWEN3_NAMES = _DECODER_NAMES | {
    "blk.#.attn_q_norm": "model.layers.#.self_attn.q_norm",
    "blk.#.attn_k_norm": "model.layers.#.self_attn.k_norm",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.#.attn_norm": "transformer.h.#.ln_1",
    "blk.#.attn_qkv": "transformer.h.#.attn.c_attn",
    "blk.#.attn_output": "transformer.h.#.attn.c_proj",
    "blk.#.ffn_norm": "transformer.h.#.ln_2",
    "blk.#.ffn_up": "transformer.h.#.mlp.c_fc",
    "blk.#.ffn_down": "transformer.h.#.mlp.c_proj",
}
_BERT_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "blk.#.attn_q": "encoder.layer.#.attention.self.query",
    "blk.#.attn_k": "encoder.layer.#.attention.self.key",
    "blk.#.attn_v": "encoder.layer.#.attention.self.value",
    "blk.#.attn_output": "encoder.layer.#.attention.output.dense",
    "blk.#.attn_output_norm": "encoder.layer.#.attention.output.LayerNorm",
    "blk.#.ffn_up": "encoder.layer.#.intermediate.dense",
    "blk.#.ffn_down": "encoder.layer.#.output.dense",
    "blk.#.layer_output_norm": "encoder.layer.#.output.LayerNorm",
}
_HEADS = {"blk.#.attn_q": "num_attention_heads", "blk.#.attn_k": "num_key_value_heads"}
_GPT2_TURNED = ("blk.#.attn_qkv", "blk.#.attn_output", "blk.#.ffn_up", "blk.#.ffn_down")

LAYOUTS = {
    "llama": Layout(_llama, _DECODER_NAMES, interleaved=_HEADS),
    "qwen2": Layout(_qwen2, _DECODER_NAMES),
    "qwen3": Layout(_qwen3, _QWEN3_NAMES),
    "gpt2": Layout(_gpt2, _GPT2_NAMES, transposed=_GPT2_TURNED),
    "bert": Layout(_bert, _BERT_NAMES),
}
"""The architectures that are opened, by llama.cpp's names."""
