"""Measure a model of a labelled task: its answers to unseen examples, beside those of classical rivals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from groundup import catalog
from groundup.artifact import Artifact, Draft, Input
from groundup.config import Named
from groundup.data.corpus import Corpus
from groundup.data.packing import IGNORED
from groundup.data.shards import open_or_build
from groundup.errors import DataError
from groundup.evaluation import (
    answering,
    classical,
    classical_numbers,
    classical_recommenders,
    classical_search,
    classical_tagging,
    classical_translation,
    labelled_pictures,
    labelled_report,
    labelled_words,
    leakage,
    looking,
    report,
)
from groundup.evaluation.labelled import Labelled, System
from groundup.evaluation.metrics import detection
from groundup.machine import usable_cores
from groundup.runtimes import torch as torch_runtime
from groundup.runtimes.torch import TorchRuntime
from groundup.stages._training import tokenizer_digest
from groundup.text.tokenizers import Tokenizer
from groundup.units import show_count

LEAKAGE_ROWS = 200_000
"""Training rows compared with the test's: more would take minutes."""


@dataclass(frozen=True)
class Wanted:
    """What an evaluation is asked for; the stage's section, without what concerns only texts."""

    seed: int
    resamples: int
    max_documents: int | None
    batch_tokens: int
    device: str
    slices: tuple[str, ...] = ()
    rivals: bool = True
    saliency: bool = True


@dataclass
class Subject:
    """One trained model: its task and runtime, and how its answers are gathered.

    `section` is the task of a model that does not say its own, as one from elsewhere does not.
    """

    model: Artifact
    device: str
    section: Named | None = None
    runtime: TorchRuntime = field(init=False)
    task: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model.verify()
        section = self.section or answering.task_section(self.model.manifest, str(self.model.path))
        tokenizer = Tokenizer.find(self.model.path)
        self.runtime = torch_runtime.load(self.model, device=self.device)
        own = self.section is None
        self.task = answering.open_task(section, self.model.path, tokenizer, self.runtime, is_own=own)

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the encoding of rows depends on: the key of their shards."""
        has_tokens = self.task.tokenizer is not None
        return dict(self.task.encoding) | ({"tokenizer": tokenizer_digest(self.model)} if has_tokens else {})

    def answers(self, corpus: Corpus, split: str, count: int, wanted: Wanted, out: Draft) -> Any:
        """Answers, probabilities and confidences of the first `count` examples of a split."""
        shards = open_or_build(out.store, corpus, split, self.key, self.task.encode, out.reporter, usable_cores())
        rows = self.task.rows(shards, wanted.seed, held_out=True)
        found = answering.answers_by_document(
            self.task,
            rows,
            self.runtime.forward,
            batch_tokens=wanted.batch_tokens,
            is_flat=self.runtime.device.type in ("cpu", "cuda"),
            reporter=out.reporter,
            doing=f"answering {split}",
            count=count,
        )
        examples = list(itertools.islice(corpus.documents(split), count))
        return answering.put_together(self.task, found, examples)


def is_labelled(model: Artifact) -> bool:
    """Whether a model's task gives answers that are right or wrong."""
    section = model.manifest.get("section", {}).get("task")
    return section is not None and hasattr(catalog.load("tasks", section["name"]).Task, "answer")


def run(wanted: Wanted, inputs: Mapping[str, Input], out: Draft) -> None:
    """Write report.html, report.md, report.json and answers.jsonl."""
    models = [given.artifact for key, given in inputs.items() if key == "of" or key.startswith("of@")]
    corpus, split = Corpus(inputs["data"].artifact), inputs["data"].part or "test"
    if not corpus.rows(split):
        raise DataError(f"the {split} split is empty", where=str(corpus.artifact.path), fix="give prepare more rows")
    count = min(corpus.rows(split), wanted.max_documents or corpus.rows(split))
    runs: list[System] = []
    first: Subject | None = None
    for model in models:
        subject = Subject(model, wanted.device)
        first = first or subject
        given, shares, sure = subject.answers(corpus, split, count, wanted, out)
        seed = int(model.manifest.get("section", {}).get("seed", 0))
        runs.append(System(f"seed {seed}", given, shares, sure, seed=seed, digest=model.digest))
    assert first is not None, "a recipe names at least one model"
    examples = list(itertools.islice(corpus.documents(split), count))
    test = _test(first.task, examples, wanted, corpus)
    train = list(itertools.islice(corpus.documents("train"), LEAKAGE_ROWS)) if "train" in corpus.splits else []
    texts = [str(row["text"]) for row in train], [str(row["text"]) for row in examples]
    out.reporter.advance("looking for leaks", 0)
    found = leakage.find(*texts, only_exact=first.task.tokenizer is None) if train else None
    rivals = _before(first, inputs, corpus, split, count, wanted, out)
    rivals += _rivals(first.task, train, _validation(corpus), examples, test, out) if wanted.rivals else []
    data = labelled_report.collect(
        test,
        runs,
        rivals,
        described=_described(first, corpus, split, count, out),
        seed=wanted.seed,
        resamples=wanted.resamples,
        validation=_for_calibration(first, corpus, wanted, out),
        leakage=found,
        texts=texts,
    )
    shown, pictures = _pictures(first, train, examples, test, runs[0], data["mistakes"], wanted, out)
    data |= shown
    report.write(data, out.path, pictures)
    out.path("answers.jsonl").write_text(labelled_report.answer_lines(test, runs, rivals), encoding="utf-8")
    out.metrics |= {name: score["estimate"] for name, score in data["scores"].items()}
    out.metrics["headline"] = labelled_words.short(data)


def _pictures(
    subject: Subject,
    train: Sequence[dict[str, Any]],
    examples: Sequence[dict[str, Any]],
    test: Labelled,
    run: System,
    mistakes: Sequence[dict[str, Any]],
    wanted: Wanted,
    out: Draft,
) -> tuple[dict[str, Any], labelled_pictures.Pictures]:
    """Examples as the task draws them and what the network looks at, where there are such: what is said, and shown."""
    said, drawn = labelled_pictures.draw(subject.task, examples, test, run, mistakes, wanted.seed)
    looked = None
    if wanted.saliency:
        looked = looking.look(
            subject.task,
            subject.runtime.network,
            examples,
            train,
            shown=labelled_pictures.worth_a_look(test, run, mistakes, wanted.seed),
            seed=wanted.seed,
            resamples=wanted.resamples,
            reporter=out.reporter,
        )
    seen, strips = labelled_pictures.strips(looked, test, run)
    return said | seen, labelled_pictures.Pictures(drawn, strips)


def _before(
    subject: Subject, inputs: Mapping[str, Input], corpus: Corpus, split: str, count: int, wanted: Wanted, out: Draft
) -> list[System]:
    """The answers of the model before it was tuned, if the recipe names it."""
    if "before" not in inputs:
        return []
    model = inputs["before"].artifact
    known = "task" in model.manifest.get("section", {})
    earlier = Subject(model, wanted.device, None if known else subject.task.config)
    given, shares, sure = earlier.answers(corpus, split, count, wanted, out)
    meaning = "the model named as `before`, on the same examples: what tuning gained, or made it forget"
    return [System("the model before", given, shares, sure, meaning=meaning, digest=model.digest)]


def _test(task: Any, examples: Sequence[dict[str, Any]], wanted: Wanted, corpus: Corpus) -> Labelled:
    missing = [column for column in wanted.slices if column not in corpus.columns]
    if missing:
        what = f"no column {missing[0]!r} to break the scores down by"
        raise DataError(what, where="slices", fix=f"columns: {', '.join(corpus.columns)}; `keep` carries more along")
    grouped = getattr(task.config, "unit", None)
    return Labelled(
        kind=task.evaluation,
        ids=[str(example["source"]) for example in examples],
        shown=[task.shown(example) for example in examples],
        truth=[task.truth(example) for example in examples],
        labels=task.labels,
        slices={column: [example[column] for example in examples] for column in wanted.slices},
        units=[example[grouped] for example in examples] if grouped else None,
        unit=grouped or "examples",
        language=getattr(task.config, "language", "") or "",
        out_of_scope=getattr(task.config, "out_of_scope", None),
        metrics=getattr(task, "reported", {}),
        main=getattr(task, "main", None),
    )


def _validation(corpus: Corpus) -> list[dict[str, Any]]:
    return list(corpus.documents("validation")) if "validation" in corpus.splits else []


def _for_calibration(subject: Subject, corpus: Corpus, wanted: Wanted, out: Draft) -> Any:
    """Truth and probabilities of the validation rows, for a temperature; None without them."""
    if subject.task.evaluation != "classes" or "validation" not in corpus.splits or not corpus.rows("validation"):
        return None
    rows = _validation(corpus)
    _, shares, _ = subject.answers(corpus, "validation", len(rows), wanted, out)
    known = set(subject.task.labels)
    kept = [i for i, row in enumerate(rows) if subject.task.truth(row) in known]
    return ([subject.task.truth(rows[i]) for i in kept], [shares[i] for i in kept]) if shares and kept else None


def _rivals(
    task: Any,
    train: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
    labelled: Labelled,
    out: Draft,
) -> list[System]:
    """What classical methods answer, having learned from the same training rows."""
    out.reporter.advance("teaching classical rivals", 0)
    if hasattr(task, "vector"):
        return _of_vectors(task, train, validation, test, labelled)
    if task.evaluation == "recommending":
        return classical_recommenders.of_histories(task, train, validation, test)
    if hasattr(task, "entries"):
        return classical_recommenders.of_events(task, train, validation, test)
    inputs = [_input(task, row) for row in test]
    match task.evaluation:
        case "classes" | "multilabel" | "number":
            learned, held_back = (_examples(task, rows) for rows in (train, validation))
            if task.evaluation == "number":
                return classical.regressors(learned, held_back, inputs)
            if labelled.out_of_scope is None:
                return classical.classifiers(learned, held_back, inputs, list(labelled.labels))
            asked = [*inputs, *(_input(task, row) for row in validation)]
            found = classical.classifiers(learned, held_back, asked, list(labelled.labels))
            return [_rejecting(rival, [task.truth(row) for row in validation], labelled) for rival in found]
        case "tags":
            return classical_tagging.taggers(_tagged(task, train), _tagged(task, validation), inputs)
        case "spans":
            questions, contexts = zip(*inputs, strict=True)
            return [classical_search.reader(questions, contexts)]
        case "texts" if hasattr(task, "inputs"):
            sources, targets = [task.inputs(row) for row in train], [task.truth(row) for row in train]
            return classical_translation.translators(sources, targets, inputs)
    return []


def _of_vectors(
    task: Any,
    train: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
    labelled: Labelled,
) -> list[System]:
    """What they answer where an example is numbers."""
    outside = labelled.out_of_scope
    most = classical_numbers.most_rows(len(task.vector(test[0])), max(1, len(task.labels)))
    learned, held_back = (_numbers(task, rows, most, outside) for rows in (train, validation))
    asked = _vectors(task, [*test, *(validation if outside is not None else ())])
    if task.evaluation == "number":
        return classical_numbers.regressors(learned, held_back, asked)
    if task.evaluation == "multilabel":
        return classical_numbers.multilabel(learned, held_back, asked, list(task.labels))
    found = classical_numbers.classifiers(learned, held_back, asked, list(task.labels))
    if outside is None:
        return found
    return [_rejecting(rival, [task.truth(row) for row in validation], labelled) for rival in found]


def _numbers(task: Any, rows: Sequence[dict[str, Any]], most: int, outside: str | None) -> classical_numbers.Examples:
    """Rows as rivals learn from them; only as many become vectors as one of them looks at."""
    kept = [(row, task.truth(row)) for row in rows if _has_label(task, row)]
    kept = [(row, truth) for row, truth in kept if outside is None or truth != outside]
    return classical_numbers.Examples(_vectors(task, [row for row, _ in kept[:most]]), [truth for _, truth in kept])


def _has_label(task: Any, row: Mapping[str, Any]) -> bool:
    """Whether a row trains anything, as far as the task can tell: one without a label does not."""
    numbers = task.target(row) if hasattr(task, "target") else [0]
    return any(math.isfinite(number) and number != IGNORED for number in numbers)


def _vectors(task: Any, rows: Sequence[dict[str, Any]]) -> Any:
    return np.stack([task.vector(row) for row in rows]) if rows else np.empty((0, 0), np.float32)


def _rejecting(rival: System, held_out: Sequence[Any], test: Labelled) -> System:
    """A rival that answered test and validation examples, with the same right to call the former outsiders as the
    model has: where it is less sure than suits the validation examples best."""
    count = len(test)
    sure = rival.confidence if rival.probabilities is None else np.asarray(rival.probabilities).max(1)
    answers = list(rival.answers[:count])
    if sure is not None:
        right = np.array([given == truth for given, truth in zip(rival.answers[count:], held_out, strict=True)])
        outside = np.array([truth == test.out_of_scope for truth in held_out])
        bar = detection.bar(np.asarray(sure[count:]), right, outside)
        if outside.any():
            answers = [test.out_of_scope if sure[i] < bar else answers[i] for i in range(count)]
    return dataclasses.replace(
        rival,
        answers=answers,
        probabilities=None if rival.probabilities is None else rival.probabilities[:count],
        confidence=None if rival.confidence is None else rival.confidence[:count],
    )


def _tagged(task: Any, rows: Sequence[dict[str, Any]]) -> classical_tagging.Tagged:
    return classical_tagging.Tagged([task.inputs(row) for row in rows], [task.truth(row) for row in rows])


def _input(task: Any, row: Mapping[str, Any]) -> Any:
    given = task.inputs(row) if hasattr(task, "inputs") else task.shown(row)
    return given[0] if isinstance(given, tuple) and len(given) == 1 else given


def _examples(task: Any, rows: Sequence[dict[str, Any]]) -> classical.Examples:
    """Rows as rivals learn from them; those of no class teach nothing."""
    outside = getattr(task.config, "out_of_scope", None)
    kept = [(row, task.truth(row)) for row in rows]
    kept = [(row, truth) for row, truth in kept if outside is None or truth != outside]
    return classical.Examples([_input(task, row) for row, _ in kept], [truth for _, truth in kept])


def _described(subject: Subject, corpus: Corpus, split: str, count: int, out: Draft) -> dict[str, Any]:
    model = subject.model
    lines, over = report.curves(model)
    whole = corpus.rows(split)
    notes = [] if count == whole else [f"Measured on the first {show_count(count)} of {show_count(whole)} examples."]
    parent = model.manifest.get("parents", {}).get("data", {}).get("digest")
    if parent is not None and parent != corpus.artifact.digest:
        notes.append("The model was trained on other rows than those the rivals learned from.")
    return {
        "name": f"{model.manifest.get('recipe', 'model')} / {model.manifest.get('stage', '')}".rstrip(" /"),
        "model": {
            "digest": model.digest,
            "family": model.json("config.json")["model_type"],
            "task": subject.task.config.name,
            "parameters": model.metrics.get("parameters", 0),
            "tokens": model.manifest["tokens"],
        },
        "data": {
            "digest": corpus.artifact.digest,
            "split": split,
            "documents": count,
            "bytes": corpus.bytes(split),
            "documents_in_split": whole,
        },
        "cost": report.cost(model),
        "licences": dict(out.licences),
        "curves": lines,
        "curves_over": over,
        "notes": notes,
    }
