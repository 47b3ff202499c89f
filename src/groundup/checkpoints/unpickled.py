"""Pickled weights (`.bin`, `.pth`) rewritten as safetensors, in a child process with little to lose.

A pickle can run any code when it is opened. torch's `weights_only` reader builds nothing but tensors
and plain containers; it runs in a process of its own all the same, with limited memory, time and file
size, with no network where the system can take it away, and with an empty environment. The parent
reads only what the child wrote as safetensors.

Run as a program: `python -m groundup.checkpoints.unpickled TARGET SOURCE…`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import ArtifactError, StageFailed, UserError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "pytorch_model.bin.index.json"
SUFFIXES = (".bin", ".pth", ".pt")
NOT_MODELS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "rng_state.pth")
"""What trainers leave beside the weights."""
NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers put the weights in a larger mapping."""
TIME_LIMIT_S = 1800
_SPARE_BYTES = 1 << 30
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
"""CLONE_NEWUSER and CLONE_NEWNET of Linux."""


def files(folder: Path) -> list[Path]:
    """The pickled weights of a directory, in order; none if there are none.

    Raises UserError where it cannot be told which of several files the weights are.
    """
    if (folder / INDEX).is_file():
        listed = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map") or {}
        named = sorted({Path(str(name)).name for name in listed.values()})
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            fix = "fetch the missing files into the same directory"
            raise ArtifactError(f"the index names shards that are not there: {', '.join(missing)}",
                                where=str(folder / INDEX), fix=fix)  # fmt: skip
        return [folder / name for name in named]
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name not in NOT_MODELS)
    if len(found) > 1:
        what = f"several files could be the weights: {', '.join(path.name for path in found)}"
        raise UserError(what, where=str(folder), fix="keep only the one that is wanted, as pytorch_model.bin")
    return found


def rewrite(sources: Sequence[Path], target: Path) -> None:
    """Write the tensors of pickled files as one safetensors file.

    Raises UserError for a file that holds more than weights, and StageFailed if the child ran out of
    memory or time.
    """
    command = [
        sys.executable,
        "-I",
        "-m",
        __name__,
        str(target.absolute()),
        *(str(path.absolute()) for path in sources),
    ]
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
    names = ", ".join(path.name for path in sources)
    try:
        done = subprocess.run(
            command, env=kept | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise StageFailed(f"opening {names} took longer than {TIME_LIMIT_S} s", where=str(sources[0].parent)) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        fix = "only files that hold nothing but tensors are opened: use the safetensors of the model"
        raise UserError(f"{names} cannot be opened as weights ({said[-1]})", where=str(sources[0].parent), fix=fix)


def restrict(size: int) -> None:
    """Limit this process: memory to what `size` bytes of weights need, no network, no large files."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(_NEW_USER | _NEW_NETWORK)  # fails where it is not allowed: then the reader alone protects
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + 3 * size + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + _SPARE_BYTES, 2 * size + _SPARE_BYTES))


def _tensors(path: Path) -> dict[str, Any]:
    """The tensors of one file by name. Raises ValueError for a file that holds something else."""
    import torch

    try:
        held: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError:  # files from before torch 1.6 cannot be mapped
        held = torch.load(path, map_location="cpu", weights_only=True)
    for key in NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not held:
        raise ValueError(f"{path.name} holds no mapping of names to tensors")
    others = [str(name) for name, value in held.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"{path.name} holds {others[0]!r}, which is no tensor")
    return {str(name): value for name, value in held.items()}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def main(target: str, *sources: str) -> None:
    """What the child process does."""
    import torch

    from groundup.checkpoints import streamed

    paths = [Path(source) for source in sources]
    torch.set_num_threads(1)
    restrict(sum(path.stat().st_size for path in paths))
    tensors = {name: tensor for path in paths for name, tensor in _tensors(path).items()}
    planned = [
        streamed.Planned(name, tuple(tensor.shape), partial(_same, tensor), tensor.dtype)
        for name, tensor in tensors.items()
    ]
    streamed.write(Path(target), planned)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
