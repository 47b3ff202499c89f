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
DATA = {"bert-zh": "lm/zh_songci.jsonl.gz"}
"""Recipes that need a data set, and which of ours stands for it."""


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
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
    kept = json.loads(results.kept_path(path.stem).read_text(encoding="utf-8"))
    assert results.header(kept) in path.read_text(encoding="utf-8"), "run `make results`"
    assert kept["settings"] == results.settings_digest(load(path)), "the recipe was changed: run `make results`"
