"""A recipe: a YAML file read so that every value knows its line, checked in one pass.

`load` returns a recipe whose stages are validated sections, or raises `Mistakes` with everything that
is wrong: unknown keys and kinds with the nearest known one, wrong types and units, references to
stages that do not exist, artefacts of the wrong kind, cycles. What needs data or other stages'
figures is checked by `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from groundup import catalog, config
from groundup.artifact import is_foreign_model, open_artifact
from groundup.config import Mistake, Section, StageSection
from groundup.errors import ArtifactError, Mistakes, Problem, UserError, nearest
from groundup.places import expand
from groundup.search import Search
from groundup.yaml import WIDE_COLON, Yaml

FORMAT = 1
NAME = re.compile(r"^[\w][\w-]*$")
SEED = "@"
"""Between the name of a stage and the seed of one of its further trainings."""
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_FOLDER = "recipe.folder"
Key = tuple[str | int, ...]


class Header(Section):
    """The keys of a recipe beside its stages."""

    groundup: Literal[1]
    """Format of the recipe file; 1 is the only one so far."""
    name: str = ""
    """Name of the recipe, and of its folder in `runs/`; the file's name unless given."""
    seed: int = 0
    """Seed of everything random; a stage may set its own."""
    tune: Search | None = None
    """Which keys of a stage `groundup tune` searches for better values of, and how."""
    vars: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Values used elsewhere as `${vars.NAME}`; override one with `--set vars.NAME=…`. `${recipe.folder}` is the folder
    that the recipe itself lies in, for files that come with it."""


@dataclass(frozen=True)
class Reference:
    """What a stage's field points at: another stage, or an artefact on disk; and a part of it."""

    stage: str | None
    path: Path | None
    part: str | None

    def __str__(self) -> str:
        return (self.stage or str(self.path)) + (f".{self.part}" if self.part else "")


@dataclass(frozen=True)
class Stage:
    """One named stage of a recipe, validated."""

    name: str
    kind: str
    config: StageSection
    inputs: dict[str, Reference]

    @property
    def module(self) -> ModuleType:
        """The file of `stages/` behind it."""
        return catalog.load("stages", self.kind)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe; `stages` are in an order in which they can run."""

    path: Path
    header: Header
    stages: dict[str, Stage]
    source: Yaml = field(repr=False)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.header.name or self.path.stem

    def at(self, stage: str, *key: str | int) -> str:
        """`file:line (key)` of a key within a stage's section."""
        return self.source.at(("stages", stage.partition(SEED)[0], self.stages[stage].kind, *key))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `--set` overrides (`stages.base.pretrain.tokens=2M`) applied.

    Raises Mistakes listing everything wrong, or RecipeError if the file is no YAML at all.
    """
    source = Yaml.read(Path(path))
    for override in overrides:
        source.override(override)
    problems: list[Problem] = []
    data = _with_variables(source, problems)
    header = _header(source, data, problems)
    seed = header.seed if header else 0
    written = data.get("stages") or {}
    stages = _each_seed(_stages(source, written, seed, problems))
    _check_references(source, written, problems)
    ordered = _in_order(source, stages, problems)
    if problems:
        raise Mistakes(sorted(problems, key=lambda problem: source.line_of(problem.where)))
    assert header is not None, "a recipe without a header has problems"
    return Recipe(Path(path), header, ordered, source)


def _header(source: Yaml, data: Mapping[str, Any], problems: list[Problem]) -> Header | None:
    known = [*Header.model_fields, "stages"]
    for key in data:
        if key not in known:
            problems.append(Problem(f"unknown key {key!r}", source.at((key,)), nearest(key, known)))
    header, mistakes = config.parse(Header, {k: v for k, v in data.items() if k in Header.model_fields})
    for mistake in mistakes:
        fix = f"groundup: {FORMAT}" if mistake.path[:1] == ("groundup",) else mistake.fix
        problems.append(Problem(mistake.what, source.at(mistake.path), fix))
    name = data.get("name")
    if isinstance(name, str) and not NAME.match(name):
        fix = "use letters, digits, - and _"
        problems.append(Problem(f"{name!r} cannot be the name of a folder", source.at(("name",)), fix))
    return header


def _stages(source: Yaml, data: Any, seed: int, problems: list[Problem]) -> dict[str, Stage]:
    if not isinstance(data, Mapping) or not data:
        fix = "stages: {corpus: {prepare: {source: …}}}; `groundup init` writes a commented recipe"
        fix = WIDE_COLON if "：" in str(data) else fix
        problems.append(Problem("a recipe needs a mapping of stages", source.at(("stages",)), fix))
        return {}
    stages = {}
    for name, body in data.items():
        stage = _stage(source, str(name), body, seed, problems)
        if stage is not None:
            stages[stage.name] = stage
    return stages


def _stage(source: Yaml, name: str, body: Any, seed: int, problems: list[Problem]) -> Stage | None:
    where = source.at(("stages", name))
    if not NAME.match(name):
        problems.append(Problem(f"{name!r} cannot be the name of a stage", where, "use letters, digits, - and _"))
    kinds = catalog.names("stages")
    if not isinstance(body, Mapping) or len(body) != 1:
        found = f"{len(body)} keys" if isinstance(body, Mapping) else repr(body)
        fix = f"write the stage's kind and its settings below the name; kinds: {', '.join(kinds)}"
        problems.append(Problem(f"stage {name!r} must have exactly one kind, found {found}", where, fix))
        return None
    kind, section = next(iter(body.items()))
    key: Key = ("stages", name, str(kind))
    if kind not in kinds:
        problems.append(Problem(f"no stage kind named {kind!r}", source.at(key), nearest(str(kind), kinds)))
        return None
    module = catalog.load("stages", kind)
    section = {} if section is None else section
    if isinstance(section, Mapping):
        section = {"seed": seed, **section}
    parsed, mistakes = config.parse(module.Config, section, key)
    problems += [Problem(m.what, source.at(m.path), m.fix) for m in mistakes]
    return Stage(name, kind, parsed, _references(module, parsed)) if parsed else None


def _references(module: ModuleType, section: StageSection) -> dict[str, Reference]:
    found: dict[str, Reference] = {}
    for key, info in type(section).model_fields.items():
        value, name = getattr(section, key), info.alias or key
        if name in module.READS and value is not None:
            several = value if isinstance(value, list) else [value]
            found |= {f"{name}{SEED}{i}" if i else name: reference(str(one)) for i, one in enumerate(several)}
    return found


def _each_seed(stages: dict[str, Stage]) -> dict[str, Stage]:
    """The stages, with one more for each further seed of a stage that has several: `model@8` beside `model`.

    Whoever reads the stage gets the first; a stage that can measure several together gets all of them.
    """
    found: dict[str, Stage] = {}
    others: dict[str, list[str]] = {}
    for name, stage in stages.items():
        seeds = getattr(stage.config, "seeds", None)
        if not seeds:
            found[name] = stage
            continue
        for place, seed in enumerate(seeds):
            own = f"{name}{SEED}{seed}" if place else name
            found[own] = replace(stage, name=own, config=stage.config.model_copy(update={"seed": seed, "seeds": None}))
            others.setdefault(name, []).extend([own] if place else [])
    for name, stage in found.items():
        for key in getattr(stage.module, "ALL_SEEDS", ()):
            target = stage.inputs.get(key)
            more = others.get(target.stage or "", ()) if target else ()
            inputs = {f"{key}{SEED}{one.partition(SEED)[2]}": Reference(one, None, None) for one in more}
            found[name] = replace(found[name], inputs=found[name].inputs | inputs)
    return found


def reference(text: str) -> Reference:
    """`corpus`, `corpus.test` or a path, as what it points at."""
    if "/" in text or text.startswith((".", "~", "{")):
        return Reference(None, Path(expand(text)) if "{" in text else Path(text).expanduser(), None)
    stage, _, part = text.partition(".")
    return Reference(stage, None, part or None)


def _kinds(data: Any) -> dict[str, str]:
    """Names of stages as written, with their kinds: a broken stage can still be referred to."""
    if not isinstance(data, Mapping):
        return {}
    return {str(n): str(next(iter(b))) for n, b in data.items() if isinstance(b, Mapping) and len(b) == 1}


def _check_references(source: Yaml, data: Any, problems: list[Problem]) -> None:
    """Look every reference up as it is written, so that a section's other mistakes hide none."""
    kinds = _kinds(data)
    for stage, kind in kinds.items():
        section = data[stage][kind]
        if kind not in catalog.names("stages") or not isinstance(section, Mapping):
            continue
        for key, wanted in catalog.load("stages", kind).READS.items():
            given = section.get(key)
            for one in given if isinstance(given, list) else [given]:
                where = source.at(("stages", stage, kind, key))
                if isinstance(one, str):
                    problems += _check_reference(key, one, str(wanted).split("|"), where, kinds)


def _check_reference(key: str, text: str, wanted: list[str], where: str, kinds: dict[str, str]) -> list[Problem]:
    target = reference(text)
    found = _kind_of(target, kinds)
    if isinstance(found, Problem):
        return [Problem(found.what, where, found.fix)]
    if target.part is not None and target.stage is not None and found in wanted:
        parts = getattr(catalog.load("stages", kinds[target.stage]), "PARTS", ())
        if target.part not in parts:
            return [Problem(f"{target.stage!r} has no part {target.part!r}", where, nearest(target.part, parts))]
    if found is None or found in wanted:
        return []
    fitting = [name for name, kind in kinds.items() if _writes(kind) in wanted]
    what = f"{key} needs a {' or a '.join(wanted)}, but {text!r} is a {found}"
    return [Problem(what, where, f"stages that fit: {', '.join(fitting) or 'none'}")]


def _kind_of(target: Reference, kinds: dict[str, str]) -> str | Problem | None:
    """The kind of artefact a reference leads to; None if that cannot be told; or what is wrong."""
    if target.path is not None:
        try:
            return "model" if is_foreign_model(target.path) else open_artifact(target.path).kind
        except (UserError, ArtifactError) as error:
            return Problem(error.what, fix=error.fix)
    assert target.stage is not None, "a reference without a path has a stage"
    if target.stage not in kinds:
        return Problem(f"there is no stage {target.stage!r}", fix=nearest(target.stage, kinds))
    return _writes(kinds[target.stage])


def _writes(kind: str) -> str | None:
    return str(catalog.load("stages", kind).WRITES) if kind in catalog.names("stages") else None


def _in_order(source: Yaml, stages: dict[str, Stage], problems: list[Problem]) -> dict[str, Stage]:
    """The stages sorted so that each follows what it reads; a circle is one more problem."""
    done: dict[str, Stage] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " → ".join((*trail[trail.index(name) :], name))
            what = f"stages depend on each other in a circle: {circle}"
            problems.append(Problem(what, source.at(("stages", name)), "let one of them read something else"))
        elif name in stages and name not in done:
            for target in stages[name].inputs.values():
                visit(target.stage or "", (*trail, name))
            done[name] = stages[name]

    for name in stages:
        visit(name, ())
    return done


def _with_variables(source: Yaml, problems: list[Problem]) -> dict[str, Any]:
    variables = source.data.get("vars") or {}
    folder = source.path.parent.as_posix()

    def expand(value: Any, path: Key) -> Any:
        if isinstance(value, Mapping):
            return {key: expand(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [expand(item, (*path, i)) for i, item in enumerate(value)]
        return _expand(value, path) if isinstance(value, str) else value

    def _expand(text: str, path: Key) -> Any:
        text = _VARIABLE.sub(lambda match: folder if match[1].strip() == _FOLDER else match[0], text)
        names = [name.strip().removeprefix("vars.") for name in _VARIABLE.findall(text)]
        unknown = [name for name in names if not isinstance(variables, Mapping) or name not in variables]
        for name in unknown:
            fix = nearest(name, variables) if variables else f"add `vars: {{{name}: …}}` at the top"
            problems.append(Problem(f"there is no variable {name!r}", source.at(path), fix))
        if unknown or not names:
            return text
        if len(names) == 1 and _VARIABLE.fullmatch(text):
            return variables[names[0]]
        return _VARIABLE.sub(lambda match: str(variables[match[1].strip().removeprefix("vars.")]), text)

    return {key: value if key == "vars" else expand(value, (key,)) for key, value in source.data.items()}


def problems_at(recipe: Recipe, stage: str, mistakes: Iterable[Mistake]) -> list[Problem]:
    """Mistakes that a stage's `check` found, with their place in the file."""
    return [Problem(m.what, recipe.at(stage, *m.path), m.fix) for m in mistakes]
