"""Recommending from events to report: rows, losses, places among all items, rivals, and what users get wrong."""

from __future__ import annotations

import itertools
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundup
from groundup import catalog
from groundup.config import named, parse
from groundup.data.histories import NEGATIVES, NO_TARGET, SEEN, TARGET, Histories
from groundup.data.loader import Loader
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.evaluation import classical_recommenders
from groundup.evaluation.metrics import recommending
from groundup.nn.network import Network, create
from groundup.nn.shape import filled
from groundup.runner import run

ITEMS = "abcdefgh"
USERS = ["abcdef", "bcdefg", "cdefgha", "defgh", "efghabcd", "ab"]
"""What each user chose; what comes next is mostly the next letter."""


def users(targets: int = 0) -> list[dict[str, Any]]:
    """Rows as a source of events gives them, with so many targets; every item has a group beside it."""
    found = []
    for number, chosen in enumerate(USERS):
        there = max(1, len(chosen) - targets)
        groups = [["vowel"] if item in "ae" else ["rest", item] for item in chosen]
        row = {"user": f"u{number}", "items": list(chosen[:there]), "targets": list(chosen[there:]), "group": groups}
        found.append(row | {"text": chosen, "source": f"events.csv:{number}", "id": number})
    return found


def clicks() -> list[dict[str, Any]]:
    rows = [(u, i, n, (u + i) % 3 == 0) for n, (u, i) in enumerate((u, i) for u in range(4) for i in range(5))]
    return [
        {"user": f"u{u}", "item": f"i{i}", "age": float(n), "label": ["no", "yes"][yes], "stars": 2 + 3 * yes,
         "text": f"{u} {i}", "source": f"clicks.csv:{n}", "id": n}
        for u, i, n, yes in rows
    ]  # fmt: skip


@cache
def made(name: str, model: str, **chosen: Any) -> tuple[Any, Network]:
    module = catalog.load("tasks", name)
    section, mistakes = parse(module.Config, dict(chosen))
    assert section is not None, mistakes
    settled = module.settle(section, users() if name == "next_item" else clicks())
    assert named("tasks", settled.dump()) == settled, "what was settled travels in the manifest"
    task = module.Task(settled, None, 4 if name == "next_item" else 1)
    file = catalog.load("models", model)
    sizes = {k: v for k, v in file.TINY.items() if k not in ("vocab_size", "item_features", "n_entries", "n_columns")}
    sizes |= {"context": 4} if "context" in sizes else {}
    config = filled(file.Config(**sizes, initialiser_std=0.3), task.known)
    return task, create(file, config, task.head, outputs=task.outputs, seed=1).eval()


def rows_of(task: Any, rows: list[dict[str, Any]], seed: int = 0, *, held_out: bool = False) -> Histories:
    found: Histories = task.rows(Documents(rows, task.encode), seed, held_out=held_out)
    return found


NEXT = [
    ("sasrec", "softmax"),
    ("sasrec", "binary"),
    ("sasrec", "in_batch"),
    ("two_tower", "in_batch"),
    ("rnn", "softmax"),
]


@pytest.mark.parametrize(("model", "loss"), NEXT)
@torch.no_grad()
def test_layouts_and_cuts_change_no_loss(model: str, loss: str) -> None:
    """GRU4Rec is `rnn` with this task; in_batch compares the examples of a whole batch, so that it is not cut."""
    task, network = made("next_item", model, loss=loss)
    assert task.needs_whole_batch == (loss == "in_batch") and task.head == network.head_kind and task.packs
    assert set(task.metrics) <= set(catalog.load("tasks", "next_item").METRICS)
    rows = rows_of(task, users())
    made_rows = [rows.row(i, 3) for i in range(len(rows))]
    found = set()
    for cut in (len(made_rows),) if task.needs_whole_batch else (1, 3, len(made_rows)):
        for flat in (True, False):
            parts = [task.collate(made_rows[at : at + cut], flat=flat) for at in range(0, len(made_rows), cut)]
            losses = [task.loss(network(part), part)["loss"] for part in parts]
            assert [task.counts(part)["loss"] for part in parts] == [int(count) for _, count in losses]
            found.add(round(float(sum(total for total, _ in losses) / sum(count for _, count in losses)), 4))
    assert len(found) == 1


def test_every_item_but_the_first_is_trained_once_an_epoch() -> None:
    task, _ = made("next_item", "sasrec")
    rows = rows_of(task, users())
    pairs: dict[int, list[tuple[int, int]]] = {}
    for index in range(len(rows)):
        row = rows.row(index, 0)
        assert len(row["input_ids"]) == rows.lengths[index] <= task.context
        both = zip(row["input_ids"].tolist(), row["labels"].tolist(), strict=True)
        pairs.setdefault(rows.document_of(index), []).extend(both)
    for number, chosen in enumerate(USERS):
        numbers = [ITEMS.index(item) + 1 for item in chosen]
        assert sorted(pairs[number]) == sorted(itertools.pairwise(numbers))
    ledger = rows.ledger()
    assert ledger.trained == sum(len(chosen) - 1 for chosen in USERS) and ledger.masked == ledger.dropped == 0
    assert ledger.table()[3] == ["items", f"{sum(map(len, USERS))}", "", "in all documents"]
    assert sum(rows.bytes_of(i) for i in range(len(rows))) == pytest.approx(sum(map(len, USERS)))


def test_held_out_rows_hold_only_what_came_before_each_target() -> None:
    task, _ = made("next_item", "sasrec")
    rows = rows_of(task, users(targets=2), held_out=True)
    found = [(rows.document_of(i), rows.row(i, 0)) for i in range(len(rows))]
    of_first = [row for user, row in found if user == 0]
    assert [row["input_ids"].tolist() for row in of_first] == [[1, 2, 3, 4], [2, 3, 4, 5]], "the newest, up to context"
    assert [row[SEEN].tolist() for row in of_first] == [[1, 2, 3, 4], [1, 2, 3, 4, 5]], "all that came before"
    assert [int(row[TARGET]) for row in of_first] == [5, 6]
    assert [row["labels"].tolist() for row in of_first] == [[-100, -100, -100, 5], [-100, -100, -100, 6]]
    assert rows.ledger().trained == len(found) == 2 * 5 + 1
    strange = [users()[0] | {"targets": ["z"]}, users()[1] | {"targets": None}]
    rows = rows_of(task, strange, held_out=True)
    assert [int(rows.row(i, 0)[TARGET]) for i in (0, 1)] == [0, NO_TARGET] and rows.ledger().trained == 0


def test_negatives_follow_from_seed_epoch_and_row_and_are_never_chosen_items() -> None:
    task, _ = made("next_item", "sasrec", loss="binary", negatives=3)
    rows, again, other = rows_of(task, users(), 5), rows_of(task, users(), 5), rows_of(task, users(), 6)
    drawn = {}
    for index in reversed(range(len(rows))):
        for epoch in (0, 1):
            row = rows.row(index, epoch)
            drawn[index, epoch] = row[NEGATIVES].tolist()
            assert row[NEGATIVES].shape == (len(row["labels"]), 3)
            assert np.array_equal(again.row(index, epoch)[NEGATIVES], row[NEGATIVES])
            own = {ITEMS.index(item) + 1 for item in USERS[rows.document_of(index)]}
            assert len(own) == len(ITEMS) or not own & set(np.ravel(row[NEGATIVES]).tolist())
    assert drawn[0, 0] != drawn[0, 1] and drawn[0, 0] != other.row(0, 0)[NEGATIVES].tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_make_the_same_batches(workers: int) -> None:
    task, _ = made("next_item", "sasrec", loss="binary")
    rows = rows_of(task, users())
    plain, ahead = Loader(rows, task.collate, 3, 4), Loader(rows, task.collate, 3, 4, workers=workers)
    for step in (0, 1, 2, 9, 10):
        one, other = plain.micro_batch(step, 0)[0], ahead.micro_batch(step, 0)[0]
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    ahead.close()


@pytest.mark.parametrize("seen", ["leave_out", "keep"])
@pytest.mark.parametrize("model", ["sasrec", "two_tower"])
@torch.inference_mode()
def test_targets_are_ranked_among_all_items(model: str, seen: str) -> None:
    """Against sorting the scores of one user after the other, computed alone."""
    task, network = made("next_item", model, seen=seen)
    rows = rows_of(task, users(targets=2), held_out=True)
    batch = task.collate([rows.row(i, 0) for i in range(len(rows))], flat=True)
    said = task.answers(network(batch), batch)
    sums = task.scores(network(batch), batch)
    for index, answer in enumerate(said):
        row = rows.row(index, 0)
        scores = network({"input_ids": torch.tensor(row["input_ids"])[None]}).logits[0, -1].tolist()
        left_out = set(row[SEEN].tolist()) if seen == "leave_out" else set()
        open_items = [item for item in range(1, len(ITEMS) + 1) if item not in left_out]
        ranked = sorted(open_items, key=lambda item: -scores[item])
        assert answer["best"] == [ITEMS[item - 1] for item in ranked]
        target = int(row[TARGET])
        assert answer["place"] == ([ranked.index(target), 1] if target in ranked else [len(ITEMS), 1])
        gain = 1 / np.log2(ranked.index(target) + 2) if target in ranked else 0.0
        assert float(sums["gain"][index]) == pytest.approx(gain)
    examples = users(targets=2)
    found = {
        place: [said[i] for i in range(len(rows)) if rows.document_of(i) == place] for place in range(len(examples))
    }
    for example, answer in zip(examples, task.answer_all(found, examples), strict=True):
        assert len(answer.answer["places"]) == len(task.truth(example)) == len(answer.answer["best"])
        assert answer.answer["items"] == len(ITEMS)
    assert task.answer(found[0], examples[0]).answer == found[0][-1]["best"]
    assert task.shown(examples[0]) == "u0: a, b, c, d" and task.render(rows.row(0, 0)).endswith("next: e[/]")


def test_the_towers_of_items_read_their_features() -> None:
    task, network = made("next_item", "two_tower", features=("group",))
    assert task.config.described is not None and len(task.config.described) == len(ITEMS)
    vowel = task.config.described[0]
    assert task.config.described[ITEMS.index("e")] == vowel != task.config.described[1]
    assert network.config.item_features == ((), *task.config.described)  # type: ignore[attr-defined]


def test_a_task_survives_the_way_to_another_process() -> None:
    for task, rows in (
        (made("next_item", "sasrec")[0], users()),
        (made("click_prediction", "factorisation_machine")[0], clicks()),
    ):
        again = pickle.loads(pickle.dumps(task))
        one, other = again.encode(rows[0]), task.encode(rows[0])
        assert all(np.array_equal(one[key], other[key]) for key in other)
        assert set(task.encoding) >= {"task", "version"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"items": []}, "nothing tells what comes next"),
        ({"items": "abc"}, "is no list of items"),
        ({"items": [["a"]]}, "is no list of items"),
        ({"targets": "a"}, "'targets' is no list of items"),
    ],
)
def test_a_history_that_cannot_be_read_is_named(row: dict[str, Any], sentence: str) -> None:
    task, _ = made("next_item", "sasrec")
    with pytest.raises(DataError, match=sentence) as caught:
        task.encode(users()[0] | row)
    assert "events.csv:0" in str(caught.value)


def test_rows_that_teach_nothing_are_refused_before_training() -> None:
    module = catalog.load("tasks", "next_item")
    with pytest.raises(DataError, match="no column 'films'"):
        module.settle(module.Config(items="films"), users())
    with pytest.raises(DataError, match="1 different items"):
        module.settle(module.Config(), [users()[0] | {"items": ["a", "a"]}])
    with pytest.raises(DataError, match="no list beside the 6 items"):
        module.settle(module.Config(features=("year",)), users())
    task, _ = made("next_item", "sasrec")
    with pytest.raises(DataError, match="no trained labels"):
        rows_of(task, [users()[0] | {"items": ["a"]}]).ledger().require_labels()
    with pytest.raises(DataError, match="no item in the column 'targets'"):
        task.truth(users()[0])


@torch.inference_mode()
def test_clicks_are_entries_of_one_table_and_rare_values_share_the_unknown_one() -> None:
    task, network = made("click_prediction", "factorisation_machine", numbers=("age",))
    rows = [*clicks(), clicks()[0] | {"user": "new", "item": None, "age": None, "label": None}]
    entries = [task.entries(row) for row in rows]
    # user: unknown and 4; item: unknown and 5; age.
    assert task.known == {"n_entries": 12, "n_columns": 3}
    assert entries[0] == ([1, 6, 11], [1.0, 1.0, pytest.approx(-9.5 / np.std(np.arange(20)))])
    assert entries[-1] == ([0, 5, 11], [1.0, 1.0, 0.0])
    shards = Documents(rows, task.encode)
    split = task.rows(shards, 0)
    one_by_one = task.collate([split.row(i, 0) for i in range(len(split))])
    together = split.batch(np.arange(len(split)), np.zeros(len(split), np.int64))
    assert all(torch.equal(one_by_one[key], together[key]) for key in together)
    assert together["label"].tolist()[-1] == -100 and split.ledger().trained == 20
    total, count = task.loss(network(together), together)["loss"]
    logits, label = network(together).logits[:-1, 0], together["label"][:-1]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, label.float(), reduction="sum")
    assert int(count) == 20 == task.counts(together)["loss"]
    torch.testing.assert_close(total, expected)
    answer = task.answer(task.answers(network(together), together)[:1], rows[0])
    assert sum(answer.probabilities) == pytest.approx(1) and answer.answer in ("no", "yes")
    assert task.truth(rows[0]) == "yes" and task.shown(rows[0]) == "user: u0, item: i0, age: 0.0"
    assert task.render(split.row(0, 0)).endswith("label: yes[/]")
    rare, _ = made("click_prediction", "factorisation_machine", rare=5)
    assert rare.known["n_entries"] == 2 + 4 and rare.entries(rows[0])[0] == [1, 5]


def test_a_rating_becomes_a_click_from_a_bar_on() -> None:
    module = catalog.load("tasks", "click_prediction")
    settled = module.settle(module.Config(label="stars", at_least=4), clicks())
    task = module.Task(settled)
    assert settled.labels == ("no", "yes")
    assert [task.truth(row) for row in clicks()] == [row["label"] for row in clicks()]


@pytest.mark.parametrize(
    ("section", "row", "sentence"),
    [
        ({}, {"label": "perhaps"}, "one_score is for two classes, and there are 3"),
        ({"label": "stars", "at_least": 4}, {"stars": "many"}, "'many' in the column 'stars' is no number"),
        ({"numbers": ("age",)}, {"age": "old"}, "'old' in the column 'age' is no number"),
        ({"columns": ("user", "film")}, {}, "no column 'film'"),
        ({}, {"item": ["a"]}, "is a list, not a single value"),
    ],
)
def test_clicks_that_cannot_be_read_are_named(section: dict[str, Any], row: dict[str, Any], sentence: str) -> None:
    module = catalog.load("tasks", "click_prediction")
    with pytest.raises(DataError, match=sentence):
        module.settle(module.Config(**section), [*clicks(), clicks()[0] | row])


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"columns": ["item"]}, "at least two"),
        ({"columns": ["item", "item"]}, "named twice"),
        ({"columns": ["item", "label"]}, "nothing to predict"),
        ({"one_score": False}, "leave out `one_score`"),
    ],
)
def test_columns_that_do_not_fit_are_explained(section: dict[str, Any], sentence: str) -> None:
    assert sentence in parse(catalog.load("tasks", "click_prediction").Config, section)[1][0].what


def test_rivals_count_training_rows_alone_and_rank_the_whole_catalogue() -> None:
    options = {"catalogue": list(ITEMS)}
    train, test = users(targets=2), [row | {"items": list("ab"), "targets": ["h"]} for row in users()[:1]]
    popular, nearest = classical_recommenders.recommenders(train, users(targets=1), test, **options)
    counts = {item: sum(item in row["items"] for row in train) for item in ITEMS}
    ranked = sorted((item for item in ITEMS if item not in "ab"), key=lambda item: (-counts[item], item))
    above = sum(counts[item] > counts["h"] for item in ranked)
    tied = sum(counts[item] == counts["h"] for item in ranked)
    assert popular.answers == [{"places": [[above, tied]], "best": [ranked], "items": len(ITEMS)}]
    assert popular.name == "popularity" and popular.trained_rows == len(train)
    assert nearest.name == "item-kNN" and set(nearest.details) == {"neighbours", "shrinkage", "validation_ndcg_at_10"}
    # The likeness of two items, by hand: common users over the root of both counts.
    shrinkage, k = nearest.details["shrinkage"], nearest.details["neighbours"]
    assert k is None or k >= len(ITEMS)
    together = {i: {j: sum(i in r["items"] and j in r["items"] for r in train) for j in ITEMS} for i in ITEMS}

    def alike(i: str, j: str) -> float:
        return together[i][j] / ((together[i][i] * together[j][j]) ** 0.5 + shrinkage) if together[i][j] else 0.0

    scores = {j: alike("a", j) + alike("b", j) for j in ranked}
    expected = sorted(ranked, key=lambda item: (-round(scores[item], 5), item))
    assert nearest.answers[0]["best"][0] == expected
    kept, _ = classical_recommenders.recommenders(train, [], test, leave_out_seen=False, **options)
    assert set("ab") <= set(kept.answers[0]["best"][0])


def test_fewer_neighbours_are_each_items_own_nearest() -> None:
    alike = classical_recommenders._cosine(np_matrix().T @ np_matrix(), 0.0)
    nearest = classical_recommenders._nearest(alike, 1)
    assert (nearest.getnnz(axis=1) <= 1).all()
    assert np.array_equal(np.asarray(nearest.todense()).max(1), np.asarray(alike.todense()).max(1))


def np_matrix() -> Any:
    return classical_recommenders._matrix([[ITEMS.index(item) for item in chosen] for chosen in USERS], len(ITEMS))


def test_rivals_of_clicks_know_rates_and_weights() -> None:
    task, _ = made("click_prediction", "factorisation_machine")
    found = classical_recommenders.of_events(task, clicks()[:15], clicks()[15:], clicks())
    assert [rival.name for rival in found] == ["the rate of all", "popularity", "logistic regression"]
    rate, popular, _ = ([row[1] for row in rival.probabilities or ()] for rival in found)
    assert rate == [pytest.approx(5 / 15)] * 20
    prior, item = found[1].details["prior"], [row for row in clicks()[:15] if row["item"] == "i0"]
    own = sum(row["label"] == "yes" for row in item)
    assert popular[0] == pytest.approx((own + prior * 5 / 15) / (len(item) + prior))


def test_from_events_to_report_and_prediction(tmp_path: Path) -> None:
    """A letter follows the one before it: after a few epochs the network beats popularity by far."""
    random = np.random.default_rng(0)
    lines = ["user,item,time,stars"]
    for user in range(60):
        first = int(random.integers(26))
        chosen = [chr(97 + (first + step) % 26) for step in range(int(random.integers(6, 14)))]
        lines += [f"u{user},{item},{day},{5 if item < 'm' else 1}" for day, item in enumerate(chosen)]
    (tmp_path / "events.csv").write_text("\n".join(lines), encoding="utf-8")
    source = {"kind": "interactions", "paths": "events.csv", "user": "user", "item": "item", "time": "time"}
    training = {"batch_rows": 16, "precision": "fp32", "optimizer": {"name": "adamw", "lr": 0.01}, "device": "cpu"}
    stages = {
        "histories": {"prepare": {"source": source, "split": {"by": "last"}}},
        "next": {"train": training | {"data": "histories", "task": "next_item", "epochs": 25,
                 "model": {"name": "sasrec", "d_model": 16, "context": 8, "dropout": 0.0}}},
        "report": {"evaluate": {"of": "next", "data": "histories.test", "bootstrap": 100}},
        "stars": {"prepare": {"source": source | {"row": "event", "value": "stars"},
                  "split": {"by": "time", "time": "time", "validation": "10%", "test": "10%"}}},
        "liking": {"train": training | {"data": "stars", "epochs": 20,
                   "task": {"name": "click_prediction", "label": "value", "at_least": 4},
                   "model": {"name": "factorisation_machine", "n_factors": 4}}},
        "liked": {"evaluate": {"of": "liking", "data": "stars.test", "bootstrap": 100}},
    }  # fmt: skip
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(json.dumps({"groundup": 1, "name": "letters", "stages": stages}), encoding="utf-8")
    artefacts = run(recipe)
    report = artefacts["report"].json("report.json")
    assert report["main_metric"] == "ndcg_at_10" and report["scores"]["recall_at_5"]["estimate"] > 0.9
    assert [rival["name"] for rival in report["rivals"]] == ["popularity", "item-kNN"]
    assert report["rivals"][0]["lead"]["low"] > 0
    cover = report["scores"]["coverage_at_10"]
    assert cover["low"] <= cover["estimate"] <= cover["high"]
    assert report["leakage"]["exact"] == 0
    liked = artefacts["liked"].json("report.json")
    assert liked["main_metric"] == "roc_auc" and liked["scores"]["roc_auc"]["estimate"] > 0.9
    assert {"log_loss", "calibration_error", "brier"} <= set(liked["scores"])
    assert "recall at 5" in artefacts["report"].file("report.md").read_text(encoding="utf-8").lower()
    model = groundup.load(artefacts["next"].path)
    (answer,) = model.predict([{"items": ["p", "q", "r"]}])
    assert answer["items"][0] == "s" and not {"p", "q", "r"} & set(answer["items"])
    (click,) = groundup.load(artefacts["liking"].path).predict([{"user": "u0", "item": "b"}])
    assert click["label"] == "yes"


def test_equal_scores_are_worth_what_guessing_is() -> None:
    scores = np.zeros((4, 50), np.float32)
    above, tied = recommending.places(scores, np.arange(4))
    assert above.tolist() == [0] * 4 and tied.tolist() == [50] * 4
    gain = recommending.expected(recommending.discounted(10), above, tied)
    assert gain == pytest.approx(recommending.chance(50, 10))
    assert recommending.expected(recommending.among(10), above, tied) == pytest.approx(0.2)
