"""Describe a service: a model, checked, and the settings to serve it by; `groundup serve runs/RECIPE/STAGE` starts it.

A recipe ends where a server begins: a stage finishes, a server does not. So the artefact is small: a name, the
model's digest and the settings. What a service is made of can be told from it, and the same one is started tomorrow.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from groundup.artifact import Draft, Input
from groundup.config import Mistake, StageSection, dump
from groundup.forecast import Forecast, Known
from groundup.machine import free_memory
from groundup.serving import fit, models
from groundup.serving.service import FILE, KIND, ServiceSettings
from groundup.units import show_bytes, show_count

READS = {"of": "model"}
WRITES = KIND
VERSION = 1
OWN = ("seed", "of", "name")
"""Keys of the stage that are no settings of the service."""


class Config(StageSection, ServiceSettings):
    """A model to serve, and how."""

    of: str
    """The model to serve: a stage that trains, tunes or compresses one."""
    name: Annotated[str, Field(pattern=r"^[\w.:/@-]{1,128}$")] | None = None
    """What requests call the model; the name of its stage unless given."""


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write service.json. Raises UserError for a model that cannot be served, ArtifactError for a damaged one."""
    model = inputs["of"].artifact
    facts = models.describe(model.path)
    name = config.name or str(model.manifest.get("stage") or config.of)
    described = {"name": name, "digest": model.digest, "task": facts.task, "kind": facts.kind}
    out.write_json(FILE, {"format": 1, "models": [described], "settings": _settings(config)})
    out.metrics |= {"parameters": facts.parameters, "context": facts.context}
    out.choices["name"] = name


def check(config: Config, inputs: dict[str, Known]) -> list[Mistake]:
    """A context that is longer than the model's."""
    longest = inputs["of"].facts.get("context")
    if config.context is None or not longest or config.context <= longest:
        return []
    what = f"a context of {config.context} tokens, and the model reads {longest}"
    return [Mistake(("context",), what, f"at most {longest}, or leave it out")]


def forecast(config: Config, inputs: dict[str, Known], effort: str) -> Forecast:
    """What the service will need in memory, once its model is there."""
    found = Forecast(seconds=1.0, estimated=inputs["of"].estimated)
    found.lines.append(("address", f"{config.host}:{config.port}"))
    model = inputs["of"].artifact
    if model is None:
        return found
    facts = models.describe(model.path)
    needed = fit.need(facts, config.options(), room=free_memory())
    found.lines.append(("serves", f"{facts.task}, {show_count(facts.parameters)} parameters"))
    found.lines.append(("memory", f"{show_bytes(needed.total + fit.PROCESS)} when it runs"))
    return found


def _settings(config: Config) -> dict[str, Any]:
    """The settings as plain data, without the stage's own keys."""
    return {name: value for name, value in dump(config).items() if name not in OWN}
