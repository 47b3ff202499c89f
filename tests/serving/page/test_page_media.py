"""Pictures, recordings, recommendations and tables in the playground."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groundup.data import audio, images

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'groundup[dev]'")
expect = playwright.expect
Open = Callable[..., Any]
SPEC = importlib.util.spec_from_file_location("trained", Path(__file__).parents[1] / "trained.py")
assert SPEC is not None and SPEC.loader is not None
trained: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(trained)


def stroke(page: Any, *points: tuple[float, float]) -> None:
    """Draw through points of the surface, each from 0 to 1."""
    box = page.locator(".surface").bounding_box()
    for place, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if place == 0:
            page.mouse.down()
    page.mouse.up()


def circle(page: Any) -> None:
    angles = np.linspace(0, 2 * np.pi, 24)
    stroke(page, *((0.5 + 0.28 * np.sin(angle), 0.5 - 0.28 * np.cos(angle)) for angle in angles))


def given(data: bytes, name: str) -> dict[str, Any]:
    """A file as a browser is given it."""
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def test_what_is_drawn_is_recognised_while_it_is_drawn(open_media: Open) -> None:
    page = open_media("#/model/images")
    expect(page.get_by_text("28 × 28 pixels", exact=True)).to_be_visible()
    stroke(page, (0.5, 0.2), (0.46, 0.8))
    expect(page.locator(".verdict")).to_have_text("stroke")
    expect(page.locator(".bars li")).to_have_count(2)
    expect(page.locator("[aria-live]", has_text="Taken for stroke")).to_have_count(1)
    page.get_by_role("button", name="Wipe").click()
    expect(page.locator(".verdict")).to_have_count(0)
    circle(page)
    expect(page.locator(".verdict")).to_have_text("ring")
    sent = page.evaluate(
        "async () => { const seen = document.querySelector('canvas.seen');"
        " const picture = seen.getContext('2d').getImageData(0, 0, seen.width, seen.height).data;"
        " return [seen.width, seen.height, Array.from(picture).filter((_, i) => i % 4 === 0)] }"
    )
    pixels = np.array(sent[2]).reshape(28, 28)
    assert sent[:2] == [28, 28] and pixels.max() > 200 and pixels[0].max() == 0 == pixels[:, 0].max()
    rows, columns = np.nonzero(pixels > 60)
    assert max(np.ptp(rows), np.ptp(columns)) in (18, 19, 20), "it fills a box of twenty pixels"
    assert abs(np.average(rows) - 13.5) < 1.5 and abs(np.average(columns) - 13.5) < 1.5, "in the middle"
    page.get_by_text("The same with curl").click()
    expect(page.locator(".curl pre")).to_contain_text("-F 'file=@drawing.png'")


def test_the_keyboard_draws_too(open_media: Open) -> None:
    page = open_media("#/model/images")
    page.locator(".surface").focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Space")
    expect(page.locator("[aria-live]", has_text="Pen down")).to_have_count(1)
    for _ in range(6):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    expect(page.locator(".verdict")).to_have_text("stroke")
    page.keyboard.press("Delete")
    expect(page.locator(".verdict")).to_have_count(0)


def test_a_picture_is_chosen_and_dropped(open_media: Open) -> None:
    page = open_media("#/model/images", allow="415")
    packed = io.BytesIO()
    Image.fromarray(trained.image("ring", 7, side=400)[:, :, 0]).save(packed, "JPEG")
    page.get_by_label("Choose a picture").set_input_files(given(packed.getvalue(), "ring.jpg"))
    expect(page.locator(".verdict")).to_have_text("ring")
    page.get_by_label("Choose a picture").set_input_files(given(b"no picture", "x.png"))
    expect(page.get_by_role("alert")).to_contain_text("PNG, JPEG")


def test_a_photo_is_dropped(open_on: Open, browser: Any, media_server: Any) -> None:
    # The same model, told to the page as one of larger pictures in colour: what differs is only the page.
    page = open_on(browser, media_server, "#/server")

    def larger(route: Any) -> None:
        reply = route.fetch()
        body = reply.text().replace('"channels":1', '"channels":3')
        route.fulfill(response=reply, body=body)

    page.route("**/v1/models", larger)
    page.goto(f"{media_server.url}/#/model/images")
    page.reload()
    expect(page.get_by_text("Drop or paste a picture here")).to_be_visible()
    data = list(images.to_png(trained.image("stroke", 8, side=300)))
    drop = (
        "data => { const held = new DataTransfer(); held.items.add(new File([new Uint8Array(data)], 'stroke.png'));"
        " document.querySelector('.drop').dispatchEvent(new DragEvent('drop', {dataTransfer: held, bubbles: true})); }"
    )
    page.evaluate(drop, data)
    expect(page.locator(".verdict")).to_have_text("stroke")
    expect(page.get_by_role("img", name="stroke.png")).to_be_visible()


def test_a_word_is_spoken_and_a_recording_chosen(open_on: Open, launch: Any, media_server: Any, tmp_path: Path) -> None:
    quiet = np.zeros(24_000, np.int16)
    spoken = np.concatenate([quiet, trained.tone("high", 9, rate=48_000), quiet])
    (tmp_path / "microphone.wav").write_bytes(audio.to_wav(spoken, 48_000))
    hearing = launch(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}",
    )
    page = open_on(hearing, media_server, "#/model/recordings")
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".verdict")).to_have_text("high")
    expect(page.get_by_role("button", name="Listen")).to_be_visible()
    low = audio.to_wav(trained.tone("low", 9), trained.RATE)
    page.get_by_label("Choose a recording").set_input_files(given(low, "low.wav"))
    expect(page.locator(".verdict")).to_have_text("low")
    page.get_by_label("Choose a recording").set_input_files(given(b"nothing to hear", "x.mp3"))
    expect(page.get_by_role("alert")).to_contain_text("no sound that the browser can read")
    page.context.close()
    hearing.close()


def test_wav_is_written_as_it_is_read(open_media: Open, media_server: Any) -> None:
    page = open_media("#/model/recordings")
    folder = re.findall(r'"(studio/[^"]+)/app.js"', media_server.ask(""))[0]
    written = page.evaluate(
        f"import('/{folder}/sound.js').then(async ({{ wav, loudest }}) => {{"
        " const samples = Float32Array.from({ length: 100 }, (_, i) => (i - 50) / 50);"
        " const bytes = new Uint8Array(await wav(samples, 8000).arrayBuffer());"
        " return [Array.from(bytes), Array.from(loudest(samples, 10))] })"
    )
    samples = audio.decode(bytes(written[0]), "here")
    assert audio.rate_of(bytes(written[0]), "here") == 8000
    assert np.abs(samples - (np.arange(100) - 50) / 50 * 32767).max() <= 1
    assert written[1] == pytest.approx([(i - 50) / 50 for i in range(10)]), "its loudest part"


def test_films_are_picked_and_others_recommended(open_media: Open, media_server: Any) -> None:
    page = open_media("#/model/histories")
    search = page.get_by_role("combobox", name="Look for an item")
    for place in (3, 4, 5):
        search.fill(f"film 0{place}")
        expect(page.locator(".options li")).to_have_count(1)
        expect(page.locator(".options li")).to_contain_text(f"Film 0{place}")  # and no longer the one before
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
    expect(page.locator(".picked li")).to_have_count(3)
    asked = {"model": "histories", "items": trained.FILMS[3:6], "k": 10}
    wanted = [one["item"] for one in media_server.ask("v1/recommend", asked)["data"][0]["items"]]
    assert wanted[0] == trained.FILMS[6]
    expect(page.locator(".ranked .label").first).to_have_text(wanted[0])
    assert page.locator(".ranked .label").all_text_contents() == wanted
    page.get_by_role("button", name=f"Add {wanted[0]}").click()
    expect(page.locator(".ranked .label").first).to_have_text(trained.FILMS[7])
    for _ in range(4):
        page.locator(".picked button").first.click()
    expect(page.locator(".picked li")).to_have_count(0)
    expect(search).to_be_focused()


def test_a_row_of_a_table_is_typed(open_media: Open) -> None:
    page = open_media("#/model/table")
    for weight, size in (("9", "large"), ("1", "small")):
        page.get_by_label("weight").fill(weight)
        page.keyboard.press("Enter")
        expect(page.locator(".verdict")).to_have_text(size)


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_these_pages_are_for_everybody(open_media: Open, media_server: Any, width: int, scheme: str) -> None:
    axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'groundup[dev]'")
    axe = axe_playwright.Axe()
    page = open_media("#/model/images", color_scheme=scheme, viewport={"width": width, "height": 780}, bypass_csp=True)
    wrong: list[str] = []

    def look(name: str) -> None:
        found = axe.run(page).response
        wrong.extend(f"{name}: {one['id']}: {one['nodes'][0]['html'][:160]}" for one in found["violations"])
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wrong.extend([f"{name}: {over} px too wide"] if over > 0 else [])

    stroke(page, (0.5, 0.2), (0.5, 0.8))
    page.locator(".verdict").wait_for()
    look("a drawing")
    page.goto(f"{media_server.url}/#/model/recordings")
    low = audio.to_wav(trained.tone("low", 9), trained.RATE)
    page.get_by_label("Choose a recording").set_input_files(given(low, "low.wav"))
    page.locator(".verdict").wait_for()
    look("a recording")
    page.goto(f"{media_server.url}/#/model/histories")
    page.get_by_label("Look for an item").first.fill("film 0")
    page.locator(".options li").first.wait_for()
    page.keyboard.press("ArrowDown")
    look("a search")
    page.keyboard.press("Enter")
    page.locator(".ranked").wait_for()
    look("recommendations")
    page.goto(f"{media_server.url}/#/model/table")
    page.get_by_role("button", name="Classify").click()
    page.locator(".verdict").wait_for()
    page.get_by_label("Language").select_option("zh")
    look("a table in Chinese")
    assert not wrong, "\n".join(wrong)
