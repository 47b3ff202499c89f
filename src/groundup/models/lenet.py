"""LeNet-5: the convolutional network that read handwritten digits on cheques.

Two convolutions of 5x5 with a subsampling after each, then dense layers of 120 and 84 units. As it is
taught today: every convolution sees all maps, ReLU, max pooling. The paper differs, and each difference is an
option: a scaled tanh (appendix A), pooling that sums four pixels and learns a gain and a bias for each map
(layers S2 and S4), and sixteen second convolutions that see chosen maps only, so that no two learn the same
(table I). With `activation: scaled_tanh`, `pool: learned` and `connections: table` it has the paper's
60,000 weights below its output. Its output layer compared the 84 units with drawings of the characters by
radial basis functions; here, as nearly everywhere since, it is a linear layer.

28x28 images are framed with two pixels of zeros, since the network was made for 32x32.

LeCun, Bottou, Bengio & Haffner 1998, §II.B.

Axes: B images, C channels, H height, W width, D width of the last hidden layer (84).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.models.cnn import POOLS
from groundup.nn.dropout import dropout
from groundup.nn.heads import classifier, embedding
from groundup.nn.images import check_images
from groundup.nn.layers import ACTIVATIONS
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import ImageSection

VERSION = 1
PREFIX = "lenet"
MODEL_TYPES = ("groundup_lenet",)
TINY: dict[str, Any] = {"image_size": 28, "channels": 2}
"""Sizes with which the contract tests build it: the others belong to its name."""
MAPS, UNITS, WINDOW = (6, 16), (120, 84), 5
SIDE = 32
"""Height and width of the framed image."""
# fmt: off
TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)
# fmt: on
"""The maps of S2 that each of the sixteen maps of C3 sees (LeCun et al. 1998, table I)."""


class Config(ImageSection):
    """LeNet-5. `dropout` acts after each dense layer; the paper knew none."""

    activation: Literal["relu", "tanh", "scaled_tanh", "sigmoid"] = "relu"
    """Activation of all layers; `scaled_tanh`, 1.7159 tanh(2x/3), is the paper's."""
    pool: Literal["max", "average", "learned"] = "max"
    """How 2x2 squares become one number; `learned`, their sum times a gain plus a bias, squashed, is the paper's."""
    connections: Literal["all", "table"] = "all"
    """Which maps the second convolution sees: all, or those of the paper's table I."""

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        if self.image_size is not None and max(self.image_size) > SIDE:
            raise ValueError(f"LeNet-5 reads images of at most {SIDE} x {SIDE} pixels, found {list(self.image_size)}")
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head)


class Subsampling(nn.Module):
    """The sum of each 2x2 square times a gain plus a bias, both learned, one pair a map (layers S2 and S4)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.empty(maps)), nn.Parameter(torch.empty(maps))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,C,H/2,W/2)."""
        return 4 * F.avg_pool2d(x_BCHW, 2) * self.gain[:, None, None] + self.bias[:, None, None]

    def begin(self, draw: object, generator: torch.Generator, std: float) -> None:
        """Begin as average pooling: a quarter of the sum."""
        nn.init.constant_(self.gain, 0.25)


class Pool(nn.Module):
    """A pool without weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.pool = POOLS[kind]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,C,H/2,W/2)."""
        return self.pool(x_BCHW, 2)


class Connected(nn.Module):
    """A convolution whose maps each see chosen input maps only (layer C3)."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(len(seen), 1, WINDOW) for seen in TABLE)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,6,H,W) to (B,16,H-4,W-4)."""
        return torch.cat([convolve(x_BCHW[:, seen]) for convolve, seen in zip(self.maps, TABLE, strict=True)], dim=1)


class LeNet(KeepsActivations):
    """Images to the 84 units below the output. Layers have the paper's names."""

    causal = False
    context = 1
    width = UNITS[-1]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, *size = config.image_shape
        self.size, self.dropout = (size[0], size[1]), config.dropout
        self.activation, self.squashes_pools = ACTIVATIONS[config.activation], config.pool == "learned"
        self.c1 = nn.Conv2d(self.channels, MAPS[0], WINDOW)
        self.s2 = Subsampling(MAPS[0]) if config.pool == "learned" else Pool(config.pool)
        self.c3 = Connected() if config.connections == "table" else nn.Conv2d(*MAPS, WINDOW)
        self.s4 = Subsampling(MAPS[1]) if config.pool == "learned" else Pool(config.pool)
        self.c5 = nn.Linear(MAPS[1] * WINDOW**2, UNITS[0])  # a convolution in the paper, over a map of its own size
        self.f6 = nn.Linear(*UNITS)

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `pixel_values` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "pixel_values"))
        return hidden_BD

    def maps(self, pixel_values_BCHW: Tensor) -> Tensor:
        """The last map of images, (B,16,5,5). Raises UserError for images of another size."""
        check_images(pixel_values_BCHW, self.channels, self.size)
        across, down = (SIDE - side for side in reversed(self.size))
        x_BCHW = F.pad(pixel_values_BCHW, (across // 2, across - across // 2, down // 2, down - down // 2))
        for convolution, pool in ((self.c1, self.s2), (self.c3, self.s4)):
            x_BCHW = pool(self.activation(convolution(x_BCHW)))
            if self.squashes_pools:
                x_BCHW = self.activation(x_BCHW)
        return x_BCHW

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,D)."""
        x_BF = self.maps(pixel_values_BCHW).flatten(1)
        for layer in (self.c5, self.f6):
            x_BF = dropout(self.activation(layer(x_BF)), self.dropout, self.training)
        return x_BF


def build(config: Config) -> LeNet:
    """The backbone, its weights not yet initialised."""
    return LeNet(config)


HEADS = {"image": classifier("image"), "embedding": embedding()}
ARCHITECTURES = own_architectures("lenet", list(HEADS))


def parameters(config: Config, outputs: int = 10) -> int:
    """Number of trained parameters, the scores of `outputs` classes included."""
    window, (first, second), (wide, narrow) = WINDOW**2, MAPS, UNITS
    convolutions = (config.image_shape[0] * first + _seen(config)) * window + first + second
    pools = 2 * (first + second) if config.pool == "learned" else 0
    dense = second * window * wide + wide + wide * narrow + narrow
    return convolutions + pools + dense + narrow * outputs + outputs


def flops_per_example(config: Config, outputs: int = 10) -> float:
    """Floating-point operations of the forward pass of an image: products only, a multiply-add counts two."""
    window, (first, second), (wide, narrow) = WINDOW**2, MAPS, UNITS
    convolutions = 28**2 * config.image_shape[0] * first * window + 10**2 * _seen(config) * window
    return 2.0 * (convolutions + second * window * wide + wide * narrow + narrow * outputs)


def _seen(config: Config) -> int:
    """How many pairs of maps the second convolution connects."""
    return sum(map(len, TABLE)) if config.connections == "table" else MAPS[0] * MAPS[1]
