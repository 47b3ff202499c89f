"""The playground as its visitors meet it: headless Chromium in front of `groundup serve`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.serving import keys

SPEC = importlib.util.spec_from_file_location("running", Path(__file__).parents[1] / "running.py")
assert SPEC is not None and SPEC.loader is not None
running = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(running)
Running: Any = running.Running
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TASKS = ("text_classification", "token_tagging", "span_qa", "translation", "embedding", "language_modeling")
TRAINED = ("images", "recordings", "histories", "table")
Open = Callable[..., Any]


class Served(Running):  # type: ignore[misc]
    """A running `groundup serve` with models by name."""

    def __init__(self, folder: Path, models: dict[str, Path]) -> None:
        super().__init__(folder, *(f"--model={name}={path}" for name, path in models.items()))

    def ask(self, path: str, body: Any = None, *, key: str | None = "") -> Any:
        """What the API answers: plain data, or text."""
        status, headers, text = super().ask(f"/{path}", body, key=key)
        assert status < 400, text
        return json.loads(text) if headers["content-type"] == "application/json" else text

    def key_for(self, *scopes: str) -> str:
        """A new key with these scopes, known to the server."""
        made = keys.create(self.folder / ".groundup" / "keys.json", "-".join(scopes), scopes=scopes)[1]
        time.sleep(keys.LOOK_EVERY_S + 0.1)
        return made


@pytest.fixture(scope="session")
def start() -> type[Served]:
    """Starts a server in a folder with models by name."""
    pytest.importorskip("uvicorn", reason="pip install 'groundup[serve]'")
    return Served


@pytest.fixture(scope="session")
def models(make_model: Callable[..., Path]) -> dict[str, Path]:
    """Two models that chat, and one of every other kind of text."""
    chats = {"chat": make_model("chat", seed=2, context=1024), "rival": make_model("chat", seed=3, context=1024)}
    return chats | {task: make_model(task) for task in TASKS}


@pytest.fixture(scope="session")
def server(start: type[Served], models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of models of texts."""
    started = start(tmp_path_factory.mktemp("page"), models)
    yield started
    started.end_well()


@pytest.fixture(scope="session")
def media_server(
    start: type[Served], trained_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server of models of images, recordings, histories and tables."""
    started = start(tmp_path_factory.mktemp("media"), {what: trained_model(what) for what in TRAINED})
    yield started
    started.end_well()


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """Starts the system's Chromium, with further options.

    For one module only: an open Playwright keeps a loop running in its thread, in which no other test can start one.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: one of {', '.join(BROWSERS)} must be installed")
    # As root there is no sandbox; and no name but this machine's is looked up, whatever the page asks for.
    options = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    options += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with playwright.sync_playwright() as started:
        yield lambda *more: started.chromium.launch(executable_path=path, args=[*options, *more])


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any]) -> Iterator[Any]:
    """Chromium."""
    opened = launch()
    yield opened
    opened.close()


@pytest.fixture
def open_on() -> Iterator[Open]:
    """A function that signs in to a server and opens an address of its page.

    At the end: no complaint of the browser, and no request to another host.
    """
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: list[str] = []

    def open_(browser: Any, server: Served, address: str = "", *, key: str = "", allow: str = "^$", **more: Any) -> Any:
        context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 860}} | more)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(20_000)
        heard = lambda text: None if re.search(allow, text) else complaints.append(text)  # noqa: E731
        page.on("console", lambda said: heard(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        context.request.post(f"{server.url}/session", data={"key": key or server.key})
        page.goto(f"{server.url}/{address}")
        page.locator("main").wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints, complaints
    assert asked and all(one.startswith(("http://127.0.0.1:", "data:")) for one in asked), asked


@pytest.fixture
def open_page(open_on: Open, browser: Any, server: Served) -> Open:
    """Opens an address of the page of models of texts."""
    return lambda address="", **more: open_on(browser, server, address, **more)


@pytest.fixture
def open_media(open_on: Open, browser: Any, media_server: Served) -> Open:
    """Opens an address of the page of the other models."""
    return lambda address="", **more: open_on(browser, media_server, address, **more)
