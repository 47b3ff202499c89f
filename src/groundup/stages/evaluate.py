"""Measure a model on text it has not seen, beside classical rivals, and write the report.

The only stage that opens the test split. The report is a function of the model, the data and the
seed: what the evaluation itself took is under `log/`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from groundup import catalog
from groundup import config as sections
from groundup.artifact import Artifact, Draft, Input
from groundup.config import Mistake, StageSection
from groundup.data.corpus import Corpus
from groundup.data.shards import Shards, open_or_build
from groundup.errors import ArtifactError, DataError
from groundup.evaluation import baselines, collecting, report, scoring, texts, words
from groundup.evaluation.baselines import Rival
from groundup.evaluation.collecting import Subject
from groundup.forecast import Forecast, Known
from groundup.machine import usable_cores
from groundup.runtimes import torch as torch_runtime
from groundup.serving import samples
from groundup.serving.start import beginning
from groundup.stages import _evaluate_labelled
from groundup.stages._training import tokenizer_digest
from groundup.text.tokenizers import Tokenizer
from groundup.units import Bytes, Count, PositiveCount, show_bytes, show_count

READS = {"of": "model", "data": "corpus", "before": "model"}
WRITES = "report"
ALL_SEEDS = ("of",)
VERSION = 2

Baseline = Literal["ngram", "xz", "unigram"]
RIVALS: dict[str, tuple[Baseline, ...]] = {"ngram": ("ngram", "xz"), "unigram": ("unigram",)}
"""What stands beside a task that names this baseline, unless the recipe says otherwise."""
TOKEN_ORDER = 6
FORWARD_SPEEDUP = 3.0
"""A forward pass is about a third of a training step; windows overlap by half, so each token costs two."""


class Config(StageSection):
    """Measure a model on unseen text, with intervals, rivals and samples."""

    of: str
    """The model to measure: a `pretrain` or `finetune` stage."""
    data: str
    """The corpus and split to measure on, such as corpus.test. The rivals learn from its train split."""
    before: str | None = None
    """For a labelled task, the model before it was tuned further, to be measured on the same rows: what was gained,
    or forgotten."""
    bootstrap: Annotated[PositiveCount, Field(ge=100, le=100_000)] = 1000
    """How many times the test documents are drawn again for the intervals."""
    samples: Count = 3
    """How many outputs to show; of a causal model the last is without a prompt."""
    baselines: tuple[Baseline, ...] | None = None
    """Rivals beside the model; those that fit its task unless given."""
    baseline_bytes: Bytes = 32_000_000
    """The most training text the rivals read (n-grams need some 40 bytes of memory for each); the report says
    so where there is more."""
    max_documents: PositiveCount | None = None
    """Measure on this many test documents, evenly spread; all unless given."""
    batch_tokens: PositiveCount = 8192
    """Tokens of a forward pass."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda or mps."""
    saliency: bool = True
    """Whether to ask what a model that tells classes apart looks at, and to test it, which takes as long as answering
    some thousands of rows."""
    slices: list[str] = Field(default=[])
    """Columns of labelled rows to break the scores down by, such as language; each must be kept by `prepare`."""


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write report.html, report.md and report.json."""
    if _evaluate_labelled.is_labelled(inputs["of"].artifact):
        _evaluate_labelled.run(_wanted(config), inputs, out)
        return
    clock = [time.perf_counter()]
    runtime = torch_runtime.load(_verified(inputs["of"].artifact), device=config.device)
    subject = _score(config, inputs, runtime, out)
    clock.append(time.perf_counter())
    known = texts.read(subject.corpus, subject.split, subject.documents, limit=config.baseline_bytes)
    rivals = _rivals(config, subject, known, out)
    clock.append(time.perf_counter())
    shown = _samples(config, subject, runtime, known.test)
    data = collecting.collect(
        subject,
        known,
        rivals,
        shown,
        seed=config.seed,
        resamples=config.bootstrap,
        rival_limit=config.baseline_bytes,
        licences=out.licences,
    )
    report.write(data, out.path)
    clock.append(time.perf_counter())
    spent = zip(("scoring_s", "rivals_s", "samples_and_report_s"), np.diff(clock), strict=True)
    out.write_json("log/seconds.json", {name: round(float(seconds), 2) for name, seconds in spent})
    out.metrics |= {name: found["estimate"] for name, found in data["scores"].items()}
    out.metrics["headline"] = words.short(data)


def _wanted(config: Config) -> _evaluate_labelled.Wanted:
    return _evaluate_labelled.Wanted(
        seed=config.seed,
        resamples=config.bootstrap,
        max_documents=config.max_documents,
        batch_tokens=config.batch_tokens,
        device=config.device,
        slices=tuple(config.slices),
        rivals=config.baselines != (),
        saliency=config.saliency,
    )


def check(config: Config, inputs: dict[str, Known]) -> list[Mistake]:
    """A split that is missing, or that the model was trained on; rivals that do not fit."""
    data, mistakes = inputs["data"], []
    if data.part in (None, "train"):
        what = "measuring a model on the text it was trained on says nothing about it"
        mistakes.append(Mistake(("data",), what, f"write {config.data.removesuffix('.train')}.test"))
    known = data.facts.get("documents")
    if isinstance(known, dict) and data.part is not None and not known.get(data.part):
        there = ", ".join(name for name, count in known.items() if count) or "none"
        mistakes.append(Mistake(("data",), f"the corpus has no documents in its {data.part} split", f"splits: {there}"))
    name = getattr(getattr(inputs["of"].config, "task", None), "name", None)
    wrong = [b for b in config.baselines or () if (b == "unigram") == (name == "language_modeling")]
    if name and wrong:
        fitting = RIVALS["ngram" if name == "language_modeling" else "unigram"]
        mistakes.append(
            Mistake(("baselines",), f"{wrong[0]} is no rival of {name}", f"rivals that fit: {', '.join(fitting)}")
        )
    return mistakes


def forecast(config: Config, inputs: dict[str, Known], effort: str) -> Forecast:
    """Test tokens, and about how long scoring and the rivals take."""
    of, data = inputs["of"], inputs["data"]
    sizes = data.facts.get("bytes", {})
    test, train = sizes.get(data.part or "test", 0), min(sizes.get("train", 0), config.baseline_bytes)
    counts = data.facts.get("documents", {}).get(data.part or "test", 0)
    if config.max_documents and counts:
        test = test * min(1.0, config.max_documents / counts)
    found = Forecast(estimated=data.estimated or of.estimated)
    found.lines.append(("test text", f"{show_bytes(test)}, {show_count(counts)} documents"))
    seconds = of.facts.get("seconds_per_token") or (
        1 / of.artifact.metrics["tokens_s"] if of.artifact is not None and of.artifact.metrics.get("tokens_s") else None
    )
    # Measured on two cores: an n-gram level costs 0.12 s per MB and there are some twenty; xz -9 reads 2 MB/s.
    rivals_s = (train / 1e6) * (20 * 0.12 + 0.5) if config.baselines != () else 0.0
    if seconds is not None:
        per_token = of.facts.get("bytes_per_token", 3.5)
        found.seconds = 5 + rivals_s + 2 * test / per_token * seconds / FORWARD_SPEEDUP
        found.lines.append(("scoring and rivals", f"about {found.seconds:.0f} s"))
    return found


def _verified(model: Artifact) -> Artifact:
    model.verify()
    return model


def _score(config: Config, inputs: dict[str, Input], runtime: torch_runtime.TorchRuntime, out: Draft) -> Subject:
    """The sums of every row of the split. Raises DataError and ArtifactError for inputs that do not fit."""
    model, split = inputs["of"].artifact, inputs["data"].part or "test"
    corpus = Corpus(inputs["data"].artifact)
    if not corpus.rows(split):
        raise DataError(f"the {split} split is empty", where=str(corpus.artifact.path), fix="give prepare more text")
    tokenizer = Tokenizer.load(model.path)
    task = _task(model, tokenizer, runtime.context)
    rows = task.document_rows(_shards(corpus, split, task, model, out), max_documents=config.max_documents)
    found = scoring.score_rows(
        rows,
        collate=task.collate,
        forward=runtime.forward,
        scores=lambda outputs, batch: task.scores(outputs, {k: v.to(runtime.device) for k, v in batch.items()}),
        batch_tokens=config.batch_tokens,
        reporter=out.reporter,
    )
    return Subject(model, corpus, split, tokenizer, task, rows, scoring.units_of(found))


def _task(model: Artifact, tokenizer: Tokenizer, context: int) -> Any:
    section = model.manifest.get("section", {}).get("task")
    if section is None:
        fix = "name the stage that trained it; a checkpoint of others has no task of its own"
        raise ArtifactError("the model does not say which task it was trained for", where=str(model.path), fix=fix)
    found = sections.named("tasks", section)
    return catalog.load("tasks", found.name).Task(found, tokenizer, context)


def _shards(corpus: Corpus, split: str, task: Any, model: Artifact, out: Draft) -> Shards:
    """The encoded documents of a split, from the store where training left them there."""
    key = task.encoding | {"tokenizer": tokenizer_digest(model)}
    return open_or_build(out.store, corpus, split, key, task.encode, out.reporter, usable_cores())


def _rivals(config: Config, subject: Subject, known: texts.Texts, out: Draft) -> list[Rival]:
    """Every rival's score; xz and n-grams at the same time, as neither uses more than one core."""
    wanted = config.baselines if config.baselines is not None else RIVALS.get(subject.task.baseline, ())
    common: dict[str, Any] = {"seed": config.seed, "resamples": config.bootstrap}
    with ThreadPoolExecutor(2) as pool:
        compressed = pool.submit(baselines.xz, known) if "xz" in wanted else None
        found: list[Rival] = []
        if "ngram" in wanted:
            out.reporter.advance("fitting n-grams", 0)
            seen = subject.model.manifest["tokens"] * subject.bytes_per_token(known.test)
            found += baselines.ngrams(
                known, subject.units, alphabets=_alphabets(subject.tokenizer), seen_bytes=seen, **common
            )
        if "unigram" in wanted:
            counts = _token_counts(subject, known.train)
            found += baselines.unigram(counts, subject.rows, subject.units, **common)
        return found + (compressed.result() if compressed else [])


def _alphabets(tokenizer: Tokenizer) -> list[baselines.Alphabet]:
    def encode(given: Sequence[str]) -> list[baselines.Ints]:
        return [np.array(ids, np.int32) for ids in tokenizer.encode_batch(given)]

    return [baselines.BYTES, baselines.Alphabet("tokens", tokenizer.vocab_size, encode, TOKEN_ORDER)]


def _token_counts(subject: Subject, train: Sequence[str]) -> baselines.Ints:
    counts = np.zeros(subject.tokenizer.vocab_size, np.int64)
    for start in range(0, len(train), 1000):
        for ids in subject.tokenizer.encode_batch(train[start : start + 1000]):
            counts += np.bincount(ids, minlength=len(counts))
    return counts


def _samples(
    config: Config, subject: Subject, runtime: torch_runtime.TorchRuntime, documents: Sequence[str]
) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"count": config.samples, "seed": config.seed}
    if runtime.causal:
        start = beginning(subject.model.path, subject.tokenizer)
        return samples.continuations(runtime, subject.tokenizer, start, documents, **common)
    return samples.fillings(runtime, subject.tokenizer, documents, **common)
