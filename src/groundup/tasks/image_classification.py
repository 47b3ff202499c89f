"""Say which class an image belongs to: one of several, any of several, or predict a number from it.

Images are decoded by one function wherever they come from (`data/images.py`), have one size and one number of
channels, and are kept as whole pixel values; each channel is shifted and scaled by the mean and the deviation of
the training images when a batch is made. Training images may be changed and mixed anew in every epoch
(`data/image_changes.py`, `data/mixup.py`), held-out ones never are.

Batch: `pixel_values`, (E,C,H,W) float32, and `label` as in `_labels.py`, with `other_label` and `share` where
images were mixed.

Axes: E examples, C channels (1 grey, 3 colour), H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rich.markup import escape

from groundup.config import Section
from groundup.data.image_changes import ImageAugment
from groundup.data.image_input import pixels_of
from groundup.data.images import BadImage, Fit, Framing, Pixels, to_png
from groundup.data.mixup import Mixing
from groundup.data.packing import Columns, Row
from groundup.errors import DataError, nearest
from groundup.nn.shape import ImageSize
from groundup.tasks import _labels
from groundup.tasks._labels import LabelSection, LabelTask
from groundup.units import Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.data.vectors import Vectors
    from groundup.nn.network import Network

VERSION = 1
METRICS = _labels.METRICS

MEASURED = 100_000_000
"""Pixels up to which all training images are measured; of those that follow, one of STRIDE."""
STRIDE = 16
VECTOR = 1024
"""The most numbers of an image that a classical rival reads."""
SHADES = " ░▒▓█"
"""From black to white, where an image is shown in a terminal."""
SHOWN_WIDTH = 32
"""Characters of a line of such an image."""

Alpha = Annotated[float, Field(gt=0)]


class Normalise(Section):
    """What each channel is shifted and scaled by: (pixel - mean) / deviation, with pixels from 0 to 1."""

    means: tuple[float, ...]
    """The mean of each channel; `[0]` leaves it where it is."""
    deviations: tuple[Annotated[float, Field(gt=0)], ...]
    """The standard deviation of each channel; `[1]` leaves it as it is."""


class Config(LabelSection):
    """The class of an image."""

    image: str = "image"
    """The column of the image."""
    image_size: ImageSize | None = None
    """Height and width in pixels, or one number for both; that of the first training image unless given. Images of
    another size are brought to it, in training as in serving."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; as the first training image unless given. Others are converted."""
    fit: Fit = "crop"
    """How an image of other proportions is brought to the size: `crop` cuts the ends of its longer side, `pad` puts
    black beside its shorter one, `stretch` scales both. The same as in the source, where that names one."""
    normalise: Normalise | None = None
    """Means and deviations of the channels; measured on the training images unless given. Pretrained weights want
    those that they were trained with."""
    augment: ImageAugment | None = None
    """Changes to training images, drawn anew for each image in every epoch."""
    mixup: Alpha | None = None
    """Lay another training image over each, labels with it, by a share from Beta(alpha, alpha); 0.2 to 1 is usual."""
    cutmix: Alpha | None = None
    """Put a rectangle of another training image into each, labels with it, by a share from Beta(alpha, alpha); 1 is
    usual. With `mixup` too, each row gets one of the two, either as often as the other."""
    mix_share: Share = 1.0
    """Share of the training rows that are mixed at all, with `mixup` or `cutmix`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.mix_share != 1 and not self.is_mixed:
            raise ValueError("`mix_share` says how many rows are mixed: give `mixup` or `cutmix` too")
        lengths = (
            {len(values) for values in (self.normalise.means, self.normalise.deviations)} if self.normalise else {1}
        )
        if len(lengths) > 1 or (lengths != {1} and self.channels not in (None, *lengths)):
            raise ValueError("`normalise` has one mean and one deviation a channel, or one for all")
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether training rows are mixed with others."""
        return self.mixup is not None or self.cutmix is not None

    @property
    def framing(self) -> Framing:
        """The form that images are brought to."""
        return Framing(size=self.image_size, channels=self.channels, fit=self.fit)


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: labels, the size of images, means and deviations.

    Raises DataError, naming the row, for one without an image, and what is said of labels in `_labels.py`.
    """
    survey = _Survey(config)
    return survey.settled(_labels.settle(config, survey.passing(examples)))


class _Survey:
    """What the pixels of training images come to, measured as they pass by.

    Of a large corpus not every image is looked at: one of STRIDE then stands for so many.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pixels, self.sums, self.squares = 0.0, np.zeros(1), np.zeros(1)

    def passing(self, examples: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The same examples."""
        for place, example in enumerate(examples):
            weight = 1 if self.pixels < MEASURED else STRIDE * (place % STRIDE == 0)
            if place == 0 or (weight and self.config.normalise is None):
                self._measure(_pixels(self.config, example), weight)
            yield example

    def _measure(self, pixels: Pixels, weight: int) -> None:
        if self.config.image_size is None or self.config.channels is None:
            found = {"image_size": pixels.shape[:2], "channels": pixels.shape[2]}
            given = {name: getattr(self.config, name) or value for name, value in found.items()}
            self.config = self.config.model_copy(update=given)
        values = pixels.reshape(-1, pixels.shape[2]) / 255
        self.pixels += weight * len(values)
        self.sums = self.sums + weight * values.sum(0)
        self.squares = self.squares + weight * np.square(values).sum(0)

    def settled(self, config: Config) -> Config:
        """A section whose labels are settled, with the rest settled too."""
        found: dict[str, Any] = {"image_size": self.config.image_size, "channels": self.config.channels}
        if config.normalise is None and self.pixels:
            means = self.sums / self.pixels
            deviations = np.sqrt(np.maximum(self.squares / self.pixels - means**2, 0))
            rounded = [[round(float(value), 6) for value in values] for values in (means, deviations)]
            # A channel that is the same everywhere says nothing, and is divided by one.
            spread = tuple(value or 1.0 for value in rounded[1])
            found["normalise"] = Normalise(means=tuple(rounded[0]), deviations=spread)
        elif config.normalise is not None and len(config.normalise.means) not in (1, found["channels"]):
            what = f"{len(config.normalise.means)} means of channels, and the images have {found['channels']} channels"
            raise DataError(what, fix="give task.normalise one mean and one deviation a channel, or set task.channels")
        return config.model_copy(update=found)


def _pixels(config: Config, example: Mapping[str, Any]) -> Pixels:
    """The pixels of an example in the form that the section asks for. Raises DataError, naming the row."""
    where = str(example.get("source", ""))
    if config.image not in example:
        fix = f"{nearest(config.image, example)}; a source of kind images, idx or webdataset gives one"
        raise DataError(f"no column {config.image!r}", where=where, fix=fix)
    try:
        return pixels_of(example[config.image], config.framing)
    except BadImage as error:
        raise DataError(error.what, where=where, fix=error.fix or "repair the image, or leave out the row") from error


class Task(LabelTask):
    """Classes of images of one size. Can be sent to other processes."""

    LOOKS_AT = "image"
    head = "image"

    def __init__(self, config: Config, tokenizer: Any = None, context: int = 1) -> None:
        """`config` is settled. `tokenizer` and `context` are of no account: an image is one place."""
        super().__init__(config)
        self.tokenizer, self.context = tokenizer, context
        assert config.image_size is not None and config.channels is not None, "a section is settled before it is used"
        self.shape = (int(config.channels), *config.image_size)

    @property
    def known(self) -> dict[str, Any]:
        """The sizes of a model that follow from the images."""
        channels, *size = self.shape
        return {"image_size": tuple(size), "channels": channels, "n_features": prod(self.shape)}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on: the key of encoded shards."""
        c = self.config
        image = {"image": c.image, "shape": list(self.shape), "fit": c.fit}
        return {"task": c.name, "version": VERSION, **image, **self.label_encoding}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        normalise = self.config.normalise
        return {**super().choices, "image": list(self.shape), "normalise": normalise and normalise.model_dump()}

    def encode(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """`pixel_values`, uint8, channel by channel and row by row, and `label` (one number, or one for each class).

        Raises DataError, naming the row, for what is no image and for an unknown label.
        """
        pixels = np.ascontiguousarray(self.pixels(example).transpose(2, 0, 1))
        return {"pixel_values": pixels.reshape(-1), "label": self.target(example)}

    def pixels(self, example: Mapping[str, Any]) -> Pixels:
        """The pixels that the model sees of an example, (H,W,C) uint8. Raises DataError, naming the row."""
        return _pixels(self.config, example)

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Vectors:
        """The examples of a split, one row each: in training changed and mixed as (seed, epoch, index) decide."""
        from groundup.data.image_changes import Trained
        from groundup.data.vectors import Vectors

        c = self.config
        shapes: dict[str, tuple[int, ...]] = {"pixel_values": self.shape}
        if self.kind == "several":
            shapes["label"] = (len(self.labels),)
        mixing = Mixing(c.mixup, c.cutmix, c.mix_share) if c.is_mixed else None
        is_changed = not held_out and (c.augment is not None or mixing is not None)
        return Vectors(
            shards,
            shapes=shapes,
            values=() if self.kind == "several" else ("label",),
            labels="label",
            tensors=self.tensors,
            change=Trained(c.augment, mixing, seed) if is_changed else None,
        )

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        return self.tensors({key: np.stack([row[key] for row in rows]) for key in rows[0]})

    def tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A batch of stacked arrays: images shifted and scaled, labels as the losses take them."""
        import torch

        found = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        means_C, deviations_C = self._moments
        scale_C11 = torch.from_numpy(1 / (255 * deviations_C)).float()[:, None, None]
        shift_C11 = torch.from_numpy(-means_C / deviations_C).float()[:, None, None]
        found["pixel_values"] = found["pixel_values"].float().mul_(scale_C11).add_(shift_C11)
        for key in found.keys() & {"label", "other_label"}:
            found[key] = found[key].float() if self.kind == "number" else found[key].long()
        return found

    @property
    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of each channel, (C,) each."""
        given = self.config.normalise or Normalise(means=(0.0,), deviations=(1.0,))
        return np.resize(given.means, self.shape[0]), np.resize(given.deviations, self.shape[0])

    def vector(self, example: Mapping[str, Any]) -> NDArray[np.float32]:
        """The image as classical rivals read it: pixels from 0 to 1, row by row, at most VECTOR numbers.

        Larger images are shrunk by the mean of squares of pixels.
        """
        pixels = self.pixels(example).astype(np.float32) / 255
        side = 1
        while prod(-(-length // side) for length in pixels.shape[:2]) * pixels.shape[2] > VECTOR:
            side += 1
        for axis in (0, 1):
            starts = np.arange(0, pixels.shape[axis], side)
            counts = np.diff(np.append(starts, pixels.shape[axis]))
            pixels = np.add.reduceat(pixels, starts, axis) / counts.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        return pixels.astype(np.float32).reshape(-1)

    def picture(self, example: Mapping[str, Any]) -> bytes:
        """The image as the model sees it, a PNG file."""
        return to_png(self.pixels(example))

    def shown(self, example: Mapping[str, Any]) -> str:
        """Where the image is from; a report shows the image itself beside it."""
        return str(example.get("source") or "an image")

    @property
    def column(self) -> str:
        """What a row that is no mapping stands for."""
        return str(self.config.image)

    def local(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a user of this machine, whose images may be named by their paths."""
        given = example.get(self.config.image)
        is_path = (
            isinstance(given, str) and not given.startswith("data:") and len(given) < 4096 and Path(given).is_file()
        )
        return dict(example) | ({self.config.image: Path(given)} if is_path else {})  # type: ignore[arg-type]

    def save(self, folder: Path, network: Network) -> None:
        """Write preprocessor_config.json, by which transformers prepares images for the model."""
        _, height, width = self.shape
        means_C, deviations_C = self._moments
        described = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": means_C.tolist(),
            "image_std": deviations_C.tolist(),
        }
        text = json.dumps(described, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def render(self, row: Row) -> str:
        """The image in shades of characters, followed by its label, as rich markup."""
        grey = np.asarray(row["pixel_values"]).mean(0)
        side = max(1, -(-grey.shape[1] // SHOWN_WIDTH))
        # A character is about twice as high as it is wide.
        tall, wide = max(1, grey.shape[0] // (2 * side)), max(1, grey.shape[1] // side)
        lines = [part.mean(0) for part in np.array_split(grey, tall)]
        shades = [[part.mean() for part in np.array_split(line, wide)] for line in lines]
        drawn = "\n".join("".join(SHADES[int(value * len(SHADES) / 256)] for value in line) for line in shades)
        return f"{drawn}\n[cyan]label: {escape(self.label_shown(row['label']))}[/]"
