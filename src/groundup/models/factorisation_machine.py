"""Factorisation machine: every column of a row, and every pair of columns, has its say.

A row is a few entries of one large table: the user's, the item's, one for each further column, each with a value
x (1 for a category). With a weight w and a vector v of k numbers for each entry of the table,

    s = b + Σ_i w_i x_i + Σ_i<j <v_i, v_j> x_i x_j

A pair that no training row holds still has a sensible weight, because its two vectors were learned from other pairs;
that is what a table of weights for pairs cannot do. The double sum needs no double loop:

    Σ_i<j <v_i, v_j> x_i x_j = ½ Σ_f [(Σ_i v_if x_i)² - Σ_i v_if² x_i²],

one pass over the n entries for each of the k factors (Rendle 2010, lemma 3.1).

Axes: B examples, F entries of an example (columns), N entries of the table, K factors.
Rendle 2010. Dropout on the pairs' part: He & Chua 2017, §4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.nn.dropout import dropout
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import NetworkSection
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "factorisation_machine"
MODEL_TYPES = ("groundup_factorisation_machine",)
TINY: dict[str, Any] = {"n_entries": 61, "n_columns": 5, "n_factors": 8}
"""Sizes with which the contract tests build it."""


class Config(NetworkSection):
    """A factorisation machine. `dropout` acts on the factors' parts, in training."""

    n_entries: PositiveCount | None = None
    """Entries of the table: all values of all columns; follows from the data if not given."""
    n_columns: PositiveCount | None = None
    """Entries of an example; follows from the data if not given."""
    n_factors: PositiveCount = 16
    """Numbers of the vector of each entry."""
    initialiser: Literal["normal", "xavier", "kaiming", "zeros"] = "normal"
    """How weights begin; see `groundup.nn.initialisers`. It only has tables, which are normal."""
    initialiser_std: float = Field(default=0.05, ge=0)
    """Standard deviation of the tables of weights and of factors."""

    @property
    def context(self) -> int:
        """The longest input in positions: a row of entries is one."""
        return 1

    @property
    def table(self) -> tuple[int, int]:
        """Entries of the table and of an example. Raises UserError while they are not known."""
        if self.n_entries is None or self.n_columns is None:
            what = f"the model {self.name!r} does not know the columns of its rows"
            raise UserError(what, fix="give `n_entries` and `n_columns`, or take them from the data")
        return self.n_entries, self.n_columns

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head)


class Table(nn.Module):
    """A row of numbers for each entry.

    No nn.Embedding, whose numbers are never decayed: here weight decay is what keeps entries small that little is
    known of, as the paper's regularisation does.
    """

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, width))

    @torch.no_grad()
    def begin(self, draw: Callable[[Tensor], None], generator: torch.Generator, std: float) -> None:
        """Normal numbers, as for other tables."""
        self.weight.copy_(torch.empty(self.weight.shape).normal_(std=std, generator=generator))

    def forward(self, entries_BF: Tensor) -> Tensor:
        """(B,F) to (B,F,width)."""
        return F.embedding(entries_BF, self.weight)


class FactorisationMachine(KeepsActivations):
    """Entries of a table to the parts of a score: the weights' and each factor's."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        entries, self.columns = config.table
        self.weights = Table(entries, 1)
        self.factors = Table(entries, config.n_factors)
        self.dropout, self.width = config.dropout, 1 + config.n_factors

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The parts of the score of each example, (B,1+K), by `entries` (B,F) and their `values` (B,F)."""
        entries_BF = given(batch, "entries")
        values_BF = batch["values"] if "values" in batch else torch.ones_like(entries_BF, dtype=torch.float32)
        parts_BK: Tensor = self(entries_BF, values_BF)
        return parts_BK

    def forward(self, entries_BF: Tensor, values_BF: Tensor) -> Tensor:
        """(B,F) numbers of entries and what each is worth, to (B,1+K). Raises UserError for another F."""
        if entries_BF.shape[1] != self.columns:
            what = f"an example has {entries_BF.shape[1]} entries, and the model reads {self.columns}"
            raise UserError(what, fix="set `n_columns` to what the data gives, or leave it out")
        x_B1F = values_BF[:, None]
        v_BFK = self.factors(entries_BF)
        linear_B11 = x_B1F @ self.weights(entries_BF)
        pairs_B1K = ((x_B1F @ v_BFK).square() - x_B1F.square() @ v_BFK.square()) / 2
        return torch.cat([linear_B11, dropout(pairs_B1K, self.dropout, self.training)], dim=-1).squeeze(1)


class SumHead(nn.Module):
    """The score: the sum of its parts and one number for all."""

    published, reads = "scores", "first"

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, parts_EK: Tensor) -> Tensor:
        """(E,1+K) to (E,1)."""
        return parts_EK.sum(-1, keepdim=True) + self.bias


def build(config: Config) -> FactorisationMachine:
    """The backbone, its weights not yet initialised."""
    return FactorisationMachine(config)


def _click(config: Config, backbone: FactorisationMachine, outputs: int | None) -> SumHead:
    return SumHead()


HEADS = {"click": _click}
ARCHITECTURES = own_architectures("factorisation_machine", list(HEADS))


def parameters(config: Config, outputs: int = 1) -> int:
    """Number of trained parameters."""
    return config.table[0] * (1 + config.n_factors) + 1


def flops_per_example(config: Config, outputs: int = 1) -> float:
    """Floating-point operations of the forward pass of an example: products only, a multiply-add counts two."""
    return 2.0 * config.table[1] * (1 + 2 * config.n_factors)
