"""Residual network: convolutions that learn what to add to their input, so that depth costs no accuracy.

`size` names the networks of the paper: 18, 34, 50, 101 and 152 layers for photographs (a first convolution of
7x7 and a pool, four stages), and 20, 32, 44 and 56 for images of 28x28 or 32x32 (§4.2: a first convolution of
3x3, three stages of 16, 32 and 64 maps, shortcuts without weights). In blocks of three convolutions the second
one strides, not the first, as in all that is published since (often called v1.5).

Parameter names are those of transformers' ResNetForImageClassification, which opens the networks for
photographs.

He, Zhang, Ren & Sun 2016; Ioffe & Szegedy 2015 (batch norm).

Axes: B images, C channels, H height, W width, D maps of the last stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn.heads import classifier, embedding
from groundup.nn.images import check_images, mean_of_map
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import OURS, only, ours, required
from groundup.nn.shape import ImageSection
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "resnet"
MODEL_TYPES = ("resnet", "groundup_resnet")
ARCHITECTURES = {"image": "ResNetForImageClassification", "embedding": "ResNetModel"}
RENAMED = {"classifier.": "classifier.1."}
"""The published head is a list of two modules, the first without weights."""
TINY: dict[str, Any] = {"image_size": 40, "channels": 3, "depths": (1, 2), "widths": (8, 12), "stem_width": 6}
"""Sizes with which the contract tests build it."""
REDUCTION = 4
"""How many times narrower a block of three convolutions is inside."""


class Size(NamedTuple):
    """What the paper calls a network of so many layers."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["large", "small"] = "large"


PHOTO, WIDE, SMALL = (64, 128, 256, 512), (256, 512, 1024, 2048), (16, 32, 64)
SIZES = {
    18: Size((2, 2, 2, 2), PHOTO),
    34: Size((3, 4, 6, 3), PHOTO),
    50: Size((3, 4, 6, 3), WIDE, "bottleneck"),
    101: Size((3, 4, 23, 3), WIDE, "bottleneck"),
    152: Size((3, 8, 36, 3), WIDE, "bottleneck"),
    **{6 * n + 2: Size((n, n, n), SMALL, stem="small") for n in (3, 5, 7, 9)},
}
"""He et al. 2016, table 1 and §4.2."""


class Config(ImageSection):
    """A residual network. `dropout` is not used: batch norm regularises enough (He et al. 2016, §3.4)."""

    size: Literal[18, 20, 32, 34, 44, 50, 56, 101, 152] = 18
    """Layers of the network in the paper that it is; what follows may change it."""
    depths: tuple[PositiveCount, ...] = Field(default_factory=lambda values: SIZES[values["size"]].depths, min_length=1)
    """Blocks of each stage; by `size` if not given."""
    widths: tuple[PositiveCount, ...] = Field(default_factory=lambda values: SIZES[values["size"]].widths)
    """Maps of each stage; by `size` if not given."""
    block: Literal["basic", "bottleneck"] = Field(default_factory=lambda values: SIZES[values["size"]].block)
    """Two convolutions of 3x3, or one of 3x3 between two of 1x1 that make it narrower; by `size` if not given."""
    stem: Literal["large", "small"] = Field(default_factory=lambda values: SIZES[values["size"]].stem)
    """How it begins: 7x7 with a stride of 2 and a pool (large), or 3x3 (small, for images of some thirty pixels); by
    `size` if not given."""
    stem_width: PositiveCount = Field(default_factory=lambda values: 16 if values["stem"] == "small" else 64)
    """Maps of the first convolution; 64, or 16 for a small stem, if not given."""
    shortcut: Literal["projection", "padding"] = Field(
        default_factory=lambda values: "padding" if values["stem"] == "small" else "projection"
    )
    """How a block's input joins more maps than it has: by a convolution of 1x1, or by zeros for the new ones (options
    B and A of §3.3); padding for a small stem if not given."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"{len(self.depths)} stages by depths and {len(self.widths)} by widths: give one width a stage"
            )
        if self.block == "bottleneck" and any(width % REDUCTION for width in self.widths):
            raise ValueError(f"widths of blocks of kind bottleneck are multiples of {REDUCTION}")
        if self.dropout:
            raise ValueError("a residual network has no dropout: leave it out")
        if self.shortcut == "padding" and any(b < a for a, b in pairwise((self.stem_width, *self.widths))):
            raise ValueError("shortcuts by padding can only add maps: let widths rise, or set `shortcut: projection`")
        return self

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for an option that is not supported."""
        only(given, "model_type", MODEL_TYPES)
        only(given, "hidden_act", ("relu",), "relu")
        only(given, "downsample_in_first_stage", (False,), False)
        only(given, "downsample_in_bottleneck", (False,), False)
        options = {
            "channels": given.get("num_channels", 3),
            "stem_width": given.get("embedding_size", 64),
            "widths": tuple(required(given, "hidden_sizes")),
            "depths": tuple(required(given, "depths")),
            "block": only(given, "layer_type", ("basic", "bottleneck"), "bottleneck"),
            "image_size": (224, 224),
        }
        named = (size for size, of in SIZES.items() if (of.depths, of.block) == (options["depths"], options["block"]))
        return cls(**options | {"size": next(named, 18)} | ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head.

        A small stem, or shortcuts without weights, have no published class: model_type is then
        `groundup_resnet`, which transformers refuses by that name.
        """
        is_published = self.stem == "large" and self.shortcut == "projection"
        kept = ("image_size", "size", "stem", "shortcut", "initialiser", "initialiser_std")
        return {
            "architectures": [ARCHITECTURES[head]],
            "model_type": "resnet" if is_published else "groundup_resnet",
            "num_channels": self.image_shape[0],
            "embedding_size": self.stem_width,
            "hidden_sizes": list(self.widths),
            "depths": list(self.depths),
            "layer_type": self.block,
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
            OURS: {key: getattr(self, key) for key in kept},
        }


class Convolution(nn.Module):
    """A convolution that keeps the size (divided by its stride), batch norm, and ReLU unless a sum follows."""

    def __init__(self, inputs: int, outputs: int, window: int = 3, stride: int = 1, *, is_last: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, window, stride, padding=window // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)
        self.is_last = is_last

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        x_BCHW = self.normalization(self.convolution(x_BCHW))
        return x_BCHW if self.is_last else F.relu(x_BCHW)


class Padding(nn.Module):
    """Every second pixel of each row and column, and zeros for the maps that a block adds (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = outputs - inputs, stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        return F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class Block(nn.Module):
    """What convolutions make of the input, added to it."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: Config) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            by_zeros = config.shortcut == "padding"
            project = partial(Convolution, inputs, outputs, 1, stride, is_last=True)
            self.shortcut = Padding(inputs, outputs, stride) if by_zeros else project()
        self.layer = nn.Sequential(*_convolutions(inputs, outputs, stride, config.block))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        return F.relu(self.layer(x_BCHW) + self.shortcut(x_BCHW))


def _convolutions(inputs: int, outputs: int, stride: int, block: str) -> Iterator[Convolution]:
    if block == "basic":
        yield Convolution(inputs, outputs, 3, stride)
        yield Convolution(outputs, outputs, is_last=True)
        return
    narrow = outputs // REDUCTION
    yield Convolution(inputs, narrow, 1)
    yield Convolution(narrow, narrow, 3, stride)
    yield Convolution(narrow, outputs, 1, is_last=True)


class Stage(nn.Module):
    """Blocks of one width, the first of which may stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, depth: int, config: Config) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride, config)
        self.layers = nn.Sequential(first, *(Block(outputs, outputs, 1, config) for _ in range(depth - 1)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        found: Tensor = self.layers(x_BCHW)
        return found


class Stem(nn.Module):
    """The first convolution, and the pool after a large one, grouped as published."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        is_large = config.stem == "large"
        self.embedder = Convolution(config.image_shape[0], config.stem_width, *((7, 2) if is_large else (3, 1)))
        self.pooler = nn.MaxPool2d(3, 2, padding=1) if is_large else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,stem_width,H/4,W/4), or of full size from a small stem."""
        found: Tensor = self.pooler(self.embedder(x_BCHW))
        return found


class Encoder(nn.Module):
    """The stages, grouped as published: each but the first halves the map."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = zip(pairwise((config.stem_width, *config.widths)), config.depths, strict=True)
        self.stages = nn.ModuleList(
            Stage(inputs, outputs, 1 if i == 0 else 2, depth, config)
            for i, ((inputs, outputs), depth) in enumerate(sizes)
        )


class ResNet(KeepsActivations):
    """Images to the mean of their last map. Any size of image will do."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.width = config.image_shape[0], config.widths[-1]
        self.embedder = Stem(config)
        self.encoder = Encoder(config)

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `pixel_values` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "pixel_values"))
        return hidden_BD

    def maps(self, pixel_values_BCHW: Tensor) -> Tensor:
        """The last map of images, (B,D,H,W). Raises UserError for images with another number of channels."""
        check_images(pixel_values_BCHW, self.channels)
        x_BCHW: Tensor = self.embedder(pixel_values_BCHW)
        for stage in self.encoder.stages:
            x_BCHW = stage(x_BCHW)
        return x_BCHW

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) to (B,D)."""
        return mean_of_map(self.maps(pixel_values_BCHW))


def build(config: Config) -> ResNet:
    """The backbone, its weights not yet initialised."""
    return ResNet(config)


HEADS = {"image": classifier("image"), "embedding": embedding()}


class _Used(NamedTuple):
    """A convolution of the network, and how many pixels of its answer there are."""

    inputs: int
    outputs: int
    window: int
    places: int


def parameters(config: Config, outputs: int = 1000) -> int:
    """Number of trained parameters, the scores of `outputs` classes included; running means are none."""
    used = sum(c.inputs * c.outputs * c.window**2 + 2 * c.outputs for c in _used(config))
    return used + (config.widths[-1] + 1) * outputs


def flops_per_example(config: Config, outputs: int = 1000) -> float:
    """Floating-point operations of the forward pass of an image: products only, a multiply-add counts two."""
    products = sum(c.inputs * c.outputs * c.window**2 * c.places for c in _used(config))
    return 2.0 * (products + config.widths[-1] * outputs)


def _used(config: Config) -> Iterator[_Used]:
    """Every convolution, and the size of its map for images of the size that the config states."""
    channels, *sides = config.image_shape

    def halve(times: int = 1) -> int:
        for _ in range(times):
            sides[:] = [-(-side // 2) for side in sides]
        return sides[0] * sides[1]

    is_large = config.stem == "large"
    yield _Used(channels, config.stem_width, 7 if is_large else 3, halve(int(is_large)))
    halve(int(is_large))  # the pool
    inputs = config.stem_width
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            before = sides[0] * sides[1]
            places = halve(stride - 1)
            if config.shortcut == "projection" and (inputs != width or stride > 1):
                yield _Used(inputs, width, 1, places)
            if config.block == "basic":
                yield _Used(inputs, width, 3, places)
                yield _Used(width, width, 3, places)
            else:
                narrow = width // REDUCTION
                yield _Used(inputs, narrow, 1, before)
                yield _Used(narrow, narrow, 3, places)
                yield _Used(narrow, width, 1, places)
            inputs = width
