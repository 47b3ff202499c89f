"""The state of this machine for groundup: what is there, what is missing, and the remedy."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from groundup.machine import free_memory, usable_cores
from groundup.units import show_bytes

EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "onnx": ("onnxruntime", "onnx"),
    "tracking": ("tensorboard", "mlflow"),
    "bridges": ("transformers",),
}
LEAST_DISK = 2 * 2**30
LEAST_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `state` is good, limited (works, but) or broken."""

    name: str
    state: Literal["good", "limited", "broken"]
    found: str
    remedy: str = ""

    def as_data(self) -> dict[str, Any]:
        """The finding as plain data."""
        return asdict(self)


def examine() -> list[Finding]:
    """Every check's finding, in the order in which they matter."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _torch,
        _processor,
        _threads,
        _memory,
        _gpu,
        _compiler,
        _disk,
        _links,
    ]
    return [check() for check in checks] + [_extra(name, modules) for name, modules in EXTRAS.items()]


def _python() -> Finding:
    # pip refuses older versions; this line is for the record in a bug report.
    return Finding("Python", "good", f"{platform.python_version()} in {sys.prefix}")


def _torch() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Finding("torch", "broken", str(error), "pip install torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding("torch", "good", f"{torch.__version__} ({build})")


def _processor() -> Finding:
    torch = importlib.import_module("torch")
    capability = str(torch.backends.cpu.get_cpu_capability())
    features = _cpu_flags() & {"avx512_bf16", "avx512_vnni", "amx_bf16", "avx2", "asimd"}
    found = f"{platform.machine()}, {capability}" + (f" ({', '.join(sorted(features))})" if features else "")
    if capability == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        return Finding("processor", "limited", found, "no AVX2: training will be slow on this CPU")
    return Finding("processor", "good", found)


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _threads() -> Finding:
    torch = importlib.import_module("torch")
    allowed = usable_cores()
    threads = torch.get_num_threads()
    found = f"{threads} for {allowed} usable cores"
    if threads > allowed:
        remedy = f"set OMP_NUM_THREADS={allowed}: more threads than cores are several times slower"
        return Finding("threads", "limited", found, remedy)
    if os.getloadavg()[0] > allowed:
        found += f", load {os.getloadavg()[0]:.1f}"
        return Finding("threads", "limited", found, "other processes take the cores; training will be slow")
    return Finding("threads", "good", found)


def _memory() -> Finding:
    import psutil

    free = free_memory()
    found = f"{show_bytes(free)} free of {show_bytes(psutil.virtual_memory().total)}"
    if free < LEAST_MEMORY:
        return Finding("memory", "limited", found, "close other programs, or choose a smaller model")
    return Finding("memory", "good", found)


def _gpu() -> Finding:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return Finding("GPU", "good", str(torch.cuda.get_device_name()))
    if torch.backends.mps.is_available():
        return Finding("GPU", "good", "Apple MPS")
    if shutil.which("nvidia-smi"):
        remedy = "install a torch built for CUDA: see pytorch.org, then `groundup doctor` again"
        return Finding("GPU", "limited", "an NVIDIA driver, but torch cannot use it", remedy)
    return Finding("GPU", "good", "none; the CPU is used")


def _compiler() -> Finding:
    compiler = next((c for c in ("g++", "clang++", "cl") if shutil.which(c)), None)
    if compiler is None:
        return Finding("compiler", "limited", "none", "install g++ or clang++: long runs train about 1.2× faster")
    return Finding("compiler", "good", compiler)


def _disk() -> Finding:
    root = Path(os.environ.get("GROUNDUP_STORE", ".groundup/store")).absolute()
    parent = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    found = f"{show_bytes(free)} free for the store in {root}"
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        found = f"{parent} cannot be written: {error.strerror}"
        return Finding("disk", "broken", found, "run elsewhere, or set GROUNDUP_STORE")
    if free < LEAST_DISK:
        return Finding("disk", "limited", found, "free some space; `groundup clean` shows what it can remove")
    return Finding("disk", "good", found)


def _links() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        try:
            (Path(folder) / "link").symlink_to(folder, target_is_directory=True)
        except OSError:
            return Finding("links", "limited", "not allowed", "runs/ holds one-line files instead; nothing is lost")
    return Finding("links", "good", "symbolic links work")


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f"pip install 'groundup[{name}]', if you need it"
        return Finding(f"extra {name}", "limited", f"not installed: {', '.join(missing)}", remedy)
    return Finding(f"extra {name}", "good", ", ".join(modules))


def print_findings(console: Console, findings: list[Finding]) -> None:
    """The findings as a table, remedies last."""
    marks = {"good": "[green]good[/]", "limited": "[yellow]limited[/]", "broken": "[red]broken[/]"}
    table = Table(box=None, pad_edge=False)
    for name in ("", "", "found", "remedy"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(finding.name, marks[finding.state], finding.found, finding.remedy)
    console.print(table)
