"""Who gets the page, and what it may do: keys, the content policy, what a refusal says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
expect = playwright.expect
Open = Callable[..., Any]
TEXT = "the red train 1 went to Hanoi and back"


def test_without_a_key_there_is_no_page_and_no_file(browser: Any, server: Any) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    assert page.goto(server.url).status == 401
    files = re.findall(r'"(studio/[^"]+)"', server.ask(""))
    assert len(files) == 3
    assert context.request.get(f"{server.url}/{files[0]}").status == 401
    page.get_by_label("API 密钥").fill(server.key)
    page.get_by_role("button", name="登录").click()
    expect(page.get_by_role("heading", name="chat", exact=True)).to_be_visible()
    page.get_by_role("button", name="退出登录").click()
    expect(page.get_by_label("API 密钥")).to_be_visible()
    assert context.request.get(f"{server.url}/{files[0]}").status == 401
    context.close()


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_but_its_files(open_page: Open, server: Any) -> None:
    page = open_page(allow="Content Security Policy|Trusted|violat")
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
    loaded = "document.createElement('script')).src = 'https://example.org/x.js'"
    assert "TrustedScriptURL" in page.evaluate(f"() => {{ try {{ ({loaded} }} catch (e) {{ return String(e) }} }}")
    markup = "document.body.innerHTML = '<b>x</b>'"
    assert "TrustedHTML" in page.evaluate(f"() => {{ try {{ {markup} }} catch (e) {{ return String(e) }} }}")
    blocked = "fetch('https://example.org/').then(() => 'went', () => 'refused')"
    assert page.evaluate(blocked) == "refused"
    assert page.evaluate("document.cookie") == ""
    first = re.findall(r'"(studio/[^"]+)"', server.ask(""))[0]
    kept = page.request.get(f"{server.url}/{first}").headers["cache-control"]
    assert "immutable" in kept
    for wrong in (first.replace("studio/", "studio/0"), f"{first}x", first.rpartition("/")[0] + "/index.html"):
        assert page.request.get(f"{server.url}/{wrong}").status == 404


def test_a_key_that_may_less_is_told_so(open_page: Open, server: Any) -> None:
    infers = server.key_for("infer")
    page = open_page("#/server", key=infers, allow="403")
    expect(page.get_by_role("alert")).to_contain_text("may not read")
    looks = server.key_for("metrics")
    page = open_page("", key=looks, allow="403")
    expect(page.get_by_role("alert")).to_contain_text("may not use models")
    page.get_by_role("link", name="Server").click()
    expect(page.locator(".tile")).to_have_count(8)


def test_a_refusal_says_what_to_do(open_page: Open, server: Any) -> None:
    page = open_page("#/model/text_classification", allow="4\\d\\d")
    page.context.clear_cookies()
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("sign in")
    page = open_page("#/model/nobody")
    expect(page.get_by_role("alert")).to_contain_text("no model nobody")
    page = open_page("#/model/chat", allow="400")
    page.get_by_label("Message").fill("long " * 5000)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("shorten it")
