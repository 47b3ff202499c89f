"""Histories and rows of tables over HTTP: what is recommended, what there is to choose from, classes of rows."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import groundup
from groundup.serving import inputs, models
from groundup.serving.api.recommending import Catalogue

Runs = Callable[[Coroutine[Any, Any, None]], None]
JSON = [("content-type", "application/json")]
SPEC = importlib.util.spec_from_file_location("trained", Path(__file__).with_name("trained.py"))
assert SPEC is not None and SPEC.loader is not None
trained: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(trained)
FILMS: list[str] = trained.FILMS


@pytest.fixture
def asked(serve_api: Any, trained_model: Callable[[str], Path], wire: Any, runs: Runs) -> Callable[..., None]:
    """A function that serves a recommender and a classifier of tables and runs a test with them."""

    def run(test: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            async with serve_api({what: trained_model(what) for what in ("histories", "table")}) as app:

                async def ask(path: str, given: Any = None, query: str = "") -> Any:
                    method, data = ("GET", b"") if given is None else ("POST", json.dumps(given).encode())
                    return await wire.ask(app, method, path, JSON, data, query_string=query.encode())

                await test(ask)

        runs(body())

    return run


def names(reply: Any, place: int = 0) -> list[str]:
    assert reply.status == 200, reply.body
    return [one["item"] for one in json.loads(reply.body)["data"][place]["items"]]


def test_what_comes_next_is_ranked(asked: Any, trained_model: Callable[[str], Path]) -> None:
    history = FILMS[3:6]
    wanted = groundup.load(trained_model("histories"), device="cpu").predict([{"items": history}])[0]["items"]

    async def test(ask: Any) -> None:
        body = {"model": "histories", "items": history, "k": 20}
        reply = await ask("/v1/recommend", body)
        assert names(reply) == wanted and wanted[0] == FILMS[6]
        found = json.loads(reply.body)["data"][0]["items"]
        scores = [one["score"] for one in found]
        assert scores == sorted(scores, reverse=True) and not set(history) & set(names(reply))
        assert names(await ask("/v1/recommend", body | {"k": 2})) == wanted[:2]
        assert names(await ask("/v1/recommend", body | {"exclude": [wanted[0], "nobody"]})) == wanted[1:]
        both = await ask("/v1/recommend", {"model": "histories", "input": [history, {"items": FILMS[9:12]}]})
        assert names(both, 0) == wanted[:10] and names(both, 1)[0] == FILMS[12]
        strange = await ask("/v1/recommend", {"model": "histories", "items": ["A film that is new", *history]})
        assert json.loads(strange.body)["data"][0]["unknown"] == ["A film that is new"]

    asked(test)


def test_mistakes_in_histories(asked: Any) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"model": "histories"}, 400, "no history"),
        ({"model": "histories", "items": FILMS[:2], "input": [FILMS[:2]]}, 400, "or there are two"),
        ({"model": "histories", "items": []}, 400, "at least 1 item"),
        ({"model": "histories", "items": FILMS[:2], "k": 101}, 400, "k:"),
        ({"model": "histories", "input": [{"films": FILMS[:2]}]}, 400, "no column 'items'"),
        ({"model": "histories", "input": [{"items": "Film"}]}, 400, "no list of items"),
        ({"model": "table", "items": FILMS[:2]}, 400, "ask it at /v1/classify"),
        ({"model": "nobody", "items": FILMS[:2]}, 404, "no model"),
    ]

    async def test(ask: Any) -> None:
        for given, status, what in cases:
            reply = await ask("/v1/recommend", given)
            assert reply.status == status and what in reply.error["message"], (given, reply.body)
        wrong = await ask("/v1/classify", {"model": "histories", "input": "x"})
        assert wrong.status == 400 and "/v1/recommend" in wrong.error["message"]

    asked(test)


def test_items_are_looked_for(asked: Any) -> None:
    async def test(ask: Any) -> None:
        reply = await ask("/v1/items", query="model=histories&search=FILM%2007&limit=5")
        assert json.loads(reply.body)["data"] == [{"item": FILMS[7]}]
        every = json.loads((await ask("/v1/items", query="model=histories&limit=3")).body)
        assert len(every["data"]) == 3 and every["total"] == len(FILMS)
        assert (await ask("/v1/items", query="model=table")).status == 400
        assert (await ask("/v1/items", query="model=histories&limit=1000")).status == 400
        assert (await ask("/v1/items")).status == 400

    asked(test)


def test_a_catalogue_is_searched_by_titles() -> None:
    catalogue = Catalogue(["1", "2", "3"], [5, 1, 9], ["Star Wars", "Wars of Ants", "Tartuffe"])
    assert catalogue.search("", 9) == ["3", "1", "2"], "the usual ones first"
    assert catalogue.search("wars", 9) == ["2", "1"], "first those that begin with it"
    assert catalogue.search("wars star", 9) == ["1"]
    assert catalogue.told("1") == {"item": "1", "title": "Star Wars"}


def test_rows_of_a_table_are_classified(asked: Any, trained_model: Callable[[str], Path]) -> None:
    async def test(ask: Any) -> None:
        rows = [{"weight": 9.0, "colour": "grey"}, {"weight": "1", "colour": "brown"}, {"weight": None, "colour": ""}]
        reply = await ask("/v1/classify", {"model": "table", "input": rows})
        found = [one["label"] for one in json.loads(reply.body)["data"]]
        assert found[:2] == ["large", "small"]
        wrong = await ask("/v1/classify", {"model": "table", "input": [rows[0], {"weight": "heavy", "colour": "grey"}]})
        assert wrong.status == 400 and wrong.error["param"] == "input[1]" and "heavy" in wrong.error["message"]

    asked(test)


@pytest.mark.parametrize("what", ["histories", "table"])
def test_a_probe_can_be_answered(trained_model: Callable[[str], Path], what: str) -> None:
    facts = models.describe(trained_model(what))
    row = inputs.sample(facts.columns, facts.media, facts.form)
    assert groundup.load(trained_model(what), device="cpu").predict([row])
    assert models.Facts.of_data(json.loads(json.dumps(facts.as_data()))) == facts


def test_titles_are_learnt_beside_items() -> None:
    from groundup import catalog, config

    module = catalog.load("tasks", "next_item")
    rows = [{"items": ["1", "2"], "title": ["Star Wars", "Tartuffe"]}, {"items": ["2"], "title": ["Tartuffe", "more"]}]
    settled: Any = module.settle(config.named("tasks", {"name": "next_item", "titles": "title"}), rows)
    assert settled.catalogue == ("1", "2") and settled.called == ("Star Wars", "Tartuffe")
