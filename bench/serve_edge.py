"""What the server adds to a request: HTTP, keys, limits, JSON, tokenising, and the way to the engine process and back.

A model of one layer is asked for one token and for a few, one request at a time: through `groundup serve` with all its
guards, and by the engine's own `add` and `step` in this process. What is between the two medians is the edge. The
client's own cost is in it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import serve_models
from harness import BenchError, say
from serve_client import Connection, written
from serve_servers import Model, Prompt, groundup_server

ANSWERS = (1, 16)
"""Tokens that are asked for."""
PROMPT_TOKENS = 32
"""No whole block of the cache that could be shared, so that a prompt costs the same each time it is asked."""
TARGET_MS = 2.0


def measured(model: Model, *, rounds: int, quick: bool, idle: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds of a request over HTTP and in the engine alone, by round and by the tokens asked for."""
    count = 20 if quick else 200
    texts = serve_models.prompts(model.folder, PROMPT_TOKENS, seed=1)
    prompts = [*islice(texts, count)]
    engine = _Engine(model)
    found: dict[str, dict[str, list[float]]] = {str(n): {"http_ms": [], "engine_ms": []} for n in ANSWERS}
    for number in range(rounds):
        idle()
        http = asyncio.run(_over_http(model, prompts))
        idle()
        alone = {tokens: [engine.seconds(prompt, tokens) for prompt in prompts] for tokens in ANSWERS}
        for tokens in ANSWERS:
            told = found[str(tokens)]
            told["http_ms"].append(_median_ms(http[tokens]))
            told["engine_ms"].append(_median_ms(alone[tokens]))
            pair = f"{told['http_ms'][-1]:.2f} ms over HTTP, {told['engine_ms'][-1]:.2f} ms in the engine"
            say(f"round {number + 1}/{rounds}  {tokens:>2} tokens: {pair}")
    return {
        "model": {"name": model.name, "parameters": model.parameters},
        "requests": count,
        "prompt_tokens": PROMPT_TOKENS,
        "target_ms": TARGET_MS,
        "answers": found,
        "rounds": rounds,
    }


def added_ms(told: dict[str, list[float]]) -> list[float]:
    """What each round added."""
    return [a - b for a, b in zip(told["http_ms"], told["engine_ms"], strict=True)]


async def _over_http(model: Model, prompts: Sequence[Prompt]) -> dict[int, list[float]]:
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as folder:
        server = await groundup_server([f"--model={model.name}={model.folder}"], Path(folder), 1)
        try:
            connection = await Connection.open(server.url)
            found: dict[int, list[float]] = {}
            for tokens in (*ANSWERS[:1], *ANSWERS):  # the first again: once to warm up
                found[tokens] = []
                for prompt in prompts:
                    body = {"model": model.name, "prompt": prompt.text, "max_tokens": tokens, "temperature": 0}
                    body |= {"ignore_eos": True}
                    request = written(server.url, "/v1/completions", body, key=server.key)
                    reply = await connection.ask(request)
                    if reply.status != 200:
                        raise BenchError(f"groundup answered {reply.status}: {reply.body[:300]!r}")
                    found[tokens].append(reply.seconds)
            connection.close()
            return found
        finally:
            await asyncio.to_thread(server.stop)


class _Engine:
    """The engine in this process, with one thread."""

    def __init__(self, model: Model) -> None:
        import torch

        from groundup.serving.generating import Generating
        from groundup.serving.models import Options
        from groundup.serving.opening import open_model

        torch.set_num_threads(1)
        work = open_model(model.name, str(model.folder), Options(device="cpu", cache_bytes=64 << 20)).work
        assert isinstance(work, Generating)
        self.engine, self.number = work.engine, 0

    def seconds(self, prompt: Prompt, tokens: int) -> float:
        """How long the engine takes for a request."""
        from groundup.serving.requests import Request
        from groundup.serving.sampler import Sampling

        self.number += 1
        began = time.perf_counter()
        sampling = Sampling(temperature=0, max_new_tokens=tokens, ignore_eos=True)
        self.engine.add(Request(id=self.number, ids=prompt.ids, sampling=sampling))
        while self.engine.has_work:
            self.engine.step()
        return time.perf_counter() - began


def _median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1000
