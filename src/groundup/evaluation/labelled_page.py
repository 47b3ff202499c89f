"""`report.html` of a labelled task: pictures first, then words, tables, the worst mistakes, the fine print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from groundup.evaluation import charts, labelled_charts, labelled_pictures, labelled_words, words
from groundup.evaluation.charts import Bar
from groundup.evaluation.labelled_pictures import NONE, Pictures
from groundup.evaluation.labelled_words import answer_text, figure, interval, name_of
from groundup.evaluation.page import definitions, document
from groundup.evaluation.page import figure as framed
from groundup.units import show_bytes, show_count

MOST_LABELS = 24
"""Labels in the picture; of more, those that are done worst."""

Data = Mapping[str, Any]


def render(data: Data, pictures: Pictures = NONE) -> str:
    """The page of a report's data; see `labelled_report.collect` for its keys."""
    sections = [
        _header(data),
        _scores(data),
        _verdicts(data),
        labelled_pictures.gallery(data, pictures),
        _confusion(data),
        _confidence(data),
        _detection(data),
        _labels(data),
        _slices(data),
        _curves(data),
        _figures(data),
        _mistakes(data, pictures),
        labelled_pictures.looked(data, pictures),
        _leakage(data),
        _provenance(data),
    ]
    return document(f"{data['name']}: {labelled_words.headline(data)}", sections)


def _header(data: Data) -> str:
    model, tested = data["model"], data["data"]
    made = f"{model['family']}, {show_count(model['parameters'])} parameters"
    # What is no text has bytes that say nothing of it.
    size = "" if "unit" in data["cost"] else f", {show_bytes(tested['bytes'])}"
    read = f"{tested['documents']:,} test rows{size}"
    runs = len(data["runs"])
    seeds = f"mean of {runs} trainings" if runs > 1 else "one training"
    return (
        f'<header><h1>{escape(data["name"])}</h1><p class="headline">{escape(labelled_words.headline(data))}</p>'
        f"<p>{escape(' · '.join((str(model['task']).replace('_', ' '), made, seeds, read)))}</p></header>"
    )


def _show(metric: str) -> Callable[[float], str]:
    return lambda value: figure(metric, value)


def _scores(data: Data) -> str:
    name = data["main_metric"]
    own = data["scores"][name]
    bars = [Bar("this model", own["estimate"], own["low"], own["high"], is_model=True)]
    for rival in data["rivals"]:
        found = rival["interval"]
        bars.append(Bar(rival["name"], rival["score"], found["low"], found["high"]))
    better = "longer is better" if own["higher_is_better"] else "shorter is better"
    picture = charts.scores(bars, f"{name_of(name)} ({better})", show=_show(name))
    again = f"{own['n']:,} {own['unit']} of the test again {own['resamples']:,} times"
    caption = f"Whiskers are {own['level']:.0%} intervals, from drawing the {again}."
    tests = sorted({rival["test"] for rival in data["rivals"]})
    caption += f" p is the chance of such a difference between equals, by {' or '.join(tests)}." if tests else ""
    return framed(picture, caption)


def _verdicts(data: Data) -> str:
    items = [
        f'<li class="{labelled_words.state(rival)}">{escape(labelled_words.verdict(data, rival))}'
        f"<br><small>{escape(_sentence(rival['meaning']))}</small></li>"
        for rival in data["rivals"]
    ]
    said = [labelled_words.over_runs(data), *data["notes"]]
    items += [f"<li>{escape(note)}</li>" for note in said if note]
    return f'<h2>What it means</h2><ul class="verdicts">{"".join(items)}</ul>' if items else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _confusion(data: Data) -> str:
    found = data["confusion"]
    if not found:
        return ""
    caption = "Rows are the true classes. Blue cells are right, orange ones wrong; colour is the share of the row."
    if len(found["labels"]) < found["all_labels"]:
        caption += f" Of {found['all_labels']} classes the {len(found['labels'])} that are mixed up most."
    picture = framed(labelled_charts.confusion(found["labels"], found["counts"]), caption)
    few = len(found["labels"]) <= labelled_charts.SMALL
    rows = [(pair["truth"], pair["answer"], f"{pair['count']:,}") for pair in found["most_mixed"][: 8 if few else 15]]
    table = _table(("true", "answered", "times"), rows, numbers=1) if rows else "<p>Nothing.</p>"
    head, side = "<h2>What is taken for what</h2>", f"<div><h3>Mixed up most</h3>{table}</div>"
    return f'{head}<div class="pair">{picture}{side}</div>' if few else head + picture + side


def _confidence(data: Data) -> str:
    parts = []
    if data["calibration"]:
        found = data["calibration"]
        caption = "Ten bins of equally many examples; bars are 95% intervals. Below the line the model is too sure."
        if found["temperature"] is not None:
            caption += f" Fitted on validation rows, a temperature of {found['temperature']:.2f} gives the other."
        parts.append(framed(labelled_charts.reliability(found["before"], found["after"]), caption))
    if data["risk_coverage"]:
        at = data["risk_coverage"]["risk_at"]
        shares = ", ".join(f"{100 * risk:.1f} % at {share.removesuffix('%')} %" for share, risk in at.items())
        caption = f"If only the answers the model is surest of are kept, this share of them is wrong: {shares}."
        parts.append(framed(labelled_charts.risk_coverage(data["risk_coverage"]), _unbroken(caption)))
    return f'<h2>Can its confidence be believed?</h2><div class="pair">{"".join(parts)}</div>' if parts else ""


def _detection(data: Data) -> str:
    if not data["detection"]:
        return ""
    shown = [n for n in ("out_of_scope_auroc", "false_alarms_at_95", "out_of_scope_recall") if n in data["scores"]]
    caption = "; ".join(f"{name_of(n)} {interval(n, data['scores'][n])}" for n in shown)
    return "<h2>Requests that belong nowhere</h2>" + framed(labelled_charts.outsiders(data["detection"]), caption)


def _labels(data: Data) -> str:
    rows = data["labels"]
    if not rows:
        return ""
    seen = [row for row in rows if row["count"]]
    shown = sorted(seen, key=lambda row: row["f1"]["estimate"])[:MOST_LABELS] if len(seen) > MOST_LABELS else seen
    bars = [Bar(f"{r['label']} ({r['count']:,})", r["f1"]["estimate"], r["f1"]["low"], r["f1"]["high"]) for r in shown]
    picture = labelled_charts.dots(bars, "F1", overall=None, show="{:.3f}".format, name="labels") if bars else ""
    worst = f"the {MOST_LABELS} done worst of {len(seen)}, " if len(seen) > MOST_LABELS else ""
    caption = f"F1 of each label, {worst}with how often it occurs in the test, and 95% intervals."
    columns = ("label", "in the test", "answered", "precision", "recall", "F1 (interval)")
    cells = [
        (
            row["label"],
            f"{row['count']:,}",
            f"{row['answered']:,.0f}",
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            interval("matthews", row["f1"]),
        )
        for row in rows
    ]
    return (
        "<h2>Label by label</h2>" + framed(picture, caption) + _folded("All labels", _table(columns, cells, numbers=5))
    )


def _slices(data: Data) -> str:
    name = data["main_metric"]
    parts = []
    for place, table in enumerate(data["slices"]):
        bars = [
            Bar(f"{row['value']} ({row['count']:,})", row[name]["estimate"], row[name]["low"], row[name]["high"])
            for row in table["rows"]
        ]
        overall = data["scores"][name]["estimate"]
        picture = labelled_charts.dots(bars, name_of(name), overall=overall, show=_show(name), name=f"slice{place}")
        unit = f", in {table['unit']}" if table["unit"] else ""
        parts.append(f"<h3>By {escape(table['column'])}{unit}</h3>" + framed(picture, ""))
    if not parts:
        return ""
    note = "<p>The dashed line is the score of all. A slice whose interval reaches it may differ by chance alone.</p>"
    return "<h2>Where it is good, where not</h2>" + note + "".join(parts)


def _curves(data: Data) -> str:
    if not data["curves"].get("loss"):
        return ""
    picture = charts.learning_curve(data["curves"], str(data["curves_over"]), unit="loss")
    return "<h2>How it learned</h2>" + framed(picture, "The first steps may lie above the picture.")


def _figures(data: Data) -> str:
    rivals = data["rivals"]
    columns = ("score", "this model (interval)", *(rival["name"] for rival in rivals))
    rows = [
        (name_of(name), interval(name, found), *(_cell(name, rival) for rival in rivals))
        for name, found in data["scores"].items()
    ]
    ahead = [("ahead of it by", "", *(labelled_words.lead(r["metric"], r["lead"]) for r in rivals))] if rivals else []
    signed = "".join(f"<p><code>{escape(text)}</code></p>" for text in data["signatures"].values())
    return "<h2>All figures</h2>" + _table(columns, rows + ahead, numbers=len(columns) - 1, kind="figures") + signed


def _cell(name: str, rival: Data) -> str:
    return figure(name, rival["scores"][name]) if name in rival["scores"] else ""


def _mistakes(data: Data, pictures: Pictures) -> str:
    """The worst answers; those with a picture first, the others behind them if there are such."""
    mistakes = data["mistakes"]
    if not mistakes:
        return ""
    known = any(mistake["confidence"] is not None for mistake in mistakes)
    head = f"The {len(mistakes)} most confident mistakes" if known else f"The {len(mistakes)} worst answers"
    kind, named = data["test"]["kind"], set(data.get("pictures", {}).get("mistakes", ())) & set(pictures.examples)
    drawn = [mistake for mistake in mistakes if mistake["id"] in named]
    rest = [mistake for mistake in mistakes if mistake["id"] not in named]
    table = _mistake_table(rest, kind, known, NONE) if rest else ""
    if drawn:
        folded = _folded(f"{len(rest)} more, without pictures", table) if rest else ""
        table = _mistake_table(drawn, kind, known, pictures) + folded
    return f"<h2>{head}</h2>{table}"


def _mistake_table(mistakes: Sequence[Data], kind: str, known: bool, pictures: Pictures) -> str:
    first = "<th>picture</th>" if pictures.examples else ""
    last = '<th class="number">confidence</th>' if known else ""
    rows = "".join(_mistake(mistake, kind, known, pictures) for mistake in mistakes)
    columns = f"<tr>{first}<th>example</th><th>right</th><th>answered</th>{last}</tr>"
    return f'<table class="mistakes{" drawn" * bool(first)}">{columns}{rows}</table>'


def _mistake(mistake: Data, kind: str, known: bool, pictures: Pictures) -> str:
    truth, answer = (answer_text(kind, mistake[key], mistake["shown"]) for key in ("truth", "answer"))
    drawn = f"<td>{labelled_pictures.of_mistake(mistake, kind, pictures)}</td>" if pictures.examples else ""
    sure = f'<td class="number">{labelled_pictures.sureness(mistake["confidence"])}</td>' if known else ""
    name = f"<small>{escape(mistake['id'])}</small>" if mistake["id"] not in mistake["shown"] else ""
    return (
        f"<tr>{drawn}<td>{escape(mistake['shown'])}{name}</td>"
        f'<td class="truth">{escape(truth)}</td><td class="said">{escape(answer)}</td>{sure}</tr>'
    )


def _leakage(data: Data) -> str:
    found = data["leakage"]
    if not found:
        return ""
    if "unit" in data["cost"]:  # rows that are no text are only compared as they are
        told = f"Of {found['test']:,} test rows {found['exact']:,} are also among the {found['train']:,} training rows."
    else:
        told = (
            f"Of {found['test']:,} test rows {found['exact']:,} stand word for word among the {found['train']:,} "
            f"training rows, and {found['near']:,} more are at least {found['threshold']:.0%} alike in their runs of "
            "characters."
        )
    if found["without"]:
        told += f" Without them: {interval(data['main_metric'], found['without'])} {name_of(data['main_metric'])}."
    rows = [(pair["test"], pair["train"], f"{pair['similarity']:.0%}") for pair in found["examples"]]
    table = _folded("The closest pairs", _table(("test", "training", "alike"), rows, numbers=1)) if rows else ""
    return f"<h2>Is the test in the training data?</h2><p>{escape(told)}</p>{table}"


def _provenance(data: Data) -> str:
    metric = data["main_metric"]
    runs = [
        (run["name"], str(run["seed"]), figure(metric, run["scores"][metric]), run["digest"]) for run in data["runs"]
    ]
    rows = [
        *words.cost_rows(data["cost"]),
        ("Data", f"{data['data']['digest']}, split {data['data']['split']}"),
        ("Test", f"{data['test']['digest']} (examples and truth)"),
        ("Seed of the intervals", str(data["seed"])),
        *((f"Licence of {source}", str(licence)) for source, licence in data["licences"].items()),
    ]
    table = _table(("run", "seed", name_of(metric), "digest of the model"), runs, numbers=0, kind="runs")
    return f"<h2>Cost and provenance</h2>{table}" + definitions(rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int, kind: str = "") -> str:
    """A table whose last `numbers` columns are figures."""
    first = len(columns) - numbers
    head = "".join(f"<th{_class(k >= first)}>{escape(name)}</th>" for k, name in enumerate(columns))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(k >= first)}>{escape(_unbroken(cell))}</td>" for k, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table{f' class={kind!r}' if kind else ''}><tr>{head}</tr>{body}</table>"


def _unbroken(text: str) -> str:
    """A text whose per cent signs stay on the line of their figures."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
