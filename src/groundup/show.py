"""Showing what a recipe or an artefact came to: figures in a table, curves in the terminal and as PNG."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from groundup import plan
from groundup.artifact import Artifact, Store, open_artifact
from groundup.console import COLOURS, show_figure
from groundup.recipe import load
from groundup.units import show_bytes, show_count, show_seconds

CURVES = "log/metrics.jsonl"
BLOCKS = " ▁▂▃▄▅▆▇█"


def show(console: Console, what: Path, png: Path | None = None) -> None:
    """Print a recipe's state, or an artefact's figures and curves; with `png`, draw the curves there too."""
    if what.suffix in (".yaml", ".yml"):
        _print_state(console, what)
        return
    artifact = open_artifact(what)
    print_artifact(console, artifact)
    curves = read_curves(artifact)
    for name in ("loss", "validation_loss"):
        if len(curves.get(name, [])) > 1:
            console.print(f"\n[bold]{name}[/]")
            console.print(chart(curves[name]), markup=False)
    if png is not None and curves:
        draw(curves, png)
        console.print(f"wrote {png}")


def as_data(what: Path) -> dict[str, Any]:
    """The same as plain data."""
    if what.suffix in (".yaml", ".yml"):
        steps = plan.examine(load(what), Store()).steps.values()
        return {s.stage.name: {"state": s.status, "why": s.why, "key": s.key} for s in steps}
    artifact = open_artifact(what)
    return {"manifest": artifact.manifest, "curves": read_curves(artifact)}


def print_run(console: Console, artifacts: Mapping[str, Artifact]) -> None:
    """One line per stage of a finished run, each report's scores and a sample, and what to type next."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "time", "tokens/s", "result"):
        table.add_column(name, justify="right" if name in ("time", "tokens/s") else "left")
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        speed = manifest["metrics"].get("tokens_s")
        rate = show_figure("tokens", round(speed)) if speed else ""
        table.add_row(name, show_seconds(manifest["wall_s"]), rate, escape(headline(artifact)))
    console.print(table)
    for artifact in artifacts.values():
        if artifact.kind == "report":
            print_scores(console, artifact.json("report.json"))
    for name, artifact in artifacts.items():
        hint = next_step(name, artifact)
        if hint:
            console.print(f"[dim]next:[/] {escape(hint)}", soft_wrap=True)


def print_scores(console: Console, report: Mapping[str, Any]) -> None:
    """The main score of a report beside its rivals', each with its interval, and one sample."""
    metric = report["main_metric"]
    table = Table(box=None, pad_edge=False)
    for name in (metric.replace("_", " "), "", "95% interval", "trained on"):
        table.add_column(name, justify="right" if name != metric.replace("_", " ") else "left")
    own = report["scores"][metric]
    table.add_row("[bold]this model[/]", f"{own['estimate']:.3f}", _between(own), "")
    for rival in report["rivals"]:
        if rival["metric"] == metric:
            read = show_bytes(rival["trained_bytes"]) if rival["trained_bytes"] else ""
            table.add_row(escape(rival["name"]), f"{rival['score']:.3f}", _between(rival["interval"]), read)
    console.print()
    console.print(table)
    sample: Mapping[str, Any] = next(iter(report["samples"]), {})
    if sample.get("kind") == "continuation":
        console.print("\n[dim]a sample, the prompt dim:[/]")
        console.print(f"[dim]{escape(sample['prompt'])}[/]{escape(sample['text'])}\n")


def _between(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["low"] is None:
        return ""
    return f"{interval['low']:.3f} to {interval['high']:.3f}"


def headline(artifact: Artifact) -> str:
    """An artefact's main figures in one line: what its stage called its headline, else the first few."""
    metrics = artifact.metrics
    if isinstance(metrics.get("headline"), str):
        return str(metrics["headline"])
    if isinstance(metrics.get("documents"), dict):
        return "  ".join(f"{split} {show_count(count)}" for split, count in metrics["documents"].items()) + " documents"
    plain = {k: v for k, v in metrics.items() if isinstance(v, int | float) and k != "tokens_s"}
    return "  ".join(f"{key} {show_figure(key, value)}" for key, value in list(plain.items())[:4])


USES = {
    "ForCausalLM": 'groundup generate {place} "…"',
    "LMHeadModel": 'groundup generate {place} "…"',
    "ForMaskedLM": 'groundup fill {place} "… [MASK] …"',
    "ForPreTraining": 'groundup fill {place} "… [MASK] …"',
    "ForSequenceClassification": 'python -c \'import groundup; print(groundup.load("{place}").predict(["…"]))\'',
}
"""What a model can be tried with, by the end of its class's name."""


def next_step(name: str, artifact: Artifact) -> str:
    """A command worth typing next, for a kind of artefact that has one."""
    place = f"runs/{artifact.manifest.get('recipe')}/{name}"
    if artifact.kind == "model":
        classes = artifact.json("config.json").get("architectures") or [""]
        purpose = next((use for end, use in USES.items() if str(classes[0]).endswith(end)), "")
        return purpose.format(place=place)
    if artifact.kind == "report":
        return f"open {place}/report.html"
    return ""


def print_artifact(console: Console, artifact: Artifact) -> None:
    """An artefact's kind, digest, provenance, figures and files."""
    manifest = artifact.manifest
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "kind": artifact.kind,
        "digest": artifact.digest,
        "made by": manifest.get("made_by", ""),
        "recipe": f"{manifest.get('recipe', '')} / {manifest.get('stage', '')}",
        "time": f"{show_seconds(manifest['wall_s'])}, CPU {show_seconds(manifest['cpu_s'])}",
        "determinism": manifest["determinism"],
    }
    figures = {k: show_figure(k, v) for k, v in manifest["metrics"].items() if isinstance(v, int | float | str)}
    choices = {f"choice: {k}": str(v) for k, v in manifest["choices"].items()}
    for key, value in (rows | figures | choices).items():
        table.add_row(f"[dim]{escape(key)}[/]", escape(str(value)))
    for source, licence in manifest["licences"].items():
        table.add_row("[dim]licence[/]", escape(f"{source}: {licence}"))
    console.print(table)


def _print_state(console: Console, path: Path) -> None:
    made = plan.examine(load(path), Store())
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "kind", "state", "why", "result"):
        table.add_column(name)
    for step in made.steps.values():
        result = headline(step.artifact) if step.artifact else ""
        state = f"[{COLOURS[step.status]}]{step.status}[/]"
        table.add_row(step.stage.name, step.stage.kind, state, escape(step.why), escape(result))
    console.print(table)


def read_curves(artifact: Artifact) -> dict[str, list[tuple[float, float]]]:
    """Every numeric series of `log/metrics.jsonl` as (step, value) pairs, by name; empty without a log."""
    path = artifact.path / CURVES
    curves: dict[str, list[tuple[float, float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        entry = json.loads(line)
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and "step" in entry:
                curves.setdefault(name, []).append((float(entry["step"]), float(value)))
    return curves


def chart(points: Sequence[tuple[float, float]], *, width: int = 72, height: int = 8) -> str:
    """A series drawn with block characters, highest and lowest value at the left."""
    columns = _resample([value for _, value in points], width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    lines = []
    for row in range(height - 1, -1, -1):
        cells = [(value - low) / span * height - row for value in columns]
        label = f"{high:10.4g} " if row == height - 1 else f"{low:10.4g} " if row == 0 else " " * 11
        lines.append(label + "".join(BLOCKS[round(max(0.0, min(1.0, cell)) * 8)] for cell in cells))
    first, last = f"{points[0][0]:g}", f"{points[-1][0]:g}"
    lines.append(" " * 11 + first + last.rjust(max(1, len(columns) - len(first))))
    return "\n".join(lines)


def _resample(values: Sequence[float], width: int) -> list[float]:
    """The means of at most `width` equal pieces."""
    pieces = min(width, len(values))
    borders = [round(i * len(values) / pieces) for i in range(pieces + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(borders)]


def draw(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Draw loss and validation loss, learning rate and speed into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [["loss", "validation_loss"], ["lr"], ["tokens_s"]]
    shown = [[n for n in names if n in curves] for names in groups]
    shown = [names for names in shown if names]
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(8, 2.6 * len(shown)), sharex=True, squeeze=False)
    for axis, names in zip(axes[:, 0], shown, strict=True):
        for name in names:
            axis.plot(*zip(*curves[name], strict=True), label=name, linewidth=1.2)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
