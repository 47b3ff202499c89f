"""Let a model label unlabelled rows, and keep those it is sure of: the teacher's part of self-training.

The rows it wrote are mixed into a second training with `more:`. What a model is sure of is not always
right: its probabilities are only worth something if they are calibrated (the report of `evaluate` tells),
and rows that it finds hard are exactly those that are missing. Yarowsky 1995; Lee 2013 (pseudo-labels).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from groundup.artifact import Draft, Input
from groundup.config import Mistake, StageSection
from groundup.data import corpus_labelled
from groundup.data.corpus import Corpus
from groundup.errors import DataError
from groundup.forecast import Forecast, Known
from groundup.stages._evaluate_labelled import Subject, Wanted
from groundup.units import PositiveCount, show_count

READS = {"of": "model", "data": "corpus"}
WRITES = "corpus"
PARTS = ("train",)
VERSION = 1


class Config(StageSection):
    """Label rows by a model where it is sure."""

    of: str
    """The model that labels: a `finetune` or `train` stage of text_classification."""
    data: str
    """The unlabelled rows: a `prepare` stage. Its train split, unless another is named."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The probability of the likeliest class from which a row is kept."""
    most_per_label: PositiveCount | None = None
    """Keep at most so many rows of each label, the surest ones: against a model that prefers one class."""
    batch_tokens: PositiveCount = 8192
    """Tokens of a forward pass."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda or mps."""


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write a corpus with the texts, their labels and how sure the model was of each."""
    subject = Subject(inputs["of"].artifact, config.device)
    if subject.task.evaluation != "classes":
        raise DataError(
            f"rows can be labelled by models of one class a text, not by {subject.task.config.name}",
            where="of",
            fix="name a text_classification model of kind one",
        )
    data = inputs["data"]
    corpus, split = Corpus(data.artifact), data.part or "train"
    wanted = Wanted(config.seed, 0, None, config.batch_tokens, config.device)
    answers, shares, _ = subject.answers(corpus, split, corpus.rows(split), wanted, out)
    assert shares is not None, "classes have probabilities"
    sure = [max(row) for row in shares]
    kept = _kept(answers, sure, config)
    task = subject.task.config

    def rows() -> Iterator[dict[str, Any]]:
        columns = [task.text, *([task.pair] if task.pair else [])]
        for place, document in enumerate(corpus.documents(split)):
            if place in kept:
                own = {name: document[name] for name in ("text", "id", "source", *columns)}
                yield own | {"label": answers[place], "confidence": sure[place]}

    further = {name: pa.large_string() for name in (task.text, task.pair) if name and name != "text"}
    counts = corpus_labelled.write(out, rows(), further | {"label": pa.string(), "confidence": pa.float64()})
    whole = corpus.rows(split)
    out.write_json("ledger.json", {"rows": whole, "kept": sum(counts.values()), "by_label": dict(counts.most_common())})
    out.metrics |= {"documents": {"train": sum(counts.values())}, "rows": whole, "by_label": dict(counts)}
    share = sum(counts.values()) / whole
    out.metrics["headline"] = f"sure of {show_count(sum(counts.values()))} of {show_count(whole)} rows ({share:.0%})"


def _kept(answers: list[str], sure: list[float], config: Config) -> set[int]:
    """The rows to keep, by number."""
    found: dict[str, list[int]] = {}
    for place in sorted(range(len(answers)), key=lambda i: (-sure[i], i)):
        own = found.setdefault(answers[place], [])
        if sure[place] >= config.confidence and (config.most_per_label is None or len(own) < config.most_per_label):
            own.append(place)
    return {place for own in found.values() for place in own}


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """A task that gives no classes."""
    task = getattr(inputs["of"].config, "task", None)
    if task is not None and task.name != "text_classification":
        return [Mistake(("of",), f"{task.name} gives no classes", "name a stage with task: text_classification")]
    return []


def forecast(config: Config, inputs: Mapping[str, Known], effort: str) -> Forecast:
    """What goes in; what comes out depends on the model."""
    data = inputs["data"]
    rows = data.facts.get("documents", {}).get(data.part or "train", 0)
    found = Forecast(estimated=True)
    found.lines = [("rows", f"{show_count(rows)}, kept from a probability of {config.confidence:g} on")]
    return found
