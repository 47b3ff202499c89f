"""Answers of a model of a labelled task from Python: `groundup.load("runs/sst2/sentiment").predict(texts)`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from groundup.artifact import MANIFEST, Artifact
from groundup.data.sample import Documents
from groundup.errors import UserError
from groundup.evaluation import answering
from groundup.evaluation.metrics import calibration
from groundup.progress import Reporter
from groundup.runtimes.torch import TorchRuntime
from groundup.text.tokenizers import Tokenizer

BATCH_TOKENS = 8192


def task_of(folder: Path, tokenizer: Tokenizer, runtime: TorchRuntime) -> Any:
    """The task of a model, ready to encode and to answer. Raises UserError for a model without labels to give."""
    manifest = Artifact(folder).manifest if (folder / MANIFEST).is_file() else {}
    section = answering.task_section(manifest, str(folder))
    task = answering.open_task(section, folder, tokenizer, runtime)
    if not hasattr(task, "answers"):
        fix = "use generate for a model that continues texts, fill for one that fills gaps"
        raise UserError(f"a model of {section.name} has no answers to give", where=str(folder), fix=fix)
    return task


def temperature_of(folder: Path) -> float:
    """The temperature that was fitted on a model's validation rows, 1 if none was."""
    path = folder / calibration.FILE
    return float(json.loads(path.read_text(encoding="utf-8"))["temperature"]) if path.is_file() else 1.0


def predict(task: Any, runtime: TorchRuntime, rows: Iterable[Any], *, temperature: float = 1.0) -> list[dict[str, Any]]:
    """An answer for each row, in order: what the task's `answers` says of it, probabilities at a temperature.

    A row is a text, or a mapping with the columns the task reads; a table of pandas or polars will do
    too. Raises DataError, naming the row, for one the task cannot read.
    """
    examples = [_example(task, row, place) for place, row in enumerate(_listed(rows))]
    if not examples:
        return []
    found = answering.answers_by_document(
        task,
        task.rows(Documents(examples, task.encode), 0, held_out=True),
        runtime.forward,
        batch_tokens=BATCH_TOKENS,
        is_flat=runtime.device.type in ("cpu", "cuda"),
        reporter=Reporter(),
        doing="answering",
    )
    given = [task.answer(found.get(place, ()), example) for place, example in enumerate(examples)]
    name = {"classes": "label", "multilabel": "labels", "number": "number", "tags": "tags"}.get(task.evaluation, "text")
    return [_shown(name, one, list(task.labels), temperature) for one in given]


def _shown(name: str, given: Any, labels: list[str], temperature: float) -> dict[str, Any]:
    found: dict[str, Any] = {name: given.answer}
    if given.probabilities is not None:
        shares = given.probabilities
        if temperature != 1:
            shares = calibration.tempered([shares], temperature)[0].tolist()
        found["probabilities"] = dict(zip(labels, shares, strict=True))
    if given.confidence is not None:
        found["confidence"] = given.confidence
    return found


def _listed(rows: Any) -> list[Any]:
    """The rows of a table or of any iterable; one text alone is a mistake that is easily made."""
    if isinstance(rows, str | Mapping):
        raise UserError("predict takes a list of rows, not one", fix="write [row]")
    if hasattr(rows, "to_dicts"):  # polars
        return list(rows.to_dicts())
    if hasattr(rows, "to_dict"):  # pandas
        return list(rows.to_dict("records"))
    return list(rows)


def _example(task: Any, row: Any, place: int) -> dict[str, Any]:
    given = {getattr(task.config, "text", "text"): row} if isinstance(row, str) else dict(row)
    return {"id": place, "source": f"row {place}"} | given
