"""The pictures of a labelled task's report: confusions, reliability, risk, slices, outsiders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from groundup.evaluation.charts import ACCENT, FAINT, GRID, INK, MODEL, RIVAL, Bar, as_svg, canvas

SMALL = 8
"""A confusion matrix of so many classes needs half the width of the page."""
CELLS_WITH_NUMBERS = 20
"""A larger confusion matrix shows colours only."""


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """How often each class (rows) was taken for which (columns), coloured by the share of its row."""
    table = np.array(counts, float)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    n, longest = len(labels), max(map(len, labels))
    size = (4.4, 4.1) if n <= SMALL else (9.0, 8.2)
    with canvas(*size) as (figure, axes):
        right = np.eye(n, dtype=bool)
        for place, (mask, colour) in enumerate(((right, MODEL), (~right, ACCENT))):
            shown = np.ma.masked_array(share, ~mask)
            axes.imshow(shown, cmap=_fade(colour), vmin=0, vmax=1 if place == 0 else max(0.02, float(shown.max())))
        if n <= CELLS_WITH_NUMBERS:
            for row in range(n):
                for column in range(n):
                    strong = row == column and share[row, column] > 0.55
                    if table[row, column]:
                        axes.text(
                            column, row, f"{int(table[row, column])}", ha="center", va="center", fontsize=9,
                            color="white" if strong else INK,
                        )  # fmt: skip
        letters = 10 if n <= CELLS_WITH_NUMBERS else 7
        axes.set_xticks(
            range(n),
            labels,
            rotation=90 if n * longest > (24 if n <= SMALL else 70) else 0,
            fontsize=letters,
            color=INK,
        )
        axes.set_yticks(range(n), labels, fontsize=letters, color=INK)
        axes.set_xlabel("answered")
        axes.set_ylabel("true")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        wrong = int(table.sum() - np.trace(table))
        return as_svg(figure, "confusion", f"confusion matrix of {n} classes; {wrong} of {int(table.sum())} wrong")


def _fade(colour: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(colour, ["#ffffff00", colour])


def reliability(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> str:
    """Accuracy against confidence: on the dashed line a model can be believed."""
    with canvas(4.4, 4.1) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        shown = [("as trained", before, MODEL), ("after temperature scaling", after, ACCENT)]
        lowest = 1.0
        for name, found, colour in shown:
            if found is None:
                continue
            x, y, low, high = (
                np.array([b[key] for b in found["bins"]]) for key in ("confidence", "accuracy", "low", "high")
            )
            axes.errorbar(
                x, y, yerr=np.maximum([y - low, high - y], 0), color=colour, marker="o", markersize=4.5, linewidth=1.5,
                elinewidth=0.9, label=f"{name} (error {found['error']:.3f})",
            )  # fmt: skip
            lowest = min(lowest, float(x.min()), float(low.min()))
        floor = max(0.0, np.floor(lowest * 10) / 10 - 0.02)
        axes.set_xlim(floor, 1.02)
        axes.set_ylim(floor, 1.02)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        axes.legend(frameon=False, loc="upper left", fontsize=9)
        return as_svg(figure, "reliability", f"reliability diagram; calibration error {before['error']:.3f}")


def risk_coverage(found: Mapping[str, Any]) -> str:
    """The share of wrong answers among those the model is surest of, by how many it answers."""
    with canvas(4.4, 4.1) as (figure, axes):
        coverage, risk = 100 * np.array(found["coverage"]), 100 * np.array(found["risk"])
        axes.plot(coverage, risk, color=MODEL, linewidth=1.8)
        axes.fill_between(coverage, risk, color=MODEL, alpha=0.10, linewidth=0)
        axes.axhline(risk[-1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "answering at random would stay here", (0, risk[-1]), (2, 4), textcoords="offset points", color=FAINT,
            fontsize=9,
        )  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_ylim(0, max(1.0, 1.18 * float(risk[len(risk) // 20 :].max())))
        axes.set_xlabel("coverage: % of examples answered, surest first")
        axes.set_ylabel("risk: % of those wrong")
        at = found["risk_at"].get("80%", risk[-1] / 100)
        return as_svg(figure, "risk", f"risk–coverage curve; {100 * at:.1f} % wrong when the surest 80 % are answered")


def dots(rows: Sequence[Bar], axis_label: str, *, overall: float | None, show: Any, name: str) -> str:
    """A score of several groups as dots with intervals, and a line at the score of all."""
    with canvas(9.0, 0.34 * len(rows) + 0.85) as (figure, axes):
        for place, row in enumerate(rows):
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=MODEL, linewidth=2.2, alpha=0.45)
            axes.plot(row.value, place, "o", color=MODEL, markersize=6)
            axes.annotate(
                show(row.value), (1.0, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=9.5, color=INK,
            )  # fmt: skip
        if overall is not None:
            axes.axvline(overall, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis_label)
        axes.margins(x=0.04)
        return as_svg(figure, name, f"{axis_label}: " + ", ".join(f"{r.label} {show(r.value)}" for r in rows))


def outsiders(found: Mapping[str, Any]) -> str:
    """How strange examples of the classes and outsiders look to the model."""
    bounds = np.array(found["bounds"])
    with canvas(9.0, 2.9) as (figure, axes):
        for name, colour in (("inside", RIVAL), ("outside", ACCENT)):
            counts = np.array(found[name], float)
            label = "of the classes" if name == "inside" else "out of scope"
            axes.stairs(counts / max(1.0, counts.sum()), bounds, fill=True, color=colour, alpha=0.55, label=label)
        axes.set_xlabel("how strange an example looks: 0 like a class, 1 like none")
        axes.set_ylabel("share of examples")
        axes.set_xlim(0, 1)
        axes.axhline(0, color=GRID, linewidth=0.8)
        axes.legend(frameon=False, loc="upper center")
        return as_svg(figure, "outsiders", "histograms of strangeness inside and out of scope")
