"""Tables: columns are told by what they hold, measured on training rows only, and read alike everywhere after."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundup
from groundup import catalog
from groundup.config import dump, named, parse
from groundup.data.loader import Loader
from groundup.data.packing import IGNORED
from groundup.data.sample import Documents
from groundup.data.tables import LARGEST, MOST_CATEGORIES, Moments
from groundup.errors import DataError
from groundup.nn.network import create
from groundup.runner import run
from groundup.tasks import tabular

HOUSES = [
    {"area": str(40 + 5 * i), "rooms": 1 + i % 4, "heating": ["gas", "oil", ""][i % 3], "garden": i % 2 == 0,
     "year": None if i in (2, 5) else 1900 + i, "label": ["cheap", "dear"][i > 6]}
    for i in range(14)
]  # fmt: skip


def rows(given: list[dict[str, Any]] = HOUSES, **changes: Any) -> list[dict[str, Any]]:
    return [{"text": "", "id": i, "source": f"houses.csv:{i + 2}"} | row | changes for i, row in enumerate(given)]


def section(**given: Any) -> tabular.Config:
    config, mistakes = parse(tabular.Config, given)
    assert config is not None and mistakes == []
    return config


def task(given: list[dict[str, Any]] | None = None, **keys: Any) -> tabular.Task:
    return tabular.Task(tabular.settle(section(**keys), given if given is not None else rows()))


def features(of: tabular.Task, row: dict[str, Any]) -> dict[str, float]:
    return dict(zip(of.vector.names, of.vector(row).tolist(), strict=True))


def test_columns_are_told_by_what_they_hold() -> None:
    found = task()
    assert found.vector.names == [
        *("area", "rooms", "garden", "year", "year is missing"),
        *("heating = gas", "heating = oil", "heating = missing"),
    ]
    assert found.known == {"n_features": 8}
    assert found.labels == ["cheap", "dear"]
    only = task(numbers=["area"])
    assert only.vector.columns == ["area", "heating"], "numbers that are named are all the numbers there are"
    as_classes = task(categories=["rooms"])
    assert as_classes.vector.columns == ["area", "garden", "year", "rooms"]
    assert as_classes.vector.table.categories == {"rooms": ("1", "2", "3", "4")}
    assert "year" not in task(leave_out=["year"]).vector.columns


def test_a_missing_number_is_the_mean_with_a_sign_that_it_is_missing() -> None:
    found = task()
    missing, there = features(found, rows()[2]), features(found, rows()[3])
    assert (missing["year"], missing["year is missing"]) == (0.0, 1.0)
    assert there["year is missing"] == 0.0 and there["year"] != 0.0
    never_before = features(found, rows()[3] | {"area": "?"})
    assert never_before["area"] == 0.0, "no training row lacks it, so there is no sign for it"
    with pytest.raises(DataError, match=r"houses.csv:4: no value in the column 'year'"):
        task(missing="refuse").encode(rows()[2])


def test_a_missing_category_is_a_value_of_its_own_and_an_unknown_one_is_none() -> None:
    found = task()
    assert features(found, rows()[2])["heating = missing"] == 1.0
    unknown = features(found, rows()[0] | {"heating": "wood"})
    assert [value for name, value in unknown.items() if name.startswith("heating")] == [0.0, 0.0, 0.0]
    same = [
        features(task(categories=["rooms"]), rows()[0] | {"rooms": cell}) for cell in (3, 3.0, "3", " 3 ", np.int64(3))
    ]
    assert all(one == same[0] and one["rooms = 3"] == 1.0 for one in same)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"area": "about 40"}, "the cell 'about 40' in the column 'area' is no number"),
        ({"area": "inf"}, "the cell 'inf' in the column 'area' is infinite"),
        ({"area": -float("inf")}, "the cell -inf in the column 'area' is infinite"),
        ({"area": 10 * LARGEST}, "in the column 'area' is infinite, or nearly"),
        ({"area": 1e60}, "in the column 'area' is too large to be computed with"),
        ({"area": "1_000"}, "the cell '1_000' in the column 'area' is no number"),
        ({"area": [40]}, r"the cell \[40\] in the column 'area' is no number"),
        ({"heating": ["gas"]}, "the cell in the column 'heating' is a list"),
        ({"label": "huge"}, "the label 'huge' is not among those of the training rows"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_by_file_row_and_column(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as raised:
        task().encode(rows()[4] | row)
    assert raised.value.where == "houses.csv:6"


def test_a_row_without_a_column_is_told_which_one() -> None:
    row = {name: value for name, value in rows()[0].items() if name != "rooms"}
    with pytest.raises(DataError, match="the row has no column 'rooms'"):
        task().encode(row)
    without_label = {name: value for name, value in rows()[0].items() if name != "label"}
    assert task().encode(without_label)["label"] == [IGNORED]


def test_training_rows_that_make_no_table_are_refused() -> None:
    nearly = rows([row | {"area": "1O0" if i == 9 else str(i)} for i, row in enumerate(HOUSES)])
    with pytest.raises(DataError, match=r"houses.csv:11: the column 'area' holds numbers, but here '1O0'"):
        tabular.settle(section(), nearly)
    assert "area" in tabular.settle(section(categories=["area"]), nearly).table.categories
    with pytest.raises(DataError, match=r"houses.csv:5: the cell 'x' in the column 'area' is no number"):
        tabular.settle(section(numbers=["area"]), [*rows()[:3], rows()[3] | {"area": "x"}])
    streets = rows([{"street": f"street {i}", "label": i % 2} for i in range(MOST_CATEGORIES + 1)])
    with pytest.raises(DataError, match="more than 50 different texts in the column 'street'"):
        tabular.settle(section(), streets)
    with pytest.raises(DataError, match="the rows have no column to tell anything by"):
        tabular.settle(section(), rows([{"label": "a"}, {"label": "b"}]))
    with pytest.raises(DataError, match="only the label 'cheap'"):
        tabular.settle(section(), rows(HOUSES[:5]))
    with pytest.raises(DataError, match=r"houses.csv:2: the cell in the column 'area' is a list"):
        tabular.settle(section(), rows(HOUSES, area=[1]))
    with pytest.raises(DataError, match=r"houses.csv:2: the cell 'cheap' in the column 'label' is no number"):
        tabular.settle(section(kind="number"), rows())
    with pytest.raises(DataError, match=r"houses.csv:4: no number in the column 'year'"):
        tabular.settle(section(kind="number", label="year"), rows())


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"numbers": ["a"], "categories": ["a"]}, "among `numbers` and among `categories`"),
        ({"numbers": ["label"]}, "a model that reads it has nothing to predict"),
        ({"kind": "number", "one_score": True}, "for kind: one"),
        ({"loss": "hinge", "balance": True}, "belong to cross_entropy"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], what: str) -> None:
    config, mistakes = parse(tabular.Config, keys)
    assert config is None
    assert any(what in mistake.what for mistake in mistakes)


def test_means_and_deviations_are_those_of_all_rows_however_many_come() -> None:
    numbers = np.random.default_rng(0).normal(1e6, 3, 10_001)
    moments = Moments()
    for number in numbers:
        moments.add(float(number))
    assert moments.settled() == pytest.approx((numbers.mean(), numbers.std()), rel=1e-10)


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_what_is_settled_travels_as_plain_data(kind: str) -> None:
    labels = {"one": "cheap", "several": ["cheap", "new"], "number": "12.5"}
    given = rows() if kind == "one" else rows([row | {"label": labels[kind]} for row in HOUSES])
    settled = tabular.settle(section(kind=kind), given)
    again = named("tasks", json.loads(json.dumps(dump(settled))))
    assert again == settled
    for other in (tabular.Task(again), pickle.loads(pickle.dumps(tabular.Task(settled)))):
        assert np.array_equal(other.encode(given[3])["features"], tabular.Task(settled).encode(given[3])["features"])
        assert other.truth(given[3]) == {"one": "cheap", "several": ["cheap", "new"], "number": 12.5}[kind]


@pytest.mark.parametrize("keys", [{}, {"one_score": True}, {"kind": "several"}, {"kind": "number", "label": "area"}])
def test_every_kind_of_label_has_losses_scores_and_answers(keys: dict[str, Any]) -> None:
    given = rows([row | {"label": [row["label"], "any"]} for row in HOUSES]) if "kind" in keys else rows()
    given = rows() if keys.get("kind") == "number" else given
    keys = keys | {"leave_out": ["label"]} if keys.get("label") else keys
    made = task(given, **keys)
    model = catalog.load("models", "mlp")
    network = create(model, model.Config(n_features=made.known["n_features"]), made.head, outputs=made.outputs, seed=1)
    found = made.rows(Documents(given, made.encode), 0)
    assert found.ledger().trained == len(given)
    counted = [line[0] for line in found.ledger().table()]
    assert counted == ["", "documents", "dropped", "rows", "trained", "masked"], "a row of numbers has no tokens"
    assert made.render(found.row(0, 0)) and made.shown(given[0]).startswith("area: 40" if "label" not in keys else "")
    whole = Loader(found, made.collate, 0, len(given)).micro_batch(0, 0)[0]
    one_by_one = made.collate([found.row(i, 0) for i in range(len(given))])
    assert sorted(whole["features"].sum(1).tolist()) == sorted(one_by_one["features"].sum(1).tolist())
    outputs = network.eval()(one_by_one)
    total, count = made.loss(outputs, one_by_one)["loss"]
    assert made.counts(one_by_one) == {"loss": int(count)} and torch.isfinite(total)
    scores = made.scores(outputs, one_by_one)
    assert all(metric.of({name: float(value.sum()) for name, value in scores.items()}) >= 0
               for metric in made.metrics.values())  # fmt: skip
    said = made.answers(outputs, one_by_one)
    for answer, row in zip(said, given, strict=True):
        made.answer([answer], row)
        made.truth(row)


def recipe(task_keys: dict[str, Any], **training: Any) -> dict[str, Any]:
    columns = ["x", "y", "colour", "label", "price"]
    prepare = {"source": [{"paths": f"{split}.csv", "split": split, "text_field": [], "keep": columns}
                          for split in ("train", "validation", "test")]}  # fmt: skip
    train = {"data": "rows", "task": {"name": "tabular"} | task_keys, "model": {"name": "mlp", "widths": [8]},
             "batch_rows": 16, "optimizer": {"name": "adam", "lr": 0.02},
             "precision": "fp32", "matmul": "torch", "threads": 1}  # fmt: skip
    stages = {
        "rows": {"prepare": prepare},
        "model": {"train": train | training},
        "report": {"evaluate": {"of": "model", "data": "rows.test", "bootstrap": 100}},
    }
    return {"groundup": 1, "name": "small", "seed": 3, "stages": stages}


def write_tables(folder: Path) -> dict[str, list[list[str]]]:
    """Points that x tells apart, in three files; what is far out or new is in those for validation and test only."""
    draw = np.random.default_rng(5)
    found = {}
    for split, count in (("train", 80), ("validation", 20), ("test", 30)):
        lines = []
        for _ in range(count):
            x, y = draw.normal(size=2)
            colour = str(draw.choice(["red", "blue"] if split == "train" else ["red", "mauve"]))
            shift = 0 if split == "train" else 100
            lines.append([f"{x:.4f}", f"{y + shift:.4f}", colour, "in" if x > 0 else "out", f"{1000 + 50 * x:.3f}"])
        text = "\n".join(",".join(line) for line in [["x", "y", "colour", "label", "price"], *lines])
        (folder / f"{split}.csv").write_text(text + "\n", encoding="utf-8")
        found[split] = lines
    return found


def test_a_table_runs_from_its_file_to_its_report_and_no_row_of_a_test_is_measured(tmp_path: Path) -> None:
    tables = write_tables(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps(recipe({"leave_out": ["price"]}, epochs=12)), encoding="utf-8")
    made = run(tmp_path / "small.yaml")
    table = made["model"].manifest["choices"]["task"]["table"]
    ys = np.array([float(line[1]) for line in tables["train"]])
    assert (table["means"]["y"], table["deviations"]["y"]) == pytest.approx((ys.mean(), ys.std()))
    assert table["categories"] == {"colour": ["blue", "red"]}
    assert not (made["model"].path / "tokenizer.json").exists()
    report = made["report"].json("report.json")
    rivals = [rival["name"] for rival in report["rivals"]]
    assert rivals == ["the commonest label", "logistic regression", "linear SVM", "decision tree",
                      "gradient boosting", "k nearest neighbours"]  # fmt: skip
    assert report["leakage"]["exact"] + report["leakage"]["near"] == 0
    model = groundup.load(made["model"].path)
    answers = model.predict([{"x": 2.0, "y": 0.1, "colour": "red"}, {"x": "-2", "y": None, "colour": "mauve"}])
    assert [answer["label"] for answer in answers] == ["in", "out"]
    with pytest.raises(DataError, match="row 0: the cell 'far' in the column 'x' is no number"):
        model.predict([{"x": "far", "y": 0, "colour": "red"}])


def test_rows_without_a_label_train_nothing_and_do_no_harm(tmp_path: Path) -> None:
    tables = write_tables(tmp_path)
    lines = [",".join([*line[:3], "" if i % 4 == 0 else line[3], line[4]]) for i, line in enumerate(tables["train"])]
    (tmp_path / "train.csv").write_text("\n".join(["x,y,colour,label,price", *lines]) + "\n", encoding="utf-8")
    (tmp_path / "small.yaml").write_text(json.dumps(recipe({"leave_out": ["price"]}, steps=4)), encoding="utf-8")
    made = run(tmp_path / "small.yaml")
    assert made["model"].manifest["choices"]["task"]["labels"] == ["in", "out"]
    assert {rival["trained_rows"] for rival in made["report"].json("report.json")["rivals"]} == {60}


def test_a_number_is_answered_in_the_unit_of_its_column(tmp_path: Path) -> None:
    write_tables(tmp_path)
    keys = {"kind": "number", "label": "price", "leave_out": ["label", "y"]}
    (tmp_path / "small.yaml").write_text(json.dumps(recipe(keys, epochs=30)), encoding="utf-8")
    made = run(tmp_path / "small.yaml")
    report = made["report"].json("report.json")
    assert {"the mean", "ridge regression", "gradient boosting"} <= {rival["name"] for rival in report["rivals"]}
    low, high = groundup.load(made["model"].path).predict([{"x": -1, "colour": "red"}, {"x": 1, "colour": "red"}])
    assert (low["number"], high["number"]) == pytest.approx((950, 1050), abs=20)
