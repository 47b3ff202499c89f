"""What the figures of a report say, in sentences that claim no more than they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from groundup.units import show_bytes, show_count, show_seconds

NAMES = {
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity per token",
    "pseudo_perplexity": "pseudo-perplexity",
    "loss": "loss (nats per token)",
    "masked_accuracy": "masked tokens guessed",
    "next_sentence_accuracy": "next sentences told",
    "next_sentence_loss": "next-sentence loss (nats)",
}
COSTS: tuple[tuple[str, str, Callable[[Any], str], str], ...] = (
    ("parameters", "Parameters", show_count, ""),
    ("tokens", "Trained on", show_count, " {unit}"),
    ("wall_s", "Training time", show_seconds, ""),
    ("cpu_s", "CPU time", show_seconds, ""),
    ("tokens_s", "Speed", show_count, " {unit}/s"),
    ("cores", "Cores", str, ""),
    ("device", "Device", str, ""),
    ("determinism", "Determinism", str, ""),
)
"""Key, label, how it is written and what follows, of what training took. The unit is tokens, or what `unit` says."""
SHARES = ("masked_accuracy", "next_sentence_accuracy")


def figure(name: str, value: float | None) -> str:
    """A score as people write it."""
    if value is None:
        return "unknown"
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(name: str, found: Mapping[str, Any]) -> str:
    """`1.873 (1.851 to 1.897)`, or the figure alone where nothing can be said of its precision."""
    if found.get("low") is None:
        return figure(name, found["estimate"])
    return f"{figure(name, found['estimate'])} ({figure(name, found['low'])} to {figure(name, found['high'])})"


def headline(data: Mapping[str, Any]) -> str:
    """The main score with its interval, in one sentence."""
    name = data["main_metric"]
    found = data["scores"][name]
    if found["low"] is None:
        return f"{figure(name, found['estimate'])} {NAMES.get(name, name)} on the test text"
    spread = f"{figure(name, found['low'])} to {figure(name, found['high'])}"
    main = f"{figure(name, found['estimate'])} {NAMES.get(name, name)} on unseen text"
    return f"{main} ({found['level']:.0%} interval {spread})"


def verdicts(data: Mapping[str, Any]) -> list[str]:
    """One sentence on each rival: better, worse, or no clear difference."""
    return [verdict(data, rival) for rival in data["rivals"]]


def verdict(data: Mapping[str, Any], rival: Mapping[str, Any]) -> str:
    """Who is better, by how much, and how sure that is."""
    name, own = rival["metric"], data["scores"][rival["metric"]]["estimate"]
    unit = "" if name in SHARES else f" {NAMES.get(name, name)}"
    who = str(rival["name"]) if rival["name"].startswith("xz") else f"the {rival['name']}"
    lead = rival["lead"]
    if lead is None or lead["low"] is None:
        gap = rival["score"] - own if name not in SHARES else own - rival["score"]
        better = "is better than" if gap > 0 else "is worse than"
        return f"The model {better} {who} by {figure(name, abs(gap))}{unit}{_read(rival)}."
    gap, margin = figure(name, abs(lead["estimate"])), figure(name, (lead["high"] - lead["low"]) / 2)
    if lead["low"] > 0:
        return f"The model beats {who} by {gap} ± {margin}{unit}{_read(rival)}."
    if lead["high"] < 0:
        return f"The model loses to {who} by {gap} ± {margin}{unit}{_read(rival)}."
    return f"No clear difference between the model and {who}: {gap} ± {margin}{unit}{_read(rival)}."


def short(data: Mapping[str, Any]) -> str:
    """The score in one line, for the table of a run."""
    name = data["main_metric"]
    return f"{interval(name, data['scores'][name])} {NAMES.get(name, name)}"


def cost_rows(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What training took, as label and value; only what is known."""
    unit = cost.get("unit", "tokens")
    known = [one for one in COSTS if cost.get(one[0]) is not None]
    return [(label, show(cost[key]) + after.format(unit=unit)) for key, label, show, after in known]


def _read(rival: Mapping[str, Any]) -> str:
    return f" (trained on {show_bytes(rival['trained_bytes'])})" if rival["trained_bytes"] else ""
