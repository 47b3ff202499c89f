"""What nothing needs any more: artefacts no run points at, unfinished states, drafts of dead processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from groundup.artifact import Artifact, Store, open_artifact
from groundup.errors import ArtifactError, UserError
from groundup.units import show_bytes


@dataclass(frozen=True)
class Waste:
    """A directory that can go, and why."""

    path: Path
    what: str
    size: int

    def as_data(self) -> dict[str, Any]:
        """The item as plain data."""
        return {"path": str(self.path), "what": self.what, "bytes": self.size}


def find(store: Store) -> list[Waste]:
    """Everything that can go, largest first. Kept: what `runs/` points at, and all it was made from."""
    kept = _kept(store)
    found = [
        Waste(a.path, f"{_kind(a)} that no run uses", _size(a.path)) for a in _all(store) if a.path.name not in kept
    ]
    found += [Waste(p, "draft of a process that has ended", _size(p)) for p in _dead_drafts(store)]
    unfinished = store.root / "unfinished"
    for state in sorted(unfinished.iterdir()) if unfinished.is_dir() else []:
        if state.is_dir():
            found.append(Waste(state, "state of an interrupted stage (its run would start anew)", _size(state)))
    return sorted(found, key=lambda waste: -waste.size)


def remove(store: Store, waste: list[Waste]) -> None:
    """Remove what `find` found, and the index entries that pointed at it."""
    for item in waste:
        shutil.rmtree(item.path, ignore_errors=True)
    keys = store.root / "keys"
    for entry in keys.iterdir() if keys.is_dir() else []:
        if store.find(entry.name) is None:
            entry.unlink(missing_ok=True)


def print_waste(console: Console, waste: list[Waste]) -> None:
    """What can go, and how much it would free."""
    if not waste:
        console.print("nothing to clean")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("size", "what", "where"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for item in waste:
        table.add_row(show_bytes(item.size), item.what, str(item.path))
    console.print(table)
    console.print(f"together {show_bytes(sum(item.size for item in waste))}; `groundup clean --yes` removes them")


def _all(store: Store) -> Iterator[Artifact]:
    for artifact in store.artifacts():
        if artifact.path.parent.name not in ("drafts", "unfinished"):
            yield artifact


def _kind(artifact: Artifact) -> str:
    return artifact.path.parent.name


def _kept(store: Store) -> set[str]:
    """Digests that a run needs: those linked from `runs/`, their parents, and shards made from kept data."""
    by_digest = {artifact.path.name: artifact for artifact in _all(store)}
    kept: set[str] = set()
    waiting = [a.path.name for a in _linked()]
    while waiting:
        digest = waiting.pop()
        if digest in kept:
            continue
        kept.add(digest)
        if digest in by_digest:
            waiting += _parents(by_digest[digest])
    for digest, artifact in by_digest.items():
        if _kind(artifact) == "shards" and set(_parents(artifact)) <= kept:
            kept.add(digest)
    return kept


def _parents(artifact: Artifact) -> list[str]:
    try:
        return [str(parent["digest"]) for parent in artifact.manifest.get("parents", {}).values()]
    except ArtifactError:
        return []


def _linked() -> Iterator[Artifact]:
    root = Path(os.environ.get("GROUNDUP_RUNS", "runs"))
    for place in root.glob("*/*"):
        if place.name.startswith("."):
            continue
        try:
            yield open_artifact(place)
        except (UserError, OSError):
            continue


def _dead_drafts(store: Store) -> Iterator[Path]:
    for draft in sorted((store.root / "drafts").glob("*-*")):
        pid = draft.name.rpartition("-")[2]
        if not pid.isdigit() or not psutil.pid_exists(int(pid)):
            yield draft


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else 0
