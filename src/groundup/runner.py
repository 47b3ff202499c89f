"""Running a recipe: each stage that is not fresh, in order, under a lock.

Run again after anything at all, it goes on where it stood: fresh stages are skipped, an interrupted
one continues from its saved state.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup import __version__, config, plan
from groundup.artifact import Artifact, Input, Store, link, lock
from groundup.errors import UserError, nearest
from groundup.plan import Plan, Step
from groundup.progress import Reporter, interruptible
from groundup.recipe import Recipe, Stage, load


def run(
    path: str | Path,
    stages: Sequence[str] = (),
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Artifact]:
    """The artefact of every stage of a recipe (or of `stages` and what they need), made where needed.

    `overrides` are `KEY=VALUE` as for `--set`; `fresh` forgets earlier results of these stages.
    Raises UserError for mistakes and for a recipe that is running already, StageFailed or
    GateFailed if a stage cannot finish, Interrupted after a signal, with its state saved.
    """
    recipe = load(path, overrides)
    store = Store()
    wanted = needed(recipe, stages)
    with lock(plan.place(recipe, ".lock"), what=f"the recipe {recipe.name!r}"), interruptible():
        return execute(recipe, store, wanted, fresh=fresh, reporter=reporter or Reporter())


def needed(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """The named stages (all if none is named) and everything they read, in order of execution."""
    for name in stages:
        if name not in recipe.stages:
            what = f"the recipe has no stage {name!r}"
            raise UserError(what, where=str(recipe.path), fix=nearest(name, recipe.stages))
    wanted = set(stages or recipe.stages)
    for stage in reversed(recipe.stages.values()):
        if stage.name in wanted:
            wanted |= {target.stage for target in stage.inputs.values() if target.stage}
    return [name for name in recipe.stages if name in wanted]


def execute(
    recipe: Recipe, store: Store, wanted: Sequence[str], *, fresh: bool, reporter: Reporter
) -> dict[str, Artifact]:
    """Make every wanted stage fresh, one after the other, and link it into `runs/`."""
    current = Plan(recipe, store, {})
    artifacts = {}
    for name in wanted:
        stage = recipe.stages[name]
        step = plan.step(current, stage)
        if fresh and step.key is not None:
            shutil.rmtree(store.state_folder(step.key), ignore_errors=True)
        if step.status != "fresh" or fresh:
            step = _make(current, step, reporter)
        assert step.artifact is not None, "a stage that was made has an artefact"
        link(plan.place(recipe, name), step.artifact)
        current.steps[name] = step
        artifacts[name] = step.artifact
    return artifacts


def _make(current: Plan, step: Step, reporter: Reporter) -> Step:
    stage, store = step.stage, current.store
    assert step.key is not None and step.parts is not None, "the inputs of a stage are made before it"
    reporter.start(stage.name, step.why)
    inputs = {key: Input(plan.opened(current, target), target.part) for key, target in stage.inputs.items()}
    described = _described(current.recipe, stage, step.parts, inputs)
    with store.draft(str(stage.module.WRITES), step.key, reporter=reporter, **described) as out:
        for given in inputs.values():
            out.licences.update(given.artifact.manifest["licences"])
        stage.module.run(stage.config, inputs, out)
    artifact = store.find(step.key)
    assert artifact is not None, "a finished draft is in the store"
    reporter.finish(stage.name, **_figures(artifact))
    return Step(stage, "fresh", "", step.key, step.parts, artifact)


def _described(recipe: Recipe, stage: Stage, parts: dict[str, Any], inputs: dict[str, Input]) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "stage": stage.name,
        "made_by": f"groundup {__version__}, stage {stage.kind}",
        "section": config.dump(stage.config),
        "key_parts": parts,
        "parents": {
            key: {"kind": i.artifact.kind, "digest": i.artifact.digest, "part": i.part} for key, i in inputs.items()
        },
    }


def _figures(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {"wall_s": manifest["wall_s"], "digest": artifact.digest, **manifest["metrics"]}
