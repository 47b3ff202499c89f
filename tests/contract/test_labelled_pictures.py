"""Pictures in the report of a labelled task: in the one file, small, few, told in words, and never in the data."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from groundup.errors import DataError
from groundup.evaluation import labelled_page, labelled_pictures, labelled_report, report
from groundup.evaluation.labelled import Labelled, System
from groundup.evaluation.labelled_pictures import Pictures
from groundup.evaluation.looking import Looked, Seen

COUNT = 120
LABELS = ["<cat>", "dog", "鸟"]
TRUTH = [LABELS[row % 3] for row in range(COUNT)]


def png(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> bytes:
    width, height = size
    shape = (height, width, *({"RGB": (3,), "RGBA": (4,), "LA": (2,)}.get(mode, ())))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    out = io.BytesIO()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Author", "somebody")
    image = Image.fromarray(pixels) if mode != "P" else Image.fromarray(pixels).convert("P")
    image.save(out, "PNG", pnginfo=notes)
    return out.getvalue()


class Animals:
    """A task whose pictures differ in size and mode."""

    def picture(self, example: Mapping[str, Any]) -> bytes:
        row = example["id"]
        return png(((28, 20), (300, 200), (96, 97))[row % 3], ("L", "RGB", "RGBA")[row % 3], row)


EXAMPLES = [{"id": row} for row in range(COUNT)]
TEST = Labelled("classes", [f"zoo/<{row}>.png" for row in range(COUNT)], ["a picture"] * COUNT, TRUTH, LABELS)
DESCRIBED = {
    "name": "zoo / animals",
    "model": {"digest": "ab" * 32, "family": "cnn", "task": "image_classification", "parameters": 9, "tokens": 0},
    "data": {"digest": "cd" * 32, "split": "test", "documents": COUNT, "bytes": 9, "documents_in_split": COUNT},
}


def run(wrong: int) -> System:
    given = [LABELS[(row + (row < wrong)) % 3] for row in range(COUNT)]
    rng = np.random.default_rng(4)
    shares = []
    for answer in given:
        sure = rng.uniform(0.5, 0.99)
        shares.append([sure if label == answer else (1 - sure) / 2 for label in LABELS])
    return System("seed 1", given, shares, seed=1, digest="07" * 32)


def method(name: str, salient: float, random: float, low: float, high: float) -> dict[str, Any]:
    more = {"estimate": salient - random, "low": low, "high": high, "level": 0.95}
    each = {"salient": {"estimate": salient}, "random": {"estimate": random}, "more": more}
    return {"name": name, "score": each, "probability": each}


def looked(rows: list[int]) -> Looked:
    draw = np.random.default_rng(2)
    data = {
        "examples": COUNT, "share": 0.1, "removed": 78.0, "of": 784.0, "draws": 5, "places": "pixels",
        "replaced_by": "the mean of each channel over 1,000 training rows",
        "missing": {"mean": 0.0001, "most": 0.012},
        "methods": [
            method("integrated gradients", 0.9, 0.1, 0.7, 0.9),
            method("gradient × input", 0.2, 0.1, -0.1, 0.3),
            method("attention rollout", 0.1, 0.3, -0.3, -0.1),
        ],
    }  # fmt: skip
    shapes = {0: (3, 28, 28), 1: (1, 200, 120), 2: (49, 40)}
    shown = {}
    for place, row in enumerate(rows):
        shape = shapes[place % 3]
        places = shape[-2:]
        said = {one["name"]: draw.normal(size=places).astype(np.float32) for one in data["methods"]}
        shown[row] = Seen(draw.normal(size=shape).astype(np.float32), said)
    return Looked(data, shown)


def made(wrong: int = 70) -> tuple[dict[str, Any], Pictures]:
    system = run(wrong)
    data = labelled_report.collect(TEST, [system], [], described=DESCRIBED, seed=3, resamples=100)
    said, drawn = labelled_pictures.draw(Animals(), EXAMPLES, TEST, system, data["mistakes"], 3)
    rows = labelled_pictures.worth_a_look(TEST, system, data["mistakes"], 3)
    seen, strips = labelled_pictures.strips(looked(rows), TEST, system)
    return data | said | seen, Pictures(drawn, strips)


class Page(HTMLParser):
    """The pictures of a page, its text, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += [dict(attrs)] if tag == "img" else []
        assert tag in ("img", "meta", "svg") or not any(key in ("src", "href") for key, _ in attrs) or "#" in str(attrs)
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pictures_stand_in_the_page_small_few_and_told() -> None:
    data, pictures = made()
    html = labelled_page.render(data, pictures)
    page = Page(html)
    assert page.open == [] and html == labelled_page.render(data, pictures)
    assert len(page.pictures) == 60 == labelled_pictures.SAMPLES + labelled_pictures.MISTAKES + labelled_pictures.LOOKED
    for found in page.pictures:
        kind, _, held = str(found["src"]).partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(held, validate=True))) as image:
            assert image.format == "PNG" and not image.info
            shown = int(found["width"] or 0), int(found["height"] or 0)
            assert shown[0] / image.width == pytest.approx(shown[1] / image.height, rel=0.02)
            assert shown[0] >= image.width
            longest = max(image.size) if "looked at" not in str(found["alt"]) else image.height
            assert longest <= 96 and 48 < max(shown) <= 4 * 96 + 12
        assert "zoo/<" in str(found["alt"]) and any(label in str(found["alt"]) for label in LABELS)
        assert "answered" in str(found["alt"])
    assert "Samples" in page.text and "at most 60" in page.text and "20 more, without pictures" in page.text
    assert "What it looks at" in page.text and "Red speaks for the answer" in page.text
    assert "Attention has no sign" in page.text
    assert "✓" in page.text and "✗" in page.text and "<cat>" in page.text


def test_the_words_say_where_saliency_is_no_better_than_chance() -> None:
    data, pictures = made()
    text = Page(labelled_page.render(data, pictures)).text
    good, unclear, bad = (labelled_pictures.verdict(data["saliency"], one) for one in data["saliency"]["methods"])
    assert all(each in text for each in (good, unclear, bad))
    assert "78 of 784" in good and "falls by 0.90" in good and "random ones by 0.10" in good and "0.70 to 0.90" in good
    assert "90.0 and by 10.0 points" in good and "believe" not in good
    assert "no clear difference from chance: do not believe what it marks" in unclear
    few = data["saliency"] | {"removed": 1.0, "of": 2.0, "places": "features"}
    assert "without the most salient of its features (1 of 2)" in labelled_pictures.verdict(few, few["methods"][0])
    assert "matter LESS than random ones: do not believe it" in bad
    assert "less than 0.1" in text and "1.2\N{NO-BREAK SPACE}%" in text


def test_the_data_names_pictures_and_holds_none(tmp_path: Path) -> None:
    data, pictures = made()
    report.write(data, lambda name: tmp_path / name, pictures)
    held = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "base64" not in json.dumps(held) and held == data
    names = {one["id"] for one in held["pictures"]["samples"]} | set(held["pictures"]["mistakes"])
    assert names == set(pictures.examples) and names <= set(TEST.ids)
    shown = held["saliency"]["shown"]
    assert [one["id"] for one in shown] == list(pictures.looked)
    assert [one["right"] for one in shown] == [True, True, True, False, False, False]
    assert len({one["truth"] for one in shown[:3]}) == 3, "right answers of different classes"
    words = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        "Pictures of 24 samples, 30 mistakes, what the network looked at in 6 examples stand in `report.html`" in words
    )
    assert "## What it looks at" in words and "do not believe what it marks" in words and "data:image" not in words
    plain = labelled_report.collect(TEST, [run(9)], [], described=DESCRIBED, seed=3, resamples=100)
    report.write(plain, lambda name: tmp_path / name)
    assert "<img" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pictures" not in plain and "Pictures" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_model_without_a_mistake_has_samples_and_a_look() -> None:
    data, pictures = made(wrong=0)
    html = labelled_page.render(data, pictures)
    page = Page(html)
    assert len(page.pictures) == 24 + 6 and "confident mistakes" not in page.text
    assert 'class="right-answer"' in html and 'class="wrong-answer"' not in html
    assert labelled_pictures.draw(object(), EXAMPLES, TEST, run(0), [], 0) == ({}, {})
    assert labelled_pictures.strips(None, TEST, run(0)) == ({}, {})


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_pictures_are_shrunk_and_stripped(mode: str) -> None:
    for size, wanted in (((400, 100), (96, 24)), ((8, 8), (8, 8)), ((1, 500), (1, 96))):
        with Image.open(io.BytesIO(labelled_pictures.small(png(size, mode)))) as image:
            assert image.size == wanted and image.mode in ("L", "RGB") and not image.info


def test_what_is_no_picture_names_its_example() -> None:
    for broken in (b"", b"no picture", png((9, 9))[:40], png((9, 9))[:-30]):
        with pytest.raises(DataError, match=r"zoo/3\.png: .*cannot be read"):
            labelled_pictures.small(broken, where="zoo/3.png")


def test_colours_tell_what_speaks_for_and_against() -> None:
    base = np.full((2, 2, 3), 0.5)
    shown = labelled_pictures.overlay(base, np.array([[4.0, -4.0], [0.0, 0.0]]))
    red, blue, nothing = shown[0, 0], shown[0, 1], shown[1, 0]
    assert red.argmax() == 0 and blue.argmax() == 2 and np.ptp(nothing) == 0
    assert np.isfinite(labelled_pictures.overlay(base, np.zeros((2, 2)))).all()
