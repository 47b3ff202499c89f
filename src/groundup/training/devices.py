"""The machine a run trains on: which device, how many threads, how fast it multiplies.

The peak rate of matrix products is measured, not looked up, so that the share of it a run reaches
(model FLOPs utilisation, Chowdhery et al. 2022, appendix B) means something on any machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from groundup.errors import RecipeError
from groundup.machine import free_memory
from groundup.nn import products

DeviceName = Literal["cpu", "cuda", "mps"]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OFFERED = torch.get_num_threads()
"""Threads that the system offers."""


def available() -> list[DeviceName]:
    """The devices torch can use here, the fastest first."""
    found: list[DeviceName] = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def pick(wanted: str) -> DeviceName:
    """The device for `auto` or a name. Raises RecipeError if it is not here."""
    here = available()
    for device in here:
        if wanted in ("auto", device):
            return device
    fix = f"write `device: auto`, or one of: {', '.join(here)}"
    raise RecipeError(f"device {wanted!r} is not available on this machine", where="device", fix=fix)


def describe(device: str) -> str:
    """A device in words, so that a resumed run can tell whether it is on the same one."""
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()})"
    return f"{device} ({torch.backends.cpu.get_cpu_capability()})" if device == "cpu" else device


def use_threads(wanted: int | Literal["auto"]) -> int:
    """Set torch's threads and return how many; `auto` is what the system offers (OMP_NUM_THREADS counts)."""
    count = OFFERED if wanted == "auto" else wanted
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return count


def reserve_workspace(deterministic: bool, device: str) -> None:
    """Give cuBLAS the fixed workspace that reproducible products need; it reads this at its first product."""
    if deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def make_deterministic(wanted: bool, device: str, *, compiled: bool = False) -> None:
    """Switch torch to reproducible kernels, or not; its compiler, too, if there will be something to compile."""
    if wanted and device == "cuda":
        torch.backends.cudnn.benchmark = False
    if compiled:
        torch.use_deterministic_algorithms(wanted)
    else:  # the same switch, but this one does not import the compiler
        torch.set_deterministic_debug_mode("error" if wanted else "default")
    # That switch would also fill every new tensor with NaN; nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def level(deterministic: bool, device: str) -> str:
    """The determinism level of a run.

    "bitwise": run again on the same machine and versions, the weights are the same bytes.
    "statistical": the same up to the order in which floating-point sums are taken.
    """
    return "bitwise" if deterministic and device in ("cpu", "cuda") else "statistical"


@contextmanager
def kept_memory() -> Iterator[None]:
    """A block in which freed memory stays with the process, and goes back to the system at its end.

    glibc gives large blocks back as soon as they are freed. A training step frees and takes the same
    gigabyte again and again, and the system hands out zeroed pages one by one: up to 7 % of a step on a
    CPU (mallopt(3)). Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    library.mallopt(_M_MMAP_MAX, 0)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_MAX, 65536)
        library.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        library.malloc_trim(0)


def seed(number: int, device: str) -> None:
    """Set the state of the generator that computing on a device draws from.

    torch's own function also notes for every kind of device that is not here what to seed it with, and who asked:
    that takes longer than a step of a small network.
    """
    if device == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def free_bytes(device: str) -> int:
    """Memory that a run could still take."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return free_memory()


def synchronize(device: str) -> None:
    """Wait until a device has done what it was asked; CPUs already have."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def gemm_rate(device: str, dtype: torch.dtype, *, size: int = 0, budget_s: float = 0.08) -> float:
    """FLOP/s of a square matrix product: the best of as many as fit in the budget, by each library there is."""
    size = size or (4096 if device == "cuda" else 768)
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best, end, rounds = float("inf"), time.perf_counter() + budget_s, 0
    while rounds < 3 or time.perf_counter() < end:
        for library in products.libraries(device, dtype):
            start = time.perf_counter()
            products.product(a, b, library)
            synchronize(device)
            # The first product pays for loading the library and waking the threads.
            best = min(best, time.perf_counter() - start) if rounds else best
        rounds += 1
    return 2 * size**3 / best
