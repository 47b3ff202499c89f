"""The page at `/docs`: every route with its parameters, written out from the OpenAPI description.

No script, no style sheet and no font from elsewhere, so that it works without a network and under the strictest
content policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24;
  background: #fff }
h2 { margin-top: 2.5rem } code, pre { font: 14px/1.45 ui-monospace, monospace }
details { border: 1px solid #d0d7de; border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem }
summary { cursor: pointer } summary b { display: inline-block; min-width: 4.5rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .25rem .5rem;
  border-top: 1px solid #d0d7de }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } details, td, th { border-color:
  #30363d } a { color: #6cb6ff } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""The page's content policy: it may show its own text, and nothing else."""


def page(description: Mapping[str, Any]) -> str:
    """The description as HTML."""
    info = description["info"]
    groups: dict[str, list[str]] = {}
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            group = (route.get("tags") or ["other"])[0]
            groups.setdefault(group, []).append(_route(description, path, method, route))
    body = "".join(f"<h2>{escape(name)}</h2>{''.join(routes)}" for name, routes in groups.items())
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f'<p>{escape(info.get("description", ""))} <a href="openapi.json">openapi.json</a></p>{body}</body></html>'
    )


def _route(description: Mapping[str, Any], path: str, method: str, route: Mapping[str, Any]) -> str:
    head = f"<summary><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(route.get('summary', ''))}</summary>"
    text = f"<p>{escape(route.get('description', ''))}</p>"
    rows = [_row(one["name"], one.get("schema", {}), one.get("required", False)) for one in route.get("parameters", ())]
    for content in route.get("requestBody", {}).get("content", {}).values():
        rows += _fields(_resolved(description, content.get("schema", {})))
    table = f"<table><tr><th>key</th><th>type</th><th>meaning</th></tr>{''.join(rows)}</table>" if rows else ""
    return f"<details>{head}{text}{table}</details>"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        yield _row(name, field, name in required)


def _row(name: str, field: Mapping[str, Any], required: bool) -> str:
    default = "" if "default" not in field else f" = {json.dumps(field['default'])}"
    kind = f"{_kind(field)}{default}{' (required)' if required else ''}"
    meaning = escape(str(field.get("description", "")))
    return f"<tr><td><code>{escape(name)}</code></td><td><code>{escape(kind)}</code></td><td>{meaning}</td></tr>"


def _kind(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " | ".join(_kind(one) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return " | ".join(json.dumps(one) for one in field.get("enum", [field.get("const")]))
    kind = str(field.get("type", "any"))
    return f"{kind} of {_kind(field['items'])}" if kind == "array" and "items" in field else kind


def _resolved(description: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: Mapping[str, Any] = description.get("components", {}).get("schemas", {}).get(name, schema)
    return found
