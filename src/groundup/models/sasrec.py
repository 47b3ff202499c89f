"""Self-attentive sequential recommendation: a causal Transformer over the items of a user's history.

What a user did is read from the oldest item to the newest; the hidden state at an item scores every item of the
catalogue for what comes next, by the same table that the items are read with. The blocks are GPT-2's: LayerNorm
before each sublayer, here with ReLU and a feed-forward layer as wide as the model. Two things are SASRec's own: the
item vectors are enlarged by √D before positions are added, and everything is small.

Departures from the paper: positions count from the oldest item of a row, where the paper pads on the left and so
counts back from the newest; and heads are projected once more, as in Vaswani et al. 2017 (the paper has one head
and no such projection).

Axes: B rows, T items of a row, D model width, V entries of the table: the catalogue and one for unknown items.
Kang & McAuley 2018.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from groundup.models import gpt2
from groundup.nn import heads
from groundup.nn.attention import Attend
from groundup.nn.dropout import dropout
from groundup.nn.layers import LanguageHead, TiedLanguageHead, check_length, language_head, run_layers
from groundup.nn.positions import PositionTable
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.units import PositiveCount, Share

VERSION = 1
PREFIX = "sasrec"
MODEL_TYPES = ("groundup_sasrec",)
TINY: dict[str, Any] = gpt2.TINY | {"dropout": 0.0}
"""Sizes with which the contract tests build it."""


class Config(gpt2.Config):
    """A Transformer over the items of a history; the sizes are those of the paper."""

    vocab_size: PositiveCount | None = None
    """Entries of the item table: the catalogue and one for unknown items; follows from the data if not given."""
    d_model: PositiveCount = 50
    """Width of item vectors and hidden states."""
    n_layers: PositiveCount = 2
    """Number of blocks."""
    n_heads: PositiveCount = 1
    """Number of attention heads."""
    context: PositiveCount = 200
    """The most items of a history that are looked at, the newest ones."""
    dropout: Share = 0.2
    """Share of values dropped after the item vectors and before each residual sum, in training."""
    d_ff: PositiveCount = Field(default_factory=lambda values: values["d_model"])
    """Width of the feed-forward layers; as `d_model` if not given."""
    norm_eps: float = Field(default=1e-8, gt=0)
    """Added to the variance before its root."""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "relu"
    """Activation of the feed-forward layers."""

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head) | {"vocab_size": self.vocabulary, "max_position_embeddings": self.context}


class Sasrec(nn.Module):
    """Items of histories to hidden states."""

    causal = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context, self.dropout, self.scale = config.context, config.dropout, math.sqrt(config.d_model)
        self.item_embeddings = nn.Embedding(config.vocabulary, config.d_model)
        self.position_embeddings = PositionTable(config.context, config.d_model, fixed=config.positions == "sinusoidal")
        self.blocks = nn.ModuleList(gpt2.Block(config, layer) for layer in range(config.n_layers))
        has_last = config.norm_order == "pre"
        self.last_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if has_last else nn.Identity()
        self.checkpoint_activations = False

    def forward(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B,T,D). Token types mean nothing to this family and are not used."""
        check_length(input_ids_BT.shape[1], self.context, positions_BT)
        x_BTD = self.item_embeddings(input_ids_BT) * self.scale
        x_BTD = x_BTD + self.position_embeddings(positions_BT, input_ids_BT.shape[1])
        x_BTD = dropout(x_BTD, self.dropout, self.training)
        x_BTD = run_layers(self.blocks, x_BTD, attend, checkpoint_activations=self.checkpoint_activations)
        hidden_BTD: Tensor = self.last_norm(x_BTD)
        return hidden_BTD


def build(config: Config) -> Sasrec:
    """The backbone, its weights not yet initialised."""
    return Sasrec(config)


def _language(config: Config, backbone: Sasrec, outputs: int | None) -> LanguageHead | TiedLanguageHead:
    return language_head(backbone.item_embeddings, tie=config.tie_embeddings)


HEADS = {"language": _language, "embedding": heads.embedding("last")}
ARCHITECTURES = own_architectures("sasrec", list(HEADS))


def parameters(config: Config) -> int:
    """Number of trained parameters, the scores over the catalogue included (a tied table adds none)."""
    return gpt2.parameters(config)


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per item in rows of `context` items; see `gpt2`."""
    return gpt2.flops_per_token(config, context)
