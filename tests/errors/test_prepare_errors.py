"""Bad sources: every mistake is found, named and explained, and nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.artifact import Store
from groundup.config import Mistake, parse
from groundup.errors import DataError
from groundup.stages import prepare

pytestmark = pytest.mark.smoke


def config(**section: Any) -> prepare.Config:
    parsed, mistakes = parse(prepare.Config, section)
    assert parsed is not None, mistakes
    return parsed


def mistakes(**section: Any) -> list[Mistake]:
    return parse(prepare.Config, section)[1]


def check(**section: Any) -> list[Mistake]:
    return prepare.check(config(**section), {})


def run(**section: Any) -> None:
    with Store().draft("corpus", "key") as out:
        prepare.run(config(**section), {}, out)


def fails(match: str, **section: Any) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        run(**section)
    assert caught.value.fix and Store().find("key") is None
    return caught.value


def write(name: str, *rows: Any) -> None:
    Path(name).write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def test_a_missing_file_is_found_before_running() -> None:
    (found,) = check(source={"paths": "books/*.txt"})
    assert found.path == ("source", "paths") and "no file matches 'books/*.txt'" in found.what
    assert "does not exist" in found.fix
    write("a.txt", "some words\n")
    (found,) = check(source=[{"paths": "a.txt"}, {"paths": "b.txt"}])
    assert found.path == ("source", 1, "paths")
    (found,) = check(source={"paths": "a.txt"}, decontaminate={"paths": "exam.jsonl"})
    assert found.path == ("decontaminate", "paths")
    fails("no file matches 'b.txt'", source={"paths": ["a.txt", "b.txt"]})


def test_an_empty_corpus() -> None:
    Path("empty.txt").touch()
    write("blank.jsonl", {"text": " "}, {"text": ""})
    fails(r"the corpus is empty: none of 1 rows passed \(empty 1\)", source={"paths": "empty.txt"})
    fails(r"the corpus is empty: none of 2 rows passed \(empty 2\)", source={"paths": "blank.jsonl"})
    fails("the corpus is empty: the files hold no rows", source={"paths": "empty.txt", "document": "line"})
    fails("too short 1", source={"paths": __file__, "kind": "text"}, clean={"min_characters": "10M"})
    Path("folder").mkdir()
    (found,) = check(source={"paths": "folder"})
    assert "holds no .txt" in found.fix


def test_a_binary_file() -> None:
    Path("picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 40)
    write("words.txt", "some words\n")
    (found,) = check(source={"paths": "*.txt"})
    assert found.what == "'picture.txt' is a binary file, not text" and "exclude" in found.fix
    error = fails(r"1 of 2 rows \(50.0%\) cannot be read", source={"paths": "*.txt"})
    assert "picture.txt:1: binary file" in str(error)
    run(source={"paths": "*.txt", "exclude": "picture*"})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_or_file_without_the_right_to_read() -> None:
    Path("closed").mkdir()
    write("closed/a.txt", "some words\n")
    Path("closed/a.txt").chmod(0)
    assert "no right to read 'closed/a.txt'" in check(source={"paths": "closed"})[0].what
    fails("cannot read 'closed/a.txt': permission denied", source={"paths": "closed"})
    Path("closed").chmod(0)
    try:
        for paths in ("closed", "closed/*.txt", "**/*.txt"):
            (found,) = check(source={"paths": paths})
            assert "permission denied" in found.what and "chmod u+r" in found.fix
    finally:
        Path("closed").chmod(0o700)


def test_a_folder_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for whoever may read everything: the system's answer is what is replaced."""
    Path("closed").mkdir()
    write("closed/a.txt", "some words\n")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path) and allowed(path, mode))
    (found,) = check(source={"paths": "closed"})
    assert "cannot read 'closed': permission denied" in found.what and "chmod u+r" in found.fix
    fails("permission denied", source={"paths": "closed/*.txt"})


def test_too_many_bad_rows_stop_the_stage_and_few_do_not() -> None:
    write("a.jsonl", *[{"text": f"row {i}"} for i in range(97)], "{broken\n", {"body": "x"}, {"text": 5})
    error = fails(r"3 of 100 rows \(3.0%\) cannot be read; `bad_rows` allows 1.0%", source={"paths": "a.jsonl"})
    for line in ("a.jsonl:98: broken JSON", "a.jsonl:99: no field 'text'", "a.jsonl:100: the field 'text' is no text"):
        assert line in str(error)
    run(source={"paths": "a.jsonl"}, bad_rows="3%")


def test_bad_rows_never_show_a_secret() -> None:
    write("a.jsonl", '{"text": "call 13812345678"\n', {"text": "fine"})
    error = fails("cannot be read", source={"paths": "a.jsonl"}, clean={"redact": ["phone"]})
    assert "13812345678" not in str(error)


def test_a_column_that_is_not_there() -> None:
    Path("a.csv").write_text("body,label\nwords,1\n")
    pq.write_table(pa.table({"texts": ["words"]}), "a.parquet")
    write("a.jsonl", {"content": "words"})
    for name, known in (("a.csv", "body"), ("a.parquet", "did you mean 'texts'")):
        (found,) = check(source={"paths": name})
        assert found.path == ("source", "text_field") and "has no column 'text'" in found.what and known in found.fix
    (found,) = check(source={"paths": "a.jsonl"})
    assert "no field 'text'" in found.what
    (found,) = check(
        source={"paths": "a.csv", "text_field": "body"}, split={"test": 0.5, "by": "group", "group": "author"}
    )
    assert "no column 'author'" in found.what
    write("a.txt", "words\n")
    split = {"test": 0.5, "by": "group", "group": "author"}
    assert "is plain text, which has no column 'author'" in check(source={"paths": "a.txt"}, split=split)[0].what
    for document in ("file", "line", "paragraph"):
        fails("no value in 'author'", source={"paths": "a.txt", "document": document}, split=split)
    fails("has no column 'label2'", source={"paths": "a.csv", "text_field": "body", "keep": "label2"})


def test_damaged_and_mistaken_files() -> None:
    whole = gzip.compress(b'{"text": "some words"}\n' * 5000)
    Path("cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    Path("no.parquet").write_bytes(b"not parquet")
    Path("no.zip").write_bytes(b"not zip")
    write("array.jsonl", '[{"text": "a"}]\n')
    write("what.xyz", "words\n")
    fails(r"'cut.jsonl.gz' is damaged", source={"paths": "cut.jsonl.gz"})
    fails("'no.parquet' is no Parquet file", source={"paths": "no.parquet"})
    assert "is no zip archive" in check(source={"paths": "no.zip"})[0].what
    assert "a JSON array, not one JSON object a line" in check(source={"paths": "array.jsonl"})[0].what
    (found,) = check(source={"paths": "what.xyz"})
    assert "cannot tell the kind" in found.what and "kind: text" in found.fix


def test_a_file_in_an_encoding_that_is_not_guessed() -> None:
    Path("latin.txt").write_bytes("Le café était fermé à Noël, dit-il à côté. ".encode("latin-1") * 20)
    fails("unknown or broken encoding", source={"paths": "latin.txt"})
    run(source={"paths": "latin.txt", "encoding": "latin-1"})


def test_a_line_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.data.source_blocks.LONGEST_ROW", 10_000)
    monkeypatch.setattr("groundup.data.source_rows.LONGEST_ROW", 10_000)
    monkeypatch.setattr("groundup.data.corpus_build.block_bytes", lambda total: 1000)
    write("a.txt", "x" * 50_000)
    Path("b.csv").write_text('text\n"' + "a quote that never closes\n" * 1000)
    fails("one document of more than", source={"paths": "a.txt", "document": "line"})
    error = fails("one document of more than", source={"paths": "a.txt"})
    assert "document: paragraph" in error.fix
    fails("one document of more than", source={"paths": "b.csv"})


def test_too_few_documents_to_divide() -> None:
    write("a.txt", "one document only\n")
    error = fails("no document is left for the test split", source={"paths": "a.txt"}, split={"test": "5%"})
    assert "document: paragraph" in error.fix


def test_times_and_groups_that_are_missing() -> None:
    write("a.jsonl", *[{"text": f"row {i}", "day": "2024-01-01"} for i in range(10)], {"text": "x", "day": "soon"})
    fails("no time in 'day'", source={"paths": "a.jsonl"}, split={"test": 0.2, "by": "time", "time": "day"})
    fails("no value in 'author'", source={"paths": "a.jsonl"}, split={"test": 0.2, "by": "group", "group": "author"})


@pytest.mark.parametrize(
    ("section", "path", "what"),
    [
        ({}, ("source",), "missing"),
        ({"source": {"paths": []}}, ("source", "paths"), "at least one"),
        ({"source": {"paths": "a", "kinds": "text"}}, ("source", "kinds"), "unknown key"),
        ({"source": [{"paths": "a"}, {"path": "b"}]}, ("source", 1, "path"), "unknown key"),
        ({"source": {"paths": "a", "encoding": "utf8x"}}, ("source", "encoding"), "no encoding named 'utf8x'"),
        ({"source": {"paths": "a"}, "clean": {"near_duplicates": 0.1}}, ("clean", "near_duplicates"), "unrelated"),
        ({"source": {"paths": "a"}, "clean": {"languages": "xx"}}, ("clean", "languages"), "no language 'xx'"),
        ({"source": {"paths": "a"}, "clean": {"redact": ["phones"]}}, ("clean", "redact", 0), "phone"),
        ({"source": {"paths": "a"}, "clean": {"unicode": "nfkc", "width": "full"}}, ("clean",), "undoes"),
        ({"source": {"paths": "a"}, "split": {"by": "group"}}, ("split",), "needs `group`"),
        ({"source": {"paths": "a"}, "split": {"by": "time"}}, ("split",), "needs `time`"),
        ({"source": {"paths": "a"}, "split": {"test": "60%", "validation": "40%"}}, ("split",), "leave 10%"),
        ({"source": {"paths": "a"}, "bad_rows": "200%"}, ("bad_rows",), "not between"),
        ({"source": {"paths": "a"}, "workers": 0}, ("workers",), "neither a number of processes nor auto"),
    ],
)
def test_mistakes_in_the_section(section: dict[str, Any], path: tuple[str | int, ...], what: str) -> None:
    found = mistakes(**section)
    assert any(m.path == path and what in m.what for m in found), found
