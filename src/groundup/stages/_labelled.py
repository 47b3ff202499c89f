"""What `finetune` and `train` have in common: labelled rows in, a model with its head out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from groundup import catalog
from groundup import config as sections
from groundup.artifact import Artifact, Draft, Input
from groundup.checkpoints import hugging_face
from groundup.config import Mistake, Named
from groundup.data import sample as sampling
from groundup.data.corpus import Corpus
from groundup.data.packing import IGNORED
from groundup.data.shards import Shards, open_or_build
from groundup.errors import DataError
from groundup.evaluation import answering
from groundup.evaluation.metrics import calibration, detection
from groundup.forecast import Forecast, Known
from groundup.machine import usable_cores
from groundup.nn import token_tables
from groundup.nn.network import Network
from groundup.stages._training import describe_choices, fit, licence_warnings, note
from groundup.text.tokenizers import Tokenizer
from groundup.training import card, labelled_outlook
from groundup.training import choices as choosing
from groundup.training.assembly import Assembly, Material
from groundup.training.choices import Choices
from groundup.training.labelled import DEFAULT_EPOCHS, LabelledAssembly, LongestFirst
from groundup.training.loop import Result
from groundup.training.measure import Measured, Planned
from groundup.training.settings import LONGEST, LabelledTrainingSection

CALIBRATION_TOKENS = 8192
"""Tokens of a forward pass over validation rows."""


@dataclass(frozen=True)
class Start:
    """Where weights and tokenizer come from."""

    tokenizer: Tokenizer | None
    """None where the model reads no tokens."""
    tokenizer_digest: str | None
    context: int
    """The longest row of the model, in tokens."""
    network: Callable[[Any], Network]
    """The network for a task, as training finds it, without an adapter."""
    generation: dict[str, Any] = field(default_factory=dict)
    """What the model's generation_config.json says."""
    base: Artifact | None = None
    """What is tuned, or None for random weights."""


def context_of(config: LabelledTrainingSection, start: Start) -> int:
    """The longest row in tokens. Raises DataError if the recipe wants more than the model can read."""
    if config.max_length is None:
        return min(LONGEST, start.context)
    if config.max_length > start.context:
        what = f"max_length {config.max_length} is longer than the model's context of {start.context} tokens"
        raise DataError(what, where="max_length", fix=f"set it to {start.context} or less")
    return config.max_length


def settled(config: LabelledTrainingSection, examples: Iterator[dict[str, Any]]) -> Named:
    """The task's section with what only the training rows can tell."""
    module = catalog.load("tasks", config.task.name)
    if not hasattr(module, "settle"):
        return config.task
    found: Named = module.settle(config.task, examples)
    return found


def tasks_of(section: Named, start: Start, context: int) -> tuple[Any, Any]:
    """The task, and the same without label smoothing for held-out rows."""
    module = catalog.load("tasks", section.name)
    plain = section.model_copy(update={"label_smoothing": 0.0}) if hasattr(section, "label_smoothing") else section
    return module.Task(section, start.tokenizer, context), module.Task(plain, start.tokenizer, context)


def run(config: LabelledTrainingSection, inputs: Mapping[str, Input], out: Draft, start: Start) -> None:
    """Train on the rows of a corpus and write the model."""
    data = inputs["data"]
    corpus, split = Corpus(data.artifact), data.part or "train"
    section = settled(config, corpus.documents(split))
    task, plain = tasks_of(section, start, context_of(config, start))
    key = task.encoding | ({"tokenizer": start.tokenizer_digest} if start.tokenizer is not None else {})

    def encoded(split: str, corpus: Corpus = corpus) -> Shards:
        return open_or_build(out.store, corpus, split, key, task.encode, out.reporter, usable_cores())

    more = inputs.get("more")

    has_validation = "validation" in corpus.splits and corpus.rows("validation") > 0 and split != "validation"
    material = Material(
        start.tokenizer,
        encoded(split),
        encoded("validation") if has_validation else None,
        name_of=lambda index: str(corpus.document(split, index)["source"]),
        example_of=_examples_of(corpus, split) if config.augment else None,
        more=encoded(more.part or "train", Corpus(more.artifact)) if more else None,
    )

    def build(choices: Choices) -> Assembly:
        return LabelledAssembly(
            config,
            material,
            choices,
            task=task,
            plain_task=plain,
            start=lambda: prepared(config, start, task),
            is_pretrained=start.base is not None,
        )

    assembly, result = fit(config, out, build, describe)
    out.choices["task"] = sections.dump(section)
    _write(config, inputs, out, start, assembly, result)


def _examples_of(corpus: Corpus, split: str) -> Callable[[int], dict[str, Any]]:
    """A function giving an example by its place; all of them are held, as reading one at a time is slow."""
    held = list(corpus.documents(split))
    return lambda place: held[place]


def prepared(config: LabelledTrainingSection, start: Start, task: Any) -> Network:
    """The network for a task with everything that is done to it before training: new tokens, an adapter."""
    network = start.network(task)
    if hasattr(task, "extend"):
        task.extend(network)  # weights that belong to the task, such as a chain over its tags
    has_new_tokens = False
    if start.tokenizer is not None:
        wanted = int(task.tokenizer.vocab_size)
        has_new_tokens = wanted > start.tokenizer.vocab_size
        network = token_tables.grow(network, wanted) if has_new_tokens else network
    if config.adapter is None:
        return network
    adapters = catalog.load("adapters", config.adapter.name)
    adapted: Network = adapters.wrap(network, config.adapter, seed=config.seed, new_tokens=has_new_tokens)
    return adapted


def describe(assembly: Assembly) -> list[str]:
    """What the log begins with: extent, padding and choices."""
    assert isinstance(assembly, LabelledAssembly), "labelled rows have an assembly of their own"
    extent = f"{assembly.steps} steps of {assembly.batch_rows} examples{assembly.extent()}"
    return [*describe_choices(assembly, extent), f"padding: {assembly.padding()}"]


def _write(
    config: LabelledTrainingSection,
    inputs: Mapping[str, Input],
    out: Draft,
    start: Start,
    assembly: Assembly,
    result: Result,
) -> None:
    """The payload, and what the manifest says of it."""
    task, network = assembly.task, assembly.network.to("cpu").eval()
    figures = note(out, assembly, result)
    if config.adapter is not None:
        network = _merged(config, out, start, assembly, network)
    hugging_face.save(
        out.folder,
        network,
        generation=_generation(task, start),
        labels=getattr(task, "labels", ()),
        problem=getattr(task, "problem", None),
    )
    if task.tokenizer is not None:
        task.tokenizer.save(out.folder, model_max_length=assembly.row_tokens)
    if hasattr(task, "save"):
        task.save(out.folder, network)
    if getattr(task, "evaluation", "") == "classes" and assembly.material.held_out is not None:
        _calibrate(out, assembly, network)
    text = card.write(
        name=f"{network.config.name} {task.config.name}",
        section=sections.dump(config) | {"model": network.config.dump()},
        figures=figures,
        licences=out.licences,
        parents={key: given.artifact.digest for key, given in inputs.items()},
        head=task.head,
        is_pretrained=start.base is not None,
        unit=assembly.unit,
    )
    out.path("README.md").write_text(text, encoding="utf-8")


@torch.no_grad()
def _calibrate(out: Draft, assembly: Assembly, network: Network) -> None:
    """Write the temperature at which probabilities fit the validation rows best (Guo et al. 2017, section 4.2).

    Where rows may belong to no class, also the probability below which they are best taken to.
    """
    task, rows = assembly.task, assembly.held_out_rows()
    shares: list[list[float]] = []
    truth: list[int] = []
    lengths: Any = rows.lengths  # type: ignore[attr-defined]
    for indices in answering.batches(getattr(rows, "costs", lengths), CALIBRATION_TOKENS):
        batch = assembly.collate([rows.row(int(index), 0) for index in indices])
        answers = task.answers(network(batch), batch)
        labels = batch["label"].tolist()
        shares += [answer["probabilities"] for answer in answers]
        truth += labels
    numbers, chances = np.array(truth), np.array(shares)
    inside = numbers != IGNORED
    if not inside.any():
        return
    temperature = calibration.fit_temperature(numbers[inside], chances[inside])
    found = {"temperature": temperature, "rows": int(inside.sum())}
    if getattr(task.config, "out_of_scope", None) is not None:
        found["bar"] = detection.bar(chances.max(1), chances.argmax(1) == numbers, ~inside)
    out.write_json(calibration.FILE, found)
    out.metrics["temperature"] = temperature


def _generation(task: Any, start: Start) -> dict[str, Any]:
    """generation_config.json of the base, with the ids of the tokenizer that is written beside it."""
    if task.tokenizer is None:
        return {}
    ids = {f"{name}_token_id": getattr(task.tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    own = {name: i for name, i in ids.items() if i is not None and name not in start.generation}
    return start.generation | own | dict(getattr(task, "generation", {}))


@torch.no_grad()
def _merged(config: LabelledTrainingSection, out: Draft, start: Start, assembly: Assembly, network: Network) -> Network:
    """The network with its adapter merged, checked on a batch; the adapter itself is written beside."""
    from groundup.checkpoints import peft

    assert config.adapter is not None, "there is an adapter to merge"
    adapters = catalog.load("adapters", config.adapter.name)
    batch = assembly.collate([assembly.rows.row(i, 0) for i in range(min(8, len(assembly.rows)))])
    before = network(batch).logits
    peft.save_adapter(out.folder / "adapter", network, base=start.base.digest if start.base else "random weights")
    merged: Network = adapters.merge(network)
    checked = adapters.check_merge(before, merged(batch).logits)
    out.metrics["merge_difference"] = checked.largest
    return merged


def check(config: LabelledTrainingSection, inputs: Mapping[str, Known]) -> list[Mistake]:
    """What can be told to be wrong without reading rows."""
    return labelled_outlook.check(config, inputs)


def forecast(
    config: LabelledTrainingSection,
    inputs: Mapping[str, Known],
    start: Start | None,
    measured: Callable[[list[dict[str, Any]]], Measured] | None,
) -> Forecast:
    """What a run will take and yield: little, as long as there are no rows or no model to look at.

    `measured` takes a few real steps on some rows, if that is wanted.
    """
    data = inputs["data"]
    found = Forecast(estimated=any(known.estimated for known in inputs.values()), warnings=licence_warnings(inputs))
    rows, is_whole = sampling.rows_of(data)
    if start is None or not rows:
        found.lines.append(("forecast", "follows when the stages before it have run"))
        return found
    assembly = sample_assembly(config, rows, start)
    total = labelled_outlook.total_rows(data, len(rows))
    steps = config.steps or max(1, -(-round((config.epochs or DEFAULT_EPOCHS) * total) // config.batch_rows))
    labelled_outlook.describe(found, assembly, steps, total)
    found.tables["labels" if is_whole else "labels (of a sample)"] = assembly.rows.ledger().table()
    found.sample = assembly.task.render(assembly.rows.row(0, 0))
    found.warnings += labelled_outlook.warnings(config, assembly, steps, total)
    if measured is not None:
        held_out = int(data.facts.get("documents", {}).get("validation") or 0)
        labelled_outlook.add_measured(found, assembly, measured(rows), steps, held_out)
    return found


def sample_assembly(config: LabelledTrainingSection, rows: list[dict[str, Any]], start: Start) -> LabelledAssembly:
    """The run as it would begin, on a few rows held in memory."""
    task, plain = tasks_of(settled(config, iter(rows)), start, context_of(config, start))
    documents = sampling.Documents(rows, task.encode)
    material = Material(start.tokenizer, documents, documents, example_of=lambda place: rows[place])
    return LabelledAssembly(
        config,
        material,
        choosing.begin(config),
        task=task,
        plain_task=plain,
        start=lambda: prepared(config, start, task),
        is_pretrained=start.base is not None,
    )


def planned(config: LabelledTrainingSection, rows: list[dict[str, Any]], start: Start) -> Planned:
    """What to measure: real steps, the first of them on the longest rows."""
    assembly = sample_assembly(config, rows, start)
    choices = assembly.settle()
    job = assembly.job()
    job.loader = LongestFirst(assembly.loader())
    return Planned(job, config, choices)
