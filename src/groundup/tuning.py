"""Searching for better settings: a block `tune:` names keys of the recipe, and what each may be.

Each trial is a run of the recipe's own stage with overrides, so it lies in the store like any other: a
search that was interrupted finds its finished trials again. The score is a validation figure; the test
split is never read. For the learning rate alone there is a shorter way, `find_lr`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup import plan, runner
from groundup.artifact import Input, Store, write_whole
from groundup.config import Section, dump
from groundup.errors import UserError, nearest
from groundup.forecast import Known
from groundup.progress import Reporter, interruptible
from groundup.recipe import Recipe, Stage, load
from groundup.search import Search, Trial, explore, written

if TYPE_CHECKING:
    from rich.console import Console

    from groundup.training.lr_finder import Finding

STEPS = 100
"""Steps that a run for a learning rate takes at most."""
TRIALS_FILE = "trials.json"


@dataclass(frozen=True)
class Outcome:
    """The trials of a search, the best first."""

    search: Search
    trials: list[Trial]
    spelt: list[str] = field(default_factory=list)
    """Overrides that come first: sections which the recipe leaves out, or names only, written as mappings."""

    @property
    def best(self) -> Trial:
        """The best setting, of those that were run on the largest budget."""
        return self.trials[0]

    @property
    def lines(self) -> list[str]:
        """What to type to use it: one `--set KEY=VALUE` a key."""
        return [f"--set {shlex.quote(override)}" for override in [*self.spelt, *self.best.overrides]]

    def as_data(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return {"metric": self.search.metric, "best": self.lines, "trials": [t.as_data() for t in self.trials]}


def tune(
    path: str | Path, search: Search, *, overrides: Sequence[str] = (), reporter: Reporter | None = None
) -> Outcome:
    """Search for the settings of a stage of a recipe; trials are noted in `runs/RECIPE-tune/trials.json`.

    Raises UserError for a stage, key or metric that does not fit, or one that would read a test split; the
    first trial's error if none succeeds; Interrupted after a signal (run it again to go on).
    """
    recipe = load(path, overrides)
    stage = _checked(recipe, search)
    reporter = reporter or Reporter()
    spelt = _spelt_out(recipe, stage, search)
    prefix = f"stages.{stage.name}.{stage.kind}"
    own_seeds = [f"{prefix}.seeds=null"] if hasattr(stage.config, "seeds") else []  # trials have seeds of their own
    given = [*overrides, f"name={recipe.name}-tune", *own_seeds, *spelt]
    notes = plan.place(load(path, given), TRIALS_FILE)

    def score(setting: Sequence[str], budget: float) -> float:
        tried = load(path, [*given, *setting])
        shorter = shortened(tried.stages[stage.name], budget)
        made = runner.run(path, [stage.name], overrides=[*given, *setting, *shorter], reporter=reporter)
        figures = made[stage.name].metrics
        if search.metric not in figures:
            known = [name for name in figures if name.startswith("validation_")]
            raise UserError(f"the stage has no figure {search.metric!r}", fix=nearest(search.metric, known))
        return float(figures[search.metric])

    def note(trials: list[Trial]) -> None:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_whole(notes, json.dumps([trial.as_data() for trial in trials], indent=1, ensure_ascii=False))
        reporter.note(_said(trials[-1], search))

    found = explore(search, score, prefix=prefix, seed=stage.config.seed, note=note)
    return Outcome(search, found, spelt)


def find_lr(
    path: str | Path, stage_name: str, *, overrides: Sequence[str] = (), reporter: Reporter | None = None
) -> tuple[Finding, Stage]:
    """What a learning-rate finder reads off a short run of a stage on its training rows, and the stage.

    What the stage reads is made first where it is not fresh; of a large split, the first few thousand rows are
    looked at. Nothing is kept of the run. Raises UserError for a stage that does not train, StageFailed if the
    loss falls nowhere.
    """
    from groundup.training.lr_finder import find

    recipe = load(path, overrides)
    stage = _training(recipe, stage_name)
    reporter = reporter or Reporter()
    before = [target.stage for target in stage.inputs.values() if target.stage]
    if before:
        runner.run(path, before, overrides=overrides, reporter=reporter)
    current = plan.examine(recipe, Store())
    inputs = {key: Input(plan.opened(current, target), target.part) for key, target in stage.inputs.items()}
    planned = _planned(stage, inputs)
    # A run this short repays no compiling.
    choices = replace(planned.choices, compile=False)
    with interruptible():
        return find(planned.job, planned.settings, choices, steps=STEPS, reporter=reporter), stage


def _planned(stage: Stage, inputs: Mapping[str, Input]) -> Any:
    """The run of a training stage as it would begin, on as many of its rows as a plan looks at."""
    from groundup.data import sample
    from groundup.text.tokenizers import Tokenizer
    from groundup.training.settings import LabelledTrainingSection

    data = Known("corpus", artifact=inputs["data"].artifact, part=inputs["data"].part)
    start = (inputs.get("from") or inputs["tokenizer"]).artifact
    if isinstance(stage.config, LabelledTrainingSection):
        return stage.module.planned(stage.config, sample.rows_of(data)[0], start)
    vocab_size = Tokenizer.load(start.path).vocab_size
    return stage.module.planned(stage.config, sample.texts_of(data)[0], str(start.path), vocab_size, STEPS)


def shortened(stage: Stage, budget: float) -> list[str]:
    """The overrides that make a run of a stage a share of its length; none for a whole run."""
    section, prefix = stage.config, f"stages.{stage.name}.{stage.kind}"
    if budget == 1:
        return []
    for key in ("tokens", "steps"):
        if getattr(section, key, None) is not None:
            return [f"{prefix}.{key}={max(1, round(getattr(section, key) * budget))}"]
    epochs = getattr(section, "epochs", None) or _usual_epochs(section)
    return [f"{prefix}.epochs={epochs * budget:.6g}"]


def _usual_epochs(section: Section) -> float:
    from groundup.training.labelled import DEFAULT_EPOCHS

    return 1 if hasattr(section, "tokens") else DEFAULT_EPOCHS


def _training(recipe: Recipe, name: str) -> Stage:
    """A stage that trains. Raises UserError for one that does not, or is not there."""
    if name not in recipe.stages:
        raise UserError(f"the recipe has no stage {name!r}", where=str(recipe.path), fix=nearest(name, recipe.stages))
    if not hasattr(recipe.stages[name].config, "evaluate_every"):
        training = [name for name, each in recipe.stages.items() if hasattr(each.config, "evaluate_every")]
        fix = f"name a stage that trains: {', '.join(training) or 'the recipe has none'}"
        raise UserError(f"the stage {name!r} trains nothing that could be tuned", where=str(recipe.path), fix=fix)
    return recipe.stages[name]


def _checked(recipe: Recipe, search: Search) -> Stage:
    """The stage to tune. Raises UserError if it cannot be, or if anything before it reads a test split."""
    stage = _training(recipe, search.stage)
    for name in runner.needed(recipe, [stage.name]):
        for key, target in recipe.stages[name].inputs.items():
            if target.part == "test":
                fix = "tune on the train and validation splits; the test split is for `evaluate` alone"
                raise UserError("tuning would read the test split", where=recipe.at(name, key), fix=fix)
    if not search.metric.startswith("validation_"):
        fix = "name a figure of the validation split, such as validation_loss"
        raise UserError(f"{search.metric!r} cannot decide between trials", where="tune.metric", fix=fix)
    return stage


def _spelt_out(recipe: Recipe, stage: Stage, search: Search) -> list[str]:
    """Overrides that give the searched keys a mapping to stand in, where the recipe has none, with all its values."""
    found: dict[str, str] = {}
    for key in search.keys:
        first, dot, _ = key.partition(".")
        written = recipe.source.data["stages"][stage.name][stage.kind].get(first)
        section = getattr(stage.config, first, None)
        if dot and not isinstance(written, Mapping) and isinstance(section, Section):
            place = f"stages.{stage.name}.{stage.kind}.{first}"
            rest = {name: value for name, value in dump(section).items() if f"{first}.{name}" not in search.keys}
            found[first] = f"{place}={json.dumps(rest, ensure_ascii=False)}"
    return list(found.values())


def _said(trial: Trial, search: Search) -> str:
    setting = ", ".join(f"{key} {written(value)}" for key, value in trial.values.items())
    if trial.failed:
        return f"trial {trial.number}: {setting}: failed: {trial.failed}"
    sign = 1 if search.best == "lowest" else -1
    return f"trial {trial.number}: {setting}: {search.metric} {sign * trial.score:.4f} on {trial.budget:.0%} of a run"


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The trials as a table, and what to type to use the best one."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("trial", *outcome.search.keys, "of a run", outcome.search.metric):
        table.add_column(name, justify="right", overflow="fold")
    for trial in outcome.trials:
        spread = "" if trial.spread is None else f" ± {trial.spread:.4f}"
        result = f"{trial.score:.4f}{spread}" if trial.scores else ""
        settings = [escape(written(value)) for value in trial.values.values()]
        shown = f"[red]{escape(trial.failed)}[/]" if trial.failed else result
        table.add_row(str(trial.number), *settings, f"{trial.budget:.0%}", shown)
    console.print(table)
    console.print("\nto use the best:", *outcome.lines, sep="\n  ", markup=False, soft_wrap=True)


def print_finding(console: Console, finding: Finding, stage: Stage) -> None:
    """The curve of a learning-rate finder, and what to type to use what it suggests."""
    from groundup.show import chart

    console.print(f"loss while the rate grows from {finding.rates[0]:.1e} to {finding.rates[-1]:.1e}", markup=False)
    console.print(chart(list(zip(finding.rates, finding.losses, strict=True))), markup=False)
    steepest = "nowhere" if finding.steepest is None else f"{finding.steepest:.1e}"
    middle = f"falls fastest at {steepest}; the middle of its longest fall is {finding.suggested:.1e}"
    key = f"stages.{stage.name}.{stage.kind}.optimizer.lr"
    console.print(f"{middle}\n\nto use it:\n  --set {key}={finding.suggested:g}", markup=False)
