"""The pictures of the documentation.

`SCREENSHOTS=docs/images pytest tests/serving/page/test_pictures.py` writes them anew;
`SCREENSHOT_MODELS='{"name": "path", …}'` names the models they show, and `SCREENSHOT_FILES='{"name": "file", …}'` the
pictures and recordings that some of them are given.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
expect = playwright.expect
Open = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[3]
PICTURED = (
    ("text_classification", "classes", 640),
    ("token_tagging", "spans", 640),
    ("span_qa", "answer", 640),
    ("embedding", "similarity", 700),
)
"""Tasks whose answers are shown in the documentation: the picture's name and height."""
SEVEN = ((0.28, 0.24), (0.72, 0.22), (0.46, 0.82))
"""A digit as it is drawn, corner by corner."""
LIKED = ("Star Wars", "Empire Strikes Back", "Raiders of the Lost Ark", "Terminator, The", "Alien")
"""Films that are picked, by parts of their titles."""


@pytest.mark.skipif(
    "SCREENSHOTS" not in os.environ, reason="SCREENSHOTS=docs/images writes the documentation's pictures"
)
def test_pictures_of_the_documentation(
    browser: Any, start: Any, models: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Writes the pictures; whoever has them written looks at them."""
    shown = {name: Path(path) for name, path in json.loads(os.environ.get("SCREENSHOT_MODELS", "{}")).items()} or models
    folder = ROOT / os.environ["SCREENSHOTS"]
    served = start(tmp_path, shown)
    request.addfinalizer(served.end)
    of_task = {"chat" if one["chats"] else one["task"]: one["id"] for one in reversed(served.ask("v1/models")["data"])}
    chats = [one["id"] for one in served.ask("v1/models")["data"] if one["chats"]]

    def take(
        name: str, address: str, act: Callable[[Any], None], *, size: tuple[int, int] = (1280, 800), **options: Any
    ) -> None:
        given = {"locale": "en-GB", "color_scheme": "light", "viewport": {"width": size[0], "height": size[1]}}
        context = browser.new_context(**given | options)
        page = context.new_page()
        page.set_default_timeout(240_000)
        context.request.post(f"{served.url}/session", data={"key": served.key})
        page.goto(f"{served.url}/{address}")
        page.locator("main h1").wait_for()
        act(page)
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{name}.png", animations="disabled")
        with Image.open(folder / f"{name}.png") as picture:
            picture.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
        context.close()

    def chat(page: Any, count: int = 1, temperature: str = "0") -> None:
        page.locator(".settings details").first.evaluate("one => one.open = true")
        page.get_by_label(re.compile("Longest answer|最长回答")).fill("90")
        page.get_by_label(re.compile("Temperature|温度")).fill(temperature)
        page.locator(".settings details").first.evaluate("one => one.open = innerWidth > 1000")
        page.locator(".composer textarea").fill("Explain gravity to a child.")
        page.keyboard.press("Enter")
        expect(page.locator(".figures")).to_have_count(count, timeout=240_000)

    def look_at_a_token(page: Any) -> None:
        page.get_by_text("Shade tokens").click()
        chat(page)
        # One that might as well have been another.
        open_ = "all => all.findIndex(one => Math.abs(one.style.getPropertyValue('--surprise') - 0.6) < 0.15)"
        page.locator(".token").nth(max(0, page.locator(".token").evaluate_all(open_))).hover()

    def example(page: Any) -> None:
        page.locator("button", has_text=re.compile("Example|示例")).click()
        page.locator(".result").wait_for()

    def figures(page: Any) -> None:
        for prompt in ("Hello.", "Name a colour.", "Count to nine."):
            body = {"model": chats[0], "max_tokens": 40, "messages": [{"role": "user", "content": prompt}]}
            served.ask("v1/chat/completions", body)
            page.wait_for_timeout(3500)

    def draw(page: Any) -> None:
        box = page.locator(".surface").bounding_box()
        for place, (x, y) in enumerate(SEVEN):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
            if place == 0:
                page.mouse.down()
        page.mouse.up()
        page.locator(".verdict").wait_for()
        page.wait_for_timeout(1500)

    def pick(page: Any) -> None:
        search = page.get_by_label("Look for an item").first
        for words in LIKED:
            search.fill(words)
            page.wait_for_timeout(1200)
            page.keyboard.press("Enter")
        page.locator(".ranked").wait_for()
        page.keyboard.press("Escape")
        page.wait_for_timeout(2500)

    def choose(file: str) -> Callable[[Any], None]:
        def act(page: Any) -> None:
            page.get_by_label(re.compile("Choose a (picture|recording)")).set_input_files(file)
            page.locator(".verdict").wait_for()
            page.wait_for_timeout(1500)

        return act

    folder.mkdir(parents=True, exist_ok=True)
    small = {"size": (360, 780), "color_scheme": "dark", "locale": "zh-CN"}
    first = f"#/model/{chats[0]}" if chats else ""
    for task, name, height in PICTURED:
        if task in of_task:
            take(f"playground-{name}", f"#/model/{of_task[task]}", example, size=(1280, height))
    if "image_classification" in of_task:
        take("playground-drawing", f"#/model/{of_task['image_classification']}", draw)
    if "next_item" in of_task:
        take("playground-picking", f"#/model/{of_task['next_item']}", pick)
    for name, file in json.loads(os.environ.get("SCREENSHOT_FILES", "{}")).items():
        take(f"playground-{name}", f"#/model/{name}", choose(file))
    if not chats:
        return
    take("playground-chat", first, look_at_a_token)
    take("playground-two", f"{first}/with/{chats[1]}", lambda page: chat(page, 2, "0.8"), color_scheme="dark")
    take("playground-phone", first, chat, **small)
    take("playground-figures", "#/server", figures)
