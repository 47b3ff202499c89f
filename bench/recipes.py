"""Run shipped recipes and write what came of them into their headers.

    python bench/recipes.py [RECIPE …] [--set KEY=VALUE …]      # all recipes in recipes/ unless named

Each recipe's report is kept in `bench/results/recipes/NAME.json`, and the comment between the two
markers of the recipe is made from it. A test makes the comment again and compares, and compares the
digest of the recipe's settings, so neither can be edited alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

from groundup import config
from groundup.artifact import Artifact, digest_data
from groundup.recipe import Recipe, load
from groundup.runner import run
from groundup.units import show_count, show_seconds

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "# --- results, written by `make results` ---", "# --- end of results ---"
NO_FIGURES = "#\n# No figures yet: `make results` writes them here.\n"
_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", re.DOTALL | re.MULTILINE)


def settings_digest(recipe: Recipe) -> str:
    """SHA-256 of all that a recipe chooses, without the paths of its data."""
    sections = {name: config.chosen(stage.config) for name, stage in recipe.stages.items()}
    for section in sections.values():
        section.pop("source", None)
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
        "cores": os.cpu_count(),
        "seconds": {name: round(float(a.manifest["wall_s"]), 1) for name, a in artifacts.items()},
        "digests": {name: a.digest for name, a in artifacts.items()},
        "tokens": {name: a.manifest["tokens"] for name, a in models.items()},
        "reports": {name: _scores_only(a.json("report.json")) for name, a in reports.items()},
    }


def _scores_only(report: dict[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("name", "main_metric", "scores", "rivals")}


def header(kept: dict[str, Any]) -> str:
    """The comment that states a recipe's cost and scores."""
    cost = show_seconds(sum(kept["seconds"].values()))
    lines = [BEGIN, f"# {kept['date']}, seed {kept['seed']}, {kept['cores']} cores, {cost} in all"]
    for name, tokens in kept["tokens"].items():
        seconds = show_seconds(kept["seconds"][name])
        lines.append(f"# {name}: {show_count(tokens)} tokens in {seconds}, digest {kept['digests'][name][:16]}")
    for name, report in kept["reports"].items():
        lines += [f"# {name}: {line}" for line in scores(report)]
    return "\n".join([*lines, END]) + "\n"


def scores(report: dict[str, Any]) -> list[str]:
    """One line per score of a report, with its interval, and one per rival."""
    lines = []
    for metric, found in report["scores"].items():
        interval = f" ({found['low']:.4g} to {found['high']:.4g})" if found["low"] is not None else ""
        lines.append(f"{metric} {found['estimate']:.4g}{interval}")
    return lines + [f"beside it, {r['name']}: {r['metric']} {r['score']:.4g}" for r in report["rivals"]]


def write(path: Path, kept: dict[str, Any]) -> None:
    """Put the header into the recipe, replacing an older one."""
    text = _BLOCK.sub("", path.read_text(encoding="utf-8")).replace(NO_FIGURES, "")
    path.write_text(header(kept) + text, encoding="utf-8")


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


if __name__ == "__main__":
    main()
