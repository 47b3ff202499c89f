"""Measure a model on text it has not seen, beside classical rivals, and write the report.

The only stage that opens the test split. The report is a function of the model, the data and the
seed: what the evaluation itself took is under `log/`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from groundup import catalog
from groundup import config as sections
from groundup.artifact import Artifact, Draft, Input, digest_file
from groundup.config import Mistake, StageSection
from groundup.data.corpus import Corpus
from groundup.data.packing import Rows
from groundup.data.shards import Shards, open_or_build
from groundup.data.workers import usable_cores
from groundup.errors import ArtifactError, DataError
from groundup.evaluation import baselines, report, scoring, texts, words
from groundup.evaluation.baselines import Rival
from groundup.evaluation.scoring import Units
from groundup.forecast import Forecast, Known
from groundup.runtimes import torch as torch_runtime
from groundup.serving import samples
from groundup.serving.start import beginning
from groundup.text.tokenizers import Tokenizer
from groundup.units import Bytes, Count, PositiveCount, show_bytes, show_count

READS = {"of": "model", "data": "corpus"}
WRITES = "report"
VERSION = 1

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
    bootstrap: Annotated[PositiveCount, Field(ge=100, le=100_000)] = 1000
    """How many times the test documents are drawn again for the intervals."""
    samples: Count = 3
    """How many outputs to show; of a causal model the last is without a prompt."""
    baselines: tuple[Baseline, ...] | None = None
    """Rivals beside the model; those that fit its task unless given."""
    baseline_bytes: Bytes = 48_000_000
    """The most training text the rivals read; the report says so where there is more."""
    max_documents: PositiveCount | None = None
    """Measure on this many test documents, evenly spread; all unless given."""
    batch_tokens: PositiveCount = 8192
    """Tokens of a forward pass."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda or mps."""


@dataclass(frozen=True)
class Measured:
    """A model with what it scored, ready for rivals and samples."""

    model: Artifact
    corpus: Corpus
    split: str
    tokenizer: Tokenizer
    task: Any
    runtime: torch_runtime.TorchRuntime
    rows: Rows
    units: Units
    documents: list[int]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text to a token, on the test text."""
        read = sum(len(str(self.corpus.document(self.split, d)["text"]).encode()) for d in self.documents[:200])
        cut = sum(len(self.tokenizer.encode(self.corpus.document(self.split, d)["text"])) for d in self.documents[:200])
        return read / max(1, cut)


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write report.html, report.md and report.json."""
    began = time.perf_counter()
    measured = measure(config, inputs, out)
    scored = time.perf_counter()
    known = texts.read(measured.corpus, measured.split, measured.documents, limit=config.baseline_bytes)
    rivals = _rivals(config, measured, known, out)
    compared = time.perf_counter()
    data = _collect(config, measured, known, rivals, inputs, out)
    report.write(data, out.path)
    spent = {"scoring_s": scored - began, "rivals_s": compared - scored, "rest_s": time.perf_counter() - compared}
    out.write_json("log/seconds.json", {name: round(seconds, 2) for name, seconds in spent.items()})
    out.metrics |= {name: found["estimate"] for name, found in data["scores"].items()}
    out.metrics["headline"] = words.short(data)


def measure(config: Config, inputs: dict[str, Input], out: Draft) -> Measured:
    """Score every row of the split. Raises DataError and ArtifactError for inputs that do not fit."""
    model, split = inputs["of"].artifact, inputs["data"].part or "test"
    corpus = Corpus(inputs["data"].artifact)
    if not corpus.rows(split):
        raise DataError(f"the {split} split is empty", where=str(corpus.artifact.path), fix="give prepare more text")
    model.verify()
    tokenizer = Tokenizer.load(model.path)
    runtime = torch_runtime.load(model, device=config.device)
    task = _task(model, tokenizer, runtime.context)
    shards = _shards(corpus, split, task, model, out)
    rows = task.document_rows(shards, max_documents=config.max_documents)
    found = scoring.score_rows(
        rows,
        collate=task.collate,
        forward=runtime.forward,
        scores=lambda outputs, batch: task.scores(outputs, {k: v.to(runtime.device) for k, v in batch.items()}),
        batch_tokens=config.batch_tokens,
        reporter=out.reporter,
    )
    documents = sorted(set(found.document.tolist()))
    units = scoring.units_of(found)
    return Measured(model, corpus, split, tokenizer, task, runtime, rows, units, documents)


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


def _task(model: Artifact, tokenizer: Tokenizer, context: int) -> Any:
    section = model.manifest.get("section", {}).get("task")
    if section is None:
        fix = "name the stage that trained it; a checkpoint of others has no task of its own"
        raise ArtifactError("the model does not say which task it was trained for", where=str(model.path), fix=fix)
    found = sections.named("tasks", section)
    return catalog.load("tasks", found.name).Task(found, tokenizer, context)


def _shards(corpus: Corpus, split: str, task: Any, model: Artifact, out: Draft) -> Shards:
    """The encoded documents of a split, from the store where training left them there."""
    parent = model.manifest.get("parents", {}).get("tokenizer", {}).get("digest")
    key = task.encoding | {"tokenizer": parent or digest_file(model.file("tokenizer.json"))}
    return open_or_build(out.store, corpus, split, key, task.encode, out.reporter, usable_cores())


def _rivals(config: Config, measured: Measured, known: texts.Texts, out: Draft) -> list[Rival]:
    """Every rival's score; xz and n-grams at the same time, as neither uses more than one core."""
    wanted = config.baselines if config.baselines is not None else RIVALS.get(measured.task.baseline, ())
    common: dict[str, Any] = {"seed": config.seed, "resamples": config.bootstrap}
    with ThreadPoolExecutor(2) as pool:
        compressed = pool.submit(baselines.xz, known) if "xz" in wanted else None
        found: list[Rival] = []
        if "ngram" in wanted:
            out.reporter.advance("fitting n-grams", 0)
            seen = measured.model.manifest["tokens"] * measured.bytes_per_token
            found += baselines.ngrams(
                known, measured.units, alphabets=_alphabets(measured.tokenizer), seen_bytes=seen, **common
            )
        if "unigram" in wanted:
            counts = _token_counts(measured, known.train)
            found += baselines.unigram(counts, measured.rows, measured.units, **common)
        return found + (compressed.result() if compressed else [])


def _alphabets(tokenizer: Tokenizer) -> list[baselines.Alphabet]:
    def encode(given: Sequence[str]) -> list[baselines.Ints]:
        return [np.array(ids, np.int32) for ids in tokenizer.encode_batch(given)]

    return [baselines.BYTES, baselines.Alphabet("tokens", tokenizer.vocab_size, encode, TOKEN_ORDER)]


def _token_counts(measured: Measured, train: Sequence[str]) -> baselines.Ints:
    counts = np.zeros(measured.tokenizer.vocab_size, np.int64)
    for start in range(0, len(train), 1000):
        for ids in measured.tokenizer.encode_batch(train[start : start + 1000]):
            counts += np.bincount(ids, minlength=len(counts))
    return counts


def _collect(
    config: Config,
    measured: Measured,
    known: texts.Texts,
    rivals: list[Rival],
    inputs: dict[str, Input],
    out: Draft,
) -> dict[str, Any]:
    """Everything the report says, as plain data."""
    model, units = measured.model, measured.units
    metrics = {n: m for n, m in measured.task.metrics.items() if units.sums[m.below].sum() > 0}
    found = {n: units.interval(m, seed=config.seed, resamples=config.bootstrap) for n, m in metrics.items()}
    lines, over = report.curves(model)
    return {
        "format": report.FORMAT,
        "name": f"{model.manifest.get('recipe', 'model')} / {model.manifest.get('stage', '')}".rstrip(" /"),
        "seed": config.seed,
        "main_metric": report.main_metric(list(found)),
        "scores": {name: interval.as_dict() for name, interval in found.items()},
        "rivals": [rival.as_data() for rival in rivals],
        "units": {"name": units.name, "count": len(units), "bits_per_byte": _bits(units)},
        "model": _described_model(model),
        "data": {
            "digest": measured.corpus.artifact.digest,
            "split": measured.split,
            "documents": len(measured.documents),
            "bytes": texts.size(known.test),
            "documents_in_split": measured.corpus.rows(measured.split),
        },
        "tokenizer": {
            "digest": digest_file(model.file("tokenizer.json")),
            "vocab_size": measured.tokenizer.vocab_size,
            "bytes_per_token": round(measured.bytes_per_token, 4),
        },
        "samples": _samples(config, measured, known),
        "curves": lines,
        "curves_over": over,
        "cost": report.cost(model),
        "licences": dict(out.licences),
        "notes": _notes(config, measured, known, rivals),
    }


def _bits(units: Units) -> list[float]:
    """Bits per byte of each unit, for the pictures; empty where bytes are not what is scored."""
    if not units.sums["bytes"].sum():
        return []
    bits = units.sums["nats"] / np.maximum(units.sums["bytes"], 1) / np.log(2)
    return [round(float(value), 5) for value in bits]


def _described_model(model: Artifact) -> dict[str, Any]:
    section = model.manifest["section"]
    return {
        "digest": model.digest,
        "family": section["model"]["name"] if "model" in section else model.json("config.json")["model_type"],
        "task": section["task"]["name"],
        "parameters": model.metrics.get("parameters", 0),
        "tokens": model.manifest["tokens"],
        "section": section.get("model"),
    }


def _samples(config: Config, measured: Measured, known: texts.Texts) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"count": config.samples, "seed": config.seed}
    if measured.runtime.causal:
        start = beginning(measured.model.path, measured.tokenizer)
        return samples.continuations(measured.runtime, measured.tokenizer, start, known.test, **common)
    return samples.fillings(measured.runtime, measured.tokenizer, known.test, **common)


def _notes(config: Config, measured: Measured, known: texts.Texts, rivals: list[Rival]) -> list[str]:
    """What a careful reader must know."""
    notes = []
    whole = measured.corpus.rows(measured.split)
    if len(measured.documents) < whole:
        notes.append(f"Measured on {len(measured.documents):,} of {whole:,} test documents, evenly spread.")
    parent = measured.model.manifest.get("parents", {}).get("data", {}).get("digest")
    if parent is not None and parent != measured.corpus.artifact.digest:
        notes.append("The model was trained on another corpus than the one it is measured on; the rivals learned here.")
    if any(r.metric == "bits_per_byte" for r in rivals) and known.train_bytes < 0.9 * known.all_train_bytes:
        notes.append(
            f"The rivals read at most {show_bytes(config.baseline_bytes)} of the "
            f"{show_bytes(known.all_train_bytes)} of training text."
        )
    if measured.tokenizer.unk_id is not None and "bits_per_byte" in measured.task.metrics:
        notes.append("A tokenizer with an unknown token may lose text; bits per byte then count less than all of it.")
    return notes
