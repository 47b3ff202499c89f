"""What a run decides by itself: once, written down, and kept on resume.

The device is settled before the network is built; threads after it, by a rule; precision, compiling and the
size of a micro-batch by measuring. A choice that cannot be kept when a run is resumed (its device is
gone) refuses the resume instead of going on as something else.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from groundup.artifact import write_whole
from groundup.errors import StageFailed
from groundup.nn import products
from groundup.nn.products import Matmul
from groundup.progress import Reporter
from groundup.training import arithmetic as arithmetics
from groundup.training import checkpoint, devices
from groundup.training import objective as objectives
from groundup.training.arithmetic import Arithmetic, Precision
from groundup.training.objective import Batch, Objective
from groundup.training.settings import TrainingSection
from groundup.units import show_count

NAME = "choices.json"
SHORT_S = 60.0
"""Runs expected to be shorter than this are not worth measuring for."""
COMPILE_GAIN = {"cpu": 1.05}
"""How much faster a compiled step is taken to be: 1.00 to 1.05 was measured on a CPU, where products are
most of a step (bench/results/pretrain-cpu.md)."""
COMPILE_GAIN_ELSEWHERE = 1.15
"""The same on a GPU, after torchtitan's published figure (Liang et al. 2024, table 1)."""
COMPILE_S, COMPILE_S_PER_MODULE = 30.0, 0.5
"""What compiling takes: a start, and some for every innermost module of the network."""
MARGIN = 1.5
"""Compiling must repay its predicted cost this many times before it is tried."""
TRIES, TRY_S = 8, 1.0
"""Passes by which a step is timed, and the seconds after which two will do: a choice should be the same each time."""
FLOPS_PER_THREAD, FLOPS_PER_WEIGHT = 20e6, 100
"""What a thread must have to do in a step to be worth waking, and what a weight's update is reckoned as. On two
cores of a Zen 3 a perceptron of 24 million FLOPs a step was 5 % faster with one thread, convolutions of 67 million a
fifth slower; and a short step on all cores takes a hundred times as long as soon as another program wants one."""
MEMORY_SHARE = 0.7
"""Share of the free memory that activations may take."""


@dataclass(frozen=True)
class Choices:
    """Everything settled for a run that shapes its bytes or its speed."""

    device: str
    device_words: str
    threads: int
    deterministic: bool
    precision: Precision = "fp32"
    matmul: Matmul = "torch"
    compile: bool = False
    micro_batches: int = 1
    torch: str = torch.__version__
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def arithmetic(self) -> Arithmetic:
        """How the run computes."""
        return Arithmetic(self.device, self.precision, self.matmul)

    def shown(self) -> dict[str, Any]:
        """As the plan prints it and the manifest keeps it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Extent:
    """The extent of a run, which decides what is worth its cost."""

    steps: int
    batch_rows: int
    flops_per_step: float


def begin(settings: TrainingSection) -> Choices:
    """Device, threads and determinism, settled and switched on."""
    device = devices.pick(settings.device)
    deterministic = settings.deterministic and device != "mps"
    devices.reserve_workspace(deterministic, device)
    return Choices(
        device=device,
        device_words=devices.describe(device),
        threads=devices.use_threads(settings.threads),
        deterministic=deterministic,
    )


def settle(
    choices: Choices, settings: TrainingSection, run: Extent, network: nn.Module, objective: Objective, one_row: Batch
) -> Choices:
    """The rest: arithmetic, compiling and micro-batches, by the recipe's word or by measuring here.

    one_row: a batch of a single row of the longest shape.
    """
    reasons: dict[str, str] = {}
    threads, reasons["threads"] = busy_threads(choices, settings, run.flops_per_step, network)
    choices = dataclasses.replace(choices, threads=devices.use_threads(threads))
    matmul, reasons["matmul"] = _matmul(choices, settings, run)
    choices = dataclasses.replace(choices, matmul=matmul)
    precision, reasons["precision"] = _precision(choices, settings, run, network, objective, one_row)
    choices = dataclasses.replace(choices, precision=precision)
    micro_batches, reasons["micro_batches"] = _micro_batches(
        choices, settings, run, lambda: activation_bytes(network, objective, one_row, choices.arithmetic)
    )
    step_s = _step_seconds(choices, run, network, objective, one_row)
    compiled, reasons["compile"] = _compile(choices, settings, run, network, step_s)
    return dataclasses.replace(choices, micro_batches=micro_batches, compile=compiled, reasons=reasons)


def busy_threads(
    choices: Choices, settings: TrainingSection, flops_per_step: float, network: nn.Module
) -> tuple[int, str]:
    """As many threads as a step keeps busy, and why: by a rule and not by measuring, for the sums of other threads
    round otherwise.
    """
    if settings.threads != "auto":
        return choices.threads, "asked for"
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    work = flops_per_step + FLOPS_PER_WEIGHT * trained
    busy = min(choices.threads, max(1, int(work / FLOPS_PER_THREAD)))
    if busy == choices.threads or choices.device != "cpu":
        return choices.threads, "what the system offers"
    return busy, f"a step of {show_count(work)} FLOPs is too short for more"


def keep(folder: Path, choices: Choices) -> None:
    """Write the choices beside the states, before the first step."""
    write_whole(folder / NAME, json.dumps(choices.shown(), indent=1))


def recall(folder: Path, reporter: Reporter) -> Choices | None:
    """The choices of an earlier start of this run, switched on again; None if there was none.

    Raises StageFailed if they cannot be kept here. Other versions or another processor are noted:
    the run goes on, but its bytes may differ from those of an uninterrupted one.
    """
    choices = _read(folder, reporter)
    if choices is None:
        return None
    if choices.device not in devices.available():
        here = ", ".join(devices.available())
        raise StageFailed(
            f"the run began on {choices.device_words}, and this machine has only {here}: it cannot be resumed exactly",
            where=str(folder),
            fix="go on where it began, or start anew with --fresh",
        )
    if choices.matmul not in products.libraries(choices.device):
        raise StageFailed(
            f"the run began with products by {choices.matmul}, which this torch lacks: it cannot be resumed exactly",
            where=str(folder),
            fix="go on where it began, or start anew with --fresh",
        )
    devices.reserve_workspace(choices.deterministic, choices.device)
    devices.use_threads(choices.threads)
    for what, then, now in differences(choices):
        reporter.note(f"the run began with {what} {then}, this is {now}: the result may differ in its last bits")
    return choices


def _read(folder: Path, reporter: Reporter) -> Choices | None:
    """The kept choices; those in the newest state where the file is damaged."""
    try:
        return Choices(**json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = checkpoint.newest(folder, reporter)
        return Choices(**found.data["choices"]) if found else None


def differences(choices: Choices) -> list[tuple[str, str, str]]:
    """What differs between then and now and may change the last bits: (what, then, now)."""
    pairs = [
        ("torch", choices.torch, torch.__version__),
        ("device", choices.device_words, devices.describe(choices.device)),
    ]
    return [pair for pair in pairs if pair[1] != pair[2]]


def activation_bytes(network: nn.Module, objective: Objective, batch: Batch, arithmetic: Arithmetic) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Kept alive by the graph until the block ends, so that no address is used twice.
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), arithmetic.on():
        inputs = objectives.to_device(batch, arithmetic.device)
        parts = objective.loss(network(inputs), inputs)
    del parts
    return sum(seen.values())


def try_step(network: nn.Module, objective: Objective, batch: Batch, arithmetic: Arithmetic) -> float:
    """Seconds of one forward and backward pass, the best of two, of quick ones of more; weights stay as they are."""
    run, device = objectives.forward(network, objective, arithmetic), arithmetic.device
    share = objectives.shares([objective.counts(batch)], device)
    best, begun, tried = float("inf"), time.perf_counter(), 0
    while tried < 2 or (tried < TRIES and time.perf_counter() - begun < TRY_S):
        tried += 1
        start = time.perf_counter()
        loss, _ = run(objectives.to_device(batch, device), share)
        torch.autograd.backward(loss)
        devices.synchronize(device)
        best = min(best, time.perf_counter() - start)
        network.zero_grad(set_to_none=True)
    gc.collect()
    return best


def compile_cost(network: nn.Module) -> float:
    """Predicted seconds of compiling forward and backward passes, from the size of the graph."""
    innermost = sum(1 for module in network.modules() if not any(True for _ in module.children()))
    return COMPILE_S + COMPILE_S_PER_MODULE * innermost


def _precision(
    choices: Choices,
    settings: TrainingSection,
    run: Extent,
    network: nn.Module,
    objective: Objective,
    one_row: Batch,
) -> tuple[Precision, str]:
    if settings.precision != "auto":
        return settings.precision, "asked for"
    if choices.device == "cpu" and _rough_seconds(run, choices) < SHORT_S:
        return "fp32", "the run is too short to measure for"
    gain = arithmetics.bf16_gain(choices.device)
    chosen, reason = gain >= arithmetics.WORTHWHILE_PRODUCTS, f"bf16 products run at {gain:.2f}x the rate of fp32 here"
    if chosen and choices.device == "cpu":
        # On a CPU the products alone promise too much: everything between them is slower in bf16.
        gain = _step_gain(choices, network, objective, one_row)
        chosen, reason = gain > arithmetics.WORTHWHILE_STEP, f"a bf16 step runs at {gain:.2f}x the rate of fp32"
    return "bf16" if chosen else "fp32", reason


_gains: dict[str, float] = {}
_libraries: dict[int, tuple[Matmul, str]] = {}
"""What was measured in this process, so that the seeds of a stage are computed alike where the two are close: how
much faster bf16 is, and which library is faster, by the number of threads."""


def _step_gain(choices: Choices, network: nn.Module, objective: Objective, one_row: Batch) -> float:
    """How many times faster a step in bf16 is than one in fp32."""
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    shapes = {key: tuple(value.shape) for key, value in one_row.items()}
    key = repr((choices.device, choices.threads, choices.matmul, getattr(network, "config", None), trained, shapes))
    if key not in _gains:
        times = {
            p: try_step(network, objective, one_row, dataclasses.replace(choices.arithmetic, precision=p))
            for p in get_args(Precision)
        }
        _gains[key] = times["fp32"] / times["bf16"]
    return _gains[key]


def _matmul(choices: Choices, settings: TrainingSection, run: Extent) -> tuple[Matmul, str]:
    if "onednn" not in products.libraries(choices.device):
        return "torch", f"there is no other library for {choices.device} here"
    if settings.matmul != "auto":
        return settings.matmul, "asked for"
    if _rough_seconds(run, choices) < SHORT_S:
        return "torch", "the run is too short to measure for"
    if choices.threads not in _libraries:
        _libraries[choices.threads] = arithmetics.faster_library()
    return _libraries[choices.threads]


def _micro_batches(
    choices: Choices, settings: TrainingSection, run: Extent, row_bytes: Callable[[], int]
) -> tuple[int, str]:
    rows = run.batch_rows
    if settings.micro_batch_rows != "auto":
        return -(-rows // min(rows, settings.micro_batch_rows)), "asked for"
    if rows == 1:
        return 1, "one row is the whole batch"
    each = max(1, row_bytes())
    fit = max(1, int(MEMORY_SHARE * devices.free_bytes(choices.device) / each))
    # A divisor keeps all micro-batches of one shape, which compiled code and allocators like.
    count = next(m for m in range(1, rows + 1) if rows % m == 0 and rows // m <= fit)
    return count, f"a row keeps {each / 2**20:.1f} MiB of activations"


def _step_seconds(choices: Choices, run: Extent, network: nn.Module, objective: Objective, one_row: Batch) -> float:
    rough = _rough_seconds(run, choices) / run.steps
    if rough * run.steps < SHORT_S:
        return rough
    return run.batch_rows * try_step(network, objective, one_row, choices.arithmetic)


def _compile(
    choices: Choices, settings: TrainingSection, run: Extent, network: nn.Module, step_s: float
) -> tuple[bool, str]:
    if settings.compile is not False and (missing := missing_compiler(choices.device)):
        return False, f"torch.compile cannot be used: {missing}"
    if settings.compile is not False and any(getattr(module, "unrolls", False) for module in network.modules()):
        return False, "a compiler would write out every step of a recurrent network"
    if settings.compile != "auto":
        return settings.compile, "asked for"
    saved = run.steps * step_s * (1 - 1 / COMPILE_GAIN.get(choices.device, COMPILE_GAIN_ELSEWHERE))
    cost = compile_cost(network)
    words = f"compiling takes about {cost:.0f} s and would save about {saved:.0f} s"
    return saved > MARGIN * cost, words


def missing_compiler(device: str) -> str | None:
    """What torch.compile lacks here, in words; None if it can be used."""
    if sys.platform == "win32":
        return None if shutil.which("cl") else "there is no C++ compiler (cl)"
    if device == "cpu":
        return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "there is no C++ compiler"
    from importlib.util import find_spec

    return None if device != "cuda" or find_spec("triton") else "the package triton is not installed"


def _rough_seconds(run: Extent, choices: Choices) -> float:
    """The length of a run from its FLOPs at half the rate of matrix products, before anything is tried."""
    return run.steps * run.flops_per_step / (0.5 * devices.gemm_rate(choices.device, torch.float32, budget_s=0.05))
