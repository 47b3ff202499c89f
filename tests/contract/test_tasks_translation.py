"""Translation as a user meets it: two columns in, a model that transformers opens and that writes the same."""

from __future__ import annotations

import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from groundup import catalog, generation
from groundup import plan as planning
from groundup.artifact import Artifact, Store
from groundup.config import parse
from groundup.data import layout
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.nn.network import Network, create
from groundup.recipe import load
from groundup.runner import run
from groundup.tasks import translation
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn
from groundup.training.arithmetic import Arithmetic
from groundup.training.methods import Methods
from groundup.training.objective import Objective, forward, shares
from groundup.training.regularisers import REGULARISERS

WORDS = {"red": "rot", "green": "grün", "old": "alt", "new": "neu", "small": "klein"}
THINGS = {"house": "Haus", "dog": "Hund", "tree": "Baum", "车": "auto"}


def pair(i: int) -> dict[str, Any]:
    first, second = list(WORDS)[i % 5], list(WORDS)[i // 5 % 5]
    thing = list(THINGS)[i // 25 % 4]
    english = f"a {first} {second} {thing}" if i % 3 else f"the {thing} is {first}"
    german = f"{THINGS[thing]} , {WORDS[first]} und {WORDS[second]}" if i % 3 else f"{WORDS[first]} ist {THINGS[thing]}"
    return {"text": english, "en": english, "de": german, "source": f"pairs:{i}"}


ROWS = [pair(i) for i in range(0, 60, 3)] + [pair(i) for i in range(1, 40, 4)]


@cache
def tokenizer(kind: str = "bpe") -> Tokenizer:
    texts = [row[key] for row in ROWS for key in ("en", "de")]
    engine, _ = learn(Wish(kind, {"bpe": 310, "wordpiece": 60}[kind]), lambda: iter(texts))
    return Tokenizer(engine, Specials(**SPECIALS[kind]))


def make(context: int = 32, **given: Any) -> translation.Task:
    config, mistakes = parse(translation.Config, {"source": "en", "target": "de"} | given)
    assert config is not None and mistakes == []
    return translation.Task(translation.settle(config, ROWS), tokenizer(), context)


def network_for(task: translation.Task, seed: int = 1) -> Network:
    model = catalog.load("models", "encoder_decoder")
    sizes = {"vocab_size": task.tokenizer.vocab_size, "pad_id": task.pad_id, "initialiser_std": 0.3}
    return create(model, model.Config(**model.TINY | sizes), task.head, seed=seed).eval()


def rows_of(task: translation.Task, examples: list[dict[str, Any]] = ROWS) -> Any:
    return task.rows(Documents(examples, task.encode), 0)


@pytest.mark.smoke
def test_a_target_begins_with_padding_and_is_trained_to_its_end() -> None:
    task = make(label_smoothing=0.0)
    rows = rows_of(task)
    batch = task.collate([rows.row(i, 0) for i in range(2)])
    decode = task.tokenizer.decode
    assert decode(batch["input_ids"][0].tolist(), skip_special=True) == ROWS[0]["en"]
    assert decode(batch["decoder_input_ids"][0].tolist(), skip_special=True) == ROWS[0]["de"]
    labels = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    assert labels[-1] == task.end_id
    assert batch["decoder_input_ids"][0, : len(labels)].tolist() == [task.pad_id, *labels[:-1]]
    assert rows.lengths[0] == len(labels) + int(batch["attention_mask"][0].sum())
    assert rows.ledger().trained == sum(len(task.encode(row)["labels"]) for row in ROWS)
    shown = task.render(rows.row(0, 0))
    assert "the" in shown and "ist" in shown
    assert pickle.loads(pickle.dumps(task)).encode(ROWS[0]) == task.encode(ROWS[0])


@pytest.mark.smoke
def test_layouts_and_accumulation_give_the_same_loss() -> None:
    task = make()
    rows, network = rows_of(task), network_for(task)
    step = forward(network, Objective(task.loss, task.loss, task.counts), Arithmetic("cpu", "fp32", "torch"))

    def loss_and_gradient(parts: list[list[int]], *, flat: bool) -> tuple[float, torch.Tensor]:
        network.zero_grad()
        batches = [task.collate([rows.row(i, 0) for i in part], flat=flat) for part in parts]
        share = shares([task.counts(batch) for batch in batches], "cpu")
        total = 0.0
        for batch in batches:
            loss, _ = step(batch, share)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    whole, slope = loss_and_gradient([list(range(20))], flat=True)
    for parts in ([list(range(20))], [list(range(7)), list(range(7, 12)), list(range(12, 20))]):
        for flat in (True, False):
            again, other = loss_and_gradient(parts, flat=flat)
            assert abs(again - whole) < 1e-6
            torch.testing.assert_close(other, slope, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("flat", [True, False])
def test_each_pair_of_a_batch_stands_alone(flat: bool) -> None:
    task = make()
    rows, network = rows_of(task), network_for(task)
    batch = task.collate([rows.row(i, 0) for i in range(6)], flat=flat)
    together = task.scores(network(batch), batch)["nats"]
    alone = [task.scores(network(one), one)["nats"] for one in layout.one_by_one(batch)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-4, rtol=0)
    total, count = make(label_smoothing=0.0).loss(network(batch), batch)["loss"]
    assert float(total.detach()) == pytest.approx(float(together.sum()), rel=1e-5)
    assert int(count) == task.counts(batch)["loss"] == int((batch["labels"] >= 0).sum())


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_depend_on_the_source_alone(beams: int) -> None:
    """Whatever the layout, the batch, and whether the batch holds the right answers."""
    task = make(beam_size=beams, max_target_length=9)
    rows, network = rows_of(task), network_for(task)
    made = [rows.row(i, 0) for i in range(6)]
    alone = [task.answers(network(task.ask([row])), task.ask([row]))[0] for row in made]
    assert len({answer["text"] for answer in alone}) > 2
    for collate in (task.ask, task.collate):
        for flat in (True, False):
            batch = collate(made, flat=flat)
            found = task.answers(network(batch), batch)
            assert [answer["text"] for answer in found] == [answer["text"] for answer in alone]
            assert [a["score"] for a in found] == pytest.approx([a["score"] for a in alone], abs=1e-5)
    assert "labels" not in task.ask(made) and "decoder_input_ids" not in task.ask(made)


def test_pairs_too_long_are_left_out_or_cut_and_counted() -> None:
    lengths = [(len(e["input_ids"]), len(e["labels"])) for e in map(make().encode, ROWS)]
    short = 8
    fitting = [i for i, (source, target) in enumerate(lengths) if max(source, target) <= short]
    dropped = rows_of(make(context=short))
    assert 0 < len(fitting) < len(ROWS) and dropped.chosen.tolist() == fitting
    assert dropped.ledger().dropped == len(ROWS) - len(fitting)

    task = make(context=short, overlong="truncate")
    cut = rows_of(task)
    assert cut.ledger().cropped == sum(max(0, size - short) for both in lengths for size in both)
    longest = max(range(len(ROWS)), key=lambda i: lengths[i][1])
    row = cut.row(longest, 0)
    assert row["input_ids"][-1] == task.end_id and row["labels"][-1] != task.end_id and len(row["labels"]) == short
    assert len(task.rows(Documents(ROWS, make(context=short).encode), 0, held_out=True)) == len(ROWS)


def test_what_cannot_be_learned_is_named() -> None:
    with pytest.raises(DataError, match="no text in the column 'dee'") as caught:
        translation.settle(translation.Config(source="en", target="dee"), ROWS)
    assert "de" in caught.value.fix
    with pytest.raises(DataError, match="no text in the column 'de'") as caught:
        translation.settle(make().config, [ROWS[0], ROWS[1] | {"de": None, "source": "pairs:77"}])
    assert caught.value.where == "pairs:77"
    with pytest.raises(DataError, match="the end of a text"):
        translation.Task(make().config, tokenizer("wordpiece"), 32)
    with pytest.raises(DataError, match="no trained labels"):
        rows_of(
            make(), [{key: value for key, value in row.items() if key != "de"} for row in ROWS]
        ).ledger().require_labels()


def test_an_empty_source_is_answered_by_nothing() -> None:
    task = make()
    rows = rows_of(task, [*ROWS, ROWS[0] | {"en": ""}])
    assert len(rows) == len(ROWS)
    assert task.answer([], ROWS[0] | {"en": ""}).answer == ""
    assert task.encode({"en": "a red dog"})["labels"] == [-100]


RECIPE: dict[str, Any] = {
    "groundup": 1,
    "name": "toy",
    "seed": 3,
    "stages": {
        "sentences": {"prepare": {"source": {"kind": "text", "paths": ["all.txt"], "document": "line"}}},
        "pairs": {
            "prepare": {
                "source": {"kind": "aligned", "paths": ["pairs.en", "pairs.de"], "columns": ["en", "de"]},
                "split": {"validation": 0.1, "test": 0.1},
            }
        },
        "words": {"tokenize": {"of": "sentences", "vocab_size": 310}},
        "model": {
            "train": {
                "data": "pairs",
                "tokenizer": "words",
                "task": {"name": "translation", "source": "en", "target": "de", "beam_size": 3},
                "model": {"name": "encoder_decoder", "d_model": 48, "n_layers": 1, "d_ff": 96, "context": 24},
                "steps": 120,
                "batch_rows": 16,
                "optimizer": {"name": "adamw", "lr": 4e-3},
                "precision": "fp32",
                "matmul": "torch",
                "threads": 1,
            }
        },
        "report": {"evaluate": {"of": "model", "data": "pairs.test", "bootstrap": 200}},
    },
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pairs = [pair(i) for i in range(150)]
    for side in ("en", "de"):
        (tmp_path / f"pairs.{side}").write_text("\n".join(row[side] for row in pairs), encoding="utf-8")
    both = [row[side] for row in pairs for side in ("en", "de")]
    (tmp_path / "all.txt").write_text("\n".join(both), encoding="utf-8")
    (tmp_path / "toy.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")  # JSON is YAML
    return tmp_path / "toy.yaml"


def test_a_recipe_learns_to_translate_and_transformers_goes_on_with_it(recipe: Path) -> None:
    made = run(recipe)
    model, report = made["model"], made["report"].json("report.json")
    assert model.metrics["validation_loss"] < 1.0
    assert report["scores"]["bleu"]["estimate"] > 50 and "chrf" in report["scores"]
    assert any("word table" in str(rival) for rival in report["rivals"])
    opens_in_transformers(model, made["report"])
    lines = (made["report"].path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [(source_of(line), line["answers"][0]) for line in map(json.loads, lines)]
    rows = [*(source for source, _ in asked[:3]), *({"en": source} for source, _ in asked[3:]), ""]
    given = generation.load(model.path).predict(rows)
    assert [answer["text"] for answer in given] == [*(answer for _, answer in asked), ""]


def source_of(line: dict[str, Any]) -> str:
    return str(pair(int(line["id"].rpartition(":")[2]) - 1)["en"])


def opens_in_transformers(model: Artifact, report: Artifact) -> None:
    """MarianMTModel, started from our generation_config.json, gives the answers that evaluate wrote down."""
    theirs: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(model.path)
    generate: Any = theirs.generate
    cutter: Any = transformers.AutoTokenizer.from_pretrained(model.path)
    assert type(theirs) is transformers.MarianMTModel
    lines = (report.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        ids = cutter(source_of(line), add_special_tokens=False)["input_ids"]
        written = generate(torch.tensor([[*ids, cutter.eos_token_id]]), do_sample=False)[0]
        answer = cutter.decode(written, skip_special_tokens=True).strip()
        assert [answer] == line["answers"]


def test_plan_shows_a_pair_and_what_is_trained_of_it(recipe: Path) -> None:
    run(recipe, ["pairs", "words"])
    forecast = planning.make(load(recipe), Store(), effort="quick").steps["model"].forecast
    assert forecast.sample is not None and "trained" in forecast.sample
    lines = dict(forecast.lines)
    assert lines["steps"].startswith("120 of 16 examples") and "end to end" in lines["padding"]
    assert forecast.facts["parameters"] == 310 * 48 + 47_424


@pytest.mark.parametrize("name", ["r_drop", "fgm", "pgd"])
def test_regularisers_treat_each_side_of_a_pair(name: str) -> None:
    """Laying pairs out without padding changes nothing, though a source and its target differ in length."""
    task = make(label_smoothing=0.0)
    rows, network = rows_of(task), network_for(task).train()
    objective = Objective(task.loss, task.loss, task.counts)
    methods = Methods(regulariser=REGULARISERS[name]())
    step = methods.forward(network, objective, Arithmetic("cpu", "fp32", "torch"))
    found = []
    for flat in (True, False):
        batch = task.collate([rows.row(i, 0) for i in range(8)], flat=flat)
        loss, parts = step(batch, shares([methods.counts(objective, batch)], "cpu"))
        found.append(torch.stack([loss.detach(), *parts]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
