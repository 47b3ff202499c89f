"""`report.md` of a labelled task: what the page says, without the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundup.evaluation import labelled_pictures, labelled_words, words
from groundup.evaluation.labelled_words import answer_text, figure, interval, name_of
from groundup.units import show_count

SOME_MISTAKES = 20


def markdown(data: Mapping[str, Any]) -> str:
    """The report as Markdown; see `labelled_report.collect` for the keys of its data."""
    model, rivals = data["model"], data["rivals"]
    said = [*(labelled_words.verdict(data, rival) for rival in rivals), labelled_words.over_runs(data), *data["notes"]]
    scores = [
        [name_of(n), interval(n, found), *(figure(n, r["scores"][n]) if n in r["scores"] else "" for r in rivals)]
        for n, found in data["scores"].items()
    ]
    lines = [
        f"# {data['name']}",
        "",
        f"**{labelled_words.headline(data)}**",
        "",
        f"{model['task']}: {model['family']}, {show_count(model['parameters'])} parameters.",
        "",
        *(f"- {sentence}" for sentence in said if sentence),
        "",
        *_table(["score", "this model (interval)", *(rival["name"] for rival in rivals)], scores),
        *_labels(data),
        *_slices(data),
        *_mistakes(data),
        *labelled_pictures.looked_lines(data),
        *labelled_pictures.where_pictures_are(data),
        "## Cost and provenance",
        "",
        *(f"- {label}: {value}" for label, value in words.cost_rows(data["cost"])),
        *(f"- Run {run['name']}: seed {run['seed']}, model `{run['digest']}`" for run in data["runs"]),
        f"- Data: `{data['data']['digest']}`, split {data['data']['split']}",
        f"- Test: `{data['test']['digest']}`",
        *(f"- {name_of(name)}: `{text}`" for name, text in data["signatures"].items()),
        *(f"- Licence of {source}: {licence}" for source, licence in data["licences"].items()),
        "",
    ]
    return "\n".join(lines)


def _labels(data: Mapping[str, Any]) -> list[str]:
    if not data["labels"]:
        return []
    rows = [
        [r["label"], str(r["count"]), f"{r['precision']:.3f}", f"{r['recall']:.3f}", interval("matthews", r["f1"])]
        for r in data["labels"]
    ]
    return ["## Label by label", "", *_table(["label", "in the test", "precision", "recall", "F1 (interval)"], rows)]


def _slices(data: Mapping[str, Any]) -> list[str]:
    metric, lines = data["main_metric"], []
    for table in data["slices"]:
        unit = f", in {table['unit']}" if table["unit"] else ""
        rows = [[row["value"], str(row["count"]), interval(metric, row[metric])] for row in table["rows"]]
        lines += [f"## By {table['column']}{unit}", "", *_table([table["column"], "examples", name_of(metric)], rows)]
    return lines


def _mistakes(data: Mapping[str, Any]) -> list[str]:
    kind = data["test"]["kind"]
    rows = [
        [m["shown"], answer_text(kind, m["truth"], m["shown"]), answer_text(kind, m["answer"], m["shown"])]
        for m in data["mistakes"][:SOME_MISTAKES]
    ]
    return ["## Mistakes", "", *_table(["example", "right", "answered"], rows)] if rows else []


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return [*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows), ""]


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())
