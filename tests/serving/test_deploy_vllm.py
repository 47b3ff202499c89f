"""vLLM behind our front: its documented arguments, and what passes to a server that answers as it is documented to."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("h11", reason="pip install 'groundup[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'groundup[serve]'")

from groundup import cli
from groundup.deploy import vllm
from groundup.deploy.upstream import Child, Hosted, Upstream, ask
from groundup.deploy.vllm_front import Vllm, application
from groundup.errors import MissingExtra, StageFailed, UserError
from groundup.serving.models import Facts
from groundup.serving.telemetry import Telemetry

DOCUMENTED = {
    "--served-model-name", "--uds", "--max-model-len", "--disable-uvicorn-access-log", "--enable-request-id-headers",
    "--gpu-memory-utilization", "--tensor-parallel-size", "--max-num-seqs", "--enable-lora", "--max-loras",
    "--max-lora-rank", "--lora-modules",
}  # fmt: skip
"""Arguments of `vllm serve` (docs.vllm.ai, cli/serve, 0.12) that are used here."""


def facts(folder: Path, **given: Any) -> Facts:
    values: dict[str, Any] = {
        "folder": str(folder), "kind": "generate", "task": "chat", "family": "llama", "digest": "d", "context": 2048,
        "vocab_size": 9, "parameters": 9, "weight_bytes": 9, "read_bytes": 9, "token_bytes": 8, "chats": True,
    }  # fmt: skip
    return Facts(**values | given)


@pytest.fixture
def model(tmp_path: Path) -> Facts:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return facts(tmp_path)


# ------------------------------------------------------------------------------ the command


def test_the_command_uses_documented_arguments_only(model: Facts, tmp_path: Path) -> None:
    options = vllm.Options(gpu_memory="80%", gpus=2, max_sequences=64, context=1024)
    words = vllm.command(model, "chat", tmp_path / "s", options, adapters={"a": Path("/x"), "b": Path("/y")})
    assert words[:3] == ["vllm", "serve", model.folder]
    assert {word for word in words if word.startswith("--")} == DOCUMENTED
    given = dict(itertools.pairwise(words))
    assert given["--uds"] == str(tmp_path / "s") and given["--served-model-name"] == "chat"
    assert given["--max-model-len"] == "1024" and given["--gpu-memory-utilization"] == "0.8"
    assert words[words.index("--lora-modules") + 1 :] == ["a=/x", "b=/y"]


def test_what_is_not_given_is_left_to_vllm(model: Facts, tmp_path: Path) -> None:
    words = vllm.command(model, "chat", tmp_path / "s", vllm.Options(context=9999, flags=("--seed", "3")))
    flags = {word for word in words if word.startswith("--")}
    assert flags == {"--served-model-name", "--uds", "--max-model-len", "--seed"} | {
        "--disable-uvicorn-access-log", "--enable-request-id-headers"
    }  # fmt: skip
    assert words[words.index("--max-model-len") + 1] == "2048"  # never more than the model reads
    assert not {"--api-key", "--host", "--port"} & set(words)  # no address to protect


def test_a_model_that_vllm_cannot_open_is_refused_before_anything_starts(model: Facts) -> None:
    with pytest.raises(UserError, match="token_tagging"):
        vllm.require_served(replace(model, kind="answer", task="token_tagging"), "m")
    config = Path(model.folder) / "config.json"
    config.write_text('{"quantization_config": {"quant_method": "gptq"}}')
    vllm.require_served(model, "m")
    config.write_text('{"quantization_config": {"quant_method": "groundup-dynamic-int8"}}')
    with pytest.raises(UserError, match="groundup-dynamic-int8"):
        vllm.require_served(model, "m")


def test_without_vllm_the_error_names_the_extra(model: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtra, match=r"groundup\[vllm\]"):
        application(model, "m", vllm.Options(), guards=None, telemetry=Telemetry())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "vlm"], "did you mean 'vllm'"),
        (["--engine", "vllm", "--vllm", "gpu_memry=1"], "gpu_memry"),
        (["--vllm", "gpus=2"], "without vLLM"),
        (["--engine", "vllm", "--canary", "chat=x"], "no candidate"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(make_model: Any, arguments: list[str], said: str) -> None:
    model = f"chat={make_model('language_modeling')}"
    done = CliRunner().invoke(cli.app, ["serve", "--model", model, "--no-auth-i-understand", *arguments])
    assert isinstance(done.exception, UserError) and said in str(done.exception)


# ------------------------------------------------------------------------------ the front

STAND_IN = """
import asyncio, json, sys
import uvicorn

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    async def start(status, kind=b"application/json"):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    async def end(data):
        await send({"type": "http.response.body", "body": data})
    path = scope["path"]
    if path == "/metrics":
        await start(200, b"text/plain")
        return await end(b"# HELP vllm:num_requests_running r\\n# TYPE vllm:num_requests_running gauge\\n"
                         b"vllm:num_requests_running{model_name=\\"m\\"} 3\\n"
                         b"# TYPE process_open_fds gauge\\nprocess_open_fds 7\\n")
    if path == "/health":
        await start(200)
        return await end(b"")
    if path == "/v1/models":
        await start(200)
        return await end(json.dumps({"headers": sorted(n.decode() for n, _ in scope["headers"])}).encode())
    if path not in ("/v1/completions", "/v1/chat/completions"):
        await start(200)
        return await end(b"an open route")
    asked = json.loads(body)
    if asked.get("prompt") == "die":
        import os
        os._exit(3)
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    if not asked.get("stream"):
        await start(200)
        return await end(json.dumps({"choices": [{"text": "abc"}], "usage": usage}).encode())
    await start(200, b"text/event-stream")
    async def event(data):
        line = f"data: {json.dumps(data)}\\n\\n".encode()
        await send({"type": "http.response.body", "body": line, "more_body": True})
    for piece in "abc":
        await event({"choices": [{"text": piece}]})
        if asked.get("prompt") == "for ever":
            message = await receive()
            open(sys.argv[2], "w").write(message["type"])
            return
    if (asked.get("stream_options") or {}).get("include_usage"):
        await event({"choices": [], "usage": usage})
    await end(b"data: [DONE]\\n\\n")

uvicorn.run(app, uds=sys.argv[1], log_level="error", lifespan="off")
"""


@pytest.fixture
def behind(tmp_path: Path) -> Callable[[], Any]:
    """A server that answers as vLLM documents it, behind our front."""
    pytest.importorskip("uvicorn", reason="pip install 'groundup[serve]'")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    socket, left = tmp_path / "s.sock", tmp_path / "left"

    @asynccontextmanager
    async def start() -> AsyncIterator[SimpleNamespace]:
        command = [sys.executable, str(tmp_path / "stand_in.py"), str(socket), str(left)]
        child = Child(command, socket, "/health", {}, start_s=30, grace_s=2)
        await child.start()
        figures = Telemetry()
        secrets = frozenset({b"authorization", b"x-api-key", b"cookie"})
        front = Vllm(Upstream(socket, drops=secrets), child, figures, ["m"])
        try:
            yield SimpleNamespace(front=front, child=child, figures=figures, left=left)
        finally:
            await child.stop()
            assert not child.is_alive

    return start


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


KEY = SimpleNamespace(id="abcd1234", name="k", scopes={"infer"})


def post(wire: Any, front: Any, **data: Any) -> Any:
    body = json.dumps({"model": "m", **data}).encode()
    headers = [("content-length", str(len(body))), ("authorization", "Bearer gu_x")]
    return wire.ask(front, "POST", "/v1/completions", headers, body, **{"groundup.key": KEY})


def count(figures: Telemetry, name: str) -> float:
    text = figures.exposition()[0].decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"groundup:{name}{{"))


def test_an_answer_passes_and_its_tokens_are_counted(wire: Any, behind: Any) -> None:
    async def test() -> None:
        async with behind() as at:
            reply = await post(wire, at.front, prompt="a")
            assert reply.status == 200 and json.loads(reply.body)["choices"] == [{"text": "abc"}]
            reply = await post(wire, at.front, prompt="a", stream=True)
            assert reply.body.count(b"data: ") == 4 and b"usage" not in reply.body  # not asked for
            reply = await post(wire, at.front, prompt="a", stream=True, stream_options={"include_usage": True})
            assert reply.body.count(b"data: ") == 5 and b'"usage"' in reply.body
            assert count(at.figures, "key_generation_tokens_total") == 9
            assert count(at.figures, "key_prompt_tokens_total") == 15
            assert count(at.figures, "generation_tokens_total") == 9
            assert count(at.figures, "request_success_total") == 3

    run(test())


def test_only_the_routes_that_are_named_go_through_and_no_key_does(wire: Any, behind: Any) -> None:
    async def test() -> None:
        async with behind() as at:
            for path in ("/pause", "/update_weights", "/v1/load_lora_adapter", "/invocations", "/v1/models/../pause"):
                for method in ("GET", "POST"):
                    assert (await wire.ask(at.front, method, path)).status == 404
            assert (await wire.ask(at.front, "DELETE", "/v1/models")).status == 405
            headers = [
                ("authorization", "Bearer gu_x"),
                ("x-api-key", "gu_x"),
                ("cookie", "s=1"),
                ("x-request-id", "r"),
            ]
            seen = json.loads((await wire.ask(at.front, "GET", "/v1/models", headers)).body)["headers"]
            assert "x-request-id" in seen and not {"authorization", "x-api-key", "cookie"} & set(seen)
            assert (
                await wire.ask(at.front, "POST", "/v1/completions", [("content-length", "3")], b"[1]")
            ).status == 400

    run(test())


def test_ready_means_that_a_token_came(wire: Any, behind: Any) -> None:
    async def test() -> None:
        async with behind() as at:
            assert (await wire.ask(at.front, "GET", "/readyz")).status == 200
            assert (await wire.ask(at.front, "GET", "/livez")).status == 200
            at.child.process.kill()
            at.child.process.wait()
            assert (await wire.ask(at.front, "GET", "/readyz")).status == 200  # a token came a moment ago
            at.front._proven -= 60
            assert (await wire.ask(at.front, "GET", "/readyz")).status == 503

    run(test())


def test_metrics_are_ours_and_theirs_and_none_twice(wire: Any, behind: Any) -> None:
    async def test() -> None:
        async with behind() as at:
            text = (await wire.ask(at.front, "GET", "/metrics")).body.decode()
            assert 'vllm:num_requests_running{model_name="m"} 3' in text
            types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
            assert len(types) == len(set(types)) and "groundup:http_requests" in " ".join(types)

    run(test())


def test_a_client_that_leaves_ends_the_work_there(wire: Any, behind: Any) -> None:
    async def test() -> None:
        async with behind() as at:
            body = json.dumps({"model": "m", "prompt": "for ever", "stream": True}).encode()
            messages = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])
            got = asyncio.Event()

            async def receive() -> Any:
                message = next(messages)
                if message["type"] == "http.disconnect":
                    await got.wait()
                return message

            async def send(message: Any) -> None:
                if message.get("body"):
                    got.set()

            await at.front(wire.scope_of("POST", "/v1/completions"), receive, send)
            for _ in range(100):
                await asyncio.sleep(0.05)
                if at.left.exists() and at.left.read_text():
                    break
            assert at.left.read_text() == "http.disconnect"

    run(test())


def test_a_server_that_is_gone_is_a_503_and_is_started_again(wire: Any, behind: Any) -> None:
    async def test() -> None:
        async with behind() as at:
            hosted = Hosted(at.child, at.front)
            watching = asyncio.create_task(hosted._watch())
            reply = await post(wire, hosted, prompt="die")
            assert reply.status == 503 and reply.code == "engine_gone" and int(reply["retry-after"]) > 0
            for _ in range(200):
                await asyncio.sleep(0.05)
                if hosted.restarts and at.child.is_alive and (await ask(at.child.address, "/health"))[0] == 200:
                    break
            assert (await post(wire, hosted, prompt="a")).status == 200
            watching.cancel()

    run(test())


def test_a_child_that_does_not_come_up_is_a_clear_error(tmp_path: Path) -> None:
    async def test() -> None:
        child = Child([sys.executable, "-c", "raise SystemExit(4)"], tmp_path / "s", "/health", {}, start_s=20)
        with pytest.raises(StageFailed, match="exit code 4"):
            await child.start()
        sleeper = Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "s", "/health", {}, start_s=1)
        with pytest.raises(StageFailed, match="not ready"):
            await sleeper.start()
        assert not sleeper.is_alive

    run(test())
