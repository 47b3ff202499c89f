"""`report.html`: one file, no script, nothing fetched; pictures first, then words, then the fine print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from groundup.evaluation import charts, words
from groundup.units import show_bytes, show_count

CSS = Path(__file__).with_name("report.css")


def render(data: Mapping[str, Any]) -> str:
    """The page of a report's data; see `report.collect` for its keys."""
    sections = [
        _header(data),
        _scores(data),
        _verdicts(data),
        _curves(data),
        _closer(data),
        _table(data),
        _samples(data),
        _provenance(data),
    ]
    return document(f"{data['name']}: {words.headline(data)}", sections)


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page from its sections, those that are empty left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS.read_text(encoding='utf-8')}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Made by groundup. This page is one file: no script, nothing is fetched.</footer>"
        + "</main></body></html>\n"
    )


def _header(data: Mapping[str, Any]) -> str:
    model, tested = data["model"], data["data"]
    trained = f"trained on {show_count(model['tokens'])} tokens"
    made = f"{model['family']}, {show_count(model['parameters'])} parameters, {trained}"
    read = f"{tested['documents']:,} test documents, {show_bytes(tested['bytes'])}"
    return (
        f'<header><h1>{escape(data["name"])}</h1><p class="headline">{escape(words.headline(data))}</p>'
        f"<p>{escape(made)} · {escape(read)}</p></header>"
    )


def _scores(data: Mapping[str, Any]) -> str:
    name = data["main_metric"]
    own = data["scores"][name]
    bars = [charts.Bar("this model", own["estimate"], own["low"], own["high"], is_model=True)]
    for rival in data["rivals"]:
        if rival["metric"] == name:
            found = rival["interval"] or {}
            bars.append(charts.Bar(_label(rival), rival["score"], found.get("low"), found.get("high")))
    if len(bars) == 1:
        return ""
    better = "longer is better" if name in words.SHARES else "shorter is better"
    picture = charts.scores(bars, f"{words.NAMES.get(name, name)} ({better})")
    caption = (
        f"Whiskers are {own['level']:.0%} intervals, from drawing the {own['n']:,} {own['unit']} of the test again "
        f"{own['resamples']:,} times. Bars without whiskers are single measurements."
    )
    return figure(picture, caption)


def _label(rival: Mapping[str, Any]) -> str:
    if "order" not in rival["details"]:
        return str(rival["name"]).replace(" on ", "\non ").replace(" after ", "\nafter ")
    return f"{rival['name']},\n{show_bytes(rival['trained_bytes'])} read"


def _verdicts(data: Mapping[str, Any]) -> str:
    items = []
    for rival, sentence in zip(data["rivals"], words.verdicts(data), strict=True):
        state = "better" if "beats" in sentence or "is better" in sentence else ""
        state = "worse" if "loses" in sentence or "is worse" in sentence else state
        meaning = f"{rival['meaning'][:1].upper()}{rival['meaning'][1:]}."
        items.append(f'<li class="{state}">{escape(sentence)}<br><small>{escape(meaning)}</small></li>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    return f'<h2>What it means</h2><ul class="verdicts">{"".join(items)}{notes}</ul>' if items or notes else ""


def _curves(data: Mapping[str, Any]) -> str:
    if not data["curves"].get("loss"):
        return ""
    picture = charts.learning_curve(data["curves"], f"{data['curves_over']}")
    return "<h2>How it learned</h2>" + figure(
        picture, "The first steps may lie above the picture: a curve is read at its end."
    )


def _closer(data: Mapping[str, Any]) -> str:
    grams = [r for r in data["rivals"] if "per_unit_bits_per_byte" in r["details"]]
    if not grams:
        return ""
    first, own, unit = grams[0], data["units"]["bits_per_byte"], data["units"]["name"]
    details = first["details"]
    cloud = charts.scatter(own, details["per_unit_bits_per_byte"], other_label=str(first["name"]), unit=unit)
    chosen = charts.orders(details["validation_bits_per_byte"], details["alphabet"], details["order"])
    left = figure(cloud, f"Each dot is one of {len(own):,} {unit}. Below the dashed line the model is better.")
    right = figure(chosen, "The n-gram's order and alphabet were chosen on validation text, never on the test.")
    return f'<h2>A closer look at the n-gram</h2><div class="pair">{left}{right}</div>'


def _table(data: Mapping[str, Any]) -> str:
    own = "".join(
        f'<tr class="model"><td>this model</td><td>{escape(words.NAMES.get(name, name))}</td>'
        f'<td class="number">{escape(words.interval(name, found))}</td><td class="number"></td></tr>'
        for name, found in data["scores"].items()
    )
    rivals = "".join(
        f"<tr><td>{escape(r['name'])}<small>{escape(r['meaning'])}</small></td>"
        f"<td>{escape(words.NAMES.get(r['metric'], r['metric']))}</td>"
        f'<td class="number">{escape(words.interval(r["metric"], r["interval"] or {"estimate": r["score"]}))}</td>'
        f'<td class="number">{_lead(r)}</td></tr>'
        for r in data["rivals"]
    )
    head = (
        '<tr><th>who</th><th>score</th><th class="number">value (interval)</th>'
        '<th class="number">model ahead by</th></tr>'
    )
    return f"<h2>All figures</h2><table>{head}{own}{rivals}</table>"


def _lead(rival: Mapping[str, Any]) -> str:
    return escape(words.interval(rival["metric"], rival["lead"])) if rival["lead"] else ""


def _samples(data: Mapping[str, Any]) -> str:
    draw = {"continuation": _continuation, "filling": _filling}
    return "<h2>Samples</h2>" + "".join(draw[s["kind"]](s) for s in data["samples"]) if data["samples"] else ""


def _continuation(sample: Mapping[str, Any]) -> str:
    title = "A beginning from the test text, continued" if sample["prompt"] else "From nothing"
    settings = ", ".join(f"{key} {value}" for key, value in sample["settings"].items())
    truth = f'<div class="label">what the author wrote</div><pre class="prompt">{escape(sample["truth"])}</pre>'
    return (
        f'<div class="sample"><h3>{title}</h3><pre><span class="prompt">{escape(sample["prompt"])}</span>'
        f'<span class="made">{escape(sample["text"])}</span></pre>{truth if sample["truth"] else ""}'
        f'<div class="label">{escape(settings)} · ended: {escape(sample["ended"])}</div></div>'
    )


def _filling(sample: Mapping[str, Any]) -> str:
    text, at, parts = sample["text"], 0, []
    for gap in sample["gaps"]:
        state = "right" if gap["right"] else "wrong"
        guesses = ", ".join(f"{token} {p:.0%}" for token, p in gap["best"])
        parts.append(escape(text[at : gap["start"]]))
        shown = gap["best"][0][0] if gap["right"] else f"{gap['best'][0][0]} (was {gap['truth']})"
        parts.append(f'<span class="gap {state}" title="{escape(guesses)}">{escape(shown)}</span>')
        at = gap["end"]
    body = "".join(parts) + escape(text[at:])
    right = sum(gap["right"] for gap in sample["gaps"])
    title = f"Hidden tokens, filled in: {right} of {len(sample['gaps'])} right"
    return f'<div class="sample"><h3>{title}</h3><pre>{body}</pre></div>'


def _provenance(data: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str]] = [
        *words.cost_rows(data["cost"]),
        ("Model", data["model"]["digest"]),
        ("Data", f"{data['data']['digest']}, split {data['data']['split']}"),
        (
            "Tokenizer",
            f"{data['tokenizer']['vocab_size']:,} entries, {data['tokenizer']['bytes_per_token']:.2f} bytes per token",
        ),
        ("Seed", str(data["seed"])),
        *((f"Licence of {source}", licence) for source, licence in data["licences"].items()),
    ]
    return "<h2>Cost and provenance</h2>" + definitions(rows)


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Labels and values as a list."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"


def figure(picture: str, caption: str) -> str:
    """A picture with what it shows."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def table_rows(data: Mapping[str, Any]) -> Sequence[tuple[str, str, str, str]]:
    """Who, which score, its value and the model's lead: the table as plain text."""
    own = [("this model", words.NAMES.get(n, n), words.interval(n, found), "") for n, found in data["scores"].items()]
    rivals = [
        (
            r["name"],
            words.NAMES.get(r["metric"], r["metric"]),
            words.interval(r["metric"], r["interval"] or {"estimate": r["score"]}),
            words.interval(r["metric"], r["lead"]) if r["lead"] else "",
        )
        for r in data["rivals"]
    ]
    return [*own, *rivals]
