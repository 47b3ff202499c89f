"""Tables of events as a corpus: who chose what when becomes histories and what came next, and nothing of the future."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.artifact import Store
from groundup.config import dump, parse
from groundup.data.corpus import Corpus
from groundup.errors import DataError
from groundup.stages import prepare

EVENTS = [
    ("ann", "a", 1, 5), ("bob", "b", 2, 4), ("ann", "c", 3, 2), ("ann", "b", 5, 5), ("bob", "a", 4, 3),
    ("ann", "d", 9, 4), ("bob", "d", 6, 5), ("cat", "a", 7, 1), ("cat", "c", 8, 5), ("dan", "e", 10, 5),
]  # fmt: skip
"""User, item, day and stars; ann has four events, bob three, cat two, dan one."""
KEYS = {"kind": "interactions", "user": "who", "item": "what", "time": "when", "paths": "events.csv"}


def table(events: Any = EVENTS, name: str = "events.csv") -> None:
    lines = [",".join(map(str, event)) for event in events]
    Path(name).write_text("\n".join(["who,what,when,stars", *lines]) + "\n", encoding="utf-8")


def asked(**section: Any) -> prepare.Config:
    parsed, mistakes = parse(prepare.Config, section)
    assert parsed is not None, mistakes
    return parsed


def run(*, split: dict[str, Any] | None = None, bad_rows: float = 0.5, **source: Any) -> Corpus:
    config = asked(source=KEYS | source, split=split or {"by": "last"}, bad_rows=bad_rows)
    store, key = Store(), str(hash(repr(dump(config))))
    with store.draft("corpus", key) as out:
        prepare.run(config, {}, out)
    assert prepare.check(config, {}) == []
    found = store.find(key)
    assert found is not None
    forecast = prepare.forecast(config, {}).facts["documents"]
    corpus = Corpus(found)
    assert forecast == {split: corpus.rows(split) for split in corpus.splits}, "plan foresees the rows of each split"
    return corpus


def rows(corpus: Corpus, split: str) -> list[tuple[str, str, str]]:
    """User, history and targets of each row, by user."""
    found = (d for d in corpus.documents(split)) if split in corpus.splits else ()
    return sorted((d["user"], "".join(d["items"]), "".join(d["targets"])) for d in found)


def ledger(corpus: Corpus) -> dict[str, Any]:
    found: dict[str, Any] = corpus.artifact.json("ledger.json")
    return found


def mistake(**source: Any) -> str:
    return " ".join(m.what for m in parse(prepare.Config, {"source": KEYS | source})[1])


def test_by_last_the_newest_events_of_each_user_are_held_out() -> None:
    table()
    corpus = run()
    assert rows(corpus, "train") == [("ann", "ac", ""), ("bob", "b", ""), ("cat", "ac", "")]
    assert rows(corpus, "validation") == [("ann", "ac", "b"), ("bob", "b", "a")]
    assert rows(corpus, "test") == [("ann", "acb", "d"), ("bob", "ba", "d")]
    document = next(d for d in corpus.documents("test") if d["user"] == "ann")
    assert document["times"] == [1, 3, 5] and document["target_times"] == [9]
    assert document["source"] == "events.csv:7", "the line of the row's last event"
    assert ledger(corpus)["dropped"] == {"a user with a single event": 1}


def test_by_time_nothing_of_the_future_is_in_a_history_or_in_training() -> None:
    table()
    corpus = run(split={"by": "time", "time": "time", "validation": "20%", "test": "40%"})
    assert rows(corpus, "train") == [("ann", "ac", ""), ("bob", "ba", "")]
    assert rows(corpus, "validation") == [("ann", "ac", "b")]  # bob's next event is of the test already
    assert rows(corpus, "test") == [("ann", "acb", "d"), ("bob", "ba", "d"), ("cat", "a", "c")]
    for split in corpus.splits:
        for document in corpus.documents(split):
            times = [*document["times"], *document["target_times"]]
            assert times == sorted(times)
    latest = max(max(d["times"]) for d in corpus.documents("train"))
    assert latest < min(min(d["target_times"]) for d in corpus.documents("validation"))


def test_events_of_one_moment_come_in_the_order_of_the_file() -> None:
    table([("ann", item, 7, 1) for item in "zyx"])
    assert rows(run(), "test") == [("ann", "zy", "x")]


def test_what_does_not_count_is_left_out_by_a_stated_policy_and_counted() -> None:
    strange = [("", "a", 1, 5), ("ann", "", 1, 5), ("ann", "e", "soon", 5), ("ann", "e", 4, "many"), ("ann", "a", 8, 5)]
    table([*EVENTS, *strange])
    found = ledger(run(value="stars", at_least=3))
    assert found["bad"] == {
        "no value in 'who'": 1, "no value in 'what'": 1, "no time in 'when'": 1, "no number in 'stars'": 1,
    }  # fmt: skip
    assert found["dropped"] == {
        "an event of a value below 3": 2, "an event that repeats an earlier one": 1, "a user with a single event": 2,
    }  # fmt: skip
    named = found["examples"]["bad: no time in 'when'"]
    assert named == [{"source": "events.csv:14", "excerpt": "soon"}]
    with pytest.raises(DataError, match=r"4 of \d+ rows cannot be read|4 of \d+ rows \("):
        run(value="stars", bad_rows=0.01)


def test_repeated_events_are_kept_on_request_but_for_copies() -> None:
    table([("ann", "a", 1, 1), ("ann", "b", 2, 1), ("ann", "a", 3, 1), ("ann", "a", 3, 1), ("ann", "c", 4, 1)])
    assert rows(run(), "test") == [("ann", "ab", "c")]
    assert rows(run(repeats="keep"), "test") == [("ann", "aba", "c")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "dat"])
def test_events_come_in_tables_of_every_kind(kind: str) -> None:
    names = ("who", "what", "when")
    values = [dict(zip(names, (event[0], event[1], f"2024-03-{event[2]:02d}"), strict=True)) for event in EVENTS]
    name, more = f"events.{kind}", {}
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(values), name)
    elif kind == "jsonl":
        Path(name).write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    else:
        mark = {"csv": ",", "tsv": "\t", "dat": "::"}[kind]
        lines = [mark.join(row.values()) for row in values]
        if kind == "dat":  # as MovieLens-1M has it: no header, two colons
            more = {"columns": list(names), "separator": mark, "quotes": False}
        else:
            lines = [mark.join(names), *lines]
        Path(name).write_text("\n".join(lines), encoding="utf-8")
    assert rows(run(paths=name, **more), "test") == [("ann", "acb", "d"), ("bob", "ba", "d")]


def test_several_files_are_one_table() -> None:
    table(EVENTS[:4], "a.csv")
    table(EVENTS[4:], "b.csv")
    assert rows(run(paths=["a.csv", "b.csv"]), "test") == [("ann", "acb", "d"), ("bob", "ba", "d")]


def test_further_tables_tell_of_items_and_of_users() -> None:
    table()
    Path("items.tsv").write_text("id\tgenres\tyear\na\tcrime noir\t1950\nb\tcrime\t1990\nd\t\t2000\n", encoding="utf-8")
    Path("users.csv").write_text("name,age\nann,31\n", encoding="utf-8")
    described = {
        "about_items": {"path": "items.tsv", "key": "id", "columns": {"genre": "genres", "year": "year"},
                        "lists": {"genre": " "}},
        "about_users": {"path": "users.csv", "key": "name", "columns": {"age": "age"}},
    }  # fmt: skip
    corpus = run(**described)
    ann, bob = sorted(corpus.documents("test"), key=lambda d: str(d["user"]))
    assert ann["genre"] == [["crime", "noir"], [], ["crime"], []] and ann["year"] == ["1950", None, "1990", "2000"]
    assert ann["age"] == "31" and bob["age"] is None
    config = asked(source=KEYS | described, split={"by": "last"})
    assert {path.name for path in prepare.sources(config)} == {"events.csv", "items.tsv", "users.csv"}
    with pytest.raises(DataError, match="no column 'yaer'"):
        run(about_items={"path": "items.tsv", "key": "id", "columns": {"year": "yaer"}})


def test_rows_of_single_events_for_clicks() -> None:
    table()
    split = {"by": "time", "time": "time", "test": "20%"}
    corpus = run(row="event", value="stars", split=split)
    assert {split: corpus.rows(split) for split in corpus.splits} == {"train": 8, "test": 2}
    first = next(d for d in corpus.documents("test") if d["user"] == "dan")
    assert {k: first[k] for k in ("user", "item", "time", "value")} == {
        "user": "dan", "item": "e", "time": 10, "value": 5,
    }  # fmt: skip
    assert corpus.columns == ["text", "id", "source", "user", "item", "time", "value"]
    assert {d["value"] for d in run(row="event", value="stars", split=split, keep=["user", "value"]).documents("test")}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"kind": "csv"}, "`item` belongs to kind interactions, not to csv"),
        ({"time": None}, "`kind: interactions` needs `time`: the column that tells when"),
        ({"at_least": 3}, "`at_least` needs `value`"),
        ({"split": "test"}, "prepare's own `split"),
        (
            {"about_items": {"path": "i", "key": "k", "columns": {"user": "maker"}}},
            "two columns would be called 'user'",
        ),
    ],
)
def test_keys_that_do_not_fit_are_explained(source: dict[str, Any], sentence: str) -> None:
    assert sentence in mistake(**source)


def test_splits_that_do_not_fit_and_columns_that_are_not_there_are_explained() -> None:
    table()
    for split, sentence in (
        ({"by": "random", "test": "10%"}, "events cannot be divided `by: random`"),
        ({"by": "time", "time": "when", "test": "10%"}, "rows of events have no column 'when'"),
    ):
        config = asked(source=KEYS, split=split)
        assert sentence in prepare.check(config, {})[0].what
        with pytest.raises(DataError, match=sentence):
            run(split=split)
    found = parse(prepare.Config, {"source": KEYS, "split": {"by": "last", "test": "10%"}})[1]
    assert "leave out `validation` and `test`" in found[0].what
    config = asked(source=KEYS | {"item": "waht"}, split={"by": "last"})
    wrong = prepare.check(config, {})[0]
    assert "no column 'waht'" in wrong.what and "did you mean 'what'" in wrong.fix and "`user`" in wrong.fix
