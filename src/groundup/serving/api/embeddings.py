"""Vectors of texts (`POST /v1/embeddings`), and documents in order of how near they are (`/v1/rerank`)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import bad
from groundup.serving.api.metering import Metered
from groundup.serving.api.registry import Served
from groundup.serving.api.rows import answered
from groundup.serving.api.schemas import EmbeddingRequest, RerankRequest


async def embed(api: Api, caller: Caller, body: EmbeddingRequest) -> dict[str, Any]:
    """A vector for each text. Raises ApiError, and EngineFault."""
    served = caller.asks(api, body.model, "embed")
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors, meter = await _vectors(api, caller, served, texts, body.timeout)
    width = vectors.shape[1]
    if body.dimensions not in (None, width):
        fix = f"leave it out, or say {width}"
        raise bad(f"vectors of this model have {width} dimensions and are not cut", "dimensions", fix=fix)
    shown = [_base64(row) if body.encoding_format == "base64" else row.tolist() for row in vectors]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(shown)],
        "model": served.name,
        "usage": {"prompt_tokens": meter.prompt_tokens, "total_tokens": meter.prompt_tokens},
    }


async def rerank(api: Api, caller: Caller, body: RerankRequest) -> dict[str, Any]:
    """The documents nearest to a query, best first, by the cosine of their vectors. Raises as `embed`."""
    served = caller.asks(api, body.model, "embed")
    vectors, meter = await _vectors(api, caller, served, [body.query, *body.documents], body.timeout)
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    scores = (vectors / norms) @ (vectors[0] / norms[0])
    order = np.argsort(-scores[1:], kind="stable")[: body.top_n or len(body.documents)].tolist()
    results: list[dict[str, Any]] = [
        {"index": place, "relevance_score": round(float(scores[place + 1]), 6)} for place in order
    ]
    if body.return_documents:
        for one in results:
            one["document"] = {"text": body.documents[one["index"]]}
    usage = {"prompt_tokens": meter.prompt_tokens, "total_tokens": meter.prompt_tokens}
    return {"id": f"rerank-{caller.request_id}", "model": served.name, "results": results, "usage": usage}


async def _vectors(
    api: Api, caller: Caller, served: Served, texts: Sequence[str], timeout: float | None
) -> tuple[NDArray[np.float32], Metered]:
    """(texts, width), and what they were billed at. Raises ApiError, naming the text, for one that fails."""
    column = served.facts.columns.get("text", "text")
    given, meter = await answered(api, caller, served, [{column: text} for text in texts], timeout)
    raw = [np.frombuffer(base64.b64decode(one["vector"]), "<f4") for one in given]
    return np.stack(raw).astype(np.float32), meter


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
