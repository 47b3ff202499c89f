"""`clean` removes what nothing needs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from groundup import clean
from groundup.artifact import Artifact, Store, digest_data, link
from groundup.data.corpus import Corpus
from groundup.data.shards import open_or_build


def make(store: Store, kind: str, text: str, parents: dict[str, Artifact] | None = None) -> Artifact:
    described = {key: {"kind": a.kind, "digest": a.digest} for key, a in (parents or {}).items()}
    key = digest_data(text)
    with store.draft(kind, key, parents=described) as out:
        out.path("text").write_text(text)
    artifact = store.find(key)
    assert artifact is not None
    return artifact


def test_what_a_run_points_at_and_was_made_from_stays() -> None:
    store = Store()
    corpus = make(store, "corpus", "corpus")
    model = make(store, "model", "model", {"data": corpus})
    shards = make(store, "shards", "shards", {"data": corpus})
    old = make(store, "model", "old model")
    old_shards = make(store, "shards", "old shards", {"data": old})
    link(Path("runs/r/base"), model)
    waste = clean.find(store)
    assert {item.path for item in waste} == {old.path, old_shards.path}
    clean.remove(store, waste)
    assert not old.path.exists()
    assert store.find(digest_data("old model")) is None
    for artifact in (corpus, model, shards):
        artifact.verify(full=True)
    assert clean.find(store) == []


def test_encoded_rows_go_with_the_corpus_they_are_of(make_corpus: Callable[[dict[str, list[str]]], Corpus]) -> None:
    corpus, other = make_corpus({"train": ["a", "b"]}), make_corpus({"train": ["c"]})
    shards = {
        each.artifact.digest: open_or_build(Store(), each, "train", {"task": "t"}, lambda _: {"input_ids": [1]})
        for each in (corpus, other)
    }
    link(Path("runs/r/rows"), corpus.artifact)
    waste = {item.path for item in clean.find(Store())}
    assert waste == {other.artifact.path, shards[other.artifact.digest].artifact.path}


def test_states_and_dead_drafts_are_named() -> None:
    store = Store()
    state = store.state_folder("a" * 64)
    state.mkdir(parents=True)
    (state / "x").write_text("xx")
    dead = store.root / "drafts" / f"abc-{2**22 + 1}"
    dead.mkdir(parents=True)
    waste = clean.find(store)
    assert {item.path for item in waste} == {state, dead}
    clean.remove(store, waste)
    assert not state.exists()
    assert not dead.exists()
