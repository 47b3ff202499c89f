"""What a planned run will take, measured without doing it.

A child process builds the network and the optimizer as the run would, takes a few real steps at the
longest shape, validates one batch and saves one state. A process of its own makes the peak memory
exact, and leaves nothing behind in the one that asks.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from groundup.errors import GroundupError, StageFailed
from groundup.training import checkpoint, devices, objective
from groundup.training.choices import Choices
from groundup.training.learner import Learner
from groundup.training.loop import Job
from groundup.training.settings import TrainingSection

T = TypeVar("T")
STEPS = 4
"""Steps that are timed, after two that are not: the first ones warm caches and allocate state."""
MOST_S = 20.0
"""Steps stop being added after this long."""


@dataclass(frozen=True)
class Planned:
    """A run as it would begin: what to measure."""

    job: Job
    settings: TrainingSection
    choices: Choices


@dataclass(frozen=True)
class Measured:
    """What was found. Times are of one step, one validation batch, one state."""

    wall_s_per_step: float
    cpu_s_per_step: float
    startup_s: float
    """Wall time of building everything, imports not included."""
    startup_cpu_s: float
    compile_s: float
    save_s: float
    save_bytes: int
    eval_s: float
    eval_cpu_s: float
    peak_bytes: int
    tokens_s: float
    choices: dict[str, Any]


def measure(build: Callable[..., Planned], *arguments: Any, timeout_s: float = 900) -> Measured:
    """Measure what `build(*arguments)` gives, in a process of its own.

    `build` is a function of a module and its arguments are picklable: both are sent to the child.
    Raises the child's own GroundupError, or StageFailed if it dies (most likely: out of memory).
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, build, arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(timeout_s) else None
    except EOFError:
        found = None
    finally:
        child.join(timeout=5)
        if child.is_alive():
            child.terminate()
    if isinstance(found, GroundupError):
        raise found
    if found is None:
        raise StageFailed(
            f"measuring a step ended without a result (exit code {child.exitcode})",
            fix="most likely memory ran out: make the model or `micro_batch_rows` smaller",
        )
    return Measured(**found)


def in_this_process(build: Callable[..., Planned], *arguments: Any) -> Measured:
    """The measurement itself. Peak memory is that of this process since it began."""
    startup_s, startup_cpu_s, planned = _timed(lambda: build(*arguments))
    job, choices = planned.job, planned.choices
    devices.make_deterministic(choices.deterministic, choices.device, compiled=choices.compile)
    job.network.train()
    learner = job.learner(planned.settings, choices)
    with devices.kept_memory():
        first, _, _ = _timed(lambda: _step(job, learner, 0))
        with tempfile.TemporaryDirectory() as folder:
            tensors, others = learner.tensors()
            data = {"optimizer": others}
            save_s, _, _ = _timed(lambda: checkpoint.save(Path(folder), 0, tensors, data))
        _step(job, learner, 1)
        wall, cpu = _steps(job, learner)
        eval_s, eval_cpu_s, _ = _timed(lambda: _validate(job, choices))
    return Measured(
        wall_s_per_step=wall,
        cpu_s_per_step=cpu,
        startup_s=startup_s,
        startup_cpu_s=startup_cpu_s,
        compile_s=max(0.0, first - wall) if choices.compile else 0.0,
        save_s=save_s,
        save_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
        eval_s=eval_s,
        eval_cpu_s=eval_cpu_s,
        peak_bytes=peak_bytes(choices.device),
        tokens_s=job.batch_tokens / wall,
        choices=choices.shown(),
    )


def peak_bytes(device: str) -> int:
    """The most memory this process has had resident; on CUDA, the most its tensors took on the device."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved())
    try:
        # Unlike ru_maxrss, which a new process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        import resource  # not on Windows, which has no such figure

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)


def _child(pipe: Connection, build: Callable[..., Planned], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(asdict(in_this_process(build, *arguments)))
    except GroundupError as error:
        pipe.send(error)
    except Exception as error:  # told to the parent, which has no other way to know
        pipe.send(StageFailed(f"measuring a step failed: {type(error).__name__}: {error}"))
    finally:
        pipe.close()


def _step(job: Job, learner: Learner, step: int) -> None:
    parts = [job.loader.micro_batch(step, m)[0] for m in range(job.loader.micro_batches)]
    figures = learner.gradients(parts, step)
    learner.update(1e-6, figures.grad_norm, step)
    devices.synchronize(learner.choices.device)


def _steps(job: Job, learner: Learner) -> tuple[float, float]:
    """Wall and CPU seconds of a step: the medians of a few."""
    found, end = [], time.perf_counter() + MOST_S
    for step in range(2, 2 + STEPS):
        found.append(_timed(partial(_step, job, learner, step))[:2])
        if time.perf_counter() > end:
            break
    walls, cpus = zip(*found, strict=True)
    return statistics.median(walls), statistics.median(cpus)


def _validate(job: Job, choices: Choices) -> None:
    batch = next(iter(job.held_out()), None) if job.held_out else None
    if batch is not None:
        objective.validate(job.network, job.objective, [batch], choices.arithmetic)


def _timed(action: Callable[[], T]) -> tuple[float, float, T]:
    """Wall seconds, CPU seconds, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return time.perf_counter() - wall, time.process_time() - cpu, result
