"""Small layers that several models share. Everything with weights is a plain `nn.Linear` or a norm.

Axes: B rows, T tokens, W those of them that are wanted, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groundup.errors import UserError
from groundup.nn import products


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _scaled_tanh(x: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(2 / 3 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu6": F.relu6,
    "scaled_tanh": _scaled_tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""Activation functions by recipe name; `gelu_tanh` is the approximation that GPT-2 uses (Hendrycks & Gimpel
2016, §2), `scaled_tanh` the squashing function of LeNet-5 (LeCun et al. 1998, appendix A), `silu` and
`swish` are one (Ramachandran et al. 2017)."""


class ResidualLinear(nn.Linear):
    """A linear layer whose result is added to the residual stream.

    The same computation as nn.Linear; the type tells an initialiser which layers write to the stream.
    """


class LanguageHead(nn.Linear):
    """Untied scores over the vocabulary, without bias."""

    published = "lm_head"

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__(d_model, vocab_size, bias=False)

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What the loss multiplies with `weight`: here the hidden states themselves."""
        return hidden_BTD


class TiedLanguageHead(nn.Module):
    """Scores over the vocabulary with the embedding's own table, so with no weight to publish.

    The table is not registered a second time: it appears once in the state dict, moves and is
    converted with the embedding, and stays tied through deepcopy. Press & Wolf 2017.
    """

    published = "lm_head"
    bias = None

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        # A tuple hides the module from registration.
        self.source = (embedding,)

    @property
    def weight(self) -> Tensor:
        """The embedding's table, (V, D)."""
        return self.source[0].weight

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What the loss multiplies with `weight`: here the hidden states themselves."""
        return hidden_BTD

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores over the vocabulary, (B, T, V)."""
        return F.linear(hidden_BTD, self.weight)


def language_head(embedding: nn.Embedding, *, tie: bool) -> LanguageHead | TiedLanguageHead:
    """A head over the embedding's vocabulary that shares its table or has one of the same shape."""
    if tie:
        return TiedLanguageHead(embedding)
    return LanguageHead(embedding.embedding_dim, embedding.num_embeddings)


def run_layers(
    layers: Iterable[nn.Module],
    hidden_BTD: Tensor,
    *inputs: object,
    checkpoint_activations: bool,
    wanted_W: Tensor | None = None,
) -> Tensor:
    """Hidden states after every layer; with checkpointing only those between layers are kept.

    The rest is computed again in the backward pass, with the same dropout (Chen et al. 2016). Where only some
    tokens are wanted, which is for layers that know of it, the last layer gives those alone, (B,W,D).
    """
    if wanted_W is not None:
        *layers, last = layers
        hidden_BTD = run_layers(layers, hidden_BTD, *inputs, checkpoint_activations=checkpoint_activations)
        narrowed_BWD: Tensor = last(hidden_BTD, *inputs, wanted_W)
        return narrowed_BWD
    if not checkpoint_activations or not torch.is_grad_enabled():
        for layer in layers:
            hidden_BTD = layer(hidden_BTD, *inputs)
        return hidden_BTD
    for layer in layers:
        hidden_BTD = checkpoint(layer, hidden_BTD, *inputs, use_reentrant=False, **products.recomputed())
    return hidden_BTD


def check_length(length: int, context: int, positions_BT: Tensor | None = None) -> None:
    """Raise UserError if a row is longer than the context the model was made for.

    A row whose positions are given may be: it holds several texts, and each counts from zero.
    """
    if length > context and positions_BT is None:
        fix = f"cut or pack rows to at most {context} tokens, or train a model with a longer context"
        raise UserError(f"a row of {length} tokens is longer than the model's context of {context}", fix=fix)
