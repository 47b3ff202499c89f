"""Rows of arrays: what a whole batch is made of at once is what its rows are one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from groundup.artifact import Store
from groundup.config import parse
from groundup.data import loader as loading
from groundup.data import shards as stored
from groundup.data.corpus import Corpus, size_of
from groundup.data.loader import Loader
from groundup.data.order import generator
from groundup.data.packing import IGNORED
from groundup.data.sample import Documents
from groundup.data.shards import open_or_build
from groundup.data.vectors import Arrays, Int64s, Vectors
from groundup.errors import DataError
from groundup.stages import prepare

SHAPE = (1, 2, 3)


def encode(document: dict[str, Any]) -> dict[str, Any]:
    """Six pixels that tell the document, and a label; none for the text 5."""
    number = int(document["text"])
    pixels = np.arange(6, dtype=np.uint8) + 6 * number
    return {"pixel_values": pixels, "label": [number if number != 5 else IGNORED]}


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def shifted(rows: Vectors, arrays: Arrays, indices: Int64s, epochs: Int64s) -> Arrays:
    """Adds what is drawn for a row, and mixes in its neighbour's first pixel."""
    drawn = [generator(0, int(e), int(i), 10).integers(100) for i, e in zip(indices, epochs, strict=True)]
    other = rows.plain((indices + 1) % len(rows))["pixel_values"][:, 0, 0, 0]
    pixels = arrays["pixel_values"].astype(np.int64)
    return arrays | {"pixel_values": pixels + np.array(drawn)[:, None, None, None] + other[:, None, None, None]}


def rows_of(columns: Any, **options: Any) -> Vectors:
    return Vectors(
        columns, shapes={"pixel_values": SHAPE}, values=("label",), labels="label", tensors=tensors, **options
    )


def documents(count: int = 8) -> Documents:
    return Documents([str(i) for i in range(count)], encode)


def test_a_batch_made_at_once_is_its_rows_one_by_one() -> None:
    for change in (None, shifted):
        rows = rows_of(documents(), change=change)
        indices, epochs = np.array([3, 0, 7, 3]), np.array([0, 0, 0, 1])
        batch = rows.batch(indices, epochs)
        assert batch["pixel_values"].shape == (4, *SHAPE)
        for place, (index, epoch) in enumerate(zip(indices, epochs, strict=True)):
            alone = rows.row(int(index), int(epoch))
            assert alone["label"].shape == () and int(batch["label"][place]) == int(alone["label"])
            assert np.array_equal(batch["pixel_values"][place], alone["pixel_values"])
    assert not np.array_equal(batch["pixel_values"][0], batch["pixel_values"][3]), "another epoch draws anew"


def test_how_a_step_is_cut_and_who_makes_it_changes_nothing() -> None:
    def pixels(micro_batches: int, workers: int) -> Tensor:
        loader = Loader(rows_of(documents(), change=shifted), _unused, 7, 4, micro_batches, workers=workers)
        found = [loader.micro_batch(step, m)[0]["pixel_values"] for step in range(5) for m in range(micro_batches)]
        loader.close()
        return torch.cat(found)

    expected = pixels(1, 0)
    for micro_batches, workers in ((2, 0), (4, 1), (1, 2)):
        assert torch.equal(pixels(micro_batches, workers), expected)


def test_blocks_of_batches_begin_where_they_always_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product rounds by how many rows it has: what a resumed run makes must have the same rows beside it."""
    made: list[list[int]] = []

    def noted(rows: Vectors, arrays: Arrays, indices: Int64s, epochs: Int64s) -> Arrays:
        made.append(indices.tolist())
        return arrays

    row_bytes = 6 + 8  # six pixels, and a label as int64
    monkeypatch.setattr(loading, "BLOCK_BYTES", 13 * row_bytes)
    rows = rows_of(documents(), change=noted)
    through = [Loader(rows, _unused, 7, 4, 2, workers=workers) for workers in (0, 2)]
    whole = [[loader.micro_batch(step, m) for step in range(9) for m in range(2)] for loader in through]
    for loader in through:
        loader.close()
    assert all(torch.equal(a[0]["label"], b[0]["label"]) for a, b in zip(*whole, strict=True))
    assert {len(indices) for indices in made} == {1, 12}, "one row to learn its size, then three steps at once"
    made.clear()
    resumed = Loader(rows, _unused, 7, 4, 2)
    batch, indices = resumed.micro_batch(5, 1)
    assert torch.equal(batch["pixel_values"], whole[0][11][0]["pixel_values"])
    assert indices.tolist() == whole[0][11][1].tolist() == made[-1][10:12], "step 5 is the third of its block"


def test_a_sweep_sees_each_row_once_in_one_epoch() -> None:
    loader = Loader(rows_of(documents(), change=None), _unused, 7, 3)
    labels = torch.cat([batch["label"] for batch, _ in loader.sweep()])
    assert sorted(labels.tolist()) == sorted([0, 1, 2, 3, 4, IGNORED, 6, 7])


def test_the_ledger_counts_labels_and_names_rows_without() -> None:
    ledger = rows_of(documents()).ledger()
    assert (ledger.documents, ledger.rows, ledger.trained, ledger.masked) == (8, 8, 7, 1)
    assert ledger.unlabelled == (5,)


def test_an_example_of_another_size_is_named() -> None:
    def uneven(document: dict[str, Any]) -> dict[str, Any]:
        found = encode(document)
        return found | ({"pixel_values": np.zeros(4, np.uint8)} if document["text"] == "2" else {})

    with pytest.raises(DataError, match="example 2 has 4 numbers of 'pixel_values', and the others 6"):
        rows_of(Documents([str(i) for i in range(4)], uneven))
    with pytest.raises(IndexError):
        rows_of(documents()).row(8, 0)


def test_arrays_keep_their_type_on_disk(make_corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BATCH_BYTES", 200)
    corpus = make_corpus({"train": [str(i) for i in range(9)]})

    def typed(document: dict[str, Any]) -> dict[str, Any]:
        number = int(document["text"])
        whole = {"features": np.full(2, number / 3, np.float32), "waveform": np.full(number, -number, np.int16)}
        return encode(document) | whole

    found = open_or_build(Store(), corpus, "train", {"task": "typed"}, typed)
    types = {name: found.column(name)[0].dtype.name for name in found.columns}
    assert types == {"pixel_values": "uint8", "label": "int32", "features": "float32", "waveform": "int16"}
    assert found.tokens == found.documents == 9
    assert found.document(7, "waveform").tolist() == [-7] * 7
    assert found.document(4, "features").tolist() == [np.float32(4 / 3)] * 2
    rows = rows_of(found)
    assert rows.row(8, 0)["pixel_values"].tolist() == (np.arange(6).reshape(SHAPE) + 48).tolist()


def test_rows_of_a_table_need_no_text() -> None:
    with open("table.csv", "w", encoding="utf-8") as file:
        file.write("a,b,class\n1,2.5,x\n3,4.5,y\n1,2.5,x\n")
    section = {"source": {"paths": "table.csv", "text_field": [], "keep": {"a": "a", "b": "b", "label": "class"}}}
    corpus = _prepared(section)
    texts = sorted(str(row["text"]) for row in corpus.documents("train"))
    assert texts == ["a: 1\nb: 2.5\nlabel: x", "a: 3\nb: 4.5\nlabel: y"], "the row that occurs twice is kept once"
    both = _prepared(section | {"clean": {"exact_duplicates": False}})
    assert both.rows("train") == 3


def _prepared(section: dict[str, Any]) -> Corpus:
    asked, mistakes = parse(prepare.Config, section)
    assert asked is not None, mistakes
    assert prepare.check(asked, {}) == []
    store = Store()
    with store.draft("corpus", repr(section)) as out:
        prepare.run(asked, {}, out)
    found = store.find(repr(section))
    assert found is not None
    return Corpus(found)


def test_a_document_is_as_large_as_its_text_and_its_pictures() -> None:
    assert size_of({"text": "é", "image": b"12345", "label": "x"}) == 7


def _unused(rows: Any) -> dict[str, Tensor]:
    raise AssertionError("rows of one shape are made into a batch at once")
