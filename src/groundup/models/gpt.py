"""Decoder of the Llama type: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Its options cover the published Llama, Mistral, Qwen2, Qwen3 and SmolLM layouts; parameter names are
theirs, so weights need no conversion.

Axes: B rows, T tokens, W those of them that are wanted, D model width, H query heads, G key-value heads,
K dimensions of a head.
Touvron et al. 2023; Su et al. 2021 (RoPE); Ainslie et al. 2023 (grouped queries); Shazeer 2020 (SwiGLU).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn import heads
from groundup.nn.attention import Attend
from groundup.nn.dropout import dropout
from groundup.nn.heads import EmbeddingHead, LinearHead
from groundup.nn.layers import LanguageHead, ResidualLinear, TiedLanguageHead, check_length, language_head, run_layers
from groundup.nn.positions import RopeScaling, Rotary, rotate
from groundup.nn.published import OURS, only, ours, read_rope, required, write_rope
from groundup.nn.shape import TransformerSection, whole_heads
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "model"
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "groundup_gpt")
ARCHITECTURES = {
    "language": "LlamaForCausalLM",
    "sequence": "LlamaForSequenceClassification",
    "tokens": "LlamaForTokenClassification",
    "embedding": "LlamaModel",
}
NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints carry and that follow from the config."""
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
"""Tensors that some checkpoints hold twice although one is the other."""
TINY: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "context": 32,
}  # fmt: skip
"""Sizes with which the contract tests build it."""


def _default_d_ff(values: dict[str, Any]) -> int:
    """8/3 of d_model, so that three matrices cost what two of width 4·d_model would, in whole 64s."""
    return -(-8 * int(values["d_model"]) // (3 * 64)) * 64


class Config(TransformerSection):
    """A decoder of the Llama type."""

    n_kv_heads: PositiveCount = Field(default_factory=lambda values: values["n_heads"])
    """Number of key-value heads, a divisor of n_heads; n_heads if not given."""
    head_dim: PositiveCount = Field(default_factory=lambda values: max(1, values["d_model"] // values["n_heads"]))
    """Dimensions of a head, even; d_model / n_heads if not given."""
    d_ff: PositiveCount = Field(default_factory=_default_d_ff)
    """Width of the feed-forward layers; 8/3 of d_model in whole 64s if not given."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary wavelengths; larger for longer contexts."""
    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched beyond the context trained on."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square before its root."""
    tie_embeddings: bool = True
    """Whether the output layer uses the table of the token embeddings."""
    attention_bias: Literal["none", "qkv", "all"] = "none"
    """Biases of the attention's projections: none (Llama), on q, k and v (Qwen2), on the output too."""
    mlp_bias: bool = False
    """Biases of the feed-forward layers."""
    qk_norm: bool = False
    """RMSNorm over each head of queries and keys (Qwen3)."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if "head_dim" not in self.model_fields_set:
            whole_heads(self.d_model, self.n_heads)
        if self.n_heads % self.n_kv_heads:
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: "
                f"set n_kv_heads to one of {', '.join(map(str, divisors))}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} is odd, but rotary positions turn pairs of dimensions: make it even "
                f"(it is d_model {self.d_model} / n_heads {self.n_heads} unless given)"
            )
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported.

        Where the published model attends within a sliding window, `context` is at most that window:
        up to there the two compute the same.
        """
        family = only(given, "model_type", MODEL_TYPES)
        only(given, "hidden_act", ("silu",), "silu")
        only(given, "pretraining_tp", (1, None))
        n_heads, theta_and_scaling = required(given, "num_attention_heads"), read_rope(given)
        has_bias = bool(given.get("attention_bias", False))
        options = {
            "vocab_size": required(given, "vocab_size"),
            "d_model": required(given, "hidden_size"),
            "n_layers": required(given, "num_hidden_layers"),
            "n_heads": n_heads,
            "n_kv_heads": given.get("num_key_value_heads") or (8 if family == "mistral" else n_heads),
            "d_ff": required(given, "intermediate_size"),
            "context": min(required(given, "max_position_embeddings"), _window(given, family)),
            "norm_eps": given.get("rms_norm_eps", 1e-6),
            "rope_theta": theta_and_scaling[0],
            "rope_scaling": theta_and_scaling[1],
            "tie_embeddings": bool(given.get("tie_word_embeddings", False)),
            "attention_bias": "qkv" if family == "qwen2" else "all" if has_bias else "none",
            "mlp_bias": bool(given.get("mlp_bias", False)),
            "qk_norm": family == "qwen3",
            "attention_dropout": given.get("attention_dropout") or 0.0,
            "initialiser_std": given.get("initializer_range", 0.02),
        }
        head_dim = given.get("head_dim") or (128 if family == "qwen3" else None)
        return cls(**options | ({"head_dim": head_dim} if head_dim else {}) | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head, under the first published family that fits.

        Where none fits, model_type is `groundup_gpt`, which transformers refuses by that name.
        """
        family = _family(self)
        kept: dict[str, Any] = {"dropout": self.dropout, "initialiser": self.initialiser}
        if family == "groundup_gpt":
            kept |= {"attention_bias": self.attention_bias, "qk_norm": self.qk_norm}
        return {
            "architectures": [ARCHITECTURES[head].replace("Llama", FAMILIES[family])],
            "model_type": family,
            "vocab_size": self.vocabulary,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": self.attention_bias != "none",
            "attention_dropout": self.attention_dropout,
            "mlp_bias": self.mlp_bias,
            "sliding_window": None,
            "use_sliding_window": False,
            "initializer_range": self.initialiser_std,
            OURS: kept,
        } | write_rope(self.rope_theta, self.rope_scaling)


FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "groundup_gpt": "Groundup"}
"""model_type of config.json to the beginning of its class names."""


def _family(config: Config) -> str:
    """The published family with exactly these options."""
    own_head_dim = config.head_dim * config.n_heads != config.d_model
    match config.qk_norm, config.attention_bias, config.mlp_bias:
        case True, "none" | "all", False:
            return "qwen3"
        case False, "none" | "all", _ if config.d_model % config.n_heads == 0:
            return "llama"
        case False, "none", False:
            return "mistral"
        case False, "qkv", False if not own_head_dim:
            return "qwen2"
    return "groundup_gpt"


def _window(given: dict[str, Any], family: str) -> int:
    """How far back a published model attends, in tokens."""
    limited = family == "mistral" or bool(given.get("use_sliding_window"))
    window = given.get("sliding_window", 4096) if limited else None
    return int(window or required(given, "max_position_embeddings"))


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    together = (("q_proj", "k_proj", "v_proj"),)  # they read the same input: see nn/packed.py

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.attention_dropout
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        has_bias = config.attention_bias != "none"
        self.q_proj = nn.Linear(config.d_model, queries, bias=has_bias)
        self.k_proj = nn.Linear(config.d_model, keys, bias=has_bias)
        self.v_proj = nn.Linear(config.d_model, keys, bias=has_bias)
        self.o_proj = ResidualLinear(queries, config.d_model, bias=config.attention_bias == "all")
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x_BTD: Tensor, attend: Attend, cos: Tensor, sin: Tensor, wanted_W: Tensor | None = None
    ) -> Tensor:
        """What each token takes from those it may see, (B,T,D); (B,W,D) where only some are wanted."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHK, k_BTGK, v_BTGK = (proj(x_BTD).view(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BTHK, k_BTGK = rotate(q_BTHK, cos, sin), rotate(k_BTGK, cos, sin)
        dropped = self.dropout if self.training else 0.0
        out_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, self.layer, dropout=dropped)
        if wanted_W is not None:
            out_BTHK = out_BTHK[:, wanted_W]
        out_BTD: Tensor = self.o_proj(out_BTHK.flatten(2))
        return out_BTD


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    together = (("gate_proj", "up_proj"),)  # they read the same input: see nn/packed.py

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=config.mlp_bias)
        self.down_proj = ResidualLinear(config.d_ff, config.d_model, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,D)."""
        out_BTD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out_BTD


class Block(nn.Module):
    """Attention and feed-forward, each on normed input and added to the residual stream."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self, x_BTD: Tensor, attend: Attend, cos: Tensor, sin: Tensor, wanted_W: Tensor | None = None
    ) -> Tensor:
        """The residual stream after this block, (B,T,D); (B,W,D) where only some tokens are wanted."""
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), attend, cos, sin, wanted_W)
        if wanted_W is not None:
            x_BTD = x_BTD[:, wanted_W]
        x_BTD = x_BTD + dropout(attended_BTD, self.dropout, self.training)
        return x_BTD + dropout(self.mlp(self.post_attention_layernorm(x_BTD)), self.dropout, self.training)


class Gpt(nn.Module):
    """Embeddings, blocks and a last norm: token ids to hidden states."""

    causal = narrows = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.embed_tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.rotary = Rotary(config.head_dim, config.context, config.rope_theta, config.rope_scaling)
        self.checkpoint_activations = False

    def forward(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
        wanted_W: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B,T,D). Token types mean nothing to this family and are not used.

        Where only the tokens of the places `wanted_W` are wanted, theirs alone, (B,W,D): the others leave the last
        layer as soon as their keys and values are known.
        """
        check_length(input_ids_BT.shape[1], self.context, positions_BT)
        x_BTD = dropout(self.embed_tokens(input_ids_BT), self.dropout, self.training)
        cos, sin = self.rotary(positions_BT, input_ids_BT.shape[1], x_BTD.dtype)
        inputs, again = (x_BTD, attend, cos, sin), self.checkpoint_activations
        x_BTD = run_layers(self.layers, *inputs, checkpoint_activations=again, wanted_W=wanted_W)
        hidden_BTD: Tensor = self.norm(x_BTD)
        return hidden_BTD


def build(config: Config) -> Gpt:
    """The backbone, its weights not yet initialised."""
    return Gpt(config)


def _language(config: Config, backbone: Gpt, outputs: int | None) -> LanguageHead | TiedLanguageHead:
    return language_head(backbone.embed_tokens, tie=config.tie_embeddings)


def _sequence(config: Config, backbone: Gpt, outputs: int | None) -> LinearHead:
    return LinearHead(config.d_model, heads.required(outputs, "sequence"), published="score", reads="last", bias=False)


def _tokens(config: Config, backbone: Gpt, outputs: int | None) -> LinearHead:
    common: dict[str, Any] = {"published": "score", "dropout": config.dropout}
    return LinearHead(config.d_model, heads.required(outputs, "tokens"), reads="all", **common)


def _embedding(config: Config, backbone: Gpt, outputs: int | None) -> EmbeddingHead:
    return EmbeddingHead("last")


HEADS = {"language": _language, "sequence": _sequence, "tokens": _tokens, "embedding": _embedding}


def parameters(config: Config) -> int:
    """Number of parameters, the language head included (a tied one adds none)."""
    tables = config.vocabulary * config.d_model * (1 if config.tie_embeddings else 2)
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    biases = {"none": 0, "qkv": queries + 2 * keys, "all": queries + 2 * keys + config.d_model}[config.attention_bias]
    biases += (2 * config.d_ff + config.d_model) * config.mlp_bias
    norms = 2 * config.d_model + 2 * config.head_dim * config.qk_norm
    return tables + config.n_layers * (_products(config) + biases + norms) + config.d_model


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token in rows of `context` tokens.

    Matrix products only, a multiply-add counts two. Attention counts the whole square of a row, as
    torch's own counter does; of a causal one, half is hidden.
    """
    attention = 4 * context * config.n_heads * config.head_dim
    return float(config.n_layers * (2 * _products(config) + attention) + 2 * config.vocabulary * config.d_model)


def _products(config: Config) -> int:
    """Weights that one block multiplies each token with."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return config.d_model * (2 * queries + 2 * keys + 3 * config.d_ff)
