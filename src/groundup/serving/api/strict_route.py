"""A FastAPI route whose JSON body is read strictly, before FastAPI sees it; or a form, where a body can be one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers

from groundup.serving.api import multipart, strict_json
from groundup.serving.api.errors import ApiError
from groundup.serving.api.multipart import Form
from groundup.serving.api.settings import Settings
from groundup.serving.api.validation import of_details

LONG_BODY = 64 << 10


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
                request = await _read(request, getattr(form, "of_form", None))
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise of_details(form, error.errors()) from error

        return handle_strictly

    def _form(self) -> type[BaseModel] | None:
        """The model of the body, where the route has one."""
        hints = get_type_hints(self.endpoint).values()
        return next((one for one in hints if isinstance(one, type) and issubclass(one, BaseModel)), None)


async def _read(request: Request, of_form: Callable[[Form], dict[str, Any]] | None) -> StrictRequest:
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind == multipart.FORM and of_form):
        # Also what keeps a page elsewhere from posting as a form, which browsers allow it without asking.
        what = f"the body is {kind[:64]!r}, and JSON is wanted" if kind else "the body has no Content-Type"
        fix = f"content-type: application/json{f', or {multipart.FORM}' if of_form else ''}"
        raise ApiError(415, "unsupported_media_type", what, fix=fix)
    strict = StrictRequest(request.scope, request.receive)
    body = await request.body()
    if kind == multipart.FORM and of_form:
        strict.parsed = of_form(await _form(request, header, body))
    else:
        strict.parsed = strict_json.parse(body)
    # FastAPI looks at the body's bytes to tell whether there is one.
    strict._body = body
    if kind == multipart.FORM:
        # And at its type to tell whether it is JSON, which it now is.
        strict._headers = Headers({"content-type": "application/json"})
    return strict


async def _form(request: Request, header: str, body: bytes) -> Form:
    """The form of a body, read in a thread where that takes a while."""
    settings: Settings = request.app.state.settings
    read = partial(multipart.read, most_parts=settings.max_parts, most_file=settings.max_media)
    boundary = multipart.boundary_of(header)
    return read(body, boundary) if len(body) < LONG_BODY else await asyncio.to_thread(read, body, boundary)
