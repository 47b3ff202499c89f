"""Batches are a function of (step, micro-batch), however and by whom they are made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from groundup.data.ledger import Ledger
from groundup.data.loader import Batch, Loader, blank, stack
from groundup.data.packing import IGNORED, Row

WIDTH = 4


class Numbered:
    """Rows that say their index and epoch; a row may be made to fail."""

    def __init__(self, rows: int, broken: int | None = None) -> None:
        self.rows, self.broken = rows, broken
        self.made_in: set[str] = set()

    def __len__(self) -> int:
        return self.rows

    def row(self, index: int, epoch: int) -> Row:
        self.made_in.add(threading.current_thread().name)
        if index == self.broken:
            raise OSError("the disk went away")
        return {"input_ids": np.full(WIDTH, index), "labels": np.full(WIDTH, epoch)}

    def ledger(self) -> Ledger:
        trained = self.rows * WIDTH
        return Ledger(documents=1, rows=self.rows, tokens=trained, trained=trained, masked=0)

    def unit_of(self, index: int) -> int:
        return index

    def bytes_of(self, index: int) -> float:
        return 1.0


def collate(rows: Sequence[Row]) -> Batch:
    return stack(rows, fill={"input_ids": -1})


@pytest.fixture
def loader() -> Iterator[Loader]:
    made = Loader(Numbered(23), collate, seed=5, batch_rows=6, micro_batches=3, workers=2)
    yield made
    made.close()


def indices(loader: Loader, steps: range) -> list[int]:
    return [
        int(index) for step in steps for micro in range(loader.micro_batches)
        for index in loader.micro_batch(step, micro)[1]
    ]  # fmt: skip


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 6])
def test_the_rows_of_a_step_do_not_depend_on_how_it_is_cut(micro_batches: int) -> None:
    whole = Loader(Numbered(23), collate, seed=5, batch_rows=6)
    cut = Loader(Numbered(23), collate, seed=5, batch_rows=6, micro_batches=micro_batches)
    assert indices(cut, range(12)) == indices(whole, range(12))
    sizes = [len(cut.micro_batch(0, micro)[1]) for micro in range(micro_batches)]
    assert sum(sizes) == 6 and max(sizes) - min(sizes) <= 1


def test_every_epoch_has_every_row_once_and_rows_know_their_epoch() -> None:
    loader = Loader(Numbered(23), collate, seed=5, batch_rows=6)
    found = indices(loader, range(23))
    assert len(found) == 23 * 6
    for epoch in range(6):
        assert sorted(found[epoch * 23 : (epoch + 1) * 23]) == list(range(23))
    batch, rows = loader.micro_batch(3, 0)
    assert batch["input_ids"][:, 0].tolist() == rows.tolist()
    assert batch["labels"][:, 0].tolist() == [0] * 5 + [1]
    assert loader.epoch_of(23) == 6.0


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_threads_change_no_byte_and_any_step_can_be_asked_for(workers: int) -> None:
    plain = Loader(Numbered(23), collate, seed=5, batch_rows=6, micro_batches=3)
    rows = Numbered(23)
    loader = Loader(rows, collate, seed=5, batch_rows=6, micro_batches=3, workers=workers)
    asked = [(s, m) for s in [*range(5), 1_000_000, 1_000_001, 2, 3, 3] for m in (0, 1, 2)] + [(9, 2), (9, 0)]
    for step, micro in asked:
        (batch, found), (wanted, named) = loader.micro_batch(step, micro), plain.micro_batch(step, micro)
        assert found.tolist() == named.tolist()
        assert all(torch.equal(batch[key], wanted[key]) for key in wanted)
    loader.close()
    assert any(name.startswith("rows") for name in rows.made_in) == (workers > 0)
    assert torch.equal(loader.micro_batch(4, 1)[0]["input_ids"], plain.micro_batch(4, 1)[0]["input_ids"])


def test_the_next_batches_are_made_while_one_is_used(loader: Loader) -> None:
    loader.micro_batch(0, 0)
    deadline = time.monotonic() + 10
    waiting = loader._ahead
    assert waiting is not None
    while not all(future.done() for future in waiting._pending.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [key for key, future in waiting._pending.items() if future.done()] == [(0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_failure_in_a_thread_reaches_the_one_who_asks() -> None:
    loader = Loader(Numbered(6, broken=4), collate, seed=0, batch_rows=6, workers=1)
    with pytest.raises(OSError, match="the disk went away"):
        loader.micro_batch(0, 0)
    loader.close()


@pytest.mark.parametrize(("rows", "batch_rows"), [(23, 6), (6, 6), (5, 6), (1, 4), (12, 5)])
def test_a_sweep_shows_every_row_once_in_batches_of_one_shape(rows: int, batch_rows: int) -> None:
    loader = Loader(Numbered(rows), collate, seed=5, batch_rows=batch_rows)
    seen: list[int] = []
    for batch, found in loader.sweep():
        assert batch["input_ids"].shape == (batch_rows, WIDTH)
        assert batch["input_ids"][: len(found), 0].tolist() == found.tolist()
        assert set(batch["labels"][: len(found)].flatten().tolist()) == {0}
        assert set(batch["labels"][len(found) :].flatten().tolist()) <= {IGNORED}
        seen += found.tolist()
    assert seen == list(range(rows))
    assert [f.tolist() for _, f in loader.sweep(3)] == [f.tolist() for _, f in loader.sweep(3)]


def test_a_short_sweep_is_spread_over_all_rows() -> None:
    loader = Loader(Numbered(1000), collate, seed=5, batch_rows=4, micro_batches=2)
    found = [index for batch, rows in loader.sweep(10) for index in rows.tolist()]
    assert found == list(range(0, 1000, 100))
    assert {len(batch["labels"]) for batch, _ in loader.sweep(10)} == {2}


def test_a_blank_row_trains_nothing_and_changes_nothing_else() -> None:
    row = {"input_ids": np.arange(3), "labels": np.arange(3), "next_sentence_label": np.array(1)}
    empty = blank(row)
    assert empty["labels"].tolist() == [IGNORED] * 3 and int(empty["next_sentence_label"]) == IGNORED
    assert empty["input_ids"].tolist() == [0, 1, 2] and row["labels"].tolist() == [0, 1, 2]


def test_rows_of_unequal_length_are_filled_up() -> None:
    rows = [{"input_ids": np.arange(n), "labels": np.arange(n), "attention_mask": np.ones(n, bool)} for n in (1, 3)]
    batch = stack(rows, fill={"input_ids": 9})
    assert batch["input_ids"].tolist() == [[0, 9, 9], [0, 1, 2]]
    assert batch["labels"].tolist() == [[0, IGNORED, IGNORED], [0, 1, 2]]
    assert batch["attention_mask"].tolist() == [[True, False, False], [True] * 3]


def test_impossible_requests_are_refused(loader: Loader) -> None:
    with pytest.raises(ValueError, match="2 rows cannot be divided into 3"):
        Loader(Numbered(5), collate, seed=0, batch_rows=2, micro_batches=3)
    for step, micro in ((0, 3), (-1, 0)):
        with pytest.raises(IndexError):
            loader.micro_batch(step, micro)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_batches_can_be_page_locked() -> None:
    batch, _ = Loader(Numbered(8), collate, seed=0, batch_rows=4, workers=1, pin=True).micro_batch(0, 0)
    assert all(tensor.is_pinned() for tensor in batch.values())
