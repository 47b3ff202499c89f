"""Shards: encoded once, the same bytes for any number of processes, read without loading."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from groundup.artifact import Store
from groundup.data import shards
from groundup.data.corpus import Corpus
from groundup.data.shards import Shards, open_or_build
from groundup.errors import ArtifactError, DataError, Interrupted, MissingExtra, StageFailed
from groundup.progress import Reporter

MakeCorpus = Callable[[dict[str, list[str]]], Corpus]
TEXTS = ["first text", "", "二", "the fourth text is longer than the others", "x" * 300]


class Letters:
    """Encodes each character as its code point, with a second column of another length."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def encode(self, document: dict[str, Any]) -> dict[str, list[int]]:
        ids = [ord(letter) + self.shift for letter in document["text"]]
        return {
            "input_ids": ids,
            "word_ids": list(range(len(ids))),
            "words": [len(w) for w in document["text"].split()],
        }


def broken(document: dict[str, Any]) -> dict[str, list[int]]:
    if document["text"] == "二":
        raise DataError("cannot encode this", where=document["source"], fix="leave it out")
    return {"input_ids": [1]}


def changing(document: dict[str, Any]) -> dict[str, list[int]]:
    return {"input_ids": [1], document["text"]: [2]}


def needing_more(document: dict[str, Any]) -> dict[str, list[int]]:
    raise MissingExtra("jieba", "zh", needed_for="whole-word masking")


def deadly(document: dict[str, Any]) -> dict[str, list[int]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {"input_ids": []}


def build(corpus: Corpus, encode: Any = None, **options: Any) -> Shards:
    key = options.pop("task_key", {"task": "letters"})
    return open_or_build(Store(), corpus, "train", key, encode or Letters().encode, **options)


@pytest.mark.smoke
def test_every_document_comes_back(make_corpus: MakeCorpus) -> None:
    found = build(make_corpus({"train": TEXTS}))
    assert found.documents == len(TEXTS) and found.tokens == sum(map(len, TEXTS))
    assert sorted(found.columns) == ["input_ids", "word_ids", "words"]
    for name in found.columns:
        values, offsets = found.column(name)
        assert offsets.dtype == np.int64 and len(offsets) == len(TEXTS) + 1 and offsets[-1] == len(values)
        expected = [Letters().encode({"text": text})[name] for text in TEXTS]
        assert [values[offsets[i] : offsets[i + 1]].tolist() for i in range(len(TEXTS))] == expected
        assert [found.document(i, name).tolist() for i in range(len(TEXTS))] == expected
    assert found.bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert isinstance(found.column("input_ids")[0], np.memmap)
    with pytest.raises(ArtifactError, match="no column 'label'"):
        found.column("label")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 65535], "uint16"), ([65536], "uint32"), ([-100, 5], "int32"), ([70000, -1], "int32"), ([2**32], "int64")],
)
def test_values_take_the_narrowest_type(make_corpus: MakeCorpus, values: list[int], dtype: str) -> None:
    found = build(make_corpus({"train": ["a", "b"]}), lambda document: {"input_ids": values})
    stored, _ = found.column("input_ids")
    assert stored.dtype == dtype and stored.tolist() == values * 2


def test_a_later_wide_value_widens_the_column(make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 1)
    rows = {"a": [1, 65535], "b": [65536], "c": [-7], "d": [2]}
    found = build(make_corpus({"train": list(rows)}), lambda document: {"input_ids": rows[document["text"]]})
    values, offsets = found.column("input_ids")
    assert values.dtype == np.int64 and offsets.tolist() == [0, 2, 3, 4, 5]
    assert values.tolist() == [1, 65535, 65536, -7, 2]


def test_equal_offsets_are_stored_once(make_corpus: MakeCorpus) -> None:
    found = build(make_corpus({"train": TEXTS}))
    names = {path.name for path in found.artifact.path.glob("*.bin")}
    assert "words.offsets.bin" in names and "word_ids.offsets.bin" not in names


@pytest.mark.smoke
def test_an_empty_split_has_no_rows(make_corpus: MakeCorpus) -> None:
    found = build(make_corpus({"train": []}))
    values, offsets = found.column("input_ids")
    assert (found.documents, found.tokens, len(values), offsets.tolist()) == (0, 0, 0, [0])


def test_encoding_happens_once_for_a_key(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus({"train": TEXTS})
    first = build(corpus)
    assert build(corpus, broken).artifact == first.artifact, "a finished key is opened, not encoded again"
    other = build(corpus, Letters(1).encode, task_key={"task": "letters", "shift": 1})
    assert other.artifact != first.artifact
    assert other.document(0)[0] == ord("f") + 1


def test_the_files_do_not_depend_on_the_number_of_processes(
    make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    monkeypatch.setattr(shards, "BATCH_BYTES", 2000)
    corpus = make_corpus({"train": [f"text number {i} 数字" * (i % 17) for i in range(900)]})
    digests = {build(corpus, task_key={"processes": count}, processes=count).artifact.digest for count in (1, 3)}
    assert len(digests) == 1


def test_shards_travel_to_other_processes(make_corpus: MakeCorpus) -> None:
    found = build(make_corpus({"train": TEXTS}))
    assert found.document(0) is not None
    again = pickle.loads(pickle.dumps(found))
    assert again.document(3).tolist() == found.document(3).tolist()


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_of_encode_arrive_and_leave_nothing(
    make_corpus: MakeCorpus, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    with pytest.raises(DataError, match="cannot encode this") as caught:
        build(make_corpus({"train": TEXTS}), broken, processes=processes)
    assert caught.value.where == "train:2" and caught.value.fix == "leave it out"
    assert not list((Store().root / "drafts").iterdir()) and not (Store().root / "shards").exists()


def test_an_error_that_cannot_travel_is_quoted(make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    with pytest.raises(StageFailed, match="the package 'jieba', which is not installed"):
        build(make_corpus({"train": TEXTS}), needing_more, processes=2)


def test_columns_may_not_change(make_corpus: MakeCorpus) -> None:
    with pytest.raises(DataError, match="encode gave the columns"):
        build(make_corpus({"train": ["a", "b"]}), changing)


def test_a_process_that_dies_is_told(make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    with pytest.raises(StageFailed, match=r"ended unexpectedly \(exit code -9\)"):
        build(make_corpus({"train": TEXTS}), deadly, processes=2)


def test_interruption_leaves_nothing_half_written(make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Progress(Reporter):
        """Counts what it hears, and asks to stop after the second batch."""

        heard: list[float] = []  # noqa: RUF012

        def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
            self.heard.append(done)

    monkeypatch.setattr(shards, "BATCH_BYTES", 1)
    monkeypatch.setattr(shards, "interrupt_requested", lambda: len(Progress.heard) == 2)
    corpus = make_corpus({"train": TEXTS})
    with pytest.raises(Interrupted):
        build(corpus, reporter=Progress())
    assert Progress.heard == [10.0, 10.0]
    assert not list((Store().root / "drafts").iterdir()) and not (Store().root / "shards").exists()
    monkeypatch.undo()


UNGUARDED = """
import os, sys, time
from groundup.data.workers import ordered_map
print("main runs", flush=True)
def items():
    for i in range(10**9):
        yield i
        time.sleep(0.02)
for result in ordered_map(abs, items(), 2):
    if result == 4:
        print("working", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_processes_need_no_main_guard_and_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(UNGUARDED), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert [parent.stdout.readline().strip() for _ in range(2)] == ["main runs", "working"]
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a process outlives its killed parent"
        time.sleep(0.05)
