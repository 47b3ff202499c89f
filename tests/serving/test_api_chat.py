"""Chats and completions over ASGI, with a real model behind them: what comes out is what the library gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import groundup

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
CHAT = {"seed": 2, "context": 1024}
"""A model that has something to say."""
JSON = [("content-type", "application/json")]
QUESTION = [{"role": "user", "content": "where did the red train go?"}]
GREEDY = {"temperature": 0, "max_tokens": 24}


class Asking:
    """Sends JSON to an application and reads what comes back."""

    def __init__(self, wire: Any, app: Any) -> None:
        self.wire, self.app = wire, app

    async def raw(self, path: str, body: Any, **more: Any) -> Any:
        """The whole reply."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.wire.ask(self.app, "POST", path, JSON, data, **more)

    async def __call__(self, path: str, /, **body: Any) -> dict[str, Any]:
        reply = await self.raw(path, body)
        assert reply.status == 200, reply.body
        found: dict[str, Any] = json.loads(reply.body)
        return found

    async def events(self, path: str, /, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, which must end as streams do."""
        reply = await self.raw(path, body | {"stream": True})
        assert reply.status == 200, reply.body
        assert reply["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.body.decode().split("\n\n") if line and not line.startswith(":")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture
def asked(serve_api: Any, make_model: Make, wire: Any, runs: Runs) -> Callable[..., None]:
    """A function that runs a test against an application with the models `chat` and `plain`."""

    def run(test: Callable[[Asking], Coroutine[Any, Any, None]], **settings: Any) -> None:
        async def body() -> None:
            models = {"chat": make_model("chat", **CHAT), "plain": make_model()}
            async with serve_api(models, **settings) as app:
                await test(Asking(wire, app))

        runs(body())

    return run


def test_a_chat_is_answered_as_the_library_answers(asked: Any, make_model: Make) -> None:
    model = groundup.load(make_model("chat", **CHAT), device="cpu")  # type: ignore[operator]
    wanted = model.chat(QUESTION, temperature=0, max_new_tokens=24)

    async def test(ask: Asking) -> None:
        found = await ask("/v1/chat/completions", model="chat", messages=QUESTION, **GREEDY)
        choice = found["choices"][0]
        assert choice["message"]["content"] == wanted
        assert found["object"] == "chat.completion" and found["model"] == "chat"
        assert found["system_fingerprint"] == ask.app.api.registry.get("chat").digest
        usage = found["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] == 24 and choice["finish_reason"] == "length"
        events = await ask.events("/v1/chat/completions", model="chat", messages=QUESTION, **GREEDY)
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == wanted
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert len({event["id"] for event in events}) == 1

    asked(test)


def test_a_text_is_continued_as_the_library_continues_it(asked: Any, make_model: Make) -> None:
    model = groundup.load(make_model(), device="cpu")  # type: ignore[operator]
    prompts = ["the red train", "去哪里", ""]
    wanted = [model.generate(text, temperature=0, max_new_tokens=24) for text in prompts]

    async def test(ask: Asking) -> None:
        found = await ask("/v1/completions", model="plain", prompt=prompts, **GREEDY)
        assert [choice["text"] for choice in found["choices"]] == wanted
        echoed = await ask("/v1/completions", model="plain", prompt=prompts[0], echo=True, **GREEDY)
        assert echoed["choices"][0]["text"] == prompts[0] + wanted[0]
        ids = [*model.beginning.before(prompts[0]), *model.tokenizer.encode(prompts[0])]
        by_ids = await ask("/v1/completions", model="plain", prompt=ids, **GREEDY)
        assert by_ids["choices"][0]["text"] == wanted[0]
        events = await ask.events("/v1/completions", model="plain", prompt=prompts, **GREEDY)
        for place, text in enumerate(wanted):
            mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == place]
            assert "".join(one["text"] for one in mine) == text

    asked(test)


def test_a_seed_settles_each_of_several_answers(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        given = {"model": "chat", "messages": QUESTION, "max_tokens": 12, "n": 3, "seed": 7}
        first, second = [await ask("/v1/chat/completions", **given) for _ in range(2)]
        texts = [choice["message"]["content"] for choice in first["choices"]]
        assert texts == [choice["message"]["content"] for choice in second["choices"]]
        assert len(set(texts)) == 3
        free = [await ask("/v1/chat/completions", **{**given, "seed": None, "n": 1}) for _ in range(4)]
        assert len({one["choices"][0]["message"]["content"] for one in free}) > 1

    asked(test)


def test_a_stop_string_ends_the_text_and_its_work(asked: Any, make_model: Make) -> None:
    model = groundup.load(make_model(), device="cpu")  # type: ignore[operator]
    text = model.generate("the red train", temperature=0, max_new_tokens=200)
    stop = text[20:24]

    async def test(ask: Asking) -> None:
        body = {"model": "plain", "prompt": "the red train", "temperature": 0, "max_tokens": 200, "stop": [stop]}
        found = await ask("/v1/completions", **body)
        choice = found["choices"][0]
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
        streamed = await ask.events("/v1/completions", **body)
        assert "".join(event["choices"][0]["text"] for event in streamed) == choice["text"]
        await settled(ask)

    asked(test)


async def settled(ask: Asking) -> None:
    """Wait until nothing runs and nothing waits in the engine."""
    for _ in range(300):
        stats = (await ask.app.api.client.ping()).stats
        if all(not one.get("running") and not one.get("waiting") for one in stats.values()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"work is left behind: {stats}")


def test_log_probabilities_are_those_of_the_model(asked: Any, make_model: Make) -> None:
    model = groundup.load(make_model(), device="cpu")  # type: ignore[operator]

    async def test(ask: Asking) -> None:
        chat = await ask(
            "/v1/chat/completions", model="chat", messages=QUESTION, logprobs=True, top_logprobs=3, **GREEDY
        )
        told = chat["choices"][0]["logprobs"]["content"]
        assert len(told) == 24
        for one in told:
            best = one["top_logprobs"]
            assert len(best) == 3 and best[0]["logprob"] == one["logprob"] and best[0]["token"] == one["token"]
            assert bytes(one["bytes"]).decode("utf-8", "replace") == one["token"]
        prompt = "the red train went to Lima"
        found = await ask(
            "/v1/completions", model="plain", prompt=prompt, echo=True, logprobs=2, max_tokens=0, temperature=0
        )
        told = found["choices"][0]["logprobs"]
        ids = model.tokenizer.encode(prompt)
        assert len(told["tokens"]) == len(ids) and "".join(told["tokens"]) == prompt
        assert all(value < 0 for value in told["token_logprobs"] if value is not None)
        scored = await ask("/v1/score", model="plain", prompt="", text=prompt)
        given = [value for value in told["token_logprobs"] if value is not None]
        assert scored["data"][0]["token_logprobs"][-len(given) :] == pytest.approx(given, abs=1e-4)

    asked(test)


def test_usage_comes_last_in_a_stream_that_asks_for_it(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        options = {"include_usage": True}
        for path, body in (
            ("/v1/chat/completions", {"model": "chat", "messages": QUESTION}),
            ("/v1/completions", {"model": "plain", "prompt": "the"}),
        ):
            events = await ask.events(path, **body, stream_options=options, **GREEDY)
            assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 24
            assert all(event["usage"] is None for event in events[:-1])

    asked(test)


def test_an_answer_is_held_to_a_schema(asked: Any) -> None:
    pytest.importorskip("llguidance", reason="pip install 'groundup[serve]'")
    schema = {
        "type": "object",
        "properties": {"town": {"enum": ["Lima", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["town", "days"],
        "additionalProperties": False,
    }

    async def test(ask: Asking) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": True}}
        asked = {"model": "chat", "messages": QUESTION, "max_tokens": 200, "seed": 3}
        for given in ({"response_format": form}, {"guided_json": schema}):
            found = await ask("/v1/chat/completions", **asked, **given)
            answer = json.loads(found["choices"][0]["message"]["content"])
            assert answer["town"] in ("Lima", "Oslo") and 1 <= answer["days"] <= 9
            assert found["choices"][0]["finish_reason"] == "stop"
        one = await ask("/v1/chat/completions", **asked, guided_choice=["去", "Oslo"])
        assert one["choices"][0]["message"]["content"] in ("去", "Oslo")
        digits = await ask("/v1/completions", model="plain", prompt="the", guided_regex="[0-9]{3}", max_tokens=20)
        assert digits["choices"][0]["text"].isdigit()
        refused = await ask.raw("/v1/completions", {"model": "plain", "prompt": "x", "guided_regex": "[unclosed"})
        assert refused.status == 400, refused.body
        both = await ask.raw("/v1/chat/completions", asked | {"guided_regex": "a", "guided_json": schema})
        assert both.status == 400 and both.error["param"] == "guided_regex"

    asked(test)


def test_a_function_is_called_when_it_must_be(asked: Any) -> None:
    pytest.importorskip("llguidance", reason="pip install 'groundup[serve]'")
    parameters = {
        "type": "object",
        "properties": {"town": {"enum": ["Lima", "Oslo"]}},
        "required": ["town"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "go_to", "parameters": parameters}}]

    async def test(ask: Asking) -> None:
        body = {"model": "chat", "messages": QUESTION, "tools": tools, "max_tokens": 200, "seed": 1}
        found = await ask("/v1/chat/completions", **body, tool_choice="required", parallel_tool_calls=False)
        choice = found["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        call = choice["message"]["tool_calls"][0]
        assert call["function"]["name"] == "go_to"
        assert json.loads(call["function"]["arguments"])["town"] in ("Lima", "Oslo")
        named = {"type": "function", "function": {"name": "go_to"}}
        events = await ask.events("/v1/chat/completions", **body, tool_choice=named)
        deltas = [e["choices"][0]["delta"] for e in events if "tool_calls" in e["choices"][0]["delta"]]
        assert deltas[0]["tool_calls"][0]["function"]["name"] == "go_to"
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        # The answer and what the function gave are read back by the same template.
        result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
        messages = [*QUESTION, choice["message"], result]
        again = await ask("/v1/chat/completions", **(body | {"messages": messages, "max_tokens": 5}))
        assert again["usage"]["prompt_tokens"] > found["usage"]["prompt_tokens"]

    asked(test)


BAD: list[tuple[str, dict[str, Any], str | None, int]] = [
    ("chat", {"messages": []}, "messages", 400),
    ("chat", {"messages": [{"content": "x"}]}, "messages[0].role", 400),
    ("chat", {"messages": [{"role": "no such role!", "content": "x"}]}, None, 400),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", 400),
    ("chat", {"temprature": 1}, "temprature", 400),
    ("chat", {"temperature": -1}, "temperature", 400),
    ("chat", {"temperature": "hot"}, "temperature", 400),
    ("chat", {"n": 17}, "n", 400),
    ("chat", {"n": 0}, "n", 400),
    ("chat", {"stop": [""]}, "stop", 400),
    ("chat", {"stop": ["x"] * 17}, "stop", 400),
    ("chat", {"logit_bias": {"999999": 1}}, "logit_bias", 400),
    ("chat", {"logit_bias": {"x": 1}}, "logit_bias", 400),
    ("chat", {"logit_bias": {"1": 1e9}}, "logit_bias", 400),
    ("chat", {"tool_choice": "required"}, "tool_choice", 400),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema", 400),
    ("chat", {"top_logprobs": 21}, "top_logprobs", 400),
    ("chat", {"model": "nobody"}, "model", 404),
    ("chat", {"model": "plain"}, "model", 400),
    ("chat", {"messages": [{"role": "user", "content": "x " * 9000}]}, "messages", 400),
    ("chat", {"messages": [{"role": "user", "content": "x" * 3_000_000}]}, "messages", 400),
    ("plain", {"best_of": 3}, "best_of", 400),
    ("plain", {"prompt": [999_999]}, "prompt", 400),
    ("plain", {"prompt": [-1]}, "prompt", 400),
    ("plain", {"prompt": ["x"] * 200}, "prompt", 400),
    ("plain", {"max_tokens": 0}, "max_tokens", 400),
    ("plain", {"suffix": "x"}, "suffix", 400),
]


def test_mistakes_are_told_with_the_key_that_is_wrong(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        bodies = {"chat": {"messages": QUESTION}, "plain": {"prompt": "x"}}
        paths = {"chat": "/v1/chat/completions", "plain": "/v1/completions"}
        for name, changes, param, status in BAD:
            for stream in (False, True):
                reply = await ask.raw(paths[name], {"model": name, "stream": stream} | bodies[name] | changes)
                assert reply.status == status, (changes, reply.body[:500])
                assert reply.error["message"] and reply.error["param"] == param, (changes, reply.error)
                assert len(reply.body) < 2000
        misspelt = await ask.raw(paths["chat"], {"model": "chat", "messages": QUESTION, "temprature": 1})
        assert "did you mean 'temperature'" in misspelt.error["message"]
        long = await ask.raw(paths["plain"], {"model": "plain", "prompt": "x " * 4000})
        assert long.code == "context_length_exceeded"
        poison = {b'{"model":' * 300_000: 400, b"[" * 10_000_000: 400, b'{"model": "chat", "model": "x"}': 400}
        poison |= {rb'{"model":"plain","prompt":"\ud800"}': 400, b"null": 400, b"": 400, b"[]": 400}
        for body, status in poison.items():
            assert (await ask.raw(paths["plain"], body)).status == status, body[:50]
        form = await ask.wire.ask(ask.app, "POST", paths["chat"], [("content-type", "text/plain")], b"{}")
        assert form.status == 415
        # And nobody who came after was harmed.
        assert (await ask(paths["plain"], model="plain", prompt="the", **GREEDY))["choices"][0]["text"]
        await settled(ask)

    asked(test)


def test_a_client_that_leaves_stops_its_work(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        body = {"model": "plain", "prompt": "the", "max_tokens": 250, "n": 4, "ignore_eos": True}
        for stream in (False, True):
            sent = [
                {"type": "http.request", "body": json.dumps(body | {"stream": stream}).encode()},
                {"type": "http.disconnect"},
            ]
            await ask.wire.ask(ask.app, "POST", "/v1/completions", JSON, sent=sent, pause_s=0.05)
            await settled(ask)
        stats = (await ask.app.api.client.ping()).stats["plain"]
        assert stats["generated_tokens"] < 8 * 250

    asked(test)


def test_silence_is_broken_by_comments(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        body = {"model": "plain", "prompt": "the", "max_tokens": 200, "ignore_eos": True, "stream": True}
        replies = await asyncio.gather(*(ask.raw("/v1/completions", body) for _ in range(8)))
        assert all(b"[DONE]" in reply.body for reply in replies)
        assert any(b"\n\n: still at work" in reply.body or reply.body.startswith(b":") for reply in replies)

    asked(test, keep_alive=0.001)


def test_time_that_is_over_ends_an_answer_where_it_is(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        body = {"model": "plain", "prompt": "the", "max_tokens": 250, "ignore_eos": True, "n": 16}
        reply = await ask.raw("/v1/completions", body | {"timeout": 0.05})
        if reply.status == 200:
            assert any(one.get("finish_detail") == "deadline" for one in json.loads(reply.body)["choices"])
        else:
            assert reply.status == 408 and reply["retry-after"]

    asked(test)


def test_a_score_without_time_left_says_so(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        reply = await ask.raw("/v1/score", {"model": "plain", "text": "the red train " * 8, "timeout": 1e-9})
        assert reply.status == 408 and reply.code == "deadline"
        assert (await ask("/v1/score", model="plain", text="the red train"))["data"][0]["logprob"] < 0

    asked(test)


def test_an_engine_that_goes_ends_a_stream_with_an_error(asked: Any) -> None:
    async def test(ask: Asking) -> None:
        body = {"model": "plain", "prompt": "the", "max_tokens": 240, "ignore_eos": True, "stream": True}
        running = asyncio.create_task(ask.raw("/v1/completions", body))
        while not (await ask.app.api.client.ping()).stats["plain"]["running"]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        await ask.app.api.client.detach("the engine process ended")
        reply = await running
        assert reply.status in (200, 503)
        last = reply.body.split(b"\n\n")[-2] if reply.status == 200 else b"data: " + reply.body
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error["code"] == "engine_gone" and b"[DONE]" not in reply.body
        after = await ask.raw("/v1/completions", body)
        assert after.status == 503 and int(after["retry-after"]) >= 1

    asked(test)
