"""Whether the server makes progress: what stands behind /readyz.

A server that listens is not one that works: engines have been seen to hang for hours while their health check
smiled (vllm-project/vllm#17972, sgl-project/sglang#22518). Ready here means that every model generated a token or
answered a row lately: for a client, or, when nobody asks, for a probe. Probes come before all other requests, so a
burst cannot starve them, and a model that is busy with clients needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import aclosing, suppress
from typing import Any

from groundup.serving import inputs, wire
from groundup.serving.client import Client, EngineFault
from groundup.serving.models import Facts

PROBE = "probe"
"""The key that probes go under."""
FIRST = -1_000_000
"""The priority of probes: before everyone else."""


class Health:
    """Probes every model from time to time; `run` as a task beside the server."""

    def __init__(
        self, client: Client, *, every_s: float = 5.0, fresh_s: float = 30.0, optional: Collection[str] = ()
    ) -> None:
        """A model is probed when nobody has heard of it for `every_s`, and not ready when nobody has for `fresh_s`.

        `optional` are models whose silence is no reason to be not ready: candidates on trial.
        """
        self.client, self.every_s, self.fresh_s, self.optional = client, every_s, fresh_s, frozenset(optional)

    @property
    def is_ready(self) -> bool:
        """Whether the server takes work and every model did some lately."""
        return not self.client.is_draining and self.client.is_open and not self.silent()

    def silent(self) -> list[str]:
        """The models that have shown no progress for too long."""
        now = asyncio.get_running_loop().time()
        heard = self.client.progress
        asked = [name for name in self.client.models if name not in self.optional]
        return [name for name in asked if now - heard.get(name, float("-inf")) > self.fresh_s]

    async def run(self) -> None:
        """Probe what has been silent for a while, until cancelled."""
        while True:
            await self.probe()
            await asyncio.sleep(self.every_s / 2)

    async def probe(self) -> None:
        """Probe every model that nobody has heard of for `every_s`; failures show by its silence."""
        now = asyncio.get_running_loop().time()
        heard = self.client.progress
        quiet = [name for name in self.client.models if now - heard.get(name, float("-inf")) > self.every_s]
        if self.client.is_open:
            await asyncio.gather(*(self._probe(name, self.client.models[name]) for name in quiet))

    async def _probe(self, name: str, facts: Facts) -> None:
        with suppress(EngineFault, TimeoutError):
            async with asyncio.timeout(self.fresh_s):
                if facts.kind == "generate":
                    sampling = {"max_new_tokens": 1, "temperature": 0}
                    request = wire.Generate(name, [0], sampling=sampling, priority=FIRST, key=PROBE)
                    async with aclosing(self.client.generate(request)) as tokens:
                        async for _ in tokens:
                            pass
                else:
                    await self.client.answer(wire.Answer(name, [probe_row(facts)], key=PROBE))


def probe_row(facts: Facts) -> Mapping[str, Any]:
    """The shortest row that a model can answer."""
    return inputs.sample(facts.columns, facts.media, facts.form)
