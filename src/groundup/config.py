"""The base of every recipe section, and the one place where plain data becomes sections.

A section is a frozen pydantic model that forbids unknown keys. Where a section may name a file of an
open folder (`model: {name: gpt, …}` is `models/gpt.py`), its field is annotated with `FromFolder`;
where it names one of a closed set (`schedule: {name: cosine, …}`), with `OneOf`. `parse` looks the
name up, validates the rest with the section of that name, and reports every mistake of the whole
tree at once, each with the path of its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from groundup import catalog
from groundup.errors import nearest

Path = tuple[str | int, ...]


class Section(BaseModel):
    """One mapping of a recipe: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        populate_by_name=True,
    )


class StageSection(Section):
    """The section of one stage; every stage's `Config` derives from it."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how a stage goes about its work but not what comes of it: editing them re-runs nothing."""

    seed: int = 0
    """Seed of everything random in this stage; the recipe's `seed` unless it is given here."""


class Named(Section):
    """A section chosen by name from a folder: the `Config` of a model, task, method or adapter.

    Its name is the name of the file that defines it, so the two cannot differ.
    """

    @property
    def name(self) -> str:
        """The recipe name, which is the file's name."""
        return type(self).__module__.rpartition(".")[2]

    def dump(self) -> dict[str, Any]:
        """The section as plain data, `name` first."""
        return dump(self)


@dataclass(frozen=True)
class FromFolder:
    """Marks a field whose value names a file in `src/groundup/FOLDER` (or a plugin's)."""

    folder: str

    @property
    def kind(self) -> str:
        """What one of them is called in a message."""
        return self.folder.removesuffix("s")

    def names(self) -> list[str]:
        """The names to choose from."""
        return catalog.names(self.folder)

    def section(self, name: str) -> type[Section]:
        """The section that a name stands for."""
        section: type[Section] = catalog.load(self.folder, name).Config
        return section

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        options: list[JsonSchemaValue] = []
        for name in catalog.names(self.folder):
            section = _schema_of(catalog.load(self.folder, name).Config)
            section.setdefault("properties", {})["name"] = {"const": name}
            section["required"] = ["name", *section.get("required", [])]
            options.append(section)
        return {"anyOf": [{"enum": catalog.names(self.folder)}, *options]}


@dataclass(frozen=True, eq=False)  # hashed by identity, so that a field of it may be optional
class OneOf:
    """Marks a field whose value names one section of a closed set, e.g. an optimizer.

    Each section declares `name: Literal["cosine"] = "cosine"`, so that it can be dumped.
    """

    kind: str
    sections: Mapping[str, type[Section]]

    def names(self) -> list[str]:
        """The names to choose from."""
        return sorted(self.sections)

    def section(self, name: str) -> type[Section]:
        """The section that a name stands for."""
        return self.sections[name]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        options: list[JsonSchemaValue] = []
        for section in self.sections.values():
            option = _schema_of(section)
            option["required"] = ["name", *option.get("required", [])]
            options.append(option)
        return {"anyOf": [{"enum": self.names()}, *options]}


def _schema_of(section: type[BaseModel]) -> JsonSchemaValue:
    """The JSON Schema of a section, inner sections written out: what it becomes part of has none of its `$defs`."""
    schema = section.model_json_schema()
    definitions = schema.pop("$defs", {})

    def written_out(node: Any) -> Any:
        if isinstance(node, Mapping):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            whole = {**definitions[name], **node} if name in definitions else node
            return {key: written_out(value) for key, value in whole.items() if key != "$ref" or name not in definitions}
        return [written_out(item) for item in node] if isinstance(node, list) else node

    found: JsonSchemaValue = written_out(schema)
    return found


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in plain data: the path of the key, what is wrong, and what to do."""

    path: Path
    what: str
    fix: str = ""


S = TypeVar("S", bound=Section)


def parse(section: type[S], data: Any, path: Path = ()) -> tuple[S | None, list[Mistake]]:
    """The validated section and no mistakes, or None and every mistake found in `data`.

    Unknown keys get the nearest known one; names of files get the nearest file.
    """
    if not isinstance(data, Mapping):
        keys = ", ".join(_keys(section))
        return None, [Mistake(path, f"expected a mapping, found {data!r}", f"keys: {keys}")]
    values: dict[str, Any] = {str(key): value for key, value in data.items()}
    mistakes: list[Mistake] = []
    settled: list[Path] = []
    for key, info in _fields(section):
        choice = choice_of(info)
        if choice is None or key not in values:
            continue
        values[key], found = _resolve(choice, values[key], (*path, key))
        mistakes += found
        settled += [(*path, key)] if found else []
    try:
        parsed = section.model_validate(values)
    except ValidationError as error:
        # What is wrong inside a named section has been said already, and better.
        found = list(_explain(section, error, path))
        unknown = {d["loc"][0] for d in error.errors() if d["type"] == "extra_forbidden" and len(d["loc"]) == 1}
        if unknown:
            # With a key it does not know, pydantic leaves out the checks of the whole section.
            found += parse(section, {k: v for k, v in values.items() if k not in unknown}, path)[1]
        mistakes += [m for m in dict.fromkeys(found) if m.path[: len(path) + 1] not in settled]
        return None, mistakes
    return (None if mistakes else parsed), mistakes


def dump(section: BaseModel) -> dict[str, Any]:
    """Plain data that `parse` reads back: defaults filled in, names included, keys as in a recipe."""
    return _dumped(section, with_defaults=True)


def chosen(section: BaseModel) -> dict[str, Any]:
    """What a recipe chose: as `dump`, without the keys whose value is the default.

    This is what decides whether a result is still good: a newer groundup that knows more keys computes
    the same as long as they are not used. A default that changes raises the VERSION of its file.
    """
    return _dumped(section, with_defaults=False)


def _dumped(section: BaseModel, *, with_defaults: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": section.name} if isinstance(section, Named) else {}
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        is_tag = key == "name" and isinstance(value, str)  # of a section in a closed set: never left out
        if with_defaults or is_tag or (key in section.model_fields_set and value != info.default):
            found[info.alias or key] = _plain(value, with_defaults=with_defaults)
    return found


def named(folder: str, data: Any) -> Named:
    """The `Config` that `data` (a name, or a mapping with `name`) stands for.

    Raises ValueError listing every mistake; recipes are checked by `parse` first.
    """
    value, mistakes = _resolve(FromFolder(folder), data, ())
    if mistakes:
        raise ValueError("; ".join(f"{m.what} ({m.fix})" if m.fix else m.what for m in mistakes))
    assert isinstance(value, Named), "a resolved name is always a Named section"
    return value


def _plain(value: Any, *, with_defaults: bool) -> Any:
    if isinstance(value, BaseModel):
        return _dumped(value, with_defaults=with_defaults)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, with_defaults=with_defaults) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, with_defaults=with_defaults) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def _fields(section: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for key, info in section.model_fields.items():
        yield info.alias or key, info


def _keys(section: type[BaseModel]) -> list[str]:
    return [key for key, _ in _fields(section)]


def choice_of(info: FieldInfo) -> FromFolder | OneOf | None:
    """The choice of names a field offers, or None; the mark may sit inside a list or an optional."""
    for mark in info.metadata:
        if isinstance(mark, FromFolder | OneOf):
            return mark
    return _choice_in(info.annotation)


def _choice_in(annotation: Any) -> FromFolder | OneOf | None:
    if get_origin(annotation) is Annotated:
        for mark in get_args(annotation)[1:]:
            if isinstance(mark, FromFolder | OneOf):
                return mark
    for argument in get_args(annotation):
        found = _choice_in(argument)
        if found is not None:
            return found
    return None


def _resolve(choice: FromFolder | OneOf, data: Any, path: Path) -> tuple[Any, list[Mistake]]:
    """Replace a name, a mapping with a name, or a list of them by validated sections."""
    if data is None or isinstance(data, Section):
        return data, []
    if isinstance(data, list):
        pairs = [_resolve(choice, item, (*path, i)) for i, item in enumerate(data)]
        return [value for value, _ in pairs], [m for _, found in pairs for m in found]
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        known = ", ".join(choice.names())
        return data, [Mistake(path, f"expected a name or a mapping with a name, found {data!r}", f"names: {known}")]
    name = data["name"]
    if name not in choice.names():
        what = f"no {choice.kind} named {name!r}"
        return data, [Mistake((*path, "name"), what, nearest(name, choice.names()))]
    rest = {key: value for key, value in data.items() if key != "name"}
    section, mistakes = parse(choice.section(name), rest, path)
    return (data if section is None else section), mistakes


def _explain(section: type[BaseModel], error: ValidationError, path: Path) -> Iterator[Mistake]:
    for detail in error.errors(include_url=False):
        location = tuple(detail["loc"])
        owner = _owner(section, location[:-1])
        where = (*path, *(part for part in location if not _is_tag(part)))
        match detail["type"]:
            case "extra_forbidden":
                fix = nearest(str(location[-1]), _keys(owner)) if owner else ""
                yield Mistake(where, f"unknown key {str(location[-1])!r}", fix)
            case "missing":
                described = _description(owner, str(location[-1]))
                yield Mistake(where, f"the key {str(location[-1])!r} is missing", described)
            case "literal_error" | "enum" if isinstance(detail["input"], str):
                allowed = re.findall(r"'([^']+)'", str(detail["ctx"]["expected"]))
                yield Mistake(where, f"{detail['input']!r} is no {location[-1]}", nearest(detail["input"], allowed))
            case "value_error":
                yield Mistake(where, str(detail["ctx"]["error"]))
            case "default_factory_not_called":
                continue  # a default that follows from another key, whose own mistake is reported
            case _:
                yield Mistake(where, f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, found {detail['input']!r}")


def _is_tag(part: str | int) -> bool:
    """pydantic adds the name of a union's member to a path; those are no keys of the recipe."""
    return isinstance(part, str) and (
        part.endswith("]") or part in ("int", "float", "str", "bool") or part[:1].isupper()
    )


def _owner(section: type[BaseModel], location: Path) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = section
    for part in location:
        if isinstance(part, int) or _is_tag(part) or owner is None:
            continue
        info = dict(_fields(owner)).get(part)
        owner = _section_in(info.annotation) if info else None
    return owner


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one (not counting those chosen by name)."""
    return None if choice_of(info) else _section_in(info.annotation)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_in(argument)
        if found is not None:
            return found
    return None


def _description(owner: type[BaseModel] | None, key: str) -> str:
    info = dict(_fields(owner)).get(key) if owner else None
    return f"{key}: {info.description.splitlines()[0]}" if info and info.description else ""
