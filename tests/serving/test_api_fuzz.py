"""Bodies with something wrong anywhere in them: the answer is never a 5xx, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
JSON = [("content-type", "application/json")]
TOOL = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "go", "arguments": "{}"}}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "chat", "max_tokens": 3, "n": 2, "stop": ["x"], "logit_bias": {"5": 1}, "logprobs": True,
        "top_logprobs": 2, "seed": 1, "temperature": 0.5, "top_p": 0.9, "stream_options": {"include_usage": True},
        "tools": [TOOL], "tool_choice": "auto", "chat_template_kwargs": {"thinking": True}, "timeout": 5,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "go"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "done"},
        ],
    },
    "/v1/completions": {
        "model": "plain", "prompt": ["the", "red"], "max_tokens": 3, "echo": True, "logprobs": 2, "n": 1, "best_of": 1,
        "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1, "top_k": 5, "min_p": 0.1,
        "min_tokens": 1, "guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}}, "timeout": 5,
    },
    "/v1/score": {"model": "plain", "prompt": "the", "text": ["red train"], "timeout": 5},
    "/v1/embeddings": {"model": "embedding", "input": ["the", "red"], "encoding_format": "float", "timeout": 5},
    "/v1/rerank": {"model": "embedding", "query": "the", "documents": ["a", "b"], "top_n": 1, "timeout": 5},
    "/v1/classify": {"model": "text_classification", "input": [{"text": "the red train"}], "timeout": 5},
    "/v1/batches": {"input_file_id": "file-" + "0" * 24, "endpoint": "/v1/completions", "metadata": {"a": "b"}},
    "/v1/admin/models": {"name": "new", "path": "nowhere", "options": {"max_sequences": 2}},
    "/v1/load_lora_adapter": {"lora_name": "new", "lora_path": "nowhere", "model": "plain"},
}  # fmt: skip
POISON: list[Any] = [
    None, True, -1, 0, 1e308, -1e-308, 2**62, "", "x", "字" * 50, "\u0000", "\u202e", "<|im_end|>", "../../etc", [], {},
    [None], [[]], {"": ""}, {"type": "text"}, {"$ref": "#"}, {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"pattern": "(a+)+$"}, "{" * 40, "x" * 20_000, [[1, 2]], [-5], [999_999], {"anyOf": []}, "nobody", "chat", "plain",
]  # fmt: skip
EACH = 60


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(*path, key), *places(item, (*path, key))]]


def spoilt(good: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A body with one or two things in it changed, taken away or added."""
    body: Any = copy.deepcopy(good)
    for _ in range(draw.choice([1, 1, 2])):
        *parents, last = draw.choice(places(body) or [("model",)])
        place = body
        for key in parents:
            place = place[key]
        kind = draw.random()
        if kind < 0.75:
            place[last] = draw.choice(POISON)
        elif kind < 0.9:
            del place[last]
        elif isinstance(place, dict):
            place[draw.choice(["", "x", "stream", "model ", "__proto__"])] = draw.choice(POISON)
    return dict(body)


def test_nothing_wrong_in_a_body_is_ever_the_servers_fault(
    serve_api: Any, make_model: Make, wire: Any, runs: Runs
) -> None:
    draw = random.Random(4)
    models = {"chat": make_model("chat", seed=2, context=1024), "plain": make_model()}
    models |= {task: make_model(task) for task in ("embedding", "text_classification")}

    async def test() -> None:
        async with serve_api(models) as app:

            async def ask(path: str, body: Any) -> Any:
                return await wire.ask(app, "POST", path, JSON, json.dumps(body).encode())

            seen: dict[int, int] = {}
            for path, good in GOOD.items():
                bodies = [spoilt(good, draw) for _ in range(EACH)]
                for start in range(0, EACH, 6):
                    part = bodies[start : start + 6]
                    for body, reply in zip(part, await asyncio.gather(*(ask(path, b) for b in part)), strict=True):
                        assert reply.status is not None and reply.status < 500, (
                            path,
                            str(body)[:500],
                            reply.body[:500],
                        )
                        seen[reply.status] = seen.get(reply.status, 0) + 1
                        if reply.status >= 400:
                            assert reply.error["message"] and reply.error["type"], reply.body[:500]
            assert seen[200] > 50 and seen[400] > 200, seen
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/classify"):
                assert (await ask(path, GOOD[path])).status == 200
            stats = (await app.api.client.ping()).stats
            assert not any(one.get("running") or one.get("waiting") for one in stats.values()), stats

    runs(test())
