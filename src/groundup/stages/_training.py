"""What the stages that train have in common: a run from its first choice to its last figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from groundup.artifact import Artifact, Draft, digest_file
from groundup.data import licences
from groundup.forecast import Known
from groundup.training import choices as choosing
from groundup.training import devices
from groundup.training import log as logs
from groundup.training.assembly import Assembly
from groundup.training.choices import Choices
from groundup.training.loop import Result, train
from groundup.training.settings import TrainingSection
from groundup.units import show_count


def fit(
    config: TrainingSection, out: Draft, build: Callable[[Choices], Assembly], describe: Callable[[Assembly], list[str]]
) -> tuple[Assembly, Result]:
    """Train what `build` puts together, from the state in the draft if there is one; the log is published.

    `describe` gives the lines the log begins with.
    """
    logs.require(config.sinks)
    for line in licences.warnings(out.licences):
        out.reporter.note(line)
    choices = choosing.recall(out.state, out.reporter)
    is_first = choices is None
    assembly = build(choices or choosing.begin(config))
    if is_first:
        choosing.keep(out.state, assembly.settle())
    log = logs.Log(out.state / "log", config.sinks, name=out.folder.name)
    for line in describe(assembly):
        log.say(line)
    try:
        result = train(assembly.job(), config, assembly.choices, state=out.state, reporter=out.reporter, log=log)
    finally:
        log.close()
        devices.make_deterministic(False, assembly.choices.device, compiled=assembly.choices.compile)
        devices.use_threads("auto")
    log.publish(out.folder / "log")
    return assembly, result


def tokenizer_digest(model: Artifact) -> str:
    """The digest of the tokenizer a model was made with."""
    parent = model.manifest.get("parents", {}).get("tokenizer", {}).get("digest")
    return str(parent or digest_file(model.file("tokenizer.json")))


def licence_warnings(inputs: Mapping[str, Known]) -> list[str]:
    """What deserves a second look among the licences of data and weights, as far as they are known."""
    known: dict[str, str] = {}
    for given in inputs.values():
        known |= given.facts.get("licences", {})
        known |= given.artifact.manifest.get("licences", {}) if given.artifact is not None else {}
    return licences.warnings(known)


def describe_choices(assembly: Assembly, extent: str) -> list[str]:
    """The first lines of a log: the extent of the run, and every choice."""
    return [extent, *(f"{name}: {value}" for name, value in assembly.choices.shown().items())]


def note(out: Draft, assembly: Assembly, result: Result) -> dict[str, Any]:
    """Put what a run came to into the manifest; returns the figures for the model card."""
    parameters = sum(p.numel() for p in assembly.network.parameters())
    out.tokens = result.steps * assembly.batch_tokens
    figures = {"loss": result.loss, **result.validation, "tokens": out.tokens, "parameters": parameters}
    out.metrics |= figures | {"steps": result.steps, "stopped_early": result.stopped_early}
    out.metrics |= {"tokens_s": result.tokens_s, "mfu": result.mfu, "skipped_batches": len(result.troubles)}
    found = result.validation.get("validation_loss")
    measured = f"validation loss {found:.3f}" if found is not None else f"training loss {result.loss:.3f}"
    out.metrics["unit"] = assembly.unit
    out.metrics["headline"] = f"{measured} after {show_count(out.tokens)} {assembly.unit}"
    out.choices |= result.choices.shown() | assembly.task.choices
    exact = not choosing.differences(result.choices)
    out.determinism = devices.level(result.choices.deterministic and exact, result.choices.device)
    if result.troubles:
        out.write_json("log/troubles.json", result.troubles)
    epochs = result.steps * assembly.batch_rows / len(assembly.rows)
    return figures | {"steps": result.steps, "epochs": epochs}


def model_facts(artifact: Artifact) -> dict[str, Any]:
    """What later stages may know of a finished model, whatever made it."""
    described = artifact.json("config.json")
    context = next((described[key] for key in ("max_position_embeddings", "n_positions") if key in described), None)
    return {
        "parameters": artifact.metrics.get("parameters"),
        "context": context,
        "vocab_size": described.get("vocab_size"),
        "tokens": artifact.manifest["tokens"],
    }
