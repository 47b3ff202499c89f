"""Decoder of the GPT-2 type: learned positions, LayerNorm, GELU.

Options give the decoder of the first Transformer too: sinusoidal positions, norms after each sum.
Published weights keep the matrices of `c_attn`, `c_proj` and `c_fc` transposed; ours are plain linear
layers, so `TRANSPOSED` lists them and the checkpoint code turns them.

Axes: B rows, T tokens, D model width, H heads, K dimensions of a head.
Radford et al. 2019; Vaswani et al. 2017.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from groundup.nn import heads
from groundup.nn.attention import Attend
from groundup.nn.dropout import dropout
from groundup.nn.heads import EmbeddingHead, LinearHead
from groundup.nn.layers import (
    ACTIVATIONS,
    LanguageHead,
    ResidualLinear,
    TiedLanguageHead,
    check_length,
    language_head,
    run_layers,
)
from groundup.nn.positions import PositionTable, check_even
from groundup.nn.published import OURS, only, ours, required
from groundup.nn.shape import TransformerSection, whole_heads
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "transformer"
MODEL_TYPES = ("gpt2", "groundup_gpt2")
ARCHITECTURES = {
    "language": "GPT2LMHeadModel",
    "sequence": "GPT2ForSequenceClassification",
    "tokens": "GPT2ForTokenClassification",
    "embedding": "GPT2Model",
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""Endings of the names of matrices that published checkpoints store as (in, out)."""
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")
"""Endings of tensors in old checkpoints that are constants: the causal mask and its value."""
TIED = {"lm_head.weight": "transformer.wte.weight"}
"""Tensors that some checkpoints hold twice although one is the other."""
TINY: dict[str, Any] = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "context": 32}
"""Sizes with which the contract tests build it."""
_PUBLISHED_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


class Config(TransformerSection):
    """A decoder of the GPT-2 type."""

    d_ff: PositiveCount = Field(default_factory=lambda values: 4 * values["d_model"])
    """Width of the feed-forward layers; 4 · d_model if not given."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance before its root."""
    tie_embeddings: bool = True
    """Whether the output layer uses the table of the token embeddings."""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    """Activation of the feed-forward layers."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """A trained table of positions, or the fixed one of the first Transformer."""
    norm_order: Literal["pre", "post"] = "pre"
    """LayerNorm before each sublayer (GPT-2) or after each residual sum (the first Transformer)."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        whole_heads(self.d_model, self.n_heads)
        check_even(self.d_model, self.positions)
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported."""
        only(given, "model_type", MODEL_TYPES)
        only(given, "scale_attn_weights", (True,), True)
        only(given, "scale_attn_by_inverse_layer_idx", (False,), False)
        only(given, "add_cross_attention", (False,), False)
        activation = only(given, "activation_function", tuple(_PUBLISHED_ACTIVATIONS), "gelu_new")
        dropout = only(given, "resid_pdrop", (given.get("embd_pdrop", 0.1),), 0.1)
        d_model = required(given, "n_embd")
        options = {
            "vocab_size": required(given, "vocab_size"),
            "d_model": d_model,
            "n_layers": required(given, "n_layer"),
            "n_heads": required(given, "n_head"),
            "d_ff": given.get("n_inner") or 4 * d_model,
            "context": required(given, "n_positions"),
            "norm_eps": given.get("layer_norm_epsilon", 1e-5),
            "activation": _PUBLISHED_ACTIVATIONS[activation],
            "dropout": dropout,
            "attention_dropout": given.get("attn_pdrop", 0.1),
            "tie_embeddings": bool(given.get("tie_word_embeddings", True)),
            "initialiser_std": given.get("initializer_range", 0.02),
        }
        return cls(**options | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head.

        Norms after the sums have no published class: model_type is then `groundup_gpt2`, which
        transformers refuses by that name. A sinusoidal table is written as the weights it equals.
        """
        return {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "gpt2" if self.norm_order == "pre" else "groundup_gpt2",
            "vocab_size": self.vocabulary,
            "n_embd": self.d_model,
            "n_layer": self.n_layers,
            "n_head": self.n_heads,
            "n_inner": self.d_ff,
            "n_positions": self.context,
            "layer_norm_epsilon": self.norm_eps,
            "activation_function": "gelu_new" if self.activation == "gelu_tanh" else self.activation,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.attention_dropout,
            "tie_word_embeddings": self.tie_embeddings,
            "initializer_range": self.initialiser_std,
            OURS: {"positions": self.positions, "norm_order": self.norm_order, "initialiser": self.initialiser},
        }


class Attention(nn.Module):
    """Multi-head self-attention; one matrix makes queries, keys and values."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.attention_dropout
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model)
        self.c_proj = ResidualLinear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, attend: Attend, wanted_W: Tensor | None = None) -> Tensor:
        """What each token takes from those it may see, (B,T,D); (B,W,D) where only some are wanted."""
        rows, length, _ = x_BTD.shape
        q_BTHK, k_BTHK, v_BTHK = self.c_attn(x_BTD).view(rows, length, 3, self.n_heads, -1).unbind(2)
        out_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, self.layer, dropout=self.dropout if self.training else 0.0)
        if wanted_W is not None:
            out_BTHK = out_BTHK[:, wanted_W]
        out_BTD: Tensor = self.c_proj(out_BTHK.flatten(2))
        return out_BTD


class FeedForward(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, config.d_ff)
        self.c_proj = ResidualLinear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,D)."""
        out_BTD: Tensor = self.c_proj(self.activation(self.c_fc(x_BTD)))
        return out_BTD


class Block(nn.Module):
    """Attention and feed-forward around the residual stream, normed before or after."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.dropout, self.is_post_norm = config.dropout, config.norm_order == "post"

    def forward(self, x_BTD: Tensor, attend: Attend, wanted_W: Tensor | None = None) -> Tensor:
        """The residual stream after this block, (B,T,D); (B,W,D) where only some tokens are wanted."""
        read_BTD = x_BTD if self.is_post_norm else self.ln_1(x_BTD)
        attended_BTD = dropout(self.attn(read_BTD, attend, wanted_W), self.dropout, self.training)
        x_BTD = (x_BTD if wanted_W is None else x_BTD[:, wanted_W]) + attended_BTD
        if self.is_post_norm:
            x_BTD = self.ln_1(x_BTD)
            out_BTD: Tensor = self.ln_2(x_BTD + dropout(self.mlp(x_BTD), self.dropout, self.training))
            return out_BTD
        return x_BTD + dropout(self.mlp(self.ln_2(x_BTD)), self.dropout, self.training)


class Gpt2(nn.Module):
    """Embeddings of tokens and positions, blocks, and a last norm where blocks norm their input."""

    causal = narrows = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.wte = nn.Embedding(config.vocabulary, config.d_model)
        self.wpe = PositionTable(config.context, config.d_model, fixed=config.positions == "sinusoidal")
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.norm_order == "pre" else nn.Identity()
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
        x_BTD = self.wte(input_ids_BT) + self.wpe(positions_BT, input_ids_BT.shape[1])
        x_BTD = dropout(x_BTD, self.dropout, self.training)
        again = self.checkpoint_activations
        x_BTD = run_layers(self.h, x_BTD, attend, checkpoint_activations=again, wanted_W=wanted_W)
        hidden_BTD: Tensor = self.ln_f(x_BTD)
        return hidden_BTD


def build(config: Config) -> Gpt2:
    """The backbone, its weights not yet initialised."""
    return Gpt2(config)


def _language(config: Config, backbone: Gpt2, outputs: int | None) -> LanguageHead | TiedLanguageHead:
    return language_head(backbone.wte, tie=config.tie_embeddings)


def _sequence(config: Config, backbone: Gpt2, outputs: int | None) -> LinearHead:
    return LinearHead(config.d_model, heads.required(outputs, "sequence"), published="score", reads="last", bias=False)


def _tokens(config: Config, backbone: Gpt2, outputs: int | None) -> LinearHead:
    common: dict[str, Any] = {"published": "classifier", "dropout": config.dropout}
    return LinearHead(config.d_model, heads.required(outputs, "tokens"), reads="all", **common)


def _embedding(config: Config, backbone: Gpt2, outputs: int | None) -> EmbeddingHead:
    return EmbeddingHead("last")


HEADS = {"language": _language, "sequence": _sequence, "tokens": _tokens, "embedding": _embedding}


def parameters(config: Config) -> int:
    """Number of trained parameters, the language head included (a tied one adds none)."""
    d_model, d_ff = config.d_model, config.d_ff
    tables = config.vocabulary * d_model * (1 if config.tie_embeddings else 2)
    tables += config.context * d_model * (config.positions == "learned")
    biases_and_norms = 4 * d_model + d_ff + d_model + 4 * d_model
    last_norm = 2 * d_model * (config.norm_order == "pre")
    return tables + config.n_layers * (_products(config) + biases_and_norms) + last_norm


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token in rows of `context` tokens.

    Matrix products only, a multiply-add counts two. Attention counts the whole square of a row, as
    torch's own counter does; of a causal one, half is hidden.
    """
    attention = 4 * context * config.d_model
    return float(config.n_layers * (2 * _products(config) + attention) + 2 * config.vocabulary * config.d_model)


def _products(config: Config) -> int:
    """Weights that one block multiplies each token with."""
    return config.d_model * (4 * config.d_model + 2 * config.d_ff)
