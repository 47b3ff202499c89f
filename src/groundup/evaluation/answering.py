"""A model's answers to the examples of a split, gathered from batches without padding.

What a row's outputs mean is the task's business (`answers`), as is putting several rows of one example
together (`answer`); here they are only asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup import catalog, config
from groundup.config import Named
from groundup.data.packing import Row
from groundup.errors import ArtifactError, Interrupted
from groundup.progress import Reporter, interrupt_requested


def task_section(manifest: Mapping[str, Any], where: str) -> Named:
    """The task that a model's manifest says it was trained for, as training settled it.

    Raises ArtifactError if it does not say.
    """
    section = manifest.get("choices", {}).get("task") or manifest.get("section", {}).get("task")
    if section is None:
        fix = "name a model that groundup trained; a checkpoint of others has no task of its own"
        raise ArtifactError("the model does not say which task it was trained for", where=where, fix=fix)
    return config.named("tasks", section)


def open_task(section: Named, folder: Path, tokenizer: Any, runtime: Any, *, is_own: bool = True) -> Any:
    """The task of a section for the model in a directory, at the longest row it was trained on.

    With `is_own` the task takes back what it wrote beside the weights, such as a chain over its tags.
    """
    given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("model_max_length")
    task = catalog.load("tasks", section.name).Task(
        section, tokenizer, min(int(given or runtime.context), runtime.context)
    )
    if is_own and hasattr(task, "restore"):
        task.restore(folder, runtime.network)
    return task


Forward = Callable[[Mapping[str, Any]], Any]


def answers_by_document(
    task: Any, rows: Any, forward: Forward, *, batch_tokens: int, is_flat: bool, reporter: Reporter, doing: str
) -> dict[int, list[dict[str, Any]]]:
    """For each document of the split, what the model says of its rows, in their order.

    `task` and `rows` are a labelled task and its rows (`tasks/_contract.py`); what is asked holds no answers
    if the task can tell them apart (`ask`). Raises Interrupted.
    """
    collate = getattr(task, "ask", task.collate)
    found: dict[int, dict[int, dict[str, Any]]] = {}
    done = 0
    for indices in batches(rows.lengths, batch_tokens):
        made: list[Row] = [rows.row(int(index), 0) for index in indices]
        batch = collate(made, flat=is_flat)
        for index, answer in zip(indices.tolist(), task.answers(forward(batch), batch), strict=True):
            found.setdefault(int(rows.document_of(index)), {})[index] = answer
        done += len(indices)
        reporter.advance(doing, done, len(rows))
        if interrupt_requested():
            raise Interrupted("stopped while answering", fix="run again: it starts afresh")
    return {document: [by_row[index] for index in sorted(by_row)] for document, by_row in found.items()}


def batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows by index, longest first, in batches of at most so many tokens, padding counted; at least one row each."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def put_together(
    task: Any, found: Mapping[int, Sequence[Mapping[str, Any]]], examples: Sequence[Mapping[str, Any]]
) -> tuple[list[Any], list[list[float]] | None, list[float] | None]:
    """Answers, probabilities and confidences of every example, in order; the last two where there are any."""
    if hasattr(task, "answer_all"):  # an answer depends on the other examples: what is near it
        given = task.answer_all(found, examples)
    else:
        given = [task.answer(found.get(place, ()), example) for place, example in enumerate(examples)]
    shares = [one.probabilities for one in given if one.probabilities is not None]
    sure = [one.confidence for one in given if one.confidence is not None]
    return (
        [one.answer for one in given],
        shares if len(shares) == len(given) else None,
        sure if len(sure) == len(given) else None,
    )
