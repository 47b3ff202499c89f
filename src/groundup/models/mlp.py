"""Multilayer perceptron: dense layers one after the other, on feature vectors or flattened images.

Each hidden layer is a = f(norm(W x + b)): a product, batch norm if wanted, an activation, dropout. With no
hidden layer it is logistic or linear regression. Images are read row by row, channel by channel, so the
network knows nothing of which pixels are neighbours; `cnn` does.

Rumelhart, Hinton & Williams 1986 (back-propagation); Ioffe & Szegedy 2015 (batch norm, before the
activation, §3.2); Srivastava et al. 2014 (dropout).

Axes: B examples, F features (or C channels, H height, W width of images), D width of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from torch import Tensor, nn

from groundup.errors import UserError
from groundup.nn.dropout import dropout
from groundup.nn.heads import classifier, embedding
from groundup.nn.layers import ACTIVATIONS
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import NetworkSection
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "mlp"
MODEL_TYPES = ("groundup_mlp",)
TINY: dict[str, Any] = {"n_features": 48, "widths": (16, 12), "batch_norm": True}
"""Sizes with which the contract tests build it."""
Activation = Literal["sigmoid", "tanh", "relu", "gelu", "silu"]


class Config(NetworkSection):
    """Dense layers one after the other. `dropout` acts after each hidden layer."""

    n_features: PositiveCount | None = None
    """Numbers of an example (of an image: channels x height x width); follows from the data if not given."""
    widths: tuple[PositiveCount, ...] = (100,)
    """Units of each hidden layer, from the input on; `[]` for none."""
    activation: Activation = "relu"
    """What each hidden unit makes of its sum."""
    batch_norm: bool = False
    """Whether each sum is divided by its spread over the batch before the activation."""

    @property
    def context(self) -> int:
        """The longest input in positions: a row of features is one."""
        return 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers that come in, and units of each hidden layer. Raises UserError while the first is not known."""
        if self.n_features is None:
            what = f"the model {self.name!r} does not know how many numbers an example has"
            raise UserError(what, fix="give `n_features`, or take it from the data")
        return (self.n_features, *self.widths)

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head)


class Layer(nn.Module):
    """One hidden layer."""

    def __init__(self, inputs: int, outputs: int, *, activation: str, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        # Batch norm takes the mean away, and a bias with it; its own bias does that work.
        self.linear = nn.Linear(inputs, outputs, bias=not batch_norm)
        self.norm = nn.BatchNorm1d(outputs) if batch_norm else None
        self.activation, self.dropout = ACTIVATIONS[activation], dropout

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B,inputs) to (B,outputs)."""
        sum_BF = self.linear(x_BF) if self.norm is None else self.norm(self.linear(x_BF))
        return dropout(self.activation(sum_BF), self.dropout, self.training)


class Mlp(KeepsActivations):
    """Feature vectors, or images flattened, to the last hidden layer."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        options: dict[str, Any] = {"activation": config.activation, "batch_norm": config.batch_norm}
        options["dropout"] = config.dropout
        self.layers = nn.ModuleList(Layer(inputs, outputs, **options) for inputs, outputs in pairwise(config.sizes))
        self.n_features, self.width = config.sizes[0], config.sizes[-1]

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `features` or `pixel_values` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "features", "pixel_values"))
        return hidden_BD

    def forward(self, features_BF: Tensor) -> Tensor:
        """(B,F), or (B,C,H,W) with F = C·H·W, to (B,D). Raises UserError for examples of another size."""
        x_BF = features_BF.flatten(1)
        if x_BF.shape[1] != self.n_features:
            what = f"an example has {x_BF.shape[1]} numbers, and the model reads {self.n_features}"
            raise UserError(what, fix="set `n_features` to what the data gives, or leave it out")
        for layer in self.layers:
            x_BF = layer(x_BF)
        return x_BF


def build(config: Config) -> Mlp:
    """The backbone, its weights not yet initialised."""
    return Mlp(config)


HEADS = {"image": classifier("image"), "features": classifier("features"), "embedding": embedding()}
ARCHITECTURES = own_architectures("mlp", list(HEADS))


def parameters(config: Config, outputs: int = 10) -> int:
    """Number of trained parameters, the scores of `outputs` classes included."""
    inner = sum(inputs * width + (2 if config.batch_norm else 1) * width for inputs, width in pairwise(config.sizes))
    return inner + config.sizes[-1] * outputs + outputs


def flops_per_example(config: Config, outputs: int = 10) -> float:
    """Floating-point operations of the forward pass of an example: products only, a multiply-add counts two."""
    return 2.0 * sum(inputs * width for inputs, width in pairwise((*config.sizes, outputs)))
