"""Files of every kind, packing and encoding become the same documents."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from groundup.data.encodings import detect, is_binary
from groundup.data.source_blocks import cut
from groundup.data.source_files import find_files
from groundup.data.source_rows import Row, count_lines, read_rows
from groundup.data.sources import Source
from groundup.errors import DataError

TEXTS = [
    "The first document, in English.",
    "第二篇文档，用中文写成。",
    'A third "quoted", one\twith a tab.',
    "Ünïcödé – naïve",
]


def read(source: Source, block_bytes: int = 1 << 20, wanted: tuple[str, ...] = ()) -> list[tuple[str, Row]]:
    """Every row of a source with its name and line counted over the whole file."""
    rows, line, before = [], 0, ""
    for block in cut([source], find_files(source), block_bytes, wanted):
        line = line if block.files[0].name == before else block.lead
        before = block.files[0].name
        for row in read_rows(block, source, wanted):
            rows.append((f"{block.files[row.file].name}:{line + row.line}", row))
        line += count_lines(block, source)
    return rows


def texts(source: Source, block_bytes: int = 1 << 20) -> list[str]:
    return [row.text for _, row in read(source, block_bytes) if not row.bad]


@pytest.mark.smoke
@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".zip"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "txt", "parquet"])
def test_every_kind_and_packing_gives_the_same_documents(tmp_path: Path, kind: str, packing: str) -> None:
    if kind == "parquet" and packing:
        pytest.skip("Parquet packs its own pages")
    plain = [text.replace("\t", " ") if kind == "tsv" else text for text in TEXTS]
    content = {
        "jsonl": "".join(json.dumps({"text": t}) + "\n" for t in plain),
        "csv": "text,n\r\n" + "".join('"' + t.replace('"', '""') + '",1\r\n' for t in plain),
        "tsv": "n\ttext\n" + "".join(f"1\t{t}\n" for t in plain),
        "txt": "\n".join(plain) + "\n",
    }.get(kind, "").encode()
    path = tmp_path / f"data.{kind}{packing}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": plain}), path)
    elif packing == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"inner/data.{kind}", content)
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
        path.write_bytes(pack(content))
    assert texts(Source(paths=[str(path)], document="line")) == plain


@pytest.mark.smoke
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("document", ["file", "line"])
def test_encodings_are_found(tmp_path: Path, encoding: str, document: str) -> None:
    lines = [f"第{i}行：今天的天气很好，我们去公园散步。Line {i} says so as well." for i in range(40)]
    (tmp_path / "a.txt").write_bytes("\n".join(lines).encode(encoding))
    found = texts(Source(paths=[str(tmp_path / "a.txt")], document=document))  # type: ignore[arg-type]
    assert "\n".join(found) == "\n".join(lines)


@pytest.mark.smoke
def test_binary_and_unknown_bytes_are_not_taken_for_text() -> None:
    picture = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 8
    assert detect(picture) is None and is_binary(picture)
    latin = "Le café était fermé à Noël, dit-il à côté du fût. ".encode("latin-1") * 5
    assert detect(latin) is None and not is_binary(latin)
    assert detect("今天天气很好".encode("gbk")) == "gb18030"
    assert detect(b"plain") == "ascii"
    assert detect("ends in half a character: 好".encode()[:-1]) == "utf-8"
    assert detect("ends in half a character: 好".encode()[:-1], whole=True) != "utf-8"


def test_gb18030_after_a_long_plain_beginning_is_found(tmp_path: Path) -> None:
    head = "plain ASCII comes first\n" * 20_000
    (tmp_path / "a.txt").write_bytes(head.encode() + "然后是中文，用国标编码写成的一行。\n".encode("gb18030"))
    assert texts(Source(paths=["*.txt"], document="line"))[-1] == "然后是中文，用国标编码写成的一行。"


@pytest.mark.smoke
@pytest.mark.parametrize("block_bytes", [1, 64, 1000, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.txt", "a.txt.gz"])
def test_how_a_file_is_cut_changes_neither_rows_nor_their_lines(tmp_path: Path, name: str, block_bytes: int) -> None:
    rows = [f"row {i} " + "x" * (i * 7 % 50) for i in range(200)]
    if "csv" in name:
        data = "id,text\n" + "".join(f'{i},"{r}\nnext line, same row"\n' for i, r in enumerate(rows))
        expected = [(f"{name}:{2 + 2 * i}", f"{r}\nnext line, same row") for i, r in enumerate(rows)]
    elif "jsonl" in name:
        data = "".join(json.dumps({"text": r}) + "\n" for r in rows)
        expected = [(f"{name}:{i + 1}", r) for i, r in enumerate(rows)]
    else:
        data = "".join(f"{r}\nsecond line\n\n" for r in rows)
        expected = [(f"{name}:{3 * i + 1}", f"{r}\nsecond line") for i, r in enumerate(rows)]
    (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith(".gz") else data.encode())
    found = read(Source(paths=[name], document="paragraph"), block_bytes)
    assert [(place, row.text) for place, row in found] == expected


@pytest.mark.smoke
def test_parquet_row_groups_and_wanted_columns(tmp_path: Path) -> None:
    table = pa.table({"body": [f"text {i}" for i in range(100)], "label": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    found = read(Source(paths=["a.parquet"], text_field="body"), 1, ("label",))
    assert [(place, row.text, row.extra) for place, row in found] == [
        (f"a.parquet:{i + 1}", f"text {i}", (i,)) for i in range(100)
    ]


@pytest.mark.smoke
def test_a_large_row_group_is_read_in_parts(tmp_path: Path) -> None:
    """A process would have to hold such a row group whole, so its rows are handed over in parts."""
    table = pa.table({"text": [f"text {i} {'x' * 500}" for i in range(300)], "n": list(range(300))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300, use_dictionary=False)
    blocks = list(cut([Source(paths=["a.parquet"])], find_files(Source(paths=["a.parquet"])), 10_000, ["n"]))
    assert len(blocks) > 10 and all(block.data for block in blocks)
    found = read(Source(paths=["a.parquet"], keep=["n"]), 10_000, ("n",))
    assert [(place, row.extra[0]) for place, row in found] == [(f"a.parquet:{i + 1}", i) for i in range(300)]


@pytest.mark.smoke
def test_json_fields_lists_and_dotted_paths(tmp_path: Path) -> None:
    rows = [
        {"meta": {"body": ["床前明月光", "疑是地上霜"]}, "title": "静夜思"},
        {"meta.body": "a key with a dot", "title": "t"},
        {"meta": {"body": 5}, "title": "t"},
        {"meta": {}, "title": "t"},
        [1, 2],
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] + ["{broken", "", '{"meta": {"body": "last"}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = read(Source(paths=["a.jsonl"], text_field="meta.body"), wanted=("title",))
    assert [row.text for _, row in found if not row.bad] == ["床前明月光\n疑是地上霜", "a key with a dot", "last"]
    assert [(place, row.bad.partition(" (")[0]) for place, row in found if row.bad] == [
        ("a.jsonl:3", "the field 'meta.body' is no text"),
        ("a.jsonl:4", "no field 'meta.body'"),
        ("a.jsonl:5", "not a JSON object"),
        ("a.jsonl:6", "broken JSON"),
    ]
    both = read(Source(paths=["a.jsonl"], text_field=["title", "meta.body"]))
    assert both[0][1].text == "静夜思\n床前明月光\n疑是地上霜"


@pytest.mark.smoke
def test_broken_encoding_is_a_bad_row_not_a_lost_file(tmp_path: Path) -> None:
    good = '{"text": "good 好"}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(good + b'{"text": "bad \xff\xfe"}\n' + good)
    (tmp_path / "b.csv").write_bytes("text\n好\n".encode() + b"\xff\xfe\n" + "也好\n".encode())
    assert [row.bad for _, row in read(Source(paths=["a.jsonl"]))] == ["", "broken UTF-8", ""]
    assert [(place, row.bad) for place, row in read(Source(paths=["b.csv"]))] == [
        ("b.csv:2", ""), ("b.csv:3", "broken UTF-8"), ("b.csv:4", ""),
    ]  # fmt: skip


@pytest.mark.smoke
def test_tables_without_header_and_with_stray_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('he said "no\t1\nplain\t0\nthree\tfields\there\n', encoding="utf-8")
    found = read(Source(paths=["a.tsv"], columns=["text", "label"]), wanted=("label",))
    assert [(row.text, row.extra) for _, row in found[:2]] == [('he said "no', ("1",)), ("plain", ("0",))]
    assert found[2][1].bad == "wrong number of fields (3 where the header has 2)"


@pytest.mark.smoke
def test_globs_folders_exclusions_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "top.txt",
        "a/one.txt",
        "a/deep/two.txt",
        "b/three.md",
        "b/.hidden.txt",
        "b/__pycache__/x.txt",
        "b/p.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def names(*paths: str, exclude: tuple[str, ...] = ()) -> list[str]:
        return [file.name for file in find_files(Source(paths=list(paths), exclude=list(exclude)))]

    assert names("**/*.txt") == ["a/deep/two.txt", "a/one.txt", "top.txt"]
    assert names("*.txt", "a/*.txt") == ["a/one.txt", "top.txt"]
    assert names(str(tmp_path)) == sorted(
        f"{tmp_path}/{n}" for n in ("top.txt", "a/one.txt", "a/deep/two.txt", "b/three.md")
    )
    assert names("**/*.txt", exclude=("a/deep",)) == ["a/one.txt", "top.txt"]
    assert names("**/*.txt", exclude=("a/*.txt",)) == ["a/deep/two.txt", "top.txt"]
    assert names("?/*.[tm][xd]*", exclude=("**/th*",)) == ["a/one.txt"]
    assert names("{stdlib}/json/**/*.py", exclude=("**/tool.py", "**/t*")) == [
        f"{{stdlib}}/json/{name}.py" for name in ("__init__", "decoder", "encoder", "scanner")
    ]
    assert [f.folder for f in find_files(Source(paths=["**/*.txt"]))] == ["a", "a", "top.txt"]
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    assert names("~/**/*.txt") == ["~/deep/two.txt", "~/one.txt"]


@pytest.mark.smoke
def test_the_standard_library_has_no_installed_packages() -> None:
    files = find_files(Source(kind="text", paths=["{stdlib}/**/*.py"]))
    assert len(files) > 100 and all(file.name.startswith("{stdlib}/") for file in files)
    assert not any("site-packages" in file.path or "__pycache__" in file.path for file in files)
    assert any(file.folder == "json" for file in files)


@pytest.mark.smoke
def test_a_path_without_matches_says_where_it_stopped() -> None:
    with pytest.raises(DataError, match=r"no file matches 'nowhere/x\.txt'[\s\S]*nowhere' does not exist"):
        find_files(Source(paths=["nowhere/x.txt"]))


def test_real_archives_and_poems(shared_data: Callable[[str], Path]) -> None:
    lm = shared_data("lm")
    poems = texts(Source(paths=[str(lm / "zh_songci.jsonl.gz")], text_field="paragraphs"))
    assert len(poems) > 20_000 and "\n" in poems[0]
    speeches = read(Source(paths=[str(lm / "inaugural.zip")]))
    assert len(speeches) == 59 and sum(bool(row.bad) for _, row in speeches) == 1  # one is in Windows-1252
    subjectivity = shared_data("polarity") / "subjectivity.zip"
    latin = read(Source(kind="text", paths=[str(subjectivity)], document="line", encoding="latin-1"))
    assert len(latin) >= 10_000 and not any(row.bad for _, row in latin)
