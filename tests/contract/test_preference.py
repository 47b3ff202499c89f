"""Preference tuning: what is compared, that no cut of a batch changes it, and rows that prefer nothing."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.text import Text
from torch import Tensor

from groundup import catalog
from groundup.config import parse
from groundup.data.loader import Loader
from groundup.data.packing import IGNORED
from groundup.data.pairs import CHOSEN, REJECTED, STRANGE, Pairs, apart
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.evaluation.metrics import sums
from groundup.nn import preference_losses as losses
from groundup.nn.network import Network, create
from groundup.tasks import preference
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

PAIRED = ("dpo", "ipo", "orpo", "simpo")
WORDS = "What is cat number {i}? The cat sat on a mat. It is a dog, no less. 第{i}天，天气很好。"


@cache
def tokenizer() -> Tokenizer:
    engine, _ = learn(Wish("bpe", 310), lambda: (WORDS.format(i=i) for i in range(20)))
    return Tokenizer(engine, Specials(**SPECIALS["bpe"]))


def make(loss: str = "dpo", context: int = 70, **given: Any) -> preference.Task:
    config, mistakes = parse(preference.Config, {"loss": loss, **given})
    assert config is not None and mistakes == []
    return preference.Task(config, tokenizer(), context)


def ask(number: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"What is {number}?"}]


def pair(number: int) -> dict[str, Any]:
    chosen, rejected = f"A cat{' mat' * (number % 4)}.", f"A dog{' no' * (number % 3)}."
    row = {"text": "x", "messages": ask(number), "chosen": chosen, "rejected": rejected}
    return row | {"source": f"pairs.jsonl:{number}"}


def judged(number: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"{('A dog', 'It is')[number % 3 > 0]}{' mat' * (number % 4)}."}
    return {"text": "x", "messages": [*ask(number), answer], "label": number % 3 > 0, "source": f"kto.jsonl:{number}"}


def examples(loss: str) -> list[dict[str, Any]]:
    return [judged(i) if loss == "kto" else pair(i) for i in range(12)]


def rows_of(task: preference.Task, given: list[dict[str, Any]] | None = None) -> Pairs:
    shards = Documents(examples(task.config.loss) if given is None else given, task.encode)
    return task.rows(shards, 0)


@cache
def network(seed: int = 1) -> Network:
    model = catalog.load("models", "gpt")
    sizes = model.TINY | {"vocab_size": make().tokenizer.vocab_size, "context": 160}
    return create(model, model.Config(**sizes), "language", seed=seed).double().eval()


def ready(loss: str, **given: Any) -> tuple[preference.Task, Pairs]:
    """A task and its rows, with the reference of another network, so that ratios are not zero."""
    task = make(loss, **given)
    rows = rows_of(task)
    if task.needs_reference:
        rows.reference = task.prepare(network(2), rows)
    return task, rows


@pytest.fixture(params=sorted(preference.STRENGTHS))
def loss(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.smoke
def test_only_the_answers_are_compared() -> None:
    task = make()
    rows = rows_of(task)
    assert len(rows) == 12
    for number in (0, 5):
        parts = list(apart([rows.row(number, 0)]))
        texts = [task.tokenizer.decode(part["labels"][part["labels"] != IGNORED].tolist()) for part in parts]
        assert texts == [pair(number)["chosen"] + "<|im_end|>", pair(number)["rejected"] + "<|im_end|>"]
        asked = [task.tokenizer.decode(part["input_ids"].tolist()) for part in parts]
        assert all(text.startswith(f"<|im_start|>user\nWhat is {number}?<|im_end|>\n") for text in asked)
        assert rows.lengths[number] == sum(len(part["input_ids"]) for part in parts)
        assert [int(part["side"]) for part in parts] == [CHOSEN, REJECTED]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is 1?", "chosen": "A cat.", "rejected": "A dog."},
        {"instruction": "What is", "input": "", "output": "", "chosen": "A cat.", "rejected": "A dog."},
        {"conversations": [{"from": "human", "value": "What?"}],
         "chosen": {"from": "gpt", "value": "A cat."}, "rejected": {"from": "gpt", "value": "A dog."}},
        {"messages": ask(1), "chosen": [*ask(1), {"role": "assistant", "content": "A cat."}],
         "rejected": [*ask(1), {"role": "assistant", "content": "A dog."}]},
        {"chosen": [*ask(1), {"role": "assistant", "content": "A cat."}],
         "rejected": [*ask(1), {"role": "assistant", "content": "A dog."}]},
    ],
)  # fmt: skip
def test_pairs_are_read_in_every_layout(row: dict[str, Any]) -> None:
    task = make()
    (one, other) = apart([rows_of(task, [{"text": "x", **row}]).row(0, 0)])
    assert task.tokenizer.decode(one["labels"][one["labels"] != IGNORED].tolist()) == "A cat.<|im_end|>"
    assert task.tokenizer.decode(other["labels"][other["labels"] != IGNORED].tolist()) == "A dog.<|im_end|>"
    assert task.shown({"text": "x", **row}).startswith("What")


def test_a_judged_answer_stands_beside_a_stranger_s() -> None:
    task = make("kto")
    rows = rows_of(task)
    own, stranger = apart([rows.row(3, 0)])
    assert (int(own["side"]), int(stranger["side"])) == (REJECTED, STRANGE)
    assert int(next(apart([rows.row(4, 0)]))["side"]) == CHOSEN
    question = task.tokenizer.decode(stranger["input_ids"].tolist())
    assert "What is 3?" in question and question.endswith("assistant\nIt is.") and "mat" not in question
    assert task.tokenizer.decode(stranger["labels"][stranger["labels"] != IGNORED].tolist()) == "It is.<|im_end|>"
    assert all(rows.lengths[i] == len(rows.row(i, 0)["input_ids"]) for i in range(len(rows)))


def reward(task: preference.Task, part: dict[str, Any]) -> Tensor:
    """What the loss compares of one sequence, straight from the logits."""
    batch = _alone(part)
    logits = network()(batch).logits[0].log_softmax(-1)
    labels = batch["labels"][0]
    kept = labels != IGNORED
    log_prob = logits[kept].gather(1, labels[kept][:, None]).sum()
    found: Tensor = log_prob - float(part["reference"]) if task.needs_reference else log_prob / kept.sum()
    return found


def _alone(part: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(part[key])[None] for key in ("input_ids", "labels")}


def test_the_loss_is_the_papers(loss: str) -> None:
    task, rows = ready(loss)
    batch = task.collate([rows.row(i, 0) for i in range(6)])
    summed, count = task.loss(network()(batch), batch)["loss"]
    rewards = torch.stack([reward(task, part) for i in range(6) for part in apart([rows.row(i, 0)])]).view(6, 2)
    first, second = rewards.unbind(1)
    good = torch.tensor([examples(loss)[i].get("label", True) for i in range(6)])
    each = {
        "dpo": lambda: losses.dpo(first, second, beta=0.1),
        "ipo": lambda: losses.ipo(first, second, beta=0.1),
        "orpo": lambda: losses.orpo(first, second, beta=0.1),
        "simpo": lambda: losses.simpo(first, second, beta=2.0, gamma=1.0),
        "kto": lambda: losses.kto(first, good, second.mean().clamp(min=0), beta=0.1),
    }[loss]()
    assert int(count) == 6 and float(summed.detach()) == pytest.approx(float(each.sum().detach()), rel=1e-5)


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_neither_layout_nor_cut_of_a_batch_changes_a_gradient(loss: str, is_flat: bool, micro_batches: int) -> None:
    task, rows = ready(loss)
    if task.needs_whole_batch and micro_batches > 1:
        pytest.skip("the reference point of KTO is a mean over the batch; the task asks for it whole")
    mine = _gradients(task, Loader(rows, lambda r: task.collate(r, flat=is_flat), 0, 6, micro_batches))
    whole = _gradients(task, Loader(rows, task.collate, 0, 6))
    for one, other in zip(mine, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def _gradients(task: preference.Task, loader: Loader) -> list[Tensor]:
    net = network()
    net.zero_grad()
    batches = [loader.micro_batch(1, micro)[0] for micro in range(loader.micro_batches)]
    total = sum(task.counts(batch)["loss"] for batch in batches)
    assert total == 6
    for batch in batches:
        summed, count = task.loss(net(batch), batch)["loss"]
        assert int(count) == task.counts(batch)["loss"]
        (summed / total).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_the_reference_is_the_start_model_s_and_makes_the_first_ratios_zero() -> None:
    task = make()
    rows = rows_of(task)
    net = network()
    net.train()
    reference = task.prepare(net, rows, batch_rows=5, flat=True)
    assert net.training, "put back as it was"
    net.eval()
    assert reference.shape == (12, 2) and (reference < 0).all()
    assert reference == pytest.approx(task.prepare(net, rows, batch_rows=12), rel=1e-6)
    rows.reference = reference
    batch = task.collate([rows.row(i, 0) for i in range(4)])
    summed, count = task.loss(net(batch), batch)["loss"]
    assert float(summed.detach()) / int(count) == pytest.approx(0.693147, abs=1e-4)


def test_without_a_reference_nothing_is_trained_by_mistake(loss: str) -> None:
    """The loss is no number, which stops a run; what memory a step takes can be measured all the same."""
    task = make(loss)
    rows = rows_of(task)
    batch = task.collate([rows.row(0, 0)])
    summed, count = task.loss(network()(batch), batch)["loss"]
    assert bool(summed.detach().isnan()) == task.needs_reference and int(count) == 1
    (answer,) = task.answers(network()(batch), batch)
    assert answer["margins"] == answer["margins"] and answer["examples"] == 1, "answers can be compared by likelihood"


def test_learning_widens_the_margin(loss: str) -> None:
    task = make(loss)
    rows = rows_of(task)
    model = catalog.load("models", "gpt")
    net = create(model, network().config, "language", seed=5)  # type: ignore[arg-type]
    if task.needs_reference:
        rows.reference = task.prepare(net, rows)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    batch = task.collate([rows.row(i, 0) for i in range(12)])
    scores = []
    for _ in range(12):
        summed, count = task.loss(net(batch), batch)["loss"]
        optimizer.zero_grad()
        (summed / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals = {name: float(values.sum()) for name, values in task.scores(net(batch), batch).items()}
        scores.append({name: metric.of(totals) for name, metric in task.metrics.items()})
    assert scores[-1]["loss"] < scores[0]["loss"] and scores[-1]["margin"] > scores[0]["margin"]
    assert scores[-1]["accuracy"] >= 0.9
    answers = task.answers(net(batch), batch)
    found = [task.answer([one], example).answer for one, example in zip(answers, examples(loss), strict=True)]
    reported = {score.name: score.value for score in sums.scores(task.reported, found)}
    assert reported == pytest.approx({name: scores[-1][name] for name in ("accuracy", "margin")})
    assert task.answer([], examples(loss)[0]).answer == {"margins": 0, "right": 0, "examples": 0}
    assert {task.truth(example) for example in examples(loss)} <= {"chosen", "good", "bad"}


def test_one_sequence_alone_costs_nothing_and_counts_nothing() -> None:
    """Looking for the row that broke a step takes batches apart."""
    from groundup.data.layout import one_by_one

    task, rows = ready("dpo")
    batch = task.collate([rows.row(0, 0)], flat=True)
    for single in one_by_one(batch):
        total, count = task.loss(network()(single), single)["loss"]
        assert float(total.detach()) == 0 and int(count) == task.counts(single)["loss"] == 0


def test_examples_that_do_not_fit_are_counted() -> None:
    long = pair(1) | {"rejected": "A dog" + " no" * 90 + "."}
    rows = rows_of(make(), [pair(0), long])
    ledger = rows.ledger()
    assert len(rows) == 1 and rows.document_of(0) == 0
    assert (ledger.documents, ledger.rows, ledger.dropped, ledger.overlong, ledger.emptied) == (2, 1, 1, 1, 1)
    cut = rows_of(make(overlong="truncate"), [pair(0), long])
    assert len(cut) == 2 and cut.row(1, 0)["sizes"][1] == 70 and cut.ledger().cropped > 0
    with pytest.raises(DataError, match="the context cuts every answer off"):
        rows_of(make(context=8), [pair(0), pair(1)]).ledger().require_labels()


@pytest.mark.parametrize(
    ("loss", "row", "what"),
    [
        ("dpo", {"messages": ask(1), "chosen": "A cat."}, "has no 'rejected'"),
        ("dpo", {"messages": ask(1), "chosen": "A cat.", "rejected": ""}, "renders empty"),
        ("kto", {"messages": judged(1)["messages"]}, "label None in the column 'label'"),
        ("kto", {"messages": judged(1)["messages"], "label": "good"}, "neither true nor false"),
        ("kto", {"text": "x"}, "holds no chat"),
    ],
)
def test_a_bad_row_is_named(loss: str, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        make(loss).encode({"text": "x", "source": "p.jsonl:4", **row})
    assert caught.value.where == "p.jsonl:4" and caught.value.fix


def test_it_says_what_it_needs_and_goes_to_other_processes(loss: str) -> None:
    task = make(loss)
    assert task.needs_reference == (loss in ("dpo", "ipo", "kto")) and task.needs_whole_batch == (loss == "kto")
    assert pickle.loads(pickle.dumps(task)).encode(examples(loss)[2]) == task.encode(examples(loss)[2])
    assert task.choices["beta"] == preference.STRENGTHS[loss] and make(loss, beta=0.5).choices["beta"] == 0.5
    assert task.encoding["task"] == "preference"
    shown = Text.from_markup(task.render(rows_of(task).row(1, 0))).plain
    assert ("good:" if loss == "kto" else "chosen:") in shown and "What is 1?" in shown


def test_a_pair_of_equal_answers_is_left_out_and_counted() -> None:
    rows = rows_of(make(), [pair(0), pair(1) | {"rejected": pair(1)["chosen"]}, pair(2)])
    assert [rows.document_of(i) for i in range(len(rows))] == [0, 2]
    assert (rows.ledger().dropped, rows.ledger().emptied, rows.ledger().overlong) == (1, 0, 0)


def test_real_preferences_are_read(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("sft")
    for name, loss in (("dpo_zh_demo", "dpo"), ("instruction-data-with-preference", "dpo"), ("kto_en_demo", "kto")):
        with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            given = [{"text": "", **row} for row in json.load(file)[:25]]
        ledger = rows_of(make(loss, context=20000), given).ledger()
        assert (ledger.documents, ledger.dropped, ledger.cropped) == (25, 0, 0) and ledger.trained > 500
