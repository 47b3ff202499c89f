"""Routes for administrators: how a candidate on trial stands, and the last word about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Depends, Response

from groundup.errors import nearest
from groundup.serving.api.admin import admins_only
from groundup.serving.api.errors import ApiError, bad
from groundup.serving.api.responses import json_response
from groundup.serving.api.strict_route import StrictRoute
from groundup.serving.canary import Canary

Trial = tuple[Canary, Callable[[], None], Callable[[], None]]
"""A canary, and what promotes it and rolls it back."""


def canary_routes(trials: Mapping[str, Trial]) -> APIRouter:
    """The routes; they ask for the scope admin too, whatever stands in front of them.

    trials are by the name of the current model.
    """
    router = APIRouter(route_class=StrictRoute, tags=["administration"], dependencies=[Depends(admins_only)])

    def trial(name: str) -> Trial:
        if name not in trials:
            raise ApiError(404, "no_canary", f"no candidate is on trial for {name[:128]!r}", fix=nearest(name, trials))
        return trials[name]

    @router.get("/v1/admin/canary/{name:path}")
    async def show_canary(name: str) -> Response:
        """How a candidate stands: its share, and every figure that decides."""
        return json_response(trial(name)[0].as_data())

    @router.post("/v1/admin/canary/{name:path}")
    async def end_canary(name: str, to: str) -> Response:
        """End a trial: `?to=promoted` or `?to=rolled_back`."""
        canary, promote, roll_back = trial(name)
        ends = {"promoted": promote, "rolled_back": roll_back}
        if to not in ends:
            raise bad(f"a canary cannot become {to[:64]!r}", "to", fix=nearest(to, ends))
        ends[to]()
        return json_response(canary.as_data())

    return router
