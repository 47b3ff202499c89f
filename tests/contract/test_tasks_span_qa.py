"""Answers from passages: every answer can be told back from the windows, in any script and any layout."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.config import parse
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.nn.network import Network, create
from groundup.tasks import span_qa
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

ENGLISH = "The café opened in 1987 near the old harbour. Anna  Berg ran it until the winter of 1999, when she sold it. "
CHINESE = "《战国无双3》是由光荣和ω-force开发的战国无双系列的正统第三续作。本作以三大故事为主轴，分别是武田信玄等人。"


def row(passage: str, question: str, *answers: str, source: str = "a.json:1") -> dict[str, Any]:
    found = [{"text": answer, "start": passage.index(answer)} for answer in answers]
    return {"text": passage, "question": question, "answers": found, "article": "A", "source": source}


ROWS = [
    row(ENGLISH * 3, "when did it open?", "1987", source="a.json:1"),
    row(ENGLISH, "who ran the café?", "Anna  Berg", "Berg", source="a.json:2"),
    row(CHINESE * 2, "由谁开发？", "光荣和ω-force", source="a.json:3"),
    row(CHINESE, "多少钱？", source="a.json:4"),
]


@cache
def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    texts = [r["text"] + r["question"] for r in ROWS] * 3
    engine, _ = learn(Wish(kind, {"bpe": 320, "wordpiece": 160}[kind]), lambda: iter(texts))
    return Tokenizer(engine, Specials(**SPECIALS[kind]))


def make(kind: str = "wordpiece", context: int = 48, rows: list[dict[str, Any]] = ROWS, **given: Any) -> span_qa.Task:
    config, mistakes = parse(span_qa.Config, {"stride": 12} | given)
    assert config is not None and mistakes == []
    return span_qa.Task(span_qa.settle(config, rows), tokenizer(kind), context)


def network_for(task: span_qa.Task, seed: int = 1) -> Network:
    model = catalog.load("models", "bert")
    config = model.Config(**model.TINY | {"vocab_size": task.tokenizer.vocab_size, "context": 128})
    return create(model, config, task.head, outputs=task.outputs, seed=seed).eval()


def batches(task: span_qa.Task, rows: list[dict[str, Any]] = ROWS) -> tuple[Any, Any, Any]:
    found = task.rows(Documents(rows, task.encode), 0)
    every = [found.row(i, 0) for i in range(len(found))]
    return found, task.collate(every), task.collate(every, flat=True)


def certain(task: span_qa.Task, example: dict[str, Any]) -> str:
    """What is answered if the network were certain of every label."""
    encoded, parts, start = task.encode(example), [], 0
    for window, size in enumerate(encoded["windows"]):
        begin, end = encoded["label"][2 * window : 2 * window + 2]
        first = encoded["marks"][start : start + size].index(1)
        part = {"score": 9.0, "start": begin - first, "end": end - first, "none": 0.0}
        parts.append(part if begin else {"score": 0.0, "start": 0, "end": 0, "none": 5.0})
        start += size
    return str(task.answer(parts, example).answer)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_answers_come_back_from_their_tokens(kind: str) -> None:
    task = make(kind)
    for example in ROWS:
        encoded = task.encode(example)
        assert len(encoded["input_ids"]) == len(encoded["marks"]) == sum(encoded["windows"])
        assert len(encoded["label"]) == 2 * len(encoded["windows"]) and max(encoded["windows"]) <= 48
        answer, truth = certain(task, example), task.truth(example)
        # A byte-level token may hold the space before a word.
        assert answer.strip() == truth[0] if truth else answer == ""
    assert len(task.encode(ROWS[0])["windows"]) > 2
    assert pickle.loads(pickle.dumps(task)).encode(ROWS[0]) == task.encode(ROWS[0])


def test_windows_show_the_whole_passage_and_begin_with_the_question() -> None:
    task = make()
    rows, padded, _ = batches(task)
    ids = tokenizer().encode(ROWS[0]["text"])
    own = [rows.row(i, 0) for i in range(len(rows)) if rows.document_of(i) == 0]
    asked = tokenizer().encode(ROWS[0]["question"])
    shown = [found["input_ids"][found["marks"] == 1].tolist() for found in own]
    assert all(found["input_ids"][1 : 1 + len(asked)].tolist() == asked for found in own)
    overlap = 12
    together = shown[0] + [token for part in shown[1:] for token in part[overlap:]]
    assert together == ids
    assert (padded["token_type_ids"][0] == 1).sum() == len(shown[0]) + 1
    ledger = rows.ledger()
    assert ledger.rows == len(rows) and ledger.trained == 2 * len(rows) and ledger.documents == 4


def test_both_layouts_have_one_loss_and_one_answer() -> None:
    task = make()
    network = network_for(task)
    _, padded, flat = batches(task)
    found = {}
    for name, batch in (("padded", padded), ("flat", flat)):
        outputs = network(batch)
        total, count = task.loss(outputs, batch)["loss"]
        assert int(count) == task.counts(batch)["loss"] == len(batch["label"])
        found[name] = total.detach(), task.answers(outputs, batch), task.scores(outputs, batch)["right"].tolist()
    torch.testing.assert_close(found["padded"][0], found["flat"][0], rtol=1e-6, atol=1e-5)
    assert [(a["start"], a["end"]) for a in found["padded"][1]] == [(a["start"], a["end"]) for a in found["flat"][1]]
    assert found["padded"][2] == found["flat"][2]
    logits = network(padded).logits.masked_fill(~padded["attention_mask"][..., None], -1e30)
    expected = F.cross_entropy(logits, padded["label"], reduction="sum") / 2
    torch.testing.assert_close(found["padded"][0], expected.detach())


def test_the_best_span_is_that_of_trying_every_one() -> None:
    task = make(longest_answer=4)
    network = network_for(task, seed=3)
    _, padded, _ = batches(task)
    logits = network(padded).logits.detach()
    for i, answer in enumerate(task.answers(network(padded), padded)):
        inside = padded["marks"][i].nonzero().flatten().tolist()
        spans = [(a, b) for a in inside for b in inside if a <= b < a + 4]
        score, (a, b) = max((float(logits[i, a, 0] + logits[i, b, 1]), (a, b)) for a, b in spans)
        assert answer["score"] == pytest.approx(score, abs=1e-5)
        assert (answer["start"], answer["end"]) == (a - inside[0], b - inside[0])
        assert answer["none"] == pytest.approx(float(logits[i, 0].sum()), abs=1e-5)


def test_no_answer_is_given_only_where_rows_say_there_may_be_none() -> None:
    spans = [{"score": 1.0, "start": 0, "end": 1, "none": 4.0}, {"score": 0.0, "start": 0, "end": 0, "none": 3.0}]
    assert make().answer(spans, ROWS[0]).answer == ""
    assert make(threshold=2.5).answer(spans, ROWS[0]).answer != ""
    always = make(rows=ROWS[:3])
    assert not always.config.unanswerable and always.answer(spans, ROWS[0]).answer != ""
    sure = make().answer(spans, ROWS[0]).confidence
    assert sure is not None and sure > 0.8
    assert make().answer([], ROWS[0]).answer == ""


def test_what_only_rows_can_tell() -> None:
    assert make().config.unit == "article" and make().config.unanswerable
    assert make(rows=[ROWS[2]]).config.language == "zh" and make(rows=[ROWS[1]]).config.language == ""


def test_transformers_opens_the_result_as_its_class(tmp_path: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    task = make()
    network = network_for(task)
    hugging_face.save(tmp_path, network, labels=task.labels)
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "BertForQuestionAnswering"
    _, padded, _ = batches(task)
    keys = ("input_ids", "token_type_ids", "attention_mask")
    found = theirs(**{key: padded[key].long() for key in keys})
    mask = padded["attention_mask"]
    logits = network(padded).logits
    torch.testing.assert_close(found.start_logits[mask], logits[..., 0][mask])
    torch.testing.assert_close(found.end_logits[mask], logits[..., 1][mask])


def test_windows_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    task = make()
    task.tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for example in ROWS[:3]:
        found = theirs(
            example["question"],
            example["text"],
            max_length=48,
            truncation="only_second",
            stride=12,
            return_overflowing_tokens=True,
        )
        encoded = task.encode(example)
        ids, start = [], 0
        for size in encoded["windows"]:
            ids.append(encoded["input_ids"][start : start + size])
            start += size
        assert ids == found["input_ids"]


def test_a_few_steps_learn_the_rows() -> None:
    task = make()
    network = network_for(task).train()
    shown = ROWS[1:]  # in the first one an answer stands where it is none
    _, _, flat = batches(task, shown)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        total, count = task.loss(network(flat), flat)["loss"]
        optimizer.zero_grad()
        torch.autograd.backward(total / count)
        optimizer.step()
    assert float((total / count).detach()) < 0.5
    rows, _, flat = batches(task, shown)
    answers = task.answers(network.eval()(flat), flat)
    for place, example in enumerate(shown):
        parts = [answers[i] for i in range(len(rows)) if rows.document_of(i) == place]
        assert task.answer(parts, example).answer in (task.truth(example) or [""])


@pytest.mark.smoke
def test_mistakes_name_their_row() -> None:
    def fails(match: str, example: dict[str, Any], **given: Any) -> None:
        with pytest.raises(DataError, match=match) as caught:
            make(rows=[*ROWS, example], **given)
        assert caught.value.fix

    lost = ROWS[0] | {"answers": [{"text": "1986", "start": 3}], "source": "a.json:9"}
    fails("a.json:9: the answer '1986' is not in its passage", lost)
    fails("a.json:9: no text in the column 'text'", lost | {"text": None})
    fails("is no list of answers", lost | {"answers": ["1986"]})
    fails("no text in the column 'frage'", lost, question="frage")
    with pytest.raises(DataError, match=r"a.json:9: the answer '1986'"):
        make().encode(lost)
    moved = ROWS[0] | {"answers": [{"text": "sold", "start": 0}]}
    assert certain(make(), moved) == "sold"
    sides = ROWS[1] | {"answers": {"text": ["Berg"], "answer_start": [ROWS[1]["text"].index("Berg")]}}
    assert certain(make(), sides) == "Berg"
    with pytest.raises(DataError, match="no room"):
        make(context=8)


def questions(path: Path, most: int) -> Iterator[dict[str, Any]]:
    data = json.loads(gzip.decompress(path.read_bytes()))
    every = (
        {"text": p["context"], "question": q["question"], "answers": q["answers"], "source": q["id"]}
        for article in data["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
    )
    for _, example in zip(range(most), every, strict=False):
        found = [{"text": a["text"], "start": a["answer_start"]} for a in example["answers"]]
        yield example | {"answers": [a for a in found if a["text"] in example["text"]]}


@pytest.mark.parametrize("name", ["squad_dev-v1.1.json.gz", "cmrc2018_trial.json.gz"])
def test_published_answers_come_back_from_their_tokens(name: str, shared_data: Callable[[str], Path]) -> None:
    """All but those that are a part of a token, such as the 4 of 49, which some annotators marked."""
    vocabulary = shared_data("tokenizers") / "bert_base_chinese" / "vocab.txt.gz"
    Path("vocab.txt").write_bytes(gzip.decompress(vocabulary.read_bytes()))
    config = span_qa.Config(stride=128)
    task = span_qa.Task(config, Tokenizer.load("."), 384)
    right = total = 0
    for example in questions(shared_data("qa") / name, 300):
        if example["answers"]:
            total += 1
            right += certain(task, example).strip() == example["answers"][0]["text"].strip()
    assert total > 250 and right >= 0.95 * total
