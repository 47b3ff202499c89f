"""Encoder of the BERT type: learned positions, token types, norms after each sum, a pooler.

Options give the encoder of the first Transformer too: sinusoidal positions, and norms before each
sublayer. Parameter names are the published ones.

Axes: B rows, T tokens, D model width, H heads, K dimensions of a head, V vocabulary.
Devlin et al. 2019; Vaswani et al. 2017.
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
from groundup.nn.positions import PositionTable, check_even
from groundup.nn.published import OURS, only, ours, required
from groundup.nn.shape import TransformerSection, whole_heads
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "bert"
MODEL_TYPES = ("bert", "groundup_bert")
ARCHITECTURES = {
    "masked_language": "BertForMaskedLM",
    "pretraining": "BertForPreTraining",
    "sequence": "BertForSequenceClassification",
    "tokens": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
    "embedding": "BertModel",
}
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Endings of names in the first published checkpoints, and what they are called since."""
NOT_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Endings of tensors in old checkpoints that are constants."""
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Tensors that some checkpoints hold twice although one is the other."""
OPTIONAL = ("bert.pooler.", "cls.seq_relationship.")
"""Beginnings of names that checkpoints of other heads may or may not hold."""
TINY: dict[str, Any] = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "context": 32}
"""Sizes with which the contract tests build it."""
_PUBLISHED_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


class Config(TransformerSection):
    """An encoder of the BERT type."""

    d_ff: PositiveCount = Field(default_factory=lambda values: 4 * values["d_model"])
    """Width of the feed-forward layers; 4 · d_model if not given."""
    token_types: PositiveCount = 2
    """Number of token types: which sentence of a pair a token belongs to."""
    norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the variance before its root."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """Activation of the feed-forward layers and of the masked-language head."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """A trained table of positions, or the fixed one of the first Transformer."""
    norm_order: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (BERT) or before each sublayer."""
    initialiser: Literal["normal", "scaled_normal", "xavier", "kaiming", "zeros"] = "normal"
    """How weights begin; see `groundup.nn.initialisers`."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        whole_heads(self.d_model, self.n_heads)
        check_even(self.d_model, self.positions)
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported."""
        only(given, "model_type", MODEL_TYPES)
        only(given, "is_decoder", (False,), False)
        only(given, "add_cross_attention", (False,), False)
        only(given, "tie_word_embeddings", (True,), True)
        only(given, "position_embedding_type", ("absolute",), "absolute")
        options = {
            "vocab_size": required(given, "vocab_size"),
            "d_model": required(given, "hidden_size"),
            "n_layers": required(given, "num_hidden_layers"),
            "n_heads": required(given, "num_attention_heads"),
            "d_ff": required(given, "intermediate_size"),
            "context": required(given, "max_position_embeddings"),
            "token_types": given.get("type_vocab_size", 2),
            "norm_eps": given.get("layer_norm_eps", 1e-12),
            "activation": _PUBLISHED_ACTIVATIONS[only(given, "hidden_act", tuple(_PUBLISHED_ACTIVATIONS), "gelu")],
            "dropout": given.get("hidden_dropout_prob", 0.1),
            "attention_dropout": given.get("attention_probs_dropout_prob", 0.1),
            "initialiser_std": given.get("initializer_range", 0.02),
        }
        return cls(**options | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head.

        Norms before the sublayers have no published class: model_type is then `groundup_bert`, which
        transformers refuses by that name. A sinusoidal table is written as the weights it equals.
        """
        return {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "bert" if self.norm_order == "post" else "groundup_bert",
            "vocab_size": self.vocabulary,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "intermediate_size": self.d_ff,
            "max_position_embeddings": self.context,
            "type_vocab_size": self.token_types,
            "layer_norm_eps": self.norm_eps,
            "hidden_act": "gelu_new" if self.activation == "gelu_tanh" else self.activation,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "tie_word_embeddings": True,
            "initializer_range": self.initialiser_std,
            OURS: {"positions": self.positions, "norm_order": self.norm_order, "initialiser": self.initialiser},
        }


class Embeddings(nn.Module):
    """The sum of what a token is, where it stands and which sentence it belongs to, normed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.d_model)
        self.position_embeddings = PositionTable(config.context, config.d_model, fixed=config.positions == "sinusoidal")
        self.token_type_embeddings = nn.Embedding(config.token_types, config.d_model)
        self.LayerNorm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor | None, token_type_ids_BT: Tensor | None) -> Tensor:
        """(B,T,D); without token types all tokens are of type 0."""
        types = self.token_type_embeddings.weight[0]
        if token_type_ids_BT is not None:
            types = self.token_type_embeddings(token_type_ids_BT)
        positions = self.position_embeddings(positions_BT, input_ids_BT.shape[1])
        x_BTD = self.LayerNorm(self.word_embeddings(input_ids_BT) + types + positions)
        return dropout(x_BTD, self.dropout, self.training)


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads."""

    together = (("query", "key", "value"),)  # they read the same input: see nn/packed.py

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.attention_dropout
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        """What each token takes from those it may see, before the output projection, (B,T,D)."""
        heads = (*x_BTD.shape[:2], self.n_heads, -1)
        q_BTHK, k_BTHK, v_BTHK = (make(x_BTD).view(heads) for make in (self.query, self.key, self.value))
        return attend(q_BTHK, k_BTHK, v_BTHK, self.layer, dropout=self.dropout if self.training else 0.0).flatten(2)


class ResidualOutput(nn.Module):
    """A projection back to the residual stream, and the norm that belongs to its sublayer."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.dense = ResidualLinear(width, config.d_model)
        self.LayerNorm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,width) to (B,T,D); the caller applies the norm where its order wants it."""
        return dropout(self.dense(x), self.dropout, self.training)


class Attention(nn.Module):
    """Self-attention and its output projection, grouped as published."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, layer)
        self.output = ResidualOutput(config.d_model, config)


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
    """Attention and feed-forward around the residual stream, normed after or before."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.d_ff, config)
        self.is_post_norm = config.norm_order == "post"

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        """The residual stream after this block, (B,T,D)."""
        attention, first, second = self.attention, self.attention.output.LayerNorm, self.output.LayerNorm
        if self.is_post_norm:
            x_BTD = first(x_BTD + attention.output(attention.self(x_BTD, attend)))
            out_BTD: Tensor = second(x_BTD + self.output(self.intermediate(x_BTD)))
            return out_BTD
        x_BTD = x_BTD + attention.output(attention.self(first(x_BTD), attend))
        return x_BTD + torch.as_tensor(self.output(self.intermediate(second(x_BTD))))


class Encoder(nn.Module):
    """The blocks, grouped as published."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))


class Pooler(nn.Module):
    """One vector for a row: tanh of a projection of its first token's hidden state."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)

    def forward(self, first_ED: Tensor) -> Tensor:
        """Hidden states of first tokens, (E,D), to (E,D)."""
        return torch.tanh(self.dense(first_ED))


class Bert(nn.Module):
    """Embeddings and encoder: token ids to hidden states. A head that needs a pooler adds one."""

    causal = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context = config.context
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        # With norms before the sublayers, the stream itself is never normed: one norm closes it.
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.norm_order == "pre" else nn.Identity()
        self.checkpoint_activations = False

    def forward(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, (B,T,D)."""
        check_length(input_ids_BT.shape[1], self.context, positions_BT)
        x_BTD = self.embeddings(input_ids_BT, positions_BT, token_type_ids_BT)
        x_BTD = run_layers(self.encoder.layer, x_BTD, attend, checkpoint_activations=self.checkpoint_activations)
        hidden_BTD: Tensor = self.norm(x_BTD)
        return hidden_BTD


class Transform(nn.Module):
    """The layer between hidden states and the vocabulary."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.LayerNorm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,D)."""
        features_BTD: Tensor = self.LayerNorm(self.activation(self.dense(hidden_BTD)))
        return features_BTD


class Predictions(nn.Module):
    """Scores over the vocabulary: transform, then the embeddings' table and a bias."""

    def __init__(self, config: Config, table: nn.Embedding) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.empty(config.vocabulary))
        # A tuple hides the table from registration: it is saved once, as the embedding's.
        self.source = (table,)

    @property
    def weight(self) -> Tensor:
        """The table of the vocabulary, (V,D)."""
        return self.source[0].weight


class MaskedLanguageHead(nn.Module):
    """Scores of the masked tokens."""

    published = "cls"

    def __init__(self, config: Config, backbone: Bert, outputs: int | None = None) -> None:
        super().__init__()
        self.predictions = Predictions(config, backbone.embeddings.word_embeddings)

    @property
    def weight(self) -> Tensor:
        """The table of the vocabulary, (V,D)."""
        return self.predictions.weight

    @property
    def bias(self) -> Tensor:
        """One number per token of the vocabulary, (V,)."""
        return self.predictions.bias

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What the loss multiplies with `weight`, (B,T,D); any leading axes."""
        features_BTD: Tensor = self.predictions.transform(hidden_BTD)
        return features_BTD

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores over the vocabulary, (B,T,V)."""
        return F.linear(self.features(hidden_BTD), self.weight, self.bias)


class PretrainingHead(MaskedLanguageHead):
    """Scores of the masked tokens, and of whether the second sentence follows the first."""

    def __init__(self, config: Config, backbone: Bert, outputs: int | None = None) -> None:
        super().__init__(config, backbone, outputs)
        backbone.pooler = Pooler(config)
        self.pooler = (backbone.pooler,)
        self.seq_relationship = nn.Linear(config.d_model, 2)

    def next_sentence(self, hidden_BTD: Tensor) -> Tensor:
        """(B,2): the second sentence follows, or is from elsewhere."""
        scores_B2: Tensor = self.seq_relationship(self.pooler[0](hidden_BTD[:, 0]))
        return scores_B2


def build(config: Config) -> Bert:
    """The backbone, its weights not yet initialised."""
    return Bert(config)


def _sequence(config: Config, backbone: Bert, outputs: int | None) -> LinearHead:
    backbone.pooler = Pooler(config)
    common: dict[str, Any] = {"published": "classifier", "dropout": config.dropout, "before": backbone.pooler}
    return LinearHead(config.d_model, heads.required(outputs, "sequence"), reads="first", **common)


def _tokens(config: Config, backbone: Bert, outputs: int | None) -> LinearHead:
    common: dict[str, Any] = {"published": "classifier", "dropout": config.dropout}
    return LinearHead(config.d_model, heads.required(outputs, "tokens"), reads="all", **common)


def _span(config: Config, backbone: Bert, outputs: int | None) -> LinearHead:
    return LinearHead(config.d_model, outputs or 2, published="qa_outputs", reads="all")


def _embedding(config: Config, backbone: Bert, outputs: int | None) -> EmbeddingHead:
    return EmbeddingHead("mean")


HEADS = {
    "masked_language": MaskedLanguageHead,
    "pretraining": PretrainingHead,
    "sequence": _sequence,
    "tokens": _tokens,
    "span": _span,
    "embedding": _embedding,
}


def parameters(config: Config, head: str = "masked_language") -> int:
    """Number of trained parameters, one of the heads (and its pooler) included."""
    d_model = config.d_model
    rows = config.vocabulary + config.token_types + config.context * (config.positions == "learned")
    embeddings = rows * d_model + 2 * d_model
    biases_and_norms = 4 * d_model + config.d_ff + d_model + 4 * d_model
    last_norm = 2 * d_model * (config.norm_order == "pre")
    total = embeddings + config.n_layers * (_products(config) + biases_and_norms) + last_norm
    total += d_model * d_model + 3 * d_model + config.vocabulary
    return total + (d_model * d_model + d_model + 2 * d_model + 2 if head == "pretraining" else 0)


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token in rows of `context` tokens.

    Matrix products only, a multiply-add counts two; the masked-language head at every position.
    """
    head = 2 * config.d_model * (config.d_model + config.vocabulary)
    return float(config.n_layers * (2 * _products(config) + 4 * context * config.d_model) + head)


def _products(config: Config) -> int:
    """Weights that one block multiplies each token with."""
    return config.d_model * (4 * config.d_model + 2 * config.d_ff)
