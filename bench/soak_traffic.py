"""What the load test sends: every kind of request that people send, and those that they should not.

A `Kind` makes requests and says which answers are right. Whatever the kind, a full queue (429, with Retry-After) is a
right answer, and so is 503 while the engine was killed; anything else, a connection that just ends, an answer cut off
or an error without its object, is a fault of the server.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serve_client import Reply, written

MAX_BODY = 8 << 20
"""The server's limit."""
SCHEMA = {
    "type": "object",
    "properties": {"town": {"type": "string", "maxLength": 12}, "size": {"type": "integer", "maximum": 999}},
    "required": ["town", "size"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Site:
    """Where requests go, and what they are made of."""

    url: str
    key: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Ask:
    """One request, and how the client behaves."""

    request: bytes | list[bytes]
    streams: bool = False
    leave_after: int | None = None
    """Pieces of the answer after which the client hangs up."""
    leave_after_s: float | None = None
    generated: int = 0
    """Texts that it has generated."""

    @property
    def leaves(self) -> bool:
        return self.leave_after is not None or self.leave_after_s is not None


@dataclass(frozen=True)
class Kind:
    """A kind of request: how often it comes, how it is made, and the statuses that are right."""

    name: str
    weight: float
    make: Callable[[Site, random.Random], Ask]
    right: frozenset[int] = frozenset({200})

    @property
    def is_good(self) -> bool:
        """Whether it is one to be answered."""
        return self.right == {200} and not self.name.startswith("left")


# ---------------------------------------------------------------------------------------- what is to be answered


def _post(site: Site, path: str, body: Any, **more: Any) -> Ask:
    return Ask(written(site.url, path, body, key=site.key), **more)


def _chat(site: Site, draw: random.Random, *, streams: bool = False, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": draw.choice(site.texts)}]
    if draw.random() < 0.3:
        turns = [{"role": "system", "content": "Be brief."}, *turns, {"role": "assistant", "content": "Well."}, *turns]
    given = {"model": "chat", "messages": turns, "max_tokens": draw.randint(4, 96), "stream": streams}
    return given | {"temperature": draw.choice([0, 0.7, 1.0])} | more


def chat(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/chat/completions", _chat(site, draw), generated=1)


def chat_stream(site: Site, draw: random.Random) -> Ask:
    body = _chat(site, draw, streams=True, logprobs=draw.random() < 0.2, stream_options={"include_usage": True})
    return _post(site, "/v1/chat/completions", body, streams=True, generated=1)


def chat_schema(site: Site, draw: random.Random) -> Ask:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    return _post(site, "/v1/chat/completions", _chat(site, draw, response_format=form), generated=1)


def completion(site: Site, draw: random.Random) -> Ask:
    body = {"model": "chat", "prompt": draw.choice(site.texts), "max_tokens": draw.randint(4, 96)}
    more = {"n": 2, "logprobs": 2, "top_p": 0.9, "seed": draw.randrange(99), "stop": ["\n\n"]}
    return _post(site, "/v1/completions", body | more, generated=2)


def completion_stream(site: Site, draw: random.Random) -> Ask:
    body = {"model": "chat", "prompt": draw.choice(site.texts), "max_tokens": draw.randint(4, 96), "stream": True}
    return _post(site, "/v1/completions", body, streams=True, generated=1)


def long_completion(site: Site, draw: random.Random) -> Ask:
    prompt = " ".join(draw.choices(site.texts, k=8))[:1500]
    body = {"model": "chat", "prompt": prompt, "max_tokens": 160, "stream": True, "ignore_eos": True}
    return _post(site, "/v1/completions", body, streams=True, generated=1)


def score(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/score", {"model": "chat", "prompt": "It is", "text": draw.choices(site.texts, k=2)})


def classify(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/classify", {"model": "classify", "input": draw.choices(site.texts, k=draw.randint(1, 8))})


def tag(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/tag", {"model": "tag", "input": draw.choice(site.texts)})


def answer(site: Site, draw: random.Random) -> Ask:
    body = {"model": "answer", "question": "what is returned?", "context": draw.choice(site.texts)}
    return _post(site, "/v1/answer", body)


def embed(site: Site, draw: random.Random) -> Ask:
    given = draw.choices(site.texts, k=draw.randint(1, 12))
    return _post(site, "/v1/embeddings", {"model": "embed", "input": given})


def models(site: Site, draw: random.Random) -> Ask:
    return Ask(written(site.url, "/v1/models", key=site.key))


# ---------------------------------------------------------------------------------------- clients that leave


def left_in_stream(site: Site, draw: random.Random) -> Ask:
    body = {"model": "chat", "prompt": draw.choice(site.texts), "max_tokens": 200, "stream": True, "ignore_eos": True}
    return _post(site, "/v1/completions", body, streams=True, leave_after=draw.randint(1, 6))


def left_waiting(site: Site, draw: random.Random) -> Ask:
    body = {"model": "chat", "prompt": draw.choice(site.texts), "max_tokens": 200, "n": 2}
    return _post(site, "/v1/completions", body, leave_after_s=draw.uniform(0.001, 0.3))


def left_in_rows(site: Site, draw: random.Random) -> Ask:
    body = {"model": "embed", "input": draw.choices(site.texts, k=32)}
    return _post(site, "/v1/embeddings", body, leave_after_s=draw.uniform(0.001, 0.05))


def left_in_head(site: Site, draw: random.Random) -> Ask:
    whole = chat(site, draw).request
    assert isinstance(whole, bytes)
    return Ask(whole[: draw.randint(1, len(whole) - 1)], leave_after_s=0.05)


# ---------------------------------------------------------------------------------------- what is to be refused


def stated_too_long(site: Site, draw: random.Random) -> Ask:
    head = written(site.url, "/v1/chat/completions", b"", key=site.key)
    return Ask(head.replace(b"content-length: 0", b"content-length: 99999999"))


def sent_too_long(site: Site, draw: random.Random) -> Ask:
    head = written(site.url, "/v1/chat/completions", b"", key=site.key)
    piece = b'{"' + b"a" * ((64 << 10) - 2)
    chunks = [b"10000\r\n" + piece + b"\r\n"] * (MAX_BODY // len(piece)) + [b"400\r\n" + piece[:1024] + b"\r\n"]
    return Ask([head.replace(b"content-length: 0", b"transfer-encoding: chunked"), *chunks])


def prompt_too_long(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/completions", {"model": "chat", "prompt": "over and over " * 20_000})


def no_json(site: Site, draw: random.Random) -> Ask:
    cut = b'{"model": "chat", "messages": ['
    return _post(
        site, "/v1/chat/completions", draw.choice([b"{", cut, b"\xff\xfe", b"null", b"[]", b'{"a": NaN}', b""])
    )


def too_deep(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/chat/completions", b"[" * draw.choice([100, 200_000]))


def wrong_value(site: Site, draw: random.Random) -> Ask:
    wrong: list[dict[str, Any]] = [
        {"temperature": -1}, {"temperature": "hot"}, {"max_tokens": 0}, {"n": 999}, {"stop": [""]}, {"messages": []},
        {"messages": "hello"}, {"logit_bias": {"0": 1e9}}, {"logit_bias": {"x": 1}}, {"top_logprobs": 99},
        {"tool_choice": "required"}, {"guided_regex": "("}, {"guided_grammar": "nonsense"}, {"misspelt": 1},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 3}}}},
        {"messages": [{"role": "user", "content": {"no": "text"}}]}, {"messages": [{"content": "no role"}]},
    ]  # fmt: skip
    return _post(site, "/v1/chat/completions", _chat(site, draw) | draw.choice(wrong))


def half_a_character(site: Site, draw: random.Random) -> Ask:
    body = json.dumps(_chat(site, draw)).encode().replace(b'"content": "', b'"content": "\\ud800', 1)
    return _post(site, "/v1/chat/completions", body, generated=1)


def unknown_model(site: Site, draw: random.Random) -> Ask:
    return _post(site, "/v1/chat/completions", _chat(site, draw) | {"model": "nobody"})


def unknown_route(site: Site, draw: random.Random) -> Ask:
    return _post(site, f"/v1/{draw.choice(['nothing', '../etc/passwd', 'files/x', '%00'])}", {})


def wrong_key(site: Site, draw: random.Random) -> Ask:
    return Ask(written(site.url, "/v1/chat/completions", _chat(site, draw), key="gu_nobody"))


def no_http(site: Site, draw: random.Random) -> Ask:
    return Ask(draw.choice([b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]))


KINDS = (
    Kind("chat", 2, chat),
    Kind("chat, streamed", 3, chat_stream),
    Kind("chat, held to a schema", 0.5, chat_schema),
    Kind("completion, two answers", 1, completion),
    Kind("completion, streamed", 2, completion_stream),
    Kind("completion, long", 0.3, long_completion),
    Kind("score", 0.5, score),
    Kind("classify", 3, classify),
    Kind("tag", 1, tag),
    Kind("answer", 1, answer),
    Kind("embed", 3, embed),
    Kind("models", 0.5, models),
    Kind("left in the stream", 1, left_in_stream),
    Kind("left while waiting", 1, left_waiting),
    Kind("left before rows were answered", 0.5, left_in_rows),
    Kind("left in its own request", 0.5, left_in_head),
    Kind("stated too long", 0.2, stated_too_long, frozenset({413})),
    Kind("sent too long", 0.02, sent_too_long, frozenset({413})),
    Kind("prompt too long", 0.2, prompt_too_long, frozenset({400})),
    Kind("no JSON", 0.5, no_json, frozenset({400})),
    Kind("nested too deep", 0.3, too_deep, frozenset({400})),
    Kind("wrong value", 1.5, wrong_value, frozenset({400})),
    Kind("half a character", 0.2, half_a_character, frozenset({200, 400})),
    Kind("unknown model", 0.2, unknown_model, frozenset({404})),
    Kind("unknown route", 0.2, unknown_route, frozenset({400, 404, 405})),
    Kind("wrong key", 0.3, wrong_key, frozenset({401})),
    Kind("no HTTP", 0.2, no_http, frozenset({400})),
)


# ---------------------------------------------------------------------------------------- whether an answer is right


@dataclass(frozen=True)
class Verdict:
    """How a request ended. `fault` is empty where that was right; `needs_kill`: only while an engine was killed."""

    status: str
    fault: str = ""
    needs_kill: bool = False
    first_s: float | None = None
    """Until the first token of a stream."""


def judged(kind: Kind, ask: Ask, reply: Reply) -> Verdict:
    """Whether a reply is right for its kind."""
    status = str(reply.status)
    if reply.why == "left" and ask.leaves:  # perhaps between the head of a refusal and its body
        fault = f"answered {status}" if reply.status >= 500 and reply.status != 503 else ""
        return Verdict("left" if reply.status < 500 else status, fault, needs_kill=reply.status == 503)
    if reply.status == 0 or (not reply.is_whole and not ask.leaves):
        return Verdict(status, f"no whole answer: {reply.why}")
    if kind.name == "no HTTP":
        return Verdict(status, "" if reply.status == 400 else "not refused")
    if reply.status >= 400:
        fault = "" if _is_error(reply.json()) else f"an error without its object: {reply.body[:200]!r}"
        if reply.status == 429:
            return Verdict(status, fault or ("" if "retry-after" in reply.headers else "429 without Retry-After"))
        if reply.status == 503:
            return Verdict(status, fault, needs_kill=True)
    elif ask.streams:
        return _streamed(reply)
    else:
        fault = "" if reply.json() is not None else "the answer is no JSON"
    right = kind.right if not ask.leaves else kind.right | {200}
    return Verdict(status, fault or ("" if reply.status in right else f"not {sorted(right)}: {reply.body[:200]!r}"))


def _streamed(reply: Reply) -> Verdict:
    """A stream must end with [DONE], or say what went wrong."""
    events = reply.events()
    if not events:
        return Verdict("200", "a stream without an event")
    first_s = events[0][0] - reply.sent_s
    last = events[-1][1]
    if last == "[DONE]":
        return Verdict("200", first_s=first_s)
    try:
        told = json.loads(last)
    except ValueError:
        told = None
    if not _is_error(told):
        return Verdict("200", f"a stream that just ended: {last[:200]}")
    is_gone = told["error"]["code"] in ("engine_gone", "shutting_down")
    return Verdict("200, then an error", "" if is_gone else f"{told['error']}", needs_kill=True)


def _is_error(told: Any) -> bool:
    error = told.get("error") if isinstance(told, dict) else None
    return isinstance(error, dict) and bool(error.get("message")) and bool(error.get("code"))
