"""From a labelled test and its systems to the plain data of a report: `report.json` and `answers.jsonl`.

`collect` does all the arithmetic; pages and comparisons only read what it wrote. Every score is a mean
over the runs given (one for each seed), its interval from drawing the test examples again, and where
there are several runs the interval over seeds stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from groundup.artifact import digest_data
from groundup.data.licences import is_restricted
from groundup.errors import DataError
from groundup.evaluation import labelled_diagnosis, labelled_slices, significance
from groundup.evaluation.intervals import Interval, runs_interval
from groundup.evaluation.labelled import Labelled, System, check, plain
from groundup.evaluation.labelled_scores import Scores, confidence_of, right_of, scores_of
from groundup.evaluation.leakage import Leakage
from groundup.evaluation.metrics import sums, translation
from groundup.evaluation.metrics.additive import averaged
from groundup.evaluation.metrics.ratios import as_data
from groundup.evaluation.resampling import Draws

FORMAT = 1


def collect(
    test: Labelled,
    runs: Sequence[System],
    rivals: Sequence[System],
    *,
    described: Mapping[str, Any],
    seed: int,
    resamples: int = 1000,
    validation: tuple[Sequence[Any], Sequence[Sequence[float]]] | None = None,
    leakage: Leakage | None = None,
    texts: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> dict[str, Any]:
    """Everything a report of a labelled task says: the content of report.json.

    test: the examples. runs: the model's answers, one system a seed, the first being the one whose
    mistakes and confidence are shown. rivals: other systems' answers to the same examples.
    described: `name`, `model` (digest, family, task, parameters, tokens), `data` (digest, split,
    documents, bytes, documents_in_split), `cost`, `licences`, `notes`, `curves`, `curves_over`, as in the
    report of a language model; only `name`, `model` and `data` are needed.
    validation: truth and the first run's probabilities on validation rows, to fit a temperature.
    leakage: what `leakage.find` found; texts: the training and test texts it was given, for examples.

    Raises DataError, naming rows, for truth or answers that cannot be scored.
    """
    if not runs:
        raise DataError("no answers to score", fix="give at least one run")
    check(test, [*runs, *rivals])
    draws = Draws(len(test), seed, resamples, test.unit, groups=test.groups())
    by_run = [scores_of(test, run) for run in runs]
    own = {name: averaged([scores[name] for scores in by_run]) for name in by_run[0]}
    main = next(iter(own))
    found: dict[str, Any] = {
        "format": FORMAT,
        "kind": "labelled",
        "name": described["name"],
        "seed": seed,
        "main_metric": main,
        "scores": {
            name: draws.interval(score).as_dict() | {"higher_is_better": score.higher_is_better}
            for name, score in own.items()
        },
        "runs": [_run(run, scores) for run, scores in zip(runs, by_run, strict=True)],
        "over_runs": _over_runs(by_run),
        "test": described_test(test),
        "rivals": [_rival(test, rival, own, by_run[0], runs[0], draws) for rival in rivals],
        "labels": labelled_slices.by_label(test, runs, draws),
        "slices": labelled_slices.by_column(test, own, main, draws),
        "confusion": labelled_diagnosis.confusion(test, runs[0]),
        "calibration": labelled_diagnosis.calibrated(test, runs[0], validation),
        "risk_coverage": labelled_diagnosis.risk_coverage(test, runs[0]),
        "detection": labelled_diagnosis.detection(test, runs[0]),
        "mistakes": labelled_diagnosis.mistakes(test, runs[0]),
        "leakage": _leaked(leakage, texts, own, main, draws),
        "signatures": translation.signatures(test.language) if test.kind == "texts" else {},
        "model": dict(described["model"]),
        "data": dict(described["data"]),
        "cost": dict(described.get("cost", {})),
        "licences": dict(described.get("licences", {})),
        "curves": dict(described.get("curves", {})),
        "curves_over": described.get("curves_over", "steps"),
        "samples": [],
    }
    found["notes"] = [*described.get("notes", ()), *_notes(test, runs, found)]
    return found


def described_test(test: Labelled) -> dict[str, Any]:
    """What a comparison must know of a test to score answers again, and a digest of its examples and truth."""
    identity = {"kind": test.kind, "ids": list(test.ids), "truth": [plain(value) for value in test.truth]}
    return {
        "digest": digest_data(identity),
        "kind": test.kind,
        "count": len(test),
        "labels": list(test.labels),
        "language": test.language,
        "out_of_scope": test.out_of_scope,
        "metrics": {name: as_data(metric) for name, metric in test.metrics.items()},
        "unit": test.unit,
        "units": len(set(test.units)) if test.units is not None else len(test),
    }


def answer_lines(test: Labelled, runs: Sequence[System], rivals: Sequence[System] = ()) -> str:
    """The content of answers.jsonl: a line an example with its id, truth, unit, every run's answer and confidence, in
    the order of the runs, and every rival's answer by its name."""
    sure = [confidence_of(test, run) for run in runs]
    lines = []
    for row, name in enumerate(test.ids):
        line: dict[str, Any] = {"id": name, "truth": plain(test.truth[row])}
        if test.units is not None:
            line["unit"] = str(test.units[row])
        line["answers"] = [plain(run.answers[row]) for run in runs]
        if any(values is not None for values in sure):
            line["confidence"] = [None if values is None else round(float(values[row]), 6) for values in sure]
        if rivals:
            line["rivals"] = {rival.name: plain(rival.answers[row]) for rival in rivals}
        lines.append(json.dumps(line, ensure_ascii=False, sort_keys=True))
    return "\n".join(lines) + "\n"


def _run(run: System, scores: Scores) -> dict[str, Any]:
    figures = {name: score.value for name, score in scores.items()}
    return {"name": run.name, "seed": run.seed, "digest": run.digest, "scores": figures}


def _over_runs(by_run: Sequence[Scores]) -> dict[str, Any]:
    """The interval of the mean over seeds of each score; empty for one run."""
    if len(by_run) < 2:
        return {}
    return {name: runs_interval([scores[name].value for scores in by_run]).as_dict() for name in by_run[0]}


def _rival(
    test: Labelled, rival: System, own: Scores, first_scores: Scores, first: System, draws: Draws
) -> dict[str, Any]:
    """A rival's scores, and how far the model is ahead of it on the same examples.

    The lead is the mean of all runs'; the test is of the first run, as one answer can only be paired
    with one answer.
    """
    main = next(iter(own))
    scores = scores_of(test, rival)
    lead = significance.paired_lead(own[main], scores[main], draws)
    tested = significance.compare(first_scores[main], scores[main], draws)
    right, other = right_of(test, first), right_of(test, rival)
    return {
        "name": rival.name,
        "meaning": rival.meaning,
        "metric": main,
        "score": scores[main].value,
        "interval": draws.interval(scores[main]).as_dict(),
        "lead": lead.as_dict(),
        "p_value": tested.p_value,
        "test": tested.test,
        "win_rate": _win_rate(test, first, rival, draws),
        "mcnemar": None if right is None or other is None else significance.mcnemar(right, other),
        "trained_bytes": 0,
        "trained_rows": rival.trained_rows,
        "scores": {name: score.value for name, score in scores.items()},
        "details": dict(rival.details),
    }


def _win_rate(test: Labelled, first: System, rival: System, draws: Draws) -> dict[str, Any] | None:
    """How often the first run scores better than a rival on a single example, where answers are sums."""
    if test.kind != "sums":
        return None
    return draws.interval(sums.wins(next(iter(test.metrics.values())), first.answers, rival.answers)).as_dict()


def _leaked(leakage: Leakage | None, texts: Any, own: Scores, main: str, draws: Draws) -> dict[str, Any] | None:
    """What leaked, and the main score without those rows."""
    if leakage is None:
        return None
    found = leakage.as_data(*texts)
    kept = np.setdiff1d(np.arange(draws.n), leakage.rows)
    without: Interval | None = None
    if leakage.rows and len(kept):
        without = draws.of(kept).interval(own[main].take(kept))
    return found | {"without": without and without.as_dict()}


def _notes(test: Labelled, runs: Sequence[System], found: Mapping[str, Any]) -> list[str]:
    notes = []
    if len(runs) == 1:
        notes.append("One training, so the figures say nothing about how another seed would do.")
    absent = set(test.labels) - _named(test)
    if test.kind in ("classes", "multilabel") and absent:
        notes.append(f"{len(absent)} of {len(test.labels)} labels never occur in the test: {_some(sorted(absent))}.")
    leak = found["leakage"]
    if leak and leak["exact"] + leak["near"]:
        notes.append(
            f"{leak['exact'] + leak['near']:,} of {leak['test']:,} test rows stand in the training rows, "
            f"{leak['exact']:,} word for word: memory alone answers them."
        )
    bound = [name for name, licence in found["licences"].items() if is_bound(str(licence))]
    if bound:
        notes.append(f"Not for commercial use without asking: the licence of {_some(bound)} is restricted or unstated.")
    return notes


def is_bound(licence: str) -> bool:
    """Whether a licence, as its name says, forbids commercial use, sets conditions, or says nothing."""
    return licence.strip().lower() in ("", "unstated", "not stated", "unknown") or bool(is_restricted(licence))


def _named(test: Labelled) -> set[Any]:
    return set(test.truth) if test.kind == "classes" else {label for row in test.truth for label in _several(row)}


def _several(row: Any) -> Sequence[Any]:
    return row if isinstance(row, list | tuple) else [row]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (", …" if len(names) > 5 else "")
