"""A service: which models are served under which names, and how; a `serve` stage writes it, `groundup serve` reads it.

Paths are turned into models here, and nothing is opened: `runs/RECIPE/STAGE`, an artefact, a Hugging Face directory,
or a service artefact, which names the models it was made of by their digests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from groundup.artifact import MANIFEST, Artifact, open_artifact
from groundup.config import Section, parse
from groundup.errors import ArtifactError, Mistakes, Problem, UserError
from groundup.places import expand
from groundup.serving.api.settings import Settings
from groundup.serving.canary import Plan
from groundup.serving.models import Options
from groundup.serving.security import SecuritySettings
from groundup.units import Bytes, Duration, PositiveCount

FILE = "service.json"
KIND = "service"
NAME = re.compile(r"[\w.:/@-]{1,128}")


class ServiceSettings(Section):
    """How models are served: where, with how much of the machine, and within which limits."""

    host: str = "127.0.0.1"
    """The address to listen on. Loopback can be reached from this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes any free one."""
    threads: PositiveCount | None = None
    """Compute threads of an engine; all usable cores, divided among replicas, unless given."""
    replicas: PositiveCount = 1
    """Engine processes, each with all models: for machines with many cores."""
    grace: Duration = 30.0
    """Seconds that running requests may go on for when the server is asked to end."""
    context: PositiveCount | None = None
    """The longest text, prompt and answer together; each model's own unless given."""
    cache: Bytes | None = None
    """Memory for running and remembered texts, of each model; a share of what is free unless given."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` rounds the weights of linear layers, which makes answers faster on CPUs that multiply it, and a little
    different."""
    max_sequences: PositiveCount = 64
    """Texts that are generated at the same time at most."""
    max_queue: PositiveCount = 256
    """Requests that may wait; more are refused with 429."""
    max_queue_tokens: PositiveCount = 262_144
    """Tokens of all requests that may wait together."""
    metrics_prefix: str = "groundup"
    """What the names of metrics begin with; `vllm` for boards that know only vLLM's names."""
    canary: Plan = Plan()
    """How a candidate is tried (`groundup serve --canary`)."""
    limits: Settings = Settings()
    """What one request may ask of a model."""
    security: SecuritySettings = SecuritySettings()
    """Hosts, sessions, rates, the audit log."""

    def options(self, *, public_key: Path | None = None) -> Options:
        """How each model is opened."""
        return Options(
            context=self.context,
            cache_bytes=self.cache,
            max_sequences=self.max_sequences,
            precision=self.precision,
            max_waiting=self.max_queue,
            max_waiting_tokens=self.max_queue_tokens,
            public_key=str(public_key.absolute()) if public_key is not None else None,
        )


@dataclass(frozen=True)
class Adapter:
    """An adapter that is served under a name of its own; of the only generating model unless one is named."""

    path: str
    model: str | None = None


@dataclass(frozen=True)
class Service:
    """What to serve: paths by name."""

    models: Mapping[str, str]
    adapters: Mapping[str, Adapter]
    settings: ServiceSettings


def service(
    paths: Sequence[str], *, models: Sequence[str] = (), adapters: Sequence[str] = (), changes: Mapping[str, Any] = {}
) -> Service:
    """The service of what a command line names.

    paths are models, named after their last part, or service artefacts; `models` are NAME=PATH and `adapters`
    NAME=PATH or NAME@MODEL=PATH. `changes` are settings that win over those of a service. Raises UserError for a name
    that is used twice or cannot be one, ArtifactError for a service whose model is gone.
    """
    found: dict[str, str] = {}
    given: dict[str, Any] = {}
    for path in map(_brought, paths):
        artifact = _service_at(Path(path))
        if artifact is None:
            _add(found, Path(path).resolve().name if Path(path).name in ("", "..") else Path(path).name, path)
            continue
        described = artifact.json(FILE)
        given |= described["settings"]
        for entry in described["models"]:
            _add(found, entry["name"], str(_model_of(artifact, entry)))
    for text in models:
        name, path = named(text, "--model")
        _add(found, name, _brought(path))
    if not found:
        raise UserError("no model is named", fix="groundup serve runs/RECIPE/STAGE, or --model NAME=PATH")
    loras: dict[str, Adapter] = {}
    for text in adapters:
        name, path = named(text, "--adapter")
        name, _, model = name.partition("@")
        if name in found or name in loras:
            raise UserError(f"two things are named {name!r}", where="--adapter", fix="choose another name")
        loras[name] = Adapter(path, model or None)
    return Service(found, loras, settings(given | dict(changes)))


def settings(values: Mapping[str, Any]) -> ServiceSettings:
    """Settings from plain data. Raises Mistakes with everything that is wrong."""
    parsed, mistakes = parse(ServiceSettings, values)
    if parsed is None:
        raise Mistakes([Problem(m.what, ".".join(map(str, m.path)), m.fix) for m in mistakes])
    return parsed


def _brought(path: str) -> str:
    """The path with `{package:NAME}` filled in; of a GGUF file, that of the model it was made into.

    The latter is the work of another process, since the server itself stays without torch. Raises UserError for a
    file that cannot be imported.
    """
    path = expand(path) if "{" in path else path
    if Path(path).suffix.lower() != ".gguf":
        return path
    command = [sys.executable, "-m", "groundup", "import", path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the GGUF file cannot be imported: {done.stderr.strip()}", where=path)
    return str(json.loads(done.stdout)["path"])


def _service_at(path: Path) -> Artifact | None:
    """The service artefact at a path, or None for anything else."""
    if path.is_dir() and not (path / MANIFEST).is_file():
        return None
    if not path.exists():
        fix = "give runs/RECIPE/STAGE, a directory of the store, or a Hugging Face directory"
        raise UserError(f"there is nothing at {str(path)!r}", fix=fix)
    artifact = open_artifact(path)
    return artifact if artifact.kind == KIND else None


def _model_of(artifact: Artifact, entry: Mapping[str, Any]) -> Path:
    """Where a service's model lies: in the store that the service is in."""
    path = artifact.path.parents[1] / "model" / str(entry["digest"])
    if not (path / MANIFEST).is_file():
        fix = "run the recipe again: it makes the model anew, and the service with it"
        raise ArtifactError(f"the model {entry['name']!r} of the service is gone", where=str(path), fix=fix)
    return path


def named(text: str, where: str) -> tuple[str, str]:
    """The two sides of NAME=PATH. Raises UserError."""
    name, sign, path = text.partition("=")
    if not sign or not path:
        raise UserError(f"{text!r} names no path", where=where, fix=f"{where} NAME=PATH")
    return name, path


def _add(found: dict[str, str], name: str, path: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be the name of a model", fix=f"--model NAME={path}")
    if name in found:
        raise UserError(f"two models are named {name!r}", fix=f"name one of them: --model OTHER={path}")
    found[name] = path
