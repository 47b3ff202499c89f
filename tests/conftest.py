"""What every test shares: where real data may be found, and a store of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings

from groundup.artifact import Store, digest_data
from groundup.data.corpus import Corpus

ROOT = Path(__file__).resolve().parent.parent


# The same examples at each run: a change is judged by what it changed, not by the examples of the day.
# New ones are looked for with `pytest --hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Each test draws the same numbers, whichever tests ran before it in its process."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A function from a name such as `mnist` to its path; the test is skipped where there is none.

    The data is looked for in GROUNDUP_TEST_DATA, then in `../shared/data` beside the repository.
    """
    root = Path(os.environ.get("GROUNDUP_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"the data set {name!r} is not on this machine (GROUNDUP_TEST_DATA names its folder)")
        return path

    return find


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in an empty directory with an empty store."""
    monkeypatch.setenv("GROUNDUP_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_corpus() -> Callable[[dict[str, list[str]]], Corpus]:
    """A function from texts by split to a corpus artefact with just these documents, in this order."""
    return write_corpus


def write_corpus(texts: dict[str, list[str]]) -> Corpus:
    """A corpus in the store, as the prepare stage lays it out."""
    store = Store()
    key = digest_data(texts)
    with store.draft("corpus", key, stage="prepare") as draft:
        summary = {"columns": ["text", "id", "source"], "splits": {}}
        for split, rows in texts.items():
            name = f"{split}/00000.parquet"
            columns = {"text": pa.array(rows, pa.string()), "id": pa.array(range(len(rows)), pa.int64())}
            pq.write_table(
                pa.table(columns | {"source": [f"{split}:{row}" for row in columns["id"]]}), draft.path(name)
            )
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in rows]
            entry = {"documents": len(rows), "bytes": sum(sizes), "longest_document_bytes": max(sizes, default=0)}
            summary["splits"][split] = entry | {"files": [{"name": name, "rows": len(rows)}]}
        draft.write_json("corpus.json", summary)
    found = store.find(key)
    assert found is not None
    return Corpus(found)


@pytest.fixture(scope="session")
def write_stories() -> Callable[[Path, int], None]:
    """A function that writes so many text files into a folder, no two of them alike."""

    def write(folder: Path, count: int) -> None:
        folder.mkdir(parents=True)
        draw = random.Random(7)
        syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
        for number in range(count):
            sentences = (" ".join(draw.choices(words, k=draw.randint(5, 12))).capitalize() for _ in range(40))
            (folder / f"{number:02}.txt").write_text(". ".join(sentences) + ".\n", encoding="utf-8")

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest quick test first.

    Left where it is, at the end, a process would come to it last, and `make check` would wait for it alone.
    """
    long = [item for item in items if "test_resume.py" in item.nodeid and item.get_closest_marker("smoke")]
    for item in long:
        items.remove(item)
        items.insert(0, item)
