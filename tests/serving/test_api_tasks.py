"""Labelled tasks, vectors and scores over HTTP: what comes out is what `predict` gives."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import groundup
from groundup.serving.api.tasks import spans

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
JSON = [("content-type", "application/json")]


@pytest.fixture
def asked(serve_api: Any, make_model: Make, wire: Any, runs: Runs) -> Callable[..., None]:
    """A function that serves models of these tasks, each under its task's name, and runs a test with them."""

    def run(tasks: list[str], test: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            async with serve_api({task: make_model(task) for task in tasks}) as app:

                async def post(path: str, /, **body: Any) -> Any:
                    return await wire.ask(app, "POST", path, JSON, json.dumps(body).encode())

                await test(post)

        runs(body())

    return run


def answers(reply: Any) -> list[dict[str, Any]]:
    """The data of a reply that must have come."""
    assert reply.status == 200, reply.body
    found: list[dict[str, Any]] = json.loads(reply.body)["data"]
    assert [one["index"] for one in found] == list(range(len(found)))
    return found


def predicted(path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    """What the library answers."""
    return groundup.load(path, device="cpu").predict(rows)  # type: ignore[operator]


def test_classes(asked: Any, make_model: Make, rows_of: Any) -> None:
    rows = rows_of("text_classification", 9)
    wanted = predicted(make_model("text_classification"), rows)

    async def test(post: Any) -> None:
        found = answers(await post("/v1/classify", model="text_classification", input=rows))
        for one, expected in zip(found, wanted, strict=True):
            assert one["label"] == expected["label"]
            assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        texts = answers(await post("/v1/classify", model="text_classification", input=[row["text"] for row in rows]))
        assert [one["label"] for one in texts] == [one["label"] for one in found]
        alone = answers(await post("/v1/classify", model="text_classification", input=rows[0]["text"]))
        assert alone[0]["label"] == found[0]["label"]

    asked(["text_classification"], test)


def test_tags_with_their_spans(asked: Any, make_model: Make, rows_of: Any) -> None:
    rows = rows_of("token_tagging", 6)
    wanted = predicted(make_model("token_tagging"), rows)

    async def test(post: Any) -> None:
        found = answers(await post("/v1/tag", model="token_tagging", input=rows))
        for row, one, expected in zip(rows, found, wanted, strict=True):
            assert one["tags"] == expected["tags"] and one["tokens"] == row["tokens"]
            assert one["spans"] == spans(row["tokens"], one["tags"])
        text = answers(await post("/v1/tag", model="token_tagging", input=" ".join(rows[0]["tokens"])))
        assert text[0]["tokens"] == rows[0]["tokens"] and text[0]["tags"] == found[0]["tags"]

    asked(["token_tagging"], test)


def test_answers_in_passages(asked: Any, make_model: Make, rows_of: Any) -> None:
    rows = rows_of("span_qa", 6)
    wanted = predicted(make_model("span_qa"), rows)

    async def test(post: Any) -> None:
        found = answers(await post("/v1/answer", model="span_qa", input=rows))
        for row, one, expected in zip(rows, found, wanted, strict=True):
            assert one["answer"] == expected["text"]
            if one["start"] is not None:
                assert row["text"][one["start"] : one["end"]] == one["answer"]
        single = await post("/v1/answer", model="span_qa", question=rows[0]["question"], context=rows[0]["text"])
        assert answers(single)[0]["answer"] == found[0]["answer"]
        assert (await post("/v1/answer", model="span_qa", question="where?")).status == 400

    asked(["span_qa"], test)


def test_translations(asked: Any, make_model: Make, rows_of: Any) -> None:
    rows = rows_of("translation", 3)
    wanted = predicted(make_model("translation"), rows)

    async def test(post: Any) -> None:
        texts = [row["source_text"] for row in rows]
        found = answers(await post("/v1/translate", model="translation", input=texts))
        assert [one["text"] for one in found] == [one["text"] for one in wanted]

    asked(["translation"], test)


def test_vectors_and_the_order_they_give(asked: Any) -> None:
    texts = ["the red train", "the old train", "去哪里"]

    async def test(post: Any) -> None:
        plain = answers(await post("/v1/embeddings", model="embedding", input=texts))
        vectors = np.array([one["embedding"] for one in plain], np.float32)
        packed = answers(await post("/v1/embeddings", model="embedding", input=texts, encoding_format="base64"))
        again = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed]
        assert np.array_equal(vectors, np.stack(again))
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
        ranked = await post("/v1/rerank", model="embedding", query=texts[0], documents=texts, top_n=2)
        results = json.loads(ranked.body)["results"]
        assert len(results) == 2 and results[0]["index"] == 0
        assert results[0]["relevance_score"] == pytest.approx(1, abs=1e-5)
        narrow = await post("/v1/embeddings", model="embedding", input=texts, dimensions=3)
        assert narrow.status == 400 and narrow.error["param"] == "dimensions"

    asked(["embedding"], test)


def test_mistakes_name_the_row_and_the_right_route(asked: Any) -> None:
    async def test(post: Any) -> None:
        missing = await post("/v1/classify", model="text_classification", input=[{"text": "x"}, {"texts": "y"}])
        assert missing.status == 400 and missing.error["param"] == "input[1]"
        wrong = await post("/v1/tag", model="text_classification", input="x")
        assert wrong.status == 400 and "/v1/classify" in wrong.error["message"]
        vectors = await post("/v1/embeddings", model="text_classification", input="x")
        assert vectors.status == 400 and vectors.code == "wrong_model_kind"
        many = await post("/v1/classify", model="text_classification", input=["x"] * 300)
        assert many.status == 400
        for poison in ([[]], [None], [{"text": None}], [{"text": [1]}], [{}], 3, {"text": {"a": {}}}):
            reply = await post("/v1/classify", model="text_classification", input=poison)
            assert reply.status == 400, (poison, reply.body)
        assert answers(await post("/v1/classify", model="text_classification", input="x"))

    asked(["text_classification"], test)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-A I-A O B-A", [("A", 0, 1), ("A", 3, 3)]),
        ("I-A I-A B-A I-B", [("A", 0, 1), ("A", 2, 2), ("B", 3, 3)]),
        ("S-A B-B I-B E-B S-B", [("A", 0, 0), ("B", 1, 3), ("B", 4, 4)]),
        ("O O", []),
    ],
)
def test_spans_of_every_scheme(tags: str, expected: list[tuple[str, int, int]]) -> None:
    tokens = ["ab", "cd", "去", "哪", "ef"][: len(tags.split())]
    found = spans(tokens, tags.split())
    assert [(one["label"], one["first"], one["last"]) for one in found] == expected


def test_a_span_reads_as_it_is_written() -> None:
    assert spans(["New", "York"], ["B-X", "I-X"])[0]["text"] == "New York"
    assert spans(["去", "哪", "里"], ["B-X", "I-X", "I-X"])[0]["text"] == "去哪里"
