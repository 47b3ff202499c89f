"""What a training run will take and yield, before it runs: mistakes, warnings, and a forecast's lines.

The stage brings a sample of its rows and what was measured of a few real steps; here they are turned
into totals for the whole run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from groundup import catalog, units
from groundup.config import Mistake
from groundup.data.sample import Documents
from groundup.data.shards import SMALL_BYTES
from groundup.errors import GroundupError
from groundup.forecast import Forecast, Known
from groundup.machine import usable_cores
from groundup.nn.network import Network, shapes_alone
from groundup.training import devices
from groundup.training import log as logs
from groundup.training.assembly import Assembly
from groundup.training.measure import Measured
from groundup.training.schedules import as_steps
from groundup.training.settings import ModelTrainingSection, interval, rounded_batch, validation_rows

BYTES_PER_TOKEN = 3.5
"""Where nothing is known of the tokenizer yet; between English and Chinese text."""
MANY_EPOCHS = 40
"""Muennighoff et al. 2023, figure 5: from here on repeated data adds next to nothing."""
FEW_PER_ENTRY = 50
"""Tokens of data for each entry of the vocabulary below which rare ones stay unlearnt."""
RATES = {"sgd": (1e-4, 5.0), "momentum": (1e-5, 2.0), "adagrad": (1e-4, 0.5), "muon": (1e-5, 0.1)}
USUAL_RATES = (1e-6, 2e-2)


def check(config: ModelTrainingSection, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Everything that can be told to be wrong without training."""
    found = list(_check_sizes(config, inputs))
    try:
        devices.pick(config.device)
    except GroundupError as error:
        found.append(Mistake(("device",), error.what, error.fix))
    try:
        logs.require(config.sinks)
    except GroundupError as error:
        found.append(Mistake(("sinks",), error.what, error.fix))
    return found


def _check_sizes(config: ModelTrainingSection, inputs: Mapping[str, Known]) -> Iterator[Mistake]:
    context, rows = config.context, rounded_batch(config.batch_tokens, config.context)
    if config.batch_tokens < context:
        what = f"batch_tokens {config.batch_tokens} is less than one row of {context} tokens"
        yield Mistake(("batch_tokens",), what, f"set it to {context} or more, or make the model's context shorter")
    elif config.micro_batch_rows != "auto" and config.micro_batch_rows > rows:
        what = f"micro_batch_rows {config.micro_batch_rows} is more than the {rows} rows of a batch"
        yield Mistake(("micro_batch_rows",), what, f"set it to {rows} or less, or batch_tokens higher")
    vocab_size = inputs["tokenizer"].facts.get("vocab_size")
    given = getattr(config.model, "vocab_size", None)
    if given and vocab_size and given < vocab_size:
        what = f"vocab_size {given} is smaller than the tokenizer's {vocab_size}"
        yield Mistake(("model", "vocab_size"), what, "leave it out: it follows from the tokenizer")
    splits = inputs["data"].facts.get("documents", {})
    if config.early_stopping and splits and not splits.get("validation"):
        what = "early stopping needs a validation split, and the corpus has none"
        yield Mistake(("early_stopping",), what, "add `split: {validation: 5%}` to the prepare stage")
    task = catalog.load("tasks", config.task.name)
    if hasattr(task, "check"):
        yield from task.check(config.task, context=context, facts=counts(config, inputs))


def counts(config: ModelTrainingSection, inputs: Mapping[str, Known]) -> dict[str, Any]:
    """Tokens and documents of the split trained on, as far as they are known; estimated from bytes."""
    corpus, part = inputs["data"].facts, inputs["data"].part or "train"
    per_token = inputs["tokenizer"].facts.get("bytes_per_token") or BYTES_PER_TOKEN
    found: dict[str, Any] = {}
    if part in corpus.get("documents", {}):
        found["documents"] = corpus["documents"][part]
    if part in corpus.get("bytes", {}):
        found["tokens"] = int(corpus["bytes"][part] / per_token) + found.get("documents", 0)
    if corpus.get("longest_document_bytes"):
        found["longest_document_tokens"] = int(corpus["longest_document_bytes"] / per_token)
    return found


def describe(found: Forecast, assembly: Assembly, total: int, data_tokens: int) -> None:
    """Facts for later stages, and the lines of the plan that need no measuring."""
    config, section = assembly.config, assembly.section
    with shapes_alone():
        network = Network(assembly.model, section, assembly.task.head)
    parameters = sum(p.numel() for p in network.parameters())
    tokens = total * assembly.batch_tokens
    found.facts = {
        "parameters": parameters,
        "context": config.context,
        "vocab_size": section.vocab_size,
        "tokens": tokens,
        "data_tokens": data_tokens,
    }
    rounded = "" if config.batch_tokens == assembly.batch_tokens else f", rounded down from {config.batch_tokens}"
    flops = total * assembly.flops_per_step
    found.lines = [
        ("parameters", f"{units.show_count(parameters)} (vocabulary {section.vocab_size})"),
        ("tokens", f"{units.show_count(tokens)}, {tokens / max(1, data_tokens):.2f} epochs"),
        ("steps", f"{total} of {assembly.batch_rows} rows x {config.context} tokens{rounded}"),
        ("FLOPs", f"{flops:.3g} (forward and backward)"),
        ("device", f"{assembly.choices.device_words}, threads: {assembly.threads}"),
        ("determinism", devices.level(assembly.choices.deterministic, assembly.choices.device)),
    ]
    # Weights in the artefact, and states of weights and two moments: two kept, one being written.
    state = 4 * parameters * (3 + bool(config.ema))
    found.disk_bytes = 4 * parameters + (config.keep_states + 1) * state


def warnings(config: ModelTrainingSection, assembly: Assembly, total: int, data_tokens: int) -> Iterator[str]:
    """What deserves a second look: many passes, unusual rates, a long warmup, a large vocabulary."""
    epochs = total * assembly.batch_tokens / max(1, data_tokens)
    if epochs > MANY_EPOCHS:
        yield f"{epochs:.0f} passes over the data: after about {MANY_EPOCHS} more of them teach next to nothing"
    low, high = RATES.get(str(getattr(config.optimizer, "name", "")), USUAL_RATES)
    if not low <= config.optimizer.lr <= high:
        yield f"optimizer.lr {config.optimizer.lr:g} is outside the usual {low:g} to {high:g}"
    warmup = as_steps(config.schedule.warmup, total)
    if warmup >= total > 1:
        yield f"the warmup of {warmup} steps covers the whole run of {total}: the rate never falls"
    if data_tokens < FEW_PER_ENTRY * int(assembly.section.vocab_size or 0):
        size = assembly.section.vocab_size
        yield f"a vocabulary of {size} is large for {units.show_count(data_tokens)} tokens of data"


def add_measured(
    found: Forecast,
    config: ModelTrainingSection,
    assembly: Assembly,
    measured: Measured,
    total: int,
    inputs: Mapping[str, Known],
) -> None:
    """Time, memory and the automatic choices, from a few real steps."""
    choices = measured.choices
    evaluations, batches = _validations(config, assembly, total, choices["micro_batches"], inputs)
    run_s = total * measured.wall_s_per_step
    every_steps, every_s = interval(config.save_every)
    saves = 2 + (total // every_steps if every_steps else int(run_s / (every_s or run_s + 1)))
    fixed = measured.startup_s + measured.compile_s + saves * measured.save_s
    found.seconds = fixed + run_s + evaluations * batches * measured.eval_s
    fixed_cpu = measured.startup_cpu_s + measured.compile_s + saves * measured.save_s
    found.cpu_s = fixed_cpu + total * measured.cpu_s_per_step + evaluations * batches * measured.eval_cpu_s
    found.peak_bytes = measured.peak_bytes
    found.disk_bytes = 4 * int(found.facts["parameters"]) + (config.keep_states + 1) * measured.save_bytes
    reasons = choices["reasons"]
    rows = -(-assembly.batch_rows // choices["micro_batches"])
    found.lines += [
        ("precision", f"{choices['precision']} ({reasons['precision']})"),
        *([("matmul", f"{choices['matmul']} ({reasons['matmul']})")] if choices["precision"] == "fp32" else []),
        ("compile", f"{'yes' if choices['compile'] else 'no'} ({reasons['compile']})"),
        ("micro-batch", f"{rows} rows, {choices['micro_batches']} a step ({reasons['micro_batches']})"),
        ("speed", f"{units.show_count(measured.tokens_s)} tokens/s measured"),
    ]


def add_encoding(found: Forecast, sample: Documents, inputs: Mapping[str, Known]) -> None:
    """The time of turning text into shards, at the rate at which a sample was encoded.

    A run that finds the shards in the store saves it.
    """
    sizes = inputs["data"].facts.get("bytes", {})
    total = sizes.get(inputs["data"].part or "train", 0) + sizes.get("validation", 0)
    cpu_s = sample.encode_s * total / max(1, int(sample.bytes.sum()))
    found.cpu_s = (found.cpu_s or 0) + cpu_s
    found.seconds = (found.seconds or 0) + (cpu_s if total < SMALL_BYTES else cpu_s / usable_cores())


def _validations(
    config: ModelTrainingSection, assembly: Assembly, total: int, micro_batches: int, inputs: Mapping[str, Known]
) -> tuple[int, int]:
    """How often held-out rows are looked at, and in how many batches."""
    held_out = inputs["data"].facts.get("bytes", {}).get("validation", 0)
    if not held_out:
        return 0, 0
    per_token = inputs["tokenizer"].facts.get("bytes_per_token") or BYTES_PER_TOKEN
    most = validation_rows(config, total, assembly.batch_rows)
    rows = min(most, max(1, int(held_out / per_token / config.context)))
    size = -(-assembly.batch_rows // micro_batches)
    evaluations = -(-total // max(1, as_steps(config.evaluate_every, total)))
    return evaluations, -(-rows // min(size, rows))
