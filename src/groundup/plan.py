"""What a run would do, before it does it: which stages are fresh, what is wrong, what it will cost.

A stage's key is the digest of what its section chose, its inputs' digests, its sources' digests and the
`VERSION` of every file its section names. An artefact in the store with that key is the stage's
result, so comments, formatting, renamed stages and newer libraries re-run nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from groundup import catalog, config
from groundup.artifact import (
    MANIFEST,
    Artifact,
    Store,
    digest_data,
    digest_file,
    is_foreign_model,
    open_artifact,
    write_whole,
)
from groundup.config import Named, Section
from groundup.errors import ArtifactError, DataError, Mistakes, Problem, UserError
from groundup.forecast import Forecast, Known
from groundup.progress import Reporter
from groundup.recipe import Recipe, Reference, Stage, problems_at

Status = Literal["fresh", "stale", "missing", "unfinished"]


@dataclass
class Step:
    """One stage of a plan. `key` and `parts` are None while an input is still to be made."""

    stage: Stage
    status: Status
    why: str
    key: str | None = None
    parts: dict[str, Any] | None = None
    artifact: Artifact | None = None
    forecast: Forecast = field(default_factory=Forecast)


@dataclass
class Plan:
    """Every step of a recipe in order of execution, and where their artefacts live."""

    recipe: Recipe
    store: Store
    steps: dict[str, Step]

    @property
    def pending(self) -> list[Step]:
        """The steps a run would execute."""
        return [step for step in self.steps.values() if step.status != "fresh"]


def examine(recipe: Recipe, store: Store) -> Plan:
    """The plan with the status of every stage, and no forecasts. Reads manifests and sources only."""
    plan = Plan(recipe, store, {})
    for stage in recipe.stages.values():
        plan.steps[stage.name] = step(plan, stage)
    return plan


def make(recipe: Recipe, store: Store, *, effort: str = "measured", reporter: Reporter | None = None) -> Plan:
    """The plan with forecasts. Raises Mistakes with everything the stages' checks find wrong.

    `effort` is "quick" (nothing is measured) or "measured" (a few real steps of each training stage).
    """
    reporter = reporter or Reporter()
    plan = examine(recipe, store)
    problems: list[Problem] = []
    known: dict[str, Known] = {}
    for name, current in plan.steps.items():
        inputs = {key: _known(target, known, store) for key, target in current.stage.inputs.items()}
        module = current.stage.module
        if hasattr(module, "check"):
            problems += problems_at(recipe, name, module.check(current.stage.config, inputs))
        current.forecast = _forecast(current, inputs, "quick" if problems else effort, problems, reporter)
        known[name] = Known(
            kind=str(module.WRITES),
            config=current.stage.config,
            artifact=current.artifact,
            facts=current.forecast.facts,
            estimated=current.forecast.estimated,
        )
    if problems:
        raise Mistakes(problems)
    return plan


def _forecast(
    step: Step, inputs: dict[str, Known], effort: str, problems: list[Problem], reporter: Reporter
) -> Forecast:
    module = step.stage.module
    if step.artifact is not None:
        return Forecast(facts=module.facts(step.artifact) if hasattr(module, "facts") else {})
    if not hasattr(module, "forecast"):
        return Forecast()
    reporter.advance(f"looking at {step.stage.name}", 0)
    try:
        found: Forecast = module.forecast(step.stage.config, inputs, effort)
    except UserError as error:
        # A broken input makes later forecasts moot; the complaint belongs to the list of mistakes.
        if not problems or not isinstance(error, DataError):
            problems.append(Problem(error.what, error.where, error.fix))
        return Forecast()
    return found


def _known(target: Reference, known: dict[str, Known], store: Store) -> Known:
    if target.path is not None:
        artifact = artifact_at(target.path, store)
        module = _writer(artifact.kind)
        facts = module.facts(artifact) if module is not None and hasattr(module, "facts") else {}
        return Known(artifact.kind, artifact=artifact, facts=facts)
    assert target.stage is not None, "a reference without a path has a stage"
    made = known[target.stage]
    return Known(made.kind, made.config, made.artifact, target.part, made.facts, made.estimated)


def _writer(kind: str) -> Any:
    modules = (catalog.load("stages", name) for name in catalog.names("stages"))
    return next((module for module in modules if kind == module.WRITES), None)


def step(plan: Plan, stage: Stage) -> Step:
    """The state of one stage, given the steps before it."""
    waiting = [t.stage for t in stage.inputs.values() if t.stage and plan.steps[t.stage].status != "fresh"]
    last = _last(plan.recipe, stage)
    if waiting:
        status: Status = "stale" if last else "missing"
        return Step(stage, status, f"{waiting[0]} comes first", artifact=None)
    parts = key_parts(stage, {key: opened(plan, target) for key, target in stage.inputs.items()}, plan.store)
    key = digest_data(parts)
    found = plan.store.find(key)
    if found is not None:
        try:
            found.verify()
        except ArtifactError as error:
            return Step(stage, "stale", error.what, key, parts)
        return Step(stage, "fresh", "", key, parts, found)
    if any(plan.store.state_folder(key).glob("*")):
        return Step(stage, "unfinished", "an earlier run was interrupted; it goes on from there", key, parts)
    if last is None:
        return Step(stage, "missing", "has not run yet", key, parts)
    return Step(stage, "stale", _difference(last.manifest.get("key_parts", {}), parts), key, parts)


def opened(plan: Plan, target: Reference) -> Artifact:
    """The artefact behind a reference whose stage is fresh."""
    if target.path is not None:
        return artifact_at(target.path, plan.store)
    artifact = plan.steps[target.stage or ""].artifact
    assert artifact is not None, "a fresh step has an artefact"
    return artifact


def artifact_at(path: Path, store: Store) -> Artifact:
    """The artefact at a path; a model of others is brought into the store first, once."""
    if (path / MANIFEST).is_file() or not is_foreign_model(path):
        return open_artifact(path)
    from groundup.checkpoints import imported  # brings torch along

    return imported.bring(path, store)


def key_parts(stage: Stage, inputs: dict[str, Artifact], store: Store) -> dict[str, Any]:
    """Everything a stage's result depends on, as plain data; its digest is the stage's key."""
    section = config.chosen(stage.config)
    for key in (*inputs, *stage.config.WITHOUT_EFFECT):
        section.pop(key, None)
    module = stage.module
    sources = module.sources(stage.config) if hasattr(module, "sources") else []
    return {
        "stage": stage.kind,
        "section": section,
        "inputs": {k: {"digest": a.digest, "part": stage.inputs[k].part} for k, a in inputs.items()},
        "sources": digest_sources(sources, store),
        "versions": {f"stages.{stage.kind}": module.VERSION, **dict(_versions(stage.config))},
    }


def _versions(section: Section) -> Iterator[tuple[str, int]]:
    """The VERSION of every file that a section names, at any depth."""
    for key in type(section).model_fields:
        value = getattr(section, key)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Named):
                file = type(item).__module__
                folder = file.split(".")[-2]
                yield f"{folder}.{item.name}", int(catalog.load(folder, item.name).VERSION)
            if isinstance(item, Section):
                yield from _versions(item)


def digest_sources(paths: list[Path], store: Store) -> dict[str, str]:
    """The digest of every source file; one whose size, time and inode are known is not read again."""
    cache_path = store.root / "source-digests.json"
    try:
        cache = json.loads(cache_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cache = {}
    digests, changed = {}, False
    for path in paths:
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            entry = cache.get(str(path.absolute()))
            if entry is None or entry[:3] != stamp:
                entry, changed = [*stamp, digest_file(path)], True
                cache[str(path.absolute())] = entry
        except OSError as error:
            fix = "make it readable, or exclude it"
            raise DataError(f"cannot read a source: {error.strerror}", where=str(path), fix=fix) from error
        # A project that is moved as a whole stays fresh.
        inside = path.absolute().is_relative_to(Path.cwd())
        digests[str(path.absolute().relative_to(Path.cwd()) if inside else path)] = entry[3]
    if changed:
        store.root.mkdir(parents=True, exist_ok=True)
        write_whole(cache_path, json.dumps(cache))
    return digests


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: per stage its state and forecast."""
    stages = {}
    for name, current in plan.steps.items():
        forecast = asdict(current.forecast)
        forecast["facts"] = {k: v for k, v in forecast["facts"].items() if k not in ("sample", "examples")}
        stages[name] = {"kind": current.stage.kind, "state": current.status, "why": current.why, **forecast}
    return {"recipe": plan.recipe.name, "stages": stages}


def place(recipe: Recipe, stage: str) -> Path:
    """`runs/RECIPE/STAGE`, the link to a stage's artefact."""
    return Path(os.environ.get("GROUNDUP_RUNS", "runs")) / recipe.name / stage


def _last(recipe: Recipe, stage: Stage) -> Artifact | None:
    """What this stage wrote last, whatever its key."""
    try:
        last = open_artifact(place(recipe, stage.name))
        return last if last.manifest else None
    except (UserError, ArtifactError):
        return None


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """One sentence on why two keys differ."""
    for name, before, after in _changes(old.get("section", {}), new["section"], ""):
        return f"{name} changed from {before} to {after}"
    for name, entry in new["inputs"].items():
        if old.get("inputs", {}).get(name) != entry:
            return f"what it reads as `{name}` changed"
    if old.get("sources") != new["sources"]:
        return "its source files changed"
    if old.get("versions") != new["versions"]:
        return "a newer version of groundup computes it differently"
    return "its result is no longer in the store"


def _changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path or "the section", _short(old), _short(new)


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
