"""The playground at `/`: a page of plain HTML, CSS and JavaScript that asks the public HTTP API, as any client does.

The server hands out files and knows nothing else of the page: what it asks passes the same guards as every request,
with the session cookie in place of a key. Nothing is fetched from elsewhere, and the content policy lets nothing be:
no inline script or style, no `eval`, no text that becomes markup (Trusted Types), no frame around it.

The files stand under a path that holds their digest, so browsers keep them for good and never mix two releases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Template

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    # Not no-referrer: browsers would then send `Origin: null` when signing out, which is refused.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
"""Sent with the page."""
KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
"""Media types of the files, by what their names end in."""
FOR_GOOD = "private, max-age=31536000, immutable"


def routes() -> APIRouter:
    """The routes of the page: itself, and its files."""
    router = APIRouter(include_in_schema=False)
    files = _files()
    release = digest_of(files)
    page = Template(files["index.html"].decode("utf-8")).substitute(files=f"studio/{release}")

    @router.get("/")
    async def playground() -> Response:
        """The page."""
        return HTMLResponse(page, headers=HEADERS)

    @router.get("/studio/{digest}/{name}")
    async def file(digest: str, name: str) -> Response:
        """A file of the page; one of another release is not there."""
        kind = KINDS.get(name.rpartition(".")[2])
        if digest != release or name not in files or kind is None:
            raise HTTPException(404)
        headers = {"cache-control": FOR_GOOD, "x-content-type-options": "nosniff"}
        return Response(files[name], media_type=kind, headers=headers)

    return router


def digest_of(files: Mapping[str, bytes]) -> str:
    """Twelve hexadecimal digits that change with any of the files."""
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()[:12]


@cache
def _files() -> dict[str, bytes]:
    """The page's files by name, read once."""
    folder = resources.files("groundup.studio") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
