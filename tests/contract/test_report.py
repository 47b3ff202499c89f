"""The report as a reader and a script see it: self-contained, escaped, honest, the same bytes each time."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from groundup.evaluation import page, report, words
from groundup.evaluation.intervals import ratio_interval

RNG = np.random.default_rng(0)
SIZES = RNG.integers(500, 3000, 60).astype(float)
NATS = SIZES * RNG.normal(1.3, 0.1, 60)


def interval(above: np.ndarray, below: np.ndarray = SIZES) -> dict[str, Any]:
    return ratio_interval(above, below, seed=0).map(lambda nats: nats / np.log(2)).as_dict()


def rival(shift: float, name: str = "6-gram over bytes") -> dict[str, Any]:
    other = NATS + shift * SIZES
    noise = np.random.default_rng(1).normal(0, 0.02, 60) * SIZES
    return {
        "name": name,
        "meaning": "counts of 6 bytes in a row",
        "metric": "bits_per_byte",
        "score": interval(other)["estimate"],
        "interval": interval(other),
        "lead": interval(other - NATS + noise),
        "trained_bytes": 3_400_000,
        "details": {
            "order": 6,
            "alphabet": "bytes",
            "validation_bits_per_byte": {
                "bytes": [4.9, 3.6, 2.9, 2.5, 2.3, 2.2, 2.21],
                "tokens": [3.1, 2.4, 2.3, 2.31],
            },
            "per_unit_bits_per_byte": (other / SIZES / np.log(2)).tolist(),
        },
    }


def report_data() -> dict[str, Any]:
    losses = [[float(i) / 100, 6.0 / (1 + i / 50) + 2] for i in range(300)]
    xz = {
        "name": "xz -9 on the test text alone",
        "meaning": "starts with no knowledge",
        "metric": "bits_per_byte",
        "score": 2.4,
    }
    return {
        "format": 1,
        "name": "小说 $x$ / base",
        "seed": 7,
        "main_metric": "bits_per_byte",
        "scores": {"bits_per_byte": interval(NATS), "perplexity": interval(NATS)},
        "rivals": [rival(0.2), xz | {"interval": None, "lead": None, "trained_bytes": 0, "details": {}}],
        "units": {"name": "documents", "count": 60, "bits_per_byte": (NATS / SIZES / np.log(2)).tolist()},
        "model": {
            "digest": "ab" * 32,
            "family": "gpt",
            "task": "language_modeling",
            "parameters": 1_234_567,
            "tokens": 10**6,
        },
        "data": {"digest": "cd" * 32, "split": "test", "documents": 60, "bytes": 98_765, "documents_in_split": 60},
        "tokenizer": {"digest": "ef" * 32, "vocab_size": 4096, "bytes_per_token": 3.3},
        "samples": [
            {
                "kind": "continuation",
                "prompt": "从前有<script>alert(1)</script>",
                "text": "一座山 | \n# no heading",
                "truth": "一个人",
                "ended": "max_new_tokens (9) reached",
                "settings": {"temperature": 0.8, "seed": 7},
            },
            {
                "kind": "filling",
                "text": "今天天气好",
                "gaps": [
                    {"start": 2, "end": 3, "truth": "天", "best": [["天", 0.9]], "right": True},
                    {"start": 4, "end": 5, "truth": "好", "best": [["坏", 0.5]], "right": False},
                ],
            },
        ],
        "curves": {"loss": losses, "validation_loss": losses[30::60]},
        "curves_over": "million tokens of training",
        "cost": {"parameters": 1_234_567, "wall_s": 125.0, "tokens_s": 9000.0},
        "licences": {"books": "CC-BY-4.0"},
        "notes": ["Measured on 60 of 90 test documents, evenly spread."],
    }


class Page(HTMLParser):
    """What a page would fetch or run, its text, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "img", "object"):
            self.fetched.append(tag)
        self.fetched += [
            f"{key}={value}" for key, value in attrs if key in ("src", "href") and not (value or "").startswith("#")
        ]
        self.fetched += [key for key, _ in attrs if key.startswith("on")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_and_fetches_nothing() -> None:
    html = page.render(report_data())
    seen = Page(html)
    assert seen.fetched == [] and seen.open == []
    assert "url(http" not in html and "@import" not in html and "alert(1)</script>" not in html
    assert "从前有<script>alert(1)</script>" in seen.text, "shown as text, not run"
    assert len(html) < 400_000


def test_pictures_are_sound_and_can_be_read_aloud() -> None:
    html = page.render(report_data())
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        assert ElementTree.fromstring(picture).attrib["aria-label"]
    names = [re.findall(r'\bid="([^"]+)"', picture) for picture in pictures]
    used = [name for found in names for name in found]
    assert len(used) == len(set(used)) > 20, "pictures of one page do not share names"


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        report.write(report_data(), lambda name, folder=folder: tmp_path / folder / name)  # type: ignore[misc]
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    loaded = json.loads((tmp_path / "one" / "report.json").read_text(encoding="utf-8"))
    assert loaded["scores"]["bits_per_byte"]["n"] == 60


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0.2, "The model beats the 6-gram over bytes by 0.2"),
        (-0.2, "The model loses to the 6-gram"),
        (0.0, "No clear difference"),
    ],
)
def test_words_claim_what_the_interval_shows(shift: float, expected: str) -> None:
    data = report_data() | {"rivals": [rival(shift)]}
    sentence = words.verdicts(data)[0]
    assert sentence.startswith(expected) and "± 0.0" in sentence and "(trained on 3.24 MiB)" in sentence


def test_a_rival_without_an_interval_is_compared_plainly() -> None:
    sentence = words.verdicts(report_data())[1]
    own = report_data()["scores"]["bits_per_byte"]["estimate"]
    assert sentence == f"The model is better than xz -9 on the test text alone by {2.4 - own:.3f} bits per byte."


def test_markdown_shows_texts_as_they_are() -> None:
    text = report.markdown(report_data())
    assert "    # no heading" in text and "CC-BY-4.0" in text and "2 min 5 s" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 6


def test_a_report_without_rivals_curves_samples_or_certainty_is_still_a_report() -> None:
    data = copy.deepcopy(report_data())
    data |= {"rivals": [], "samples": [], "curves": {}, "notes": [], "licences": {}, "cost": {}}
    data["scores"]["bits_per_byte"] |= {"low": None, "high": None}
    seen = Page(page.render(data))
    assert "bits per byte on the test text" in seen.text and "What it means" not in seen.text
    assert report.markdown(data)
