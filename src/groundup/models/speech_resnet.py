"""Residual network for spoken words: convolutions over log-mel frames, small enough for a device that only listens.

`size` names the networks of the paper. res8 averages squares of 4 frames x 3 bands after its first convolution and
has three residual blocks; res15 keeps every frame and widens its view by dilation, to 125 frames and bands; res26
has twelve blocks over squares of 2x2. A block is two convolutions of 3x3, each followed by ReLU and batch norm
without weights, and adds what stood before it. Their mean over all places goes to the classes. With `width: 19`
they are the paper's narrow ones.

Departure: the paper reads 40 cosine coefficients of the frames (MFCC), here the frames themselves.

Tang & Lin 2018, "Deep residual learning for small-footprint keyword spotting", table 1 to 3; order of ReLU, sum
and norm as in their published code.

Axes: B recordings, T frames, M bands (both fewer after the pool), D maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.nn.dropout import dropout
from groundup.nn.heads import classifier, embedding
from groundup.nn.images import mean_of_map
from groundup.nn.network import KeepsActivations, given
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import NetworkSection
from groundup.units import PositiveCount

VERSION = 1
PREFIX = "speech_resnet"
MODEL_TYPES = ("groundup_speech_resnet",)
TINY: dict[str, Any] = {"frames": 21, "bands": 12, "n_layers": 3, "width": 6}
"""Sizes with which the contract tests build it."""
WINDOW = 3
"""Height and width of every convolution."""


class Size(NamedTuple):
    """What the paper calls a network of so many layers."""

    n_layers: int
    pool: tuple[int, int] = (1, 1)
    dilated: bool = False


SIZES = {8: Size(6, (4, 3)), 15: Size(13, dilated=True), 26: Size(24, (2, 2))}
"""Tang & Lin 2018, tables 1 to 3: res8, res15 and res26."""


class Config(NetworkSection):
    """A residual network over log-mel frames. `dropout` acts before the classes; the paper has none."""

    frames: PositiveCount | None = None
    """Frames of a recording; follows from the data if not given."""
    bands: PositiveCount | None = None
    """Bands of a frame; follows from the data if not given."""
    size: Literal[8, 15, 26] = 8
    """Layers of the network in the paper that it is; what follows may change it."""
    width: PositiveCount = 45
    """Maps of every convolution; 19 in the paper's narrow networks."""
    n_layers: PositiveCount = Field(default_factory=lambda values: SIZES[values["size"]].n_layers)
    """Convolutions after the first one; by `size` if not given."""
    pool: tuple[PositiveCount, PositiveCount] = Field(default_factory=lambda values: SIZES[values["size"]].pool)
    """Frames and bands of the squares that are averaged after the first convolution; by `size` if not given."""
    dilated: bool = Field(default_factory=lambda values: SIZES[values["size"]].dilated)
    """Whether windows are pulled apart, twice as far after every three layers; by `size` if not given."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.frames is not None and self.bands is not None and min(self.map) < 1:
            raise ValueError(f"{self.frames} frames of {self.bands} bands are fewer than the pool of {list(self.pool)}")
        return self

    @property
    def context(self) -> int:
        """The longest input in positions: a recording is one."""
        return 1

    @property
    def shape(self) -> tuple[int, int]:
        """Frames of a recording, and bands of a frame. Raises UserError while they are not known."""
        if self.frames is None or self.bands is None:
            what = f"the model {self.name!r} does not know how many frames and bands a recording has"
            raise UserError(what, fix="give `frames` and `bands`, or take them from the data")
        return self.frames, self.bands

    @property
    def map(self) -> tuple[int, int]:
        """Frames and bands after the pool."""
        return self.shape[0] // self.pool[0], self.shape[1] // self.pool[1]

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head)


class SpeechResNet(KeepsActivations):
    """Log-mel frames to the mean of the last map."""

    causal = False
    context = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape, self.pool = config.shape, config.pool
        self.width, self.dropout = config.width, config.dropout
        self.first = nn.Conv2d(1, config.width, WINDOW, padding=1, bias=False)
        apart = [2 ** (layer // 3) if config.dilated else 1 for layer in range(config.n_layers)]
        self.layers = nn.ModuleList(
            nn.Conv2d(config.width, config.width, WINDOW, padding=each, dilation=each, bias=False) for each in apart
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(config.width, affine=False) for _ in self.layers)

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `features` of a batch, (B,D)."""
        hidden_BD: Tensor = self(given(batch, "features"))
        return hidden_BD

    def forward(self, frames_BTM: Tensor) -> Tensor:
        """(B,T,M) to (B,D)."""
        return dropout(mean_of_map(self.maps(frames_BTM)), self.dropout, self.training)

    def maps(self, frames_BTM: Tensor) -> Tensor:
        """The last map of frames, (B,D,T,M): what was heard, when, and how high. Raises UserError for other sizes."""
        if tuple(frames_BTM.shape[1:]) != self.shape:
            what = f"an example has {list(frames_BTM.shape[1:])} numbers, and the model reads {list(self.shape)}: "
            what += "frames, and bands of each"
            raise UserError(what, fix="give recordings of the length that the model was made for")
        x_BDTM = F.relu(self.first(frames_BTM[:, None]))
        if self.pool != (1, 1):
            x_BDTM = F.avg_pool2d(x_BDTM, self.pool)
        before_BDTM = x_BDTM
        for place, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), 1):
            x_BDTM = F.relu(layer(x_BDTM))
            if place % 2 == 0:
                x_BDTM = before_BDTM = x_BDTM + before_BDTM
            x_BDTM = norm(x_BDTM)
        return x_BDTM


def build(config: Config) -> SpeechResNet:
    """The backbone, its weights not yet initialised."""
    return SpeechResNet(config)


HEADS = {"features": classifier("features"), "embedding": embedding()}
ARCHITECTURES = own_architectures("speech_resnet", list(HEADS))


def parameters(config: Config, outputs: int = 10) -> int:
    """Number of trained parameters, the scores of `outputs` classes included."""
    convolutions = (config.width + config.n_layers * config.width**2) * WINDOW**2
    return convolutions + config.width * outputs + outputs


def flops_per_example(config: Config, outputs: int = 10) -> float:
    """Floating-point operations of the forward pass of a recording: products only, a multiply-add counts two."""
    (frames, bands), (rows, columns) = config.shape, config.map
    first = frames * bands * config.width * WINDOW**2
    others = rows * columns * config.n_layers * config.width**2 * WINDOW**2
    return 2.0 * (first + others + config.width * outputs)
