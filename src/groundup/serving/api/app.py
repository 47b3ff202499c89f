"""The application: every route, what it is called, and who answers it.

`create_app` gives an ASGI application without authentication; `serving/security.py` stands in front of it. Each route
is a thin line to a function that a batch job can call as well.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from groundup import __version__
from groundup.errors import GroundupError, nearest
from groundup.serving.api import docs, embeddings, errors, openai_chat, openai_completions, recommending, tasks
from groundup.serving.api.admin import admin_routes
from groundup.serving.api.batches import Batches, Routes
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.canaries import Trial, canary_routes
from groundup.serving.api.envelope import Envelope
from groundup.serving.api.errors import ApiError, bad
from groundup.serving.api.files import Files
from groundup.serving.api.responses import error_response, json_response
from groundup.serving.api.schemas import (
    BatchRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    QuestionRequest,
    RecommendRequest,
    RowsRequest,
    ScoreRequest,
)
from groundup.serving.api.streams import EventStream
from groundup.serving.api.strict_route import StrictRoute
from groundup.serving.api.task_routes import task_routes
from groundup.studio import page as studio

if TYPE_CHECKING:
    from groundup.serving.telemetry import Telemetry

JOBS: Routes = {
    "/v1/chat/completions": (ChatRequest, openai_chat.chat),
    "/v1/completions": (CompletionRequest, openai_completions.complete),
    "/v1/embeddings": (EmbeddingRequest, embeddings.embed),
    "/v1/classify": (RowsRequest, tasks.classify),
    "/v1/tag": (RowsRequest, tasks.tag),
    "/v1/answer": (QuestionRequest, tasks.answer),
    "/v1/translate": (RowsRequest, tasks.translate),
    "/v1/recommend": (RecommendRequest, recommending.recommend),
    "/v1/score": (ScoreRequest, tasks.score),
}
"""What a batch job can ask."""
SILENT: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
"""FastAPI's own traces and figures are off: `serving/observed.py` stands outside of authentication, and sees more."""
DESCRIPTION = "Models served by groundup: OpenAI's routes, and those of labelled tasks."
log = logging.getLogger("groundup.api")


def create_app(
    api: Api,
    *,
    state: Path,
    is_ready: Callable[[], bool],
    drain: Callable[[], Awaitable[None]] | None = None,
    restart: Callable[[], Awaitable[None]] | None = None,
    trials: Mapping[str, Trial] | None = None,
) -> ASGIApp:
    """The ASGI application over a client whose models the registry knows, without authentication.

    `state` is the folder of files and batch jobs. `is_ready` answers /readyz. `drain` is called when an administrator
    asks the server to end, `restart` when its engines are to be started anew.
    `trials` are the candidates on trial, by the name of the model that they may replace.
    """
    files = Files(state / "files", max_file=api.settings.max_file, max_files=api.settings.max_files)
    batches = Batches(api, files, state / "batches", JOBS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches.start()
        yield
        await batches.stop()

    app = FastAPI(
        title="groundup",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=SILENT,
    )
    app.router.route_class = StrictRoute
    app.state.settings = api.settings
    app.include_router(_open_routes(is_ready))
    app.include_router(_model_routes(api))
    app.include_router(_openai_routes(api))
    app.include_router(task_routes(api))
    app.include_router(_file_routes(files, batches))
    app.include_router(_batch_routes(batches))
    app.include_router(admin_routes(api, drain, restart))
    app.include_router(canary_routes(trials or {}))
    app.include_router(_server_routes(api, app))
    app.include_router(studio.routes())
    _answer_errors(app, api.telemetry)
    return Envelope(app, lambda: api.registry.digests)


def _router(tag: str) -> APIRouter:
    return APIRouter(route_class=StrictRoute, tags=[tag])


def _open_routes(is_ready: Callable[[], bool]) -> APIRouter:
    router = _router("server")

    @router.get("/livez", response_class=PlainTextResponse)
    async def alive() -> Response:
        """Whether the server answers at all."""
        return PlainTextResponse("yes")

    @router.get("/readyz", response_class=PlainTextResponse)
    async def ready() -> Response:
        """Whether every model made progress lately; 503 if not."""
        return PlainTextResponse("yes") if is_ready() else PlainTextResponse("no", 503)

    return router


def _model_routes(api: Api) -> APIRouter:
    router = _router("models")

    @router.get("/v1/models")
    async def list_models() -> Response:
        """What can be asked: models and adapters."""
        return json_response({"object": "list", "data": [one.as_data() for one in api.registry.served.values()]})

    @router.get("/v1/models/{model:path}")
    async def get_model(request: Request, model: str) -> Response:
        """One model or adapter."""
        return json_response(Caller.of(request.scope).asks(api, model).as_data())

    return router


def _openai_routes(api: Api) -> APIRouter:
    router = _router("generation")
    keep_alive_s = api.settings.keep_alive

    @router.post("/v1/chat/completions")
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """Answer a chat, whole or piece by piece."""
        caller = Caller.of(request.scope)
        if body.stream:
            return EventStream(openai_chat.stream(api, caller, body), keep_alive_s=keep_alive_s)
        return json_response(await openai_chat.chat(api, caller, body))

    @router.post("/v1/completions")
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Continue texts, whole or piece by piece."""
        caller = Caller.of(request.scope)
        if body.stream:
            return EventStream(openai_completions.stream(api, caller, body), keep_alive_s=keep_alive_s)
        return json_response(await openai_completions.complete(api, caller, body))

    @router.post("/v1/score")
    async def score(request: Request, body: ScoreRequest) -> Response:
        """The log-probabilities of given texts."""
        return json_response(await tasks.score(api, Caller.of(request.scope), body))

    return router


def _file_routes(files: Files, batches: Batches) -> APIRouter:
    router = _router("batch jobs")

    @router.post("/v1/files", openapi_extra={"requestBody": UPLOAD})
    async def upload_file(request: Request) -> Response:
        """Send a file of requests, one a line."""
        caller = Caller.of(request.scope)
        async with request.form(max_files=1, max_fields=8, max_part_size=1 << 20) as form:
            sent = form.get("file")
            if sent is None or isinstance(sent, str):
                raise bad("the form has no file", "file", fix="multipart/form-data with file and purpose")
            content = _pieces(sent.read)
            file = await files.write(caller, sent.filename or "", str(form.get("purpose", "")), content)
        return json_response(file.as_data())

    @router.get("/v1/files")
    async def list_files(request: Request) -> Response:
        """The files of this key, newest first."""
        return json_response(_listed([file.as_data() for file in files.listed(Caller.of(request.scope))]))

    @router.get("/v1/files/{file_id}")
    async def get_file(request: Request, file_id: str) -> Response:
        """What is known of a file."""
        return json_response(files.get(Caller.of(request.scope), file_id).as_data())

    @router.get("/v1/files/{file_id}/content")
    async def get_content(request: Request, file_id: str) -> Response:
        """The content of a file."""
        file = files.get(Caller.of(request.scope), file_id)
        return FileResponse(files.content(file), media_type="application/jsonl")

    @router.delete("/v1/files/{file_id}")
    async def delete_file(request: Request, file_id: str) -> Response:
        """Remove a file for good."""
        file = files.get(Caller.of(request.scope), file_id)
        if batches.needs(file.id):
            raise ApiError(409, "file_in_use", "a batch job reads the file", fix="cancel the job first")
        files.delete(file)
        return json_response({"id": file.id, "object": "file", "deleted": True})

    return router


def _batch_routes(batches: Batches) -> APIRouter:
    router = _router("batch jobs")

    @router.post("/v1/batches")
    async def create_batch(request: Request, body: BatchRequest) -> Response:
        """Order a job over a file of requests."""
        return json_response(batches.create(Caller.of(request.scope), body).as_data())

    @router.get("/v1/batches")
    async def list_batches(
        request: Request, limit: int = Query(20, ge=1, le=100), after: str | None = Query(None)
    ) -> Response:
        """The jobs of this key, newest first."""
        found = [batch.as_data() for batch in batches.listed(Caller.of(request.scope))]
        ids = [one["id"] for one in found]
        found = found[ids.index(after) + 1 :] if after in ids else found
        return json_response(_listed(found[:limit], has_more=len(found) > limit))

    @router.get("/v1/batches/{batch_id}")
    async def get_batch(request: Request, batch_id: str) -> Response:
        """The state of a job."""
        return json_response(batches.get(Caller.of(request.scope), batch_id).as_data())

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(request: Request, batch_id: str) -> Response:
        """End a job early; the answers it has are kept."""
        return json_response(batches.cancel(Caller.of(request.scope), batch_id).as_data())

    return router


UPLOAD: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "JSON lines"},
                    "purpose": {"type": "string", "enum": ["batch"]},
                },
            }
        }
    },
}


def _server_routes(api: Api, app: FastAPI) -> APIRouter:
    router = _router("server")

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Figures of the server for Prometheus."""
        if api.telemetry is None:
            raise ApiError(404, "no_metrics", "this server counts nothing")
        body, kind = api.telemetry.exposition()
        return Response(body, headers={"content-type": kind})

    @router.get("/openapi.json")
    async def openapi() -> Response:
        """This description, for programs."""
        return json_response(app.openapi())

    @router.get("/docs", response_class=HTMLResponse)
    async def documentation() -> Response:
        """This description, for people."""
        return HTMLResponse(docs.page(app.openapi()), headers={"content-security-policy": docs.POLICY})

    return router


def _answer_errors(app: FastAPI, telemetry: Telemetry | None) -> None:
    """Let whatever a route raises become OpenAI's error object."""

    async def refused(_: Request, error: Exception) -> Response:
        told = errors.of(error)
        if told.status >= 500:
            log.error("%s", told.what, exc_info=error if told.status == 500 else None)
        rejected: Mapping[str | None, Literal["queue_full", "draining"]]
        rejected = {"queue_full": "queue_full", "shutting_down": "draining"}
        if telemetry is not None and told.code in rejected:
            telemetry.rejected(rejected[told.code])
        return error_response(told)

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(_unrouted(app, request, error))

    app.add_exception_handler(GroundupError, refused)
    app.add_exception_handler(HTTPException, unrouted)


def _unrouted(app: FastAPI, request: Request, error: HTTPException) -> ApiError:
    """What is said to a path or method that there is not, and of a form that cannot be read."""
    path = request.url.path[:256]
    if error.status_code == 404:
        known = sorted(app.openapi()["paths"])
        return ApiError(404, "unknown_route", f"there is no route {path!r} here", fix=nearest(path, known))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        what = f"{request.method[:16]} is not for {path!r}"
        return ApiError(405, "method_not_allowed", what, fix=f"methods: {allowed}", headers={"allow": allowed})
    return ApiError(error.status_code, "invalid_request", str(error.detail)[:256])


async def _pieces(read: Callable[[int], Awaitable[bytes]]) -> AsyncGenerator[bytes, None]:
    while piece := await read(1 << 20):
        yield piece


def _listed(data: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    ids = [one["id"] for one in data]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": data, **ends, "has_more": has_more}
