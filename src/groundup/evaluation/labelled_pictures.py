"""Pictures in the report of a labelled task: drawn examples, mistakes, and what the network looked at.

A task that can draw an example says so by `picture(example)`, which gives a PNG file. The page stays one file
that fetches nothing: pictures stand in it as text (data URIs), so they are small and few. report.json holds
their ids alone.
"""

from __future__ import annotations

import io
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from groundup.errors import DataError
from groundup.evaluation.labelled import Labelled, System, plain
from groundup.evaluation.labelled_scores import confidence_of, right_of
from groundup.evaluation.labelled_words import answer_text

if TYPE_CHECKING:  # both take long to import, and a page of figures needs neither
    from PIL import Image

    from groundup.evaluation.looking import Looked, Seen

SIDE = 96
"""Pixels of the longer side of a picture; larger ones are shrunk."""
SAMPLES, MISTAKES, LOOKED = 24, 30, 6
"""Pictures of each kind on a page: at most 60."""
FOR, AGAINST = (0.82, 0.20, 0.10), (0.13, 0.35, 0.77)
"""Colours, red, green and blue from 0 to 1, of what speaks for a class, and against it."""
COLOURS = "Red speaks for the answer, blue against it. "
DEEPEST = 0.6
"""How strongly the token that says most is coloured; its letters stay to be read."""
PALE = 0.35
"""How dark a picture may be under what is drawn over it: the colours are to be seen, the picture only recognised."""
GAP = 4
"""White pixels between the parts of a strip."""

Data = Mapping[str, Any]
Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """PNG files by the id of the example: as the task draws it, and with what the network looked at."""

    examples: Mapping[str, bytes] = field(default_factory=dict)
    looked: Mapping[str, bytes] = field(default_factory=dict)


NONE = Pictures()


def samples(test: Labelled, seed: int) -> list[int]:
    """Examples to be shown, drawn at random, by their place in the test."""
    rows = np.random.default_rng(seed).choice(len(test), min(SAMPLES, len(test)), replace=False)
    return sorted(rows.tolist())


def worth_a_look(test: Labelled, run: System, mistakes: Sequence[Data], seed: int) -> list[int]:
    """Examples to look at closely, by their place in the test: the most confident mistakes, and as many right answers
    of different classes."""
    place = {name: row for row, name in enumerate(test.ids)}
    wrong = [place[mistake["id"]] for mistake in mistakes[: LOOKED // 2]]
    right = right_of(test, run)
    order = np.random.default_rng(seed).permutation(len(test)).tolist()
    rows = [row for row in order if right is None or right[row]]
    each = list({str(plain(test.truth[row])): row for row in reversed(rows)}.values())[::-1]
    return [*(each + [row for row in rows if row not in each])[: LOOKED - len(wrong)], *wrong]


def draw(
    task: Any,
    examples: Sequence[Data],
    test: Labelled,
    run: System,
    mistakes: Sequence[Data],
    seed: int,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What report.json says of pictures, and the pictures themselves by id; nothing for tasks that draw none.

    `examples` are those of the test, in order. Raises DataError for a picture that is none.
    """
    if not hasattr(task, "picture"):
        return {}, {}
    place = {name: row for row, name in enumerate(test.ids)}
    chosen = samples(test, seed)
    wrong = [str(mistake["id"]) for mistake in mistakes[:MISTAKES]]
    rows = dict.fromkeys([*chosen, *(place[name] for name in wrong)])
    drawn = {test.ids[row]: small(task.picture(examples[row]), where=test.ids[row]) for row in rows}
    return {"pictures": {"side": SIDE, "samples": told(test, run, chosen), "mistakes": wrong}}, drawn


def told(test: Labelled, run: System, rows: Sequence[int]) -> list[dict[str, Any]]:
    """What is said beside pictures: id, truth, answer, confidence and whether that is right, where it is known."""
    sure, right = confidence_of(test, run), right_of(test, run)
    return [
        {
            "id": test.ids[row],
            "truth": plain(test.truth[row]),
            "answer": plain(run.answers[row]),
            "confidence": None if sure is None else float(sure[row]),
            "right": None if right is None else bool(right[row]),
        }
        for row in rows
    ]


def small(png: bytes, *, where: str = "") -> bytes:
    """A PNG file of at most SIDE pixels a side, without anything but its pixels. Raises DataError for what is none."""
    from PIL import Image, UnidentifiedImageError  # matplotlib, which draws the charts, brings it

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            opened.load()
            image: Image.Image = opened.convert("RGBA" if opened.has_transparency_data else opened.mode)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = f"the task's picture of an example cannot be read: {error}"
        raise DataError(what, where=where, fix="prepare the corpus anew") from error
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    image.thumbnail((SIDE, SIDE))
    return _saved(image)


def _saved(image: Image.Image) -> bytes:
    image.info = {}  # texts and profiles of the file it was read from
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def strip(seen: Seen) -> bytes:
    """What the network read, and what each method says of it, side by side as a PNG file."""
    from PIL import Image

    base = _picture(seen.values)
    is_sound = seen.values.ndim == 2
    said = [values.T[::-1] if is_sound else values for values in seen.salience.values()]
    parts = [_fitted(part) for part in (base, *(overlay(base, values) for values in said))]
    gap = np.ones((parts[0].shape[0], GAP, 3))
    joined = np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)
    return _saved(Image.fromarray((joined * 255).round().astype(np.uint8), "RGB"))


def strips(looked: Looked | None, test: Labelled, run: System) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What report.json says of what the network looks at, texts and what is said of their tokens among it, and a
    strip for every other example shown, by id."""
    if looked is None:
        return {}, {}
    drawn = {test.ids[row]: strip(seen) for row, seen in looked.shown.items() if not seen.pieces}
    shown = told(test, run, list(looked.shown))
    for one, seen in zip(shown, looked.shown.values(), strict=True):
        if seen.pieces:
            said = {name: [round(float(value), 4) for value in each] for name, each in seen.salience.items()}
            one |= {"tokens": list(seen.pieces), "salience": said}
    return {"saliency": looked.data | {"shown": shown}}, drawn


def _picture(values: NDArray[Any]) -> Pixels:
    """An array as red, green and blue from 0 to 1, (H,W,3), from its smallest number to its largest.

    Frames of sound stand from left to right, low bands below.
    """
    planes = values.astype(np.float64) if values.ndim == 3 else values.T[::-1][None].astype(np.float64)
    planes = planes if len(planes) == 3 else np.repeat(planes.mean(0, keepdims=True), 3, axis=0)
    low, high = float(planes.min()), float(planes.max())
    return np.moveaxis((planes - low) / (high - low or 1.0), 0, -1)


def overlay(base: Pixels, salience: NDArray[Any]) -> Pixels:
    """A picture (H,W,3), pale and grey, with what speaks for the class over it in red, and against it in blue."""
    grey = base.mean(-1, keepdims=True)
    # What most of it looks like is left white, be it light or dark: paper and darkness tell nothing.
    differs = np.abs(grey - np.median(grey))
    pale = 1 - PALE * differs / (differs.max() or 1.0)
    strength = np.abs(salience)
    strongest = float(np.quantile(strength, 0.99)) or float(strength.max()) or 1.0
    opacity = np.clip(strength / strongest, 0, 1)[..., None]
    colour = np.where(salience[..., None] > 0, FOR, AGAINST)
    return np.asarray(pale * (1 - opacity) + colour * opacity, np.float64)


def _fitted(pixels: Pixels) -> Pixels:
    """Pixels of SIDE a side at most: small ones as squares of several, large ones as means."""
    from PIL import Image

    height, width = pixels.shape[:2]
    times = SIDE // max(height, width)
    if times >= 1:
        return pixels.repeat(times, axis=0).repeat(times, axis=1)
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BOX))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.clip(np.stack(planes, axis=-1).astype(np.float64), 0, 1)


def element(png: bytes, alt: str) -> str:
    """An <img> that holds its picture; smaller ones are shown as large as others, tiny ones as squares."""
    width, height = struct.unpack(">II", png[16:24])  # every PNG file begins with its size
    times = SIDE // max(width, height)
    is_tiny = times > 1
    scale = times if is_tiny else max(1.0, SIDE / max(width, height))
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    kind = ' class="squares"' if is_tiny else ""
    return f'<img{kind} alt="{escape(alt)}" {size} src="data:image/png;base64,{b64encode(png).decode()}">'


def gallery(data: Data, pictures: Pictures) -> str:
    """The section of a page with samples of the test; empty where there are no pictures."""
    held = data.get("pictures")
    if not held or not pictures.examples:
        return ""
    cells = _cells(held["samples"], data["test"]["kind"], pictures.examples)
    caption = (
        f"{len(held['samples'])} of {data['test']['count']:,} test examples, drawn at random. In bold what is right, "
        "beside it how sure the model was, and of wrong answers (✗) what it said. "
    )
    caption += limits()
    return f'<h2>Samples</h2><div class="gallery">{cells}</div><p class="caption">{escape(caption)}</p>'


def limits() -> str:
    """How many pictures there are, and how large, in words."""
    return f"Pictures are shrunk to {SIDE} pixels a side, and a page holds at most {SAMPLES + MISTAKES + LOOKED}."


def _cells(shown: Sequence[Data], kind: str, pictures: Mapping[str, bytes], before: str = "") -> str:
    return "".join(_cell(one, kind, pictures[one["id"]], before) for one in shown if one["id"] in pictures)


JUDGED = {True: ("✓", "right"), False: ("✗", "wrong"), None: ("", "")}
"""A mark and a word for whether an answer is right, where that is known."""


def _cell(one: Data, kind: str, png: bytes, before: str) -> str:
    judged = JUDGED[one["right"]][1]
    truth, answer = answer_text(kind, one["truth"]), answer_text(kind, one["answer"])
    alt = f"{before}{one['id']}: {truth}, answered {answer}" + (f", {judged}" if judged else "")
    return f"<figure>{element(png, alt)}{_caption(one, kind)}</figure>"


def _caption(one: Data, kind: str) -> str:
    mark, judged = JUDGED[one["right"]]
    answer = "" if one["right"] else answer_text(kind, one["answer"])
    said = ", ".join(part for part in (answer, sureness(one["confidence"])) if part)
    return (
        f"<figcaption><b>{escape(answer_text(kind, one['truth']))}</b>"
        f'<span class="{judged or "said"}-answer">{mark} {escape(said)}</span></figcaption>'
    )


def _text(one: Data, kind: str) -> str:
    """A text whose tokens have the colours of what the first method says of them."""
    name, said = next(iter(one["salience"].items()))
    strongest = max(map(abs, said), default=0.0) or 1.0
    spans = []
    for text, value in zip(one["tokens"], said, strict=True):
        red, green, blue = (round(255 * part) for part in (FOR if value > 0 else AGAINST))
        opacity = round(DEEPEST * abs(value) / strongest, 2)
        colour = f' style="background:rgba({red},{green},{blue},{opacity})"' if opacity >= 0.02 else ""
        spans.append(f'<span{colour} title="{value:+.2f}">{escape(text)}</span>')
    caption = _caption(one, kind)
    return f'<figure class="read"><p aria-label="{escape(name)}">{"".join(spans)}</p>{caption}</figure>'


def sureness(confidence: float | None) -> str:
    """A confidence as people write it: per cent where it is a probability."""
    if confidence is None:
        return ""
    return f"{100 * confidence:.1f}\N{NO-BREAK SPACE}%" if 0 <= confidence <= 1 else f"{confidence:.2f}"


def of_mistake(mistake: Data, kind: str, pictures: Pictures) -> str:
    """The picture of a mistake; empty if it has none."""
    png = pictures.examples.get(mistake["id"])
    if png is None:
        return ""
    truth, answer = (answer_text(kind, mistake[key]) for key in ("truth", "answer"))
    return element(png, f"{mistake['id']}: {truth}, answered {answer}")


def looked(data: Data, pictures: Pictures) -> str:
    """The section of a page on what the network looks at; empty where nobody asked."""
    found = data.get("saliency")
    if not found:
        return ""
    items = "".join(f'<li class="{state(m)}">{escape(verdict(found, m))}</li>' for m in found["methods"])
    before = "what the network looked at in "
    drawn = _cells(found["shown"], data["test"]["kind"], pictures.looked, before)
    methods = [method["name"] for method in found["methods"]]
    caption = f"From left to right: {', '.join(['what the network read', *methods])}. {COLOURS}"
    caption += "Attention has no sign, so all of it is red. " if "attention rollout" in methods else ""
    caption += limits()
    texts = "".join(_text(one, data["test"]["kind"]) for one in found["shown"] if one.get("tokens"))
    if texts:
        drawn, caption = texts, f"What each token says by {methods[0]}. {COLOURS}"
    shown = f'<p class="caption">{escape(caption)}</p><div class="looks">{drawn}</div>' if drawn else ""
    notes = f'<p class="caption">{escape(" ".join(explained(found)))}</p>'
    return f'<h2>What it looks at</h2><ul class="verdicts">{items}</ul>{notes}{shown}'


def state(method: Data) -> str:
    """Whether salient places cost the score clearly "better" (more than random ones), "worse" (less) or ""."""
    more = method["score"]["more"]
    if more["low"] is None or more["low"] <= 0 <= more["high"]:
        return ""
    return "better" if more["low"] > 0 else "worse"


def verdict(found: Data, method: Data) -> str:
    """What taking salient places away costs beside random ones, in words that claim no more than was measured."""
    score, share = method["score"], method["probability"]
    name, places = method["name"], found["places"]
    salient, random = (f"{score[key]['estimate']:.2f}" for key in ("salient", "random"))
    more = f"{score['more']['estimate']:.2f}"
    if score["more"]["low"] is not None:
        more += f", {score['more']['level']:.0%} interval {score['more']['low']:.2f} to {score['more']['high']:.2f}"
    tenth = " tenth" * (found["of"] >= 10)
    told = (
        f"By {name}: without the most salient{tenth} of its {places} ({found['removed']:,.0f} of {found['of']:,.0f}) "
        f"an example's score for the class answered falls by {salient}, without as many random ones by {random} "
        f"(difference {more}); its probability by {_points(share['salient'])} and by {_points(share['random'])} points."
    )
    match state(method):
        case "better":
            return told
        case "worse":
            return f"{told} So it marks {places} that matter LESS than random ones: do not believe it."
    return f"{told} That is no clear difference from chance: do not believe what it marks."


def _points(found: Data) -> str:
    return f"{100 * found['estimate']:.1f}"


def explained(found: Data) -> list[str]:
    """How it was measured, in sentences."""
    return [
        f"Measured on {found['examples']:,} test examples, evenly spread, against the mean of {found['draws']} random "
        f"draws each; what is taken away becomes {found['replaced_by']}.",
        "Integrated gradients must add up to the difference of the scores of an example and of that mean: "
        f"{_percent(found['missing']['mean'])} of it is missing on average, "
        f"{_percent(found['missing']['most'])} at most.",
        "A part of every fall is the surprise of an input such as the network never saw; salient and random share it.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if share >= 0.0005 else "less than 0.1\N{NO-BREAK SPACE}%"


def looked_lines(data: Data) -> list[str]:
    """The same for report.md."""
    found = data.get("saliency")
    if not found:
        return []
    items = [f"- {verdict(found, method)}" for method in found["methods"]]
    return ["## What it looks at", "", *items, "", *explained(found), ""]


def where_pictures_are(data: Data) -> list[str]:
    """Lines of report.md that say where the pictures are; none where there are none."""
    held, shown = data.get("pictures"), (data.get("saliency") or {}).get("shown")
    if not held and not shown:
        return []
    kinds = [f"{len(held[kind])} {kind}" for kind in ("samples", "mistakes") if held[kind]] if held else []
    kinds += [f"what the network looked at in {len(shown)} examples"] if shown else []
    return [f"Pictures of {', '.join(kinds)} stand in `report.html`; `report.json` names them by id.", ""]
