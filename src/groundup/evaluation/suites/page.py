"""The report of published tests: every suite with its interval beside what guessing gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from groundup.evaluation import charts
from groundup.units import show_count

CSS = Path(__file__).parent.with_name("report.css")
FORMAT = 1
Data = Mapping[str, Any]


def collect(results: Sequence[Data], model: Data, *, seed: int) -> dict[str, Any]:
    """Everything the report says: the content of report.json. `results` are what `running.run` gave."""
    scores = {one["suite"]: one["scores"][one["main_metric"]] for one in results}
    guessing = [
        {"name": f"guessing ({one['suite']})", "metric": one["suite"], "score": one["chance"], "interval": None,
         "trained_bytes": 0}
        for one in results
        if one["chance"]
    ]  # fmt: skip
    return {
        "format": FORMAT,
        "kind": "suites",
        "name": model["name"],
        "seed": seed,
        "main_metric": results[0]["suite"],
        "scores": scores,
        "rivals": guessing,
        "suites": [dict(one) for one in results],
        "model": dict(model),
        "licences": model["licences"],
        "samples": [],
        "notes": [
            f"{one['suite']}: {one['questions']:,} of {one['questions_in_files']:,} questions, evenly spread."
            for one in results
            if one["questions"] < one["questions_in_files"]
        ],
    }


def headline(data: Data) -> str:
    """Each suite's score in one line."""
    return ", ".join(f"{name} {found['estimate']:.1%}" for name, found in data["scores"].items())


def rows(data: Data) -> list[list[str]]:
    """The table of suites, a header first."""
    found = [["suite", "score", "value (95% interval)", "guessing", "questions", "examples before each"]]
    for one in data["suites"]:
        for metric, score in one["scores"].items():
            value = f"{score['estimate']:.1%} ({score['low']:.1%} to {score['high']:.1%})"
            chance = f"{one['chance']:.1%}" if one["chance"] else ""
            found.append(
                [one["suite"], metric.replace("_", " "), value, chance, f"{one['questions']:,}", str(one["shots"])]
            )
    return found


def markdown(data: Data) -> str:
    """The report as Markdown."""
    head, *body = rows(data)
    lines = [f"# {data['name']}", "", f"**{headline(data)}**", ""]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *(f"| {' | '.join(row)} |" for row in body), ""]
    notes = [*data["notes"], f"Model: `{data['model']['digest']}`"]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def render(data: Data) -> str:
    """The page: pictures first, then the table, then each suite's subjects."""
    bars = [
        charts.Bar(name, found["estimate"], found["low"], found["high"], is_model=True)
        for name, found in data["scores"].items()
    ]
    bars += [charts.Bar(one["name"], one["score"], None, None) for one in data["rivals"]]
    model = data["model"]
    made = f"{model['family']}, {show_count(model['parameters'])} parameters, digest {model['digest'][:16]}"
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(data['name'])}</title><style>{CSS.read_text(encoding='utf-8')}</style></head><body><main>\n"
        f'<header><h1>{escape(data["name"])}</h1><p class="headline">{escape(headline(data))}</p>'
        f"<p>{escape(made)}</p></header>\n"
        f"<figure>{charts.scores(bars, 'share right (longer is better)', show='{:.1%}'.format)}</figure>\n"
        f"{_table(rows(data))}\n<ul>{notes}</ul>\n{''.join(map(_subjects, data['suites']))}"
        "<footer>Made by groundup. This page is one file: no script, nothing is fetched.</footer>"
        "</main></body></html>\n"
    )


def _subjects(one: Data) -> str:
    if len(one["subjects"]) < 2:
        return ""
    body = [[name, f"{score:.1%}"] for name, score in sorted(one["subjects"].items(), key=lambda pair: -pair[1])]
    table = _table([["subject", "score"], *body])
    return f"<details><summary>{escape(one['suite'])} by subject</summary>{table}</details>\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
                   for tag, line in zip(["th", *["td"] * len(lines)], lines, strict=False)]  # fmt: skip
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
