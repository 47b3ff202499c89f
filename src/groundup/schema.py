"""The recipe's JSON Schema, and the explanation of any key, both made from the sections' docstrings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from groundup import catalog
from groundup.config import choice_of, section_of
from groundup.errors import UserError, nearest
from groundup.recipe import Header


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file."""
    definitions: dict[str, Any] = {}
    kinds = {}
    for kind in catalog.names("stages"):
        section = _hoisted(catalog.load("stages", kind).Config.model_json_schema(), definitions)
        kinds[kind] = {"anyOf": [section, {"type": "null"}]}
    header = _hoisted(Header.model_json_schema(), definitions)
    stage = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": kinds,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "groundup recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["groundup", "stages"],
        "properties": {
            **header["properties"],
            "stages": {"type": "object", "minProperties": 1, "additionalProperties": stage},
        },
        "$defs": definitions,
    }


def _hoisted(section: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A section with every nested `$defs` moved to the top, where `#/$defs/…` points."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            for name, body in node.get("$defs", {}).items():
                definitions.setdefault(name, walk(body))
            return {key: walk(value) for key, value in node.items() if key != "$defs"}
        return [walk(item) for item in node] if isinstance(node, list) else node

    hoisted = walk(section)
    assert isinstance(hoisted, dict), "a section's schema is a mapping"
    return hoisted


def explain(key: str) -> str:
    """The meaning, type and default of a key such as `pretrain.tokens` or `models.gpt.d_model`.

    Also takes the long form `stages.base.pretrain.tokens`. Raises UserError with the nearest key.
    """
    parts = key.strip().split(".")
    if parts[0] == "stages" and len(parts) > 2 and parts[1] not in catalog.names("stages"):
        parts = parts[2:]
    if parts[0] == "stages" and len(parts) > 1:
        parts = parts[1:]
    if parts[0] in catalog.FOLDERS and len(parts) > 1:
        module, rest = catalog.load(parts[0], parts[1]), parts[2:]
    elif parts[0] in Header.model_fields:
        return _explain_field(parts[0], Header.model_fields[parts[0]])
    elif parts[0] in catalog.names("stages"):
        module, rest = catalog.load("stages", parts[0]), parts[1:]
    else:
        known = [*catalog.names("stages"), *catalog.FOLDERS, *Header.model_fields]
        raise UserError(f"there is no key {parts[0]!r}", fix=nearest(parts[0], known))
    return _walk(module.Config, module.__doc__ or "", rest, parts[0])


def _walk(section: type[BaseModel], doc: str, rest: list[str], trail: str) -> str:
    if not rest:
        lines = [doc.strip(), "", f"keys of {trail}:"]
        for name, info in section.model_fields.items():
            lines.append(
                f"  {info.alias or name}: {(info.description or '').splitlines()[0] if info.description else ''}"
            )
        return "\n".join(lines)
    fields = {info.alias or name: info for name, info in section.model_fields.items()}
    if rest[0] not in fields:
        raise UserError(f"{trail} has no key {rest[0]!r}", fix=nearest(rest[0], fields))
    info = fields[rest[0]]
    inner = section_of(info)
    if len(rest) > 1 and inner is not None:
        return _walk(inner, inner.__doc__ or "", rest[1:], f"{trail}.{rest[0]}")
    if len(rest) > 1:
        raise UserError(f"{trail}.{rest[0]} has no keys of its own")
    return _explain_field(f"{trail}.{rest[0]}", info)


def _explain_field(name: str, info: FieldInfo) -> str:
    default = "required" if info.is_required() else f"default: {info.get_default(call_default_factory=True)!r}"
    choice = choice_of(info)
    kind = f"a name: {', '.join(choice.names())}" if choice else _type(info.annotation)
    lines = [name, f"  {info.description or ''}".rstrip(), f"  type: {kind}", f"  {default}"]
    inner = section_of(info)
    if inner is not None:
        lines += [f"  keys: {', '.join(i.alias or n for n, i in inner.model_fields.items())}"]
    return "\n".join(line for line in lines if line.strip())


def _type(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")
