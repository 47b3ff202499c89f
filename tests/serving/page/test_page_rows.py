"""Labelled tasks of texts in the playground, vectors, and the server's figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
expect = playwright.expect
Open = Callable[..., Any]
TEXT = "the red train 1 went to Hanoi and back"
SENTENCES = ["the red train went to Lima", "the red train went to Oslo", "cold and calm"]


def test_classes_are_bars(open_page: Open, server: Any) -> None:
    page = open_page("#/model/text_classification")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    bars = page.locator(".bars li")
    wanted = server.ask("v1/classify", {"model": "text_classification", "input": TEXT})["data"][0]
    expect(page.locator(".verdict")).to_have_text(wanted["label"])
    ranked = sorted(wanted["probabilities"].items(), key=lambda pair: -pair[1])[:8]
    assert bars.locator(".label").all_text_contents() == [label for label, _ in ranked]
    for place, (_, share) in enumerate(ranked):
        assert per_cent(bars.nth(place).locator(".share")) == pytest.approx(100 * share, abs=0.51)


def test_spans_and_answers_are_marked_where_they_stand(open_page: Open, server: Any) -> None:
    page = open_page("#/model/token_tagging")
    given = "😀 the red train\n went to Hanoi, and  back"
    page.get_by_label("Text", exact=True).fill(given)
    page.get_by_role("button", name="Tag").click()
    page.locator(".passage").wait_for()
    wanted = server.ask("v1/tag", {"model": "token_tagging", "input": given})["data"][0]
    marks = page.locator("mark").evaluate_all(
        "all => all.map(one => [one.firstChild.data, one.querySelector('.tag').textContent])"
    )
    assert [label for _, label in marks] == [span["label"] for span in wanted["spans"]]
    for (text, _), span in zip(marks, wanted["spans"], strict=True):
        assert re.sub(r"\s", "", text) == re.sub(r"\s", "", span["text"])
    tags = "".join(label for _, label in marks)
    assert len(page.locator(".passage").text_content()) == len(given) + len(tags), "the text is whole, spaces and all"

    page.goto(f"{server.url}/#/model/span_qa")
    page.get_by_label("Passage").fill(f"😀 {TEXT}")
    page.get_by_label("Question").fill("where did it go?")
    page.get_by_role("button", name="Find the answer").click()
    asked = {"model": "span_qa", "question": "where did it go?", "context": f"😀 {TEXT}"}
    found = server.ask("v1/answer", asked)["data"][0]
    if found["start"] is None:
        expect(page.get_by_text("does not hold an answer")).to_be_visible()
    else:
        expect(page.locator("mark")).to_have_text(found["answer"])
    expect(page.locator(".passage")).to_have_text(f"😀 {TEXT}")


def test_translations_and_similarities(open_page: Open, server: Any) -> None:
    page = open_page("#/model/translation")
    page.get_by_label("Text to translate").fill(TEXT)
    page.get_by_role("button", name="Translate").click()
    wanted = server.ask("v1/translate", {"model": "translation", "input": TEXT})["data"][0]["text"]
    expect(page.locator(".translated")).to_have_text(wanted)

    page.goto(f"{server.url}/#/model/embedding")
    page.get_by_label("Texts, one a line").fill("\n".join([*SENTENCES, ""]))
    page.get_by_role("button", name="Compare").click()
    vectors = [
        one["embedding"] for one in server.ask("v1/embeddings", {"model": "embedding", "input": SENTENCES})["data"]
    ]
    expect(page.locator(".cosines tbody td")).to_have_count(9)
    cells = [float(cell) for cell in page.locator(".cosines tbody td").all_text_contents()]
    wanted_cells = [cosine(one, other) for one in vectors for other in vectors]
    assert cells == pytest.approx(wanted_cells, abs=0.0051)
    page.get_by_label("Texts, one a line").fill("one alone")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("at least two")


def test_the_figures_are_those_of_the_server(open_page: Open, server: Any) -> None:
    server.ask("v1/completions", {"model": "language_modeling", "prompt": "the", "max_tokens": 5, "ignore_eos": True})
    page = open_page("#/server")
    row = page.locator(".models tbody tr", has_text="language_modeling")
    written = sum(
        float(found[1])
        for found in re.finditer(
            r'generation_tokens_total\{model_name="language_modeling"\} (\S+)', server.ask("metrics")
        )
    )
    expect(row.locator("td").last).to_have_text(f"{written:,.0f}")
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(8)
    expect(tiles.filter(has_text="Time to first token")).to_contain_text("ms")
    expect(tiles.filter(has_text="Memory")).to_contain_text("1 of 1 ready")
    expect(page.locator(".spark polyline").first).to_be_attached()


def per_cent(place: Any) -> float:
    """The number of a text such as 12% or < 0.01%."""
    return float(place.text_content().strip("< %"))


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
