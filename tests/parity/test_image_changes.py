"""Changes to training images, held against Pillow, and against plain loops over pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from groundup.config import parse
from groundup.data import mixup, randaugment
from groundup.data.image_changes import Changes, ImageAugment, erased, flipped, shifted, zoomed
from groundup.data.mixup import Drawn, Mixing, draw, mixed

Images = NDArray[np.uint8]
ONE = np.ones(1)
WAYS = [-1.0, 1.0]
STRENGTHS = [0.0, 0.3, 1.0]


def photos(number: int = 4, channels: int = 3, height: int = 20, width: int = 26) -> Images:
    """Smooth images with some noise, of which none is flat."""
    draw = np.random.default_rng(number + channels)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((i + 2) * x / 9 + c) + np.cos((c + 1) * y / 7) for i in range(number) for c in range(channels)]
    values = np.stack(waves).reshape(number, channels, height, width) * 45 + 120
    return np.clip(values + draw.normal(0, 12, values.shape), 0, 255).astype(np.uint8)


def picture(image_CHW: Images) -> Image.Image:
    return Image.fromarray(image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0))


def pixels(image: Image.Image) -> Images:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def enhanced(kind: Any) -> Callable[[Image.Image, float, float], Image.Image]:
    return lambda image, strength, way: kind(image).enhance(1 + 0.9 * strength * way)


def moved(matrix: Callable[[float, float, Image.Image], tuple[float, ...]]) -> Any:
    """Pillow's affine transformation around the middle: a b c d of x' = ax + by + right, y' = cx + dy + down."""

    def apply(image: Image.Image, strength: float, way: float) -> Image.Image:
        a, b, right, c, d, down = matrix(strength, way, image)
        x, y = image.width / 2, image.height / 2
        data = (a, b, x - a * x - b * y + right, c, d, y - c * x - d * y + down)
        return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST)

    return apply


def turned(strength: float, way: float, image: Image.Image) -> tuple[float, ...]:
    angle = np.deg2rad(30 * strength * way)
    return np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0


PILLOW: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {
    "identity": lambda image, strength, way: image,
    "auto_contrast": lambda image, strength, way: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, way: ImageOps.equalize(image),
    "solarize": lambda image, strength, way: ImageOps.solarize(image, round(256 * (1 - strength))),
    "posterize": lambda image, strength, way: ImageOps.posterize(image, 8 - round(4 * strength)),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "rotate": moved(turned),
    "shear_x": moved(lambda strength, way, image: (1, 0.3 * strength * way, 0, 0, 1, 0)),
    "shear_y": moved(lambda strength, way, image: (1, 0, 0, 0.3 * strength * way, 1, 0)),
    "translate_x": moved(lambda strength, way, image: (1, 0, 0.45 * strength * way * image.width, 0, 1, 0)),
    "translate_y": moved(lambda strength, way, image: (1, 0, 0, 0, 1, 0.45 * strength * way * image.height)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows(name: str, channels: int) -> None:
    images = photos(channels=channels)
    for strength in [0.25, 1.0] if name == "solarize" else STRENGTHS:  # Pillow's thresholds are whole numbers
        for way in WAYS:
            ours = randaugment.OPERATIONS[name](images, strength, way * np.ones(len(images)))
            theirs = np.stack([pixels(PILLOW[name](picture(image), strength, way)) for image in images])
            apart = np.abs(ours.astype(int) - theirs)
            # Pillow blends in single precision, and a place on the border of two pixels may fall to either.
            assert ours.dtype == np.uint8 and np.mean(apart > 1) < 0.005, (strength, way, apart.max())


def test_sharpness_is_pillows_but_for_its_rounding() -> None:
    images = photos()
    for way in WAYS:
        ours = randaugment.sharpness(images, 0.5, way * np.ones(len(images)))
        theirs = np.stack([pixels(ImageEnhance.Sharpness(picture(i)).enhance(1 + 0.45 * way)) for i in images])
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    smooth = randaugment.sharpness(images, 10 / 9, -np.ones(len(images)))
    theirs = np.stack([pixels(picture(image).filter(ImageFilter.SMOOTH)) for image in images])
    assert np.abs(smooth.astype(int) - theirs).max() <= 1


def test_every_operation_is_held_against_something() -> None:
    assert len(randaugment.OPERATIONS) == 14
    assert {*PILLOW, "sharpness"} == set(randaugment.OPERATIONS)


def test_flat_and_tiny_images_survive_every_operation() -> None:
    for shape in ((2, 3, 1, 1), (2, 1, 2, 2), (1, 3, 5, 5)):
        flat = np.full(shape, 77, np.uint8)
        for operation in randaugment.OPERATIONS.values():
            assert operation(flat, 0.7, np.ones(shape[0])).shape == shape
        assert (randaugment.equalize(flat, 1, ONE) == 77).all() and (
            randaugment.auto_contrast(flat, 1, ONE) == 77
        ).all()


def test_each_image_gets_its_own_operations_in_their_order() -> None:
    images = photos(number=6)
    draws = np.random.default_rng(3).random((6, 4))
    together = randaugment.randaugment(images, draws, n_ops=2, magnitude=15)
    operations = list(randaugment.OPERATIONS.values())
    for image, drawn, found in zip(images, draws, together, strict=True):
        alone = image[None]
        for which, way in drawn.reshape(2, 2):
            alone = operations[int(14 * which)](alone, 0.5, -ONE if way < 0.5 else ONE)
        assert np.array_equal(alone[0], found)


def test_a_shift_is_padding_and_cropping() -> None:
    images, draws = photos(number=8), np.random.default_rng(1).random((8, 2))
    found = shifted(images, draws, most=3)
    for image, (down, right), one in zip(images, draws, found, strict=True):
        top, left = int(down * 7), int(right * 7)
        assert np.array_equal(np.pad(image, ((0, 0), (3, 3), (3, 3)))[:, top : top + 20, left : left + 26], one)
    assert np.array_equal(shifted(images, np.full((8, 2), 3.5 / 7), most=3), images), "the middle is where it was"
    assert not np.array_equal(shifted(images, np.zeros((8, 2)), most=3), images)


def test_a_flip_mirrors_the_share_of_images_whose_draw_is_below_it() -> None:
    images = photos(number=3)
    found = flipped(images, np.array([[0.1], [0.5], [0.4999]]), share=0.5)
    assert np.array_equal(found[1], images[1])
    assert np.array_equal(found[[0, 2]], images[[0, 2], :, :, ::-1])


def test_a_crop_of_everything_changes_nothing_and_a_quarter_is_stretched() -> None:
    images = photos(number=2, channels=1, height=8, width=8)
    draws = np.array([[0.0, 0.5, 0.0, 0.0], [0.0, 0.5, 0.999999, 0.999999]])
    assert np.array_equal(zoomed(images, draws, area=(1.0, 1.0), ratio=(1.0, 1.0)), images)
    quarter = zoomed(images, draws, area=(0.25, 0.25), ratio=(1.0, 1.0))
    for image, one, part in ((images[0], quarter[0], slice(0, 4)), (images[1], quarter[1], slice(4, 8))):
        # By hand: output pixel i lies at (i + 0.5) / 2 - 0.5 of the part, and the image goes on beyond the part.
        start = float(part.start)
        places = np.clip(start + (np.arange(8) + 0.5) / 2 - 0.5, 0, 7)
        below, rest = np.floor(places).astype(int), places - np.floor(places)
        above, values = np.minimum(below + 1, 7), image[0].astype(float)
        rows = values[below] * (1 - rest[:, None]) + values[above] * rest[:, None]
        wanted = rows[:, below] * (1 - rest) + rows[:, above] * rest
        assert np.abs(one[0] - wanted).max() <= 0.51


@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (0.1, 10.0)])
def test_rectangles_have_the_area_that_was_drawn_unless_they_are_cut(ratio: tuple[float, float]) -> None:
    images = np.zeros((200, 1, 40, 60), np.uint8)
    draws = np.random.default_rng(0).random((200, 6)) * 0.999
    found = erased(images, draws, share=1.0, area=(0.1, 0.3), ratio=ratio)
    areas = (found > 0).mean((1, 2, 3))
    # One noise value in 256 is black too.
    wanted = 0.1 + 0.2 * draws[:, 1]
    if ratio[1] < 2:
        assert (areas <= wanted * 1.06).all() and (areas >= wanted * 0.92).all()
    else:
        assert (areas <= wanted * 1.15).all() and (areas < 0.75 * wanted).any(), "long ones are cut"


def test_what_is_erased_is_a_rectangle_of_noise_in_some_images() -> None:
    images = photos(number=40)
    before = images.copy()
    draws = np.random.default_rng(2).random((40, 6))
    found = erased(images, draws, share=0.25, area=(0.02, 0.4), ratio=(0.3, 1 / 0.3))
    assert np.array_equal(images, before), "what was given stays as it is"
    for drawn, image, one in zip(draws, images, found, strict=True):
        changed = (image != one).any(0)
        assert changed.any() == (drawn[0] < 0.25)
        if changed.any():
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            inside = one[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.9
            assert inside.size < 60 or 80 < inside.mean() < 175, "noise is even over all values"
    assert np.array_equal(found, erased(images, draws, share=0.25, area=(0.02, 0.4), ratio=(0.3, 1 / 0.3)))


def test_mixup_is_a_weighted_mean_and_cutmix_a_rectangle() -> None:
    images, partners = photos(number=3), photos(number=3)[::-1].copy()
    drawn = [Drawn(2, 0.3, None), Drawn(1, 1.0, None), Drawn(0, 0.5, (2, 7, 3, 9))]
    found = mixed(images, partners, drawn)
    assert np.abs(found[0] - (0.3 * images[0] + 0.7 * partners[0])).max() <= 0.51
    assert np.array_equal(found[1], images[1])
    wanted = images[2].copy()
    wanted[:, 2:7, 3:9] = partners[2][:, 2:7, 3:9]
    assert np.array_equal(found[2], wanted)


def test_what_is_mixed_follows_from_seed_epoch_and_index() -> None:
    how = Mixing(mixup=0.4, cutmix=1.0, share=0.75)
    places = [(7, epoch, index) for epoch in range(2) for index in range(2000)]
    drawn = [draw(how, place, 2000, (20, 26)) for place in places]
    assert drawn[:50] == [draw(how, place, 2000, (20, 26)) for place in places[:50]]
    assert drawn[:50] != drawn[2000:2050], "another epoch draws anew"
    alone = [one for one, (_, _, index) in zip(drawn, places, strict=True) if one.partner == index]
    assert len(alone) == pytest.approx(0.25 * 4000, rel=0.1)
    boxes = [one for one in drawn if one.box is not None]
    assert len(boxes) == pytest.approx(0.375 * 4000, rel=0.1)
    for one in boxes:
        top, bottom, left, right = one.box or (0, 0, 0, 0)
        assert 0 <= top <= bottom <= 20 and 0 <= left <= right <= 26
        assert one.share == pytest.approx(1 - (bottom - top) * (right - left) / 520)
    over = np.array([one.share for one in drawn if one.box is None and one.share < 1])
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1)).
    assert over.mean() == pytest.approx(0.5, abs=0.03) and over.var() == pytest.approx(1 / 7.2, rel=0.1)
    assert {mixup.PURPOSE} == {13}


def test_a_section_is_its_changes_in_order() -> None:
    given = {"crop": 2, "resized_crop": {}, "flip": 0.5, "randaugment": {"n_ops": 3}, "erase": {"share": 0.9}}
    section, mistakes = parse(ImageAugment, given)
    assert section is not None and mistakes == []
    changes = Changes(section)
    assert [step.draws for step in changes.steps] == [2, 4, 1, 6, 6] and changes.draws == 19
    images, draws = photos(number=5), np.random.default_rng(0).random((5, 19))
    together = changes(images, draws)
    for place in range(5):
        assert np.array_equal(changes(images[place : place + 1], draws[place : place + 1])[0], together[place])
    assert np.array_equal(images, photos(number=5))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing is left to change images by"),
        ({"crop": 0}, "crop"),
        ({"randaugment": {"magnitude": 31}}, "less than or equal to 30"),
        ({"erase": {"area": [0.4, 0.1]}}, "no range"),
        ({"resized_crop": {"area": [0, 1]}}, "greater than 0"),
        ({"flipp": 0.5}, "flipp"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    section, mistakes = parse(ImageAugment, given)
    assert section is None
    assert any(said in mistake.what or said in str(mistake.path) for mistake in mistakes)
