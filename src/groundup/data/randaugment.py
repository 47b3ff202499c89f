"""RandAugment: a few of fourteen operations on an image, one after the other, all of one strength.

Cubuk et al. 2020. The operations and how far they go are those of AutoAugment (Cubuk et al. 2019, table 6); a
magnitude of 0 changes next to nothing, 30 all there is. Two numbers are drawn for each operation: which one,
and, where it has two directions (left or right, brighter or darker), which way. Rotations, shears and moves
keep the middle of the image where it is and take the nearest pixel; what comes from outside is black.

All work on a batch at once.

Axes: N images, C channels, H height, W width, D numbers drawn for an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]
Operation = Callable[[Images, float, Floats], Images]
"""uint8 (N,C,H,W), a strength from 0 to 1, and directions (N,), each -1 or 1, to uint8 (N,C,H,W)."""

STRONGEST = 30
"""The largest magnitude."""
LUMA = (19595, 38470, 7471)
"""What red, green and blue weigh in a grey image, in 65,536ths: ITU-R BT.601."""


def randaugment(images_NCHW: Images, draws_ND: Floats, *, n_ops: int, magnitude: int) -> Images:
    """Each image after `n_ops` operations; two draws for each."""
    names = list(OPERATIONS)
    changed = images_NCHW.copy()
    for which_N, way_N in zip(draws_ND[:, 0 : 2 * n_ops : 2].T, draws_ND[:, 1 : 2 * n_ops : 2].T, strict=True):
        drawn_N = (which_N * len(names)).astype(np.int64)
        signs_N = np.where(way_N < 0.5, -1.0, 1.0)
        for number in np.unique(drawn_N):
            chosen = drawn_N == number
            operation = OPERATIONS[names[int(number)]]
            changed[chosen] = operation(changed[chosen], magnitude / STRONGEST, signs_N[chosen])
    return changed


def identity(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """The images themselves."""
    return images_NCHW


def auto_contrast(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Each channel stretched until its darkest pixel is 0 and its brightest 255."""
    low = images_NCHW.min((2, 3), keepdims=True).astype(np.float64)
    span = images_NCHW.max((2, 3), keepdims=True) - low
    scale = 255.0 / np.where(span, span, 1)
    return np.where(span > 0, _whole(images_NCHW * scale - low * scale), images_NCHW)


def equalize(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Each channel with its values spread so that all are about equally common."""
    number, channels, height, width = images_NCHW.shape
    flat_MP = images_NCHW.reshape(number * channels, height * width)
    rows_M1 = np.arange(len(flat_MP))[:, None]
    counts_MV = np.bincount((rows_M1 * 256 + flat_MP).ravel(), minlength=256 * len(flat_MP)).reshape(-1, 256)
    brightest_M = 255 - (counts_MV[:, ::-1] > 0).argmax(1)
    step_M1 = (height * width - counts_MV[rows_M1[:, 0], brightest_M][:, None]) // 255
    before_MV = np.cumsum(counts_MV, 1) - counts_MV
    table_MV = np.minimum((step_M1 // 2 + before_MV) // np.maximum(step_M1, 1), 255)
    table_MV = np.where(step_M1 > 0, table_MV, np.arange(256)).astype(np.uint8)
    return table_MV[rows_M1, flat_MP].reshape(images_NCHW.shape)


def solarize(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Pixels as bright as a threshold or brighter turned into their opposite; at full strength all of them."""
    return np.where(images_NCHW >= 256 * (1 - strength), 255 - images_NCHW, images_NCHW)


def posterize(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Fewer shades: 8 bits a value at no strength, 4 at full strength."""
    lost = np.uint8(round(4 * strength))
    return images_NCHW >> lost << lost


def color(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Paler or stronger colours."""
    return _blend(_grey(images_NCHW), images_NCHW, strength, signs_N)


def contrast(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Nearer to the image's mean grey, or further from it."""
    mean = np.floor(_grey(images_NCHW).mean((1, 2, 3), keepdims=True) + 0.5)
    return _blend(mean, images_NCHW, strength, signs_N)


def brightness(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Darker or brighter."""
    return _blend(np.zeros(1), images_NCHW, strength, signs_N)


def sharpness(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Softer or sharper: towards the image smoothed by a 3 x 3 window, or away from it. The edge stays as it is."""
    smooth = images_NCHW.astype(np.float64)
    height, width = images_NCHW.shape[2:]
    if min(height, width) > 2:
        windows = np.lib.stride_tricks.sliding_window_view(images_NCHW, (3, 3), axis=(2, 3))
        inner = images_NCHW[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = np.floor(
            (windows.sum((4, 5), dtype=np.int64) + 4 * inner.astype(np.int64)) / 13 + 0.5
        )
    return _blend(smooth, images_NCHW, strength, signs_N)


def rotate(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Turned by up to 30 degrees."""
    angle_N = np.deg2rad(30 * strength) * signs_N
    return _moved(images_NCHW, [[np.cos(angle_N), np.sin(angle_N)], [-np.sin(angle_N), np.cos(angle_N)]])


def shear_x(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Rows moved sideways, the more the further from the middle: by up to 0.3 of the distance."""
    return _moved(images_NCHW, [[1, 0.3 * strength * signs_N], [0, 1]])


def shear_y(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Columns moved up or down, the more the further from the middle: by up to 0.3 of the distance."""
    return _moved(images_NCHW, [[1, 0], [0.3 * strength * signs_N, 1]])


def translate_x(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Moved sideways by up to 0.45 of the width."""
    return _moved(images_NCHW, [[1, 0], [0, 1]], right_N=0.45 * strength * signs_N * images_NCHW.shape[3])


def translate_y(images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Moved up or down by up to 0.45 of the height."""
    return _moved(images_NCHW, [[1, 0], [0, 1]], down_N=0.45 * strength * signs_N * images_NCHW.shape[2])


OPERATIONS: dict[str, Operation] = {
    "identity": identity,
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "rotate": rotate,
    "solarize": solarize,
    "color": color,
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
"""The operations in the order of the paper (§3.1); their numbers are what is drawn."""


def _grey(images_NCHW: Images) -> Images:
    """(N,1,H,W): how bright each pixel is."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW[:, :1]
    red, green, blue = (images_NCHW[:, i : i + 1].astype(np.int64) * LUMA[i] for i in range(3))
    return ((red + green + blue + 0x8000) >> 16).astype(np.uint8)


def _blend(other: NDArray[Any], images_NCHW: Images, strength: float, signs_N: Floats) -> Images:
    """Between another image and this one, or beyond this one: 1 ± 0.9 x strength of the way."""
    share = (1 + 0.9 * strength * signs_N)[:, None, None, None]
    return _whole(other + share * (images_NCHW - other.astype(np.float64)))


def _whole(values: Floats) -> Images:
    """Pixel values: cut to 0 … 255, what is behind the point dropped."""
    return np.clip(values, 0, 255).astype(np.uint8)


def _moved(
    images_NCHW: Images,
    matrix: list[list[Floats | float]],
    right_N: Floats | float = 0.0,
    down_N: Floats | float = 0.0,
) -> Images:
    """Each pixel from where a matrix of (x, y) around the middle, and a distance in pixels, says."""
    number, channels, height, width = images_NCHW.shape
    y_HW, x_HW = np.mgrid[:height, :width].astype(np.float64) + 0.5
    y_HW, x_HW = y_HW - height / 2, x_HW - width / 2
    each = [[np.broadcast_to(entry, number)[:, None, None] for entry in row] for row in matrix]
    right, down = (np.broadcast_to(value, number)[:, None, None] for value in (right_N, down_N))
    x_NHW = np.floor(each[0][0] * x_HW + each[0][1] * y_HW + right + width / 2).astype(np.int64)
    y_NHW = np.floor(each[1][0] * x_HW + each[1][1] * y_HW + down + height / 2).astype(np.int64)
    is_inside = (x_NHW >= 0) & (x_NHW < width) & (y_NHW >= 0) & (y_NHW < height)
    place_NP = np.where(is_inside, y_NHW * width + x_NHW, 0).reshape(number, 1, -1)
    found_NCP = np.take_along_axis(images_NCHW.reshape(number, channels, -1), place_NP, 2)
    return np.asarray((found_NCP * is_inside.reshape(number, 1, -1)).reshape(images_NCHW.shape), np.uint8)
