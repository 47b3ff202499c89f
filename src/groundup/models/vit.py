"""Vision Transformer: an image cut into squares, read as a row of tokens by an encoder.

Each patch becomes a vector by one linear layer (written as a convolution whose windows do not overlap), a
learned vector for its place is added, and a token of its own in front, [CLS], gathers what the scores are
made from. Norms stand before the sublayers. Parameter names are those of transformers'
ViTForImageClassification.

Dosovitskiy et al. 2021; Vaswani et al. 2017.

Axes: B images, C channels, H height, W width, P patches, T tokens (P + 1), D model width, N heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from groundup.nn.attention import Attend, Bidirectional
from groundup.nn.dropout import dropout
from groundup.nn.heads import classifier, embedding
from groundup.nn.images import check_images
from groundup.nn.layers import ACTIVATIONS, ResidualLinear, run_layers
from groundup.nn.network import given
from groundup.nn.published import OURS, only, ours, required
from groundup.nn.shape import ImageSection, ImageSize, whole_heads
from groundup.units import PositiveCount, Share

VERSION = 1
PREFIX = "vit"
MODEL_TYPES = ("vit",)
ARCHITECTURES = {"image": "ViTForImageClassification", "embedding": "ViTModel"}
OPTIONAL = ("vit.pooler.", "vit.embeddings.mask_token")
"""Beginnings of names that checkpoints of other heads may or may not hold."""
TINY: dict[str, Any] = {
    "image_size": 12, "channels": 3, "patch_size": 4, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48,
}  # fmt: skip
"""Sizes with which the contract tests build it."""
_PUBLISHED_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


class Config(ImageSection):
    """A Vision Transformer. `dropout` acts after the embeddings and before each residual sum."""

    patch_size: ImageSize = (16, 16)
    """Height and width of a patch in pixels, or one number for both; the image holds whole ones."""
    d_model: PositiveCount = 192
    """Width of the hidden states."""
    n_layers: PositiveCount = 6
    """Number of blocks."""
    n_heads: PositiveCount = 3
    """Number of attention heads."""
    d_ff: PositiveCount = Field(default_factory=lambda values: 4 * values["d_model"])
    """Width of the feed-forward layers; 4 · d_model if not given."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """Activation of the feed-forward layers."""
    attention_dropout: Share = Field(default_factory=lambda values: values["dropout"])
    """Share of attention weights dropped in training; as `dropout` if not given."""
    attention_bias: bool = True
    """Whether the projections to queries, keys and values have biases."""
    norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the variance before its root."""
    initialiser: Literal["normal", "xavier", "kaiming", "zeros"] = "normal"
    """How weights begin; see `groundup.nn.initialisers`."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        whole_heads(self.d_model, self.n_heads)
        if self.image_size and any(side % patch for side, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f"images of {list(self.image_size)} do not hold whole patches of {list(self.patch_size)}")
        return self

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        _, height, width = self.image_shape
        return (height // self.patch_size[0]) * (width // self.patch_size[1])

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported."""
        only(given, "model_type", MODEL_TYPES)
        options = {
            "image_size": given.get("image_size", 224),
            "channels": given.get("num_channels", 3),
            "patch_size": given.get("patch_size", 16),
            "d_model": required(given, "hidden_size"),
            "n_layers": required(given, "num_hidden_layers"),
            "n_heads": required(given, "num_attention_heads"),
            "d_ff": required(given, "intermediate_size"),
            "activation": _PUBLISHED_ACTIVATIONS[only(given, "hidden_act", tuple(_PUBLISHED_ACTIVATIONS), "gelu")],
            "dropout": given.get("hidden_dropout_prob", 0.0),
            "attention_dropout": given.get("attention_probs_dropout_prob", 0.0),
            "attention_bias": given.get("qkv_bias", True),
            "norm_eps": given.get("layer_norm_eps", 1e-12),
            "initialiser_std": given.get("initializer_range", 0.02),
        }
        return cls(**options | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head."""
        channels, *size = self.image_shape
        return {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "vit",
            "image_size": size[0] if size[0] == size[1] else size,
            "num_channels": channels,
            "patch_size": self.patch_size[0] if len(set(self.patch_size)) == 1 else list(self.patch_size),
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "intermediate_size": self.d_ff,
            "hidden_act": "gelu_new" if self.activation == "gelu_tanh" else self.activation,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "qkv_bias": self.attention_bias,
            "layer_norm_eps": self.norm_eps,
            "initializer_range": self.initialiser_std,
            OURS: {"initialiser": self.initialiser},
        }


class Patches(nn.Module):
    """The squares of an image, each as a vector."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.image_shape[0], config.d_model, config.patch_size, config.patch_size)

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,P,D), row by row."""
        map_BDHW: Tensor = self.projection(pixel_values_BCHW)
        return map_BDHW.flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """The token that gathers, the patches, and where each stands."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.position_embeddings = nn.Parameter(torch.empty(1, config.patches + 1, config.d_model))
        self.patch_embeddings = Patches(config)
        self.dropout = config.dropout

    def begin(self, draw: Callable[[Tensor], None], generator: torch.Generator, std: float) -> None:
        """Normal numbers, as for tables of tokens."""
        for weight in (self.cls_token, self.position_embeddings):
            with torch.no_grad():
                weight.copy_(torch.empty(weight.shape).normal_(std=std, generator=generator))

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,T,D)."""
        x_BPD = self.patch_embeddings(pixel_values_BCHW)
        x_BTD = torch.cat([self.cls_token.expand(len(x_BPD), -1, -1), x_BPD], dim=1) + self.position_embeddings
        return dropout(x_BTD, self.dropout, self.training)


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads."""

    together = (("query", "key", "value"),)  # they read the same input: see nn/packed.py

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.attention_dropout
        options: dict[str, Any] = {"bias": config.attention_bias}
        self.query = nn.Linear(config.d_model, config.d_model, **options)
        self.key = nn.Linear(config.d_model, config.d_model, **options)
        self.value = nn.Linear(config.d_model, config.d_model, **options)

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        """What each token takes from the others, before the output projection, (B,T,D)."""
        heads = (*x_BTD.shape[:2], self.n_heads, -1)
        q_BTNK, k_BTNK, v_BTNK = (make(x_BTD).view(heads) for make in (self.query, self.key, self.value))
        return attend(q_BTNK, k_BTNK, v_BTNK, self.layer, dropout=self.dropout if self.training else 0.0).flatten(2)


class Output(nn.Module):
    """A projection back to the residual stream."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.dense = ResidualLinear(width, config.d_model)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,width) to (B,T,D)."""
        return dropout(self.dense(x), self.dropout, self.training)


class Attention(nn.Module):
    """Self-attention and its output projection, grouped as published."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config, layer)
        self.output = Output(config.d_model, config)


class Intermediate(nn.Module):
    """The wide half of the feed-forward sublayer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_ff)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,d_ff)."""
        return self.activation(self.dense(x_BTD))


class Block(nn.Module):
    """Attention and feed-forward around the residual stream, each after a norm."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.intermediate = Intermediate(config)
        self.output = Output(config.d_ff, config)
        self.layernorm_before = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.layernorm_after = nn.LayerNorm(config.d_model, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        """The residual stream after this block, (B,T,D)."""
        attention = self.attention
        x_BTD = x_BTD + attention.output(attention.attention(self.layernorm_before(x_BTD), attend))
        return x_BTD + torch.as_tensor(self.output(self.intermediate(self.layernorm_after(x_BTD))))


class Encoder(nn.Module):
    """The blocks, grouped as published."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))


class Vit(nn.Module):
    """Images to hidden states of [CLS] and of each patch, in this order."""

    causal = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, *size = config.image_shape
        self.size, self.context, self.width = (size[0], size[1]), config.patches + 1, config.d_model
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.checkpoint_activations = False

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `pixel_values` of a batch, (B,T,D)."""
        hidden_BTD: Tensor = self(given(batch, "pixel_values"))
        return hidden_BTD

    def forward(self, pixel_values_BCHW: Tensor, attend: Attend | None = None) -> Tensor:
        """(B,C,H,W) to (B,T,D); `attend` may watch who looks at what. Raises UserError for images of another size."""
        check_images(pixel_values_BCHW, self.channels, self.size)
        inputs = (self.embeddings(pixel_values_BCHW), attend or Bidirectional())
        x_BTD = run_layers(self.encoder.layer, *inputs, checkpoint_activations=self.checkpoint_activations)
        hidden_BTD: Tensor = self.layernorm(x_BTD)
        return hidden_BTD


def build(config: Config) -> Vit:
    """The backbone, its weights not yet initialised."""
    return Vit(config)


HEADS = {"image": classifier("image"), "embedding": embedding()}


def parameters(config: Config, outputs: int = 1000) -> int:
    """Number of trained parameters, the scores of `outputs` classes included."""
    d_model = config.d_model
    embeddings = _patch(config) * d_model + d_model + (config.patches + 2) * d_model
    biases = 3 * d_model * config.attention_bias + d_model + config.d_ff + d_model
    return (
        embeddings
        + config.n_layers * (_products(config) + biases + 4 * d_model)
        + 2 * d_model
        + (d_model + 1) * outputs
    )


def flops_per_example(config: Config, outputs: int = 1000) -> float:
    """Floating-point operations of the forward pass of an image: products only, a multiply-add counts two."""
    tokens = config.patches + 1
    block = 2 * tokens * _products(config) + 4 * tokens * tokens * config.d_model
    return float(
        2 * config.patches * _patch(config) * config.d_model + config.n_layers * block + 2 * config.d_model * outputs
    )


def _patch(config: Config) -> int:
    """Numbers of a patch."""
    return config.image_shape[0] * config.patch_size[0] * config.patch_size[1]


def _products(config: Config) -> int:
    """Weights that one block multiplies each token with."""
    return config.d_model * (4 * config.d_model + 2 * config.d_ff)
