"""`groundup serve --engine vllm`: one language model and its adapters by vLLM, behind the guards of every server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from groundup.artifact import MANIFEST, open_artifact
from groundup.config import parse
from groundup.deploy.vllm import Options, require_served
from groundup.deploy.vllm_front import application
from groundup.errors import Mistakes, Problem, UserError
from groundup.serving import logs, models, server
from groundup.serving.server import Place
from groundup.serving.service import Service
from groundup.serving.telemetry import Telemetry
from groundup.serving.tracing import Tracing


def serve(service: Service, place: Place, options: Options, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the server's address once it answers.

    Raises UserError for a service that vLLM cannot serve, MissingExtra without vLLM, and what `server.serve` raises
    before its start.
    """
    if len(service.models) != 1:
        fix = "start one server for each: vLLM serves one model, with its adapters"
        raise UserError(f"vLLM is given {len(service.models)} models", where="--engine vllm", fix=fix)
    ((name, path),) = service.models.items()
    public_key = service.settings.options(public_key=place.public_key).public_key
    facts = models.describe(path, public_key=public_key)
    require_served(facts, name)
    logs.configure(form=place.log_format)
    certificate = server.certificate_of(place)
    settings = service.settings
    tracing = Tracing(place.traces) if place.traces else None
    telemetry = Telemetry(prefix=settings.metrics_prefix, tracing=tracing)
    adapters = {label: _folder(adapter.path) for label, adapter in service.adapters.items()}
    with contextlib.closing(server.listening(service)) as opened, contextlib.ExitStack() as stack:
        guards = stack.enter_context(contextlib.closing(server.guards_of(service, place, telemetry)))
        app = application(
            facts, name, options, guards=guards, telemetry=telemetry, adapters=adapters, grace_s=settings.grace
        )
        web = server.web_server(app, service, certificate, lambda: ready(server.address_of(opened, certificate)))

        async def run() -> None:
            server.on_signals(partial(setattr, web, "should_exit", True))
            await web.serve(sockets=[opened])

        asyncio.run(run())


def options(given: Mapping[str, Any], service: Service) -> Options:
    """What vLLM is told: `given`, and the service's context and number of sequences. Raises Mistakes."""
    settings = service.settings
    chosen: dict[str, Any] = {"context": settings.context, "max_sequences": settings.max_sequences}
    parsed, mistakes = parse(Options, {key: value for key, value in chosen.items() if value is not None} | dict(given))
    if parsed is None:
        raise Mistakes([Problem(m.what, f"--vllm {'.'.join(map(str, m.path))}", m.fix) for m in mistakes])
    return parsed


def _folder(path: str) -> Path:
    """Where an adapter's files lie."""
    return open_artifact(path).path if (Path(path) / MANIFEST).is_file() else Path(path)
