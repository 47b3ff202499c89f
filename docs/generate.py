"""Write the reference from the code: every key of a recipe, every command, every kind of error.

    python docs/generate.py [FOLDER]        # docs/reference/generated unless named

What is written follows from docstrings and annotations alone, so a page cannot say what the code does not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from groundup import catalog, cli, errors
from groundup.config import StageSection, choice_of, section_of
from groundup.recipe import Header

FOLDER = Path(__file__).resolve().parent / "reference" / "generated"


def main() -> None:
    """Write every page."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        (folder / f"{name}.md").write_text("\n".join(write()).rstrip() + "\n", encoding="utf-8")


def recipe_page() -> Iterator[str]:
    """All keys of a recipe."""
    yield "# The recipe"
    yield ""
    yield "Keys at the top of the file, then one section per kind of stage. Counts take units (`500`, `20k`, `5M`,"
    yield "`8Ki`), shares a percent sign (`5%`), durations a unit (`30min`). Unknown keys are errors."
    yield ""
    yield "## At the top"
    yield ""
    yield from table(Header)
    for kind in catalog.names("stages"):
        module = catalog.load("stages", kind)
        yield f"## {kind}"
        yield ""
        yield paragraph(module)
        yield ""
        reads = ", ".join(f"`{key}:` a {wanted.replace('|', ' or a ')}" for key, wanted in module.READS.items())
        yield f"Reads {reads or 'files named in the recipe'}; writes a {module.WRITES}."
        yield ""
        yield from keys(module.Config, kind)


def folder_page(folder: str, title: str, text: str) -> Iterator[str]:
    """The files of an open folder, with their keys."""
    yield f"# {title}"
    yield ""
    yield text
    yield ""
    for name in catalog.names(folder):
        module = catalog.load(folder, name)
        yield f"## {name}"
        yield ""
        yield from module_text(module)
        yield ""
        yield from keys(module.Config, f"{name}'s")


def training_page() -> Iterator[str]:
    """Optimizers and schedules, with their keys."""
    from groundup.training.optimizers import OPTIMIZERS
    from groundup.training.schedules import SCHEDULES

    yield "# Optimizers and schedules"
    yield ""
    yield "Named by `optimizer: {name: …}` and `schedule: {name: …}` of every stage that trains."
    for title, choices in (("Optimizers", OPTIMIZERS), ("Schedules", SCHEDULES)):
        yield ""
        yield f"## {title}"
        for name, section in choices.items():
            yield ""
            yield f"### {name}"
            yield ""
            yield inspect.getdoc(section) or ""
            yield ""
            yield from table(section, leave_out={"name"})


def commands_page() -> Iterator[str]:
    """The command line."""
    yield "# Commands"
    yield ""
    yield inspect.getdoc(cli.main) or ""
    for name, command in sorted(commands(typer.main.get_command(cli.app))):
        yield ""
        yield f"## groundup {name}"
        yield ""
        yield command.help or ""
        yield ""
        yield "| argument or option | meaning | default |"
        yield "|---|---|---|"
        for parameter in command.params:
            shown = ", ".join(f"`{each}`" for each in [*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "argument":
                shown = f"`{parameter.name.upper()}`"
            default = "" if parameter.default in (None, "", False) or callable(parameter.default) else parameter.default
            needed = "required" if parameter.required else f"`{default}`" if default != "" else ""
            yield f"| {shown} | {cell(getattr(parameter, 'help', None) or '')} | {needed} |"


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of a group and of the groups in it, with its whole name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def errors_page() -> Iterator[str]:
    """The tree of errors."""
    yield "# Errors and exit codes"
    yield ""
    yield "Every error says what was wrong, where (file, line and key) and what to do. 0 is success."
    yield ""
    yield "| error | exit code | when |"
    yield "|---|---|---|"
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.GroundupError):
            yield f"| {name} | {kind.exit_code} | {cell(inspect.getdoc(kind) or '')} |"


def keys(section: type[BaseModel], owner: str) -> Iterator[str]:
    """The table of a section, then those of the sections inside it."""
    shared = StageSection.model_fields if section is not StageSection and issubclass(section, StageSection) else {}
    yield from table(section, leave_out=set(shared) & {"seed"})
    for key, info in section.model_fields.items():
        inner = None if choice_of(info) else section_of(info)
        if inner is not None:
            yield f"### {owner} {info.alias or key}"
            yield ""
            yield inspect.getdoc(inner) or ""
            yield ""
            yield from table(inner)


def table(section: type[BaseModel], leave_out: set[str] = frozenset()) -> Iterator[str]:  # type: ignore[assignment]
    """Key, type, default and meaning of every field, as Markdown."""
    schema = section.model_json_schema(by_alias=True).get("properties", {})
    rows = [(key, info) for key, info in section.model_fields.items() if key not in leave_out]
    if not rows:
        yield "No keys of its own."
        yield ""
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, info in rows:
        name = info.alias or key
        kind = " or ".join(dict.fromkeys(type_of(info, schema.get(name, {}))))
        yield f"| `{name}` | {cell(kind)} | {cell(default_of(info))} | {cell(info.description or '')} |"
    yield ""


def type_of(info: FieldInfo, schema: dict[str, Any]) -> Iterator[str]:
    """The type of a field in words, from its JSON Schema."""
    choice = choice_of(info)
    if choice is not None:
        yield f"a name ({', '.join(choice.names())}), or a mapping with `name`"
    elif section_of(info) is not None:
        yield "a mapping, see below" + (" (or a list of them)" if "list[" in str(info.annotation) else "")
    else:
        yield from words(schema)


def words(schema: dict[str, Any]) -> Iterator[str]:
    """A JSON Schema in words, alternatives one by one."""
    for alternative in schema.get("anyOf", ()):
        yield from words(alternative)
    if "enum" in schema or "const" in schema:
        yield from (f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    elif "examples" in schema:
        yield "such as " + ", ".join(f"`{example}`" for example in schema["examples"])
    elif schema.get("type") == "array":
        inner = " or ".join(words(schema.get("items", {})))
        yield f"list of {inner}" if inner else "list"
    elif isinstance(schema.get("type"), str):
        yield {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "mapping"}.get(
            schema["type"], schema["type"]
        )


def default_of(info: FieldInfo) -> str:
    """The default of a field as a recipe would write it."""
    if info.is_required():
        return "required"
    if info.default_factory is not None and info.default_factory not in (list, dict, tuple):
        return "depends"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return f"`{name}`" if isinstance(name, str) else "its own defaults"
    if value == "":
        return ""
    shown = {None: "", True: "`true`", False: "`false`"}.get(value if value is None or isinstance(value, bool) else "")
    return shown if shown is not None else f"`{list(value) if isinstance(value, tuple) else value}`"


def module_text(module: Any) -> Iterator[str]:
    """A module's docstring without its legend of axes."""
    yield from (inspect.getdoc(module) or "").split("\n")


def paragraph(module: Any) -> str:
    """The first paragraph of a module's docstring."""
    return (inspect.getdoc(module) or "").split("\n\n")[0]


def cell(text: str) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {
    "recipe": recipe_page,
    "models": lambda: folder_page("models", "Models", "Named by `model: {name: …}`. One file, one family."),
    "tasks": lambda: folder_page("tasks", "Tasks", "Named by `task: {name: …}`: what a model is trained for."),
    "training": training_page,
    "commands": commands_page,
    "errors": errors_page,
}

if __name__ == "__main__":
    main()
