"""Routes for administrators: models and adapters loaded and unloaded while the server runs, and its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import TypeAdapter, ValidationError

from groundup.errors import nearest
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import ApiError, bad
from groundup.serving.api.responses import json_response
from groundup.serving.api.schemas import AdapterName, AdapterRequest, LoadRequest
from groundup.serving.api.strict_route import StrictRoute
from groundup.serving.api.validation import of_details
from groundup.serving.models import Options

OWNERS = ("public_key", "device")
"""Options that whoever started the server decides, and nobody else."""


async def admins_only(request: Request) -> None:
    """Raise ApiError (403) for a key without the scope admin."""
    Caller.of(request.scope).require_admin()


Act = Callable[[], Awaitable[None]] | None
"""What the server does when it is asked to, where it can."""


def admin_routes(api: Api, drain: Act, restart: Act) -> APIRouter:
    """The routes; they ask for the scope admin too, whatever stands in front of them."""
    router = APIRouter(route_class=StrictRoute, tags=["administration"], dependencies=[Depends(admins_only)])

    @router.post("/v1/admin/models")
    async def load_model(body: LoadRequest) -> Response:
        """Verify a model, load it and serve it under a name."""
        options = _options(api.registry.options, body.options)
        return json_response((await api.registry.load(body.name, body.path, options)).as_data())

    @router.delete("/v1/admin/models/{name:path}")
    async def unload_model(name: str) -> Response:
        """Let a model go, and its adapters, or an adapter alone. What it still had to do is cancelled."""
        await api.registry.unload(name)
        return json_response({"id": name, "object": "model", "deleted": True})

    @router.get("/v1/admin/stats")
    async def stats() -> Response:
        """What the engine says of itself, by model."""
        pong = await api.client.ping()
        return json_response({"steps": pong.steps, "models": dict(pong.stats)})

    @router.post("/v1/admin/drain", status_code=202)
    async def end() -> Response:
        """Take no new work, finish what runs, and end the server."""
        await _offered(drain)()
        return json_response({"status": "draining"}, 202)

    @router.post("/v1/admin/restart")
    async def start_anew() -> Response:
        """Start the engines anew, one after the other, without losing a request; answers when it is done."""
        await _offered(restart)()
        return json_response({"status": "restarted"})

    @router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load_adapter(body: AdapterRequest) -> Response:
        """Load an adapter and serve it under a name of its own; in vLLM's words."""
        await api.registry.load_adapter(body.lora_name, body.lora_path, body.model)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload_adapter(body: AdapterName) -> Response:
        """Let an adapter go; in vLLM's words."""
        if api.registry.get(body.lora_name).adapter is None:
            raise bad(f"{body.lora_name!r} is a model and no adapter", "lora_name")
        await api.registry.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


def _offered(act: Act) -> Callable[[], Awaitable[None]]:
    if act is None:
        raise ApiError(404, "not_offered", "whoever started this server does not offer that")
    return act


def _options(given: Options, changes: Mapping[str, Any]) -> Options:
    """The server's options with those of one model. Raises ApiError for what is none of them."""
    known = [name for name in given.as_data() if name not in OWNERS]
    for name in changes:
        if name not in known:
            raise bad(f"there is no option {name[:64]!r}", "options", fix=nearest(name, known))
    try:
        TypeAdapter(Options).validate_python({**given.as_data(), **changes})
    except ValidationError as error:
        raise of_details(None, error.errors(include_url=False)) from error
    return replace(given, **changes)
