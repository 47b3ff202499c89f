"""Searching for better settings: a block `tune:` names keys of the recipe, and what each may be.

Settings are drawn by Optuna, tried on a small budget, and the better ones tried again on larger ones
(successive halving: Jamieson & Talwalkar 2016, algorithm 1). Each trial is a run of the recipe's own stage
with overrides, so it lies in the store like any other: a search that was interrupted finds its finished
trials again. The score is a validation figure; the test split is never read.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from groundup import plan, runner
from groundup.artifact import write_whole
from groundup.config import Section, dump
from groundup.errors import GroundupError, Interrupted, MissingExtra, UserError, nearest
from groundup.progress import Reporter
from groundup.recipe import Recipe, Stage, load
from groundup.units import PositiveCount, Share

if TYPE_CHECKING:
    from rich.console import Console

    from groundup.training.lr_finder import Finding

Score = Callable[[Sequence[str], float], float]
"""A function of overrides (as for `--set`) and a budget, the share of a whole run in (0, 1]."""
TRIALS_FILE = "trials.json"
OF_THE_RECIPE = ("stages", "vars", "seed", "name", "groundup")
"""Keys of a recipe as a whole; all others are keys of the tuned stage."""


class Range(Section):
    """Numbers between two limits."""

    low: float
    """The least."""
    high: float
    """The largest."""
    log: bool = True
    """Draw evenly in the logarithm, as rates and sizes want it; false: evenly in the number."""
    whole: bool = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm: set it above zero, or `log: false`")
        return self


class Halving(Section):
    """Try many on little, and the best of them on more."""

    factor: Annotated[int, Field(ge=2)] = 3
    """By how much the budget grows from round to round, and the number of trials falls."""
    least: Share = 0.1
    """The smallest budget of a trial, as a share of a whole run."""


class Search(Section):
    """What is searched for, and how."""

    stage: str
    """The stage to tune, one that trains."""
    keys: Annotated[dict[str, Range | Annotated[list[Any], Field(min_length=2)]], Field(min_length=1)]
    """Keys of the stage (`optimizer.lr`) or of the recipe (`stages.words.tokenize.vocab_size`), each with a range
    ({low: 1e-5, high: 1e-3}) or a list of choices."""
    metric: str = "validation_loss"
    """The figure that decides, one of the stage's that begins with `validation_`."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which value of the figure is best."""
    trials: PositiveCount = 9
    """How many settings are drawn."""
    seeds: PositiveCount = 1
    """With how many seeds the settings of the last round are run; their mean decides."""
    halving: Halving | None = Halving()
    """How budgets grow. null: every trial is a whole run."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How settings are drawn: near those that did well (tpe, Bergstra et al. 2011), or anywhere."""
    seed: int = 0
    """Seed of the drawing."""

    def rounds(self) -> list[tuple[float, int]]:
        """Budget and number of trials of each round; the last one is whole runs."""
        if self.halving is None:
            return [(1.0, self.trials)]
        factor, depth = self.halving.factor, 0
        while factor ** (depth + 1) <= self.trials and factor ** -(depth + 1) >= self.halving.least - 1e-9:
            depth += 1
        return [(factor ** (i - depth), max(1, self.trials // factor**i)) for i in range(depth + 1)]


@dataclass
class Trial:
    """One setting, and what it came to by budget."""

    number: int
    values: dict[str, Any]
    overrides: list[str]
    scores: dict[float, list[float]] = field(default_factory=dict)
    """By budget, one for each seed."""
    failed: str = ""
    """Why it has no score."""

    @property
    def budget(self) -> float:
        """The largest budget it was run on."""
        return max(self.scores, default=0.0)

    @property
    def score(self) -> float:
        """The mean of its scores on that budget; infinite without any."""
        return statistics.fmean(self.scores[self.budget]) if self.scores else math.inf

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds, where there are several."""
        scores = self.scores.get(self.budget, [])
        return statistics.stdev(scores) if len(scores) > 1 else None

    def as_data(self) -> dict[str, Any]:
        """The trial as plain data."""
        scores = {f"{budget:g}": found for budget, found in self.scores.items()}
        return {"number": self.number, "overrides": self.overrides, "scores": scores, "failed": self.failed}


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
    given = [*overrides, f"name={recipe.name}-tune", *spelt]
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

    found = explore(search, score, prefix=f"stages.{stage.name}.{stage.kind}", seed=stage.config.seed, note=note)
    return Outcome(search, found, spelt)


def explore(
    search: Search, score: Score, *, prefix: str, seed: int = 0, note: Callable[[list[Trial]], None] | None = None
) -> list[Trial]:
    """Every trial, the best first: those on larger budgets before those on smaller ones.

    `prefix` is put before keys of the stage; `seed` is the first of the seeds that runs get; `note` is told of
    all trials after each run, the one that has just run last.
    """
    rounds, sign = search.rounds(), 1 if search.best == "lowest" else -1
    errors: list[GroundupError] = []

    def attempt(trial: Trial, budget: float, among: list[Trial]) -> None:
        seeds = search.seeds if budget == 1 else 1
        try:
            lines = [[*trial.overrides, f"{prefix}.seed={seed + i}"] for i in range(seeds)]
            trial.scores[budget] = [sign * score(each, budget) for each in lines]
        except Interrupted:
            raise
        except GroundupError as error:
            errors.append(error)
            trial.failed = str(error).splitlines()[0]
        if note:
            note([*(other for other in among if other is not trial), trial])

    trials: list[Trial] = []
    for trial, tell in _drawn(search, prefix):
        trials.append(trial)
        attempt(trial, rounds[0][0], trials)
        tell(None if trial.failed else trial.score)
    for budget, count in rounds[1:]:
        alive = [trial for trial in _ranked(trials) if not trial.failed]
        for trial in alive[:count]:
            attempt(trial, budget, trials)
    if all(trial.failed for trial in trials):
        raise errors[0]
    for trial in trials:
        trial.scores = {budget: [sign * each for each in found] for budget, found in trial.scores.items()}
    return _ranked(trials, sign)


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


def _checked(recipe: Recipe, search: Search) -> Stage:
    """The stage to tune. Raises UserError if it cannot be, or if anything before it reads a test split."""
    if search.stage not in recipe.stages:
        fix = nearest(search.stage, recipe.stages)
        raise UserError(f"the recipe has no stage {search.stage!r}", where=str(recipe.path), fix=fix)
    stage = recipe.stages[search.stage]
    if not hasattr(stage.config, "evaluate_every"):
        training = [name for name, each in recipe.stages.items() if hasattr(each.config, "evaluate_every")]
        fix = f"name a stage that trains: {', '.join(training) or 'the recipe has none'}"
        raise UserError(f"the stage {stage.name!r} trains nothing that could be tuned", where=str(recipe.path), fix=fix)
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
            found[first] = f"{place}={json.dumps(dump(section), ensure_ascii=False)}"
    return list(found.values())


def _drawn(search: Search, prefix: str) -> Iterator[tuple[Trial, Callable[[float | None], None]]]:
    """Settings, no two alike, each with a function to be told what it came to (None: it failed)."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("optuna", "tune", needed_for="searching for settings") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(sampler=kinds[search.sampler](seed=search.seed))
    space = {key: _distribution(optuna.distributions, wanted) for key, wanted in search.keys.items()}
    known: dict[str, Trial] = {}
    for _ in range(3 * search.trials):
        if len(known) == search.trials:
            return
        asked = study.ask(space)
        values = {key: _value(search.keys[key], value) for key, value in asked.params.items()}
        overrides = [f"{_place(key, prefix)}={_written(value)}" for key, value in values.items()]
        trial = known.get(repr(overrides))

        def tell(score: float | None, asked: Any = asked) -> None:
            study.tell(asked, score, state=None if score is not None else optuna.trial.TrialState.FAIL)

        if trial is not None:  # a space of few choices is soon exhausted
            tell(None if trial.failed else trial.score)
            continue
        known[repr(overrides)] = Trial(len(known), values, overrides)
        yield known[repr(overrides)], tell


def _distribution(kinds: Any, wanted: Range | list[Any]) -> Any:
    if isinstance(wanted, list):
        return kinds.CategoricalDistribution(range(len(wanted)))  # by place: choices may be mappings
    if wanted.whole:
        return kinds.IntDistribution(math.ceil(wanted.low), math.floor(wanted.high), log=wanted.log)
    return kinds.FloatDistribution(wanted.low, wanted.high, log=wanted.log)


def _value(wanted: Range | list[Any], drawn: Any) -> Any:
    if isinstance(wanted, list):
        return wanted[drawn]
    # Three digits are more than a search can tell apart, and easy to write down.
    return int(drawn) if wanted.whole else min(max(float(f"{drawn:.3g}"), wanted.low), wanted.high)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(key: str, prefix: str) -> str:
    return key if key.partition(".")[0] in OF_THE_RECIPE else f"{prefix}.{key}"


def _ranked(trials: Sequence[Trial], sign: int = 1) -> list[Trial]:
    return sorted(trials, key=lambda trial: (-trial.budget, sign * trial.score if trial.scores else math.inf))


def _said(trial: Trial, search: Search) -> str:
    setting = ", ".join(f"{key} {_written(value)}" for key, value in trial.values.items())
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
        settings = [escape(_written(value)) for value in trial.values.values()]
        shown = f"[red]{escape(trial.failed)}[/]" if trial.failed else result
        table.add_row(str(trial.number), *settings, f"{trial.budget:.0%}", shown)
    console.print(table)
    console.print("\nto use the best:", *outcome.lines, sep="\n  ", markup=False)


def print_finding(console: Console, finding: Finding, stage: Stage) -> None:
    """The curve of a learning-rate finder, and what to type to use what it suggests."""
    from groundup.show import chart

    console.print(f"loss while the rate grows from {finding.rates[0]:.1e} to {finding.rates[-1]:.1e}", markup=False)
    console.print(chart(list(zip(finding.rates, finding.losses, strict=True))), markup=False)
    steepest = "nowhere" if finding.steepest is None else f"{finding.steepest:.1e}"
    middle = f"falls fastest at {steepest}; the middle of its longest fall is {finding.suggested:.1e}"
    key = f"stages.{stage.name}.{stage.kind}.optimizer.lr"
    console.print(f"{middle}\n\nto use it:\n  --set {key}={finding.suggested:g}", markup=False)
