"""The report of a labelled task as a reader and a script see it, for every kind, and the comparison of two."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from groundup.artifact import Artifact, Store, digest_data
from groundup.cli import app
from groundup.compare import compare
from groundup.errors import DataError, UserError
from groundup.evaluation import labelled_page, labelled_report, labelled_words, leakage, report
from groundup.evaluation.labelled import Labelled, System
from groundup.evaluation.labelled_slices import grouped

LABELS = ["负面", "正面", "<b>其他</b>"]
COUNT = 160


def system(share: float, seed: int, *, sure: bool = True, count: int = COUNT, **described: Any) -> System:
    rng = np.random.default_rng(seed)
    marks = rng.normal(0, 1, (count, 3)) * 1.5
    marks[np.arange(count), TRUTH[:count]] += share * 4
    shares = np.exp(marks) / np.exp(marks).sum(1, keepdims=True)
    answers = [LABELS[k] for k in marks.argmax(1)]
    named: dict[str, Any] = {"name": f"seed {seed}", "seed": seed, "digest": f"{seed:02d}" * 32} | described
    return System(answers=answers, probabilities=shares.tolist() if sure else None, **named)


TRUTH = np.random.default_rng(0).integers(0, 3, COUNT)
TEST = Labelled(
    "classes",
    [f"评论.csv:{row + 2}" for row in range(COUNT)],
    ["今天<script>" + "很好" * (1 + row % 7) for row in range(COUNT)],
    [LABELS[k] for k in TRUTH],
    LABELS,
    slices={"city": ["北京" if row % 2 else "上海" for row in range(COUNT)]},
)
DESCRIBED = {
    "name": "评论 / 情感",
    "model": {
        "digest": "ab" * 32,
        "family": "bert",
        "task": "text_classification",
        "parameters": 10**6,
        "tokens": 10**6,
    },
    "data": {"digest": "cd" * 32, "split": "test", "documents": COUNT, "bytes": 9876, "documents_in_split": COUNT},
    "cost": {"wall_s": 12.0},
    "licences": {"评论": "CC BY-NC 4.0"},
    "curves": {"loss": [[float(i), 2.0 / (1 + i)] for i in range(30)]},
    "notes": ["A note | with a bar."],
}
RIVALS = [
    system(0.55, 50, sure=False, name="TF-IDF + linear SVM", meaning="words, weighed", trained_rows=900),
    system(0.0, 51, name="guessing", meaning="nothing learned"),
]


def collected(runs: int = 3, **more: Any) -> dict[str, Any]:
    systems = [system(0.8, seed) for seed in range(7, 7 + runs)]
    return labelled_report.collect(TEST, systems, RIVALS, described=DESCRIBED, seed=3, resamples=200, **more)


class Page(HTMLParser):
    """What a page would fetch or run, its text, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [tag] if tag in ("script", "link", "iframe", "img", "object", "b") else []
        self.fetched += [f"{key}={v}" for key, v in attrs if key in ("src", "href") and not (v or "").startswith("#")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_shows_everything_and_fetches_nothing() -> None:
    validation = system(0.8, 99)
    data = collected(
        validation=(TEST.truth, validation.probabilities),
        leakage=leakage.find(list(TEST.shown[:3]), TEST.shown),
        texts=(TEST.shown[:3], TEST.shown),
    )
    html = labelled_page.render(data)
    page = Page(html)
    assert page.fetched == [] and page.open == []
    for section in ("What it means", "What is taken for what", "believed?", "Label by label", "By length", "By city"):
        assert section in page.text, section
    for section in ("How it learned", "All figures", "most confident mistakes", "in the training data?", "provenance"):
        assert section in page.text, section
    assert "评论.csv:" in page.text and "07" * 32 in page.text and "CC BY-NC 4.0" in page.text
    for svg in html.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg[: svg.index("</svg>")] + "</svg>")
    ids = [part.split('"')[0] for part in html.split(' id="')[1:]]
    assert len(ids) == len(set(ids)), "names inside the pictures of one page do not clash"
    assert html == labelled_page.render(data), "the same figures give the same bytes"


def test_collected_data_is_plain_and_every_score_has_its_interval() -> None:
    data = collected()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["main_metric"] == "accuracy" == next(iter(data["scores"]))
    for name, found in data["scores"].items():
        assert found["low"] <= found["estimate"] <= found["high"] or "calibration" in name, name
    accuracies = [run["scores"]["accuracy"] for run in data["runs"]]
    assert data["scores"]["accuracy"]["estimate"] == pytest.approx(np.mean(accuracies))
    assert data["over_runs"]["accuracy"]["method"] == "t" and len(data["runs"]) == 3
    assert [r["digest"] for r in data["runs"]] == ["07" * 32, "08" * 32, "09" * 32]
    assert sum(row["count"] for row in data["labels"]) == COUNT
    assert sum(row["count"] for row in data["slices"][1]["rows"]) == COUNT
    assert np.sum(data["confusion"]["counts"]) == COUNT
    confidences = [mistake["confidence"] for mistake in data["mistakes"]]
    assert confidences == sorted(confidences, reverse=True) and len(confidences) <= 50
    assert all(mistake["truth"] != mistake["answer"] for mistake in data["mistakes"])
    assert any("Not for commercial use" in note for note in data["notes"])
    assert collected(runs=1)["over_runs"] == {}


def test_rivals_are_judged_on_the_same_examples_and_the_winner_is_named() -> None:
    data = collected()
    svm, guess = data["rivals"]
    assert svm["lead"]["estimate"] == pytest.approx(data["scores"]["accuracy"]["estimate"] - svm["score"])
    assert guess["lead"]["low"] > 0 and guess["p_value"] < 0.05 and guess["mcnemar"] < 0.05
    assert "The model beats guessing by" in labelled_words.verdict(data, guess)
    better = system(1.0, 60, sure=False, name="TF-IDF + linear SVM")
    runs = [system(0.2, 7)]
    lost = labelled_report.collect(TEST, runs, [better, runs[0]], described=DESCRIBED, seed=0, resamples=200)
    assert "The model loses to TF-IDF + linear SVM by" in labelled_words.verdict(lost, lost["rivals"][0])
    assert "No clear difference" in labelled_words.verdict(lost, lost["rivals"][1])


def test_temperature_leakage_and_outsiders_are_told() -> None:
    hard = [[0.98 if k == 0 else 0.01 for k in range(3)]] * COUNT
    sure = System("sure", [LABELS[0]] * COUNT, hard)
    found = labelled_report.collect(
        TEST, [sure], [], described=DESCRIBED, seed=0, resamples=200, validation=(TEST.truth, hard)
    )["calibration"]
    assert found["temperature"] > 2 and found["after"]["error"] < found["before"]["error"] / 2
    texts = [f"some sentence number {row} that nobody wrote before today" for row in range(40)]
    leaked = leakage.find([texts[3], texts[5].upper() + "  ", texts[7] + ", or so"], [*texts[:10], "short", "short"])
    assert leaked.exact == [3, 5] and 7 in [row for row, _, _ in leaked.near]
    assert set(leaked.rows) >= {3, 5, 7} and leakage.find([], texts).rows == []
    outsiders = Labelled("classes", TEST.ids, TEST.shown, TEST.truth, LABELS[:2], out_of_scope=LABELS[2])
    pairs = [[0.5, 0.5] if k == 2 else [0.9, 0.1] for k in TRUTH]
    run = System("seed 1", [LABELS[0]] * COUNT, pairs)
    data = labelled_report.collect(outsiders, [run], [], described=DESCRIBED, seed=0, resamples=200)
    assert data["scores"]["out_of_scope_auroc"]["estimate"] == 1.0
    assert data["scores"]["out_of_scope_recall"]["estimate"] == 0.0 and "log_loss" not in data["scores"]
    assert "Requests that belong nowhere" in labelled_page.render(data)


def other_kinds() -> list[tuple[Labelled, System, str]]:
    ids = [str(row) for row in range(30)]
    tags = [["B-PER", "I-PER", "O"], ["O", "O", "B-LOC"]] * 15
    wrong = [["B-PER", "O", "O"], ["O", "O", "B-LOC"]] * 15
    spans: list[list[str]] = [["北京"], []] * 15
    return [
        (
            Labelled("tags", ids, ["张三说"] * 30, tags, ["O", "B-PER", "I-PER", "B-LOC"]),
            System("a", wrong),
            "entity_f1",
        ),
        (Labelled("tags", ids, ["a b"] * 30, [["N", "V"]] * 30), System("a", [["N", "N"]] * 30), "tag_accuracy"),
        (
            Labelled(
                "spans", ids, ["哪里？"] * 30, spans, language="zh", units=[n // 3 for n in range(30)], unit="texts"
            ),
            System("a", ["北京", "上海"] * 15, confidence=list(range(30))),
            "f1",
        ),
        (
            Labelled("texts", ids, ["eins"] * 30, ["one two three four five"] * 30),
            System("a", ["one two"] * 30),
            "bleu",
        ),
        (
            Labelled("multilabel", ids, ["x"] * 30, [["a"], []] * 15, ["a", "b"]),
            System("a", [["a"], ["b"]] * 15, [[0.9, 0.2], [0.1, 0.6]] * 15),
            "micro_f1",
        ),
        (
            Labelled("number", ids, ["x"] * 30, list(range(30)), slices={"year": list(range(30))}),
            System("a", [n + n % 3 for n in range(30)]),
            "pearson",
        ),
        (Labelled("ranking", ids, ["x"] * 30, [["d1"]] * 30), System("a", [["d2", "d1"]] * 30), "ndcg_at_10"),
    ]


@pytest.mark.parametrize(("test", "run", "main"), other_kinds())
def test_every_kind_has_a_report(test: Labelled, run: System, main: str, tmp_path: Path) -> None:
    data = labelled_report.collect(test, [run], [run], described=DESCRIBED, seed=0, resamples=100)
    assert data["main_metric"] == main
    report.write(data, lambda name: tmp_path / name)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.fetched == [] and page.open == [] and labelled_words.headline(data) in page.text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert labelled_words.headline(data) in markdown and "No clear difference" in markdown
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["kind"] == "labelled"
    lines = labelled_report.answer_lines(test, [run]).splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(test.ids)


@pytest.mark.smoke
def test_answers_are_told_in_words() -> None:
    tell = labelled_words.answer_text
    assert tell("tags", ["B-PER", "I-PER", "O"], "张三说") == "张三 (PER)"
    assert tell("tags", ["O", "B-PER", "I-PER"], "met Ada Lin") == "Ada Lin (PER)"
    assert tell("tags", ["O", "B-PER"], "three words here") == "2 to 2 (PER)" and tell("tags", ["O"], "x") == "none"
    assert tell("tags", ["NOUN", "VERB"], "a b") == "NOUN VERB"
    assert tell("spans", []) == tell("spans", "") == "no answer" and tell("spans", ["a", "a", "b"]) == "a / b"
    assert tell("multilabel", []) == "none" and tell("number", 2.0) == "2"


@pytest.mark.smoke
def test_columns_are_cut_into_bands_or_common_values() -> None:
    bands = grouped([*range(100), None])
    assert [name for name, _ in bands] == ["0 to 24", "25 to 49", "50 to 74", "75 to 99", "unknown"]
    values = grouped(["a"] * 30 + ["b"] * 12 + ["c", "d", None])
    assert [(name, len(members)) for name, members in values] == [("a", 30), ("b", 12), ("all others", 3)]


def test_bad_answers_are_refused_with_their_rows() -> None:
    run = system(1.0, 1)

    def collect(test: Labelled, one: System = run) -> None:
        labelled_report.collect(test, [one], [], described=DESCRIBED, seed=0)

    strange = [*TEST.truth[:-2], "中性", "中性"]
    with pytest.raises(DataError, match=r"评论.csv:160, 评论.csv:161.*2 test examples.*'中性'"):
        collect(Labelled("classes", TEST.ids, TEST.shown, strange, LABELS))
    with pytest.raises(DataError, match="160 examples but 159 answers of seed 1"):
        collect(TEST, system(1.0, 1, count=159))
    with pytest.raises(DataError, match="same id '0'"):
        collect(Labelled("classes", ["0"] * COUNT, TEST.shown, TEST.truth, LABELS))
    with pytest.raises(DataError, match="no examples"):
        collect(Labelled("classes", [], [], [], LABELS), System("a", []))
    with pytest.raises(DataError, match="another number of tags"):
        collect(Labelled("tags", ["a"], ["x"], [["O", "O"]]), System("a", [["O"]]))
    with pytest.raises(DataError, match="at least one run"):
        labelled_report.collect(TEST, [], [], described=DESCRIBED, seed=0)
    with pytest.raises(ValueError, match="no score 'blue'"):
        collect(Labelled("classes", TEST.ids, TEST.shown, TEST.truth, LABELS, main="blue"))


def written(name: str, runs: list[System], test: Labelled = TEST) -> Artifact:
    """A report in the store, as the evaluate stage writes it."""
    store, key = Store(), digest_data(name)
    data = labelled_report.collect(test, runs, [], described=DESCRIBED, seed=0, resamples=100)
    with store.draft("report", key, stage=name) as draft:
        report.write(data, draft.path)
        draft.path("answers.jsonl").write_text(labelled_report.answer_lines(test, runs), encoding="utf-8")
    found = store.find(key)
    assert found is not None
    return found


def test_compare_says_whether_a_difference_is_real() -> None:
    good = written("good", [system(0.9, seed) for seed in (1, 2)])
    bad = written("bad", [system(0.2, seed) for seed in (3, 4)])
    verdict = compare(bad.path, good.path, resamples=500)
    assert verdict.main.metric == "accuracy" and verdict.main.is_real and verdict.main.lead.high < 0
    assert f"{verdict.second} is better than {verdict.first}" in verdict.sentence and "points" in verdict.sentence
    assert verdict.mcnemar is not None and verdict.mcnemar < 0.05
    assert verdict.welch is not None and "over seeds" in verdict.caution.lower()
    same = compare(good.path, good.path, resamples=200)
    assert "no clear difference" in same.sentence and not same.main.is_real
    single = compare(written("one", [system(0.9, 1)]).path, bad.path, resamples=200)
    assert single.welch is None and "several seeds" in single.caution


def test_compare_refuses_what_cannot_be_compared() -> None:
    mine = written("mine", [system(0.9, 1)])
    turned = Labelled("classes", TEST.ids, TEST.shown, TEST.truth[::-1], LABELS)
    with pytest.raises(UserError, match="same examples, but their truth or order differs"):
        compare(mine.path, written("turned", [system(0.9, 1)], turned).path)
    short = Labelled("classes", TEST.ids[:40], TEST.shown[:40], TEST.truth[:40], LABELS)
    with pytest.raises(UserError, match=r"different tests \(160 and 40 examples, 40 shared\)"):
        compare(mine.path, written("short", [system(0.9, 1, count=40)], short).path)
    numbers, run, _ = other_kinds()[5]
    with pytest.raises(UserError, match="first report is of classes, the second of number"):
        compare(mine.path, written("numbers", [run], numbers).path)
    with Store().draft("report", "0" * 64) as draft:
        draft.write_json("report.json", {"format": 1})
    language = Store().find("0" * 64)
    assert language is not None
    with pytest.raises(UserError, match="language model"):
        compare(mine.path, language.path)
    with Store().draft("model", "1" * 64) as draft:
        draft.write_json("config.json", {})
    model = Store().find("1" * 64)
    assert model is not None
    with pytest.raises(UserError, match="is a model, not a report"):
        compare(model.path, mine.path)


def test_the_command_prints_the_verdict_and_json() -> None:
    good, bad = written("good", [system(0.9, 1)]), written("bad", [system(0.2, 2)])
    shown = CliRunner().invoke(app, ["compare", str(good.path), str(bad.path)])
    assert shown.exit_code == 0 and "is better than" in shown.stdout and "macro F1" in shown.stdout
    plain = CliRunner().invoke(app, ["compare", str(good.path), str(bad.path), "--json"])
    data = json.loads(plain.stdout)
    assert data["comparisons"][0]["metric"] == "accuracy" and data["comparisons"][0]["is_real"]


def test_what_is_no_text_is_counted_in_examples() -> None:
    cost = {"wall_s": 12.0, "tokens": 60_000, "unit": "examples", "tokens_s": 4_000.0}
    data = collected(1) | {"cost": cost, "leakage": {"test": 9, "train": 99, "exact": 1, "near": 0, "threshold": 0.8}}
    data["leakage"] |= {"without": None, "examples": []}
    page = labelled_page.render(data)
    assert "60k examples" in page and "4k examples/s" in page and "tokens" not in page
    assert "are also among the 99 training rows" in page and "word for word" not in page
