"""Pretrain a model from random weights on a corpus; resumable to the byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundup import config as sections
from groundup.artifact import Artifact, Draft, Input
from groundup.checkpoints import hugging_face
from groundup.config import Mistake, Named
from groundup.data import sample as sampling
from groundup.data.corpus import Corpus
from groundup.data.shards import Shards, open_or_build
from groundup.errors import DataError
from groundup.forecast import Forecast, Known
from groundup.machine import usable_cores
from groundup.stages._training import describe_choices, fit, licence_warnings, model_facts, note
from groundup.text.tokenizers import Tokenizer
from groundup.training import card, outlook
from groundup.training import choices as choosing
from groundup.training.assembly import Assembly, Material, make_task, steps
from groundup.training.loop import Result
from groundup.training.measure import Planned, measure
from groundup.training.settings import ModelTrainingSection, rounded_batch

READS = {"data": "corpus", "tokenizer": "tokenizer"}
WRITES = "model"
VERSION = 1


class Config(ModelTrainingSection):
    """Train a model from random weights."""

    data: str
    """The corpus to learn from: a `prepare` stage. Its train split, unless another is named."""
    tokenizer: str
    """What cuts the text: a `tokenize` stage."""


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write a model as a Hugging Face directory, with its tokenizer, card and logs."""
    material = _material(config, inputs, out)
    assembly, result = fit(config, out, lambda choices: Assembly(config, material, choices), describe)
    _write(config, inputs, out, assembly, result)


def describe(assembly: Assembly) -> list[str]:
    """What the log begins with: extent and choices."""
    extent = f"{assembly.steps} steps of {assembly.batch_rows} rows of {assembly.row_tokens} tokens"
    return describe_choices(assembly, extent)


def check(config: Config, inputs: dict[str, Known]) -> list[Mistake]:
    """Sizes, rates and extents that do not fit the data or each other."""
    return outlook.check(config, inputs)


def forecast(config: Config, inputs: dict[str, Known], effort: str) -> Forecast:
    """The forecast of a run; `effort` "measured" takes a few real steps in a process of their own.

    Raises UserError for what cannot be built: a model without the task's head, data without labels.
    """
    counts = outlook.counts(config, inputs)
    with _sample(config, inputs) as (material, folder, texts, is_whole):
        choices = choosing.begin(config)
        assembly = Assembly(config, material, choices)
        in_sample = int(material.train.column("input_ids")[1][-1])
        tokens = in_sample if is_whole else counts.get("tokens", in_sample)
        total = steps(config, assembly.batch_rows, max(1, tokens // config.context))
        found = Forecast(estimated=any(known.estimated for known in inputs.values()))
        outlook.describe(found, assembly, total, tokens)
        part = "" if is_whole else " (of a sample)"
        found.tables[f"labels{part}"] = assembly.rows.ledger().table()
        found.sample = assembly.task.render(assembly.rows.row(0, 0))
        found.warnings = [*licence_warnings(inputs), *outlook.warnings(config, assembly, total, tokens)]
        if effort == "measured":
            vocab_size = material.vocab_size or material.tokenizer.vocab_size
            little = sampling.cut(texts, 2 * assembly.batch_tokens + 2 * config.context, material.tokenizer)
            measured = measure(planned, config, little, folder, vocab_size, total)
            outlook.add_measured(found, config, assembly, measured, total, inputs)
            assert isinstance(material.train, sampling.Documents), "a sample is held in memory"
            outlook.add_encoding(found, material.train, inputs)
    return found


def seconds_per_token(config: Config, model: Named) -> float:
    """Measured wall seconds per token of training `model`; rows are this package's own sources."""
    sized = config.model_copy(update={"model": model, "micro_batch_rows": "auto"})
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.parent.rglob("*.py"))[:60]]
    with tempfile.TemporaryDirectory() as folder:
        sampling.stand_in("bpe" if config.task.name == "language_modeling" else "wordpiece", texts, Path(folder))
        tokenizer = Tokenizer.load(folder)
        vocab_size = max(getattr(model, "vocab_size", None) or 0, tokenizer.vocab_size)
        tokens = max(2, rounded_batch(sized.batch_tokens, sized.context)) * sized.context
        little = sampling.cut(texts, 2 * tokens + sized.context, tokenizer)
        found = measure(planned, sized, little, folder, vocab_size, 1)
    return 1 / found.tokens_s


def facts(artifact: Artifact) -> dict[str, Any]:
    """What later stages may know of a finished model."""
    return model_facts(artifact)


def planned(config: Config, texts: list[str], tokenizer_folder: str, vocab_size: int, total: int) -> Planned:
    """The run as it would begin, on a few documents; called in a process of its own."""
    tokenizer = Tokenizer.load(tokenizer_folder)
    documents = sampling.Documents(texts, make_task(config, tokenizer).encode)
    material = Material(tokenizer, documents, documents, vocab_size)
    assembly = Assembly(config, material, choosing.begin(config), planned_steps=total)
    choices = assembly.settle()
    return Planned(assembly.job(), config, choices)


@contextmanager
def _sample(config: Config, inputs: Mapping[str, Known]) -> Iterator[tuple[Material, str, list[str], bool]]:
    """Material to look at, the tokenizer's folder, the texts, and whether they are all there are."""
    data, cutter = inputs["data"], inputs["tokenizer"]
    texts, is_whole = sampling.texts_of(data)
    if not texts:
        raise DataError("there is no text to look at", where="data", fix="look at the prepare stage and its sources")
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(cutter.artifact.path) if cutter.artifact else scratch
        if cutter.artifact is None:
            wanted = min(sampling.VOCABULARY, cutter.facts.get("vocab_size") or sampling.VOCABULARY)
            sampling.stand_in(str(getattr(cutter.config, "kind", "bpe")), texts, Path(scratch), wanted)
        tokenizer = Tokenizer.load(folder)
        texts = sampling.enough(texts, config.context, tokenizer)
        documents = sampling.Documents(texts, make_task(config, tokenizer).encode)
        vocab_size = max(cutter.facts.get("vocab_size") or 0, tokenizer.vocab_size)
        yield Material(tokenizer, documents, None, vocab_size), folder, texts, is_whole


def _material(config: Config, inputs: dict[str, Input], out: Draft) -> Material:
    """The tokenizer and the encoded splits, from the store or encoded now."""
    data, tokens = inputs["data"], inputs["tokenizer"].artifact
    corpus, tokenizer = Corpus(data.artifact), Tokenizer.load(tokens.path)
    task = make_task(config, tokenizer)
    key = task.encoding | {"tokenizer": tokens.digest}

    def encoded(split: str) -> Shards:
        return open_or_build(out.store, corpus, split, key, task.encode, out.reporter, usable_cores())

    has_validation = "validation" in corpus.splits and corpus.rows("validation") > 0
    return Material(tokenizer, encoded(data.part or "train"), encoded("validation") if has_validation else None)


def _write(config: Config, inputs: dict[str, Input], out: Draft, assembly: Assembly, result: Result) -> None:
    """The payload, and what the manifest says of it."""
    tokenizer = assembly.material.tokenizer
    network = assembly.network.to("cpu")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    hugging_face.save(out.folder, network, generation={name: i for name, i in ids.items() if i is not None})
    tokenizer.save(out.folder, model_max_length=assembly.row_tokens)
    figures = note(out, assembly, result)
    text = card.write(
        name=f"{config.model.name} {config.task.name}",
        section=sections.dump(config),
        figures=figures,
        licences=out.licences,
        parents={key: given.artifact.digest for key, given in inputs.items()},
        head=assembly.task.head,
    )
    out.path("README.md").write_text(text, encoding="utf-8")
