"""From sums, rivals and samples to the plain data that a report is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundup.artifact import Artifact, digest_file
from groundup.data.corpus import Corpus
from groundup.data.packing import Rows
from groundup.evaluation import report, texts
from groundup.evaluation.baselines import Rival
from groundup.evaluation.scoring import Units
from groundup.text.tokenizers import Tokenizer
from groundup.units import show_bytes

SOME = 200
"""Documents that bytes per token are measured on."""


@dataclass(frozen=True)
class Subject:
    """A model that has been scored: on what, cut how, and its sums by unit."""

    model: Artifact
    corpus: Corpus
    split: str
    tokenizer: Tokenizer
    task: Any
    """What a file of `tasks/` calls Task; its `metrics` say what the sums mean."""
    rows: Rows
    units: Units

    @property
    def documents(self) -> list[int]:
        """The documents that were scored, ascending."""
        return sorted(set(self.units.document.tolist()))

    def bytes_per_token(self, given: Sequence[str]) -> float:
        """UTF-8 bytes of text to a token, on the first of these texts."""
        some = given[:SOME]
        return texts.size(some) / max(1, sum(map(len, self.tokenizer.encode_batch(some))))


def collect(
    subject: Subject,
    known: texts.Texts,
    rivals: Sequence[Rival],
    samples: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    resamples: int,
    rival_limit: int,
    licences: Mapping[str, str],
) -> dict[str, Any]:
    """Everything a report says: the content of report.json.

    scores: intervals by metric, the main one first. rivals: see `Rival`. units: what was drawn again,
    and its bits per byte. model, data, tokenizer: digests and sizes. samples, curves, cost, licences,
    notes (what a careful reader must know).
    """
    model, units = subject.model, subject.units
    metrics = {name: m for name, m in subject.task.metrics.items() if units.sums[m.below].sum() > 0}
    main = report.main_metric(list(metrics))
    order = [main, *(name for name in metrics if name != main)]
    scores = {name: units.interval(metrics[name], seed=seed, resamples=resamples).as_dict() for name in order}
    lines, over = report.curves(model)
    return {
        "format": report.FORMAT,
        "name": f"{model.manifest.get('recipe', 'model')} / {model.manifest.get('stage', '')}".rstrip(" /"),
        "seed": seed,
        "main_metric": main,
        "scores": scores,
        "rivals": [rival.as_data() for rival in rivals],
        "units": {"name": units.name, "count": len(units), "bits_per_byte": _bits(units)},
        "model": _described(model),
        "data": {
            "digest": subject.corpus.artifact.digest,
            "split": subject.split,
            "documents": len(subject.documents),
            "bytes": texts.size(known.test),
            "documents_in_split": subject.corpus.rows(subject.split),
        },
        "tokenizer": {
            "digest": digest_file(model.file("tokenizer.json")),
            "vocab_size": subject.tokenizer.vocab_size,
            "bytes_per_token": round(subject.bytes_per_token(known.test), 4),
        },
        "samples": [dict(sample) for sample in samples],
        "curves": lines,
        "curves_over": over,
        "cost": report.cost(model),
        "licences": dict(licences),
        "notes": _notes(subject, known, rivals, rival_limit),
    }


def _bits(units: Units) -> list[float]:
    """Bits per byte of each unit, for the pictures; empty where bytes are not what is scored."""
    if not units.sums["bytes"].sum():
        return []
    bits = units.sums["nats"] / np.maximum(units.sums["bytes"], 1) / np.log(2)
    return [round(float(value), 5) for value in bits]


def _described(model: Artifact) -> dict[str, Any]:
    section = model.manifest["section"]
    return {
        "digest": model.digest,
        "family": section["model"]["name"] if "model" in section else model.json("config.json")["model_type"],
        "task": section["task"]["name"],
        "parameters": model.metrics.get("parameters", 0),
        "tokens": model.manifest["tokens"],
        "section": section.get("model"),
    }


def _notes(subject: Subject, known: texts.Texts, rivals: Sequence[Rival], limit: int) -> list[str]:
    notes = []
    scored, whole = len(subject.documents), subject.corpus.rows(subject.split)
    if scored < whole:
        notes.append(f"Measured on {scored:,} of {whole:,} test documents, evenly spread.")
    parent = subject.model.manifest.get("parents", {}).get("data", {}).get("digest")
    if parent is not None and parent != subject.corpus.artifact.digest:
        notes.append("The model was trained on another corpus than the one it is measured on; the rivals learned here.")
    if any(r.metric == "bits_per_byte" for r in rivals) and known.train_bytes < 0.9 * known.all_train_bytes:
        everything = show_bytes(known.all_train_bytes)
        notes.append(f"The rivals read at most {show_bytes(limit)} of the {everything} of training text.")
    if subject.tokenizer.unk_id is not None and "bits_per_byte" in subject.task.metrics:
        notes.append("A tokenizer with an unknown token may lose text; bits per byte then count less than all of it.")
    return notes
