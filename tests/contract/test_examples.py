"""Rows of labelled examples, their two layouts, and a loader that sorts each step by length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from groundup.data import layout
from groundup.data.examples import CROPPED, Examples, waste
from groundup.data.loader import Loader
from groundup.errors import DataError


class Columns:
    """Ragged columns in memory, as shards give them."""

    def __init__(self, **columns: list[list[Any]]) -> None:
        self._columns = columns
        self.documents = len(columns["input_ids"])
        self.bytes = np.array([4 * len(ids) for ids in columns["input_ids"]], np.int64)

    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    def column(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        values = self._columns[name]
        return np.array([v for one in values for v in one]), np.cumsum([0, *map(len, values)])


def examples(sizes: list[int], **options: Any) -> Examples:
    columns = Columns(
        input_ids=[list(range(10 * i, 10 * i + n)) for i, n in enumerate(sizes)],
        token_type_ids=[[i % 2] * n for i, n in enumerate(sizes)],
        label=[[-100 if i == 1 else i % 3] for i, _ in enumerate(sizes)],
        cropped=[[int(n > 5)] for n in sizes],
    )
    return Examples(columns, labels="label", tokens=("input_ids", "token_type_ids"), values=("label",), **options)


def test_rows_are_the_examples_in_their_own_length() -> None:
    rows = examples([3, 1, 0, 6])
    assert len(rows) == 3  # an example without a token is no row
    assert rows.lengths.tolist() == [3, 1, 6]
    assert rows.row(2, 0)["input_ids"].tolist() == [30, 31, 32, 33, 34, 35]
    assert rows.row(2, 0)["label"].shape == ()
    assert rows.document_of(2) == 3


def test_the_ledger_counts_labels_crops_and_what_is_left_out() -> None:
    whole = examples([3, 2, 0, 6]).ledger()
    assert (whole.documents, whole.rows, whole.dropped, whole.cropped) == (4, 3, 1, 1)
    assert (whole.trained, whole.masked, whole.unlabelled) == (2, 1, (1,))
    short = examples([3, 2, 0, 6], drop_cropped=True).ledger()
    assert (short.rows, short.dropped, short.cropped) == (2, 2, 0)


def test_a_split_without_labels_is_refused_with_its_rows() -> None:
    columns = Columns(input_ids=[[1, 2], [3]], label=[[-100], [-100]])
    with pytest.raises(DataError, match="no trained labels") as caught:
        Examples(columns, labels="label", values=("label",)).ledger().require_labels()
    assert "0, 1" in caught.value.what


def test_real_numbers_stay_real() -> None:
    rows = Examples(Columns(input_ids=[[1], [2]], label=[[0.25], [float("nan")]]), labels="label", values=("label",))
    assert rows.row(0, 0)["label"] == np.float32(0.25)
    assert CROPPED not in rows.columns


@pytest.mark.smoke
def test_both_layouts_hold_the_same_tokens_and_labels() -> None:
    rows = [examples([3, 1, 6]).row(i, 0) for i in range(3)]
    padded, flat = layout.padded(rows, fill={"input_ids": 99}), layout.flat(rows)
    assert padded["input_ids"].shape == (3, 6)
    assert flat["input_ids"].shape == (1, 10)
    assert torch.equal(padded["input_ids"][padded["attention_mask"]], flat["input_ids"][0])
    assert (padded["input_ids"][~padded["attention_mask"]] == 99).all()
    assert flat["positions"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4, 5]]
    assert flat["lengths"].tolist() == [3, 1, 6]
    assert torch.equal(padded["label"], flat["label"])


@pytest.mark.parametrize("is_flat", [True, False])
def test_a_batch_comes_apart_into_its_examples(is_flat: bool) -> None:
    rows = [examples([3, 1, 6]).row(i, 0) for i in range(3)]
    batch = layout.collate(rows, fill={}, is_flat=is_flat)
    parts = list(layout.one_by_one(batch))
    assert [int(part["label"][0]) for part in parts] == [int(row["label"]) for row in rows]
    for part, row in zip(parts, rows, strict=True):
        assert part["input_ids"][0, : len(row["input_ids"])].tolist() == row["input_ids"].tolist()


def test_a_step_is_the_same_examples_however_it_is_cut_and_like_lengths_stand_together() -> None:
    rows = examples([int(n) for n in np.random.default_rng(0).integers(1, 9, 40)])
    whole = Loader(rows, layout.flat, 3, 16).micro_batch(1, 0)[1]
    cut = Loader(rows, layout.flat, 3, 16, 4)
    parts = [cut.micro_batch(1, m)[1] for m in range(4)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    lengths = rows.lengths[whole]
    assert (np.diff(lengths) <= 0).all()
    assert waste(rows.lengths, 16, 4)["sorted"] < waste(rows.lengths, 16, 4)["random"]


def test_a_sweep_shows_every_example_once() -> None:
    rows = examples([5, 1, 3, 2, 4])
    batches = list(Loader(rows, layout.flat, 0, 2).sweep())
    assert sorted(np.concatenate([indices for _, indices in batches]).tolist()) == [0, 1, 2, 3, 4]
    assert [batch["lengths"].tolist() for batch, _ in batches] == [[5, 4], [3, 2], [1]]
