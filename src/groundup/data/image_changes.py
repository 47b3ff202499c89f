"""Training images that look different in every epoch: crops, flips, RandAugment, erased rectangles.

Every change is a function of a batch of images and of numbers from [0, 1), a fixed number of them for each
image. Who draws the numbers decides what may change the result: rows draw them from (seed, epoch, index), so
micro-batches, workers and resuming change nothing. Images keep their size and stay whole pixel values.

Where a change looks beyond the edge of an image, it finds black.

Axes: N images, C channels (1 grey, 3 colour), H height, W width, D numbers drawn for an image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from groundup.config import Section
from groundup.data import mixup, randaugment
from groundup.data.mixup import Mixing
from groundup.data.order import generator, mix
from groundup.units import PositiveCount, Share

if TYPE_CHECKING:  # it imports torch, which processes that only encode do without
    from groundup.data.packing import Int64s
    from groundup.data.vectors import Arrays, Vectors

Images = NDArray[np.uint8]
Draws = NDArray[np.float64]
Change = Callable[[Images, Draws], Images]
"""uint8 (N,C,H,W) and float64 (N,D) to uint8 (N,C,H,W)."""
PURPOSE = 10
"""The purpose of what is drawn here, so that nothing else draws the same numbers."""


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"{list(value)} is no range: write the smaller number first")
    return value


Positive = Annotated[float, Field(gt=0)]
Areas = Annotated[tuple[Annotated[Share, Field(gt=0)], Share], AfterValidator(_rising)]
Ratios = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]


class ResizedCrop(Section):
    """A rectangle anywhere in the image, stretched to the whole of it (Szegedy et al. 2015, §6)."""

    area: Areas = (0.08, 1.0)
    """The smallest and the largest share of the image that is kept."""
    ratio: Ratios = (3 / 4, 4 / 3)
    """The narrowest and the widest rectangle, as width over height relative to the image's own."""


class RandAugment(Section):
    """A few of fourteen operations, one after the other (Cubuk et al. 2020): see `data/randaugment.py`."""

    n_ops: PositiveCount = 2
    """Operations an image, each drawn from all; the same may come twice."""
    magnitude: Annotated[int, Field(ge=0, le=randaugment.STRONGEST)] = 9
    """How strong they are, from 0 (next to nothing) to 30."""


class Erase(Section):
    """A rectangle of random pixels in place of the image's own (Zhong et al. 2020)."""

    share: Share = 0.5
    """Share of the images that lose a rectangle."""
    area: Areas = (0.02, 0.4)
    """The smallest and the largest share of the image that is lost."""
    ratio: Ratios = (0.3, 1 / 0.3)
    """The narrowest and the widest rectangle, as width over height. Sides longer than the image's are cut to it."""


class ImageAugment(Section):
    """Changes to training images, drawn anew for each image in every epoch, in the order of these keys."""

    crop: PositiveCount | None = None
    """Move the image by up to so many pixels up or down and left or right, black coming in: what is known as
    padding it on every side and cropping it to its own size (He et al. 2016, §4.2)."""
    resized_crop: ResizedCrop | None = None
    """Keep a random rectangle, stretched to the whole image."""
    flip: Share = 0.0
    """Share of the images that are mirrored, left to right; 50% where left and right mean the same."""
    randaugment: RandAugment | None = None
    """Operations on colours and shape, drawn from fourteen."""
    erase: Erase | None = None
    """Replace a rectangle by random pixels."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not Changes(self).steps:
            raise ValueError("nothing is left to change images by: give `crop`, `flip`, `randaugment`, …")
        return self


class Step(NamedTuple):
    """One change, and how many numbers it needs for an image."""

    draws: int
    change: Change


class Changes:
    """All changes of a section, in its order, as one. Can be sent to other processes."""

    def __init__(self, section: ImageAugment) -> None:
        self.steps: list[Step] = []
        if section.crop is not None:
            self.steps.append(Step(2, partial(shifted, most=section.crop)))
        if (zoom := section.resized_crop) is not None:
            self.steps.append(Step(4, partial(zoomed, area=zoom.area, ratio=zoom.ratio)))
        if section.flip:
            self.steps.append(Step(1, partial(flipped, share=section.flip)))
        if (random := section.randaugment) is not None:
            changed = partial(randaugment.randaugment, n_ops=random.n_ops, magnitude=random.magnitude)
            self.steps.append(Step(2 * random.n_ops, changed))
        if (hole := section.erase) is not None:
            self.steps.append(Step(6, partial(erased, share=hole.share, area=hole.area, ratio=hole.ratio)))

    @property
    def draws(self) -> int:
        """Numbers needed for an image."""
        return sum(step.draws for step in self.steps)

    def __call__(self, images_NCHW: Images, draws_ND: Draws) -> Images:
        """The images after every change; those given stay as they are."""
        start = 0
        for draws, change in self.steps:
            images_NCHW = change(images_NCHW, draws_ND[:, start : start + draws])
            start += draws
        return images_NCHW


def shifted(images_NCHW: Images, draws_ND: Draws, *, most: int) -> Images:
    """Each image moved by up to `most` whole pixels down and right or up and left; two draws: vertical, horizontal."""
    number, _, height, width = images_NCHW.shape
    sides = ((0, 0), (0, 0), (most, most), (most, most))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(images_NCHW, sides), (height, width), axis=(2, 3))
    top, left = (draws_ND * (2 * most + 1)).astype(np.int64).T
    return np.ascontiguousarray(windows[np.arange(number), :, top, left])


def flipped(images_NCHW: Images, draws_ND: Draws, *, share: float) -> Images:
    """A share of the images mirrored, left to right; one draw."""
    chosen = draws_ND[:, 0] < share
    return np.where(chosen[:, None, None, None], images_NCHW[..., ::-1], images_NCHW)


def zoomed(images_NCHW: Images, draws_ND: Draws, *, area: tuple[float, float], ratio: tuple[float, float]) -> Images:
    """Of each image a rectangle, stretched to its size with linear interpolation; four draws.

    A rectangle that would be longer than the image is cut to it, where Szegedy et al. draw again.
    """
    height, width = images_NCHW.shape[2:]
    tall_N, wide_N = _sides(draws_ND, area, ratio)
    rows = _between(draws_ND[:, 2], tall_N, height)
    columns = _between(draws_ND[:, 3], wide_N, width)
    stretched = _interpolated(_interpolated(images_NCHW.astype(np.float32), rows, axis=2), columns, axis=3)
    return np.rint(stretched).astype(np.uint8)


def _sides(draws_ND: Draws, area: tuple[float, float], ratio: tuple[float, float]) -> tuple[Draws, Draws]:
    """Height and width of random rectangles, (N,) each, as shares of the image's, at most 1; two draws.

    The area is drawn evenly, width over height evenly by its logarithm.
    """
    root_N = np.sqrt(area[0] + draws_ND[:, 0] * (area[1] - area[0]))
    low, high = np.log(ratio)
    stretch_N = np.exp((low + draws_ND[:, 1] * (high - low)) / 2)
    return np.minimum(root_N / stretch_N, 1), np.minimum(root_N * stretch_N, 1)


def _between(draw_N: Draws, share_N: Draws, size: int) -> Draws:
    """Where in an axis the `size` pixels of a new one lie, (N,size): within a random part of it."""
    start_N1 = draw_N[:, None] * (1 - share_N[:, None]) * size
    centres = (np.arange(size) + 0.5) * share_N[:, None]
    return np.asarray(np.clip(start_N1 + centres - 0.5, 0, size - 1))


def _interpolated(images_NCHW: NDArray[np.float32], places: Draws, axis: int) -> NDArray[np.float32]:
    """Images at other places of an axis, (N,size), each between its two neighbours."""
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, images_NCHW.shape[axis] - 1)
    shape = (len(places), 1, -1, 1) if axis == 2 else (len(places), 1, 1, -1)
    share = (places - below).astype(np.float32).reshape(shape)
    first, second = (np.take_along_axis(images_NCHW, where.reshape(shape), axis) for where in (below, above))
    return np.asarray(first + (second - first) * share)


def erased(
    images_NCHW: Images, draws_ND: Draws, *, share: float, area: tuple[float, float], ratio: tuple[float, float]
) -> Images:
    """A share of the images with a rectangle of random pixels; six draws: whether, size, place and pixels.

    A rectangle that would be longer than the image is cut to it, where Zhong et al. draw again.
    """
    chosen = np.flatnonzero(draws_ND[:, 0] < share)
    changed = images_NCHW.copy()
    tall_N, wide_N = _sides(draws_ND[:, 1:3], area, ratio)
    for place in chosen.tolist():
        image_CHW, drawn = changed[place], draws_ND[place]
        rows = _span(drawn[3], tall_N[place], image_CHW.shape[1])
        columns = _span(drawn[4], wide_N[place], image_CHW.shape[2])
        hole = image_CHW[:, rows, columns]
        hole[...] = _noise(drawn[5], hole.size).reshape(hole.shape)
    return changed


def _span(draw: float, share: float, size: int) -> slice:
    """A random part of an axis in whole pixels, at least one."""
    length = max(1, round(share * size))
    start = int(draw * (size - length + 1))
    return slice(start, start + length)


def _noise(draw: float, size: int) -> Images:
    """Random pixel values that one number decides: a counter, hashed (`data/order.py`)."""
    start = np.uint64(draw * 2**53)
    return (mix(mix(np.full(size, start)) ^ np.arange(size, dtype=np.uint64)) >> np.uint64(56)).astype(np.uint8)


class Trained:
    """What training makes of the images of a split, for `data/vectors.py`: changed, then mixed with others.

    An image and its partner are each changed as they are in their epoch. Rows without a label are mixed with none,
    and none with them.
    """

    def __init__(self, changes: ImageAugment | None, mixing: Mixing | None, seed: int) -> None:
        self.changes = Changes(changes) if changes is not None else None
        self.mixing, self.seed = mixing, seed

    def __call__(self, rows: Vectors, arrays: Arrays, indices: Int64s, epochs: Int64s) -> Arrays:
        """The arrays with other `pixel_values`; where mixing is wanted also `other_label` and `share`, float32."""
        images = self._changed(arrays["pixel_values"], indices, epochs)
        if self.mixing is None:
            return arrays | {"pixel_values": images}
        places = zip(epochs.tolist(), indices.tolist(), strict=True)
        size = images.shape[2], images.shape[3]
        drawn = [mixup.draw(self.mixing, (self.seed, epoch, index), len(rows), size) for epoch, index in places]
        drawn = [
            one if rows.trains[index] and rows.trains[one.partner] else mixup.Drawn(int(index), 1.0, None)
            for index, one in zip(indices, drawn, strict=True)
        ]
        partners = np.array([one.partner for one in drawn], np.int64)
        others = rows.plain(partners)
        found = mixup.mixed(images, self._changed(others["pixel_values"], partners, epochs), drawn)
        share = np.array([one.share for one in drawn], np.float32)
        return arrays | {"pixel_values": found, "other_label": others[rows.labels], "share": share}

    def _changed(self, images_NCHW: Images, indices: Int64s, epochs: Int64s) -> Images:
        if self.changes is None:
            return images_NCHW
        places = zip(epochs.tolist(), indices.tolist(), strict=True)
        count = self.changes.draws
        draws = [generator(self.seed, epoch, index, PURPOSE).random(count) for epoch, index in places]
        return self.changes(images_NCHW, np.stack(draws))
