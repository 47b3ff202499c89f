"""Two training images in one: mixup lays them over each other, cutmix puts a piece of one into the other.

Zhang et al. 2018 (mixup) and Yun et al. 2019 (CutMix). An image keeps a share of its label, and its partner's
label has the rest. The partner is any image of the split, drawn for each row from (seed, epoch, index), where
the papers shuffle a batch: so neither how a batch is cut nor who makes it can change what comes of it.

Axes: N images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from groundup.data.order import generator

Images = NDArray[np.uint8]
PURPOSE = 13
"""The purpose of what is drawn here, so that nothing else draws the same numbers."""


class Mixing(NamedTuple):
    """How much is mixed, and how: at least one of the two strengths is given."""

    mixup: float | None
    """The alpha of mixup: shares are drawn from Beta(alpha, alpha)."""
    cutmix: float | None
    """The alpha of cutmix; with both, either is drawn as often as the other."""
    share: float = 1.0
    """Share of the rows that are mixed."""


class Drawn(NamedTuple):
    """What is drawn for a row."""

    partner: int
    """The other row; the row itself where nothing is mixed."""
    share: float
    """How much of the row's own image and label is kept."""
    box: tuple[int, int, int, int] | None
    """Top, bottom, left and right of what the partner's image covers; None where it shines through everywhere."""


def draw(how: Mixing, place: tuple[int, int, int], rows: int, size: tuple[int, int]) -> Drawn:
    """What becomes of the row at (seed, epoch, index) of a split of so many rows and images of a height and width."""
    chance = generator(*place, PURPOSE)
    partner, (whether, which, y, x) = int(chance.integers(rows)), chance.random(4)
    if whether >= how.share:
        return Drawn(place[2], 1.0, None)
    if how.cutmix is None or (how.mixup is not None and which < 0.5):
        assert how.mixup is not None, "one of the two is given"
        return Drawn(partner, float(chance.beta(how.mixup, how.mixup)), None)
    box = _box(float(chance.beta(how.cutmix, how.cutmix)), y, x, size)
    top, bottom, left, right = box
    return Drawn(partner, 1 - (bottom - top) * (right - left) / (size[0] * size[1]), box)


def _box(share: float, y: float, x: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A rectangle of the image's shape, 1 - share of its area, around (y, x); what lies outside is cut off."""
    height, width = size
    tall, wide = (round(side * (1 - share) ** 0.5) for side in size)
    top, left = int(y * height) - tall // 2, int(x * width) - wide // 2
    return max(0, top), min(height, top + tall), max(0, left), min(width, left + wide)


def mixed(images_NCHW: Images, partners_NCHW: Images, drawn: Sequence[Drawn]) -> Images:
    """Each image with its partner, as drawn; rounded to whole pixel values."""
    found = images_NCHW.copy()
    over = np.array([i for i, one in enumerate(drawn) if one.box is None and one.share < 1], np.int64)
    if len(over):
        share = np.array([drawn[i].share for i in over], np.float32)[:, None, None, None]
        own, other = (images[over].astype(np.float32) for images in (images_NCHW, partners_NCHW))
        found[over] = np.rint(other + share * (own - other)).astype(np.uint8)
    for place, one in enumerate(drawn):
        if one.box is not None:
            top, bottom, left, right = one.box
            found[place, :, top:bottom, left:right] = partners_NCHW[place, :, top:bottom, left:right]
    return found
