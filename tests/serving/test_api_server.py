"""`groundup serve` as its users meet it: a process, a port, a key, and OpenAI's own client."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import groundup

openai = pytest.importorskip("openai", reason="pip install 'groundup[dev]'")
pytest.importorskip("uvicorn", reason="pip install 'groundup[serve]'")

SPEC = importlib.util.spec_from_file_location("running", Path(__file__).parent / "running.py")
assert SPEC is not None and SPEC.loader is not None
running = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(running)
Running: Any = running.Running
Make = Callable[..., Path]
CHAT = {"seed": 2, "context": 1024}
"""A model that has something to say."""
QUESTION = [{"role": "user", "content": "where did the red train go?"}]


class Server(Running):  # type: ignore[misc]
    """A running `groundup serve`, and OpenAI's client for it."""

    def client(self, **more: Any) -> Any:
        given = {"base_url": f"{self.url}/v1", "api_key": self.key, "max_retries": 0, "timeout": 60}
        return openai.OpenAI(**given | more)

    def get(self, path: str, key: str | None = "") -> tuple[int, str]:
        """The status and body of a GET."""
        status, _, body = self.ask(path, key=key)
        return status, body


@pytest.fixture(scope="module")
def server(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a chat model, a plain one, a classifier and an encoder."""
    tasks = ("chat", "language_modeling", "text_classification", "embedding")
    models = [f"--model={task}={make_model(task, **CHAT if task == 'chat' else {})}" for task in tasks]
    started = Server(tmp_path_factory.mktemp("server"), *models, "--cache", "16MiB", "--max-queue", "8")
    yield started
    started.end_well()


def test_the_official_client_chats(server: Server, make_model: Make) -> None:
    wanted = groundup.load(make_model("chat", **CHAT), device="cpu").chat(QUESTION, temperature=0, max_new_tokens=20)  # type: ignore[operator]
    with server.client() as client:
        given = {"model": "chat", "messages": QUESTION, "temperature": 0, "max_completion_tokens": 20}
        found = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
        assert found.choices[0].message.content == wanted
        assert found.usage.completion_tokens == 20 and len(found.choices[0].logprobs.content) == 20
        stream = client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True})
        pieces = list(stream)
        assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == wanted
        assert pieces[-1].usage.total_tokens == found.usage.total_tokens
        raw = client.chat.completions.with_raw_response.create(**given)
        assert raw.headers["x-request-id"] and raw.headers["x-model-digest"] == found.system_fingerprint


def test_the_official_client_does_all_the_rest(server: Server) -> None:
    with server.client() as client:
        assert {model.id for model in client.models.list()} >= {"chat", "language_modeling"}
        done = client.completions.create(model="language_modeling", prompt=["the", "去"], n=2, max_tokens=4)
        assert len(done.choices) == 4
        vectors = client.embeddings.create(model="embedding", input=["the red train", "去哪里"])
        assert len(vectors.data) == 2 and abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-4
        body = {"model": "language_modeling", "prompt": "the", "max_tokens": 3}
        lines = [{"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body} for i in range(5)]
        content = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("rows.jsonl", content), purpose="batch")
        job = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        for _ in range(300):
            job = client.batches.retrieve(job.id)
            if job.status == "completed":
                break
            time.sleep(0.1)
        assert job.request_counts.completed == 5
        assert len(client.files.content(job.output_file_id).text.splitlines()) == 5
        assert client.files.delete(file.id).deleted


def test_the_official_client_raises_the_right_classes(server: Server) -> None:
    with server.client() as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError):
            create(model="nobody", messages=QUESTION)
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="chat", messages=QUESTION, temperature=-1)
        assert caught.value.param == "temperature" and caught.value.request_id
        with pytest.raises(openai.BadRequestError, match="context") as caught:
            create(model="chat", messages=[{"role": "user", "content": "x " * 3000}])
        assert caught.value.code == "context_length_exceeded"
    with server.client(api_key="gu_nobody") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_full_queue_says_when_to_come_again(server: Server) -> None:
    found: list[Any] = []

    def ask() -> None:
        with server.client() as client:
            try:
                given = {"prompt": "the", "max_tokens": 200, "n": 16, "extra_body": {"ignore_eos": True}}
                found.append(client.completions.create(model="language_modeling", **given))
            except openai.APIStatusError as error:
                found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [one for one in found if isinstance(one, openai.APIStatusError)]
    assert refused and all(isinstance(one, openai.RateLimitError) for one in refused), found
    assert all(int(one.response.headers["retry-after"]) >= 1 for one in refused)


def test_the_server_outlives_its_engine(server: Server) -> None:
    server.until_ready()
    found: list[Any] = []

    def ask() -> None:
        with server.client() as client:
            try:
                extra = {"ignore_eos": True}
                found.append(
                    client.completions.create(
                        model="language_modeling", prompt="the", max_tokens=200, n=8, extra_body=extra
                    )
                )
            except openai.APIError as error:
                found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    server.engine.kill()
    for thread in threads:
        thread.join()
    assert any(isinstance(one, openai.InternalServerError) and one.status_code == 503 for one in found), found
    assert server.get("/livez", None) == (200, "yes")
    server.until_ready()
    with server.client(max_retries=5) as client:
        assert client.completions.create(model="language_modeling", prompt="the", max_tokens=3).choices[0].text
    assert 'engine_restarts_total{cause="crash",engine="0"} 1.0' in server.get("/metrics")[1]


def test_no_route_answers_without_a_key(server: Server) -> None:
    described = json.loads(server.get("/openapi.json")[1])
    paths = [*described["paths"], "/docs", "/session", "/anything"]
    for path in paths:
        status, _ = server.get(path.replace("{", "").replace("}", ""), None)
        assert status == (200 if path in ("/livez", "/readyz") else 401), path


def test_sigterm_lets_running_work_finish(make_model: Make, tmp_path: Path) -> None:
    started = Server(
        tmp_path / "own", str(make_model()), "--cache", "16MiB", "--no-auth-i-understand", "--grace", "20s"
    )
    assert started.key is None
    started.key = "none needed"
    name = make_model().name
    found: list[Any] = []

    def ask() -> None:
        with started.client() as client:
            extra = {"ignore_eos": True}
            stream = client.completions.create(model=name, prompt="the", max_tokens=230, stream=True, extra_body=extra)
            found.extend(stream)

    thread = threading.Thread(target=ask)
    thread.start()
    while not found and thread.is_alive():
        time.sleep(0.005)
    log = started.end()
    thread.join()
    assert found[-1].choices[0].finish_reason == "length"
    assert started.process.returncode == 0, log


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve"], "no model is named"),
        (["serve", "runs/none/base"], "there is nothing at"),
        (["serve", "--model", "x"], "names no path"),
        (["serve", ".", "--port", "99999"], "port"),
        (["predict", ".", "--in", "none.jsonl", "--out", "x.jsonl"], "there is no file"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], expected: str) -> None:
    command = [sys.executable, "-m", "groundup", *arguments]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2, failed
    assert expected in failed.stderr and "Traceback" not in failed.stderr


def test_plan_says_whether_it_fits(make_model: Make) -> None:
    command = [sys.executable, "-m", "groundup", "serve", f"--model=m={make_model()}", "--plan"]
    planned = subprocess.run([*command, "--cache", "16MiB"], capture_output=True, text=True, timeout=120)
    assert planned.returncode == 0 and "tokens/s" in planned.stdout, planned
    refused = subprocess.run([*command, "--cache", "9999GiB"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "are free" in refused.stderr and "fix:" in refused.stderr
