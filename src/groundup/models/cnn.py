"""Small convolutional network: convolutions and pools in turn, then dense layers.

Its defaults are the network that introductory tutorials fit to handwritten digits, best known from
Keras: 32 convolutions of 3x3, a pool, 64 convolutions, a pool, 128 dense units. On 28x28 grey images with
ten classes that is 225,034 weights.

A convolution slides one small window over the image, so neighbouring pixels are looked at together and
a pattern is found wherever it stands; a pool keeps the strongest answer of each 2x2 square and halves the
map. (What deep learning calls convolution does not turn its window around: it is cross-correlation.)

Fukushima 1980; LeCun et al. 1989. `lenet`, `alexnet`, `resnet` and `efficientnet_lite` are the published ones.

Axes: B images, C channels, H height, W width, D width of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.models.mlp import Activation, Layer
from groundup.nn.heads import classifier, embedding
from groundup.nn.images import after, check_images
from groundup.nn.layers import ACTIVATIONS
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import ImageSection
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "cnn"
MODEL_TYPES = ("groundup_cnn",)
TINY: dict[str, Any] = {"image_size": 12, "channels": 3, "filters": (4, 6), "dense": (10,), "batch_norm": True}
"""Sizes with which the contract tests build it."""
POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {"max": F.max_pool2d, "average": F.avg_pool2d}
POOL = 2
"""Height and width of the square that a pool makes one number of."""


class Config(ImageSection):
    """Convolutions and pools in turn, then dense layers. `dropout` acts after each dense layer."""

    filters: tuple[PositiveCount, ...] = Field(default=(32, 64), min_length=1)
    """Convolutions of each block, from the input on; a pool follows each block."""
    kernel_size: PositiveCount = 3
    """Height and width of the window of a convolution."""
    padding: Literal["valid", "same"] = "valid"
    """`valid`: windows stay inside the image, so each convolution makes it smaller; `same`: zeros around it keep its
    size."""
    pool: Literal["max", "average"] = "max"
    """What a pool keeps of each 2x2 square: the largest number, or the mean."""
    dense: tuple[PositiveCount, ...] = (128,)
    """Units of each dense layer after the last pool; `[]` for none."""
    activation: Activation = "relu"
    """Activation of convolutions and dense layers."""
    batch_norm: bool = False
    """Whether each convolution and dense layer is followed by batch norm, before its activation."""

    @model_validator(mode="after")
    def _window_has_a_middle(self) -> Self:
        if self.padding == "same" and self.kernel_size % 2 == 0:
            raise ValueError(f"with padding: same, kernel_size must be odd, found {self.kernel_size}")
        return self

    @property
    def maps(self) -> list[tuple[int, int, int]]:
        """Channels, height and width of the image, and after each block. Raises UserError if a map vanishes."""
        found = [self.image_shape]
        around = self.kernel_size // 2 if self.padding == "same" else 0
        for filters in self.filters:
            _, *sides = found[-1]
            try:
                height, width = (after(after(side, self.kernel_size, padding=around), POOL, POOL) for side in sides)
            except ValueError as error:
                what = f"images of {self.image_shape[1]} x {self.image_shape[2]} pixels are too small: {error}"
                raise UserError(what, fix="take out a block of `filters`, or set `padding: same`") from error
            found.append((filters, height, width))
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of the last map, and units of each dense layer."""
        channels, height, width = self.maps[-1]
        return (channels * height * width, *self.dense)

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head)


class Block(nn.Module):
    """A convolution, and the pool that follows it."""

    def __init__(self, inputs: int, outputs: int, config: Config) -> None:
        super().__init__()
        padding = config.kernel_size // 2 if config.padding == "same" else 0
        options: dict[str, Any] = {"padding": padding, "bias": not config.batch_norm}
        self.convolution = nn.Conv2d(inputs, outputs, config.kernel_size, **options)
        self.norm = nn.BatchNorm2d(outputs) if config.batch_norm else nn.Identity()
        self.activation, self.pool = ACTIVATIONS[config.activation], POOLS[config.pool]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H',W')."""
        return self.pool(self.activation(self.norm(self.convolution(x_BCHW))), POOL)


class Cnn(KeepsActivations):
    """Images to the last hidden layer."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, *size = config.image_shape
        self.size = (size[0], size[1])
        counts = (self.channels, *config.filters)
        self.blocks = nn.ModuleList(Block(inputs, outputs, config) for inputs, outputs in pairwise(counts))
        options: dict[str, Any] = {"activation": config.activation, "batch_norm": config.batch_norm}
        options["dropout"] = config.dropout
        self.dense = nn.ModuleList(Layer(inputs, outputs, **options) for inputs, outputs in pairwise(config.sizes))
        self.width = config.sizes[-1]

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `pixel_values` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "pixel_values"))
        return hidden_BD

    def maps(self, pixel_values_BCHW: Tensor) -> Tensor:
        """The last map of images, (B,C,H,W): what was found, and where. Raises UserError for other sizes."""
        check_images(pixel_values_BCHW, self.channels, self.size)
        for block in self.blocks:
            pixel_values_BCHW = block(pixel_values_BCHW)
        return pixel_values_BCHW

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,D)."""
        x_BF = self.maps(pixel_values_BCHW).flatten(1)
        for layer in self.dense:
            x_BF = layer(x_BF)
        return x_BF


def build(config: Config) -> Cnn:
    """The backbone, its weights not yet initialised."""
    return Cnn(config)


HEADS = {"image": classifier("image"), "embedding": embedding()}
ARCHITECTURES = own_architectures("cnn", list(HEADS))


def parameters(config: Config, outputs: int = 10) -> int:
    """Number of trained parameters, the scores of `outputs` classes included."""
    each = 2 if config.batch_norm else 1
    counts, window = (config.image_shape[0], *config.filters), config.kernel_size**2
    convolutions = sum(inputs * filters * window + each * filters for inputs, filters in pairwise(counts))
    dense = sum(inputs * width + each * width for inputs, width in pairwise(config.sizes))
    return convolutions + dense + config.sizes[-1] * outputs + outputs


def flops_per_example(config: Config, outputs: int = 10) -> float:
    """Floating-point operations of the forward pass of an image: products only, a multiply-add counts two."""
    around = config.kernel_size // 2 if config.padding == "same" else 0
    products = sum(inputs * width for inputs, width in pairwise((*config.sizes, outputs)))
    for (inputs, height, width), filters in zip(config.maps, config.filters, strict=False):
        places = after(height, config.kernel_size, padding=around) * after(width, config.kernel_size, padding=around)
        products += places * inputs * filters * config.kernel_size**2
    return 2.0 * products
