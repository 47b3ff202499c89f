"""Labelled data as it is published: every layout becomes rows with the columns a task asks for."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from groundup.artifact import Store
from groundup.config import dump, parse
from groundup.data.corpus import Corpus
from groundup.errors import DataError
from groundup.stages import prepare
from groundup.text.joining import join_tokens, spans


def config(**section: Any) -> prepare.Config:
    parsed, mistakes = parse(prepare.Config, section)
    assert parsed is not None, mistakes
    return parsed


def run(*, checked: bool = True, **section: Any) -> Corpus:
    asked, store = config(**section), Store()
    key = str(hash(repr(dump(asked))))
    assert not checked or prepare.check(asked, {}) == []
    with store.draft("corpus", key) as out:
        prepare.run(asked, {}, out)
    found = store.find(key)
    assert found is not None
    return Corpus(found)


def rows(corpus: Corpus, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a split in the order of their files, without the numbers a corpus gives them."""
    ordered = sorted(corpus.documents(split), key=lambda document: document["id"])
    return [{k: v for k, v in document.items() if k not in ("id", "group")} for document in ordered]


def mistakes(**section: Any) -> str:
    return " ".join(mistake.what for mistake in parse(prepare.Config, section)[1])


def write(name: str, text: str) -> str:
    data = text.encode()
    if name.endswith(".zip"):
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr(name.removesuffix(".zip"), data)
        return name
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(Path(name).suffix, bytes)
    Path(name).write_bytes(pack(data))
    return name


def bad(corpus: Corpus) -> dict[str, int]:
    return dict(corpus.artifact.json("ledger.json")["bad"])


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".zip"])
def test_json_lists_under_keys_and_rows_that_are_lists(packing: str) -> None:
    intents = {"train": [["pay it", "pay"], ["何时到", "when"], ["odd"]], "oos_train": [["why", "oos"]]}
    name = write(f"a.json{packing}", json.dumps(intents, indent=1))
    inside = f"{name}!a.json" if packing == ".zip" else name
    corpus = run(
        source={"kind": "json", "paths": name, "rows": ["train", "oos_train"], "columns": ["text", "label"],
                "keep": "label"},
        bad_rows=0.5,
    )  # fmt: skip
    assert rows(corpus) == [
        {"text": "pay it", "source": f"{inside}:1", "label": "pay"},
        {"text": "何时到", "source": f"{inside}:2", "label": "when"},
        {"text": "why", "source": f"{inside}:4", "label": "oos"},
    ]
    assert corpus.artifact.json("ledger.json")["examples"]["bad: wrong number of fields"][0]["source"] == f"{inside}:3"
    name = write(f"b.json{packing}", json.dumps([{"instruction": "say", "input": "", "output": "said"}]))
    corpus = run(
        source={"kind": "json", "paths": name, "text_field": ["instruction", "output"], "keep": {"answer": "output"}}
    )
    assert rows(corpus) == [
        {"text": "say\nsaid", "source": f"{inside.replace('a.json', 'b.json')}:1", "answer": "said"}
    ]


def test_json_that_is_none_says_where_and_what_to_do() -> None:
    def fails(text: str, **more: Any) -> str:
        with pytest.raises(DataError) as caught, Store().draft("corpus", "k") as out:
            prepare.run(config(source={"kind": "json", "paths": write("x.json", text), **more}), {}, out)
        assert caught.value.fix
        return str(caught.value)

    assert "x.json:2: broken JSON" in fails('[{"text": "a"},\n {"text": }]')
    assert "`kind: jsonl`" in fails('{"text": "a"}\n{"text": "b"}\n')
    assert "no list of rows under 'rows'" in fails('{"data": []}', rows="rows") and "data" in fails('{"data": []}')
    assert "holds no questions" in fails('{"data": []}', kind="squad")


CONLL = "EU\tB-ORG\nrejects\tO\n\nGerman call\tB-MISC\nto\tO\n\nodd\n line\tO\n\n# hash\tO\n"


@pytest.mark.smoke
def test_conll_sentences_and_lines_that_do_not_fit() -> None:
    corpus = run(source={"kind": "conll", "paths": write("a.conll", CONLL)}, bad_rows=0.5)
    assert rows(corpus) == [
        {"text": "EU rejects", "source": "a.conll:1", "tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"text": "German call to", "source": "a.conll:4", "tokens": ["German call", "to"], "tags": ["B-MISC", "O"]},
        {"text": "# hash", "source": "a.conll:10", "tokens": ["# hash"], "tags": ["O"]},
    ]
    assert bad(corpus) == {"2 columns where the sentence has 1": 1}
    assert corpus.artifact.json("ledger.json")["examples"]["bad: 2 columns where the sentence has 1"][0] == {
        "source": "a.conll:8", "excerpt": "",
    }  # fmt: skip


def test_what_a_pattern_finds_leaves_documents_of_text() -> None:
    path = write("tagged.txt", "迈向/v  充满/v  希望/n\n[中央/n  电台/n]nt\n")
    corpus = run(source={"kind": "text", "paths": path, "document": "line", "strip": r"\[|\][a-z]+|/[a-z]+ *"})
    assert [row["text"] for row in rows(corpus)] == ["迈向充满希望", "中央电台"]
    assert "`strip` belongs to kind conll or text" in mistakes(source={"kind": "csv", "paths": path, "strip": "a"})


def test_conll_columns_by_name_and_number_prefixes_and_docstart() -> None:
    four = "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nsays VBZ I-VP O\n"
    corpus = run(source={"kind": "conll", "paths": write("a.txt", four)})
    assert rows(corpus)[0]["tags"] == ["I-ORG", "O"]
    corpus = run(source={"kind": "conll", "paths": "a.txt", "columns": ["tokens", "pos", "chunk", "tags"],
                         "keep": {"tokens": "tokens", "tags": "pos"}})  # fmt: skip
    assert rows(corpus)[0]["tags"] == ["NNP", "VBZ"]
    corpus = run(source={"kind": "conll", "paths": "a.txt", "keep": {"tokens": "tokens", "tags": "3"}})
    assert rows(corpus)[0]["tags"] == ["I-NP", "I-VP"]
    prefixed = write("b.tsv", "en:Sioux\tB-ORG\nen:en:\tO\n\nen:\tO\n")
    corpus = run(source={"kind": "conll", "paths": prefixed, "strip": "^en:"}, bad_rows=0.5)
    assert rows(corpus)[0]["tokens"] == ["Sioux", "en:"] and bad(corpus) == {"an empty token": 1}
    weibo = write("c.conll", "口0\tO\n腔1\tO\n90\tO\n")
    assert rows(run(source={"kind": "conll", "paths": weibo, "strip": "[0-9]$"}))[0]["text"] == "口腔 9"


def test_conllu_leaves_out_contractions_and_comments() -> None:
    lines = "# text = vámonos\n1-2\tvámonos\t_\t_\n1\tvamos\tir\tVERB\n2\tnos\tnosotros\tPRON\n2.1\tx\t_\t_\n"
    text = "\n".join("\t".join([*line.split("\t"), *"______"]) if "\t" in line else line for line in lines.split("\n"))
    corpus = run(source={"kind": "conll", "paths": write("a.conllu", text)})
    assert rows(corpus) == [
        {"text": "vamos nos", "source": "a.conllu:3", "tokens": ["vamos", "nos"], "tags": ["VERB", "PRON"]}
    ]


def test_a_json_file_too_large_to_parse_whole_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.data.source_formats.LARGEST_WHOLE", 20)
    write("a.json", json.dumps([{"text": "more than twenty bytes"}]))
    (found,) = prepare.check(config(source={"paths": "a.json"}), {})
    assert "parsed whole" in found.what and "jq -c '.[]' a.json" in found.fix


def test_tokens_join_as_their_language_writes_them() -> None:
    for tokens, text in (
        (["The", "cat", "."], "The cat ."),
        (["中", "国", "，", "好"], "中国，好"),
        (["他", "说", "“", "好", "”"], "他说“好”"),
        (["买", "iPhone", "了"], "买 iPhone 了"),
        (["“", "So", "”"], "“ So ”"),
        (["a", "", "b"], "a b"),
    ):
        assert join_tokens(tokens) == text
        assert [text[start:end] for start, end in spans(tokens)] == tokens


def squad(*contexts: str, questions: int = 2) -> str:
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": f"{i}-{q}", "question": f"which word {q}?", "answers": [
                    {"text": context.split()[q], "answer_start": context.index(context.split()[q])}]}
                for q in range(questions)
            ],
        }
        for i, context in enumerate(contexts)
    ]  # fmt: skip
    data = [{"title": f"article {i}", "paragraphs": [p]} for i, p in enumerate(paragraphs)]
    return json.dumps({"data": data})


@pytest.mark.smoke
def test_squad_is_one_row_a_question_and_repeated_passages_are_no_duplicates() -> None:
    contexts = [f"alpha{i} beta{i} gamma{i} " + "and so on for a while " * 9 + f"end{i}" for i in range(10)]
    section: dict[str, Any] = {"source": {"kind": "squad", "paths": write("a.json", squad(*contexts, *contexts[:1]))}}
    corpus = run(**section, clean={"near_duplicates": 0.95})
    found = rows(corpus)
    assert len(found) == 20 and corpus.artifact.json("ledger.json")["dropped"] == {"exact duplicate": 2}
    assert found[1] == {
        "text": contexts[0].strip(), "source": "a.json:2", "question": "which word 1?", "article": "article 0",
        "answers": [{"text": "beta0", "start": 7}], "question_id": "0-1",
    }  # fmt: skip
    for split in ({"test": 0.3, "by": "group", "group": "article"}, {"test": 0.3}):
        corpus = run(**section, split=split)
        passages = [{row["text"] for row in rows(corpus, name)} for name in ("train", "test")]
        assert not passages[0] & passages[1] and len(rows(corpus, "test")) == 6
        assert len(rows(corpus, "train")) == 14
    marked = [{"id": "x", "question": "q?", "answers": [], "is_impossible": True},
              {"id": "y", "question": "r?", "answers": [{"text": "nowhere", "answer_start": -1}]}]  # fmt: skip
    write("b.json", json.dumps({"data": [{"paragraphs": [{"context": "some words here", "qas": marked}]}]}))
    corpus = run(source={"kind": "squad", "paths": "b.json"}, bad_rows=0.5)
    assert rows(corpus)[0]["answers"] == [] and bad(corpus) == {"no answer is in the passage": 1}


def test_answers_move_with_what_cleaning_moves() -> None:
    context = "\n\ncafe\u0301 by a@example.com  \nand the cafe\u0301 of bob@example.com is the one"
    places = [("cafe\u0301", context.rindex("cafe")), ("bob@example.com", context.index("bob")), ("the", 63)]
    answers = [{"text": text, "answer_start": start} for text, start in places]
    question = {"question": "who is a@example.com?", "answers": answers, "id": "1"}
    write("a.json", json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}))
    (row,) = rows(run(source={"kind": "squad", "paths": "a.json"}, clean={"redact": "email"}))
    assert row["text"] == "café by <EMAIL>\nand the café of <EMAIL> is the one"
    assert row["question"] == "who is <EMAIL>?"
    assert [row["text"][a["start"] :][: len(a["text"])] for a in row["answers"]] == ["café", "<EMAIL>", "the"]
    assert [a["start"] for a in row["answers"]] == [24, 32, 43]


def test_aligned_files_become_one_column_each() -> None:
    write("a.en.gz", "A dog.\n\nTwo men.\nA dog.\n\n")
    write("a.de", "Ein Hund.\nrest\nZwei Männer.\nDer Hund.\n\n")
    source = {"kind": "aligned", "paths": ["a.en.gz", "a.de"], "columns": ["en", "de"]}
    corpus = run(source=source, bad_rows=0.5)
    assert rows(corpus) == [
        {"text": en, "source": f"a.en.gz:{line}", "en": en, "de": de}
        for line, en, de in ((1, "A dog.", "Ein Hund."), (3, "Two men.", "Zwei Männer."), (4, "A dog.", "Der Hund."))
    ]
    assert bad(corpus) == {"the line of 'en' is empty": 1}
    write("a.de", "Ein Hund.\n")
    (found,) = prepare.check(config(source=source), {})
    assert "differ in length: a.en.gz 5, a.de 1 lines" in found.what
    assert "needs `columns`" in mistakes(source=source | {"columns": ["en"]})


def test_columns_are_renamed_valued_and_added() -> None:
    write("a.tsv", '#1 String\t#2 String\tQuality\nhe said "no\tshe\t1\na\tb\t0\nc\td\t2\n')
    corpus = run(
        source=[
            {"paths": "a.tsv", "text_field": "#1 String", "keep": {"pair": "#2 String", "label": "Quality"},
             "values": {"label": {0: "no", 1: "yes"}}, "split": "train"},
            {"kind": "text", "paths": write("b.txt", "one\ntwo\n"), "document": "line", "split": "test",
             "add": {"label": "maybe", "weight": 2}},
        ],
        bad_rows=0.5,
    )  # fmt: skip
    assert rows(corpus) == [
        {"text": 'he said "no', "source": "a.tsv:2", "pair": "she", "label": "yes", "weight": None},
        {"text": "a", "source": "a.tsv:3", "pair": "b", "label": "no", "weight": None},
    ]
    assert [(r["label"], r["weight"], r["pair"]) for r in rows(corpus, "test")] == [("maybe", 2, None)] * 2
    assert bad(corpus) == {"a value of 'label' that `values` does not list": 1}
    pq.write_table(pa.table({"body": ["x"], "y": [1]}), "a.parquet")
    corpus = run(source={"paths": "a.parquet", "text_field": "body", "keep": {"label": "y"}})
    assert rows(corpus) == [{"text": "x", "source": "a.parquet:1", "label": 1}]
    write("a.jsonl", '{"text": "t", "meta": {"tag": true}}\n')
    corpus = run(source={"paths": "a.jsonl", "keep": {"label": "meta.tag"}, "values": {"label": {True: "good"}}})
    assert rows(corpus)[0]["label"] == "good"


def test_separators_of_one_and_of_several_characters() -> None:
    write("a.csv", "Profits ; rose@positive\n")
    corpus = run(source={"paths": "a.csv", "columns": ["text", "label"], "separator": "@", "keep": "label"})
    assert rows(corpus)[0] | {"source": ""} == {"text": "Profits ; rose", "label": "positive", "source": ""}
    write("a.csv", "1 ||| 'a \"b\n\n2 ||| c\n3\n")
    section = {"paths": "a.csv", "columns": ["label", "text"], "separator": " ||| ", "keep": "label"}
    assert "cannot be quoted" in mistakes(source=section)
    corpus = run(source=section | {"quotes": False}, bad_rows=0.5)
    assert [(r["text"], r["source"]) for r in rows(corpus)] == [("'a \"b", "a.csv:1"), ("c", "a.csv:3")]


def test_the_text_of_a_conversation_is_what_its_turns_say() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "assistant", "content": [{"type": "text", "text": "你好"}]}]  # fmt: skip
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    write("a.json", json.dumps([{"messages": chat, "chosen": shared[1]}, {"messages": shared, "chosen": shared[0]}]))
    corpus = run(source={"paths": "a.json", "text_field": ["messages", "chosen"], "keep": "messages"})
    assert [row["text"] for row in rows(corpus)] == ["hi\n你好\nhello", "hi\nhello\nhi"]
    assert rows(corpus)[0]["messages"] == chat


@pytest.mark.smoke
def test_what_is_kept_is_redacted_and_normalised_like_the_text() -> None:
    """A recipe that redacts must not carry the same identifier along in another column."""
    row = {
        "text": "call 13812345678",
        "messages": [{"role": "user", "content": "I am 13812345678\u200b, x@example.com"}],
        "label": "cafe\u0301",
        "number": 13812345678,
        "small": 7,
        "by": "x@example.com",
    }
    spread = {"text": "call 138 1234 5678", "tokens": ["call", "138", "1234", "5678"]}
    write("a.jsonl", "".join(json.dumps(r) + "\n" for r in (row, row | spread)))
    keep = ["messages", "label", "number", "small", "tokens"]
    corpus = run(
        source={"paths": "a.jsonl", "keep": keep},
        clean={"redact": ["phone", "email"]},
        split={"group": "by"},
        bad_rows=0.5,
    )
    assert rows(corpus) == [{
        "text": "call <PHONE>", "source": "a.jsonl:1", "label": "café", "number": "<PHONE>", "small": 7, "tokens": None,
        "messages": [{"role": "user", "content": "I am <PHONE>, <EMAIL>"}],
    }]  # fmt: skip
    everything = "".join(p.read_text("utf-8", "replace") for p in corpus.artifact.path.rglob("*.*") if p.is_file())
    assert "13812345678" not in everything and "x@example" not in everything
    ledger = corpus.artifact.json("ledger.json")
    assert ledger["redacted"] == {"phone": 1, "phone (kept columns)": 2, "email (kept columns)": 1}
    assert ledger["bad"] == {"an identifier runs over several items of 'tokens'": 1}


def test_a_value_that_is_not_listed_is_redacted_where_it_is_told() -> None:
    write("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "call 13812345678"}\n')
    section = {"paths": "a.jsonl", "keep": "label", "values": {"label": {"x": "good"}}}
    corpus = run(source=section, clean={"redact": "phone"}, bad_rows=0.5)
    (example,) = corpus.artifact.json("ledger.json")["examples"]["bad: a value of 'label' that `values` does not list"]
    assert example == {"source": "a.jsonl:2", "excerpt": "call <PHONE>"}


def test_stratified_splits_have_the_same_shares_of_each_label() -> None:
    labels = ["a"] * 600 + ["b"] * 300 + ["c"] * 97 + ["d"] * 3
    write(
        "a.jsonl", "".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels))
    )
    section: dict[str, Any] = {"source": {"paths": "a.jsonl", "keep": "label"}}
    corpus = run(**section, split={"validation": 0.1, "test": 0.1, "stratify": "label"})
    counts = {split: Counter(row["label"] for row in rows(corpus, split)) for split in corpus.splits}
    assert [sum(count.values()) for count in counts.values()] == [800, 100, 100]
    for split in ("validation", "test"):
        assert counts[split]["a"] == 60 and counts[split]["b"] == 30 and counts[split]["c"] in (9, 10)
    assert counts["train"]["d"] >= 1
    assert "by: time" in mistakes(**section, split={"by": "time", "time": "t", "stratify": "label"})


def test_files_inside_an_archive_are_named_after_a_mark() -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name in ("top/README.txt", "top/data_50.txt", "top/data_66.txt"):
            archive.writestr(name, f"{name}@label\n")
    section = {"kind": "csv", "paths": "a.zip!*/data_5*.txt", "separator": "@", "columns": ["text", "label"]}
    assert [row["source"] for row in rows(run(source=section))] == ["a.zip!top/data_50.txt:1"]
    found = prepare.check(config(source=section | {"paths": "a.zip!nothing"}), {})
    assert "a.zip!nothing" in found[0].what and "unzip -l" in found[0].fix


def test_keys_that_do_not_belong_together() -> None:
    for source, what in (
        ({"rows": "data"}, "`rows` belongs to kind json"),
        ({"strip": "("}, "no regular expression"),
        ({"keep": "id"}, "'id' is a column of every corpus"),
        ({"keep": "a", "add": {"a": 1}}, "in `keep` and in `add`"),
        ({"values": {"a": {"1": "x"}}}, "does not carry into the corpus"),
    ):
        assert what in mistakes(source={"kind": "jsonl", "paths": "x.jsonl", **source})


def test_plan_sees_whole_examples() -> None:
    write("a.conll", CONLL)
    asked = config(source={"kind": "conll", "paths": "a.conll"}, bad_rows=0.5)
    facts = prepare.forecast(asked, {}).facts
    assert [example["tags"] for example in facts["examples"]] == [["B-ORG", "O"], ["B-MISC", "O"], ["O"]]
    assert facts["sample"] == [example["text"] for example in facts["examples"]]
    made = prepare.facts(run(**dump(asked)).artifact)
    assert sorted(map(str, (e["tokens"] for e in made["examples"]))) == sorted(
        map(str, (e["tokens"] for e in facts["examples"]))
    )


# The real files, of which these layouts are.

PUBLISHED: dict[str, tuple[dict[str, Any], int, Mapping[str, Any]]] = {
    "sst2": ({"paths": "sst2/dev.tsv.gz", "text_field": "sentence", "keep": "label"}, 6735, {"label": "1"}),
    "ag_news": (
        {"paths": "ag_news/test.csv.gz", "columns": ["class", "title", "body"], "text_field": ["title", "body"],
         "keep": {"label": "class"}, "values": {"label": {1: "World", 2: "Sports", 3: "Business", 4: "Sci/Tech"}}},
        7600, {"label": "Business"},
    ),
    "banking77": ({"paths": "banking77/test.csv.gz", "keep": {"label": "category"}}, 3080, {"label": "card_arrival"}),
    "clinc150": (
        {"kind": "json", "paths": "clinc150/data_full.json.gz", "rows": ["test", "oos_test"],
         "columns": ["text", "label"], "keep": "label"},
        5500, {"label": "translate"},
    ),
    "phrasebank": (
        {"kind": "csv", "paths": "financial_phrasebank/FinancialPhraseBank-v1.0.zip!*/Sentences_50Agree.txt",
         "separator": "@", "quotes": False, "columns": ["text", "label"], "keep": "label", "encoding": "latin-1"},
        4846, {"label": "neutral"},
    ),
    "thucnews": (
        {"kind": "tsv", "paths": "thucnews/dev.txt.gz", "columns": ["text", "label"], "keep": "label"},
        10_000, {"label": "8"},
    ),
    "wnut17": ({"kind": "conll", "paths": "ner_en/wnut17/wnut17train.conll.gz"}, 3394, {}),
    "sec_filings": ({"kind": "conll", "paths": "ner_en/sec_filings/FIN5.txt.gz"}, 1164, {}),
    "wikiann": ({"kind": "conll", "paths": "ner_en/wikiann_en/dev.tsv.gz", "strip": "^en:"}, 10_000, {}),
    "weibo": ({"kind": "conll", "paths": "ner_zh/weibo/train.conll.gz", "strip": "[0-9]$"}, 1350, {}),
    "resume": ({"kind": "conll", "paths": "ner_zh/resume/dev.bmes.gz"}, 463, {}),
    "ud_en": ({"kind": "conll", "paths": "ud/en_ewt-ud-dev.conllu.gz"}, 2001, {}),
    "squad": ({"kind": "squad", "paths": "qa/squad_dev-v1.1.json.gz"}, 10_570, {}),
    "cmrc": ({"kind": "squad", "paths": "qa/cmrc2018_trial.json.gz"}, 1002, {}),
    "multi30k": (
        {"kind": "aligned", "paths": ["multi30k/val.en.gz", "multi30k/val.de.gz"], "columns": ["en", "de"]}, 1014, {},
    ),
    "dpo": (
        {"kind": "json", "paths": "sft/dpo_zh_demo.json.gz", "text_field": ["conversations", "chosen"],
         "keep": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
        300, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_read_whole(name: str, shared_data: Callable[[str], Path]) -> None:
    source, expected, first = PUBLISHED[name]
    paths = [source["paths"]] if isinstance(source["paths"], str) else source["paths"]
    found = [str(shared_data(path.partition("!")[0])) + path[len(path.partition("!")[0]) :] for path in paths]
    corpus = run(source=source | {"paths": found}, clean={"exact_duplicates": False}, checked=False)
    ledger = corpus.artifact.json("ledger.json")
    assert ledger["rows"] == expected and sum(ledger["bad"].values()) <= 0.005 * expected
    read = rows(corpus)
    assert first.items() <= read[0].items()
    for row in read[:200]:
        if "tokens" in row:
            assert len(row["tokens"]) == len(row["tags"]) and row["text"] == join_tokens(row["tokens"])
        for answer in row.get("answers", ()):
            is_there = row["text"].startswith(answer["text"], max(0, answer["start"]))
            assert is_there or answer["text"] not in row["text"]
