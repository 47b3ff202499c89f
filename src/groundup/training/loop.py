"""The training loop: one function that reads from top to bottom.

Everything random in a step follows from (seed, step, micro-batch), rows are a formula, and what is
left is in the state on disk: so a run that was killed goes on to the same bytes it would have had.

Step n is the n-th update; after it `at.step` is n. Validation and states belong to the moment between
two updates, and the state is taken after the validation.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from groundup.errors import Interrupted, StageFailed
from groundup.nn import batch_norm
from groundup.progress import Reporter, interrupt_requested
from groundup.training import checkpoint, devices, guard
from groundup.training import choices as choosing
from groundup.training.choices import Choices
from groundup.training.clock import Clock
from groundup.training.guard import Position
from groundup.training.learner import Figures, Learner
from groundup.training.log import Log
from groundup.training.methods import Methods
from groundup.training.objective import Batch, Objective, losses_by_row, validate
from groundup.training.schedules import as_steps, factor
from groundup.training.settings import TrainingSection, interval


class Batches(Protocol):
    """What the loop needs of a loader."""

    micro_batches: int

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        """Micro-batch `micro` of batch `step`, on the CPU, and the indices of its rows."""


@dataclass
class Job:
    """All that a run works on. `row_name` tells in words where a row comes from."""

    network: nn.Module
    objective: Objective
    loader: Batches
    steps: int
    batch_tokens: int
    flops_per_step: float
    held_out: Callable[[], Iterable[Batch]] | None = None
    row_name: Callable[[int], str] = str
    methods: Methods = field(default_factory=Methods)
    """What fine-tuning adds."""

    def learner(self, settings: TrainingSection, choices: Choices) -> Learner:
        """A learner of the network."""
        return Learner(self.network, self.objective, settings, choices, self.methods, self.steps)


@dataclass
class Result:
    """What a run came to. The weights are in the network: the average or the best, if asked for."""

    steps: int
    loss: float
    """Mean training loss over the last steps."""
    validation: dict[str, float]
    """The figures of the last validation, or of the best with early stopping."""
    tokens_s: float
    mfu: float
    choices: Choices
    stopped_early: bool = False
    troubles: list[dict[str, Any]] = field(default_factory=list)


def train(
    job: Job, settings: TrainingSection, choices: Choices, *, state: Path, reporter: Reporter, log: Log
) -> Result:
    """Train to the end, from the newest state in `state` if there is one.

    Raises Interrupted (state saved) after a signal, StageFailed for a full disk, a loss that stays
    broken, or a state that cannot be continued as it began.
    """
    learner, choices = ready(job, settings, choices, state, reporter)
    states = States(state, settings, log)
    at = states.resume(learner, reporter) or Position()
    log.begin(at.step, at.evaluated)
    if at.step:
        tell(f"going on from step {at.step} of {job.steps}", reporter, log)
    measured_peak = partial(devices.gemm_rate, choices.device, devices.DTYPES[choices.precision])
    peak = measured_peak()
    clock = Clock()

    with frozen_objects(), devices.kept_memory():
        while True:
            if interrupt_requested():
                states.save(at, learner)
                what = f"interrupted after step {at.step} of {job.steps}; the state is saved"
                raise Interrupted(what, fix="run the same command again to go on")
            if evaluation_is_due(at, job, settings):
                with clock.paused():
                    evaluate(at, job, settings, learner, log)
                    peak = max(peak, measured_peak())  # others may have had the cores at the start
                if at.evaluated < at.step:
                    continue  # interrupted; it is done again on resume
            if states.are_due(at, job.steps):
                with clock.paused():
                    states.save(at, learner)
            if at.step >= job.steps or is_stopped_early(at, settings):
                break

            parts = [job.loader.micro_batch(at.batch(), m)[0] for m in range(job.loader.micro_batches)]
            figures = learner.gradients(parts, at.step)
            reason = guard.trouble(
                at.recent, figures.loss, figures.grad_norm, settings.spike_deviations, partial(learner.labels, parts)
            )
            if reason is not None:
                learner.forget()
                at = go_back(reason, figures, at, job, learner, states, reporter)
                continue
            lr = settings.optimizer.lr * factor(settings.schedule, at.step, job.steps)
            learner.update(lr, figures.grad_norm, at.step)
            at.remember(figures.loss)
            at.step += 1

            seconds = clock.step()
            speed = {"tokens_s": job.batch_tokens / seconds, "mfu": job.flops_per_step / seconds / peak}
            log.figures(at.step, described(figures, lr, at.step * job.batch_tokens) | speed)
            left = (job.steps - at.step) * clock.typical
            reporter.advance("training", at.step, job.steps, loss=figures.loss, **speed, left=left)

    stopped_early = at.step < job.steps
    keep_best(at, settings, learner, states)
    peak = max(peak, measured_peak())
    speed = {"tokens_s": job.batch_tokens / clock.mean, "mfu": job.flops_per_step / clock.mean / peak}
    loss = sum(at.recent) / len(at.recent)
    return Result(at.step, loss, at.validation, **speed, choices=choices, stopped_early=stopped_early,
                  troubles=at.troubles)  # fmt: skip


def ready(
    job: Job, settings: TrainingSection, choices: Choices, state: Path, reporter: Reporter
) -> tuple[Learner, Choices]:
    """The learner, warmed up, and the choices as they came out: a compiler that fails is gone without.

    Raises StageFailed if the run began compiled and can no longer be.
    """
    devices.make_deterministic(choices.deterministic, choices.device, compiled=choices.compile)
    job.network.train()
    if not choices.compile:
        return job.learner(settings, choices), choices
    reporter.advance("compiling", 0)
    try:
        learner = job.learner(settings, choices)
        with batch_norm.kept(job.network):
            learner.gradients([job.loader.micro_batch(0, 0)[0]], 0)
        learner.forget()
    except Exception as error:  # whatever a compiler may raise; the uncompiled step will tell if it was not that
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if checkpoint.steps(state):
            what = f"the run began with torch.compile, which now fails ({reason}): it cannot be resumed exactly"
            raise StageFailed(what, fix="repair the compiler, or start anew with --fresh") from error
        reporter.note(f"torch.compile failed, going on without it: {reason}")
        choices = dataclasses.replace(
            choices, compile=False, reasons=choices.reasons | {"compile": f"failed: {reason}"}
        )
        choosing.keep(state, choices)
        learner = job.learner(settings, choices)
    return learner, choices


class States:
    """The states of a run: when they are due, how they are written and read."""

    def __init__(self, folder: Path, settings: TrainingSection, log: Log) -> None:
        self.folder, self.keep, self.log = folder, settings.keep_states, log
        self.every_steps, self.every_s = interval(settings.save_every)
        self.step, self.time = -1, time.monotonic()

    def are_due(self, at: Position, steps: int) -> bool:
        """Whether one is to be saved before the next update. The first is the beginning itself."""
        if at.step == self.step:
            return False
        if at.step in (0, steps, at.best_step):
            return True  # the best weights live in their state
        if self.every_steps:
            return at.step % self.every_steps == 0
        return time.monotonic() - self.time >= (self.every_s or 0)

    def save(self, at: Position, learner: Learner) -> None:
        """Write a state, after everything that was logged before it."""
        if at.step == self.step:
            return
        self.log.flush()
        tensors, others = learner.tensors()
        data = {"position": dataclasses.asdict(at), "optimizer": others, "choices": learner.choices.shown()}
        checkpoint.save(self.folder, at.step, tensors, data)
        checkpoint.prune(self.folder, keep=self.keep, protect=[] if at.best_step is None else [at.best_step])
        self.step, self.time = at.step, time.monotonic()
        self.log.say(f"saved the state of step {at.step}")

    def resume(self, learner: Learner, reporter: Reporter, below: int | None = None) -> Position | None:
        """Put the newest whole state (of a step below `below`) into the learner; None if there is none.

        States of later steps are removed: they are damaged, or belong to a course that is given up.
        """
        found = checkpoint.newest(self.folder, reporter, below=below)
        if found is None:
            return None
        learner.load(dict(found.tensors()), found.data["optimizer"])
        checkpoint.drop_after(self.folder, found.step)
        self.step, self.time = found.step, time.monotonic()
        return Position(**found.data["position"])


def evaluation_is_due(at: Position, job: Job, settings: TrainingSection) -> bool:
    """Whether the held-out rows are to be looked at before the next update."""
    every = max(1, as_steps(settings.evaluate_every, job.steps))
    is_time = at.step == job.steps or (at.step > 0 and at.step % every == 0)
    return job.held_out is not None and is_time and at.evaluated < at.step


def evaluate(at: Position, job: Job, settings: TrainingSection, learner: Learner, log: Log) -> None:
    """Note the validation loss, of the averaged weights if there are any, and whether it is the best."""
    assert job.held_out is not None, "there is nothing to evaluate on"
    choices = learner.choices
    with learner.averaged():
        found = validate(job.network, job.objective, job.held_out(), choices.arithmetic)
    if found is None:
        return
    at.evaluated, at.validation = at.step, found
    log.figures(at.step, found)
    log.say(f"step {at.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    stopping = settings.early_stopping
    if stopping and found:
        at.compare(found["validation_loss"], stopping.min_delta)


def is_stopped_early(at: Position, settings: TrainingSection) -> bool:
    """Whether the validation loss has not improved for as long as the recipe allows."""
    return settings.early_stopping is not None and at.waited >= settings.early_stopping.patience


def go_back(
    reason: str, figures: Figures, at: Position, job: Job, learner: Learner, states: States, reporter: Reporter
) -> Position:
    """Return to a state from before the trouble, its batches marked to be left out.

    Raises StageFailed when this has happened too often lately.
    """
    is_spike = math.isfinite(figures.loss) and math.isfinite(figures.grad_norm)
    batches = guard.blamed(at, is_spike=is_spike)
    rows = worst_rows(job, learner, at.batch())
    named = ", ".join(f"{row['row']} (loss {row['loss']:.3g})" for row in rows)
    tell(f"step {at.step + 1}: {reason}; worst rows: {named}", reporter, states.log)
    troubles = [*at.troubles, {"step": at.step, "batches": batches, "reason": reason, "rows": rows}]
    if guard.is_repeated(troubles, at.step):
        raise StageFailed(
            f"training keeps failing: {guard.REPEATED} times within {guard.WITHIN_STEPS} steps. The last time, at "
            f"step {at.step + 1}, {reason} (worst rows: {named})",
            fix="lower optimizer.lr, lengthen schedule.warmup, set grad_clip, or look at these rows",
        )
    before = states.resume(learner, reporter, below=at.step - len(batches) + 2)
    if before is None:
        raise StageFailed(f"{reason} at step {at.step + 1}, and no state from before it is left", fix="use --fresh")
    before.skipped, before.troubles = sorted({*at.skipped, *batches}), troubles
    states.log.cut(before.step, before.evaluated)
    left_out = ", ".join(map(str, batches))
    tell(f"back at step {before.step}, leaving out batch {left_out}", reporter, states.log)
    return before


def worst_rows(job: Job, learner: Learner, batch: int, most: int = 5) -> list[dict[str, Any]]:
    """Names and losses of the rows of a batch, worst first; a loss that is no number is the worst."""
    found: list[tuple[float, int]] = []
    choices = learner.choices
    for micro in range(job.loader.micro_batches):
        rows, indices = job.loader.micro_batch(batch, micro)
        losses = losses_by_row(job.network, job.objective, rows, choices.arithmetic)
        found += [(loss, int(index)) for loss, index in zip(losses, indices, strict=True)]
    found.sort(key=lambda pair: pair[0] if math.isfinite(pair[0]) else math.inf, reverse=True)
    return [{"row": job.row_name(index), "loss": loss} for loss, index in found[:most]]


def keep_best(at: Position, settings: TrainingSection, learner: Learner, states: States) -> None:
    """Leave in the network what the run is for: the best weights, the averaged ones, or the last.

    Raises StageFailed if the best state has been damaged since it was written.
    """
    if settings.early_stopping and at.best_step not in (None, at.step):
        path = states.folder / f"step-{at.best_step:08d}"
        try:
            learner.load_weights(dict(checkpoint.read(path).tensors()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StageFailed(f"the best state is damaged: {error}", where=str(path), fix="use --fresh") from error
        at.validation = at.best_validation
        states.log.say(f"kept the weights of step {at.best_step}, the best")
    if learner.average:
        learner.average.swap()
    learner.network.eval()


def described(figures: Figures, lr: float, tokens: int) -> dict[str, float]:
    """A step's line for the metrics file; the parts of the loss only where there are several."""
    parts = {f"loss_{part}": value for part, value in figures.parts.items()} if len(figures.parts) > 1 else {}
    return {"loss": figures.loss, **parts, "lr": lr, "grad_norm": figures.grad_norm, "tokens": tokens}


def tell(text: str, reporter: Reporter, log: Log) -> None:
    """Say something on the screen and in the log."""
    reporter.note(text)
    log.say(text)


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Spare the garbage collector what lives until the end of the block: it would look at it again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
