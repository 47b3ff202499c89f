"""Serving speed, side by side: groundup, `transformers serve` and llama.cpp's server, over HTTP.

    .venv-bench/bin/python bench/serve.py                          three models, all rivals: some hours
    .venv-bench/bin/python bench/serve.py --model llama-30m --clients 32 --rivals groundup llama
    .venv-bench/bin/python bench/serve.py --job threads            groundup with one, two, … compute threads
    .venv-bench/bin/python bench/serve.py --job edge               what HTTP adds to a request
    .venv-bench/bin/python bench/serve.py --quick --even-if-busy --no-save    does it run?

Every turn is a server started anew, warmed up, asked by 1, 8 and 32 clients at once, and stopped; turns rotate, so each
server is alone on the machine. All continue the same prompts, each a text of its own, by the same number of most likely
tokens. The page goes to standard output and, with the raw figures, to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import harness
import serve_edge
import serve_models
import serve_page
from harness import RESULTS, BenchError, say
from serve_load import Load, quantile_ms, run
from serve_servers import RIVALS, Groundup, Model, Prompt, Rival, fresh

JOBS = ("compare", "threads", "edge")
ALIKE = 0.9
"""The share of answers that must be groundup's own, letter by letter, where a rival computes in fp32 as well."""
WAVES = {1: 6, 8: 3}
"""Requests of each client, by the number of clients; two where nothing is said."""


def main() -> None:
    options = _options()
    RESULTS.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for job in options.job:
        try:
            failures += DO[job](options)
        except BenchError as error:
            sys.exit(f"error: {error}")
    if failures:
        sys.exit(f"error: not the same answers: {'; '.join(failures)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=JOBS, help="may be repeated; compare unless given")
    parser.add_argument(
        "--model", action="append", choices=serve_models.NAMES, help="may be repeated; all unless given"
    )
    parser.add_argument("--rivals", nargs="*", help="parts of names; all unless given")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="how many ask at once")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each rival; five or more to publish")
    parser.add_argument("--once", nargs="*", default=[], help="parts of names that take one turn only: the slow ones")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--threads", type=int, default=harness.psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all runs")
    parser.add_argument("--even-if-busy", action="store_true", help="do not wait for idle cores; the table says so")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print the page only")
    options = parser.parse_args()
    options.job, options.model = options.job or ["compare"], options.model or list(serve_models.NAMES)
    if options.quick:
        options.rounds, options.prompt_tokens, options.tokens = 1, 32, 8
    return options


def compare(options: argparse.Namespace) -> list[str]:
    """All rivals on each model, with equal threads; the names of those whose answers strayed."""
    rivals = chosen(RIVALS, options.rivals)
    failures = []
    for name in options.model:
        try:
            model = serve_models.model(name)
        except BenchError as error:
            say(f"{name} is left out: {error}")
            continue
        found = measured(model, rivals, options)
        if options.save:
            kept = RESULTS / f"serve-cpu-{name}-{options.threads}.json"
            kept.write_text(json.dumps(found, indent=1) + "\n")
            serve_page.write()
        print(serve_page.section(found))
        failures += [f"{name}: {rival} ({why})" for rival, why in found["strayed"].items()]
    return failures


def threads(options: argparse.Namespace) -> list[str]:
    """groundup with each number of compute threads that the machine has cores for."""
    cores = harness.psutil.cpu_count(logical=False) or 1
    numbers = sorted({1, max(1, cores - 1), cores})
    rivals = [Groundup(f"groundup, {n} thread{'s' if n > 1 else ''}", threads=n) for n in numbers]
    model = serve_models.model(options.model[0])
    found = measured(model, rivals, options)
    if options.save:
        (RESULTS / "serve-cpu-threads.json").write_text(json.dumps(found, indent=1) + "\n")
        serve_page.write()
    print(serve_page.section(found))
    return []


def edge(options: argparse.Namespace) -> list[str]:
    """What the server adds to a request of a model that costs next to nothing."""
    found = serve_edge.measured(serve_models.tiny(), rounds=options.rounds, quick=options.quick, idle=_idle(options))
    found |= _circumstances(options)
    if options.save:
        (RESULTS / "serve-cpu-edge.json").write_text(json.dumps(found, indent=1) + "\n")
        serve_page.write()
    print(serve_page.edge(found))
    return []


DO = {"compare": compare, "threads": threads, "edge": edge}


def chosen(rivals: Sequence[Rival], parts: Sequence[str] | None) -> list[Rival]:
    """The rivals whose names have one of the parts and that can be started here; what is missing is said."""
    wanted = [one for one in rivals if not parts or any(part in one.name for part in parts)]
    for one in wanted:
        if (why := one.missing()) is not None:
            say(f"{one.name} is left out: {why}")
    found = [one for one in wanted if one.missing() is None]
    if not found:
        raise BenchError("none of the rivals can be started here")
    return found


def measured(model: Model, rivals: Sequence[Rival], options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one model, as plain data."""
    turns: dict[str, list[dict[int, Load]]] = {rival.name: [] for rival in rivals}
    starts: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    peaks: dict[str, int] = {}
    idle = _idle(options)
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as folder:
        for number in range(options.rounds):
            prompts = _prompts(model, options, number)
            shift = number % len(rivals)
            for rival in [*rivals[shift:], *rivals[:shift]]:
                if number and any(part in rival.name for part in options.once):
                    continue
                idle()
                place = fresh(Path(folder), rival.name)
                loads, start_s, peak = asyncio.run(turn(rival, model, prompts, place, options))
                turns[rival.name].append(loads)
                starts[rival.name].append(start_s)
                peaks[rival.name] = max(peak, peaks.get(rival.name, 0))
                shown = ", ".join(f"{clients}: {load.tokens_s:,.0f}" for clients, load in loads.items())
                say(f"round {number + 1}/{options.rounds}  {rival.name:<42} tokens/s {shown}")
    return _found(model, rivals, options, turns, starts, peaks)


def _prompts(model: Model, options: argparse.Namespace, number: int) -> dict[int, list[Prompt]]:
    """The prompts of one round by the number of clients (0: to warm up); new ones each round, the same for all."""
    texts = serve_models.prompts(model.folder, options.prompt_tokens, options.seed + number)
    counts = {clients: clients if options.quick else clients * WAVES.get(clients, 2) for clients in options.clients}
    found = {0: [*islice(texts, 4)]} | {clients: [*islice(texts, count)] for clients, count in counts.items()}
    if any(len(found[clients]) < count for clients, count in counts.items()):
        raise BenchError(f"there are not enough texts of {options.prompt_tokens} tokens")
    return found


async def turn(
    rival: Rival, model: Model, prompts: dict[int, list[Prompt]], folder: Path, options: argparse.Namespace
) -> tuple[dict[int, Load], float, int]:
    """One turn of a rival: its loads by the number of clients, the seconds of its start, and its peak memory."""
    server = await rival.start(model, folder, rival.threads or options.threads)
    try:
        # Twice: what compiles for the sizes it meets, or builds its cache for the first request, does so before.
        for clients in (1, 4):
            await run(rival, server, model, prompts[0], clients=clients, tokens=options.tokens)
        loads = {}
        for clients in options.clients:
            await asyncio.sleep(0.5)
            loads[clients] = await run(rival, server, model, prompts[clients], clients=clients, tokens=options.tokens)
        return loads, server.start_s, server.peak_bytes()
    finally:
        await asyncio.to_thread(server.stop)


def _idle(options: argparse.Namespace) -> Any:
    return (lambda: None) if options.even_if_busy else harness.wait_until_idle


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": " ".join(["bench/serve.py", *sys.argv[1:]]),
        "busy": options.even_if_busy,
        "machine": harness.machine(),
        "date": datetime.date.today().isoformat(),
    }


def _found(
    model: Model,
    rivals: Sequence[Rival],
    options: argparse.Namespace,
    turns: dict[str, list[dict[int, Load]]],
    starts: dict[str, list[float]],
    peaks: dict[str, int],
) -> dict[str, Any]:
    ours = turns[rivals[0].name]
    alike = {rival.name: _alike(ours, turns[rival.name]) for rival in rivals}
    exact = [rival for rival in rivals if rival.is_exact]
    strayed = {one.name: f"{alike[one.name]:.0%} of the answers" for one in exact if alike[one.name] < ALIKE}
    return _circumstances(options) | {
        "model": {"name": model.name, "parameters": model.parameters, "what": model.what},
        "threads": options.threads,
        "rounds": options.rounds,
        "prompt_tokens": options.prompt_tokens,
        "tokens": options.tokens,
        "seed": options.seed,
        "rivals": {
            rival.name: {
                "version": rival.version(),
                "flags": list(rival.flags),
                "threads": rival.threads or options.threads,
                "start_s": starts[rival.name],
                "peak_bytes": peaks[rival.name],
                "alike": alike[rival.name],
                "clients": {str(c): _level([turn[c] for turn in turns[rival.name]]) for c in options.clients},
            }
            for rival in rivals
        },
        "strayed": strayed,
    }


def _level(loads: Sequence[Load]) -> dict[str, Any]:
    """One number of clients over all rounds: rates and medians by round, quantiles over all answers."""
    first = [s for load in loads for s in load.first_s]
    pauses = [s for load in loads for s in load.pauses_s]
    tokens = sum(load.tokens for load in loads)
    seconds = sum(load.seconds for load in loads)
    return {
        "requests": sum(len(load.texts) for load in loads),
        "tokens_s": [load.tokens_s for load in loads],
        "first_p50_s": [statistics.median(load.first_s) for load in loads],
        "first_ms": {"p50": quantile_ms(first, 0.5), "p99": quantile_ms(first, 0.99)},
        "pause_ms": {"p50": quantile_ms(pauses, 0.5), "p99": quantile_ms(pauses, 0.99)},
        "tokens_per_piece": tokens / sum(load.pieces for load in loads),
        "client_cores": sum(load.client_cpu_s for load in loads) / seconds,
        "server_cores": sum(load.server_cpu_s for load in loads) / seconds,
    }


def _alike(ours: Sequence[dict[int, Load]], theirs: Sequence[dict[int, Load]]) -> float:
    """The share of answers that are the same letter by letter, of the rounds that both took part in."""
    pairs = [
        (a, b)
        for mine, other in zip(ours, theirs, strict=False)
        for clients in mine
        for a, b in zip(mine[clients].texts, other[clients].texts, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


if __name__ == "__main__":
    main()
