"""The client, the arithmetic and the page of the serving benchmark; the benchmark itself runs by `make bench`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabc\r\nd\r\n3;x=1\r\nefg\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nno!"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


async def _answered(sent: bytes, step: int, **how: Any) -> Any:
    """What the client makes of an answer that comes in pieces of `step` bytes."""
    from serve_client import Connection

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(sent), step):
            writer.write(sent[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = await Connection.open(f"http://127.0.0.1:{port}")
        return await connection.ask(b"GET / HTTP/1.1\r\n\r\n", patience_s=10, **how)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("sent", "status", "body"), [(CHUNKED, 200, b"abc\r\ndefg"), (SIZED, 404, b"no!")])
def test_an_answer_is_read_however_it_comes(bench: None, sent: bytes, status: int, body: bytes, step: int) -> None:
    reply = asyncio.run(_answered(sent, step))
    assert (reply.status, reply.body, reply.is_whole, reply.why) == (status, body, True, "")


@pytest.mark.parametrize("length", [0, 10, len(CHUNKED) - 1])
def test_an_answer_that_is_cut_off_is_not_whole(bench: None, length: int) -> None:
    reply = asyncio.run(_answered(CHUNKED[:length], 1000))
    assert not reply.is_whole and "closed" in reply.why


def test_a_client_leaves_when_it_should(bench: None) -> None:
    early = asyncio.run(_answered(CHUNKED[:-5], 1000, leave_after=1))
    late = asyncio.run(_answered(CHUNKED, 1, leave_after_s=1e-4))
    assert (early.why, late.why) == ("left", "left")


def test_events_are_told_with_the_time_of_their_end(bench: None) -> None:
    from serve_client import Reply

    pieces = [(1.0, b'data: {"a"'), (2.0, b": 1}\n\n: silence\n\n"), (3.0, b"data: x\r\n\r\ndata: [DONE]\n\n")]
    assert Reply(0.0, pieces=pieces).events() == [(2.0, '{"a": 1}'), (3.0, "x"), (3.0, "[DONE]")]


def test_a_load_takes_times_from_the_pieces(bench: None) -> None:
    from harness import BenchError
    from serve_client import Reply
    from serve_load import Load, _add
    from serve_servers import Groundup

    def event(text: str, **more: Any) -> bytes:
        return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"

    pieces = [(10.5, event("a") + event("b")), (10.6, event("")), (10.8, event("c", usage={"completion_tokens": 4}))]
    reply = Reply(10.0, 200, {}, pieces, 11.0, True)
    found = Load(1, 1.0, 0, 0.0, 0.0)
    _add(found, reply, Groundup("groundup"), 4)
    assert found.first_s == pytest.approx([0.5]) and found.pauses_s == pytest.approx([0.3])
    assert (found.texts, found.tokens, found.pieces) == (["abc"], 4, 3)
    with pytest.raises(BenchError, match="answered 4 tokens, and 5"):
        _add(found, reply, Groundup("groundup"), 5)


def test_the_page_shows_every_rival_and_what_strayed(bench: None) -> None:
    import serve_page

    def rival(rates: list[float], alike: float) -> dict[str, Any]:
        level = {
            "requests": 32, "tokens_s": rates, "first_ms": {"p50": 10.0, "p99": 20.0}, "pause_ms": {"p50": 1, "p99": 2},
            "tokens_per_piece": 1.0, "client_cores": 0.02, "server_cores": 1.5,
        }  # fmt: skip
        told = {"version": "v", "flags": ["--x"], "threads": 2, "start_s": [3.0], "peak_bytes": 2**30, "alike": alike}
        return told | {"clients": {"8": level}}

    text = serve_page.section(
        {
            "model": {"name": "m", "parameters": 30_000_000, "what": "random weights"},
            "rivals": {"groundup": rival([200.0, 400.0], 1.0), "slow": rival([100.0, 200.0], 0.5)},
            "strayed": {"slow": "50% of the answers"}, "rounds": 2, "prompt_tokens": 128, "tokens": 64, "busy": False,
            "command": "bench/serve.py", "date": "2026-01-01", "machine": "cpu",
        }
    )  # fmt: skip
    assert "2.00 [2.00, 2.00]" in text and "**slow strayed: 50% of the answers alike.**" in text
    assert "8 clients, 16 requests a round" in text


def test_what_is_written_as_gguf_is_read_again(bench: None, make_model: Any, tmp_path: Path) -> None:
    """Queries and keys are turned for llama.cpp, and turned back by our own reader."""
    import numpy as np
    import serve_models
    from safetensors.numpy import load_file

    from groundup.checkpoints import gguf

    folder = make_model()
    serve_models.write_gguf(folder, tmp_path / "model.gguf", eos=2)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "again")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], rtol=1e-3, atol=1e-4) for name in before)
