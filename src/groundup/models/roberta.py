"""Encoder of the RoBERTa type: BERT's, its positions counted from after the padding token's id.

RoBERTa and XLM-R are BERT trained for longer, on masked tokens alone, with one type of token. Three
things differ in the published layout: the table of positions begins with rows that are never used, as
many as the padding token's id plus one; the head over the vocabulary is called `lm_head`; and the head
for sequences has a layer of its own instead of a pooler.

Axes: B rows, T tokens, E examples, D model width, V vocabulary, K outputs.
Liu et al. 2019; Conneau et al. 2020 (XLM-R).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.models import bert
from groundup.nn import heads
from groundup.nn.dropout import dropout
from groundup.nn.heads import EmbeddingHead, LinearHead
from groundup.nn.positions import PositionTable
from groundup.nn.published import only
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "roberta"
MODEL_TYPES = ("roberta", "xlm-roberta", "camembert", "groundup_roberta")
ARCHITECTURES = {
    "masked_language": "RobertaForMaskedLM",
    "sequence": "RobertaForSequenceClassification",
    "tokens": "RobertaForTokenClassification",
    "span": "RobertaForQuestionAnswering",
    "embedding": "RobertaModel",
}
NOT_WEIGHTS = bert.NOT_WEIGHTS
TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
"""Tensors that some checkpoints hold twice although one is the other."""
OPTIONAL = ("roberta.pooler.",)
"""Beginnings of names that checkpoints of other heads may or may not hold."""
TINY: dict[str, Any] = dict(bert.TINY)
"""Sizes with which the contract tests build it."""


class Config(bert.Config):
    """An encoder of the RoBERTa type."""

    token_types: PositiveCount = 1
    """Number of token types; with one, those of a batch are not looked at."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance before its root."""
    pad_id: int = Field(default=1, ge=0)
    """Id of the padding token, which must be the tokenizer's: positions are counted from the id after it."""

    @property
    def first_position(self) -> int:
        """The row of the position table that a text begins with."""
        return self.pad_id + 1

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported."""
        only(given, "model_type", MODEL_TYPES)
        pad = given.get("pad_token_id")
        pad_id = 1 if pad is None else int(pad)
        context = int(given.get("max_position_embeddings") or 512) - pad_id - 1
        config = super().from_hugging_face(given | {"model_type": "bert", "max_position_embeddings": context})
        return config.model_copy(update={"pad_id": pad_id})

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; see `bert.Config.to_hugging_face`."""
        return super().to_hugging_face(head) | {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "roberta" if self.norm_order == "post" else "groundup_roberta",
            "max_position_embeddings": self.context + self.first_position,
            "pad_token_id": self.pad_id,
        }


class Embeddings(bert.Embeddings):
    """The sum of what a token is and where it stands, normed."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.first, self.has_types = config.first_position, config.token_types > 1
        rows = config.context + self.first
        self.position_embeddings = PositionTable(rows, config.d_model, fixed=config.positions == "sinusoidal")

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor | None, token_type_ids_BT: Tensor | None) -> Tensor:
        """(B,T,D). Positions count from 0 here, and from `first` in the table."""
        if positions_BT is None:
            positions_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None]
        return super().forward(input_ids_BT, positions_BT + self.first, token_type_ids_BT if self.has_types else None)


class Roberta(bert.Bert):
    """Embeddings and encoder: token ids to hidden states."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)


class MaskedLanguageHead(nn.Module):
    """Scores of the masked tokens: a layer, then the embeddings' table and a bias."""

    published = "lm_head"

    def __init__(self, config: Config, backbone: Roberta, outputs: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.empty(config.vocabulary))
        # A tuple hides the table from registration: it is saved once, as the embedding's.
        self.source = (backbone.embeddings.word_embeddings,)

    @property
    def weight(self) -> Tensor:
        """The table of the vocabulary, (V,D)."""
        return self.source[0].weight

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What the loss multiplies with `weight`, (B,T,D); any leading axes."""
        features_BTD: Tensor = self.layer_norm(F.gelu(self.dense(hidden_BTD)))
        return features_BTD

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores over the vocabulary, (B,T,V)."""
        return F.linear(self.features(hidden_BTD), self.weight, self.bias)


class SequenceHead(nn.Module):
    """Scores of classes from the first token: a layer with tanh, then a linear one."""

    published, reads = "classifier", "first"

    def __init__(self, config: Config, backbone: Roberta, outputs: int | None = None) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, heads.required(outputs, "sequence"))

    def forward(self, first_ED: Tensor) -> Tensor:
        """(E,D) to (E,K)."""
        x_ED = torch.tanh(self.dense(dropout(first_ED, self.dropout, self.training)))
        scores_EK: Tensor = self.out_proj(dropout(x_ED, self.dropout, self.training))
        return scores_EK


def build(config: Config) -> Roberta:
    """The backbone, its weights not yet initialised."""
    return Roberta(config)


def _tokens(config: Config, backbone: Roberta, outputs: int | None) -> LinearHead:
    common: dict[str, Any] = {"published": "classifier", "dropout": config.dropout}
    return LinearHead(config.d_model, heads.required(outputs, "tokens"), reads="all", **common)


def _span(config: Config, backbone: Roberta, outputs: int | None) -> LinearHead:
    return LinearHead(config.d_model, outputs or 2, published="qa_outputs", reads="all")


def _embedding(config: Config, backbone: Roberta, outputs: int | None) -> EmbeddingHead:
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
    return bert.parameters(config) + config.first_position * config.d_model * (config.positions == "learned")


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token; see `bert.flops_per_token`."""
    return bert.flops_per_token(config, context)
