"""The report of an evaluation: `report.json` for machines, `report.md` and `report.html` for people.

All three are written from one mapping of plain data, so they cannot disagree, and that mapping is a
function of the model, the data and the seed. What training took is in it, from the model's manifest;
what the evaluation itself took is not, so the same evaluation writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from groundup.artifact import Artifact
from groundup.evaluation import labelled_markdown, labelled_page, page, words
from groundup.evaluation.labelled_pictures import NONE, Pictures
from groundup.evaluation.suites import page as suites_page
from groundup.units import show_bytes, show_count

FORMAT = 1
MAIN_METRICS = ("bits_per_byte", "masked_accuracy")
"""The score a report is about: the first of these that a task has, else its first."""
CURVES = "log/metrics.jsonl"
CURVE_POINTS = 2000


def main_metric(names: list[str]) -> str:
    """The score a report leads with."""
    return next((name for name in MAIN_METRICS if name in names), names[0])


def curves(model: Artifact) -> tuple[dict[str, list[list[float]]], str]:
    """Training and validation loss of a model's log, thinned, and what they are drawn over.

    Over millions of tokens (or examples, where these are none) if the log counts them, else over steps; empty
    without a log.
    """
    path = model.path / CURVES
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    tokens = {line["step"]: line["tokens"] for line in lines if "tokens" in line}
    per_step = max((n / step for step, n in tokens.items() if step), default=0.0)
    scale: Callable[[float], float] = (lambda step: step * per_step / 1e6) if per_step else float
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        for name in ("loss", "validation_loss"):
            if isinstance(line.get(name), int | float):
                found.setdefault(name, []).append([round(scale(line["step"]), 6), round(float(line[name]), 6)])
    thin = {name: points[:: -(-len(points) // CURVE_POINTS)] for name, points in found.items()}
    return thin, f"million {unit_of(model)} of training" if per_step else "steps"


def unit_of(model: Artifact) -> str:
    """What the model's training counted: tokens, or examples where these are none."""
    return str(model.metrics.get("unit", "tokens"))


def cost(model: Artifact) -> dict[str, Any]:
    """What the model took to train, as its manifest says; unknown figures are left out."""
    manifest = model.manifest
    known = {
        "parameters": model.metrics.get("parameters"),
        "tokens": manifest["tokens"] or None,
        "unit": None if unit_of(model) == "tokens" else unit_of(model),
        "wall_s": manifest.get("wall_s"),
        "cpu_s": manifest.get("cpu_s"),
        "tokens_s": model.metrics.get("tokens_s"),
        "mfu": model.metrics.get("mfu"),
        "cores": manifest["environment"].get("cores"),
        "device": manifest["choices"].get("device"),
        "determinism": manifest["determinism"],
    }
    return {key: value for key, value in known.items() if value is not None}


def write(data: Mapping[str, Any], path: Callable[[str], Path], pictures: Pictures = NONE) -> None:
    """Write the three files; `path` gives the place of a payload file by name, `pictures` go into the page.

    `data` is what `collecting.collect` gives for a language model, `labelled_report.collect` for a
    labelled task, or `suites.page.collect` for published tests.
    """
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path("report.json").write_text(text + "\n", encoding="utf-8")
    match data.get("kind"):
        case "labelled":
            told, drawn = labelled_markdown.markdown(data), labelled_page.render(data, pictures)
        case "suites":
            told, drawn = suites_page.markdown(data), suites_page.render(data)
        case _:
            told, drawn = markdown(data), page.render(data)
    path("report.md").write_text(told, encoding="utf-8")
    path("report.html").write_text(drawn, encoding="utf-8")


def markdown(data: Mapping[str, Any]) -> str:
    """The report as Markdown: what the page says, without the pictures."""
    model, tested = data["model"], data["data"]
    lines = [
        f"# {data['name']}",
        "",
        f"**{words.headline(data)}**",
        "",
        f"{model['family']}, {show_count(model['parameters'])} parameters, {show_count(model['tokens'])} tokens of "
        f"training; {tested['documents']:,} test documents, {show_bytes(tested['bytes'])}.",
        "",
        *(f"- {sentence}" for sentence in [*words.verdicts(data), *data["notes"]]),
        "",
        "| who | score | value (interval) | model ahead by |",
        "| --- | --- | ---: | ---: |",
        *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in page.table_rows(data)),
        "",
        *_samples(data),
        "## Cost and provenance",
        "",
        *(f"- {label}: {value}" for label, value in words.cost_rows(data["cost"])),
        f"- Model: `{model['digest']}`",
        f"- Data: `{tested['digest']}`, split {tested['split']}",
        f"- Seed: {data['seed']}",
        *(f"- Licence of {source}: {licence}" for source, licence in data["licences"].items()),
        "",
    ]
    return "\n".join(lines)


def _samples(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Samples", ""] if data["samples"] else []
    for sample in data["samples"]:
        if sample["kind"] == "continuation":
            lines += [*_quoted(sample["prompt"] + " ⟶ " + sample["text"]), "", f"({sample['ended']})", ""]
        else:
            guesses = [f"{g['truth']} → {g['best'][0][0]}{' ✓' if g['right'] else ''}" for g in sample["gaps"]]
            lines += [*_quoted(sample["text"]), "", f"hidden → filled in: {'; '.join(guesses)}", ""]
    return lines


def _quoted(text: str) -> list[str]:
    """A text that Markdown shows as it is, whatever it contains: an indented block."""
    return [f"    {line}" for line in text.splitlines()] or ["    "]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
