"""Put reports of one task on different tests together: one report of all, such as of every fold of a cross-validation.

Nothing is computed anew: the answers that the reports keep are scored together, rivals' too. Examples of one test are
right or wrong together (they were asked of one model, and may be of one speaker), so intervals draw whole tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from groundup.artifact import Artifact, Draft, Input, digest_data
from groundup.config import StageSection
from groundup.errors import DataError
from groundup.evaluation import labelled_report, labelled_words, report
from groundup.evaluation.labelled import Labelled, System
from groundup.units import PositiveCount

READS = {"of": "report"}
WRITES = "report"
VERSION = 1
SAME = ("kind", "labels", "language", "out_of_scope", "metrics")
"""What the tests must have in common."""


class Config(StageSection):
    """Score the answers of several reports together."""

    of: Annotated[list[str], Field(min_length=2)]
    """The reports: `evaluate` stages of labelled tasks, each on a test of its own."""
    unit: str = "tests"
    """What each test is of, such as speakers, in the words of the report."""
    bootstrap: Annotated[PositiveCount, Field(ge=100, le=100_000)] = 1000
    """How many times the tests are drawn again for the intervals."""


@dataclass(frozen=True)
class _Part:
    """One report, opened again."""

    name: str
    artifact: Artifact
    data: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, artifact: Artifact) -> _Part:
        data = artifact.json("report.json")
        name = str(artifact.manifest.get("stage", artifact.digest[:8]))
        if data.get("kind") != "labelled":
            what = f"the report {name!r} is of no labelled task, so it keeps no answers"
            raise DataError(what, where="of", fix="name `evaluate` stages of models that answer rows")
        lines = artifact.file("answers.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(name, artifact, data, [json.loads(line) for line in lines])


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write report.html, report.md, report.json and answers.jsonl."""
    parts = [_Part.open(given.artifact) for given in inputs.values()]
    _require_alike(parts)
    test, run, rivals = _test(parts, config.unit), _run(parts), _rivals(parts)
    data = labelled_report.collect(
        test, [run], rivals, described=_described(parts, config, out), seed=config.seed, resamples=config.bootstrap
    )
    report.write(data, out.path)
    out.path("answers.jsonl").write_text(labelled_report.answer_lines(test, [run], rivals), encoding="utf-8")
    out.metrics |= {name: score["estimate"] for name, score in data["scores"].items()}
    out.metrics["headline"] = labelled_words.short(data)


def _require_alike(parts: Sequence[_Part]) -> None:
    """Raise DataError for reports that cannot be scored together: of other labels, or of examples that recur."""
    first = parts[0]
    for part in parts[1:]:
        odd = next((key for key in SAME if part.data["test"].get(key) != first.data["test"].get(key)), None)
        if odd is not None:
            what = f"the tests of {first.name!r} and {part.name!r} differ in their {odd.replace('_', ' ')}"
            raise DataError(what, where="of", fix="pool reports of one task with the same labels")
    names: dict[str, str] = {}
    for part in parts:
        for line in part.lines:
            if line["id"] in names:
                what = f"the example {line['id']!r} is in the tests of {names[line['id']]!r} and of {part.name!r}"
                raise DataError(
                    what, where="of", fix="pool tests that share no example; of one test, use several seeds"
                )
            names[line["id"]] = part.name


def _test(parts: Sequence[_Part], unit: str) -> Labelled:
    test, lines = parts[0].data["test"], [line for part in parts for line in part.lines]
    owners = [part.name for part in parts for _ in part.lines]
    return Labelled(
        test["kind"],
        ids=[line["id"] for line in lines],
        shown=[line["id"] for line in lines],
        truth=[line["truth"] for line in lines],
        labels=test["labels"],
        slices={unit: owners},
        units=owners,
        unit=unit,
        language=test["language"],
        out_of_scope=test["out_of_scope"],
    )


def _run(parts: Sequence[_Part]) -> System:
    """The answers of each report's first model to its own examples."""
    lines = [line for part in parts for line in part.lines]
    sure = [line["confidence"][0] for line in lines if line.get("confidence")]
    digest = digest_data([run["digest"] for part in parts for run in part.data["runs"][:1]])
    confidence = sure if len(sure) == len(lines) and None not in sure else None
    return System("all", [line["answers"][0] for line in lines], None, confidence, digest=digest)


def _rivals(parts: Sequence[_Part]) -> list[System]:
    """Rivals that stand in every report, each taught anew for each."""
    found = []
    for rival in parts[0].data["rivals"]:
        name = rival["name"]
        if all(line.get("rivals", {}).keys() >= {name} for part in parts for line in part.lines):
            answers = [line["rivals"][name] for part in parts for line in part.lines]
            rows = max(int(one["trained_rows"]) for part in parts for one in part.data["rivals"] if one["name"] == name)
            found.append(System(name, answers, meaning=rival["meaning"], trained_rows=rows))
    return found


def _described(parts: Sequence[_Part], config: Config, out: Draft) -> dict[str, Any]:
    first = parts[0].data
    sums = {key: sum(int(part.data["data"][key]) for part in parts) for key in ("documents", "bytes")}
    tokens = sum(int(part.data["model"]["tokens"]) for part in parts)
    digests = {key: digest_data([part.data[key]["digest"] for part in parts]) for key in ("model", "data")}
    names = ", ".join(part.name for part in parts)
    notes = [
        f"{len(parts)} models, each asked only about a test of its own ({names}); the figures are of all answers "
        f"together. Intervals draw whole {config.unit}: {len(parts)} are few, so take their ends as rough.",
    ]
    more = [note for part in parts for note in part.data["notes"] if note not in first["notes"]]
    return {
        "name": f"{parts[0].artifact.manifest.get('recipe', '')} / {names}".strip(" /"),
        "model": dict(first["model"]) | {"digest": digests["model"], "tokens": tokens},
        "data": dict(first["data"]) | sums | {"digest": digests["data"], "documents_in_split": sums["documents"]},
        "licences": dict(out.licences),
        "notes": notes + sorted(set(more)),
    }
