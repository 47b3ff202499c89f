"""Training states on disk: whole or not at all.

A state is a folder `step-00000012/` with `tensors.safetensors` (weights, optimizer, averages) and
`state.json` (everything else, and the digests of both). It is written under a temporary name, flushed
to the disk and renamed, so a process killed at any instant leaves either the new state or the one
before. On the way back every byte is digested; a damaged state is passed over for the one before it.
Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from groundup.artifact import digest_data, digest_file, disk_full, sync, write_whole
from groundup.progress import Reporter

FORMAT = 1
TENSORS, DATA = "tensors.safetensors", "state.json"
_PARTIAL = ".partial-"
# A file may also be refused for its size: FAT32 ends at 4 GiB, and quotas may set a limit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class State:
    """A whole state on disk, its digests checked."""

    path: Path
    step: int
    data: dict[str, Any]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, one at a time, on the CPU."""
        with safe_open(self.path / TENSORS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def save(folder: Path, step: int, tensors: dict[str, Tensor], data: dict[str, Any]) -> Path:
    """Write the state of a step and return its folder.

    A full disk raises StageFailed and leaves earlier states as they were.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f"{_PARTIAL}{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _full_disk_as_failure(folder):
            partial.mkdir(parents=True)
            _require_room(folder, sum(t.numel() * t.element_size() for t in tensors.values()))
            save_file({name: t.detach().contiguous() for name, t in tensors.items()}, partial / TENSORS)
            sync(partial / TENSORS)
            content = {"format": FORMAT, "step": step, "tensors": digest_file(partial / TENSORS), "data": data}
            content = json.loads(json.dumps(content))
            write_whole(partial / DATA, json.dumps(content | {"seal": digest_data(content)}))
            sync(partial)
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
            sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def newest(folder: Path, reporter: Reporter, *, below: int | None = None) -> State | None:
    """The newest whole state (of a step below `below`), or None.

    Damaged ones are noted and passed over; leftovers of a killed save are removed.
    """
    for leftover in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in reversed(_states(folder)):
        if below is not None and _step(path) >= below:
            continue
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reporter.note(f"state {path.name} is damaged ({error}); looking for the one before it")
    return None


def read(path: Path) -> State:
    """The state in a folder. Raises ValueError, KeyError, TypeError or OSError if it is not whole."""
    content = json.loads((path / DATA).read_text(encoding="utf-8"))
    seal = content.pop("seal")
    if seal != digest_data(content):
        raise ValueError(f"{DATA} is not what was written")
    if content["format"] != FORMAT:
        raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
    if digest_file(path / TENSORS) != content["tensors"]:
        raise ValueError(f"{TENSORS} is not what was written")
    return State(path, int(content["step"]), dict(content["data"]))


def prune(folder: Path, *, keep: int, protect: Collection[int] = ()) -> None:
    """Remove all states but the newest `keep` and those of the steps in `protect`."""
    for path in _states(folder)[:-keep]:
        if _step(path) not in protect:
            _remove(path)


def drop_after(folder: Path, step: int) -> None:
    """Remove the states of later steps: damaged ones, or those of a run that took another turn."""
    for path in _states(folder):
        if _step(path) > step:
            _remove(path)


def steps(folder: Path) -> list[int]:
    """The steps there are states of, whole or not, ascending."""
    return [_step(path) for path in _states(folder)]


def _remove(path: Path) -> None:
    """Rename before removing, so that a kill halfway leaves no state with files missing."""
    doomed = path.with_name(f"{_PARTIAL}{path.name}")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _require_room(folder: Path, size: int) -> None:
    """Fail before writing anything if the tensors cannot fit."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _full_disk_as_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(folder) from error
        raise
    except SafetensorError as error:
        # The library reports the system's error number only in its text.
        number = re.search(r"os error (\d+)", str(error))
        if number and int(number[1]) in _FULL:
            raise disk_full(folder) from error
        raise
