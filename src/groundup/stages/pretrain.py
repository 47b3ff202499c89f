"""Pretrain a model from random weights on a corpus; resumable to the byte."""

from __future__ import annotations

from typing import Annotated, Any, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from groundup import config as sections
from groundup.artifact import Artifact, Draft, Input
from groundup.checkpoints import hugging_face
from groundup.config import FromFolder, Mistake, Named
from groundup.data.corpus import Corpus
from groundup.data.shards import Shards, open_or_build
from groundup.data.workers import usable_cores
from groundup.forecast import Forecast, Known
from groundup.stages import _pretraining_card as card
from groundup.stages import _pretraining_forecast as forecasting
from groundup.stages._pretraining import Assembly, Material, make_task
from groundup.text.tokenizers import Tokenizer
from groundup.training import choices as choosing
from groundup.training import device as machine
from groundup.training import log as logs
from groundup.training.loop import Result, train
from groundup.training.settings import TrainingSection
from groundup.units import PositiveCount, show_count

READS = {"data": "corpus", "tokenizer": "tokenizer"}
WRITES = "model"
VERSION = 1


class Config(TrainingSection):
    """Train a model from random weights."""

    data: str
    """The corpus to learn from: a `prepare` stage. Its train split, unless another is named."""
    tokenizer: str
    """What cuts the text: a `tokenize` stage."""
    task: Annotated[SerializeAsAny[Named], FromFolder("tasks")]
    """What is learned: language_modeling or masked_language_modeling."""
    model: Annotated[SerializeAsAny[Named], FromFolder("models")]
    """The model and its sizes; its vocabulary follows from the tokenizer."""
    tokens: PositiveCount | None = None
    """Tokens to train on; epochs follow from it. Either this or `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data; 1 if neither `tokens` nor `epochs` is given."""

    @model_validator(mode="after")
    def _one_extent(self) -> Self:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError("give either `tokens` or `epochs`: each follows from the other")
        return self

    @property
    def context(self) -> int:
        """Tokens of a row: the model's context."""
        return int(self.model.context)  # type: ignore[attr-defined]


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write a model as a Hugging Face directory, with its tokenizer, card and logs."""
    logs.require(config.sinks)
    choices = choosing.recall(out.state, out.reporter)
    is_first = choices is None
    assembly = Assembly(config, _material(config, inputs, out), choices or choosing.begin(config))
    if is_first:
        choosing.keep(out.state, assembly.settle())
    log = logs.Log(out.state / "log", config.sinks, name=out.folder.name)
    for line in describe(assembly):
        log.say(line)
    try:
        result = train(assembly.job(), config, assembly.choices, state=out.state, reporter=out.reporter, log=log)
    finally:
        log.close()
        torch.use_deterministic_algorithms(False)
    _write(config, inputs, out, assembly, result)
    log.publish(out.folder / "log")


def describe(assembly: Assembly) -> list[str]:
    """What the log begins with: extent and choices."""
    settled = assembly.choices.shown()
    extent = f"{assembly.steps} steps of {assembly.batch_rows} rows of {assembly.row_tokens} tokens"
    return [extent, *(f"{name}: {value}" for name, value in settled.items())]


def check(config: Config, inputs: dict[str, Known]) -> list[Mistake]:
    """Sizes, rates and extents that do not fit the data or each other."""
    return forecasting.check(config, inputs)


def forecast(config: Config, inputs: dict[str, Known], effort: str) -> Forecast:
    """Parameters, tokens, FLOPs, memory, time, ledger and a rendered row; measured, unless effort is "quick"."""
    return forecasting.forecast(config, inputs, effort)


def seconds_per_token(config: Config, model: Named) -> float:
    """Measured wall seconds per token of training `model` under a section's settings, on this machine."""
    return forecasting.seconds_per_token(config, model)


def facts(artifact: Artifact) -> dict[str, Any]:
    """What later stages may know of a finished model."""
    described = artifact.json("config.json")
    return {
        "parameters": artifact.metrics.get("parameters"),
        "context": artifact.manifest["section"]["model"]["context"],
        "vocab_size": described.get("vocab_size"),
        "tokens": artifact.manifest["tokens"],
    }


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
    out.tokens = result.steps * assembly.batch_tokens
    parameters = sum(p.numel() for p in network.parameters())
    figures = {"loss": result.loss, **result.validation, "tokens": out.tokens, "parameters": parameters}
    out.metrics |= figures | {"steps": result.steps, "stopped_early": result.stopped_early}
    out.metrics |= {"tokens_s": result.tokens_s, "mfu": result.mfu, "skipped_batches": len(result.troubles)}
    found = result.validation.get("validation_loss")
    measured = f"validation loss {found:.3f}" if found is not None else f"training loss {result.loss:.3f}"
    out.metrics["headline"] = f"{measured} after {show_count(out.tokens)} tokens"
    out.choices |= result.choices.shown() | assembly.task.choices
    exact = not choosing.differences(result.choices)
    out.determinism = machine.level(result.choices.deterministic and exact, result.choices.device)
    if result.troubles:
        out.write_json("log/troubles.json", result.troubles)
    text = card.write(
        name=f"{config.model.name} {config.task.name}",
        section=sections.dump(config),
        figures=figures | {"steps": result.steps, "epochs": result.steps * assembly.batch_rows / len(assembly.rows)},
        licences=out.licences,
        parents={key: given.artifact.digest for key, given in inputs.items()},
        head=assembly.task.head,
    )
    out.path("README.md").write_text(text, encoding="utf-8")
