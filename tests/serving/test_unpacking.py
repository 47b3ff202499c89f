"""Files in rows are read in processes that may die of it: limits on memory and time, turns, and who goes on."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import threading
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from groundup.data import images
from groundup.errors import DataError
from groundup.serving import models, wire
from groundup.serving.client import EngineFault
from groundup.serving.faults import Full
from groundup.serving.local import LocalClient
from groundup.serving.unpacking import Encoder, Unpacker

Runs = Callable[[Coroutine[Any, Any, None]], None]
Trained = Callable[[str], Path]
SPEC = importlib.util.spec_from_file_location("trained", Path(__file__).with_name("trained.py"))
assert SPEC is not None and SPEC.loader is not None
trained: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(trained)
STROKE, RING = (images.to_png(trained.image(label, 900)) for label in ("stroke", "ring"))


def wide(width: int, height: int) -> bytes:
    """A PNG of so many black pixels, packed as no program of ours packs them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(height * (1 + width * 3)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.fixture
def section(trained_model: Trained) -> Any:
    checked = models.check(trained_model("images"))
    return models.task_of(checked, {})


def test_a_row_is_encoded_elsewhere_as_it_is_here(section: Any) -> None:
    from groundup import catalog

    task = catalog.load("tasks", section.name).Task(section, None, 1)
    child = Encoder()
    try:
        for data in (STROKE, RING):
            found, wanted = child.encode(section, {"image": data, "id": 0}), task.encode({"image": data})
            assert found["pixel_values"].dtype == wanted["pixel_values"].dtype
            assert (found["pixel_values"] == wanted["pixel_values"]).all() and found["label"] == wanted["label"]
        with pytest.raises(DataError, match="no image"):
            child.encode(section, {"image": None})
    finally:
        child.close()


def test_too_much_memory_fails_the_row_alone(section: Any) -> None:
    child = Encoder(memory=48 << 20)
    try:
        with pytest.raises(DataError, match="memory"):
            child.encode(section, {"image": wide(6000, 6000)})
        assert len(child.encode(section, {"image": STROKE})["pixel_values"]) == 784
    finally:
        child.close()


def test_too_much_time_ends_the_process_and_the_next_row_has_another(section: Any) -> None:
    child = Encoder()
    child.encode(section, {"image": STROKE})
    child.seconds = 0.2
    process = child._process
    assert process is not None
    process.send_signal(19)  # SIGSTOP: what hangs does not answer
    try:
        with pytest.raises(DataError, match=r"not read within 0\.2 s"):
            child.encode(section, {"image": STROKE})
        child.seconds = 10.0
        assert len(child.encode(section, {"image": STROKE})["pixel_values"]) == 784
        assert child._process is not None and child._process.pid != process.pid
        child._process.kill()
        child._process.wait()
        assert len(child.encode(section, {"image": STROKE})["pixel_values"]) == 784, "one that died is replaced"
    finally:
        child.close()


def test_keys_take_turns_and_what_waits_is_bounded(section: Any) -> None:
    unpacker = Unpacker(lambda: None, hands=1, most_bytes=20 * len(STROKE))
    done: list[str] = []
    try:
        first = unpacker.submit(section, {"image": STROKE}, lambda _: None, key="many")
        first.result(60)
        rows = [
            unpacker.submit(section, {"image": STROKE}, lambda _, key=key: done.append(key), key=key)
            for key in ["many"] * 8 + ["one"]
        ]
        for row in rows:
            row.result(60)
        assert done.index("one") <= 2, done
        with pytest.raises(Full):
            for _ in range(100):
                unpacker.submit(section, {"image": STROKE}, lambda _: None, key="many")
    finally:
        unpacker.close()


def test_others_are_answered_while_a_file_hangs(
    trained_model: Trained, make_model: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, over = Encoder.encode, threading.Event()

    def slow(self: Encoder, section: Any, example: Any) -> Any:
        if example["image"] == RING:
            assert over.wait(60)
            raise DataError("the file was not read within 60 s")
        return original(self, section, example)

    monkeypatch.setattr(Encoder, "encode", slow)

    async def test() -> None:
        async with LocalClient() as client:
            await client.load("images", str(trained_model("images")))
            await client.load("texts", str(make_model("text_classification")))

            async def ask(model: str, *rows: Any, **more: Any) -> list[Any]:
                return list((await client.answer(wire.Answer(model, rows, **more))).answers)

            hanging = asyncio.create_task(ask("images", {"image": RING}, {"image": STROKE}))
            await asyncio.sleep(0.1)
            assert "label" in (await ask("texts", {"text": "the red train"}))[0]
            assert (await ask("images", {"image": STROKE}))[0]["label"] == "stroke"
            with pytest.raises(EngineFault) as late:
                await ask("images", {"image": RING}, deadline_s=0.3)
            assert late.value.code == "deadline" and not hanging.done()
            gone = asyncio.create_task(ask("images", {"image": RING}))
            await asyncio.sleep(0.1)
            gone.cancel()
            over.set()
            first, second = await hanging
            assert "not read within" in first["error"]["message"] and second["label"] == "stroke"
            assert (await client.ping()).stats["images"]["waiting"] == 0

    runs(test())


def test_rows_without_bytes_are_refused_by_the_engine_itself(trained_model: Trained, runs: Runs) -> None:
    async def test() -> None:
        async with LocalClient() as client:
            await client.load("images", str(trained_model("images")))
            rows: list[Any] = [{"image": "/etc/passwd"}, {"text": "x"}, {"image": None}, {"image": STROKE}]
            found = (await client.answer(wire.Answer("images", rows))).answers
            assert ["error" in one for one in found] == [True, True, True, False]
            assert all("no image in the column 'image'" in one["error"]["message"] for one in found[:3])

    runs(test())
