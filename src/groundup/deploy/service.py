"""What is deployed: the models, what they need, and the command that serves them inside a container."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.config import chosen
from groundup.deploy import vllm
from groundup.errors import UserError
from groundup.serving import fit, models
from groundup.serving.models import Options
from groundup.serving.service import Adapter, ServiceSettings
from groundup.serving.service import service as asked

MODELS = "/models"
"""Where a container finds its models, each in a folder of its name."""
KEYS = "/etc/groundup/keys/keys.json"
"""Where a container finds its keys (the file holds their digests only)."""
STATE = "/state"
"""What a container may write beside /tmp: spent quotas, batch jobs."""
USER = 10001
"""Neither root nor anyone on the host."""
FRONT = 400 << 20
"""Bytes of the front process: HTTP, tokenizers, bodies of requests."""
VLLM = 8 << 30
"""Bytes of host memory that vLLM's processes take beside weights."""
STEP = 256 << 20
"""Memory is asked for in steps of so many bytes."""
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?")
"""RFC 1123, and short enough that `-metrics-key` may follow."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service as every target needs to know it."""

    name: str
    models: Mapping[str, models.Facts]
    """By the name under which each is served."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """By the name under which each is served."""
    threads: int = 2
    """Compute threads of the engine."""
    cache_bytes: int = 1 << 30
    """Of each model that generates, for the keys and values of its texts."""
    port: int = 8000
    grace_s: int = 30
    """How long running requests may go on after SIGTERM."""
    prefix: str = "groundup"
    """What the names of metrics begin with."""
    engine: str = "groundup"
    """`groundup`, or `vllm` for a language model on GPUs."""
    gpus: int = 1
    """Of one replica, with vLLM."""
    flags: tuple[str, ...] = ()
    """Further flags of `groundup serve`, as given."""

    @property
    def memory_bytes(self) -> int:
        """What one replica needs, as `groundup serve` reckons before it starts: so much that it will not refuse."""
        if self.engine == "vllm":  # weights pass through the host's memory on their way to the GPUs
            return math.ceil((sum(facts.weight_bytes for facts in self.models.values()) + VLLM) / STEP) * STEP
        options = Options(cache_bytes=self.cache_bytes)
        engine = fit.PROCESS + sum(fit.need(facts, options, room=0).total for facts in self.models.values())
        return math.ceil((engine / (1 - fit.SPARE) + FRONT) / STEP) * STEP

    @property
    def cpus(self) -> int:
        """Whole processors of one replica: the engine's threads, and one for HTTP and tokenizing."""
        return self.threads + 1

    @property
    def traces(self) -> str:
        """The address of the collector that traces go to, by the flags; empty if they go nowhere."""
        given = " ".join(self.flags).replace("--traces ", "--traces=").split()
        return next((flag.partition("=")[2] for flag in reversed(given) if flag.startswith("--traces=")), "")

    def arguments(self, *, in_place: bool = False) -> list[str]:
        """The arguments of `groundup`, the models in a container's folder or, `in_place`, where they are now."""
        places = {name: facts.folder if in_place else f"{MODELS}/{name}" for name, facts in self.models.items()}
        served = [f"--model={name}={place}" for name, place in places.items()]
        for name, adapter in self.adapters.items():
            base = f"@{adapter.model}" if adapter.model else ""
            served.append(f"--adapter={name}{base}={adapter.path if in_place else f'{MODELS}/{name}'}")
        caches = [f"--cache={self.cache_bytes >> 20}Mi"] if any(f.token_bytes for f in self.models.values()) else []
        engine = [f"--grace={self.grace_s}s"]
        engine += (
            ["--engine=vllm", f"--vllm=gpus={self.gpus}"]
            if self.engine == "vllm"
            else [f"--threads={self.threads}", *caches]
        )
        renamed = [f"--metrics-prefix={self.prefix}"] if self.prefix != "groundup" else []
        address = ["--host=0.0.0.0", f"--port={self.port}", "--log-format=json"]
        address += [] if in_place else [f"--state={STATE}"]
        return ["serve", *served, *address, *engine, *renamed, *self.flags]

    def environment(self) -> dict[str, str]:
        """The container's environment variables. Nothing in it is secret."""
        return {"GROUNDUP_KEYS": KEYS, "OMP_NUM_THREADS": str(self.threads), "HOME": "/tmp"}


def describe(
    paths: Sequence[str],
    *,
    adapters: Sequence[str] = (),
    name: str = "",
    public_key: str | None = None,
    **given: Any,
) -> Service:
    """The service of these models, each `PATH` or `NAME=PATH`, or of a `serve` stage, every file of them checked.

    The name of a model given by its path alone is that of the stage or directory; adapters are
    `NAME=PATH` or `NAME@MODEL=PATH`. `given` are further fields of Service; where one is None, what the
    `serve` stage says holds. Raises UserError for names that a cluster does not allow or that are used twice, and
    what opening a model raises.
    """
    named = [path for path in paths if "=" in path]
    found = asked([path for path in paths if "=" not in path], models=named, adapters=adapters)
    for label in (*found.models, *found.adapters):
        if not re.fullmatch(r"[\w.-]+", label, re.ASCII):
            fix = "use letters, digits, `.`, `_` and `-`: NAME=PATH"
            raise UserError(f"{label!r} cannot name a folder in a container", fix=fix)
    served = {label: models.describe(path, public_key=public_key) for label, path in found.models.items()}
    name = name or re.sub(r"[^a-z0-9]+", "-", next(iter(served)).lower()).strip("-")
    if not _LABEL.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a service",
            where="--name",
            fix="use up to 53 lower-case letters, digits and hyphens, a letter or digit at both ends",
        )
    flags = (*_flags(found.settings), *given.pop("flags", ()))
    said = _said(found.settings) | {key: value for key, value in given.items() if value is not None}
    service = Service(name=name, models=served, adapters=found.adapters, flags=flags, **said)
    if service.engine == "vllm":
        _require_vllm(service)
    return service


def _said(settings: ServiceSettings) -> dict[str, Any]:
    """What a `serve` stage says of the fields of Service."""
    found: dict[str, Any] = {"port": settings.port or 8000, "grace_s": round(settings.grace)}
    found |= {"threads": settings.threads} if settings.threads else {}
    found |= {"cache_bytes": settings.cache} if settings.cache else {}
    return found | {"prefix": settings.metrics_prefix}


def _flags(settings: ServiceSettings) -> list[str]:
    """What a `serve` stage says besides, as `--set` of `groundup serve`."""
    ours = {"host", "port", "threads", "replicas", "grace", "cache", "metrics_prefix"}
    rest = {key: value for key, value in chosen(settings).items() if key not in ours}
    return [f"--set={key}={json.dumps(value)}" for key, value in _leaves(rest)]


def _leaves(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _require_vllm(service: Service) -> None:
    if len(service.models) != 1:
        fix = "deploy one service for each: vLLM serves one model, with its adapters"
        raise UserError(f"vLLM is given {len(service.models)} models", where="--engine vllm", fix=fix)
    for label, facts in service.models.items():
        vllm.require_served(facts, label)
