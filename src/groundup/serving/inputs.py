"""What a row of a labelled task is made of: its columns, which of them are files, and what a form for one has to know.

All of it is read from the section of the task, as training settled it, so that a new task needs nothing here: a
setting named `image` or `audio` names a column that holds a file, a table or the values that are known of a column
name the others, a catalogue is what `items` are taken from, and `known` says how large a row is. Nothing here needs
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from groundup import catalog
from groundup.config import Named

Medium = Literal["image", "audio"]
"""What a file holds."""
MEDIA: tuple[Medium, ...] = ("image", "audio")
ROLES = {
    "text_classification": {"text": "text", "pair": "pair"},
    "token_tagging": {"tokens": "tokens"},
    "span_qa": {"question": "question", "passage": "context"},
    "translation": {"text": "source"},
    "embedding": {"text": "text"},
}
"""For each task of texts: what a row is made of, and the setting of the task that names its column."""
ROUTES = {
    "classes": "classify",
    "multilabel": "classify",
    "number": "classify",
    "tags": "tag",
    "spans": "answer",
    "texts": "translate",
    "recommending": "recommend",
}
"""The route that asks models whose answers are compared in each way (`evaluation` of a task)."""
NUMBERS_PER_TOKEN = 256
"""Numbers of a row that count as much as a token, as in `data/vectors.py`, which brings torch."""
MOST_VALUES = 100
"""Values of a category that a form is told."""
SAMPLED = 3
"""Items of a catalogue that a probe has."""
PROBED_SIDE = 8
"""Pixels of the side of a probe's image, where a model takes any size."""
PROBED_RATE = 8000


@dataclass(frozen=True)
class Inputs:
    """What is asked of a model of a labelled task, and with what."""

    evaluation: str = ""
    """How its answers are compared with truths; "" for a task without answers."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of a row that each part is read from."""
    media: Mapping[str, Medium] = field(default_factory=dict)
    """Columns that hold a file."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """What a form has to know: sizes of images, the rate of recordings, columns of a table, how many items there are.
    Plain data."""
    numbers: int = 0
    """Numbers of a row, where every row has as many; 0 for rows of tokens."""


def inputs_of(section: Named | None, *, has_tokenizer: bool) -> Inputs:
    """The inputs of the models of a task; `section` is settled. Empty for a model without a task."""
    if section is None:
        return Inputs()
    evaluation = _evaluation(section)
    if section.name in ROLES or has_tokenizer:
        return Inputs(evaluation, _columns(section, ROLES.get(section.name, {"text": "text"})))
    media = {column: role for role in MEDIA if isinstance(column := getattr(section, role, None), str)}
    known: Mapping[str, Any] = getattr(catalog.load("tasks", section.name).Task(section, None, 1), "known", {})
    columns: dict[str, str] = {role: column for column, role in media.items()}
    columns |= {name: name for name in (*_means(section), *_values(section))}
    if _catalogue(section):
        columns["items"] = str(getattr(section, "items", "items"))
    return Inputs(evaluation, columns, media, _form(section, known, media), _numbers(known))


def cost_of(numbers: int) -> int:
    """What a row of so many numbers counts as, in tokens, where batches and keys are limited by them."""
    return max(1, numbers // NUMBERS_PER_TOKEN)


def sample(columns: Mapping[str, str], media: Mapping[str, str], form: Mapping[str, Any]) -> dict[str, Any]:
    """The shortest row that a model can answer: what a probe asks."""
    row: dict[str, Any] = {column: ["a"] if role == "tokens" else "a" for role, column in columns.items()}
    row |= dict(form.get("numbers", {}))
    row |= {name: values[0] for name, values in form.get("categories", {}).items() if values}
    if "items" in form:
        row[columns["items"]] = list(form["items"]["first"])
    return row | {column: _file(medium, form) for column, medium in media.items()}


def _evaluation(section: Named) -> str:
    """How the answers of a task are compared; what is a property of the task follows from the kind of its labels."""
    task = catalog.load("tasks", section.name).Task
    if not hasattr(task, "answers"):
        return ""
    stated = getattr(task, "evaluation", None)
    if isinstance(stated, str):
        return stated
    return {"several": "multilabel", "number": "number"}.get(str(getattr(section, "kind", None)), "classes")


def _columns(section: Named, roles: Mapping[str, str]) -> dict[str, str]:
    named = {role: getattr(section, setting, None) for role, setting in roles.items()}
    return {role: column for role, column in named.items() if isinstance(column, str) and column}


def _form(section: Named, known: Mapping[str, Any], media: Mapping[str, Medium]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "image" in media.values() and "image_size" in known:
        height, width = known["image_size"]
        found |= {"height": height, "width": width, "channels": known.get("channels", 3)}
    if "audio" in media.values():
        rate = known.get("rate", PROBED_RATE)
        found |= {"rate": rate, "seconds": getattr(section, "seconds", known.get("samples", rate) / rate)}
    if _means(section) or _values(section):
        found["numbers"] = dict(_means(section))
        found["categories"] = {name: list(values[:MOST_VALUES]) for name, values in _values(section).items()}
    if catalogue := _catalogue(section):
        found["items"] = {"count": len(catalogue), "first": list(catalogue[:SAMPLED])}
    return found


def _means(section: Named) -> Mapping[str, float]:
    """The columns of numbers that a section tells of, with what is usual in each."""
    found: Mapping[str, float] = getattr(getattr(section, "table", None) or section, "means", None) or {}
    return found


def _values(section: Named) -> Mapping[str, tuple[str, ...]]:
    """The columns of categories that a section tells of, with their values."""
    table = getattr(section, "table", None)
    return (table.categories if table is not None else getattr(section, "known_values", None)) or {}


def _catalogue(section: Named) -> tuple[str, ...]:
    """The items that a task chooses from, where it does."""
    return getattr(section, "catalogue", None) or ()


def _numbers(known: Mapping[str, Any]) -> int:
    if "image_size" in known:
        return int(prod(known["image_size"])) * int(known.get("channels", 1))
    return int(known.get("samples") or known.get("n_features") or 0)


def _file(medium: str, form: Mapping[str, Any]) -> bytes:
    """A black image, or silence, of the size that a model reads."""
    import numpy as np

    if medium == "image":
        from groundup.data import images

        shape = (form.get("height", PROBED_SIDE), form.get("width", PROBED_SIDE), form.get("channels", 3))
        return images.to_png(np.zeros(shape, np.uint8))
    from groundup.data import audio

    rate = form.get("rate", PROBED_RATE)
    return audio.to_wav(np.zeros(max(1, round(rate * form.get("seconds", 1.0))), np.int16), rate)
