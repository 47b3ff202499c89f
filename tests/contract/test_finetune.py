"""Fine-tuning as a user meets it: labelled rows and a base model in, a model that others open out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from groundup import catalog, generation
from groundup import plan as planning
from groundup.artifact import Artifact, Store, open_artifact
from groundup.checkpoints import hugging_face
from groundup.config import named
from groundup.data import layout
from groundup.data.corpus import Corpus
from groundup.data.mixing import Mixed
from groundup.data.sample import Documents
from groundup.errors import DataError, Mistakes, UserError
from groundup.nn.network import create
from groundup.recipe import load
from groundup.runner import run
from groundup.text import vocabulary
from groundup.text.pipelines import BERT_SPECIALS, SPECIALS
from groundup.text.tokenizers import Tokenizer
from groundup.training.arithmetic import Arithmetic
from groundup.training.objective import Objective, forward, shares

GOOD, BAD = "a fine and moving film", "a dull and empty film"
RECIPE: dict[str, Any] = {
    "groundup": 1,
    "name": "tiny",
    "seed": 3,
    "stages": {
        "rows": {
            "prepare": {
                "source": {"paths": ["rows.jsonl"], "keep": ["label", "second"]},
                "clean": {"exact_duplicates": False},
                "split": {"validation": 0.2, "test": 0.2},
            }
        },
        "model": {
            "finetune": {
                "data": "rows",
                "from": "base",
                "task": {"name": "text_classification"},
                "epochs": 10,
                "batch_rows": 16,
                "optimizer": {"name": "adamw", "lr": 5e-3},
                "precision": "fp32",
                "matmul": "torch",
                "threads": 1,
            }
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with labelled rows and a small BERT of random weights in `base/`."""
    words = ["plot", "cast", "score", "scene", "role", "story", "tone", "pace"]
    rows = []
    for i in range(200):
        text = f"{(BAD, GOOD)[i % 2]} with {words[i % 8]} and {words[i // 8 % 8]} " + "so " * (i % 7) + f"number {i}"
        rows.append({"text": text, "label": ("bad", "good")[i % 2], "second": words[i % 8]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    engine, _ = vocabulary.learn(vocabulary.Wish("wordpiece", 200, min_frequency=1), lambda: [r["text"] for r in rows])
    tokenizer = Tokenizer.of_roles(engine, BERT_SPECIALS)
    model = catalog.load("models", "bert")
    config = model.Config(
        **model.TINY | {"vocab_size": tokenizer.vocab_size, "context": 48}, dropout=0.1, initialiser_std=0.1
    )
    network = create(model, config, "masked_language", seed=1)
    hugging_face.save(tmp_path / "base", network, generation={"pad_token_id": tokenizer.pad_id})
    tokenizer.save(tmp_path / "base")
    return tmp_path


def recipe(folder: Path, **changes: Any) -> Path:
    written = json.loads(json.dumps(RECIPE))
    written["stages"]["model"]["finetune"] |= {"from": "./base"} | changes
    (folder / "tiny.yaml").write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    return folder / "tiny.yaml"


def made(folder: Path, **changes: Any) -> Artifact:
    return run(recipe(folder, **changes))["model"]


def test_a_model_learns_and_transformers_opens_it_with_its_labels(folder: Path) -> None:
    artifact = made(folder)
    assert artifact.metrics["validation_accuracy"] > 0.9
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(artifact.path)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(artifact.path)
    batch = tokenizer([GOOD, BAD], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert theirs(**batch).logits.argmax(-1).tolist() == [1, 0]
    assert artifact.manifest["choices"]["task"]["labels"] == ["bad", "good"]
    card = (artifact.path / "README.md").read_text()
    assert "tuned from the weights of another model" in card
    assert "random weights" not in card
    assert "AutoModelForSequenceClassification" in card


@pytest.mark.smoke
def test_packing_padding_and_accumulation_give_the_same_loss(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "base")
    section = named("tasks", {"name": "text_classification", "labels": ["bad", "good"]})
    task = catalog.load("tasks", "text_classification").Task(section, tokenizer, 48)
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()][:24]
    rows = task.rows(Documents(lines, task.encode), 0)
    network = hugging_face.load(folder / "base", "sequence", labels=task.labels, outputs=2, seed=0)
    objective = Objective(task.loss, task.loss, task.counts)
    step = forward(network, objective, Arithmetic("cpu", "fp32", "torch"))

    def loss_and_gradient(parts: list[list[int]], *, flat: bool) -> tuple[float, torch.Tensor]:
        network.zero_grad()
        batches = [task.collate([rows.row(i, 0) for i in part], flat=flat) for part in parts]
        share = shares([task.counts(batch) for batch in batches], "cpu")
        total = 0.0
        for batch in batches:
            loss, _ = step(dict(batch), share)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    whole, gradient = loss_and_gradient([list(range(24))], flat=False)
    cuts = [[list(range(24))], [list(range(7)), list(range(7, 24))], [[i] for i in range(24)]]
    for parts in cuts:
        for flat in (True, False):
            loss, found = loss_and_gradient(parts, flat=flat)
            assert abs(loss - whole) < 1e-6
            torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)
    assert {"attention_mask"} <= set(layout.padded([rows.row(0, 0)], fill={}))


@pytest.mark.parametrize("kind", ["several", "number"])
def test_lists_of_labels_and_numbers_are_learned_too(folder: Path, kind: str) -> None:
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line["label"] = ["good", "film"][i % 2 :] if kind == "several" else 0.25 + (i % 2) / 2
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    artifact = made(folder, task={"name": "text_classification", "kind": kind}, epochs=20)
    described = artifact.json("config.json")
    assert described["problem_type"] == {"several": "multi_label_classification", "number": "regression"}[kind]
    assert artifact.metrics["validation_loss"] < 0.2
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(artifact.path)
    assert theirs.config.num_labels == {"several": 2, "number": 1}[kind]


def test_a_pair_of_texts_is_one_input(folder: Path) -> None:
    task = {"name": "text_classification", "pair": "second"}
    artifact = made(folder, task=task, steps=2, epochs=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(artifact.path)
    built = catalog.load("tasks", "text_classification").Task(
        named("tasks", task | {"labels": ["bad", "good"]}), Tokenizer.load(artifact.path), 48
    )
    encoded = built.encode({"text": GOOD, "second": "a score", "label": "good"})
    theirs = tokenizer(GOOD, "a score")
    assert encoded["input_ids"] == theirs["input_ids"]
    assert encoded["token_type_ids"] == theirs["token_type_ids"]


def test_a_base_fine_tuned_on_other_labels_gets_a_new_head(folder: Path) -> None:
    first = made(folder)
    same = hugging_face.load(first.path, "sequence", labels=["bad", "good"], outputs=2, seed=9)
    turned = hugging_face.load(first.path, "sequence", labels=["good", "bad"], outputs=2, seed=9)
    assert torch.equal(
        same.state_dict()["classifier.weight"], hugging_face.load(first.path).state_dict()["classifier.weight"]
    )
    assert not torch.equal(turned.state_dict()["classifier.weight"], same.state_dict()["classifier.weight"])
    assert torch.equal(
        turned.state_dict()["bert.embeddings.word_embeddings.weight"],
        same.state_dict()["bert.embeddings.word_embeddings.weight"],
    )


def test_long_rows_are_cut_or_left_out_and_counted(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "base")
    lines = [{"text": GOOD, "label": "good"}, {"text": "so " * 60, "label": "bad", "source": "x:2"}]
    for overlong, rows, cropped in (("truncate", 2, 14), ("drop", 1, 0)):
        section = named("tasks", {"name": "text_classification", "labels": ["bad", "good"], "overlong": overlong})
        task = catalog.load("tasks", "text_classification").Task(section, tokenizer, 48)
        ledger = task.rows(Documents(lines, task.encode), 0).ledger()
        assert (ledger.rows, ledger.cropped) == (rows, cropped)


MISTAKES = [
    ({"label": "lable"}, "the corpus has no column 'lable'", "did you mean 'label'"),
    ({"labels": ["bad", "good", "ugly"]}, "labels that never occur in the training rows: 'ugly'", "task.labels"),
    ({"labels": ["bad", "fine"]}, "'fine'", "found: bad, good"),
    ({"kind": "number"}, "is no number", "kind: number"),
    ({"text": "texts"}, "no text in the column 'texts'", "did you mean 'text'"),
]


@pytest.mark.parametrize(("task", "what", "fix"), MISTAKES)
def test_mistakes_in_a_task_are_explained(folder: Path, task: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        made(folder, task={"name": "text_classification"} | task)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_a_label_that_training_never_showed_names_its_row(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "late.jsonl").write_text(json.dumps({"text": "a new kind", "label": "goood", "second": "x"}))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    written = json.loads(recipe(folder).read_text())
    source = {"paths": ["rows.jsonl"], "keep": ["label", "second"], "split": "train"}
    late = {"paths": ["late.jsonl"], "keep": ["label", "second"], "split": "validation"}
    written["stages"]["rows"]["prepare"] |= {"source": [source, late], "split": {}}
    (folder / "tiny.yaml").write_text(json.dumps(written))
    with pytest.raises(DataError, match="'goood' is not among those of the training rows") as caught:
        run(folder / "tiny.yaml")
    assert caught.value.where == "late.jsonl:1"
    assert "did you mean 'good'" in caught.value.fix


def test_plan_tells_extent_padding_and_rate(folder: Path) -> None:
    run(recipe(folder), ["rows"])
    plan = planning.make(load(recipe(folder, optimizer={"name": "adamw", "lr": 0.1})), Store(), effort="quick")
    found = plan.steps["model"].forecast
    lines = dict(found.lines)
    assert "examples" in lines["steps"]
    assert lines["padding"].startswith("none: examples lie end to end")
    assert any("optimizer.lr 0.1 is outside" in warning for warning in found.warnings)
    assert "label: " in found.sample


def test_mistakes_that_need_no_rows_are_found_by_plan(folder: Path) -> None:
    run(recipe(folder), ["rows"])
    path = recipe(folder, compile=True, micro_batch_rows=99, max_length=4096)
    with pytest.raises(Mistakes) as caught:
        planning.make(load(path), Store(), effort="quick")
    text = str(caught.value)
    assert "micro_batch_rows 99 is more than the 16 rows" in text
    assert "torch.compile makes a graph for every shape" in text
    assert "max_length 4096 is longer than the model's context of 48" in text


def test_the_test_split_is_not_read_while_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe(folder), ["rows"])
    opened: list[str] = []
    files: Callable[[Corpus, str], list[str]] = Corpus._files

    def watched(self: Corpus, split: str) -> list[str]:
        opened.append(split)
        return files(self, split)

    monkeypatch.setattr(Corpus, "_files", watched)
    for path in (open_artifact("runs/tiny/rows").path / "test").glob("*.parquet"):
        path.chmod(0o000)
    made(folder, steps=2, epochs=None)
    assert opened
    assert "test" not in opened


def test_every_seed_is_trained_and_measured_together(folder: Path) -> None:
    written = json.loads(recipe(folder, seeds=[1, 2], steps=20, epochs=None).read_text())
    written["stages"]["report"] = {"evaluate": {"of": "model", "data": "rows.test", "bootstrap": 100}}
    (folder / "tiny.yaml").write_text(json.dumps(written))
    made = run(folder / "tiny.yaml")
    assert set(made) == {"rows", "model", "model@2", "report"}
    assert made["model"].digest != made["model@2"].digest
    report = made["report"].json("report.json")
    assert [one["seed"] for one in report["runs"]] == [1, 2]
    assert [one["digest"] for one in report["runs"]] == [made["model"].digest, made["model@2"].digest]
    assert report["over_runs"]["accuracy"]["n"] == 2
    assert {rival["name"] for rival in report["rivals"]} >= {"TF-IDF + linear SVM"}
    lines = (made["report"].path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == report["test"]["count"]


def test_python_predicts_texts_rows_and_tables(folder: Path) -> None:
    artifact = made(folder)
    model = generation.load(artifact.path)
    found = model.predict([GOOD, {"text": BAD}])
    assert [one["label"] for one in found] == ["good", "bad"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)
    assert artifact.json("calibration.json")["temperature"] == artifact.metrics["temperature"]
    assert model.predict([]) == []
    with pytest.raises(UserError, match="a list of rows"):
        model.predict(GOOD)
    with pytest.raises(DataError, match="no text in the column 'text'") as caught:
        model.predict([{"texts": GOOD}])
    assert caught.value.where == "row 0"


def test_what_belongs_to_no_class_is_told_by_a_bar_from_the_validation_rows(folder: Path) -> None:
    strange = [{"text": f"train {i} leaves", "label": "oos", "second": "none"} for i in range(60)]
    rows = (folder / "rows.jsonl").read_text(encoding="utf-8")
    (folder / "rows.jsonl").write_text("\n".join([rows, *map(json.dumps, strange)]), encoding="utf-8")
    written = json.loads(recipe(folder, task={"name": "text_classification", "out_of_scope": "oos"}).read_text())
    written["stages"]["report"] = {"evaluate": {"of": "model", "data": "rows.test", "bootstrap": 100}}
    (folder / "tiny.yaml").write_text(json.dumps(written), encoding="utf-8")
    found = run(folder / "tiny.yaml")
    model, bar = generation.load(found["model"].path), found["model"].json("calibration.json")["bar"]
    given = model.predict([GOOD, strange[0]])
    assert given[0]["label"] == "good"
    assert {one["label"] == "oos" for one in given if max(one["probabilities"].values()) < bar} <= {True}
    report = found["report"].json("report.json")
    scores = {"model": report["scores"]} | {rival["name"]: rival["scores"] for rival in report["rivals"]}
    assert scores["model"]["out_of_scope_recall"]["estimate"] > 0
    assert scores["TF-IDF + logistic regression"]["out_of_scope_recall"] > 0
    assert scores["TF-IDF + linear SVM"]["out_of_scope_recall"] > 0


def test_a_teacher_labels_rows_that_a_student_learns_from(folder: Path) -> None:
    pool = [{"text": (GOOD if i % 3 else BAD) + f" and piece {i}", "id": i} for i in range(60)]
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, pool)))
    written = json.loads(recipe(folder).read_text())
    stages = written["stages"]
    stages["pool"] = {"prepare": {"source": {"paths": ["pool.jsonl"]}, "clean": {"exact_duplicates": False}}}
    stages["guessed"] = {"label": {"of": "model", "data": "pool", "confidence": 0.8, "most_per_label": 10}}
    stages["student"] = {"finetune": stages["model"]["finetune"] | {"more": "guessed", "steps": 2, "epochs": None}}
    (folder / "tiny.yaml").write_text(json.dumps(written))
    found = run(folder / "tiny.yaml")
    guessed = Corpus(found["guessed"])
    rows = list(guessed.documents("train"))
    assert 0 < len(rows) <= 20
    assert all(row["confidence"] >= 0.8 for row in rows)
    right = sum((row["label"] == "good") == row["text"].startswith(GOOD) for row in rows)
    assert right / len(rows) > 0.9
    plain = run(recipe(folder, steps=2, epochs=None))["model"]
    assert found["student"].digest != plain.digest


def test_a_share_of_old_rows_is_mixed_in(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "base")
    section = named("tasks", {"name": "text_classification", "labels": ["bad", "good"]})
    task = catalog.load("tasks", "text_classification").Task(section, tokenizer, 48)
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    new, old = (task.rows(Documents(part, task.encode), 0) for part in (lines[:90], lines[90:]))
    mixed = Mixed(new, old, share=0.1, seed=5)
    assert len(mixed) == 100
    assert sum(mixed.is_second(i) for i in range(len(mixed))) == 10
    assert mixed.lengths.tolist() == [len(mixed.row(i, 0)["input_ids"]) for i in range(100)]
    assert mixed.ledger().trained == 100
    assert len(Mixed(new, old, share=None, seed=5)) == 200
    assert Mixed(new, old, share=0.1, seed=6).taken.tolist() != mixed.taken.tolist()


def test_a_decoder_goes_on_learning_documents(folder: Path) -> None:
    """Continued pretraining: the task of documents, from pretrained weights, with a share of older text."""
    texts = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    engine, _ = vocabulary.learn(vocabulary.Wish("bpe", 300, min_frequency=1), lambda: [row["text"] for row in texts])
    tokenizer = Tokenizer.of_roles(engine, SPECIALS["bpe"])
    model = catalog.load("models", "gpt")
    config = model.Config(**model.TINY | {"vocab_size": tokenizer.vocab_size})
    hugging_face.save(folder / "gpt", create(model, config, "language", seed=1))
    tokenizer.save(folder / "gpt")
    written = json.loads(recipe(folder).read_text())
    section = {"data": "rows", "more": "rows.test", "more_share": 0.2, "from": "./gpt", "task": "language_modeling"}
    written["stages"]["model"]["finetune"] |= section | {"max_length": 32, "epochs": 2}
    (folder / "tiny.yaml").write_text(json.dumps(written))
    artifact = run(folder / "tiny.yaml")["model"]
    assert artifact.metrics["validation_loss"] < 5
    assert transformers.AutoModelForCausalLM.from_pretrained(artifact.path).config.vocab_size == config.vocab_size
