"""Answers of a model of a labelled task from Python: `groundup.load("runs/sst2/sentiment").predict(texts)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from groundup.data.sample import Documents
from groundup.errors import UserError
from groundup.evaluation import answering
from groundup.progress import Reporter
from groundup.runtimes.torch import TorchRuntime

BATCH_TOKENS = 8192


def predict(task: Any, runtime: TorchRuntime, rows: Iterable[Any], *, temperature: float = 1.0) -> list[dict[str, Any]]:
    """An answer for each row, in order: what the task's `answers` says of it, probabilities at a temperature.

    A row is a text, an image or a recording (bytes, the path of a file, an array), or a mapping with the columns the
    task reads; a table of pandas or polars will do too. Raises DataError, naming the row, for one the task cannot read.
    """
    examples = [answering.example_of(task, row, place) for place, row in enumerate(_listed(rows))]
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
    return [answering.shown(task, one, temperature) for one in given]


def _listed(rows: Any) -> list[Any]:
    """The rows of a table or of any iterable; one row alone is a mistake that is easily made."""
    if isinstance(rows, str | bytes | Mapping):
        raise UserError("predict takes a list of rows, not one", fix="write [row]")
    if hasattr(rows, "to_dicts"):  # polars
        return list(rows.to_dicts())
    if hasattr(rows, "to_dict"):  # pandas
        return list(rows.to_dict("records"))
    return list(rows)
