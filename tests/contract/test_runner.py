"""A recipe runs what is not fresh, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup import plan
from groundup.artifact import Store, lock, open_artifact
from groundup.errors import UserError
from groundup.progress import Reporter
from groundup.recipe import load
from groundup.runner import run

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
      tokens: 2k
      batch_tokens: 256
  report:
    evaluate: {of: base, data: corpus.test, samples: 1, bootstrap: 100}
"""
STAGES = ["corpus", "words", "base", "report"]


class Recorder(Reporter):
    """Remembers which stages ran, and why."""

    def __init__(self) -> None:
        self.started: dict[str, str] = {}

    def start(self, stage: str, doing: str = "") -> None:
        self.started[stage] = doing


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, write_stories: Callable[[Path, int], None]) -> Path:
    """A folder in which the recipe has run once; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("GROUNDUP_STORE", raising=False)
        write_stories(Path("texts"), 40)
        Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
        assert list(run("recipe.yaml")) == STAGES
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("GROUNDUP_STORE")
    return copy


def started(text: str, **options: bool) -> dict[str, str]:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    recorder = Recorder()
    run("recipe.yaml", reporter=recorder, **options)
    return recorder.started


def test_what_is_fresh_is_not_redone(folder: Path) -> None:
    assert started(RECIPE) == {}


def test_editing_a_comment_or_the_layout_reruns_nothing(folder: Path) -> None:
    assert started("# a comment\n" + RECIPE.replace("tokens: 2k", "tokens:   2000   # two thousand")) == {}


def test_editing_how_work_is_done_reruns_nothing(folder: Path) -> None:
    edited = RECIPE.replace("batch_tokens: 256", "batch_tokens: 256\n      save_every: 3\n      keep_states: 5")
    assert started(edited.replace("split:", "workers: 1\n      split:")) == {}


def test_editing_tokens_reruns_that_stage_and_what_depends_on_it(folder: Path) -> None:
    text = RECIPE.replace("tokens: 2k", "tokens: 3k")
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    steps = plan.examine(load("recipe.yaml"), Store()).steps
    assert [steps[name].status for name in STAGES] == ["fresh", "fresh", "stale", "stale"]
    assert steps["base"].why == "tokens changed from 2000 to 3000"
    assert list(started(text)) == ["base", "report"]
    assert started(RECIPE) == {}, "the earlier result is still in the store"


def test_renaming_a_stage_reruns_nothing(folder: Path) -> None:
    renamed = RECIPE.replace("corpus", "books")
    assert started(renamed) == {}
    assert open_artifact("runs/tiny/books").kind == "corpus"


def test_a_changed_source_reruns_everything(folder: Path) -> None:
    Path("texts/00.txt").write_text("Another story altogether, told in quite other words.\n" * 20, encoding="utf-8")
    assert list(started(RECIPE)) == STAGES


def test_fresh_starts_anew_and_comes_to_the_same_bytes(folder: Path) -> None:
    before = {name: open_artifact(f"runs/tiny/{name}").digest for name in STAGES[:3]}
    assert list(started(RECIPE, fresh=True)) == STAGES
    assert {name: open_artifact(f"runs/tiny/{name}").digest for name in STAGES[:3]} == before


@pytest.mark.parametrize("damage", ["edit", "delete", "manifest"])
def test_a_damaged_artefact_is_noticed_and_redone(folder: Path, damage: str) -> None:
    words = open_artifact("runs/tiny/words")
    file = words.path / ("manifest.json" if damage == "manifest" else "tokenizer.json")
    if damage == "delete":
        file.unlink()
    else:
        file.write_text(file.read_text(encoding="utf-8").replace("a", "b", 1), encoding="utf-8")
    why = plan.examine(load("recipe.yaml"), Store()).steps["words"].why
    assert any(word in why for word in ("deleted", "edited", "digest mismatch", "unreadable"))
    assert list(started(RECIPE)) == ["words"], "its bytes come out the same, so nothing after it is stale"
    open_artifact("runs/tiny/words").verify(full=True)


def test_a_stage_can_be_run_alone_with_what_it_needs(folder: Path) -> None:
    shutil.rmtree(".groundup")
    recorder = Recorder()
    run("recipe.yaml", ["words"], reporter=recorder)
    assert list(recorder.started) == ["corpus", "words"]
    with pytest.raises(UserError, match="did you mean 'words'"):
        run("recipe.yaml", ["word"])


def test_two_runs_at_once_are_refused_with_the_pid(folder: Path) -> None:
    with lock(Path("runs/tiny/.lock"), what="x"), pytest.raises(UserError, match="already running, as process"):
        run("recipe.yaml")


def test_plan_runs_nothing_and_forecasts_every_pending_stage(folder: Path) -> None:
    shutil.rmtree(".groundup")
    made = plan.make(load("recipe.yaml"), Store(), effort="quick")
    assert [step.status for step in made.steps.values()] == ["missing"] * 4
    base = made.steps["base"].forecast
    assert base.estimated
    assert base.facts["parameters"] > 0
    assert not Path(".groundup/store/corpus").exists()
