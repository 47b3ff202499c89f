"""The first Transformer: an encoder reads a source, a decoder writes a target, in Marian's published layout.

Sinusoidal positions, embeddings multiplied by the root of their width and shared by source, target and
output, norms after each sum. An option puts the norms before the sublayers instead, which learns without
a long warm-up. Parameter names are those of transformers' MarianMTModel.

Axes: B rows, S source tokens, T target tokens, D model width, H heads, K dimensions of a head, V vocabulary.
Vaswani et al. 2017; Junczys-Dowmunt et al. 2018 (Marian).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn.attention import Attend
from groundup.nn.dropout import dropout
from groundup.nn.layers import ACTIVATIONS, ResidualLinear, check_length, run_layers
from groundup.nn.positions import Sinusoids, check_even
from groundup.nn.published import OURS, only, ours, required
from groundup.nn.shape import TransformerSection, whole_heads
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "model"
MODEL_TYPES = ("marian", "groundup_marian")
ARCHITECTURES = {"translation": "MarianMTModel"}
NOT_WEIGHTS = ("embed_positions.weight",)
"""Endings of tensors in old checkpoints that are constants."""
TIED = {
    "lm_head.weight": "model.shared.weight",
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
}
"""Tensors that some checkpoints hold several times although they are one."""
TINY: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "d_ff": 48,
    "context": 32,
    "pad_id": 0,
}
"""Sizes with which the contract tests build it."""
_PUBLISHED_ACTIVATIONS = {
    "swish": "swish",
    "silu": "swish",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
KeysValues = tuple[Tensor, Tensor]


class Config(TransformerSection):
    """An encoder and a decoder of the first Transformer's type."""

    decoder_layers: PositiveCount = Field(default_factory=lambda values: values["n_layers"])
    """Number of blocks of the decoder; as many as the encoder's `n_layers` if not given."""
    d_ff: PositiveCount = Field(default_factory=lambda values: 4 * values["d_model"])
    """Width of the feed-forward layers; 4 · d_model if not given."""
    activation: Literal["relu", "gelu", "gelu_tanh", "swish"] = "relu"
    """Activation of the feed-forward layers."""
    norm_order: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (as published) or before each sublayer."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance before its root. transformers opens no other value than 1e-5."""
    scale_embedding: bool = True
    """Whether embeddings are multiplied by the root of d_model (Vaswani et al. 2017, §3.4)."""
    pad_id: int | None = Field(default=None, ge=0)
    """Id of the padding token, which also begins every target; the tokenizer's if not given."""
    initialiser: Literal["normal", "scaled_normal", "xavier", "kaiming", "zeros"] = "xavier"
    """How weights begin; see `groundup.nn.initialisers`."""
    initialiser_std: float = Field(default_factory=lambda values: values["d_model"] ** -0.5, ge=0)
    """Standard deviation of embedding tables, and of `normal` and `scaled_normal`; 1 / √d_model if not given, so
    that scaled embeddings begin as large as positions."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        whole_heads(self.d_model, self.n_heads)
        check_even(self.d_model, "sinusoidal")
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported."""
        only(given, "model_type", MODEL_TYPES)
        only(given, "tie_word_embeddings", (True,), True)
        only(given, "share_encoder_decoder_embeddings", (True,), True)
        only(given, "decoder_vocab_size", (None, required(given, "vocab_size")))
        only(given, "decoder_start_token_id", (given.get("pad_token_id"), None))
        only(given, "decoder_attention_heads", (required(given, "encoder_attention_heads"),))
        only(given, "decoder_ffn_dim", (required(given, "encoder_ffn_dim"),))
        for unsupported in ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
            only(given, unsupported, (0.0,), 0.0)
        name = only(given, "activation_function", tuple(_PUBLISHED_ACTIVATIONS), "gelu")
        options = {
            "vocab_size": given["vocab_size"],
            "d_model": required(given, "d_model"),
            "n_layers": required(given, "encoder_layers"),
            "decoder_layers": required(given, "decoder_layers"),
            "n_heads": given["encoder_attention_heads"],
            "d_ff": given["encoder_ffn_dim"],
            "context": required(given, "max_position_embeddings"),
            "activation": _PUBLISHED_ACTIVATIONS[name],
            "scale_embedding": given.get("scale_embedding", False),
            "dropout": given.get("dropout", 0.1),
            "attention_dropout": given.get("attention_dropout", 0.0),
            "initialiser_std": given.get("init_std", 0.02),
            "pad_id": given.get("pad_token_id"),
        }
        return cls(**options | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head.

        Norms before the sublayers, or with another epsilon, have no published class: model_type is then
        `groundup_marian`, which transformers refuses by that name.
        """
        is_published = self.norm_order == "post" and self.norm_eps == 1e-5
        sides = {
            f"{side}_{key}": value
            for side, layers in (("encoder", self.n_layers), ("decoder", self.decoder_layers))
            for key, value in (("layers", layers), ("attention_heads", self.n_heads), ("ffn_dim", self.d_ff))
        }
        return sides | {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "marian" if is_published else "groundup_marian",
            "is_encoder_decoder": True,
            "vocab_size": self.vocabulary,
            "decoder_vocab_size": self.vocabulary,
            "d_model": self.d_model,
            "max_position_embeddings": self.context,
            "activation_function": "gelu_new" if self.activation == "gelu_tanh" else self.activation,
            "scale_embedding": self.scale_embedding,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "init_std": self.initialiser_std,
            "tie_word_embeddings": True,
            "share_encoder_decoder_embeddings": True,
            "pad_token_id": self.pad_id,
            "decoder_start_token_id": self.pad_id,
            "forced_eos_token_id": None,
            OURS: {"norm_order": self.norm_order, "norm_eps": self.norm_eps, "initialiser": self.initialiser},
        }


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or, across, to a source."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = ResidualLinear(config.d_model, config.d_model)

    def keys_values(self, seen_BSD: Tensor) -> KeysValues:
        """Keys and values of the tokens that are looked at, (B,S,H,K) each."""
        heads = (*seen_BSD.shape[:2], self.n_heads, -1)
        return self.k_proj(seen_BSD).view(heads), self.v_proj(seen_BSD).view(heads)

    def forward(self, x_BTD: Tensor, seen: Tensor | KeysValues, attend: Attend) -> Tensor:
        """What each token takes from those it may see, (B,T,D); `seen` are these tokens, or what was made of them."""
        k_BSHK, v_BSHK = self.keys_values(seen) if isinstance(seen, Tensor) else seen
        q_BTHK = self.q_proj(x_BTD).view(*x_BTD.shape[:2], self.n_heads, -1)
        out_BTHK = attend(q_BTHK, k_BSHK, v_BSHK, self.layer, dropout=self.dropout if self.training else 0.0)
        out_BTD: Tensor = self.out_proj(out_BTHK.flatten(2))
        return out_BTD


class Block(nn.Module):
    """Self-attention and feed-forward around the residual stream, normed after or before."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.d_model, config.d_ff)
        self.fc2 = ResidualLinear(config.d_ff, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.activation, self.dropout = ACTIVATIONS[config.activation], config.dropout
        self.is_post_norm = config.norm_order == "post"

    def around(self, x_BTD: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """The residual stream with a sublayer added, (B,T,D)."""
        if self.is_post_norm:
            out_BTD: Tensor = norm(x_BTD + dropout(sublayer(x_BTD), self.dropout, self.training))
            return out_BTD
        return x_BTD + dropout(sublayer(norm(x_BTD)), self.dropout, self.training)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,D)."""
        out_BTD: Tensor = self.fc2(self.activation(self.fc1(x_BTD)))
        return out_BTD


class EncoderBlock(Block):
    """A block that reads."""

    def forward(self, x_BSD: Tensor, attend: Attend) -> Tensor:
        """The residual stream after this block, (B,S,D)."""
        x_BSD = self.around(x_BSD, self.self_attn_layer_norm, lambda x: self.self_attn(x, x, attend))
        return self.around(x_BSD, self.final_layer_norm, self.feed_forward)


class DecoderBlock(Block):
    """A block that writes: between its sublayers it looks at the source."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__(config, layer)
        self.layer = layer
        self.encoder_attn = Attention(config, layer)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, source: Tensor | list[KeysValues], attend: Attend, across: Attend) -> Tensor:
        """The residual stream after this block, (B,T,D)."""
        seen = source if isinstance(source, Tensor) else source[self.layer]
        x_BTD = self.around(x_BTD, self.self_attn_layer_norm, lambda x: self.self_attn(x, x, attend))
        x_BTD = self.around(x_BTD, self.encoder_attn_layer_norm, lambda x: self.encoder_attn(x, seen, across))
        return self.around(x_BTD, self.final_layer_norm, self.feed_forward)


class Stack(nn.Module):
    """The blocks of one side, grouped as published, and a last norm where blocks norm their input."""

    def __init__(self, config: Config, layers: int, block: type[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(config, layer) for layer in range(layers))
        pre = config.norm_order == "pre"
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if pre else nn.Identity()

    def forward(self, x_BTD: Tensor, *inputs: object, checkpoint_activations: bool) -> Tensor:
        """Hidden states after all blocks, (B,T,D)."""
        x_BTD = run_layers(self.layers, x_BTD, *inputs, checkpoint_activations=checkpoint_activations)
        hidden_BTD: Tensor = self.layer_norm(x_BTD)
        return hidden_BTD


class EncoderDecoder(nn.Module):
    """One table of tokens, an encoder and a decoder; called by its sides, `encode` and `decode`."""

    causal = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.shared = nn.Embedding(config.vocabulary, config.d_model)
        self.positions = Sinusoids(config.context, config.d_model)
        self.encoder = Stack(config, config.n_layers, EncoderBlock)
        self.decoder = Stack(config, config.decoder_layers, DecoderBlock)
        self.checkpoint_activations = False

    def encode(self, input_ids_BS: Tensor, attend: Attend, positions_BS: Tensor | None = None) -> Tensor:
        """Hidden states of sources, (B,S,D)."""
        x_BSD = self._embedded(input_ids_BS, positions_BS)
        hidden_BSD: Tensor = self.encoder(x_BSD, attend, checkpoint_activations=self.checkpoint_activations)
        return hidden_BSD

    def decode(
        self,
        input_ids_BT: Tensor,
        source: Tensor | list[KeysValues],
        attend: Attend,
        across: Attend,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of targets, (B,T,D); `source` is what `encode` gave, or `remember` made of it."""
        inputs = (self._embedded(input_ids_BT, positions_BT), source, attend, across)
        hidden_BTD: Tensor = self.decoder(*inputs, checkpoint_activations=self.checkpoint_activations)
        return hidden_BTD

    def remember(self, source_BSD: Tensor) -> list[KeysValues]:
        """Keys and values of sources, (B,S,H,K) each, by layer: what writing token by token needs of them."""
        blocks: Any = self.decoder.layers
        return [block.encoder_attn.keys_values(source_BSD) for block in blocks]

    def _embedded(self, input_ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        check_length(input_ids_BT.shape[1], self.context, positions_BT)
        x_BTD = self.shared(input_ids_BT) * self.scale + self.positions(positions_BT, input_ids_BT.shape[1])
        return dropout(x_BTD, self.dropout, self.training)


class TranslationHead(nn.Module):
    """Scores over the vocabulary: the table of tokens, and a fixed bias, zero unless a checkpoint has another."""

    published = "lm_head"

    def __init__(self, config: Config, backbone: EncoderDecoder, outputs: int | None = None) -> None:
        super().__init__()
        # A tuple hides a module from registration: the table is saved once, as the embedding's.
        self.table = (backbone.shared,)
        self.siblings = {"final_logits_bias": torch.zeros(1, config.vocabulary, device="cpu")}
        self.network: tuple[nn.Module, ...] = ()

    @property
    def weight(self) -> Tensor:
        """The table of the vocabulary, (V,D)."""
        return self.table[0].weight

    @property
    def bias(self) -> Tensor:
        """One number per token of the vocabulary, (V,); never trained, as published."""
        found: Any = self.network[0].final_logits_bias
        return torch.as_tensor(found)[0]

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What the loss multiplies with `weight`: here the hidden states themselves."""
        return hidden_BTD

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores over the vocabulary, (B,T,V)."""
        return F.linear(hidden_BTD, self.weight, self.bias)


def build(config: Config) -> EncoderDecoder:
    """The backbone, its weights not yet initialised."""
    return EncoderDecoder(config)


HEADS = {"translation": TranslationHead}


def parameters(config: Config) -> int:
    """Number of trained parameters; the head adds none."""
    d_model, d_ff = config.d_model, config.d_ff
    norm, attention = 2 * d_model, 4 * (d_model * d_model + d_model)
    block = attention + norm + 2 * d_model * d_ff + d_ff + d_model + norm
    blocks = config.n_layers * block + config.decoder_layers * (block + attention + norm)
    return config.vocabulary * d_model + blocks + 2 * norm * (config.norm_order == "pre")


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token of examples of `context` tokens: half of them are the
    source's, which the encoder reads, and half the target's, which the decoder writes.

    Matrix products only, a multiply-add counts two. Attention counts whole squares, as torch's own counter does.
    """
    d_model = config.d_model
    attention = 8 * d_model * d_model + 4 * (context / 2) * d_model
    block = attention + 4 * d_model * config.d_ff
    blocks = config.n_layers * block + config.decoder_layers * (block + attention)
    return float(blocks + 2 * config.vocabulary * d_model) / 2
