"""The routes of labelled tasks: what each is called, and who answers it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request, Response

from groundup.serving.api import embeddings, recommending, tasks
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.multipart import FORM
from groundup.serving.api.responses import json_response
from groundup.serving.api.schemas import (
    EmbeddingRequest,
    QuestionRequest,
    RecommendRequest,
    RerankRequest,
    RowsRequest,
)
from groundup.serving.api.strict_route import StrictRoute

FILES: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "minItems": 1,
    "description": "One row each: images (PNG, JPEG, WebP, GIF, BMP, TIFF, PPM) or recordings (WAV, FLAC).",
}
ROWS_FORM: dict[str, Any] = {
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["model", "file"],
                "additionalProperties": False,
                "properties": {
                    "model": {"type": "string", "minLength": 1},
                    "file": FILES,
                    "timeout": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds."},
                },
            },
            "encoding": {"file": {"contentType": "application/octet-stream"}},
        }
    }
}
"""The description of a body that is a form (`RowsRequest.of_form`), beside the one that is JSON."""


def task_routes(api: Api) -> APIRouter:
    """The routes of labelled tasks, and of vectors."""
    router = APIRouter(route_class=StrictRoute, tags=["tasks"])

    @router.post("/v1/embeddings")
    async def create_embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """Vectors of texts."""
        return json_response(await embeddings.embed(api, Caller.of(request.scope), body))

    @router.post("/v1/rerank")
    async def rerank(request: Request, body: RerankRequest) -> Response:
        """Documents in order of how near they are to a query."""
        return json_response(await embeddings.rerank(api, Caller.of(request.scope), body))

    @router.post("/v1/classify", openapi_extra={"requestBody": ROWS_FORM})
    async def classify(request: Request, body: RowsRequest) -> Response:
        """Classes of texts, images, recordings or rows of a table, with probabilities; or numbers."""
        return json_response(await tasks.classify(api, Caller.of(request.scope), body))

    @router.post("/v1/tag")
    async def tag(request: Request, body: RowsRequest) -> Response:
        """Tags of tokens, and the spans they make."""
        return json_response(await tasks.tag(api, Caller.of(request.scope), body))

    @router.post("/v1/answer")
    async def answer(request: Request, body: QuestionRequest) -> Response:
        """Answers to questions, as they stand in a passage."""
        return json_response(await tasks.answer(api, Caller.of(request.scope), body))

    @router.post("/v1/translate")
    async def translate(request: Request, body: RowsRequest) -> Response:
        """Translations of texts."""
        return json_response(await tasks.translate(api, Caller.of(request.scope), body))

    @router.post("/v1/recommend")
    async def recommend(request: Request, body: RecommendRequest) -> Response:
        """What users may choose next, best first, by what they chose so far."""
        return json_response(await recommending.recommend(api, Caller.of(request.scope), body))

    @router.get("/v1/items")
    async def list_items(
        request: Request,
        model: str = Query(min_length=1),
        search: str = Query("", max_length=200),
        limit: int = Query(20, ge=1, le=100),
    ) -> Response:
        """Items of a model that recommends, by parts of their names."""
        return json_response(await recommending.items(api, Caller.of(request.scope), model, search, limit))

    return router
