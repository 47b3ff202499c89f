"""The routes beside the models: what every answer carries, the description, administration."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from groundup.serving.keys import KeyLimits, Principal

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
CHAT = {"seed": 2, "context": 1024}
"""A model that has something to say."""
JSON = [("content-type", "application/json")]


def principal(*scopes: str) -> dict[str, Any]:
    """What authentication puts into a scope."""
    return {"groundup.key": Principal("k1", "somebody", frozenset(scopes), KeyLimits())}


@pytest.fixture
def asked(serve_api: Any, make_model: Make, wire: Any, runs: Runs) -> Callable[..., None]:
    """A function that serves a model and runs a test with it."""

    def run(test: Callable[[Any, Any], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            async with serve_api({"plain": make_model(), "chat": make_model("chat", **CHAT)}) as app:

                async def ask(method: str, path: str, body: Any = None, headers: Any = JSON, **more: Any) -> Any:
                    data = b"" if body is None else json.dumps(body).encode()
                    return await wire.ask(app, method, path, headers, data, **more)

                await test(ask, app)

        runs(body())

    return run


def test_every_answer_has_an_id_and_says_of_which_model_it_is(asked: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        served = app.api.registry.served
        both = ",".join(one.digest for one in served.values())
        body = {"model": "plain", "prompt": "the", "max_tokens": 2}
        found = await ask("POST", "/v1/completions", body)
        assert found["x-model-digest"] == served["plain"].digest and len(found["x-request-id"]) >= 32
        for method, path, status in (
            ("GET", "/v1/models", 200), ("GET", "/nothing", 404), ("PUT", "/v1/models", 405), ("GET", "/docs", 200),
        ):  # fmt: skip
            reply = await ask(method, path)
            assert reply.status == status and reply["x-request-id"] and reply["x-model-digest"] == both
        assert (await ask("POST", "/v1/completions", {"model": "plain"} | {"n": 99})).status == 400
        for path in ("/livez", "/readyz"):
            reply = await ask("GET", path)
            assert reply.body == b"yes" and "x-model-digest" not in dict(reply.headers)

    asked(test)


def test_models_are_listed_with_what_they_are(asked: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        listed = {one["id"]: one for one in json.loads((await ask("GET", "/v1/models")).body)["data"]}
        assert set(listed) == {"plain", "chat"}
        assert listed["chat"]["chats"] and not listed["plain"]["chats"]
        assert listed["plain"]["kind"] == "generate" and listed["plain"]["max_model_len"] == 256
        assert json.loads((await ask("GET", "/v1/models/chat")).body) == listed["chat"]
        missing = await ask("GET", "/v1/models/chad")
        assert missing.status == 404 and "did you mean 'chat'" in missing.error["message"]

    asked(test)


def test_the_description_needs_no_network(asked: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        page = (await ask("GET", "/docs")).body.decode()
        assert not re.search(r"https?:|<script|@import|url\(", page)
        described = json.loads((await ask("GET", "/openapi.json")).body)
        for path in ("/v1/chat/completions", "/v1/classify", "/v1/batches", "/v1/admin/models", "/livez"):
            assert path in described["paths"] and path.replace("{", "{") in page
        assert "stream_options" in page and "Taken and let go" in page
        body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]
        assert "application/json" in body["content"]

    asked(test)


def test_metrics_count_what_was_asked(asked: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        await ask("POST", "/v1/completions", {"model": "plain", "prompt": "the", "max_tokens": 5, "ignore_eos": True})
        text = (await ask("GET", "/metrics")).body.decode()
        assert 'groundup:generation_tokens_total{model_name="plain"} 5.0' in text
        assert (
            'finished_reason="length",model_name="plain"' in text
            or 'model_name="plain",finished_reason="length"' in text
        )

    asked(test)


def test_models_come_and_go(asked: Any, make_model: Make) -> None:
    other = make_model(seed=5)

    async def test(ask: Any, app: Any) -> None:
        before = await ask("POST", "/v1/completions", {"model": "extra", "prompt": "the"})
        assert before.status == 404
        load = {"name": "extra", "path": str(other), "options": {"max_sequences": 2}}
        loaded = await ask("POST", "/v1/admin/models", load)
        assert loaded.status == 200, loaded.body
        assert (await ask("POST", "/v1/admin/models", load)).status == 409
        asked = {"model": "extra", "prompt": "the", "max_tokens": 3}
        assert (await ask("POST", "/v1/completions", asked)).status == 200
        assert (await ask("DELETE", "/v1/admin/models/extra")).status == 200
        assert (await ask("POST", "/v1/completions", asked)).status == 404
        assert (await ask("DELETE", "/v1/admin/models/extra")).status == 404
        for options in ({"max_sequence": 2}, {"public_key": None}, {"max_sequences": "many"}):
            assert (await ask("POST", "/v1/admin/models", load | {"options": options})).status == 400
        for path in ("/nowhere", str(other / "config.json")):
            assert (await ask("POST", "/v1/admin/models", load | {"path": path})).status == 400
        stats = json.loads((await ask("GET", "/v1/admin/stats")).body)
        assert set(stats["models"]) == {"plain", "chat"}

    asked(test)


def test_administration_needs_its_scope(asked: Any) -> None:
    async def test(ask: Any, app: Any) -> None:
        described = json.loads((await ask("GET", "/openapi.json")).body)["paths"]
        routes = [(m, p) for p, methods in described.items() for m in methods if "/admin" in p or "lora" in p]
        assert len(routes) >= 6
        bodies = {"/v1/admin/models": {"name": "x", "path": "y"}, "/v1/unload_lora_adapter": {"lora_name": "x"}}
        bodies["/v1/load_lora_adapter"] = {"lora_name": "x", "lora_path": "y"}
        for method, path in routes:
            reply = await ask(method.upper(), path.replace("{name}", "plain"), bodies.get(path), **principal("infer"))
            assert reply.status == 403 and reply.code == "insufficient_scope", (path, reply.body)
        assert set(app.api.registry.served) == {"plain", "chat"}

    asked(test)


def test_an_adapter_is_a_name_of_its_own(asked: Any, make_model: Make, tmp_path: Path) -> None:
    from groundup import catalog
    from groundup.checkpoints import hugging_face, peft

    lora = catalog.load("adapters", "lora")
    network = lora.wrap(hugging_face.load(make_model()), lora.Config(rank=2))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    peft.save_adapter(tmp_path / "poet", network, base=str(make_model()))

    async def test(ask: Any, app: Any) -> None:
        body = {"model": "plain", "prompt": "the red", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        load = {"lora_name": "poet", "lora_path": str(tmp_path / "poet")}
        which = await ask("POST", "/v1/load_lora_adapter", load)
        assert which.status == 400 and which.error["param"] == "model", "two models generate"
        loaded = await ask("POST", "/v1/load_lora_adapter", load | {"model": "plain"})
        assert loaded.status == 200 and loaded.body.startswith(b"Success"), loaded.body
        plain = await ask("POST", "/v1/completions", body)
        tuned = await ask("POST", "/v1/completions", body | {"model": "poet"})
        assert json.loads(plain.body)["choices"][0]["text"] != json.loads(tuned.body)["choices"][0]["text"]
        assert plain["x-model-digest"] != tuned["x-model-digest"]
        listed = {one["id"]: one for one in json.loads((await ask("GET", "/v1/models")).body)["data"]}
        assert listed["poet"]["parent"] == "plain"
        assert (await ask("POST", "/v1/unload_lora_adapter", {"lora_name": "plain"})).status == 400
        assert (await ask("POST", "/v1/unload_lora_adapter", {"lora_name": "poet"})).status == 200
        assert (await ask("POST", "/v1/completions", body | {"model": "poet"})).status == 404
        missing = await ask("POST", "/v1/load_lora_adapter", load | {"model": "plain", "lora_path": "nowhere"})
        assert missing.status == 400

    asked(test)
