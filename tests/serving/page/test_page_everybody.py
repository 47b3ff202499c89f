"""Languages, screens, the keyboard, and who cannot see: the playground is for everybody."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
expect = playwright.expect
Open = Callable[..., Any]
NAME = "one.ariaLabel || one.labels?.[0]?.textContent || one.textContent"
"""What a control is called."""


def test_the_language_is_the_browsers_until_another_is_chosen(open_page: Open, server: Any) -> None:
    page = open_page("#/model/chat", locale="zh-CN")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_label("最长回答").fill("6")
    page.get_by_label("消息").fill("去哪里？")
    page.keyboard.press("Enter")
    expect(page.get_by_text("个词元 ·")).to_be_visible()
    answer = page.locator(".answer").text_content()
    page.get_by_label("语言").select_option("en")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_text("tokens/s")).to_be_visible()
    assert page.locator(".answer").text_content() == answer, "nothing is lost"
    page.reload()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_both_languages_say_everything(open_page: Open, server: Any) -> None:
    page = open_page()
    folder = re.findall(r'"(studio/[^"]+)/app.js"', server.ask(""))[0]
    said = page.evaluate(f"import('/{folder}/texts.js').then(({{ TEXTS }}) => TEXTS)")
    assert said["en"].keys() == said["zh"].keys()
    for key, text in said["en"].items():
        values = [sorted(re.findall(r"{\w+}", str(words))) for words in (text, said["zh"][key])]
        assert values[0] == values[1], key


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_for_everybody_and_every_screen(open_page: Open, server: Any, width: int, scheme: str) -> None:
    axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'groundup[dev]'")
    axe = axe_playwright.Axe()
    # The checker is a script of its own, which the page's policy would rightly keep out.
    page = open_page("#/model/chat", color_scheme=scheme, viewport={"width": width, "height": 780}, bypass_csp=True)
    wrong: list[str] = []

    def look(name: str) -> None:
        found = axe.run(page)
        assert "color-contrast" in {one["id"] for one in found.response["passes"]}, "the checker has looked"
        wrong.extend(f"{name}: {one['id']}: {one['nodes'][0]['html'][:120]}" for one in found.response["violations"])
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wrong.extend([f"{name}: {over} px too wide"] if over > 0 else [])

    look("an empty chat")
    if width < 1000:
        page.get_by_text("Settings", exact=True).click()
    at_zero(page, 8)
    page.get_by_text("Shade tokens").click()
    page.get_by_label("Compare with").select_option("rival")
    page.get_by_label("Message").fill("where?")
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".figures")).to_have_count(2)
    page.locator(".answer").first.focus()
    page.keyboard.press("ArrowRight")
    look("two chats and a card")
    for task in ("text_classification", "token_tagging", "span_qa", "translation", "embedding"):
        page.goto(f"{server.url}/#/model/{task}")
        page.get_by_role("button", name="Example").click()
        page.locator(".result").wait_for()
        look(task)
    page.goto(f"{server.url}/#/server")
    page.locator(".tile").first.wait_for()
    look("figures")
    page.get_by_label("Language").select_option("zh")
    look("figures in Chinese")
    assert not wrong, "\n".join(wrong)


def test_the_keyboard_reaches_everything_in_order(open_page: Open) -> None:
    page = open_page("#/model/chat")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"(() => {{ const one = document.activeElement; return {NAME} }})()"))
    wanted = [
        "Compare with",
        "Message",
        "Start over",
        "Send",
        "Settings",
        "Temperature",
        "Top p",
        "Longest answer",
        "Stop at",
        "Defaults",
    ]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places), reached


def at_zero(page: Any, tokens: int) -> None:
    """Settings under which an answer is short and always the same."""
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill(str(tokens))
