"""A FastAPI route whose JSON body is read strictly, before FastAPI sees it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel

from groundup.serving.api import strict_json
from groundup.serving.api.errors import ApiError
from groundup.serving.api.validation import of_details


class StrictRequest(Request):
    """A request whose JSON was read already."""

    parsed: Any = None

    async def json(self) -> Any:
        """The body, as `strict_json` read it."""
        return self.parsed


class StrictRoute(APIRoute):
    """A route with `strict_json` in front; what is wrong with a body is one error that names the key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, with the body read before."""
        handle = super().get_route_handler()
        form = self._form()

        async def handle_strictly(request: Request) -> Response:
            if form is not None:
                request = await _read(request)
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise of_details(form, error.errors()) from error

        return handle_strictly

    def _form(self) -> type[BaseModel] | None:
        """The model of the body, where the route has one."""
        hints = get_type_hints(self.endpoint).values()
        return next((one for one in hints if isinstance(one, type) and issubclass(one, BaseModel)), None)


async def _read(request: Request) -> StrictRequest:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps a page elsewhere from posting as a form, which browsers allow it without asking.
        what = f"the body is {kind[:64]!r}, and JSON is wanted" if kind else "the body has no Content-Type"
        raise ApiError(415, "unsupported_media_type", what, fix="content-type: application/json")
    strict = StrictRequest(request.scope, request.receive)
    strict.parsed = strict_json.parse(await request.body())
    # FastAPI looks at the body's bytes to tell whether there is one.
    strict._body = request._body
    return strict
