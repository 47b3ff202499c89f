"""AlexNet: the network that won ImageNet's contest of 2012 and began the turn to deep networks.

Five convolutions, three pools, two dense layers of 4,096 units with dropout, and the scores. This is the
version of one column (Krizhevsky 2014), which torchvision publishes and whose names and shapes these are; the
first one was split over two GPUs and normalised its answers locally, which has been found to do little.
61,100,840 weights with 1,000 classes, 54.5 million of them in the two dense layers.

Krizhevsky, Sutskever & Hinton 2012; Krizhevsky 2014.

Axes: B images, C channels, H height, W width, D width of the last hidden layer (4,096).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from groundup.errors import UserError
from groundup.nn.heads import classifier, embedding
from groundup.nn.images import after, check_images
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import ImageSection
from groundup.units import PositiveCount, Share

VERSION = 1
PREFIX = "alexnet"
MODEL_TYPES = ("groundup_alexnet",)
RENAMED = {"classifier.": "classifier.6.", "alexnet.": ""}
"""Beginnings of our names, and of torchvision's."""
TINY: dict[str, Any] = {"image_size": 63, "channels": 3, "units": 24, "dropout": 0.0}
"""Sizes with which the contract tests build it."""
CONVOLUTIONS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Filters, window, stride and padding of each convolution."""
POOLED = (0, 1, 4)
"""The convolutions that a pool of 3x3 with a stride of 2 follows."""
GRID = 6
"""Height and width that the last map is averaged to."""


class Config(ImageSection):
    """AlexNet. `dropout` acts before each of the two dense layers."""

    dropout: Share = 0.5
    """Share of values dropped before each dense layer, in training."""
    units: PositiveCount = 4096
    """Units of each of the two dense layers."""

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Height and width after each convolution. Raises UserError for images that are too small."""
        found: list[tuple[int, int]] = []
        _, height, width = self.image_shape
        for i, (_, window, stride, padding) in enumerate(CONVOLUTIONS):
            try:
                height, width = (after(side, window, stride, padding) for side in (height, width))
                found.append((height, width))
                if i in POOLED:
                    height, width = (after(side, 3, 2) for side in (height, width))
            except ValueError as error:
                raise UserError(
                    f"the images are too small for AlexNet: {error}", fix="give at least 63 x 63"
                ) from error
        return found

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published one, only published names."""
        return own_format(self, head)


class AlexNet(KeepsActivations):
    """Images to the last hidden layer. Modules stand where torchvision numbers them."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.maps, "images that are too small are refused"
        self.channels = inputs = config.image_shape[0]
        self.features = nn.Sequential()
        for i, (filters, window, stride, padding) in enumerate(CONVOLUTIONS):
            self.features.append(nn.Conv2d(inputs, filters, window, stride, padding)).append(nn.ReLU())
            if i in POOLED:
                self.features.append(nn.MaxPool2d(3, 2))
            inputs = filters
        self.avgpool = nn.AdaptiveAvgPool2d(GRID)
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(inputs * GRID**2, config.units),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.units, config.units),
            nn.ReLU(),
        )
        self.width = config.units

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `pixel_values` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "pixel_values"))
        return hidden_BD

    def maps(self, pixel_values_BCHW: Tensor) -> Tensor:
        """The last map of images, (B,256,H,W). Raises UserError for images with another number of channels."""
        check_images(pixel_values_BCHW, self.channels)
        map_BCHW: Tensor = self.features(pixel_values_BCHW)
        return map_BCHW

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,D)."""
        hidden_BD: Tensor = self.classifier(self.avgpool(self.maps(pixel_values_BCHW)).flatten(1))
        return hidden_BD


def build(config: Config) -> AlexNet:
    """The backbone, its weights not yet initialised."""
    return AlexNet(config)


HEADS = {"image": classifier("image"), "embedding": embedding()}
ARCHITECTURES = own_architectures("alexnet", list(HEADS))


def parameters(config: Config, outputs: int = 1000) -> int:
    """Number of trained parameters, the scores of `outputs` classes included."""
    total, inputs = 0, config.image_shape[0]
    for filters, window, _, _ in CONVOLUTIONS:
        total += inputs * filters * window**2 + filters
        inputs = filters
    units = config.units
    return total + (inputs * GRID**2 + 1) * units + (units + 1) * units + (units + 1) * outputs


def flops_per_example(config: Config, outputs: int = 1000) -> float:
    """Floating-point operations of the forward pass of an image: products only, a multiply-add counts two."""
    products, inputs = 0, config.image_shape[0]
    for (height, width), (filters, window, _, _) in zip(config.maps, CONVOLUTIONS, strict=True):
        products += height * width * inputs * filters * window**2
        inputs = filters
    return 2.0 * (products + config.units * (inputs * GRID**2 + config.units + outputs))
