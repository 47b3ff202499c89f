"""A search finds good settings, spends where it pays, and never looks at the test split."""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from groundup import config as sections
from groundup.artifact import Store
from groundup.errors import Interrupted, MissingExtra, StageFailed, UserError
from groundup.recipe import load
from groundup.search import Search, explore
from groundup.training.lr_finder import Finding, steepest, valley
from groundup.tuning import Outcome, find_lr, print_finding, print_outcome, shortened, tune

RECIPE = """\
groundup: 1
name: tiny
seed: 7
stages:
  corpus:
    prepare:
      source: {kind: text, paths: ["texts/*.txt"]}
      split: {validation: 10%, test: 10%}
  words:
    tokenize: {of: corpus, kind: bpe, vocab_size: 300}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: language_modeling
      model: {name: gpt, n_layers: 1, d_model: 16, n_heads: 2, context: 32}
      tokens: 20k
      batch_tokens: 512
      precision: fp32
      matmul: torch
      compile: false
  report:
    evaluate: {of: base, data: corpus.test, samples: 1, bootstrap: 100}
"""


def search(**given: Any) -> Search:
    found, mistakes = sections.parse(Search, {"stage": "base", **given})
    assert found is not None, mistakes
    return found


RATE = {"optimizer.lr": {"low": 1e-5, "high": 1e-1}}


class Bowl:
    """A score that is best at a rate of 1e-3, told more exactly the larger the budget."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], float]] = []

    def __call__(self, overrides: Sequence[str], budget: float) -> float:
        self.calls.append((list(overrides), budget))
        rate = float(dict(o.split("=", 1) for o in overrides)["p.optimizer.lr"])
        return (math.log10(rate) + 3) ** 2 + 0.01 / budget


@pytest.mark.parametrize(
    ("trials", "halving", "rounds"),
    [
        (9, {}, [(1 / 9, 9), (1 / 3, 3), (1.0, 1)]),
        (27, {}, [(1 / 9, 27), (1 / 3, 9), (1.0, 3)]),
        (8, {"factor": 2, "least": "5%"}, [(1 / 8, 8), (1 / 4, 4), (1 / 2, 2), (1.0, 1)]),
        (2, {}, [(1.0, 2)]),
        (5, None, [(1.0, 5)]),
    ],
)
def test_budgets_grow_as_trials_fall(trials: int, halving: Any, rounds: list[tuple[float, int]]) -> None:
    found = search(keys=RATE, trials=trials, halving=halving).rounds()
    assert [count for _, count in found] == [count for _, count in rounds]
    assert [budget for budget, _ in found] == pytest.approx([budget for budget, _ in rounds])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_best_setting_is_near_the_true_one(sampler: str) -> None:
    bowl = Bowl()
    trials = explore(search(keys=RATE, trials=27, sampler=sampler), bowl, prefix="p")
    assert trials[0].values["optimizer.lr"] == pytest.approx(1e-3, rel=1.5) and trials[0].budget == 1
    assert [budget for _, budget in bowl.calls].count(1.0) == 3 and len(bowl.calls) == 27 + 9 + 3
    assert [t.budget for t in trials] == sorted((t.budget for t in trials), reverse=True)
    assert trials[0].score < trials[1].score < trials[2].score
    again = explore(search(keys=RATE, trials=27, sampler=sampler), Bowl(), prefix="p")
    assert [t.overrides for t in again] == [t.overrides for t in trials], "the same seed draws the same"


def test_highest_is_best_where_that_is_asked_for() -> None:
    bowl = Bowl()
    trials = explore(search(keys=RATE, trials=9, best="highest", halving=None), bowl, prefix="p")
    assert trials[0].score == max(t.score for t in trials) > 0
    assert abs(math.log10(trials[0].values["optimizer.lr"]) + 3) > 1


def test_the_last_round_has_all_seeds() -> None:
    bowl = Bowl()
    trials = explore(search(keys=RATE, trials=3, seeds=3), bowl, prefix="p", seed=7)
    seeds = [overrides[-1] for overrides, budget in bowl.calls if budget == 1]
    assert seeds == ["p.seed=7", "p.seed=8", "p.seed=9"] and trials[0].spread == 0
    assert {overrides[-1] for overrides, budget in bowl.calls if budget < 1} == {"p.seed=7"}


def test_choices_and_whole_numbers_and_keys_of_the_recipe() -> None:
    wanted = {
        "adapter": [{"name": "lora", "rank": 4}, None],
        "schedule": ["linear", "cosine"],
        "stages.words.tokenize.vocab_size": {"low": 300, "high": 400, "whole": True},
    }
    seen: list[list[str]] = []

    def score(overrides: Sequence[str], budget: float) -> float:
        seen.append(list(overrides))
        return float(len(seen))

    explore(search(keys=wanted, trials=6, halving=None), score, prefix="stages.base.pretrain")
    written = {part for overrides in seen for part in overrides[:2]}
    assert written <= {
        'stages.base.pretrain.adapter={"name": "lora", "rank": 4}', "stages.base.pretrain.adapter=null",
        "stages.base.pretrain.schedule=linear", "stages.base.pretrain.schedule=cosine",
    }  # fmt: skip
    assert all(o[2].startswith("stages.words.tokenize.vocab_size=3") for o in seen if "=400" not in o[2])


def test_nothing_is_tried_twice() -> None:
    calls: list[str] = []

    def score(overrides: Sequence[str], budget: float) -> float:
        calls.append(overrides[0])
        return 1.0

    trials = explore(search(keys={"batch_rows": [8, 16, 32]}, trials=20, halving=None), score, prefix="p")
    assert sorted(calls) == ["p.batch_rows=16", "p.batch_rows=32", "p.batch_rows=8"] and len(trials) == 3


def test_a_trial_that_fails_is_told_and_the_search_goes_on() -> None:
    bowl = Bowl()

    def score(overrides: Sequence[str], budget: float) -> float:
        if len(bowl.calls) == 2:
            bowl.calls.append(([], 0))
            raise StageFailed("the loss is not finite")
        return bowl(overrides, budget)

    trials = explore(search(keys=RATE, trials=9), score, prefix="p")
    assert [t.failed for t in trials if t.failed] == ["the loss is not finite"] and trials[-1].failed
    text = io.StringIO()
    print_outcome(Console(file=text, width=120), Outcome(search(keys=RATE), trials))
    assert "the loss is not finite" in text.getvalue() and "--set p.optimizer.lr=" in text.getvalue()


def test_if_all_fail_the_first_error_is_raised() -> None:
    def score(overrides: Sequence[str], budget: float) -> float:
        raise UserError("no such key")

    with pytest.raises(UserError, match="no such key"):
        explore(search(keys=RATE, trials=3), score, prefix="p")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lr": {"low": 2, "high": 1}}, "must be below high"),
        ({"lr": {"low": 0, "high": 1}}, "has no logarithm"),
        ({"lr": [1]}, "at least 2"),
        ({}, "at least 1"),
    ],
)
def test_spaces_that_cannot_be_searched(keys: Any, said: str) -> None:
    _, mistakes = sections.parse(Search, {"stage": "base", "keys": keys})
    assert said in str(mistakes)


@pytest.fixture
def recipe(tmp_path: Path, write_stories: Callable[[Path, int], None]) -> Path:
    write_stories(tmp_path / "texts", 20)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stage": "bsae"}, "no stage 'bsae'"),
        ({"stage": "words"}, "trains nothing"),
        ({"metric": "loss"}, "cannot decide between trials"),
    ],
)
def test_what_cannot_be_tuned(given: dict[str, Any], said: str, recipe: Path) -> None:
    with pytest.raises(UserError, match=said):
        tune(recipe, search(keys=RATE, **given))


def test_the_test_split_is_out_of_reach(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("data: corpus\n", "data: corpus.test\n"))
    with pytest.raises(UserError, match="would read the test split") as caught:
        tune(recipe, search(keys=RATE))
    assert "tiny.yaml:13 (stages.base.pretrain.data)" in caught.value.where


def test_shorter_runs(recipe: Path) -> None:
    stage = load(recipe).stages["base"]
    assert shortened(stage, 0.25) == ["stages.base.pretrain.tokens=5000"] and shortened(stage, 1) == []
    by_epochs = load(recipe, ["stages.base.pretrain.tokens=null"]).stages["base"]
    assert shortened(by_epochs, 0.25) == ["stages.base.pretrain.epochs=0.25"]


def test_trials_are_runs_in_the_store(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = search(keys={"optimizer.lr": [1e-6, 1e-2, 3e-3]}, trials=3, halving={"least": "30%"})
    outcome = tune(recipe, wanted)
    assert outcome.lines[0].startswith("--set 'stages.base.pretrain.optimizer={"), "the recipe leaves it out"
    assert outcome.lines[1] in [f"--set stages.base.pretrain.optimizer.lr={rate}" for rate in (0.01, 0.003)]
    best = load(recipe, [shlex.split(line)[1] for line in outcome.lines]).stages["base"].config
    assert best.optimizer.lr == outcome.best.values["optimizer.lr"]  # type: ignore[attr-defined]
    assert outcome.trials[-1].values["optimizer.lr"] == 1e-6
    models = [a for a in Store().artifacts() if a.kind == "model"]
    assert len(models) == 3 + 1, "three short runs and a whole one"
    assert outcome.best.score in [a.metrics["validation_loss"] for a in models]
    notes = json.loads(Path("runs/tiny-tune/trials.json").read_text())
    assert len(notes) == 3 and not Path("runs/tiny").exists() and not Path("runs/tiny-tune/report").exists()
    monkeypatch.setattr("groundup.runner._make", lambda *_: pytest.fail("a finished trial is not run again"))
    assert tune(recipe, wanted).lines == outcome.lines


def test_an_interrupted_search_stops(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("groundup.runner._make", stop)
    with pytest.raises(Interrupted):
        tune(recipe, search(keys=RATE))


def test_a_learning_rate_is_found_for_a_stage(recipe: Path) -> None:
    finding, stage = find_lr(recipe, "base")
    assert stage.name == "base" and 1e-6 < finding.suggested < 0.5
    assert not [a for a in Store().artifacts() if a.kind == "model"], "nothing is kept of the run"
    with pytest.raises(UserError, match="trains nothing"):
        find_lr(recipe, "words")


def test_a_learning_rate_that_was_found_is_drawn(recipe: Path) -> None:
    rates = [10.0 ** (i / 10 - 6) for i in range(50)]
    losses = [1 / (1 + rate * 1e3) for rate in rates]
    finding = Finding(rates, losses, steepest(rates, losses), valley(rates, losses))
    text = io.StringIO()
    print_finding(Console(file=text, width=120), finding, load(recipe).stages["base"])
    assert (
        "1e-06" in text.getvalue()
        and f"--set stages.base.pretrain.optimizer.lr={finding.suggested:g}" in text.getvalue()
    )


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match="searching for settings needs the package 'optuna'") as caught:
        explore(search(keys=RATE), Bowl(), prefix="p")
    assert "groundup[tune]" in caught.value.fix
