"""What the load test found, as Markdown."""

from __future__ import annotations

from collections import Counter
from typing import Any

import harness


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Load and faults",
            "",
            _summary(found),
            "",
            "## Requests and answers",
            "",
            "429 is a full queue, with Retry-After; 503 came only around a kill. `left` are clients that hung up.",
            "",
            _answers(found["kinds"]),
            "",
            "## Engines killed",
            "",
            _kills(found["kills"]),
            "",
            "## Memory at the beginning of each minute",
            "",
            _memory(found["memory"]),
            "",
            _growth(found["growth"]),
            "",
            f"`{found['command']}`; {found['machine']}; {found['threads']} compute thread(s).",
            "",
        ]
    )


def _summary(found: dict[str, Any]) -> str:
    first = found["first_s"]
    verdict = "Every rule held." if not found["broken"] else f"**{found['broken_count']} things went wrong.**"
    wrong = "".join(f"\n- {one}" for one in found["broken"])
    return (
        f"{found['began']} to {found['ended']}: {found['sent']:,} requests in {found['minutes']:g} minutes, at twice "
        f"the capacity of {found['capacity']:.1f} requests a second, and wrong ones beside them. {verdict} "
        f"{first['count']:,} streams began after {first['p50']:.2f} s at the median and {first['p99']:.2f} s at the "
        f"99th percentile; a full queue allows {found['first_bound_s']:.2f} s, and the client itself was late by "
        f"{found['late_p99_s']:.2f} s at its 99th. {found['excused']:,} requests failed "
        f"because the engine was killed.{wrong}"
    )


def _answers(kinds: dict[str, dict[str, int]]) -> str:
    statuses = sorted({status for told in kinds.values() for status in told}, key=lambda one: (not one.isdigit(), one))
    total = Counter[str]()
    rows = [["", "sent", *statuses]]
    for name, told in kinds.items():
        total.update(told)
        rows.append([name, f"{sum(told.values()):,}", *(f"{told[s]:,}" if s in told else "" for s in statuses)])
    rows.append(["all", f"{total.total():,}", *(f"{total[status]:,}" for status in statuses)])
    return harness.markdown(rows)


def _kills(kills: list[dict[str, float]]) -> str:
    rows = [["process", "killed after, s", "ready again after, s"]]
    rows += [[str(one["pid"]), f"{one['at_s']:.1f}", f"{one['back_s'] - one['at_s']:.1f}"] for one in kills]
    return harness.markdown(rows)


def _memory(memory: list[dict[str, float]]) -> str:
    rows = [["minute", "front, MB", "engine, MB", "engine's process"]]
    for one in memory:
        rows.append(
            [str(one["minute"]), f"{one['front_mb']:.0f}", f"{one['engine_mb']:.0f}", str(one["engine_pid"] or "none")]
        )
    return harness.markdown(rows)


def _growth(growth: dict[str, float | None]) -> str:
    told = [f"{name} {slope:+.2f}" for name, slope in growth.items() if slope is not None]
    if not told:
        return "Too short a run to say how memory grows."
    return f"Growth in MB a minute, from five minutes after the start of each process: {', '.join(told)}."
