"""Run shipped recipes and write what came of them into their headers.

    python bench/recipes.py [RECIPE …] [--set KEY=VALUE …]      # all recipes in recipes/ unless named

Each recipe's report is kept in `bench/results/recipes/NAME.json`; the comment between the two markers of the
recipe, and the table of docs/explanation/popular-figures.md, are made from it. A test makes both again and
compares, and compares the digest of the recipe's settings, so neither can be edited alone.
"""

from __future__ import annotations

import argparse
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

from groundup import config
from groundup.artifact import Artifact, digest_data
from groundup.machine import usable_cores
from groundup.recipe import Recipe, load
from groundup.runner import run
from groundup.units import show_count, show_seconds

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "# --- results, written by `make results` ---", "# --- end of results ---"
NO_FIGURES = "#\n# No figures yet: `make results` writes them here.\n"
PAGE = ROOT / "docs/explanation/popular-figures.md"
TABLE_BEGIN, TABLE_END = "<!-- results, written by `make results` -->", "<!-- end of results -->"
_PUBLISHED = re.compile(r"^# Published(?: \((\w+)\))?: (.+(?:\n#   .+)*)", re.MULTILINE)
"""A line of a recipe's head: what others report, of its only report or of the one named."""
SHOWN_SCORES = 4
"""Of a labelled report: the rest stands in the kept results."""
SHOWN_FIRST = ("in_scope_accuracy", "out_of_scope_recall")
"""Those without which the main one says little."""
_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", re.DOTALL | re.MULTILINE)


def settings_digest(recipe: Recipe) -> str:
    """SHA-256 of all that a recipe chooses, without the paths of its data."""
    sections = {name: config.chosen(stage.config) for name, stage in recipe.stages.items()}
    for section in sections.values():
        section.pop("source", None)
        section.get("decontaminate", {}).pop("paths", None)
    return digest_data(sections)


def collect(recipe: Recipe, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """What is kept of a run: scores, digests, cost."""
    reports = {name: a for name, a in artifacts.items() if a.kind == "report"}
    models = {name: a for name, a in artifacts.items() if a.kind == "model"}
    return {
        "recipe": recipe.name,
        "settings": settings_digest(recipe),
        "date": str(date.today()),
        "seed": recipe.header.seed,
        "cores": usable_cores(),
        "devices": sorted({device for a in models.values() if (device := a.manifest["choices"].get("device_words"))}),
        "seconds": {name: round(float(a.manifest["wall_s"]), 1) for name, a in artifacts.items()},
        "digests": {name: a.digest for name, a in artifacts.items()},
        "weights": {name: weights_digest(a) for name, a in models.items()},
        "tokens": {name: a.manifest["tokens"] for name, a in models.items()},
        "units": {name: a.metrics.get("unit", "tokens") for name, a in models.items()},
        "reports": {name: _scores_only(a.json("report.json")) for name, a in reports.items()},
    }


def weights_digest(model: Artifact) -> str:
    """SHA-256 of the digests of a model's tensors: the same for the same weights, whatever is said beside them."""
    files = model.manifest["files"]
    return digest_data({name: held["sha256"] for name, held in files.items() if name.endswith(".safetensors")})


def _scores_only(report: dict[str, Any]) -> dict[str, Any]:
    kept = ("name", "main_metric", "scores", "rivals", "runs", "over_runs", "test", "calibration")
    return {key: report[key] for key in kept if key in report}


def header(kept: dict[str, Any]) -> str:
    """The comment that states a recipe's cost and scores."""
    cost = show_seconds(sum(kept["seconds"].values()))
    cores = f"{kept['cores']} core{'s' if kept['cores'] > 1 else ''}"
    # On another kind of processor sums round otherwise, and weights have other digests.
    cores += "".join(f", {device}" for device in kept.get("devices", ()))
    lines = [BEGIN, f"# {kept['date']}, seed {kept['seed']}, {cores}, {cost} in all"]
    for name, tokens in kept["tokens"].items():
        seconds, unit = show_seconds(kept["seconds"][name]), kept.get("units", {}).get(name, "tokens")
        own = kept.get("weights", {}).get(name)
        same = f"weights {own[:16]}" if own else f"digest {kept['digests'][name][:16]}"
        lines.append(f"# {name}: {show_count(tokens)} {unit} in {seconds}, {same}")
    for name, report in kept["reports"].items():
        lines += [f"# {name}: {line}" for line in scores(report)]
    return "\n".join([*lines, END]) + "\n"


def scores(report: dict[str, Any]) -> list[str]:
    """One line per score of a report, with its interval, and one per rival; of labelled tasks the first scores only."""
    lines, seeds = [], report.get("over_runs", {})
    first = [name for name in (report.get("main_metric"), *SHOWN_FIRST) if name in report["scores"]]
    shown = dict.fromkeys([*first, *report["scores"]])
    for metric in list(shown)[: SHOWN_SCORES if "runs" in report else None]:
        found = report["scores"][metric]
        line = f"{metric} {found['estimate']:.4g}{_interval(found)}"
        if metric in seeds:
            line += f"; the mean of {len(report['runs'])} seeds{_interval(seeds[metric])}"
        lines.append(line)
    for rival in report["rivals"]:
        line = f"beside it, {rival['name']}: {rival['metric']} {rival['score']:.4g}"
        if "runs" in report:
            line += f"; the model is ahead by {rival['lead']['estimate']:.4g}{_interval(rival['lead'])}"
        if rival.get("win_rate"):
            line += f", and wins {rival['win_rate']['estimate']:.3g} of single examples{_interval(rival['win_rate'])}"
        lines.append(line)
    return lines


def _interval(found: dict[str, Any], digits: int = 4) -> str:
    return f" ({found['low']:.{digits}g} to {found['high']:.{digits}g})" if found["low"] is not None else ""


def write(path: Path, kept: dict[str, Any]) -> None:
    """Put the header into the recipe, replacing an older one."""
    text = _BLOCK.sub("", read(path)).replace(NO_FIGURES, "")
    path.write_text(header(kept) + text, encoding="utf-8")


def table() -> str:
    """The scores of all labelled recipes that have results, as a Markdown table for the page on popular figures."""
    lines = ["| recipe | score | ours | best classical rival, same rows | published |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        if not kept_path(path.stem).is_file():
            continue
        kept = json.loads(kept_path(path.stem).read_text(encoding="utf-8"))
        published = {
            found[1]: " ".join(found[2].replace("\n#", " ").split()) for found in _PUBLISHED.finditer(read(path))
        }
        for name, report in kept["reports"].items():
            if "runs" not in report:
                continue
            metric, link = report["main_metric"], f"[{path.stem}](../../recipes/{path.name})"
            where = link if len(kept["reports"]) == 1 else f"{link}, {name.removesuffix('_report').replace('_', ' ')}"
            found = report["scores"][metric]
            seeds = f", {len(report['runs'])} seeds" if len(report["runs"]) > 1 else ""
            rivals = sorted(report["rivals"], key=lambda rival: rival["lead"]["estimate"])
            best = f"{rivals[0]['score']:.3g} ({rivals[0]['name']})" if rivals else "none"
            ours = f"{found['estimate']:.3g}{_interval(found, 3)}{seeds}"
            lines.append(f"| {where} | {metric} | {ours} | {best} | {published.get(name, published.get(None, ''))} |")
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Put the table into its page."""
    page = read(PAGE)
    before, rest = page.split(TABLE_BEGIN)
    _, after = rest.split(TABLE_END)
    PAGE.write_text(f"{before}{TABLE_BEGIN}\n\n{table()}\n{TABLE_END}{after}", encoding="utf-8")


def read(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def kept_path(name: str) -> Path:
    """Where a recipe's results are kept."""
    return ROOT / "bench/results/recipes" / f"{name}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    for path in options.recipes or sorted((ROOT / "recipes").glob("*.yaml")):
        artifacts = run(path, overrides=options.overrides, fresh=True)
        kept = collect(load(path, options.overrides), artifacts)
        kept_path(path.stem).parent.mkdir(parents=True, exist_ok=True)
        kept_path(path.stem).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write(path, kept)
        print(header(kept))
    write_table()


if __name__ == "__main__":
    main()
