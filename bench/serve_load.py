"""One load on one server: so many clients at once, each asking again as soon as it has its answer.

What is taken: tokens a second over all clients, the time to the first text of each answer, the pauses between pieces of
text, and the processor time of the server and of the client itself, which shares the machine with it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from harness import BenchError
from serve_client import Connection, Reply, written
from serve_servers import Model, Prompt, Rival, Server


@dataclass
class Load:
    """What came of one load."""

    clients: int
    seconds: float
    """From the first request to the last token."""
    tokens: int
    """Of the answers."""
    server_cpu_s: float
    client_cpu_s: float
    first_s: list[float] = field(default_factory=list)
    """Time to the first text of each answer."""
    pauses_s: list[float] = field(default_factory=list)
    """Between the arrivals of text. A piece may hold several tokens, and a token that ends inside a character none."""
    texts: list[str] = field(default_factory=list)
    """In the order of the prompts."""
    pieces: int = 0

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.seconds


async def run(
    rival: Rival, server: Server, model: Model, prompts: Sequence[Prompt], *, clients: int, tokens: int
) -> Load:
    """Have the prompts answered by so many clients. Raises BenchError for an answer that is not as long as asked."""
    path = "/v1/completions"
    requests = [written(server.url, path, rival.body(model, one, tokens), key=server.key) for one in prompts]
    replies: list[Reply | None] = [None] * len(requests)
    places: Iterator[int] = iter(range(len(requests)))
    server_began, client_began, began = server.cpu_s(), time.process_time(), time.perf_counter()

    async def client() -> None:
        connection = await Connection.open(server.url)
        for place in places:
            if not connection.is_open:
                connection = await Connection.open(server.url)
            reply = await connection.ask(requests[place])
            if not reply.status:  # llama.cpp may close a connection after an answer, just when the next is asked
                connection = await Connection.open(server.url)
                reply = await connection.ask(requests[place])
            replies[place] = reply
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = max(reply.ended_s for reply in replies if reply) - began
    cost = time.process_time() - client_began, server.cpu_s() - server_began
    found = Load(clients, seconds, 0, cost[1], cost[0])
    for reply in replies:
        assert reply is not None
        _add(found, reply, rival, tokens)
    return found


def _add(found: Load, reply: Reply, rival: Rival, tokens: int) -> None:
    """Add one answer. Raises BenchError."""
    if reply.status != 200 or not reply.is_whole:
        told = reply.body[:300].decode("utf-8", "replace")
        raise BenchError(f"{rival.name} answered {reply.status} {reply.why}: {told}")
    arrivals, text, counted = [], "", None
    for when, data in reply.events():
        if data == "[DONE]":
            continue
        given = json.loads(data)
        if "error" in given:
            raise BenchError(f"{rival.name}: {given['error']}")
        piece = "".join(choice.get("text") or "" for choice in given.get("choices") or ())
        text += piece
        if piece:
            arrivals.append(when)
        counted = (given.get("usage") or {}).get("completion_tokens", counted)
    if counted != tokens:
        raise BenchError(f"{rival.name} answered {counted} tokens, and {tokens} were asked for")
    if not arrivals:
        raise BenchError(f"{rival.name} answered no text")
    found.tokens += tokens
    found.pieces += len(arrivals)
    found.texts.append(text)
    found.first_s.append(arrivals[0] - reply.sent_s)
    found.pauses_s += [float(pause) for pause in np.diff(sorted(set(arrivals)))]


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """A quantile of times, in milliseconds."""
    return float(np.quantile(seconds, share)) * 1000 if len(seconds) else float("nan")
