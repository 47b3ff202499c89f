"""Artefacts: what stages write and read.

An artefact is a directory with a payload and a `manifest.json`. It lives in the store under the
digest of its content, `STORE/KIND/DIGEST`, and never changes there; `runs/RECIPE/STAGE` is a link to
it. A stage writes into a draft, which becomes an artefact by one rename, so a reader never sees half
of one. Files under `log/` (curves, timings) are kept and checked but are not part of the identity:
the same computation gives the same digest however long it took.
"""

from __future__ import annotations

import errno
import hashlib
import html
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from groundup.errors import ArtifactError, StageFailed, UserError
from groundup.machine import usable_cores
from groundup.progress import Reporter

FORMAT = 1
MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
"""Beside the manifest, which it signs; no part of the payload (see signing.py)."""


@dataclass(frozen=True)
class Artifact:
    """A finished directory of the store, opened for reading."""

    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest, upgraded to this version's format. Raises ArtifactError if unreadable."""
        return _read_manifest(self.path)

    @property
    def kind(self) -> str:
        """What it is: corpus, tokenizer, shards, model, report, …"""
        return str(self.manifest["kind"])

    @property
    def digest(self) -> str:
        """SHA-256 over kind and payload files, in hex; two equal digests are equal content."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures its stage recorded."""
        return dict(self.manifest["metrics"])

    def file(self, name: str) -> Path:
        """The path of a payload file. Raises ArtifactError if the manifest does not list it."""
        if name not in self.manifest["files"]:
            raise ArtifactError(f"the {self.kind} has no file {name!r}", where=str(self.path))
        return self.path / name

    def json(self, name: str) -> Any:
        """A payload file read as JSON."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def _repr_html_(self) -> str | None:
        """A report as a notebook shows it: the page itself, in a frame of its own."""
        if "report.html" not in self.manifest["files"]:
            return None
        page = html.escape(self.file("report.html").read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 45em; border: 0"></iframe>'

    def verify(self, *, full: bool = False) -> None:
        """Raise ArtifactError if a file is missing, added to the payload, or changed.

        A file whose size, modification time and inode are those of the day it was written is taken
        as unchanged; `full` reads and digests every byte all the same.
        """
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                raise self._damaged(f"{name} has been deleted")
            if (full or not _is_untouched(path, entry)) and digest_file(path) != entry["sha256"]:
                raise self._damaged(f"{name} is not the file that was written (digest mismatch)")
        extra = {_name(p, self.path) for p in _files(self.path)} - set(self.manifest["files"])
        if extra:
            raise self._damaged(f"{sorted(extra)[0]} was added after it was written")

    def _damaged(self, what: str) -> ArtifactError:
        fix = "run the recipe again: the stage is redone; `groundup clean` removes the damaged copy"
        return ArtifactError(f"damaged {self.kind}: {what}", where=str(self.path), fix=fix)


@dataclass(frozen=True)
class Input:
    """An artefact as a stage receives it: the artefact, and the part of it that was named."""

    artifact: Artifact
    part: str | None = None


@dataclass
class Draft:
    """An artefact being written by a stage.

    `folder` receives the payload. `state` survives an interruption, is the stage's to use, and goes
    when the stage ends. What is put into `metrics`, `choices`, `licences`, `tokens` and
    `determinism` lands in the manifest.
    """

    folder: Path
    state: Path
    store: Store
    reporter: Reporter = field(default_factory=Reporter)
    metrics: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    determinism: str = "bitwise"

    def path(self, name: str) -> Path:
        """The path of a payload file to write, its folder made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, data: Any) -> None:
        """Write a payload file as readable JSON with sorted keys."""
        text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, default=str)
        self.path(name).write_text(text + "\n", encoding="utf-8")


class Store:
    """The directory of all artefacts, with an index from stage keys to digests."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(os.environ.get("GROUNDUP_STORE", ".groundup/store"))

    def find(self, key: str) -> Artifact | None:
        """The artefact that a stage with this key wrote, or None. Not verified."""
        try:
            kind, digest = (self.root / "keys" / key).read_text().split()
        except (OSError, ValueError):
            return None
        path = self.root / kind / digest
        return Artifact(path) if (path / MANIFEST).is_file() else None

    def forget(self, key: str) -> None:
        """Drop the index entry of a key, so that its stage runs again."""
        (self.root / "keys" / key).unlink(missing_ok=True)

    def artifacts(self) -> Iterator[Artifact]:
        """Every artefact in the store."""
        for manifest in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            yield Artifact(manifest.parent)

    def state_folder(self, key: str) -> Path:
        """Where an unfinished stage with this key keeps its state."""
        return self.root / "unfinished" / key

    @contextmanager
    def draft(self, kind: str, key: str, *, reporter: Reporter | None = None, **described: Any) -> Iterator[Draft]:
        """A draft that becomes the artefact of `key` when the block ends without an error.

        `described` (stage, section, parents, versions, …) is stored in the manifest. A full disk
        becomes StageFailed; whatever fails, the half-written payload is removed and `state` stays.
        """
        folder = self.root / "drafts" / f"{key[:16]}-{os.getpid()}"
        state = self.state_folder(key)
        wall, cpu = time.perf_counter(), _cpu_seconds()
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            state.mkdir(parents=True, exist_ok=True)
            draft = Draft(folder, state, self, reporter or Reporter())
            yield draft
            spent = {"wall_s": time.perf_counter() - wall, "cpu_s": _cpu_seconds() - cpu}
            self._finish(draft, kind, key, described | spent)
            shutil.rmtree(state, ignore_errors=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise disk_full(folder) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _finish(self, draft: Draft, kind: str, key: str, described: dict[str, Any]) -> None:
        files = {_name(path, draft.folder): _entry(path) for path in _files(draft.folder)}
        digest = _identity(kind, files)
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "digest": digest,
            "key": key,
            "files": files,
            "metrics": draft.metrics,
            "choices": draft.choices,
            "licences": draft.licences,
            "tokens": draft.tokens,
            "determinism": draft.determinism,
            "environment": environment(),
            **described,
        }
        manifest = json.loads(json.dumps(manifest, default=str))
        manifest["seal"] = digest_data(manifest)
        write_whole(draft.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        final = self.root / kind / digest
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            # The same content made again. Moved aside first: a folder cannot be replaced in one step.
            os.replace(final, self.root / "drafts" / f"{digest[:16]}-old-{os.getpid()}")
        sync(draft.folder)
        os.replace(draft.folder, final)
        sync(final.parent)
        shutil.rmtree(self.root / "drafts" / f"{digest[:16]}-old-{os.getpid()}", ignore_errors=True)
        (self.root / "keys").mkdir(exist_ok=True)
        write_whole(self.root / "keys" / key, f"{kind} {digest}\n")


def open_artifact(path: str | Path) -> Artifact:
    """The artefact at a path: its directory, a link to it, or the one-line file that stands for a link.

    Raises UserError if there is none.
    """
    place = Path(path)
    if place.is_file():
        target = place.read_text(encoding="utf-8", errors="replace").strip()
        is_link = len(target) < 4096 and "\n" not in target
        place = Path(os.path.normpath(place.parent / target)) if is_link else place
    try:
        is_there = (place / MANIFEST).is_file()
    except OSError:  # what the file holds is no path at all
        is_there = False
    if not is_there:
        raise UserError(f"no artefact at {str(path)!r}", fix="give runs/RECIPE/STAGE or a directory of the store")
    return Artifact(place.resolve())


def is_foreign_model(path: str | Path) -> bool:
    """Whether a path looks like a model that groundup did not make: a Hugging Face directory or a GGUF file."""
    place = Path(path)
    return (place / "config.json").is_file() or (place.is_file() and place.suffix.lower() == ".gguf")


def link(place: Path, artifact: Artifact) -> None:
    """Point `runs/RECIPE/STAGE` at an artefact, replacing what stood there in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(artifact.path.absolute(), place.parent.absolute())
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target, target_is_directory=True)
    except OSError:
        temporary.write_text(target + "\n", encoding="utf-8")
    os.replace(temporary, place)


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    `mode` is the new file's, less the umask, from its first byte on: 0o600 for secrets.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_data(data: Any) -> str:
    """SHA-256 in hex of plain data, independent of the order of keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def disk_full(path: Path) -> StageFailed:
    """The error for a full disk at `path`, with how much is free there."""
    parent = next((p for p in (path, *path.parents) if p.exists()), Path("."))
    free = shutil.disk_usage(parent).free
    fix = "free some space (`groundup clean` shows what it can remove) and run again: finished work is kept"
    return StageFailed(f"the disk is full ({free} bytes are free)", where=str(parent), fix=fix)


@contextmanager
def lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file for the block. Raises UserError naming the holder's pid.

    The operating system drops the lock when its process ends, however it ends, so none goes stale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{what} is already running, as process {holder}", where=str(path), fix="wait for it to end, or stop it"
            )
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # Byte 0 of the range past the text: the pid itself stays readable to others.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def environment() -> dict[str, Any]:
    """Versions and machine, recorded in every manifest but never part of a key."""
    from importlib import metadata

    packages = {}
    for name in ("groundup", "torch", "tokenizers", "safetensors", "numpy", "pyarrow"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": usable_cores(),
        "packages": packages,
    }


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, kind, files = manifest["format"], manifest["kind"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the manifest is missing or unreadable ({error})", where=str(path / MANIFEST)) from error
    if version != FORMAT:
        fix = "open it with the version of groundup that wrote it"
        raise ArtifactError(f"artefact format {version}; this version reads {FORMAT}", where=str(path), fix=fix)
    seal = manifest.pop("seal", None)
    if seal != digest_data(manifest) or manifest["digest"] != _identity(kind, files):
        fix = "run the recipe again: the stage is redone"
        raise ArtifactError("the manifest has been edited (digest mismatch)", where=str(path / MANIFEST), fix=fix)
    return dict(manifest)


def _identity(kind: str, files: dict[str, dict[str, Any]]) -> str:
    payload = {name: entry["sha256"] for name, entry in files.items() if not name.startswith("log/")}
    return digest_data({"kind": kind, "files": payload})


def _entry(path: Path) -> dict[str, Any]:
    sync(path)
    stat = path.stat()
    return {"sha256": digest_file(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def _is_untouched(path: Path, entry: dict[str, Any]) -> bool:
    stat = path.stat()
    now = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return now == (entry["bytes"], entry["mtime_ns"], entry["inode"])


def _files(folder: Path) -> list[Path]:
    outside = {folder / MANIFEST, folder / SIGNATURE}
    return sorted(p for p in folder.rglob("*") if p.is_file() and p not in outside)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def sync(path: Path) -> None:
    """Flush a file or directory to the disk; systems that cannot sync a directory skip it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(handle)


def _cpu_seconds() -> float:
    """CPU time of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
