"""What training on labelled rows will take and yield, before it runs; `outlook.py` for rows of different lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from groundup import units
from groundup.config import Mistake
from groundup.errors import GroundupError
from groundup.forecast import Forecast, Known
from groundup.nn import batch_norm
from groundup.training import devices
from groundup.training import log as logs
from groundup.training.labelled import LabelledAssembly
from groundup.training.measure import Measured
from groundup.training.schedules import as_steps
from groundup.training.settings import LabelledTrainingSection, interval, validation_rows

ALL_WEIGHTS = (1e-6, 2e-4)
"""Usual rates for all weights of a pretrained model: 2e-5 to 5e-5 for encoders, less for large decoders."""
ADAPTER = (1e-5, 2e-3)
"""Usual rates for an adapter."""
FROM_RANDOM = (1e-5, 2e-2)
"""Usual rates for random weights."""
MANY_EPOCHS = 20
"""Beyond this many passes over labelled rows a pretrained model mostly learns them by heart."""


def check(config: LabelledTrainingSection, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Everything that can be told to be wrong without reading rows."""
    found: list[Mistake] = []
    for key, look in (("device", lambda: devices.pick(config.device)), ("sinks", lambda: logs.require(config.sinks))):
        try:
            look()
        except GroundupError as error:
            found.append(Mistake((key,), error.what, error.fix))
    if config.micro_batch_rows != "auto" and config.micro_batch_rows > config.batch_rows:
        what = f"micro_batch_rows {config.micro_batch_rows} is more than the {config.batch_rows} rows of a batch"
        found.append(Mistake(("micro_batch_rows",), what, f"set it to {config.batch_rows} or less"))
    if config.compile is True and config.packing is not False:
        what = "torch.compile makes a graph for every shape, and examples end to end never have the same shape twice"
        found.append(Mistake(("compile",), what, "leave it out, or set packing: false"))
    context = inputs["from"].facts.get("context") if "from" in inputs else None
    if config.max_length is not None and context and config.max_length > context:
        what = f"max_length {config.max_length} is longer than the model's context of {context} tokens"
        found.append(Mistake(("max_length",), what, f"set it to {context} or less"))
    if config.regulariser is not None and config.task.name in ("embedding", "preference"):
        what = f"{config.task.name} compares examples with each other, which leaves nothing for a regulariser to act on"
        found.append(Mistake(("regulariser",), what, "leave it out"))
    splits = inputs["data"].facts.get("documents", {})
    if config.early_stopping and splits and not splits.get("validation"):
        what = "early stopping needs a validation split, and the corpus has none"
        found.append(Mistake(("early_stopping",), what, "add `split: {validation: 10%}` to the prepare stage"))
    return found


def describe(found: Forecast, assembly: LabelledAssembly, steps: int, rows: int) -> None:
    """Facts for later stages, and the lines of the plan that need no measuring."""
    network = assembly.network
    whole = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    tokens, epochs = steps * assembly.batch_tokens, steps * assembly.batch_rows / max(1, rows)
    found.facts = {"parameters": whole, "context": assembly.row_tokens, "tokens": tokens}
    found.lines = [
        ("parameters", f"{units.show_count(whole)}, of which {units.show_count(trained)} are trained"),
        ("examples", f"{rows:,}{assembly.extent()}"),
        ("steps", f"{steps} of {assembly.batch_rows} examples, {epochs:.2f} epochs"),
        ("padding", assembly.padding()),
        ("learning rate", f"{assembly.config.optimizer.lr:g}, {assembly.config.schedule.name}"),
        ("device", f"{assembly.choices.device_words}, threads: {assembly.threads}"),
        ("determinism", devices.level(assembly.choices.deterministic, assembly.choices.device)),
    ]
    found.disk_bytes = 4 * whole + (assembly.config.keep_states + 1) * 12 * trained


def warnings(config: LabelledTrainingSection, assembly: LabelledAssembly, steps: int, rows: int) -> Iterator[str]:
    """What deserves a second look: unusual rates, no warm-up, many passes, many cut examples."""
    low, high = ADAPTER if config.adapter is not None else ALL_WEIGHTS if assembly.is_pretrained else FROM_RANDOM
    if not low <= config.optimizer.lr <= high:
        yield f"optimizer.lr {config.optimizer.lr:g} is outside the usual {low:g} to {high:g} here"
    if assembly.is_pretrained and as_steps(config.schedule.warmup, steps) == 0 and steps > 100:
        yield "schedule.warmup is 0: the first steps of tuning at the full rate can undo what the model knows"
    if steps * assembly.batch_rows > MANY_EPOCHS * rows:
        yield f"more than {MANY_EPOCHS} passes over the rows: watch the validation loss, or set early_stopping"
    if config.micro_batch_rows != "auto" and batch_norm.layers(assembly.network):
        yield from filter(None, [batch_norm.note(assembly.batch_rows, config.micro_batch_rows)])
    ledger = assembly.rows.ledger()
    if ledger.cropped * 20 > ledger.tokens:
        share = ledger.cropped / (ledger.cropped + ledger.tokens)
        yield f"{share:.0%} of all tokens are cut off at max_length {assembly.row_tokens}"


def add_measured(found: Forecast, assembly: LabelledAssembly, measured: Measured, steps: int, held_out: int) -> None:
    """Time, memory and the automatic choices, from a few real steps."""
    config, choices = assembly.config, measured.choices
    size = -(-assembly.batch_rows // choices["micro_batches"])
    rows = min(held_out, validation_rows(config, steps, assembly.batch_rows))
    evaluations = -(-steps // max(1, as_steps(config.evaluate_every, steps))) if rows else 0
    run_s = steps * measured.wall_s_per_step
    every_steps, every_s = interval(config.save_every)
    saves = 2 + (steps // every_steps if every_steps else int(run_s / (every_s or run_s + 1)))
    once = measured.startup_s + saves * measured.save_s
    found.seconds = once + run_s + evaluations * -(-rows // size) * measured.eval_s
    found.cpu_s = (
        measured.startup_cpu_s
        + saves * measured.save_s
        + steps * measured.cpu_s_per_step
        + evaluations * -(-rows // size) * measured.eval_cpu_s
    )
    found.peak_bytes = measured.peak_bytes
    reasons = choices["reasons"]
    found.lines += [
        ("precision", f"{choices['precision']} ({reasons['precision']})"),
        ("matmul", f"{choices['matmul']} ({reasons['matmul']})"),
        ("micro-batch", f"{size} examples, {choices['micro_batches']} a step ({reasons['micro_batches']})"),
        ("speed", f"{assembly.batch_rows / measured.wall_s_per_step:.1f} examples/s measured"),
    ]


def total_rows(data: Known, sample_rows: int) -> int:
    """Rows of the split trained on, as far as known."""
    documents: Any = data.facts.get("documents", {})
    return int(documents.get(data.part or "train") or sample_rows)
