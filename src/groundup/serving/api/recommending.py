"""What a user may choose next (`POST /v1/recommend`), and the items that there are (`GET /v1/items`).

A row is a history: the items that a user chose, oldest first. The engine gives the best items with their scores;
what is left out of these on request, and how many are told, is decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from groundup.artifact import Artifact
from groundup.evaluation import answering
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import bad
from groundup.serving.api.registry import Served
from groundup.serving.api.rows import answered
from groundup.serving.api.schemas import RecommendRequest
from groundup.serving.api.tasks import served_for

KEPT = 16
"""Catalogues that are held at the same time."""


class Catalogue:
    """The items of a model, to be looked for by parts of their names."""

    def __init__(self, names: Sequence[str], counts: Sequence[int], titles: Sequence[str]) -> None:
        """`counts` is how often each was chosen in training: of equals, the more usual comes first.

        `titles` are what people call them, where names are but numbers; empty where there are none.
        """
        self._titles = dict(zip(names, titles, strict=True)) if titles else {}
        order = sorted(range(len(names)), key=lambda place: -counts[place]) if counts else range(len(names))
        self.names = [names[place] for place in order]
        self._folded = [self._titles.get(name, name).casefold() for name in self.names]
        self._known = frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def told(self, name: str) -> dict[str, Any]:
        """An item as a client is told of it: its name, and its title where it has one."""
        return {"item": name} | ({"title": self._titles[name]} if name in self._titles else {})

    def search(self, text: str, limit: int) -> list[str]:
        """The items whose titles hold every word of a text; first those that begin with it, and the usual ones."""
        whole = text.casefold().strip()
        words = whole.split()
        found = [place for place, title in enumerate(self._folded) if all(word in title for word in words)]
        found.sort(key=lambda place: not self._folded[place].startswith(whole))
        return [self.names[place] for place in found[:limit]]


@lru_cache(maxsize=KEPT)
def _catalogue(folder: str, digest: str) -> Catalogue:
    section: Any = answering.task_section(Artifact(Path(folder)).manifest, folder)
    counts, titles = (getattr(section, name, None) or () for name in ("counts", "called"))
    return Catalogue(section.catalogue, counts, titles)


async def catalogue_of(served: Served) -> Catalogue:
    """The items that a model knows; the first time takes a while."""
    return await asyncio.to_thread(_catalogue, served.facts.folder, served.digest)


async def recommend(api: Api, caller: Caller, body: RecommendRequest) -> dict[str, Any]:
    """For each history its `items`, best first, each with its `score`; and those given that the model does not know.

    Raises ApiError, naming the row, for one that is no history; and EngineFault.
    """
    served = served_for(api, caller, body.model, "recommend")
    column = served.facts.columns["items"]
    if (body.items is None) == (body.input is None):
        raise bad("there is no history, or there are two", "items", fix="send items, or input for several histories")
    rows = [{column: body.items}] if body.items is not None else [_row(row, column) for row in body.input or ()]
    catalogue = await catalogue_of(served)
    given, meter = await answered(api, caller, served, rows, body.timeout)
    excluded = {str(one) for one in body.exclude}
    data = []
    for place, (row, one) in enumerate(zip(rows, given, strict=True)):
        pairs = [pair for pair in zip(one["items"], one["scores"], strict=True) if pair[0] not in excluded]
        ranked = [catalogue.told(item) | {"score": score} for item, score in pairs[: body.k]]
        found: dict[str, Any] = {"index": place, "items": ranked}
        unknown = [item for item in map(str, row[column]) if item not in catalogue]
        data.append(found | ({"unknown": unknown} if unknown else {}))
    usage = {"prompt_tokens": meter.prompt_tokens, "total_tokens": meter.prompt_tokens}
    return {"object": "list", "model": served.name, "data": data, "usage": usage}


async def items(api: Api, caller: Caller, model: str, search: str, limit: int) -> dict[str, Any]:
    """Items of a model's catalogue by parts of their names. Raises ApiError for a model without one."""
    served = served_for(api, caller, model, "recommend")
    catalogue = await catalogue_of(served)
    found = await asyncio.to_thread(catalogue.search, search, limit)
    data = [catalogue.told(name) for name in found]
    return {"object": "list", "model": served.name, "data": data, "total": len(catalogue.names)}


def _row(row: Any, column: str) -> dict[str, Any]:
    """A history by itself, or the columns of a row, of which one holds it."""
    return {column: row} if isinstance(row, list) else row
