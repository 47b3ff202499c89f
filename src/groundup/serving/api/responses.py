"""Answers of one piece: plain data, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from groundup.serving.api.errors import written
from groundup.serving.refusals import Refused


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain data as an answer in JSON."""
    return Response(written(data), status, dict(headers or {}), media_type="application/json")


def error_response(error: Refused) -> Response:
    """The error as an answer."""
    return json_response(error.as_data(), error.status, error.headers)
