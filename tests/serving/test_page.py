"""The playground as its visitors meet it: headless Chromium in front of `groundup serve`.

`SCREENSHOTS=docs/images pytest tests/serving/test_page.py -k pictures` writes the pictures of the documentation anew;
`SCREENSHOT_MODELS='{"name": "path", …}'` names the models they show.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundup.serving import keys

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
pytest.importorskip("uvicorn", reason="pip install 'groundup[serve]'")
expect = playwright.expect

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TEXT = "the red train 1 went to Hanoi and back"
TASKS = ("text_classification", "token_tagging", "span_qa", "translation", "embedding", "language_modeling")
PICTURED = (
    ("text_classification", "classes", 640),
    ("token_tagging", "spans", 640),
    ("span_qa", "answer", 640),
    ("embedding", "similarity", 700),
)
"""Tasks whose answers are shown in the documentation: the picture's name and height."""
NAME = "one.ariaLabel || one.labels?.[0]?.textContent || one.textContent"
"""What a control is called."""
SENTENCES = ["the red train went to Lima", "the red train went to Oslo", "cold and calm"]


class Served:
    """A running `groundup serve` with a key that may do everything."""

    def __init__(self, folder: Path, models: dict[str, Path]) -> None:
        command = [sys.executable, "-m", "groundup", "serve", "--port", "0", "--json", "--threads", "1"]
        command += [f"--model={name}={path}" for name, path in models.items()]
        self.folder, self.log = folder, folder / "log.txt"
        with self.log.open("w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server did not start: {self.end()}"
        ready = json.loads(line)
        self.url, self.key = ready["url"], ready["key"]

    def ask(self, path: str, body: Any = None, *, key: str | None = "") -> Any:
        """What the API answers: plain data, or text."""
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode() if body is not None else None)
        request.add_header("authorization", f"Bearer {key or self.key}")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = reply.read().decode()
            return json.loads(text) if reply.headers["content-type"] == "application/json" else text

    def key_for(self, *scopes: str) -> str:
        """A new key with these scopes, known to the server."""
        made = keys.create(self.folder / ".groundup" / "keys.json", "-".join(scopes), scopes=scopes)[1]
        time.sleep(keys.LOOK_EVERY_S + 0.1)
        return made

    def end(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.log.read_text()


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path]) -> dict[str, Path]:
    """Two models that chat, and one of every other kind."""
    chats = {"chat": make_model("chat", seed=2, context=1024), "rival": make_model("chat", seed=3, context=1024)}
    return chats | {task: make_model(task) for task in TASKS}


@pytest.fixture(scope="module")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    started = Served(tmp_path_factory.mktemp("page"), models)
    yield started
    log = started.end()
    assert started.process.returncode == 0, log
    assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, of the system."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: one of {', '.join(BROWSERS)} must be installed")
    # As root there is no sandbox; and no name but this machine's is looked up, whatever the page asks for.
    options = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    options += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, server: Served) -> Iterator[Open]:
    """A function that signs in and opens an address of the page. At the end: no complaint of the browser, and no
    request to another host."""
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: list[str] = []

    def open_(address: str = "", *, key: str = "", url: str = "", allow: str = "^$", **options: Any) -> Any:
        given = {"locale": "en-GB", "viewport": {"width": 1280, "height": 860}} | options
        context = browser.new_context(**given)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(20_000)
        heard = lambda text: None if re.search(allow, text) else complaints.append(text)  # noqa: E731
        page.on("console", lambda said: heard(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        where = url or server.url
        context.request.post(f"{where}/session", data={"key": key or server.key})
        page.goto(f"{where}/{address}")
        page.locator("main").wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints, complaints
    assert asked and all(one.startswith(("http://127.0.0.1:", "data:")) for one in asked), asked


def test_without_a_key_there_is_no_page_and_no_file(browser: Any, server: Served) -> None:
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


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_but_its_files(
    open_page: Open, server: Served
) -> None:
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


def test_a_chat_streams_and_tells_how_likely_each_token_was(open_page: Open, server: Served) -> None:
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


def test_a_text_is_continued_as_its_settings_say(open_page: Open, server: Served) -> None:
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


def test_stopping_ends_the_work(open_page: Open, server: Served) -> None:
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


def test_classes_are_bars(open_page: Open, server: Served) -> None:
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


def test_spans_and_answers_are_marked_where_they_stand(open_page: Open, server: Served) -> None:
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


def test_translations_and_similarities(open_page: Open, server: Served) -> None:
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


def test_the_figures_are_those_of_the_server(open_page: Open, server: Served) -> None:
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


def test_the_language_is_the_browsers_until_another_is_chosen(open_page: Open, server: Served) -> None:
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


def test_both_languages_say_everything(open_page: Open, server: Served) -> None:
    page = open_page()
    folder = re.findall(r'"(studio/[^"]+)/app.js"', server.ask(""))[0]
    said = page.evaluate(f"import('/{folder}/texts.js').then(({{ TEXTS }}) => TEXTS)")
    assert said["en"].keys() == said["zh"].keys()
    for key, text in said["en"].items():
        values = [sorted(re.findall(r"{\w+}", str(words))) for words in (text, said["zh"][key])]
        assert values[0] == values[1], key


def test_a_key_that_may_less_is_told_so(open_page: Open, server: Served) -> None:
    infers = server.key_for("infer")
    page = open_page("#/server", key=infers, allow="403")
    expect(page.get_by_role("alert")).to_contain_text("may not read")
    looks = server.key_for("metrics")
    page = open_page("", key=looks, allow="403")
    expect(page.get_by_role("alert")).to_contain_text("may not use models")
    page.get_by_role("link", name="Server").click()
    expect(page.locator(".tile")).to_have_count(8)


def test_a_refusal_says_what_to_do(open_page: Open, server: Served) -> None:
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


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_for_everybody_and_every_screen(open_page: Open, server: Served, width: int, scheme: str) -> None:
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


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.skipif(
    "SCREENSHOTS" not in os.environ, reason="SCREENSHOTS=docs/images writes the documentation's pictures"
)
def test_pictures_of_the_documentation(
    browser: Any, models: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Writes the pictures; whoever has them written looks at them."""
    shown = {name: Path(path) for name, path in json.loads(os.environ.get("SCREENSHOT_MODELS", "{}")).items()} or models
    folder = ROOT / os.environ["SCREENSHOTS"]
    served = Served(tmp_path, shown)
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

    folder.mkdir(parents=True, exist_ok=True)
    small = {"size": (360, 780), "color_scheme": "dark", "locale": "zh-CN"}
    first = f"#/model/{chats[0]}"
    take("playground-chat", first, look_at_a_token)
    take("playground-two", f"{first}/with/{chats[1]}", lambda page: chat(page, 2, "0.8"), color_scheme="dark")
    take("playground-phone", first, chat, **small)
    for task, name, height in PICTURED:
        if task in of_task:
            take(f"playground-{name}", f"#/model/{of_task[task]}", example, size=(1280, height))
    take("playground-figures", "#/server", figures)


def at_zero(page: Any, tokens: int) -> None:
    """Settings under which an answer is short and always the same."""
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill(str(tokens))


def per_cent(place: Any) -> float:
    """The number of a text such as 12% or < 0.01%."""
    return float(place.text_content().strip("< %"))


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
