"""Encoder of the DistilBERT type: BERT with half the blocks, without token types and pooler.

It was distilled from BERT and keeps its arithmetic; parameter names are its own, and so are the heads:
two of them publish several modules side by side instead of one.

Axes: B rows, T tokens, E examples, D model width, H heads, K outputs, V vocabulary.
Sanh et al. 2019.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn import heads
from groundup.nn.attention import Attend
from groundup.nn.dropout import dropout
from groundup.nn.heads import EmbeddingHead, LinearHead
from groundup.nn.layers import ACTIVATIONS, ResidualLinear, check_length, run_layers
from groundup.nn.positions import PositionTable
from groundup.nn.published import OURS, only, ours, required
from groundup.nn.shape import TransformerSection, whole_heads
from groundup.units import PositiveCount, Share

VERSION = 1
PREFIX = "distilbert"
MODEL_TYPES = ("distilbert",)
ARCHITECTURES = {
    "masked_language": "DistilBertForMaskedLM",
    "sequence": "DistilBertForSequenceClassification",
    "tokens": "DistilBertForTokenClassification",
    "span": "DistilBertForQuestionAnswering",
    "embedding": "DistilBertModel",
}
TIED = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}
"""Tensors that some checkpoints hold twice although one is the other."""
NOT_WEIGHTS = ("embeddings.position_ids",)
"""Endings of tensors in old checkpoints that are constants."""
NORM_EPS = 1e-12
"""Added to the variance before its root; the published config has no word for it."""
TINY: dict[str, Any] = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "context": 32}
"""Sizes with which the contract tests build it."""


class Config(TransformerSection):
    """An encoder of the DistilBERT type."""

    d_ff: PositiveCount = Field(default_factory=lambda values: 4 * values["d_model"])
    """Width of the feed-forward layers; 4 · d_model if not given."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Activation of the feed-forward layers and of the masked-language head."""
    head_dropout: Share = Field(default_factory=lambda values: values["dropout"])
    """Share of values dropped before the scores of a sequence, in training; as `dropout` if not given."""
    span_dropout: Share = Field(default_factory=lambda values: values["dropout"])
    """Share of values dropped before the scores of a span's ends, in training; as `dropout` if not given."""
    initialiser: Literal["normal", "scaled_normal", "xavier", "kaiming", "zeros"] = "normal"
    """How weights begin; see `groundup.nn.initialisers`."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        whole_heads(self.d_model, self.n_heads)
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported.

        A sinusoidal table of positions is published as weights, so it needs no option.
        """
        only(given, "model_type", MODEL_TYPES)
        only(given, "tie_word_embeddings", (True,), True)
        options = {
            "vocab_size": required(given, "vocab_size"),
            "d_model": given.get("dim", 768),
            "n_layers": given.get("n_layers", 6),
            "n_heads": given.get("n_heads", 12),
            "d_ff": given.get("hidden_dim", 3072),
            "context": given.get("max_position_embeddings", 512),
            "activation": only(given, "activation", ("gelu", "relu"), "gelu"),
            "dropout": given.get("dropout", 0.1),
            "attention_dropout": given.get("attention_dropout", 0.1),
            "head_dropout": given.get("seq_classif_dropout", 0.2),
            "span_dropout": given.get("qa_dropout", 0.1),
            "initialiser_std": given.get("initializer_range", 0.02),
        }
        return cls(**options | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head."""
        return {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "distilbert",
            "vocab_size": self.vocabulary,
            "dim": self.d_model,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "hidden_dim": self.d_ff,
            "max_position_embeddings": self.context,
            "activation": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "seq_classif_dropout": self.head_dropout,
            "qa_dropout": self.span_dropout,
            "sinusoidal_pos_embds": False,
            "tie_word_embeddings": True,
            "initializer_range": self.initialiser_std,
            OURS: {"initialiser": self.initialiser},
        }


class Embeddings(nn.Module):
    """The sum of what a token is and where it stands, normed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.d_model)
        self.position_embeddings = PositionTable(config.context, config.d_model)
        self.LayerNorm = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.dropout = config.dropout

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """(B,T,D)."""
        positions = self.position_embeddings(positions_BT, input_ids_BT.shape[1])
        return dropout(self.LayerNorm(self.word_embeddings(input_ids_BT) + positions), self.dropout, self.training)


class Attention(nn.Module):
    """Multi-head self-attention and its output projection."""

    together = (("q_lin", "k_lin", "v_lin"),)  # they read the same input: see nn/packed.py

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.attention_dropout
        self.q_lin = nn.Linear(config.d_model, config.d_model)
        self.k_lin = nn.Linear(config.d_model, config.d_model)
        self.v_lin = nn.Linear(config.d_model, config.d_model)
        self.out_lin = ResidualLinear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        """What each token takes from those it may see, (B,T,D)."""
        heads_of = (*x_BTD.shape[:2], self.n_heads, -1)
        q_BTHK, k_BTHK, v_BTHK = (make(x_BTD).view(heads_of) for make in (self.q_lin, self.k_lin, self.v_lin))
        dropped = self.dropout if self.training else 0.0
        out_BTD: Tensor = self.out_lin(attend(q_BTHK, k_BTHK, v_BTHK, self.layer, dropout=dropped).flatten(2))
        return out_BTD


class FeedForward(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.d_model, config.d_ff)
        self.lin2 = ResidualLinear(config.d_ff, config.d_model)
        self.activation, self.dropout = ACTIVATIONS[config.activation], config.dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,D)."""
        return dropout(self.lin2(self.activation(self.lin1(x_BTD))), self.dropout, self.training)


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, which is normed after."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.sa_layer_norm = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.ffn = FeedForward(config)
        self.output_layer_norm = nn.LayerNorm(config.d_model, eps=NORM_EPS)

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        """The residual stream after this block, (B,T,D)."""
        x_BTD = self.sa_layer_norm(x_BTD + self.attention(x_BTD, attend))
        out_BTD: Tensor = self.output_layer_norm(x_BTD + self.ffn(x_BTD))
        return out_BTD


class Blocks(nn.Module):
    """The blocks, grouped as published."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))


class DistilBert(nn.Module):
    """Embeddings and blocks: token ids to hidden states."""

    causal = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context = config.context
        self.embeddings = Embeddings(config)
        self.transformer = Blocks(config)
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
        x_BTD = self.embeddings(input_ids_BT, positions_BT)
        return run_layers(self.transformer.layer, x_BTD, attend, checkpoint_activations=self.checkpoint_activations)


class MaskedLanguageHead(nn.Module):
    """Scores of the masked tokens: a layer, then the embeddings' table and a bias."""

    published = "vocab_projector"

    def __init__(self, config: Config, backbone: DistilBert, outputs: int | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.vocabulary))
        transform = nn.Linear(config.d_model, config.d_model)
        norm = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.siblings = {"vocab_transform": transform, "vocab_layer_norm": norm}
        # A tuple hides the table from registration: it is saved once, as the embedding's.
        self.source, self.activation = (backbone.embeddings.word_embeddings,), ACTIVATIONS[config.activation]

    @property
    def weight(self) -> Tensor:
        """The table of the vocabulary, (V,D)."""
        return self.source[0].weight

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What the loss multiplies with `weight`, (B,T,D); any leading axes."""
        transform, norm = self.siblings["vocab_transform"], self.siblings["vocab_layer_norm"]
        features_BTD: Tensor = norm(self.activation(transform(hidden_BTD)))
        return features_BTD

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores over the vocabulary, (B,T,V)."""
        return F.linear(self.features(hidden_BTD), self.weight, self.bias)


class SequenceHead(LinearHead):
    """Scores of classes from the first token: a layer with ReLU, then a linear one."""

    def __init__(self, config: Config, backbone: DistilBert, outputs: int | None = None) -> None:
        common: dict[str, Any] = {"published": "classifier", "reads": "first", "dropout": config.head_dropout}
        super().__init__(config.d_model, heads.required(outputs, "sequence"), **common)
        self.siblings = {"pre_classifier": nn.Linear(config.d_model, config.d_model)}

    def forward(self, first_ED: Tensor) -> Tensor:
        """(E,D) to (E,K)."""
        return super().forward(F.relu(self.siblings["pre_classifier"](first_ED)))


def build(config: Config) -> DistilBert:
    """The backbone, its weights not yet initialised."""
    return DistilBert(config)


def _tokens(config: Config, backbone: DistilBert, outputs: int | None) -> LinearHead:
    common: dict[str, Any] = {"published": "classifier", "dropout": config.dropout}
    return LinearHead(config.d_model, heads.required(outputs, "tokens"), reads="all", **common)


def _span(config: Config, backbone: DistilBert, outputs: int | None) -> LinearHead:
    common: dict[str, Any] = {"published": "qa_outputs", "dropout": config.span_dropout}
    return LinearHead(config.d_model, outputs or 2, reads="all", **common)


def _embedding(config: Config, backbone: DistilBert, outputs: int | None) -> EmbeddingHead:
    return EmbeddingHead("mean")


HEADS = {
    "masked_language": MaskedLanguageHead,
    "sequence": SequenceHead,
    "tokens": _tokens,
    "span": _span,
    "embedding": _embedding,
}


def parameters(config: Config, head: str = "masked_language") -> int:
    """Number of trained parameters, the masked-language head included."""
    d_model = config.d_model
    embeddings = (config.vocabulary + config.context) * d_model + 2 * d_model
    biases_and_norms = 4 * d_model + config.d_ff + d_model + 4 * d_model
    head_weights = d_model * d_model + 3 * d_model + config.vocabulary
    return embeddings + config.n_layers * (_products(config) + biases_and_norms) + head_weights


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token in rows of `context` tokens.

    Matrix products only, a multiply-add counts two; the masked-language head at every position.
    """
    head = 2 * config.d_model * (config.d_model + config.vocabulary)
    return float(config.n_layers * (2 * _products(config) + 4 * context * config.d_model) + head)


def _products(config: Config) -> int:
    """Weights that one block multiplies each token with."""
    return config.d_model * (4 * config.d_model + 2 * config.d_ff)
