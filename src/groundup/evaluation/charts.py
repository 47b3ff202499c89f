"""The pictures of a report, as SVG text that stands inside a page.

Letters stay letters: the browser draws them with the reader's own fonts, so Chinese names need no
font here, texts can be searched, and a printed page is sharp. The same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # matplotlib takes half a second to import: only where something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL, RIVAL, INK, FAINT, GRID = "#2159c4", "#9aa7b4", "#1d2733", "#64717f", "#e6eaee"
ACCENT = "#d9822b"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
}
CURVE_POINTS = 400
"""A line on a page cannot show more; longer logs are averaged in pieces."""


@dataclass(frozen=True)
class Bar:
    """One score of several: its label, its value with an interval if there is one, and whose it is."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    is_model: bool = False


def scores(bars: Sequence[Bar], axis_label: str, *, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """Scores side by side, the model's in colour, intervals as whiskers; `show` writes a value."""
    with canvas(9.0, 0.62 * len(bars) + 0.75) as (figure, axes):
        for place, bar in enumerate(bars):
            colour = MODEL if bar.is_model else RIVAL
            axes.barh(place, bar.value, height=0.56, color=colour, linewidth=0)
            edge = bar.value
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
                edge = max(edge, bar.high)
            weight = "bold" if bar.is_model else "normal"
            axes.annotate(
                show(bar.value), (edge, place), (6, 0), textcoords="offset points", va="center", fontweight=weight
            )
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], color=INK)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel(axis_label)
        return as_svg(figure, "scores", f"{axis_label}: " + ", ".join(f"{b.label} {show(b.value)}" for b in bars))


def learning_curve(
    curves: Mapping[str, Sequence[Sequence[float]]], axis_label: str, *, unit: str = "loss, nats per token"
) -> str:
    """Loss over training: every logged step faint, its running mean strong, validations as dots."""
    with canvas(9.0, 3.5) as (figure, axes):
        training, held_out = curves.get("loss", []), curves.get("validation_loss", [])
        if training:
            x, y = _thinned(training)
            axes.plot(x, y, color=MODEL, alpha=0.25, linewidth=0.9)
            axes.plot(x, _smoothed(y), color=MODEL, linewidth=1.8, label="training (running mean)")
        if held_out:
            x, y = np.array(held_out, dtype=float).T
            axes.plot(x, y, color=ACCENT, marker="o", markersize=4, linewidth=1.4, label="validation")
        axes.set_xlabel(axis_label)
        axes.set_ylabel(unit)
        _fit_losses(axes, [value for _, value in [*training, *held_out]])
        axes.legend(frameon=False, loc="upper right")
        last = f"{held_out[-1][1]:.3f}" if held_out else f"{training[-1][1]:.3f}" if training else "none"
        return as_svg(figure, "curve", f"learning curve; last loss {last}")


def scatter(own: Sequence[float], other: Sequence[float], *, other_label: str, unit: str) -> str:
    """Each unit as a dot: the rival's bits per byte against the model's; below the line the model is better."""
    x, y = np.array(other), np.array(own)
    better = float(np.mean(y < x)) if len(x) else 0.0
    low, high = (float(np.quantile(np.concatenate([x, y]), q)) for q in (0.0, 0.995))
    room = max(0.05, 0.05 * (high - low))
    limits = (max(0.0, low - room), high + room)
    with canvas(4.3, 4.1) as (figure, axes):
        axes.plot(limits, limits, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.scatter(x, y, s=13, color=MODEL, alpha=0.45, linewidths=0)
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_aspect("equal")
        axes.set_xlabel(f"{other_label}, bits per byte")
        axes.set_ylabel("model, bits per byte")
        axes.text(0.97, 0.04, f"model better on {better:.0%}", transform=axes.transAxes, ha="right", color=MODEL)
        return as_svg(figure, "scatter", f"{len(x)} {unit}: the model is better on {better:.0%}")


def orders(tried: Mapping[str, Sequence[float]], chosen: str, order: int) -> str:
    """Validation bits per byte of n-gram models by order, for each alphabet; the chosen one marked."""
    with canvas(4.3, 4.1) as (figure, axes):
        for colour, (alphabet, bits) in zip((RIVAL, ACCENT, FAINT), tried.items(), strict=False):
            places = range(1, len(bits) + 1)
            axes.plot(places, bits, color=colour, marker="o", markersize=4, linewidth=1.6, label=f"over {alphabet}")
            if alphabet == chosen:
                axes.plot(order, bits[order - 1], "o", color=MODEL, markersize=8, label=f"chosen: order {order}")
        axes.set_xlabel("order (n)")
        axes.set_ylabel("validation bits per byte")
        axes.set_xticks(range(1, max(map(len, tried.values())) + 1))
        axes.legend(frameon=False)
        return as_svg(figure, "orders", f"validation chose order {order} over {chosen}")


def _fit_losses(axes: Axes, values: Sequence[float]) -> None:
    """Cut the first steps off the top: a curve is read at its end."""
    finite = [value for value in values if np.isfinite(value)]
    if len(finite) > 20:
        low, high = min(finite), float(np.quantile(finite, 0.97))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def _thinned(points: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array([p for p in points if np.isfinite(p[1])], dtype=float).reshape(-1, 2)
    pieces = np.array_split(array, min(CURVE_POINTS, max(1, len(array))))
    means = np.array([piece.mean(0) for piece in pieces if len(piece)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred running mean over a twentieth of the curve, shorter at its ends."""
    width = max(1, len(values) // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, len(values) - 1 - places), width // 2)
    smoothed: np.ndarray = (total[places + reach + 1] - total[places - reach]) / (2 * reach + 1)
    return smoothed


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of this size in inches and its axes, in the style of the report."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # matplotlib measures labels with its own font, which may lack Chinese glyphs; the reader's has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def as_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element that scales with the page and can be read aloud."""
    import matplotlib

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"groundup-{name}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    # Several pictures stand in one page, so the names inside each must be its own.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    assert size is not None, "matplotlib writes its size in points"
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace(size[0], f'role="img" aria-label="{label}"', 1).strip()
