"""Two towers: what a user did and what an item is, each brought to one vector of the same space.

The user's tower reads the mean of the items seen so far beside the newest of them; the item's tower reads the item's
own vector and, where the data tells them, the vectors of its features (genres, year, maker). Vectors have length one
and their product, divided by a temperature, is the score. Because a user meets items only in this last product, the
best items can be looked up in an index however many there are, which is what this model is for; and an item with
few events borrows strength from its features.

The mean is attention whose queries and keys are all zero, so that it goes by the same contexts (padded, flat, packed)
as that of any other model.

Departures from Yi et al. 2019: the tower of users sees the history in order, one hidden state a position, so that
every event of a history trains it; and the sampling-bias correction uses counts of the training rows instead of
estimating them on the way (see `nn/item_losses.py`).

Axes: B rows, T items of a row, D width, V entries of the table: the catalogue and one for unknown items, L most
features of an item.
Covington, Adams & Sargin 2016; Yi et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn import heads
from groundup.nn.attention import Attend
from groundup.nn.dropout import dropout
from groundup.nn.layers import check_length
from groundup.nn.network import KeepsActivations
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import NetworkSection
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "two_tower"
MODEL_TYPES = ("groundup_two_tower",)
TINY: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "widths": (48,), "context": 32,
    "item_features": ((), *((1 + item % 5, 6 + item % 3) for item in range(60))),
}  # fmt: skip
"""Sizes with which the contract tests build it."""


class Config(NetworkSection):
    """A tower for users and a tower for items. `dropout` acts on the items of a history, in training."""

    vocab_size: PositiveCount | None = None
    """Entries of the item table: the catalogue and one for unknown items; follows from the data if not given."""
    item_features: tuple[tuple[PositiveCount, ...], ...] | None = None
    """For each entry of the table the numbers, from 1, of its features; follows from the data if not given."""
    d_model: PositiveCount = 64
    """Width of item and feature vectors, and of the space both towers end in."""
    widths: tuple[PositiveCount, ...] = (128,)
    """Units of each hidden layer of the users' tower; `[]` for none."""
    item_widths: tuple[PositiveCount, ...] = ()
    """Units of each hidden layer of the items' tower; `[]` for none: then an item is the sum of its vectors."""
    temperature: float = Field(default=0.1, gt=0)
    """What products of unit vectors are divided by to become scores."""
    context: PositiveCount = 200
    """The most items of a history that are looked at, the newest ones."""
    initialiser: Literal["normal", "xavier", "kaiming", "zeros"] = "xavier"
    """How weights begin; see `groundup.nn.initialisers`."""
    initialiser_std: float = Field(default=0.05, ge=0)
    """Standard deviation of `normal`, and of the tables of items and features."""

    @model_validator(mode="after")
    def _one_entry_an_item(self) -> Self:
        if self.vocab_size is not None and self.item_features and len(self.item_features) != self.vocab_size:
            raise ValueError(f"item_features of {len(self.item_features)} items for a table of {self.vocab_size}")
        return self

    @property
    def vocabulary(self) -> int:
        """Entries of the item table. Raises ValueError while they are not known."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not known yet: give it, or take it from the data")
        return self.vocab_size

    @property
    def n_item_features(self) -> int:
        """How many different features items have."""
        return max((max(own, default=0) for own in self.item_features or ()), default=0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers that come into the users' tower, and units of each of its layers."""
        return (2 * self.d_model, *self.widths, self.d_model)

    @property
    def item_sizes(self) -> tuple[int, ...]:
        """Numbers that come into the items' tower, and units of each of its layers; one alone for no layer."""
        return (self.d_model, *self.item_widths, self.d_model) if self.item_widths else (self.d_model,)

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head) | {"vocab_size": self.vocabulary, "max_position_embeddings": self.context}


class Layers(nn.Module):
    """Dense layers with ReLU between them, and a vector of length one at the end."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(…,inputs) to (…,D), of length one."""
        for number, layer in enumerate(self.layers):
            x = layer(F.relu(x) if number else x)
        return F.normalize(x, dim=-1)


class Items(nn.Module):
    """The items' tower."""

    ids: Tensor
    """(V,L) the features of each item, 0 where there are no more."""
    shares: Tensor
    """(V,L) what each weighs: one over their number; 0 where there are no more."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.item_embeddings = nn.Embedding(config.vocabulary, config.d_model)
        self.n_features = config.n_item_features
        if self.n_features:
            self.feature_embeddings = nn.Embedding(self.n_features, config.d_model)
            ids_VL, shares_VL = _table(config.item_features or ())
            self.register_buffer("ids", ids_VL, persistent=False)
            self.register_buffer("shares", shares_VL, persistent=False)
        self.tower = Layers(config.item_sizes)

    def inputs(self) -> Tensor:
        """The vector of each item and the mean of those of its features, added, (V,D)."""
        own_VD: Tensor = self.item_embeddings.weight
        if not self.n_features:
            return own_VD
        described_VLD: Tensor = self.feature_embeddings(self.ids) * self.shares[..., None].to(own_VD.dtype)
        return own_VD + described_VLD.sum(1)


def _table(features: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The features of each item as numbers from 0, (V,L), and what each weighs: one over their number, or 0."""
    most = max(map(len, features))
    # On the CPU by name: a network built on the meta device still needs real tables.
    ids_VL = torch.zeros(len(features), most, dtype=torch.int64, device="cpu")
    shares_VL = torch.zeros(len(features), most, device="cpu")
    for item, own in enumerate(features):
        ids_VL[item, : len(own)] = torch.tensor(own, dtype=torch.int64, device="cpu") - 1
        shares_VL[item, : len(own)] = 1 / max(1, len(own))
    return ids_VL, shares_VL


class TwoTower(KeepsActivations):
    """Items of histories to vectors of what would come next."""

    causal = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context, self.dropout, self.width = config.context, config.dropout, config.d_model
        self.items = Items(config)
        self.users = Layers(config.sizes)

    def forward(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """The user's vector after each item, (B,T,D), of length one. Positions and token types are not used."""
        check_length(input_ids_BT.shape[1], self.context, positions_BT)
        x_BTD = dropout(F.embedding(input_ids_BT, self.items.inputs()), self.dropout, self.training)
        nothing_BT1D = torch.zeros_like(x_BTD)[:, :, None]
        mean_BTD = attend(nothing_BT1D, nothing_BT1D, x_BTD[:, :, None], 0)[:, :, 0]
        hidden_BTD: Tensor = self.users(torch.cat([mean_BTD, x_BTD], dim=-1))
        return hidden_BTD


class CatalogueHead(nn.Module):
    """Scores of every item by the items' tower, which is computed once a batch; it has no weights of its own."""

    published = "catalogue"
    bias = None

    def __init__(self, backbone: TwoTower, temperature: float) -> None:
        super().__init__()
        # A tuple hides the module from registration.
        self.source, self.temperature = (backbone,), temperature

    @property
    def weight(self) -> Tensor:
        """The vectors of all items, (V,D), of length one."""
        items = self.source[0].items
        vectors_VD: Tensor = items.tower(items.inputs())
        return vectors_VD

    def features(self, hidden_BTD: Tensor) -> Tensor:
        """What is multiplied with `weight`: the users' vectors over the temperature."""
        return hidden_BTD / self.temperature

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Scores over the catalogue, (B,T,V)."""
        return F.linear(self.features(hidden_BTD), self.weight)


def build(config: Config) -> TwoTower:
    """The backbone, its weights not yet initialised."""
    return TwoTower(config)


def _language(config: Config, backbone: TwoTower, outputs: int | None) -> CatalogueHead:
    return CatalogueHead(backbone, config.temperature)


HEADS = {"language": _language, "embedding": heads.embedding("last")}
ARCHITECTURES = own_architectures("two_tower", list(HEADS))


def parameters(config: Config) -> int:
    """Number of trained parameters."""
    tables = (config.vocabulary + config.n_item_features) * config.d_model
    both = (*pairwise(config.sizes), *pairwise(config.item_sizes))
    return tables + sum((inputs + 1) * outputs for inputs, outputs in both)


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per item in rows of `context` items.

    Matrix products only, a multiply-add counts two; those of the mean are counted as attention's are. The items'
    tower is left out: it is computed once a batch, however many histories there are.
    """
    tower = sum(inputs * outputs for inputs, outputs in pairwise(config.sizes))
    return 2.0 * tower + 4.0 * context * config.d_model + 2.0 * config.vocabulary * config.d_model
