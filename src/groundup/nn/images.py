"""What networks of images have in common: what they may be given, and how a map becomes a vector.

Axes: B images, C channels, H height, W width, D width of a hidden state.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from groundup.errors import UserError


def check_images(pixel_values_BCHW: Tensor, channels: int, size: tuple[int, int] | None = None) -> None:
    """Raise UserError for images of another number of channels, or of another size where only one will do."""
    if pixel_values_BCHW.dim() != 4:
        what = f"images have the axes (images, channels, height, width), found {tuple(pixel_values_BCHW.shape)}"
        raise UserError(what, fix="give a batch of decoded images as numbers")
    _, found, *found_size = pixel_values_BCHW.shape
    if found != channels:
        what = f"the images have {found} channels, and the model reads {channels}"
        raise UserError(what, fix="convert the images in the task (grey: 1, colour: 3), or set the model's channels")
    if size is not None and tuple(found_size) != tuple(size):
        shown, wanted = (f"{height} x {width}" for height, width in (found_size, size))
        what = f"the images are {shown} pixels, and the model was made for {wanted}"
        raise UserError(what, fix=f"resize or crop them to {wanted} in the task")


def after(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """The length of an axis after a convolution or pooling. Raises ValueError where nothing would be left."""
    left = (size + 2 * padding - kernel) // stride + 1
    if left < 1:
        raise ValueError(f"an axis of {size} pixels is too short for a window of {kernel}")
    return left


def mean_of_map(map_BDHW: Tensor) -> Tensor:
    """The mean over all places of a map, (B,D): global average pooling (Lin et al. 2014, §3.2)."""
    return map_BDHW.mean((2, 3))


def pad_same(pixel_values_BCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """Images with zeros around them, so that a window gives ceil(size / stride) places in each axis.

    As TensorFlow pads for `SAME`: what cannot be shared evenly goes to the right and the bottom.
    """
    width, height = (_same(pixel_values_BCHW.shape[axis], kernel, stride) for axis in (3, 2))
    return F.pad(pixel_values_BCHW, (width // 2, width - width // 2, height // 2, height - height // 2))


def _same(size: int, kernel: int, stride: int) -> int:
    return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
