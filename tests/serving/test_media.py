"""Files in requests: images and recordings as base64 and as forms, what is refused of them, and in which order."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import struct
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import groundup
from groundup.data import audio, images
from groundup.serving import inputs, models, offline
from groundup.serving import wire as frames
from groundup.serving.api import media, multipart
from groundup.serving.api.errors import ApiError
from groundup.serving.keys import ANYBODY, KeyLimits
from groundup.serving.limits import Limits
from groundup.serving.rates import Accounts
from groundup.serving.usage import Usage

Runs = Callable[[Coroutine[Any, Any, None]], None]
Trained = Callable[[str], Path]
JSON = [("content-type", "application/json")]
SPEC = importlib.util.spec_from_file_location("trained", Path(__file__).with_name("trained.py"))
assert SPEC is not None and SPEC.loader is not None
trained: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(trained)
STROKE, RING = (images.to_png(trained.image(label, 900)) for label in ("stroke", "ring"))
LOW, HIGH = (audio.to_wav(trained.tone(label, 900), trained.RATE) for label in ("low", "high"))


def base(data: bytes) -> str:
    return base64.b64encode(data).decode()


def form(*files: bytes, name: str = "file", boundary: str = "xyz", **fields: str) -> tuple[list[Any], bytes]:
    """Headers and body of a form, its files named and typed as nobody should believe."""
    parts = [f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
    head = f'Content-Disposition: form-data; name="{name}"; filename="数.exe"\r\nContent-Type: text/plain\r\n\r\n'
    parts += [head.encode() + data for data in files]
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    kind = f"multipart/form-data; boundary={boundary}"
    return [("content-type", kind)], body + f"--{boundary}--\r\n".encode()


def bomb(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(min(width * height * 3, 1 << 24)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.fixture
def asked(serve_api: Any, trained_model: Trained, make_model: Any, wire: Any, runs: Runs) -> Callable[..., None]:
    """A function that serves models and runs a test with it."""

    def run(test: Callable[[Any, Any], Coroutine[Any, Any, None]], **settings: Any) -> None:
        async def body() -> None:
            paths = {what: trained_model(what) for what in ("images", "recordings")}
            paths["texts"] = make_model("text_classification")
            async with serve_api(paths, **settings) as app:

                async def ask(given: Any, path: str = "/v1/classify") -> Any:
                    headers, body = given if isinstance(given, tuple) else (JSON, json.dumps(given).encode())
                    return await wire.ask(app, "POST", path, headers, body)

                await test(ask, app)

        runs(body())

    return run


def labels(reply: Any) -> list[str]:
    assert reply.status == 200, reply.body
    return [one["label"] for one in json.loads(reply.body)["data"]]


def test_images_and_recordings_are_answered_as_predict_answers_them(asked: Any, trained_model: Trained) -> None:
    rows = [{"image": STROKE}, {"image": RING}]
    wanted = groundup.load(trained_model("images"), device="cpu").predict(rows)

    async def test(ask: Any, app: Any) -> None:
        given = [{"image": base(STROKE)}, f"data:image/png;base64,{base(RING)}"]
        for body in ({"model": "images", "input": given}, form(STROKE, RING, model="images", timeout="30")):
            reply = await ask(body)
            assert labels(reply) == ["stroke", "ring"]
            found = json.loads(reply.body)
            for one, other in zip(found["data"], wanted, strict=True):
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
            assert found["usage"]["prompt_tokens"] == 2 * inputs.cost_of(28 * 28)
        assert labels(await ask({"model": "images", "input": base(RING)})) == ["ring"]
        assert labels(await ask(form(STROKE, name="image", model="images"))) == ["stroke"]
        assert labels(await ask(form(LOW, HIGH, model="recordings"))) == ["low", "high"]
        assert labels(await ask({"model": "recordings", "input": {"audio": base(HIGH)}})) == ["high"]
        # A photo of a camera: another format, size and number of channels.
        from PIL import Image

        packed = io.BytesIO()
        Image.fromarray(trained.image("ring", 5, side=600)[:, :, 0]).convert("RGB").save(packed, "JPEG")
        assert labels(await ask(form(packed.getvalue(), model="images"))) == ["ring"]

    asked(test)


def test_what_is_wrong_with_a_file_is_said_with_its_row(asked: Any) -> None:
    cut = STROKE[: len(STROKE) // 2]
    cases: list[tuple[Any, int, str, str]] = [
        (form(b"", model="images"), 400, "empty file", "input[0].image"),
        (form(b"hello", model="images"), 415, "no kind that is known", "input[0].image"),
        (form(STROKE, b"<svg xmlns=''/>", model="images"), 415, "HTML, SVG or XML", "input[1].image"),
        (form(LOW, model="images"), 415, "WAV", "input[0].image"),
        (form(STROKE, model="recordings"), 415, "PNG", "input[0].audio"),
        (form(b"ID3\x04mp3", model="recordings"), 415, "MP3", "input[0].audio"),
        (form(STROKE, cut, model="images"), 400, "PNG", "input[1]"),
        (form(bomb(60_000, 60_000), model="images"), 400, "50 million pixels", "input[0]"),
        (form(LOW[:60], model="recordings"), 400, "cut short", "input[0]"),
        (form(audio.to_wav(trained.tone("low", 1)[:0], 8000), model="recordings"), 400, "without samples", "input[0]"),
        (form(STROKE, model="texts"), 400, "reads no files", "input"),
        (form(STROKE, model="nobody"), 404, "no model", "model"),
        (form(model="images"), 400, "no file", "file"),
        (form(STROKE), 400, "model is missing", "model"),
        (form(STROKE, model="images", mood="good"), 400, "unknown parameter", "mood"),
        (form(STROKE, model="images", timeout="soon"), 400, "number of seconds", "timeout"),
        (form(STROKE, name="picture", model="images"), 400, "there is no image", "input[0].image"),
        ({"model": "images", "input": [{"text": "x"}]}, 400, "there is no image", "input[0].image"),
        ({"model": "images", "input": [{"image": 5}]}, 400, "not a int", "input[0].image"),
        ({"model": "images", "input": "data:image/png,raw"}, 400, "without base64", "input[0].image"),
    ]

    async def test(ask: Any, app: Any) -> None:
        for given, status, what, param in cases:
            reply = await ask(given)
            assert reply.status == status and what in reply.error["message"], (what, reply.status, reply.body)
            assert reply.error["param"] == param, reply.body
        assert labels(await ask(form(STROKE, model="images"))) == ["stroke"], "and nothing was harmed"

    asked(test)


def test_limits_stand_in_their_order(asked: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        large = STROKE + bytes(60_000)
        reply = await ask(form(*[large] * 5, model="images"))
        assert (reply.status, reply.code) == (413, "too_many_parts"), "parts before their bytes"
        reply = await ask(form(b"no image" + large, model="images"))
        assert (reply.status, reply.code) == (413, "file_too_large"), "bytes before kinds"
        reply = await ask({"model": "images", "input": base(large)})
        assert (reply.status, reply.code) == (413, "file_too_large")
        reply = await ask(form(STROKE, model="m" * 70_000))
        assert (reply.status, reply.code) == (413, "file_too_large"), "a field is no place for a file"

    asked(test, max_parts=4, max_media=50_000)


def test_a_path_that_is_sent_is_not_opened(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "stroke.png"
    real.write_bytes(STROKE)
    (tmp_path / "abcd").write_bytes(STROKE)
    read: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (read.append(str(self)), original(self))[1])

    async def test(ask: Any, app: Any) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (str(real), "stroke.png", "abcd", f"file://{real}", "/etc/passwd", str(tmp_path / "abcd")):
            for row in (path, {"image": path}, {"file": path}, {"image": {"path": path}}):
                reply = await ask({"model": "images", "input": row})
                assert reply.status in (400, 415), (row, reply.body)
        assert not [path for path in read if path.startswith(str(tmp_path)) and "state" not in path], read

    asked(test)


def test_rows_of_a_file_may_name_files(trained_model: Trained, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_bytes(STROKE)
    (tmp_path / "note.txt").write_text("no picture")
    rows: list[Any] = [
        {"id": 1, "image": "pictures/one.png"},
        {"id": 2, "image": base(RING)},
        str(tmp_path / "pictures" / "one.png"),
        {"id": 4, "image": "note.txt"},
        {"id": 5, "image": "nowhere.png"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = offline.predict(trained_model("images"), tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert counts == {"rows": 5, "failed": 2}
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one.get("label") for one in found] == ["stroke", "ring", "stroke", None, None]
    assert "no kind that is known" in found[3]["error"]["message"]
    assert "no base64 and no file" in found[4]["error"]["message"] and found[4]["id"] == 5


def test_a_batch_job_takes_images(asked: Any, wire: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        bodies = [{"model": "images", "input": base(one)} for one in (STROKE, RING)] + [
            {"model": "images", "input": "x"}
        ]
        lines = [
            {"custom_id": str(place), "method": "POST", "url": "/v1/classify", "body": body}
            for place, body in enumerate(bodies)
        ]
        sent = form("\n".join(map(json.dumps, lines)).encode(), purpose="batch")
        file = json.loads((await ask(sent, "/v1/files")).body)
        job = {"input_file_id": file["id"], "endpoint": "/v1/classify"}
        made = json.loads((await ask(job, "/v1/batches")).body)
        for _ in range(200):
            found = json.loads((await wire.ask(app, "GET", f"/v1/batches/{made['id']}")).body)
            if found["status"] == "completed":
                break
            await asyncio.sleep(0.05)
        assert found["request_counts"] == {"total": 3, "completed": 2, "failed": 1}, found

    asked(test)


# ------------------------------------------------------------------------------------------------ forms


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"--xyz\r\n\r\nno head\r\n--xyz--\r\n",
        b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\nin the middle',
        b'--xyz\r\nContent-Disposition: attachment; name="a"\r\n\r\nx\r\n--xyz--\r\n',
        b'--xyz\r\nContent-Disposition: form-data; name="a"\r\nX: ' + b"y" * 9000 + b"\r\n\r\nx\r\n--xyz--\r\n",
        b'--xyz\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--xyz--',
        b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\xfe\r\n--xyz--\r\n',
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        multipart.read(body, b"xyz", most_parts=4, most_file=100)
    assert caught.value.status == 400


@pytest.mark.parametrize("header", ["multipart/form-data", "multipart/form-data; boundary=", "x; boundary=" + "a" * 71])
def test_a_form_without_a_boundary_is_refused(header: str) -> None:
    with pytest.raises(ApiError, match="boundary"):
        multipart.boundary_of(header)


def test_a_form_is_read_whatever_is_in_its_files() -> None:
    awkward = [b"\r\n--xy", b"--xyz", b"\r\n--xyz" + b"a", b"\r", b"", b"\x00" * 50, "数".encode()]
    _, body = form(*awkward, model="m")
    body = body.replace(b"\r\n--xyza", b"\r\n--xy_a")
    found = multipart.read(
        body, multipart.boundary_of('multipart/form-data; boundary="xyz"'), most_parts=9, most_file=99
    )
    assert found.fields == {"model": "m"}
    assert [content for _, content in found.files] == [one.replace(b"--xyza", b"--xy_a") for one in awkward]


def test_kinds_are_told_by_how_files_begin() -> None:
    from PIL import Image

    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        packed = io.BytesIO()
        Image.new("RGB", (4, 4)).save(packed, kind)
        assert media.kind_of(packed.getvalue()) == ("image", {"WEBP": "WebP"}.get(kind, kind))
    assert media.kind_of(LOW) == ("audio", "WAV") and media.kind_of(b"") == ("", "")


def test_a_model_without_a_tokenizer_has_facts_and_a_probe(trained_model: Trained) -> None:
    facts = models.describe(trained_model("images"))
    assert (facts.kind, facts.evaluation, facts.media) == ("answer", "classes", {"image": "image"})
    assert facts.form == {"height": 28, "width": 28, "channels": 1} and facts.row_numbers == 784
    assert models.Facts.of_data(json.loads(json.dumps(facts.as_data()))) == facts
    heard = models.describe(trained_model("recordings"))
    assert heard.form == {"rate": trained.RATE, "seconds": 0.5} and heard.media == {"audio": "audio"}
    for one, folder in ((facts, "images"), (heard, "recordings")):
        row = inputs.sample(one.columns, one.media, one.form)
        assert groundup.load(trained_model(folder), device="cpu").predict([row])[0]["label"] in one.labels


def test_a_row_counts_as_much_here_as_where_it_is_batched() -> None:
    from groundup.data import vectors

    assert inputs.NUMBERS_PER_TOKEN == vectors.NUMBERS_PER_COST


def test_bytes_cross_the_wire() -> None:
    asked = frames.Answer("m", [{"image": STROKE, "id": 1}, {"image": RING}])
    (found,) = frames.Frames().feed(frames.encode(asked))
    assert found == asked


def test_a_form_is_not_looked_through_as_json(wire: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(body)).encode()})

    limited = Limits(app, Accounts(Usage(), KeyLimits(), max_sockets=2))
    headers, body = form(b"[" * 200 + b"\0", model="m")
    key = {"groundup.key": ANYBODY}
    assert wire.call(limited, "POST", "/v1/classify", headers, body, **key).body == str(len(body)).encode()
    assert wire.call(limited, "POST", "/v1/classify", JSON, body, **key).status == 400
