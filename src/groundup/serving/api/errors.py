"""What a client is told when something is wrong: OpenAI's error object, and a status its library knows.

`{"error": {"message", "type", "param", "code"}}`, and beside these `fix`, what to do. A mistake of the caller's is
a 4xx. A 5xx is only ever the engine: gone (503, come again) or at fault (500).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from groundup.errors import GroundupError, UserError
from groundup.serving.refusals import Refused
from groundup.serving.wire import Code

KINDS = {404: "not_found_error", 409: "conflict_error", 503: "service_unavailable_error"}
"""OpenAI's words for kinds of errors, beside those of `refusals.TYPES`; other 5xx are `server_error`."""
STATUS: dict[Code, int] = {
    "bad_request": 400,
    "unknown_model": 404,
    "unknown_adapter": 404,
    "queue_full": 429,
    "deadline": 408,
    "bad_logits": 500,
    "shutting_down": 503,
    "engine_gone": 503,
    "internal": 500,
}
"""The status of each way in which the engine can refuse or fail a request."""
RETRY_AFTER_S = 1.0
"""When to come again, where nobody knows better."""


class ApiError(Refused):
    """A request that is refused or failed by the application; `param` names the key that was wrong."""

    def __init__(
        self,
        status: int,
        code: str,
        what: str,
        *,
        param: str | None = None,
        fix: str = "",
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        kind = KINDS.get(status, "server_error" if status >= 500 else None)
        super().__init__(status, code, what, fix=fix, retry_after_s=retry_after_s, headers=headers, kind=kind)
        self.param = self.where = param or ""

    def as_data(self) -> dict[str, Any]:
        """The body of the answer."""
        data = super().as_data()
        data["error"]["param"] = self.param or None
        return data


def bad(what: str, param: str | None = None, *, fix: str = "", code: str = "invalid_value") -> ApiError:
    """A mistake in the request, 400."""
    return ApiError(400, code, what, param=param, fix=fix)


def of(error: Exception) -> Refused:
    """The answer to an exception: mistakes of users are 400, faults of the engine as `STATUS`, the rest 500.

    What went wrong inside is not told: it may hold another's data, or say where things lie.
    """
    if isinstance(error, Refused):
        return error
    code: Any = getattr(error, "code", None)
    if isinstance(error, GroundupError) and code in STATUS:
        status = STATUS[code]
        wait = getattr(error, "retry_after_s", None) or RETRY_AFTER_S
        return ApiError(
            status, code, error.what, fix=error.fix, retry_after_s=wait if status in (408, 429, 503) else None
        )
    if isinstance(error, UserError):
        return ApiError(400, "invalid_value", error.what, param=error.where or None, fix=error.fix)
    return ApiError(500, "internal", "an internal error; the server's log tells it by this request's id")


def written(data: Any) -> bytes:
    """Plain data as JSON in UTF-8. Half of a character that a caller sent comes back as the escape it was."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")  # for U+D800 that is \ud800: JSON's own escape
