"""A model's answers to the examples of a split, gathered from batches without padding; and to single rows.

What a row's outputs mean is the task's business (`answers`), as is putting several rows of one example
together (`answer`); here they are only asked. What a user gives as a row, and is shown as an answer, is the
same from Python, on the command line and over HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from groundup import catalog, config
from groundup.artifact import MANIFEST, Artifact
from groundup.config import Named
from groundup.data.packing import Row
from groundup.errors import ArtifactError, Interrupted, UserError
from groundup.evaluation.metrics import calibration
from groundup.progress import Reporter, interrupt_requested


def task_section(manifest: Mapping[str, Any], where: str) -> Named:
    """The task that a model's manifest says it was trained for, as training settled it.

    Raises ArtifactError if it does not say, or if another version of groundup said it in other words.
    """
    section = manifest.get("choices", {}).get("task") or manifest.get("section", {}).get("task")
    if section is None:
        fix = "name a model that groundup trained; a checkpoint of others has no task of its own"
        raise ArtifactError("the model does not say which task it was trained for", where=where, fix=fix)
    try:
        return config.named("tasks", section)
    except ValueError as error:
        fix = "open it with the groundup that trained it, or train it again"
        raise ArtifactError(f"its task cannot be read here: {error}", where=where, fix=fix) from error


def open_task(section: Named, folder: Path, tokenizer: Any, runtime: Any, *, is_own: bool = True) -> Any:
    """The task of a section for the model in a directory, at the longest row it was trained on.

    With `is_own` the task takes back what it wrote beside the weights, such as a chain over its tags.
    """
    path = folder / "tokenizer_config.json"
    given = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if tokenizer is not None else None
    task = catalog.load("tasks", section.name).Task(
        section, tokenizer, min(int(given or runtime.context), runtime.context)
    )
    if is_own and hasattr(task, "restore"):
        task.restore(folder, runtime.network)
    return task


def task_of(folder: Path, tokenizer: Any, runtime: Any) -> Any:
    """The task of a model, ready to encode and to answer. Raises UserError for a model without labels to give."""
    manifest = Artifact(folder).manifest if (folder / MANIFEST).is_file() else {}
    section = task_section(manifest, str(folder))
    task = open_task(section, folder, tokenizer, runtime)
    if not hasattr(task, "answers"):
        fix = "use generate for a model that continues texts, fill for one that fills gaps"
        raise UserError(f"a model of {section.name} has no answers to give", where=str(folder), fix=fix)
    return task


def temperature_of(folder: Path) -> float:
    """The temperature that was fitted on a model's validation rows, 1 if none was."""
    path = folder / calibration.FILE
    return float(json.loads(path.read_text(encoding="utf-8"))["temperature"]) if path.is_file() else 1.0


def example_of(task: Any, row: Any, place: int) -> dict[str, Any]:
    """What a user of this machine gave as an example; `place` names it in errors.

    It is the columns that the task reads, or what stands in the first of them: a text; or an image or a recording,
    which may be the path of a file.
    """
    column = getattr(task, "column", None) or getattr(task.config, "text", "text")
    example = {"id": place, "source": f"row {place}"} | (dict(row) if isinstance(row, Mapping) else {column: row})
    return task.local(example) if hasattr(task, "local") else example


NAMES = {
    "classes": "label", "multilabel": "labels", "number": "number", "tags": "tags", "recommending": "items",
}  # fmt: skip
"""By kind of evaluation, what an answer is called; others are texts."""


def shown(task: Any, given: Any, temperature: float) -> dict[str, Any]:
    """An answer as a user sees it: under its name, with probabilities by label at a temperature, or a confidence."""
    name = NAMES.get(task.evaluation, "text")
    found: dict[str, Any] = {name: given.answer}
    if given.probabilities is not None:
        shares = given.probabilities
        if temperature != 1:
            shares = calibration.tempered([shares], temperature)[0].tolist()
        found["probabilities"] = dict(zip(list(task.labels), shares, strict=True))
    if given.confidence is not None:
        found["confidence"] = given.confidence
    return found


Forward = Callable[[Mapping[str, Any]], Any]


def answers_by_document(
    task: Any,
    rows: Any,
    forward: Forward,
    *,
    batch_tokens: int,
    is_flat: bool,
    reporter: Reporter,
    doing: str,
    count: int | None = None,
) -> dict[int, list[dict[str, Any]]]:
    """For each document of the split, or the first `count`, what the model says of its rows, in their order.

    `task` and `rows` are a labelled task and its rows (`tasks/_contract.py`); what is asked holds no answers
    if the task can tell them apart (`ask`). Raises Interrupted.
    """
    collate = getattr(task, "ask", task.collate)
    found: dict[int, dict[int, dict[str, Any]]] = {}
    done = 0
    together = getattr(rows, "batch", None)
    asked = np.array([i for i in range(len(rows)) if count is None or rows.document_of(i) < count], np.int64)
    for places in batches(getattr(rows, "costs", rows.lengths)[asked], batch_tokens):
        indices = asked[places]
        made: list[Row] = [] if together else [rows.row(int(index), 0) for index in indices]
        batch = together(indices, np.zeros_like(indices)) if together else collate(made, flat=is_flat)
        for index, answer in zip(indices.tolist(), task.answers(forward(batch), batch), strict=True):
            found.setdefault(int(rows.document_of(index)), {})[index] = answer
        done += len(indices)
        reporter.advance(doing, done, len(asked))
        if interrupt_requested():
            raise Interrupted("stopped while answering", fix="run again: it starts afresh")
    return {document: [by_row[index] for index in sorted(by_row)] for document, by_row in found.items()}


class Alone(NamedTuple):
    """An example that is not part of a split, encoded: its rows, and the tokens of each."""

    example: Mapping[str, Any]
    rows: list[Row]
    lengths: list[int]


def encode_alone(task: Any, example: Mapping[str, Any], columns: Mapping[str, Any] | None = None) -> Alone:
    """An example as the rows that the model reads of it, by its columns where it was encoded already.

    Raises DataError for an example that the task cannot read.
    """
    from groundup.data.sample import Documents  # brings pyarrow, which a server's front can do without

    encode = task.encode if columns is None else lambda _: dict(columns)
    rows = task.rows(Documents([example], encode), 0, held_out=True)
    lengths = getattr(rows, "costs", rows.lengths)
    return Alone(example, [rows.row(index, 0) for index in range(len(rows))], lengths.tolist())


def answer_together(
    task: Any, examples: Sequence[Alone], forward: Forward, *, batch_tokens: int, is_flat: bool
) -> list[Any]:
    """The answers to encoded examples, in order, their rows computed together; see `tasks/_contract.py`."""
    collate = getattr(task, "ask", task.collate)
    owners = [(place, row) for place, one in enumerate(examples) for row in range(len(one.rows))]
    lengths = np.array([length for one in examples for length in one.lengths], np.int64)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for indices in batches(lengths, batch_tokens):
        chosen = [owners[index] for index in indices.tolist()]
        batch = collate([examples[place].rows[row] for place, row in chosen], flat=is_flat)
        found |= zip(chosen, task.answers(forward(batch), batch), strict=True)
    by_example = ([found[place, row] for row in range(len(one.rows))] for place, one in enumerate(examples))
    return [task.answer(said, one.example) for said, one in zip(by_example, examples, strict=True)]


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
