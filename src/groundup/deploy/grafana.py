"""A Grafana board for groundup servers, from one table of panels.

`groundup deploy --to grafana` writes it as JSON for Grafana's import dialog or its provisioning folder.
The data source and the model are chosen on the board itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTH = 24
"""Grafana's grid has so many columns."""
_BY = "model_name"
_HERE = 'model_name=~"$model"'


@dataclass(frozen=True)
class Panel:
    """A graph: its title, its lines as (query, legend), the unit of its axis (Grafana's name) and a line of help."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    text: str = ""


def _rate(name: str, by: str = _BY, where: str = _HERE) -> str:
    return f"sum by ({by}) (rate(groundup:{name}{{{where}}}[$__rate_interval]))"


def _quantiles(name: str, where: str = _HERE) -> tuple[tuple[str, str], ...]:
    """The middle, the slow and the slowest."""
    rate = f"sum by (le) (rate(groundup:{name}_bucket{{{where}}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {rate})", f"p{round(100 * q)}") for q in (0.5, 0.95, 0.99))


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What users feel",
        (
            Panel(
                "Time to first token",
                _quantiles("time_to_first_token_seconds"),
                "s",
                "From a request's arrival to its first token.",
            ),
            Panel(
                "Between tokens",
                _quantiles("inter_token_latency_seconds"),
                "s",
                "The pace at which an answer appears.",
            ),
            Panel(
                "Responses a second, by status",
                ((_rate("http_requests_total", "status", ""), "{{status}}"),),
                "reqps",
            ),
            Panel(
                "Refused before they ran",
                ((_rate("requests_rejected_total", "reason", ""), "{{reason}}"),),
                "reqps",
                "A full queue, limits of a key, requests too large.",
            ),
        ),
    ),
    (
        "Work",
        (
            Panel(
                "Tokens a second",
                (
                    (_rate("generation_tokens_total"), "generated, {{model_name}}"),
                    (_rate("prompt_tokens_total"), "prompt, {{model_name}}"),
                ),
            ),
            Panel(
                "Running and waiting",
                (
                    (f"sum by ({_BY}) (groundup:num_requests_running{{{_HERE}}})", "running, {{model_name}}"),
                    (f"sum by ({_BY}) (groundup:num_requests_waiting{{{_HERE}}})", "waiting, {{model_name}}"),
                ),
            ),
            Panel(
                "Whole requests",
                _quantiles("e2e_request_latency_seconds"),
                "s",
            ),
            Panel(
                "How requests end",
                ((_rate("request_success_total", "finished_reason"), "{{finished_reason}}"),),
                "reqps",
            ),
        ),
    ),
    (
        "The engine",
        (
            Panel(
                "Cache in use",
                (
                    (
                        f"max by ({_BY}, engine) (groundup:kv_cache_usage_perc{{{_HERE}}})",
                        "{{model_name}} on {{engine}}",
                    ),
                ),
                "percentunit",
            ),
            Panel(
                "Prompt tokens found in the prefix cache",
                (
                    (
                        f"{_rate('prefix_cache_hits_total')} / {_rate('prefix_cache_queries_total')}",
                        "{{model_name}}",
                    ),
                ),
                "percentunit",
            ),
            Panel(
                "Requests computed again for want of cache",
                ((_rate("num_preemptions_total"), "{{model_name}}"),),
            ),
            Panel(
                "Engines: ready, and restarts in an hour",
                (
                    ("sum(groundup:engine_ready)", "ready"),
                    ("sum by (cause) (increase(groundup:engine_restarts_total[1h]))", "restarts: {{cause}}"),
                ),
            ),
            Panel(
                "Memory",
                (
                    ("groundup:engine_memory_bytes", "engine {{engine}}"),
                    ('process_resident_memory_bytes{job="groundup"}', "front"),
                ),
                "bytes",
            ),
            Panel("Time in the queue", _quantiles("request_queue_time_seconds"), "s"),
        ),
    ),
    (
        "Keys, and what is being tried",
        (
            Panel("Tokens a second, by key", ((_rate("key_generation_tokens_total", "key"), "{{key}}"),)),
            Panel("Requests a second, by key", ((_rate("key_requests_total", "key"), "{{key}}"),), "reqps"),
            Panel(
                "Canary: share of traffic, agreement",
                (
                    (f"groundup:canary_weight{{{_HERE}}}", "share, {{model_name}}"),
                    (f"groundup:canary_agreement_ratio{{{_HERE}}}", "agreement, {{model_name}}"),
                ),
                "percentunit",
            ),
            Panel(
                "Models that were not loaded",
                (
                    (
                        "sum by (model_name, cause) (increase(groundup:model_load_failures_total[1h]))",
                        "{{model_name}}: {{cause}}",
                    ),
                ),
            ),
        ),
    ),
)


def board(prefix: str = "groundup") -> dict[str, Any]:
    """The board as Grafana's JSON model (schema 39 and later), for metrics with this prefix."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}, "panels": []})
        y += 1
        for number, panel in enumerate(row):
            place = {"x": number % 2 * (WIDTH // 2), "y": y + number // 2 * 8, "w": WIDTH // 2, "h": 8}
            panels.append(_panel(panel, place, prefix))
        y += (len(row) + 1) // 2 * 8
    for number, each in enumerate(panels, start=1):
        each["id"] = number
    return {
        "uid": "groundup-serving",
        "title": "groundup: serving",
        "tags": ["groundup"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _model(prefix)]},
        "panels": panels,
    }


def queries(prefix: str = "groundup") -> list[str]:
    """Every query of the board."""
    return [target["expr"] for panel in board(prefix)["panels"] for target in panel.get("targets", ())]


def _panel(panel: Panel, place: dict[str, int], prefix: str) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "expr": query.replace("groundup:", f"{prefix}:"),
            "legendFormat": legend,
            "datasource": source,
        }
        for number, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model(prefix: str) -> dict[str, Any]:
    query = f"label_values({prefix}:num_requests_running, model_name)"
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": {"query": query, "refId": "model"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
