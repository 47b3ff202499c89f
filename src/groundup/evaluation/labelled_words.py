"""What the figures of a labelled task say, in words that claim no more than they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundup.evaluation.metrics import tagging
from groundup.evaluation.significance import ALPHA

NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "micro_f1": "micro F1",
    "micro_precision": "micro precision",
    "micro_recall": "micro recall",
    "matthews": "Matthews correlation",
    "log_loss": "log loss (nats)",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "calibration_error_equal_mass": "calibration error, equal mass",
    "area_under_risk": "area under risk–coverage",
    "in_scope_accuracy": "accuracy in scope",
    "out_of_scope_recall": "out-of-scope found",
    "out_of_scope_auroc": "out-of-scope AUROC",
    "false_alarms_at_95": "false alarms at 95 % found",
    "exact_match": "exact match",
    "label_accuracy": "single decisions right",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mean_absolute_error": "mean absolute error",
    "mean_squared_error": "mean squared error",
    "r_squared": "R²",
    "entity_f1": "entity F1",
    "entity_precision": "entity precision",
    "entity_recall": "entity recall",
    "macro_entity_f1": "entity F1, mean over kinds",
    "tag_accuracy": "tags right",
    "whole_sentences": "sentences wholly right",
    "broken_sequences": "sentences that break the scheme",
    "f1": "F1",
    "answerable_told": "answerable or not, told",
    "bleu": "BLEU",
    "chrf": "chrF",
    "reciprocal_rank": "mean reciprocal rank",
    "ndcg_at_10": "NDCG at 10",
    "recall_at_1": "recall at 1",
    "recall_at_5": "recall at 5",
    "recall_at_10": "recall at 10",
    "recall_at_20": "recall at 20",
    "mean_reciprocal_rank": "mean reciprocal rank",
    "coverage_at_10": "catalogue covered by the first 10",
    "roc_auc": "area under the ROC curve",
}
PLAIN = (
    "matthews", "log_loss", "brier", "calibration_error", "calibration_error_equal_mass", "area_under_risk",
    "pearson", "spearman", "mean_absolute_error", "mean_squared_error", "r_squared", "reciprocal_rank", "ndcg_at_10",
    "out_of_scope_auroc", "roc_auc", "mean_reciprocal_rank", "loss", "perplexity", "margin",
)  # fmt: skip
"""Written with three decimals; scores of 0 to 100 with one; all others are shares, written as per cent."""
HUNDREDS = ("bleu", "chrf")
CALLED = {
    "classes": "examples", "multilabel": "examples", "number": "examples", "tags": "sentences", "spans": "questions",
    "texts": "sentences", "ranking": "queries",
    "recommending": "continuations of histories", "sums": "examples",
}  # fmt: skip


def name_of(metric: str) -> str:
    """A score's name in words."""
    return NAMES.get(metric, metric.replace("_", " "))


def figure(metric: str, value: float | None) -> str:
    """A score as people write it."""
    if value is None:
        return "unknown"
    if metric in PLAIN:
        return f"{value:.3f}"
    return f"{value:.1f}" if metric in HUNDREDS else f"{100 * value:.1f} %"


def gap(metric: str, value: float) -> str:
    """A difference of two scores; of shares in points."""
    if metric in PLAIN:
        return f"{value:.3f}"
    return f"{value:.1f}" if metric in HUNDREDS else f"{100 * value:.1f} points"


def interval(metric: str, found: Mapping[str, Any]) -> str:
    """`94.8 % (93.9 % to 95.6 %)`, or the figure alone where nothing is known of its precision."""
    if found.get("low") is None:
        return figure(metric, found["estimate"])
    low, high = figure(metric, found["low"]), figure(metric, found["high"])
    return f"{figure(metric, found['estimate'])} ({low} to {high})"


def lead(metric: str, found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    if found.get("low") is None:
        return gap(metric, found["estimate"])
    low = figure(metric, found["low"]).removesuffix(" %")
    return f"{gap(metric, found['estimate'])} ({low} to {figure(metric, found['high']).removesuffix(' %')})"


def headline(data: Mapping[str, Any]) -> str:
    """The main score with its interval, in one sentence."""
    metric, test = data["main_metric"], data["test"]
    found = data["scores"][metric]
    main = f"{figure(metric, found['estimate'])} {name_of(metric)} on {test['count']:,} unseen {CALLED[test['kind']]}"
    if found["low"] is None:
        return main
    return f"{main} ({found['level']:.0%} interval {figure(metric, found['low'])} to {figure(metric, found['high'])})"


def short(data: Mapping[str, Any]) -> str:
    """The score in one line, for the table of a run."""
    metric = data["main_metric"]
    return f"{interval(metric, data['scores'][metric])} {name_of(metric)}"


def state(rival: Mapping[str, Any]) -> str:
    """Whether the model is "better", "worse" or "" (no clear difference): the interval and the test must agree."""
    found = rival["lead"]
    if found["low"] is None or rival["p_value"] >= ALPHA or found["low"] <= 0 <= found["high"]:
        return ""
    return "better" if found["low"] > 0 else "worse"


def chance(p_value: float) -> str:
    """A p-value as people write it."""
    return "p < 0.002" if p_value < 0.002 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def verdict(data: Mapping[str, Any], rival: Mapping[str, Any]) -> str:
    """Who is better, by how much, and how sure that is."""
    metric, found = rival["metric"], rival["lead"]
    amount = gap(metric, abs(found["estimate"]))
    if found["low"] is not None:
        amount = f"{amount.removesuffix(' points')} ± {gap(metric, (found['high'] - found['low']) / 2)}"
    unit = name_of(metric) if metric in PLAIN or metric in HUNDREDS else f"of {name_of(metric)}"
    sure = chance(rival["p_value"])
    if rival.get("win_rate"):
        won = rival["win_rate"]
        sure += f"; of single examples it wins {won['estimate']:.0%}, {won['low']:.0%} to {won['high']:.0%}"
    who = rival["name"]
    match state(rival):
        case "better":
            return f"The model beats {who} by {amount} {unit} ({sure})."
        case "worse":
            return f"The model loses to {who} by {amount} {unit} ({sure})."
    return f"No clear difference between the model and {who}: {amount} {unit} ({sure})."


def over_runs(data: Mapping[str, Any]) -> str:
    """What the seeds say, or nothing for one."""
    metric = data["main_metric"]
    if metric not in data["over_runs"]:
        return ""
    found, each = data["over_runs"][metric], [figure(metric, run["scores"][metric]) for run in data["runs"]]
    low, high = figure(metric, found["low"]), figure(metric, found["high"])
    mean = f"mean {figure(metric, found['estimate'])}, with other seeds {low} to {high} (95% by Student's t)"
    return f"{len(each)} trainings: {', '.join(each)}; {mean}."


def answer_text(kind: str, value: Any, shown: str = "") -> str:
    """A truth or an answer in words; of tags the entities, named by the words of `shown` where they can be told."""
    if kind == "sums" and isinstance(value, Mapping):
        return ", ".join(f"{name_of(name)} {figure(name, found)}" for name, found in value.items())
    if kind == "tags":
        return _entities(value, shown)
    if kind == "spans":
        return " / ".join(dict.fromkeys(_listed(value))) or "no answer"
    if kind == "ranking":
        return ", ".join(map(str, value[:5]))
    if kind == "recommending" and isinstance(value, Mapping):
        return _recommended(value)
    if kind == "number":
        return f"{float(value):.3g}"
    return ", ".join(map(str, _listed(value))) or "none"


def _recommended(answer: Mapping[str, Any]) -> str:
    """The first recommendations before the last target, and where the targets stood."""
    first = ", ".join(map(str, answer["best"][-1][:5])) if answer["best"] else "nothing"
    places = [_place(above, tied, answer["items"]) for above, tied in answer["places"][-3:]]
    return f"{first} …; the right one {', '.join(places)} of {answer['items']:,}"


def _place(above: int, tied: int, items: int) -> str:
    if above >= items:
        return "none"  # an item that no training row holds, or one that the user had chosen before
    return f"at place {above + 1:,}" if tied == 1 else f"at places {above + 1:,} to {above + tied:,}"


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)] if value != "" else []


def _entities(tags: Sequence[str], shown: str) -> str:
    tokens = shown.split()
    tokens = tokens if len(tokens) == len(tags) else list(shown) if len(shown) == len(tags) else []
    if not tagging.marks_entities(tags) and set(tags) != {"O"}:
        return " ".join(tags)
    joint = " " if tokens and len(tokens) < len(shown) else ""
    found = []
    for kind, start, stop in tagging.entities(tags):
        words = joint.join(tokens[start:stop]) if tokens else f"{start + 1} to {stop}"
        found.append(f"{words} ({kind})")
    return "; ".join(found) or "none"
