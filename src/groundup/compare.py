"""Whether one model is better than another, or only looks so: two reports of the same test, compared.

Reports keep the answers to every test example (`answers.jsonl`), so two models can be compared example by
example, which sees far smaller differences than two intervals side by side. Reports of different tests
are refused: their scores have nothing to do with each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.artifact import Artifact, open_artifact
from groundup.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from groundup.evaluation.labelled import Labelled, System
    from groundup.evaluation.significance import Comparison

ANSWERS = "answers.jsonl"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Verdict:
    """Two models by every score both have, the main one first."""

    first: str
    second: str
    comparisons: list[Comparison]
    mcnemar: float | None
    """Exact p-value that the first runs of both are right equally often; None where nothing is right or wrong."""
    welch: float | None
    """p-value that both come from equally good trainings; None unless both have several runs."""
    runs: tuple[int, int]

    @property
    def main(self) -> Comparison:
        """The score that decides."""
        return self.comparisons[0]

    @property
    def sentence(self) -> str:
        """What the comparison came to, in plain words."""
        from groundup.evaluation.labelled_words import chance, figure, gap, name_of

        found, name = self.main, name_of(self.main.metric)
        values = f"{figure(found.metric, found.first)} against {figure(found.metric, found.second)}"
        low, high = (gap(found.metric, limit) for limit in (found.lead.low, found.lead.high))
        if not found.is_real:
            return (
                f"no clear difference: {name} {values}; the lead of {self.first} lies between {low} and {high} "
                f"({chance(found.p_value)}), so either may be the better one"
            )
        better, worse = (self.first, self.second) if found.lead.estimate > 0 else (self.second, self.first)
        size = gap(found.metric, abs(found.lead.estimate))
        return f"{better} is better than {worse}: {name} {values}, a difference of {size} ({chance(found.p_value)})"

    @property
    def caution(self) -> str:
        """What the verdict does not say."""
        if self.welch is None:
            return (
                "This is about these trained models. Whether the recipes differ needs several seeds of each: "
                "another seed may move a score by more than this difference."
            )
        said = f"({self.runs[0]} and {self.runs[1]} runs, Welch's t test p = {self.welch:.3f})"
        return f"It holds over seeds too {said}." if self.welch < 0.05 else f"Over seeds it may be chance {said}."

    def as_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "first": self.first,
            "second": self.second,
            "verdict": self.sentence,
            "caution": self.caution,
            "comparisons": [one.as_data() for one in self.comparisons],
            "mcnemar": self.mcnemar,
            "welch": self.welch,
            "runs": list(self.runs),
        }


def compare(first: Path, second: Path, *, seed: int = 0, resamples: int = RESAMPLES) -> Verdict:
    """The verdict on two reports of labelled tasks, A and B.

    Raises UserError if either is no report, is of a language model, or if they are of different tests.
    """
    from groundup.evaluation import significance
    from groundup.evaluation.labelled_scores import right_of, scores_of
    from groundup.evaluation.metrics.additive import averaged
    from groundup.evaluation.resampling import Draws

    reports = [_Report.open(path) for path in (first, second)]
    _check_same_test(reports)
    names = _names(first, second)
    test = reports[0].test
    draws = Draws(len(test), seed, resamples, test.unit, groups=test.groups())
    scored = [[scores_of(test, run) for run in report.runs] for report in reports]
    names_of = [name for name in scored[0][0] if all(name in run for runs in scored for run in runs)]
    # Scores of probabilities need more than the answers; a report led by one is compared by the next.
    shared = sorted(names_of, key=lambda name: name != reports[0].data["main_metric"])
    comparisons = []
    for name in shared:
        one, other = (averaged([run[name] for run in runs]) for runs in scored)
        comparisons.append(significance.compare(one, other, draws))
    right = [right_of(test, report.runs[0]) for report in reports]
    welch = None
    if all(len(runs) > 1 for runs in scored):
        welch = significance.welch(*([run[shared[0]].value for run in runs] for runs in scored))
    mcnemar = None if right[0] is None or right[1] is None else significance.mcnemar(right[0], right[1])
    return Verdict(*names, comparisons, mcnemar, welch, (len(scored[0]), len(scored[1])))


def print_verdict(console: Console, verdict: Verdict) -> None:
    """The verdict, then every score of both with the lead of the first."""
    from rich.markup import escape
    from rich.table import Table

    from groundup.evaluation.labelled_words import chance, figure, lead, name_of

    console.print(f"[bold]{escape(verdict.sentence)}[/]", soft_wrap=True)
    console.print(escape(verdict.caution), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("score", verdict.first, verdict.second, f"{verdict.first} ahead by", "chance"):
        table.add_column(escape(column), justify="left" if column == "score" else "right")
    for one in verdict.comparisons:
        table.add_row(
            name_of(one.metric),
            figure(one.metric, one.first),
            figure(one.metric, one.second),
            lead(one.metric, one.lead.as_dict()),
            chance(one.p_value),
        )
    console.print(table)
    if verdict.mcnemar is not None:
        console.print(f"McNemar's exact test on right and wrong: {chance(verdict.mcnemar)}")


@dataclass(frozen=True)
class _Report:
    """A report as it was written: its test and the answers of its runs."""

    artifact: Artifact
    data: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, path: Path) -> _Report:
        artifact = open_artifact(path)
        if artifact.kind != "report":
            fix = "give two reports, which `evaluate` stages write: groundup compare runs/A/report runs/B/report"
            raise UserError(f"{str(path)!r} is a {artifact.kind}, not a report", fix=fix)
        data = artifact.json("report.json")
        if data.get("kind") != "labelled":
            fix = "compare reports of labelled tasks; of language models compare the intervals in their reports"
            raise UserError("a report of a language model keeps no answers to compare", where=str(path), fix=fix)
        lines = [json.loads(line) for line in artifact.file(ANSWERS).read_text(encoding="utf-8").splitlines()]
        if len(lines) != data["test"]["count"]:
            raise ArtifactError("the answers do not fit the report", where=str(artifact.file(ANSWERS)))
        return cls(artifact, data, lines)

    @property
    def test(self) -> Labelled:
        """The examples, without their inputs."""
        from groundup.evaluation.labelled import Labelled
        from groundup.evaluation.metrics.ratios import from_data

        test, lines = self.data["test"], self.lines
        return Labelled(
            test["kind"],
            [line["id"] for line in lines],
            [""] * len(lines),
            [line["truth"] for line in lines],
            test["labels"],
            units=[line["unit"] for line in lines] if lines and "unit" in lines[0] else None,
            unit=test["unit"],
            language=test["language"],
            out_of_scope=test["out_of_scope"],
            metrics={name: from_data(metric) for name, metric in test["metrics"].items()},
        )

    @property
    def runs(self) -> list[System]:
        """The answers of each run, without probabilities."""
        from groundup.evaluation.labelled import System

        runs = self.data["runs"]
        return [System(run["name"], [line["answers"][k] for line in self.lines]) for k, run in enumerate(runs)]


def _check_same_test(reports: Sequence[_Report]) -> None:
    first, second = (report.data["test"] for report in reports)
    if first["kind"] != second["kind"]:
        fix = "compare models of the same task"
        raise UserError(f"the first report is of {first['kind']}, the second of {second['kind']}", fix=fix)
    if first["digest"] == second["digest"]:
        return
    ids = [{line["id"] for line in report.lines} for report in reports]
    shared = len(ids[0] & ids[1])
    counts = f"{first['count']:,} and {second['count']:,} examples, {shared:,} shared"
    what = f"the two reports are of different tests ({counts})"
    if ids[0] == ids[1]:
        what = "the two reports are of the same examples, but their truth or order differs"
    places = " and ".join(str(report.artifact.path) for report in reports)
    raise UserError(what, where=places, fix="evaluate both models on the same corpus and split, then compare again")


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Short names that tell the two apart."""
    for parts in (1, 2):
        short = ["/".join(Path(path).parts[-parts:]) for path in (first, second)]
        if short[0] != short[1]:
            return short[0], short[1]
    return "A", "B"
