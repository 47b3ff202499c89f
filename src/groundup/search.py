"""Drawing settings and spending on them: the engine of a search, which knows scores and nothing else.

Settings are drawn by Optuna, tried on a small budget, and the better ones tried again on larger ones
(successive halving: Jamieson & Talwalkar 2016, algorithm 1). `groundup.tuning` joins it with recipes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from groundup.config import Section
from groundup.errors import GroundupError, Interrupted, MissingExtra
from groundup.units import PositiveCount, Share

Score = Callable[[Sequence[str], float], float]
"""A function of overrides (as for `--set`) and a budget, the share of a whole run in (0, 1]."""
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
        overrides = [f"{_place(key, prefix)}={written(value)}" for key, value in values.items()]
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


def written(value: Any) -> str:
    """A value as it is written after `KEY=`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(key: str, prefix: str) -> str:
    return key if key.partition(".")[0] in OF_THE_RECIPE else f"{prefix}.{key}"


def _ranked(trials: Sequence[Trial], sign: int = 1) -> list[Trial]:
    return sorted(trials, key=lambda trial: (-trial.budget, sign * trial.score if trial.scores else math.inf))
