"""What the serving benchmark found, as Markdown."""

from __future__ import annotations

import json
import statistics
from typing import Any

import harness
import serve_edge
from harness import RESULTS

PAGE = RESULTS / "serve-cpu.md"
HEAD = """# Serving speed

Written by `bench/serve.py`; the rules are in [the benches' README](../README.md). Each turn is a server started anew
and alone on the machine but for the client, whose own share of a core stands in the last column. Clients ask again as
soon as they have their answer. Tokens/s are medians over rounds, of answers alone; ratios are geometric means over
rounds with 95 % intervals; times are quantiles over all answers: to the first text, and between arrivals of text.
Alike is the share of answers that are groundup's letter by letter: in fp32 it is less than all only where two tokens
are all but equally likely, and llama.cpp computes with matrices in F16. Memory is the peak resident set of all of a
server's processes, added up; start is from the command to the first yes of its health check.

"""


def section(found: dict[str, Any]) -> str:
    """The result on one model as a piece of Markdown."""
    model, rivals = found["model"], found["rivals"]
    ours = next(iter(rivals))
    busy = " **The machine was not idle.**" if found["busy"] else ""
    flagged = "".join(f" **{name} strayed: {why} alike.**" for name, why in found["strayed"].items())
    about = (
        f"{model['parameters'] / 1e6:.1f} M parameters, {model['what']}. Prompts of {found['prompt_tokens']} tokens, "
        f"answers of {found['tokens']}; {found['rounds']} rounds.{busy}{flagged}"
    )
    parts = [f"## {model['name']}, {_threads(found)}", "", about, ""]
    for clients in rivals[ours]["clients"]:
        count = rivals[ours]["clients"][clients]["requests"] // found["rounds"]
        parts += [f"### {clients} {'client' if clients == '1' else 'clients'}, {count} requests a round", ""]
        parts += [_table(rivals, ours, clients), ""]
    parts += [_servers(rivals), ""]
    versions = "; ".join(dict.fromkeys(each["version"] for each in rivals.values()))
    return "\n".join([*parts, f"`{found['command']}`; {found['date']}; {found['machine']}; {versions}.", ""])


def _threads(found: dict[str, Any]) -> str:
    numbers = sorted({each["threads"] for each in found["rivals"].values()})
    return f"{' and '.join(map(str, numbers))} compute thread{'s' if numbers != [1] else ''}"


def _table(rivals: dict[str, Any], ours: str, clients: str) -> str:
    first = rivals[ours]["clients"][clients]
    rows = [
        ["", "tokens/s", f"{ours} is faster by [95 %]", "first text p50 / p99, ms", "pause p50 / p99, ms",
         "tokens a piece", "server, cores", "client, cores"],
    ]  # fmt: skip
    for name, each in rivals.items():
        one = each["clients"][clients]
        turns = len(one["tokens_s"])
        found = harness.ratio(first["tokens_s"][:turns], one["tokens_s"])
        speed = "–" if name == ours else harness.show_ratio(found) if turns > 1 else f"{found[0]:.2f}"
        rows.append(
            [
                name if turns == len(first["tokens_s"]) else f"{name} (round 1 only)",
                f"{statistics.median(one['tokens_s']):,.1f}",
                speed,
                f"{one['first_ms']['p50']:,.0f} / {one['first_ms']['p99']:,.0f}",
                f"{one['pause_ms']['p50']:,.1f} / {one['pause_ms']['p99']:,.1f}",
                f"{one['tokens_per_piece']:.2f}",
                f"{one['server_cores']:.2f}",
                f"{one['client_cores']:.3f}",
            ]
        )
    return harness.markdown(rows)


def _servers(rivals: dict[str, Any]) -> str:
    rows = [["", "flags", "threads", "peak memory", "start, s", "alike"]]
    for name, each in rivals.items():
        flags = " ".join(f"`{flag}`" for flag in each["flags"]) or "–"
        start = f"{statistics.median(each['start_s']):.1f}"
        rows.append([name, flags, str(each["threads"]), harness.gib(each["peak_bytes"]), start, f"{each['alike']:.0%}"])
    return harness.markdown(rows)


def edge(found: dict[str, Any]) -> str:
    """What HTTP adds, as a piece of Markdown."""
    rows = [["tokens of the answer", "over HTTP, ms", "in the engine, ms", "added, ms (each round)"]]
    for tokens, told in found["answers"].items():
        added = serve_edge.added_ms(told)
        each = ", ".join(f"{ms:.2f}" for ms in added)
        http, engine = statistics.median(told["http_ms"]), statistics.median(told["engine_ms"])
        rows.append([tokens, f"{http:.2f}", f"{engine:.2f}", f"{statistics.median(added):.2f} ({each})"])
    busy = " **The machine was not idle.**" if found["busy"] else ""
    return "\n".join(
        [
            "## What the server adds to a request",
            "",
            f"A model of one layer ({found['model']['parameters']:,} parameters), one request at a time, prompts of "
            f"{found['prompt_tokens']} tokens as text, {found['requests']} requests a round, {found['rounds']} rounds: "
            f"medians over HTTP with a key and all guards, and of the engine's own steps.{busy}",
            "",
            harness.markdown(rows),
            "",
            f"`{found['command']}`; {found['date']}; {found['machine']}.",
            "",
        ]
    )


def write() -> None:
    """Write the page, from the figures kept beside it."""
    parts = []
    for path in sorted(RESULTS.glob("serve-cpu-*.json")):
        found = json.loads(path.read_text())
        parts.append(edge(found) if "answers" in found else section(found))
    PAGE.write_text(HEAD + "\n".join(parts))
