"""Tagging: every token gets its own tag, however it is spelled, cut or laid out."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.config import parse
from groundup.data.packing import IGNORED
from groundup.data.sample import Documents
from groundup.data.source_blocks import cut
from groundup.data.source_files import find_files
from groundup.data.source_rows import read_rows
from groundup.data.sources import Source
from groundup.errors import DataError
from groundup.evaluation.metrics.tagging import entities
from groundup.nn.network import Network, create
from groundup.tasks import token_tagging
from groundup.text import tag_schemes
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

WORDS = ["Angela", "Merkel", "visited", "New", "York", "and", "wrote", "to", "Zhengzhou", "about", "snow", "in", "Rio"]
CHINESE = list("王小明在北京大学读书，他很喜欢iPhone")


def sentence(draw: random.Random, words: list[str], size: int, source: str) -> dict[str, Any]:
    tokens = draw.choices(words, k=size)
    tags = ["O"] * size
    for _ in range(size // 3):
        start = draw.randrange(size)
        stop = min(size, start + draw.randint(1, 3))
        if all(tag == "O" for tag in tags[max(0, start - 1) : stop + 1]):
            tags[start:stop] = [f"B-{'XY'[size % 2]}", *[f"I-{'XY'[size % 2]}"] * (stop - start - 1)]
    return {"text": " ".join(tokens), "tokens": tokens, "tags": tags, "source": source}


def corpus() -> list[dict[str, Any]]:
    draw = random.Random(3)
    sizes = [1, 2, 3, 5, 8, 4, 9, 30, 2, 6]
    return [sentence(draw, (WORDS, CHINESE)[i % 2], n, f"a.conll:{i}") for i, n in enumerate(sizes)]


ROWS = corpus()


@cache
def tokenizer(kind: str) -> Tokenizer:
    engine, _ = learn(Wish(kind, {"bpe": 300, "wordpiece": 90}[kind]), lambda: iter(row["text"] for row in ROWS * 3))
    return Tokenizer(engine, Specials(**SPECIALS[kind]))


def config(rows: list[dict[str, Any]] = ROWS, **given: Any) -> token_tagging.Config:
    found, mistakes = parse(token_tagging.Config, given)
    assert found is not None and mistakes == []
    return token_tagging.settle(found, rows)


def make(kind: str = "wordpiece", context: int = 24, **given: Any) -> token_tagging.Task:
    return token_tagging.Task(config(**given), tokenizer(kind), context)


def network_for(task: token_tagging.Task, seed: int = 1) -> Network:
    model = catalog.load("models", "bert")
    sizes = model.TINY | {"vocab_size": task.tokenizer.vocab_size, "context": 200}
    network = create(model, model.Config(**sizes), task.head, outputs=task.outputs, seed=seed).eval()
    task.extend(network)
    return network


def batches(task: token_tagging.Task, rows: list[dict[str, Any]] = ROWS) -> tuple[Any, Any, Any]:
    found = task.rows(Documents(rows, task.encode), 0)
    every = [found.row(i, 0) for i in range(len(found))]
    return found, task.collate(every), task.collate(every, flat=True)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_each_token_is_marked_once_and_carries_its_own_tag(kind: str) -> None:
    task = make(kind)
    for row in ROWS:
        encoded = task.encode(row)
        assert len(encoded["input_ids"]) == len(encoded["labels"]) == len(encoded["marks"]) == sum(encoded["windows"])
        tags = [task.labels[i] for i, mark in zip(encoded["labels"], encoded["marks"], strict=True) if mark]
        assert tags == row["tags"] == task.truth(row)
        assert all(size <= 24 for size in encoded["windows"])
        pairs = zip(encoded["labels"], encoded["marks"], strict=True)
        assert all(label == IGNORED for label, mark in pairs if not mark)
    assert len(task.encode(ROWS[7])["windows"]) > 1
    assert pickle.loads(pickle.dumps(task)).encode(ROWS[0]) == task.encode(ROWS[0])


def test_words_are_spelled_as_they_stand_in_running_text() -> None:
    """A byte-level vocabulary spells a word after a space unlike one at the beginning."""
    task, row = make("bpe", 200), ROWS[0] | {"tokens": ["New", "York"], "tags": ["B-X", "I-X"]}
    assert task.encode(row)["input_ids"][1:-1] == tokenizer("bpe").encode("New York")


def test_windows_overlap_and_divide_the_tokens_between_them() -> None:
    task = make(overlap=8, context=16)
    rows = task.rows(Documents([ROWS[7]], task.encode), 0)
    assert len(rows) == len(rows.lengths) > 2 and {rows.document_of(i) for i in range(len(rows))} == {0}
    first, second = rows.row(0, 0), rows.row(1, 0)
    assert first["edges"].tolist() == [1, 0] and second["edges"].tolist() == [0, 0]
    assert rows.row(len(rows) - 1, 0)["edges"].tolist() == [0, 1]
    assert second["marks"][1] == 0, "the second window begins with surroundings"
    assert sum(int(rows.row(i, 0)["marks"].sum()) for i in range(len(rows))) == 30
    assert rows.ledger().trained == 30 and rows.ledger().overlong == 1
    short = make(overlong="truncate").rows(Documents(ROWS, task.encode), 0)
    assert len(short) == len(ROWS) and short.ledger().cropped > 0
    dropped = make(overlong="drop")
    assert dropped.rows(Documents(ROWS, task.encode), 0).ledger().dropped == 1
    assert dropped.rows(Documents(ROWS, task.encode), 0, held_out=True).ledger().dropped == 0


@pytest.mark.parametrize("crf", [False, True])
def test_both_layouts_have_one_loss_and_one_answer(crf: bool) -> None:
    task = make(crf=crf)
    network = network_for(task)
    rows, padded, flat = batches(task)
    if crf:
        for parameter in network.head.beside.parameters():  # type: ignore[attr-defined]
            torch.nn.init.normal_(parameter, std=0.01)
    found = {}
    for name, batch in (("padded", padded), ("flat", flat)):
        outputs = network(batch)
        ((total, count),) = task.loss(outputs, batch).values()
        assert int(count) == task.counts(batch)["loss"] == sum(len(row["tokens"]) for row in ROWS)
        scores = task.scores(outputs, batch)
        torch.testing.assert_close(scores["nats"].sum(), total.double(), rtol=1e-5, atol=1e-4)
        found[name] = (total.detach(), task.answers(outputs, batch), scores)
    torch.testing.assert_close(found["padded"][0], found["flat"][0], rtol=1e-6, atol=1e-6 * int(count))
    assert [a["tags"] for a in found["padded"][1]] == [a["tags"] for a in found["flat"][1]]
    one_by_one = sum(float(_loss(task, network, [rows.row(i, 0)]).detach()) for i in range(len(rows)))
    assert one_by_one == pytest.approx(float(found["flat"][0]), rel=1e-5)


def _loss(task: token_tagging.Task, network: Network, rows: list[Any]) -> torch.Tensor:
    batch = task.collate(rows, flat=True)
    return task.loss(network(batch), batch)["loss"][0]


def test_the_linear_loss_is_the_cross_entropy_of_the_marked_places() -> None:
    task = make()
    network = network_for(task)
    _, padded, _ = batches(task)
    logits = network(padded).logits
    marked = padded["marks"] == 1
    expected = F.cross_entropy(logits[marked], padded["labels"][marked], reduction="sum")
    torch.testing.assert_close(task.loss(network(padded), padded)["loss"][0], expected)


@pytest.mark.parametrize("crf", [False, True])
def test_answers_come_together_and_keep_the_scheme(crf: bool) -> None:
    task = make(crf=crf, context=16)
    network = network_for(task, seed=5)
    rows, _, flat = batches(task)
    answers = task.answers(network(flat), flat)
    for place, example in enumerate(ROWS):
        parts = [answers[i] for i in range(len(rows)) if rows.document_of(i) == place]
        answer = task.answer(parts, example)
        assert len(answer.answer) == len(example["tokens"])
        assert tag_schemes.fault(answer.answer, "bio") == ""
        assert answer.confidence is not None and answer.confidence <= 0
    free = make(constrained=False)
    best = free.answers(network(flat), flat) if not crf else []
    logits = network(flat).logits[0][flat["marks"][0] == 1].argmax(-1).tolist()
    assert not best or [tag for part in best for tag in part["tags"]] == [free.labels[i] for i in logits]


def test_watched_f1_is_that_of_the_report() -> None:
    task = make(constrained=False, context=200)
    network = network_for(task, seed=2)
    _, padded, _ = batches(task)
    outputs = network(padded)
    sums = {name: float(values.sum()) for name, values in task.scores(outputs, padded).items()}
    answers = [part["tags"] for part in task.answers(outputs, padded)]
    there = [(i, *e) for i, row in enumerate(ROWS) for e in entities(row["tags"])]
    given = [(i, *e) for i, tags in enumerate(answers) for e in entities(tags)]
    f1 = 2 * len({*there} & {*given}) / (len(there) + len(given))
    assert task.metrics["entity_f1"].of(sums) == pytest.approx(f1)
    right = [a == b for row, tags in zip(ROWS, answers, strict=True) for a, b in zip(row["tags"], tags, strict=True)]
    assert task.metrics["accuracy"].of(sums) == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("crf", [False, True])
def test_a_few_steps_learn_the_rows(crf: bool) -> None:
    torch.manual_seed(0)
    rows = [{"tokens": [w, "of", w], "tags": ["B-X", "O", "B-X"], "text": "", "source": ""} for w in WORDS]
    task = token_tagging.Task(config(rows, crf=crf), tokenizer("wordpiece"), 24)
    network = network_for(task).train()
    _, _, flat = batches(task, rows)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        total, count = task.loss(network(flat), flat)["loss"]
        optimizer.zero_grad()
        torch.autograd.backward(total / count)
        optimizer.step()
        losses.append(float((total / count).detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert all(part["tags"] == ["B-X", "O", "B-X"] for part in task.answers(network.eval()(flat), flat))


@pytest.mark.parametrize("crf", [False, True])
def test_transformers_opens_the_emissions_and_the_chain_comes_back(tmp_path: Path, crf: bool) -> None:
    from transformers import AutoModelForTokenClassification

    task = make(crf=crf)
    network = network_for(task)
    if crf:
        torch.nn.init.normal_(network.head.beside.pairs, std=0.01)  # type: ignore[attr-defined]
    hugging_face.save(tmp_path, network, labels=task.labels)
    task.save(tmp_path, network)
    assert (tmp_path / "crf.safetensors").exists() == crf
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "BertForTokenClassification"
    assert theirs.config.id2label == dict(enumerate(task.labels))
    _, padded, _ = batches(task)
    keys = ("input_ids", "token_type_ids", "attention_mask")
    logits = theirs(**{key: padded[key].long() for key in keys}).logits
    torch.testing.assert_close(logits[padded["attention_mask"]], network(padded).logits[padded["attention_mask"]])
    again = hugging_face.load(tmp_path)
    task.restore(tmp_path, again)
    assert task.answers(again(padded), padded) == task.answers(network(padded), padded)


def test_a_row_with_only_a_text_can_be_tagged() -> None:
    task = make()
    encoded = task.encode({"text": "Merkel 在北京 snow"})
    assert sum(encoded["marks"]) == 5 and set(encoded["labels"]) == {IGNORED}
    assert task.encode({"text": "\u200b", "tokens": ["\u200b", "a"]})["marks"].count(1) == 2


@pytest.mark.smoke
def test_mistakes_name_their_row() -> None:
    def fails(match: str, *rows: dict[str, Any], **given: Any) -> None:
        with pytest.raises(DataError, match=match) as caught:
            config(list(rows), **given)
        assert caught.value.fix

    good = ROWS[3]
    fails(r"a.conll:3: 1 tags for 5 tokens", good | {"tags": ["O"]})
    fails(r"a.conll:3: token 1 has the tag 'I-X'", *ROWS, good | {"tags": ["I-X", "O", "O", "O", "B-X"]})
    fails(r"token 2 has the tag 'B-X' after 'B-X'", good | {"tags": ["B-X"] * 5}, scheme="bioes")
    fails(r"only the tag 'O'", good | {"tags": ["O"] * 5})
    fails(r"never occur.*'B-Z'", *ROWS, labels=("O", "B-X", "I-X", "B-Y", "I-Y", "B-Z"))
    fails(r"no list of tokens in the column 'words'", *ROWS, tokens="words")
    repaired = config([*ROWS, good | {"tags": ["I-X", "O", "O", "O", "B-X"]}], broken="repair")
    assert repaired.labels == ("O", "B-X", "I-X", "B-Y", "I-Y") and repaired.scheme == "bio"
    with pytest.raises(DataError, match=r"a.conll:3: the tag 'B-Q' is not among those of the training rows"):
        make().encode(good | {"tags": ["B-Q", "O", "O", "O", "O"]})
    old = config([good | {"tags": ["I-X", "I-X", "B-X", "O", "O"]}])
    assert old.scheme == "iob1" and old.labels == ("O", "B-X", "I-X")
    task = token_tagging.Task(old, tokenizer("wordpiece"), 24)
    assert task.truth(good | {"tags": ["I-X", "B-X", "O", "O", "I-X"]}) == ["B-X", "B-X", "O", "O", "B-X"]


def test_real_sentences_settle_and_round_trip(shared_data: Callable[[str], Path]) -> None:
    """The published sets: their schemes are found, and every row can be encoded and told back."""
    expected = {
        "ner_en/wnut17/emerging.dev.conll.gz": "bio",
        "ner_en/sec_filings/FIN3.txt.gz": "iob1",
        "ner_zh/weibo/dev.conll.gz": "bio",
        "ner_zh/resume/dev.bmes.gz": "bmes",
        "ud/zh_gsdsimp-ud-dev.conllu.gz": "plain",
    }
    for name, scheme in expected.items():
        source = Source(kind="conll", paths=[str(shared_data(name))])
        read = [
            dict(zip(("tokens", "tags"), row.extra, strict=True)) | {"text": row.text, "source": f"{name}:{row.line}"}
            for block in cut([source], find_files(source), 1 << 20)
            for row in read_rows(block, source, ("tokens", "tags"))
            if not row.bad
        ]
        found = token_tagging.settle(token_tagging.Config(broken="repair"), read)
        assert found.scheme == scheme and found.labels is not None
        task = token_tagging.Task(found, tokenizer("wordpiece"), 64)
        for row in read[:60]:
            encoded = task.encode(row)
            tags = [task.labels[i] for i, mark in zip(encoded["labels"], encoded["marks"], strict=True) if mark]
            assert tags == task.truth(row)
    assert json.dumps(found.dump())
