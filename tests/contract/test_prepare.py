"""The prepare stage: what it keeps, drops, changes and tells, on documents made for the purpose."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.artifact import Store
from groundup.config import dump, parse
from groundup.data import corpus_forecast
from groundup.data.corpus import Corpus
from groundup.data.corpus_clean import clean_rows
from groundup.errors import Interrupted, StageFailed
from groundup.stages import prepare
from groundup.text.identifiers import luhn_sum


def config(**section: Any) -> prepare.Config:
    parsed, mistakes = parse(prepare.Config, section)
    assert parsed is not None, mistakes
    return parsed


def run(key: str = "k", **section: Any) -> Corpus:
    store = Store()
    with store.draft("corpus", key) as out:
        prepare.run(config(**section), {}, out)
    found = store.find(key)
    assert found is not None
    return Corpus(found)


def texts(corpus: Corpus, split: str) -> list[str]:
    return [document["text"] for document in corpus.documents(split)]


def every(corpus: Corpus) -> list[dict[str, Any]]:
    return [document for split in corpus.splits for document in corpus.documents(split)]


def write_rows(rows: list[dict[str, Any]], path: str = "rows.jsonl") -> None:
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# Documents that look like language: words by Zipf's law, in English letters or Chinese characters.


class Writer:
    """Makes documents from a vocabulary of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = [1 / (i + 2) for i in range(len(letters))]
        self.words = ["".join(self.random.choices(letters, weights, k=self.random.randint(2, 9))) for _ in range(8000)]
        self.characters = [chr(0x4E00 + i) for i in self.random.sample(range(6000), 2500)]
        self.weights = [1 / (i + 8) for i in range(8000)]

    def english(self, n: int) -> list[str]:
        return self.random.choices(self.words, self.weights, k=n)

    def chinese(self, n: int) -> list[str]:
        return self.random.choices(self.characters, self.weights[:2500], k=n)

    def document(self) -> tuple[list[str], str]:
        """Its pieces and what joins them."""
        if self.random.random() < 0.6:
            return self.english(self.random.randint(60, 300)), " "
        return self.chinese(self.random.randint(120, 500)), ""

    def edited(self, pieces: list[str], share: float) -> list[str]:
        """The pieces with a share of them replaced, in a few places."""
        changed = list(pieces)
        for place in self.random.sample(range(len(pieces)), max(1, round(share * len(pieces)))):
            changed[place] = self.random.choice(self.words if len(pieces[0]) > 1 else self.characters)
        return changed

    def digits(self, n: int) -> str:
        return "".join(self.random.choices("0123456789", k=n))


def jaccard(left: str, right: str, n: int = 5) -> float:
    a, b = ({text[i : i + n] for i in range(len(text) - n + 1)} for text in (left, right))
    return len(a & b) / len(a | b)


def id_number(writer: Writer) -> str:
    body = writer.random.choice(["110105", "440106", "310104", "510107"])
    body += f"19{writer.random.randint(50, 99)}{writer.random.randint(1, 12):02d}{writer.random.randint(1, 28):02d}"
    body += writer.digits(3)
    weights = [2 ** (17 - i) % 11 for i in range(17)]
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11]


def card_number(writer: Writer) -> str:
    body = writer.random.choice(["4", "52", "6222", "37"])
    body += writer.digits({"4": 14, "52": 13, "6222": 14, "37": 12}[body])
    return next(body + d for d in "0123456789" if luhn_sum(body + d) % 10 == 0)


def mobile(writer: Writer) -> str:
    number = f"1{writer.random.choice('3456789')}{writer.digits(9)}"
    return writer.random.choice([number, f"+86 {number}", f"{number[:3]}-{number[3:7]}-{number[7:]}"])


def email(writer: Writer) -> str:
    host = writer.random.choice(["example.com", "mail.example.cn", "uni.example.edu"])
    return f"{writer.random.choice(writer.words)}.{writer.digits(2)}@{host}"


def decoy(writer: Writer) -> str:
    """A number or sign of everyday text that is nobody's."""
    r = writer.random
    makers: list[Callable[[], str]] = [
        lambda: f"{r.random() * 1000:.10f}",
        lambda: f"{r.randint(1, 9)}.{r.randint(0, 20)}.{r.randint(0, 99)}",
        lambda: f"20{r.randint(10, 29)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d} {r.randint(0, 23):02d}:59",
        lambda: str(r.randint(1_500_000_000_000, 1_800_000_000_000)),
        lambda: str(uuid.UUID(int=r.getrandbits(128), version=4)),
        lambda: f"{r.getrandbits(160):040x}",
        lambda: writer.digits(r.choice([5, 6, 8, 9, 20, 24])),
        lambda: f"NO{writer.digits(11)}",
        lambda: f"¥{r.randint(1, 999)},{writer.digits(3)}.{writer.digits(2)}",
        lambda: ".".join(str(r.randint(0, 255)) for _ in range(4)),
        lambda: f"978-7-{writer.digits(4)}-{writer.digits(4)}-{writer.digits(1)}",
        lambda: f"@{r.choice(writer.words)}",
        lambda: f"photo@2x.{r.choice(['png', 'jpg'])}",
    ]
    return r.choice(makers)()


def test_ten_thousand_documents_with_planted_copies_and_identifiers(capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer(1)
    made = [writer.document() for _ in range(8000)]
    rows: list[dict[str, Any]] = [{"text": joint.join(pieces)} for pieces, joint in made]
    copies = {"exact": _plant_exact(writer, rows), "near": [], "between": [], "distant": []}
    for original in writer.random.sample(range(5000), 1500):
        pieces, joint = made[original]
        text = joint.join(writer.edited(pieces, writer.random.choice([0.01, 0.02, 0.03, 0.08, 0.15])))
        alike = jaccard(rows[original]["text"], text)
        kind = "near" if alike >= 0.85 else "distant" if alike < 0.7 else "between"
        copies[kind].append((original, len(rows)))
        rows.append({"text": text})
    secrets, decoys = _plant_identifiers(writer, rows)
    order = list(range(len(rows)))
    writer.random.shuffle(order)
    write_rows([rows[i] | {"n": i} for i in order])

    corpus = run(
        source={"paths": "rows.jsonl", "keep": "n"},
        clean={"near_duplicates": 0.8, "redact": ["email", "phone", "id_number", "card_number"]},
        workers=1,
    )
    kept = {document["n"]: document["text"] for document in every(corpus)}
    ledger = corpus.artifact.json("ledger.json")
    recall = {
        kind: sum(not (left in kept and right in kept) for left, right in copies[kind]) / len(copies[kind])
        for kind in ("exact", "near")
    }
    paired = {i for kind in ("exact", "near", "between") for pair in copies[kind] for i in pair}
    false = [i for i in range(len(rows)) if i not in kept and i not in paired]
    distant = [copy for _, copy in copies["distant"] if copy not in kept]
    families: dict[int, set[int]] = {}
    for original, copy in copies["exact"] + copies["near"] + copies["between"]:
        families.setdefault(original, {original}).add(copy)
    missed = {kind: [v for i, v in found if v in kept.get(i, "")] for kind, found in secrets.items()}
    wronged = [v for i, v in decoys if i in kept and v not in kept[i]]
    with capsys.disabled():
        print(f"\n  {len(rows)} documents; planted copies: " + ", ".join(f"{len(c)} {k}" for k, c in copies.items()))
        print(f"  found: exact {recall['exact']:.1%}, near (Jaccard 0.85 or more) {recall['near']:.1%}", end="")
        print("; dropped all the same:", end="")
        print(f" {len(distant)} of {len(copies['distant'])} distant ones (below 0.7), {len(false)} without any copy")
        for kind, found in secrets.items():
            hit = len(found) - len(missed[kind])
            print(f"  {kind}: {hit} of {len(found)} redacted, {ledger['redacted'][kind]} in all")
        print(f"  look-alikes redacted: {len(wronged)} of {len(decoys)}")
    assert recall["exact"] == 1 and recall["near"] >= 0.98
    assert len(distant) <= 0.01 * len(copies["distant"]) and len(false) <= len(rows) * 0.001
    assert all(family & kept.keys() for family in families.values()), "all copies of a document were dropped"
    assert all(len(m) <= 0.005 * len(secrets[kind]) for kind, m in missed.items())
    assert all(ledger["redacted"][kind] <= 1.01 * len(found) for kind, found in secrets.items())
    assert len(wronged) <= 0.005 * len(decoys)
    assert ledger["rows"] == len(rows) == len(kept) + sum(ledger["dropped"].values())
    shown = json.dumps(ledger, ensure_ascii=False) + (corpus.artifact.path / "report.md").read_text(encoding="utf-8")
    assert not any(value in shown for found in secrets.values() for _, value in found)


def _plant_exact(writer: Writer, rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Copies that differ in what normalising removes only."""
    pairs = []
    for original in writer.random.sample(range(5000), 500):
        text = rows[original]["text"]
        pairs.append((original, len(rows)))
        rows.append({"text": writer.random.choice([text + "  \r\n", "\ufeff" + text, text])})
    return pairs


def _plant_identifiers(
    writer: Writer, rows: list[dict[str, Any]]
) -> tuple[dict[str, list[tuple[int, str]]], list[tuple[int, str]]]:
    """Identifiers and look-alikes, each in a document of its own, in the middle of its text."""
    makers = {"email": email, "phone": mobile, "id_number": id_number, "card_number": card_number}
    secrets: dict[str, list[tuple[int, str]]] = {kind: [] for kind in makers}
    decoys = []
    for number in writer.random.sample(range(5000, 8000), 2400):
        text = rows[number]["text"]
        place = text.index(" ", len(text) // 2) if " " in text else len(text) // 2
        joint = " " if " " in text else ""
        kind = writer.random.choice([*makers, *["decoy"] * len(makers)])
        value = makers[kind](writer) if kind in makers else decoy(writer)
        (secrets[kind] if kind in makers else decoys).append((number, value))
        rows[number] = {"text": text[:place] + joint + value + joint + text[place:]}
    return secrets, decoys


@pytest.mark.smoke
def test_the_corpus_and_its_columns() -> None:
    rows = [
        {"text": f"document number {i}", "label": i % 2, "tags": ["a", {"b": i}], "by": f"author {i % 7}"}
        for i in range(60)
    ]
    rows[3]["label"] = None
    write_rows(rows)
    corpus = run(
        source={"paths": "rows.jsonl", "keep": ["label", "tags"], "licence": "CC0"},
        split={"validation": "20%", "test": "20%", "by": "group", "group": "by", "leaks": "report"},
    )
    assert corpus.splits == ["train", "validation", "test"]
    assert corpus.columns == ["text", "id", "source", "group", "label", "tags"]
    assert sum(corpus.rows(split) for split in corpus.splits) == 60
    authors = [{document["group"] for document in corpus.documents(split)} for split in corpus.splits]
    assert not authors[0] & authors[1] and not authors[0] & authors[2] and not authors[1] & authors[2]
    for split in corpus.splits:
        documents = list(corpus.documents(split))
        assert corpus.rows(split) == len(documents)
        assert corpus.bytes(split) == sum(len(d["text"].encode()) for d in documents)
        assert corpus.longest(split) == max(len(d["text"].encode()) for d in documents)
        assert [corpus.document(split, i) for i in range(len(documents))] == documents
        for document in documents:
            i = document["id"]
            assert document.pop("group") == rows[i]["by"] and document.pop("source") == f"rows.jsonl:{i + 1}"
            assert document == {"id": i} | {name: rows[i][name] for name in ("text", "label", "tags")}
    assert corpus.artifact.manifest["licences"] == {"rows.jsonl": "CC0"}
    assert [b.num_rows for b in corpus.read("train", ["id"], batch_rows=7)][:2] == [7, 7]
    order = [document["id"] for document in corpus.documents("train")]
    assert order != sorted(order)


def many_files(n: int = 400) -> None:
    writer = Writer(3)
    for i in range(n):
        path = Path(f"files/{i % 12}/{i:04d}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces, joint = writer.document()
        path.write_text(joint.join(pieces) + f"\n写信给 user{i}@example.com", encoding="utf-8")
    Path("files/3/copy.txt").write_text(Path("files/5/0005.txt").read_text(encoding="utf-8"), encoding="utf-8")


SECTION: dict[str, Any] = {
    "source": {"paths": "files/**/*.txt"},
    "clean": {"near_duplicates": 0.8, "redact": ["email"]},
    "split": {"validation": "10%", "test": "10%", "by": "group", "group": "folder"},
    "seed": 5,
}


def test_neither_processes_nor_blocks_of_work_change_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    many_files()
    monkeypatch.setattr("groundup.data.corpus_build.block_bytes", lambda total: 1 << 15)
    digests = {run(f"k{n}", **SECTION, workers=n).artifact.digest for n in (1, 3)}
    assert len(digests) == 1


def test_an_interrupted_preparation_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    many_files()
    monkeypatch.setattr("groundup.data.corpus_build.block_bytes", lambda total: 1 << 15)
    whole = run("whole", **SECTION, workers=1).artifact.digest
    calls = iter(range(1000))
    monkeypatch.setattr("groundup.data.corpus_build.interrupt_requested", lambda: next(calls) == 5)
    with pytest.raises(Interrupted, match="stopped while preparing"):
        run("again", **SECTION, workers=1)
    done = sorted(Store().state_folder("again").rglob("*.json"))
    assert len(done) == 6
    times = [path.stat().st_mtime_ns for path in done]
    monkeypatch.setattr("groundup.data.corpus_build._stop_if_asked", _check_kept(done, times))
    assert run("again", **SECTION, workers=1).artifact.digest == whole


def _check_kept(done: list[Path], times: list[int]) -> Callable[[], None]:
    def check() -> None:
        assert [path.stat().st_mtime_ns for path in done] == times, "a finished block was cleaned again"

    return check


@pytest.mark.smoke
def test_copies_that_straddle_splits_leave_the_training_side() -> None:
    writer = Writer(4)
    rows = [{"text": " ".join(writer.english(80)), "by": str(i % 20)} for i in range(400)]
    copies = [{"text": rows[i]["text"], "by": str((i + 1) % 20)} for i in range(0, 400, 5)]
    copies += [
        {"text": " ".join(writer.edited(rows[i]["text"].split(), 0.01)), "by": str((i + 2) % 20)}
        for i in range(1, 400, 5)
    ]
    write_rows(rows + copies)
    split = {"validation": "15%", "test": "15%", "by": "group", "group": "by"}
    kept = run(
        "k1", source={"paths": "rows.jsonl"}, split=split | {"leaks": "report"}, clean={"exact_duplicates": False}
    )
    clean = run("k2", source={"paths": "rows.jsonl"}, split=split, clean={"exact_duplicates": False})
    found = kept.artifact.metrics["leaks"]
    assert found["exact"] > 20 and found["near"] > 10 and len(every(kept)) == 560
    assert texts(clean, "test") == texts(kept, "test")
    test = set(texts(clean, "test"))
    assert not test & (set(texts(clean, "train")) | set(texts(clean, "validation")))
    assert (
        clean.artifact.json("ledger.json")["dropped"]["repeats a document of another split"]
        == found["exact"] + found["near"]
    )
    with pytest.raises(StageFailed, match="repeat one in another split"):
        run("k3", source={"paths": "rows.jsonl"}, split=split | {"leaks": "stop"})


@pytest.mark.smoke
def test_splits_at_random_keep_equal_texts_together_and_exact_shares() -> None:
    write_rows([{"text": f"text {i % 500}"} for i in range(1000)])
    section = {
        "source": {"paths": "rows.jsonl"},
        "split": {"validation": "10%", "test": "5%"},
        "clean": {"exact_duplicates": False},
    }
    corpus = run("k1", **section, seed=1)
    assert [corpus.rows(split) for split in corpus.splits] == [850, 100, 50]
    assert corpus.artifact.metrics["leaks"]["exact"] == 0
    assert set(texts(corpus, "test")) != set(texts(run("k2", **section, seed=2), "test"))


@pytest.mark.smoke
def test_split_by_time_puts_the_latest_last() -> None:
    rows = [{"text": f"news {i}", "day": f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}"} for i in range(300)]
    random.Random(0).shuffle(rows)
    write_rows(rows)
    corpus = run(
        source={"paths": "rows.jsonl", "keep": "day"},
        split={"validation": 0.1, "test": 0.1, "by": "time", "time": "day"},
    )
    days = [[document["day"] for document in corpus.documents(split)] for split in corpus.splits]
    assert max(days[0]) < min(days[1]) and max(days[1]) < min(days[2])
    assert [len(d) for d in days] == [240, 30, 30]


@pytest.mark.smoke
def test_sources_with_a_split_of_their_own_and_several_sources() -> None:
    write_rows([{"text": f"train {i}"} for i in range(50)], "a.jsonl")
    Path("b.csv").write_text("body\n" + "".join(f"test {i}\n" for i in range(20)))
    corpus = run(source=[
        {"paths": "a.jsonl", "licence": "MIT"},
        {"paths": "b.csv", "text_field": "body", "split": "test", "licence": "CC BY 4.0"},
    ])  # fmt: skip
    assert corpus.rows("train") == 50 and sorted(texts(corpus, "test"))[0] == "test 0" and corpus.rows("test") == 20
    assert corpus.artifact.manifest["licences"] == {"a.jsonl": "MIT", "b.csv": "CC BY 4.0"}


@pytest.mark.smoke
def test_evaluation_data_is_kept_out() -> None:
    writer = Writer(6)
    questions = [" ".join(writer.english(30)) for _ in range(20)]
    write_rows([{"question": question} for question in questions], "exam.jsonl")
    rows = [{"text": " ".join(writer.english(100))} for _ in range(100)]
    rows += [
        {"text": f"{' '.join(writer.english(30))} {question} {' '.join(writer.english(9))}"} for question in questions
    ]
    write_rows(rows)
    corpus = run(source={"paths": "rows.jsonl"}, decontaminate={"paths": "exam.jsonl", "text_field": "question"})
    assert corpus.rows("train") == 100
    assert corpus.artifact.json("ledger.json")["dropped"] == {"contains evaluation data": 20}


@pytest.mark.smoke
def test_the_ledger_adds_up_and_names_rows() -> None:
    lines = [json.dumps({"text": f"A document about the number {i}, with some words in it."}) for i in range(400)]
    lines[10], lines[20] = "{broken", json.dumps({"body": "no text"})
    lines[30], lines[40] = json.dumps({"text": "  "}), json.dumps({"text": "short"})
    lines[50], lines[60] = lines[0], json.dumps({"text": "联系我：13812345678，这是第六十行的文字，内容很长很长很长。"})
    Path("rows.jsonl").write_text("\n".join(lines))
    corpus = run(source={"paths": "rows.jsonl"}, clean={"min_characters": 10, "redact": ["phone"]}, bad_rows="1%")
    ledger = corpus.artifact.json("ledger.json")
    assert ledger["bad"] == {"broken JSON": 1, "no field 'text'": 1}
    assert ledger["dropped"] == {"empty": 1, "too short": 1, "exact duplicate": 1}
    assert ledger["kept"]["train"]["documents"] == corpus.rows("train") == 395
    places = {reason: [e["source"] for e in examples] for reason, examples in ledger["examples"].items()}
    assert places == {
        "bad: broken JSON": ["rows.jsonl:11"],
        "bad: no field 'text'": ["rows.jsonl:21"],
        "dropped: empty": ["rows.jsonl:31"],
        "dropped: too short": ["rows.jsonl:41"],
        "dropped: exact duplicate": ["rows.jsonl:51"],
        "changed: redacted": ["rows.jsonl:61"],
    }
    assert ledger["examples"]["dropped: exact duplicate"][0]["of"] == "rows.jsonl:1"
    assert "<PHONE>" in ledger["examples"]["changed: redacted"][0]["excerpt"]
    report = (corpus.artifact.path / "report.md").read_text(encoding="utf-8")
    assert "400 rows were read and 395 documents kept" in report and "rows.jsonl:51" in report


def test_the_forecast_is_near_what_comes(shared_data: Callable[[str], Path]) -> None:
    poems = shared_data("lm") / "zh_songci.jsonl.gz"
    section: dict[str, Any] = {
        "source": {"paths": str(poems), "text_field": "paragraphs", "licence": "MIT"},
        "clean": {"near_duplicates": 0.8, "languages": ["zh"]},
        "split": {"validation": "5%", "test": "5%"},
    }
    asked = config(**section)
    assert prepare.check(asked, {}) == []
    expected = prepare.forecast(asked, {})
    corpus = run(**section)
    facts = prepare.facts(corpus.artifact)
    assert expected.estimated and set(expected.facts) == set(facts)
    for fact in ("documents", "bytes"):
        for split in corpus.splits:
            assert expected.facts[fact][split] == pytest.approx(facts[fact][split], rel=0.1)
    assert expected.facts["licences"] == facts["licences"] == {str(poems): "MIT"}
    assert all(isinstance(text, str) for text in facts["sample"][:5] + expected.facts["sample"][:5])


def test_several_sources_share_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        rows = (f"{name} {place}: {'a line like any other, ' * 20}" for place in range(6000))
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    sizes, read = [Path(f"{name}.jsonl").stat().st_size for name in "abcd"], []

    def counted(job: Any, block: Any) -> Any:
        summary, cleaned = clean_rows(job, block)
        read.append(summary.read_bytes)
        return summary, cleaned

    monkeypatch.setattr(corpus_forecast, "SAMPLE_BYTES", 4 << 20)
    monkeypatch.setattr(corpus_forecast, "clean_rows", counted)
    asked = config(source=[{"paths": f"{name}.jsonl"} for name in "abcd"], clean={"near_duplicates": None})
    expected = prepare.forecast(asked, {})
    assert min(sizes) > 2.5 * (1 << 20) and sum(read) < 8 << 20, "about a megabyte of each, where there are more"
    assert sum(expected.facts["documents"].values()) == pytest.approx(4 * 6000, rel=0.1)


@pytest.mark.smoke
def test_the_files_that_enter_the_key() -> None:
    for name in ("b.txt", "a.txt", "exam.txt"):
        Path(name).write_text("words " * 20)
    asked = config(source={"paths": ["b.txt", "a.txt"]}, decontaminate={"paths": "exam.txt"})
    assert prepare.sources(asked) == [Path.cwd() / name for name in ("a.txt", "b.txt", "exam.txt")]
    assert parse(prepare.Config, dump(asked)) == (asked, [])


@pytest.mark.smoke
def test_a_corpus_is_a_function_of_its_files_not_of_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests: set[str] = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_rows([{"text": f"text {i}"} for i in range(30)])
        digests.add(run(name, source={"paths": "rows.jsonl"}, split={"test": 0.2}).artifact.digest)
    assert len(digests) == 1
