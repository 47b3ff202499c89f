"""Tables as files come: with lines before the header, in two files side by side, beside the recipe that reads them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from groundup.artifact import Store
from groundup.config import parse
from groundup.data.corpus import Corpus
from groundup.errors import Mistakes
from groundup.recipe import load
from groundup.runner import run
from groundup.stages import prepare


def prepared(section: dict[str, Any]) -> tuple[Corpus, dict[str, Any]]:
    asked, mistakes = parse(prepare.Config, section)
    assert asked is not None, mistakes
    assert prepare.check(asked, {}) == []
    store = Store()
    with store.draft("corpus", repr(section)) as out:
        prepare.run(asked, {}, out)
    found = store.find(repr(section))
    assert found is not None
    return Corpus(found), found.json("ledger.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("has_header", [True, False])
def test_lines_before_a_table_are_skipped(tmp_path: Path, encoding: str, has_header: bool) -> None:
    lines = ['3,2,"a title, naïve"', "", *(["a,b"] if has_header else []), "1,2.5", "3,4.5"]
    (tmp_path / "t.csv").write_bytes("\r\n".join(lines).encode(encoding))
    columns = {} if has_header else {"columns": ["a", "b"]}
    source = {"paths": "t.csv", "skip_lines": 2, "text_field": [], "keep": ["a", "b"], "encoding": encoding}
    corpus, ledger = prepared({"source": source | columns})
    rows = sorted(corpus.documents("train"), key=lambda row: int(row["id"]))
    assert [(row["a"], row["b"]) for row in rows] == [("1", "2.5"), ("3", "4.5")]
    first = 4 if has_header else 3
    assert [row["source"] for row in rows] == [f"t.csv:{first}", f"t.csv:{first + 1}"]
    assert not ledger["bad"]


def test_two_tables_side_by_side_are_one(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "left.txt.gz", "wt", encoding="utf-8") as left:
        left.write("1 2.5\n3   4.5\n5\n")
    (tmp_path / "right.txt").write_text("7.0e+00\n8\n9\n", encoding="utf-8")
    source = {"kind": "aligned", "paths": ["left.txt.gz", "right.txt"], "separator": " ", "columns": ["a", "b", "y"]}
    corpus, ledger = prepared({"source": source | {"text_field": []}, "bad_rows": 0.5})
    rows = sorted(corpus.documents("train"), key=lambda row: int(row["id"]))
    assert [(row["a"], row["b"], row["y"]) for row in rows] == [("1", "2.5", "7.0e+00"), ("3", "4.5", "8")]
    assert rows[0]["text"] == "a: 1\nb: 2.5\ny: 7.0e+00"
    assert "wrong number of fields" in str(ledger["bad"])


def test_rows_of_numbers_are_no_near_copies_of_each_other(tmp_path: Path) -> None:
    """Their texts are mostly names of columns; as texts, all would be near-copies, and a split would lose them."""
    lines = ["the_length_of_the_sepal,the_width_of_the_sepal", *(f"{5 + i / 100:.2f},3.5" for i in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    names = lines[0].split(",")
    source = {"paths": "t.csv", "text_field": [], "keep": names}
    corpus, _ = prepared({"source": source, "split": {"test": 0.25}})
    assert (corpus.rows("train"), corpus.rows("test")) == (45, 15)


def test_columns_that_are_named_are_kept_where_there_is_no_text() -> None:
    section, mistakes = parse(prepare.Config, {"source": {"paths": "t.csv", "text_field": [], "columns": ["a", "b"]}})
    assert section is not None and section.source.kept == {"a": "a", "b": "b"}  # type: ignore[union-attr]
    for source, what in (
        ({"columns": ["a", "id"], "text_field": []}, "'id' is a column of every corpus"),
        ({"kind": "jsonl", "skip_lines": 1}, "`skip_lines` belongs to kind"),
        ({"kind": "aligned", "columns": ["a", "b"]}, "one name for each of `paths`"),
    ):
        section, mistakes = parse(prepare.Config, {"source": {"paths": "t.csv"} | source})
        assert section is None and any(what in mistake.what for mistake in mistakes), mistakes


def test_a_recipe_finds_the_files_beside_it_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "data").mkdir(parents=True)
    (tmp_path / "far/data/t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    source = '{paths: "${recipe.folder}/data/*.csv", text_field: [], keep: [a]}'
    text = f"groundup: 1\nstages: {{rows: {{prepare: {{source: {source}}}}}}}"
    (tmp_path / "far/one.yaml").write_text(text, encoding="utf-8")
    assert "far/data/*.csv" in str(load("far/one.yaml").stages["rows"].config)
    assert run("far/one.yaml")["rows"].metrics["documents"] == {"train": 1}
    monkeypatch.chdir(tmp_path / "far")
    assert run("one.yaml")["rows"].metrics["documents"] == {"train": 1}
    with pytest.raises(Mistakes, match=r"there is no variable 'recipe.folders'"):
        (tmp_path / "far/one.yaml").write_text(text.replace("folder", "folders"), encoding="utf-8")
        load("one.yaml")
