"""Chats and texts in the playground: how they stream, how likely each token was, two models side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
expect = playwright.expect
Open = Callable[..., Any]


def test_a_chat_streams_and_tells_how_likely_each_token_was(open_page: Open, server: Any) -> None:
    page = open_page("#/model/chat")
    at_zero(page, 12)
    page.get_by_label("Message").fill("where did <b>the red train</b> go?")
    page.get_by_label("Message").press("Enter")
    expect(page.get_by_text("tokens/s")).to_be_visible()
    asked = [{"role": "user", "content": "where did <b>the red train</b> go?"}]
    body = {"model": "chat", "temperature": 0, "max_tokens": 12, "top_p": 0.95, "messages": asked}
    wanted = server.ask("v1/chat/completions", body | {"logprobs": True, "top_logprobs": 5})["choices"][0]
    answer = page.locator(".answer")
    assert answer.text_content() == wanted["message"]["content"]
    assert page.locator(".said").text_content() == asked[0]["content"], "what was typed is a text and no markup"
    tokens = answer.locator(".token")
    tokens.nth(1).hover()
    share = math.exp(wanted["logprobs"]["content"][0]["logprob"])
    answer.focus()
    page.keyboard.press("ArrowRight")
    card = page.locator(".card")
    expect(card).to_be_visible()
    assert per_cent(card.locator(".taken .share").first) == pytest.approx(100 * share, abs=0.51)
    assert card.locator("li").count() >= 5
    expect(page.locator("[aria-live]", has_text="1 of")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    # The next turn knows the first.
    page.get_by_label("Message").fill("and then?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".figures")).to_have_count(2)
    asked += [wanted["message"], {"role": "user", "content": "and then?"}]
    second = server.ask(
        "v1/chat/completions", body | {"messages": [{k: m[k] for k in ("role", "content")} for m in asked]}
    )
    assert answer.nth(1).text_content() == second["choices"][0]["message"]["content"]


def test_a_text_is_continued_as_its_settings_say(open_page: Open, server: Any) -> None:
    page = open_page("#/model/language_modeling")
    page.get_by_label("Longest answer").fill("8")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Top k").fill("40")
    page.get_by_label("Text to continue").fill("the red")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("tokens/s")).to_be_visible()
    asked = {"model": "language_modeling", "prompt": "the red", "max_tokens": 8, "seed": 5, "top_k": 40}
    wanted = server.ask("v1/completions", asked | {"temperature": 0.7, "top_p": 0.95})["choices"][0]["text"]
    assert page.locator(".answer").text_content() == wanted
    page.get_by_text("The same with curl").click()
    shown = page.locator(".curl pre")
    expect(shown).to_contain_text(f"{server.url}/v1/completions")
    assert '"seed": 5' in shown.text_content() and server.key not in shown.text_content()


def test_two_models_answer_side_by_side(open_page: Open) -> None:
    page = open_page("#/model/chat")
    at_zero(page, 10)
    page.get_by_label("Compare with").select_option("rival")
    page.get_by_label("Message").fill("where?")
    page.keyboard.press("Enter")
    expect(page.locator(".figures")).to_have_count(2)
    answers = page.locator(".answer").all_text_contents()
    assert len(answers) == 2 and answers[0] != answers[1]
    assert "/with/rival" in page.url
    page.go_back()
    expect(page.locator(".lane")).to_have_count(1)


def test_stopping_ends_the_work(open_page: Open, server: Any) -> None:
    page = open_page("#/model/chat")
    at_zero(page, 900)
    page.get_by_label("Message").fill("go on")
    page.keyboard.press("Enter")
    page.locator(".token").nth(3).wait_for()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".end.cancelled")).to_be_visible()
    for _ in range(50):
        running = re.findall(r"num_requests_running\{.*\} (\S+)", server.ask("metrics"))
        if sum(map(float, running)) == 0:
            return
        page.wait_for_timeout(200)
    raise AssertionError("the engine goes on")


def at_zero(page: Any, tokens: int) -> None:
    """Settings under which an answer is short and always the same."""
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill(str(tokens))


def per_cent(place: Any) -> float:
    """The number of a text such as 12% or < 0.01%."""
    return float(place.text_content().strip("< %"))
