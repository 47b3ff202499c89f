"""Whether models fit into memory, and how fast they will be, before anything is loaded.

Memory is weights, cache, the workspace of a step, and the process itself, against what is free for this process
(its control group's limit too). Speed follows from two figures of the machine, both measured here in a fraction of a
second: generating is bound by memory, since every token makes the machine read the weights, and reading a prompt
by arithmetic. The rule for generation is the one that vLLM's maintainers give (vllm-project/vllm#7379): tokens/s
are 0.55 to 0.8 of bandwidth divided by bytes read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from groundup.errors import UserError
from groundup.machine import free_memory, usable_cores
from groundup.serving.inputs import cost_of
from groundup.serving.models import WIDTH, Facts, Options
from groundup.units import show_bytes, show_count

PROCESS = 400 << 20
"""Bytes that the engine process takes with torch and without a model."""
SPARE = 0.05
"""The share of free memory that is left alone."""
CACHE_SHARE = 0.5
"""The share of what is left beside weights that the caches take, unless their size is given."""
CACHE_MOST = 4 << 30
"""Bytes of a cache whose size is not given: a server that was not asked to does not take half of a large machine."""
DECODE, PREFILL = 0.65, 0.6
"""The shares of bandwidth and of arithmetic that are reached in practice."""
MAPS = 64
"""Numbers that a layer and its neighbours hold for each number of an array that is read: an image becomes maps."""
PROBE_BYTES = 64 << 20
"""Read in one go to measure bandwidth: more than a core's share of any cache."""


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    free_bytes: int
    bandwidth: float
    """Bytes a second that are read from memory, by as many threads as compute."""
    arithmetic: float
    """Operations a second of fp32 matrix products."""


@dataclass(frozen=True)
class Need:
    """The memory of one model."""

    weights: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.cache + self.workspace


@dataclass(frozen=True)
class Speed:
    """What to expect of a model that continues texts, in tokens a second."""

    prompt: float
    alone: float
    """Generated for one client."""
    together: float
    """Generated for as many clients as may run at the same time, in all."""
    sequences: int
    """How many those are."""


def need(facts: Facts, options: Options, *, room: int) -> Need:
    """The memory a model takes where `room` bytes are left for it.

    The cache is as large as was asked for; else a share of what is left, but no more than CACHE_MOST or all sequences
    at full length, and at least one of them.
    """
    weights, workspace = facts.weight_bytes, _workspace(facts, options)
    one = _context(facts, options) * facts.token_bytes
    if options.cache_bytes is not None or not one:
        return Need(weights, options.cache_bytes or 0, workspace)
    left = int((room - weights - workspace) * CACHE_SHARE)
    return Need(weights, max(one, min(left, CACHE_MOST, one * options.max_sequences)), workspace)


def require(models: Mapping[str, tuple[Facts, Options]], free_bytes: int) -> dict[str, Need]:
    """The memory of each of several models that are to be loaded. Raises UserError where they do not fit."""
    room = int(free_bytes * (1 - SPARE)) - PROCESS
    fixed = sum(facts.weight_bytes + _workspace(facts, options) for facts, options in models.values())
    caching = [name for name, (facts, _) in models.items() if facts.token_bytes] or [""]
    found: dict[str, Need] = {}
    for name, (facts, options) in models.items():
        own = facts.weight_bytes + _workspace(facts, options)
        found[name] = need(facts, options, room=own + (room - fixed) // len(caching))
    total = sum(one.total for one in found.values())
    if total > room:
        shown = ", ".join(f"{name} {show_bytes(one.total)}" for name, one in found.items())
        what = f"{show_bytes(total + PROCESS)} are needed ({shown}) and {show_bytes(free_bytes)} of memory are free"
        raise UserError(what, fix=_remedy(models, found, room))
    return found


def settled(models: Mapping[str, tuple[Facts, Options]], free_bytes: int) -> dict[str, tuple[Facts, Options]]:
    """The same models with the size of each cache settled, so that it is the same however they are loaded.

    Raises UserError where they do not fit.
    """
    found = require(models, free_bytes)
    return {
        name: (facts, replace(options, cache_bytes=found[name].cache) if facts.token_bytes else options)
        for name, (facts, options) in models.items()
    }


def _remedy(models: Mapping[str, tuple[Facts, Options]], found: Mapping[str, Need], room: int) -> str:
    """What would fit, in the order of what costs least: a smaller cache, a shorter context, fewer models."""
    fixed = sum(one.weights + one.workspace for one in found.values())
    if fixed >= room:
        others = "serve fewer models at once, " if len(models) > 1 else ""
        missing = show_bytes(fixed - room)
        return f"{others}free {missing} more, or serve a smaller model: the weights alone do not fit"
    left = (room - fixed) // max(1, sum(1 for facts, _ in models.values() if facts.token_bytes))
    ideas = []
    for name, (facts, options) in models.items():
        context = _context(facts, options)
        if facts.token_bytes and options.cache_bytes is not None and left >= context * facts.token_bytes:
            ideas.append(f"a cache of at most {show_bytes(left)} for {name}")
        elif facts.token_bytes and left < context * facts.token_bytes:
            ideas.append(f"a context of at most {left // facts.token_bytes} tokens for {name}")
    return "set " + (", ".join(ideas) or "smaller caches")


def speed(facts: Facts, options: Options, machine: Machine, sequences: int) -> Speed:
    """The tokens a second to expect of a model that continues texts, half its context being in use.

    Weights rounded to bf16 are half as much to read. How much faster a processor multiplies them is not measured, so
    that where arithmetic is the limit more may come than is promised.
    """
    cached = facts.token_bytes * _context(facts, options) // 2
    per_token = 2 * facts.read_bytes / WIDTH
    weights = facts.read_bytes
    if options.precision == "bf16":
        weights -= (facts.read_bytes - facts.head_bytes) // 2

    def a_step(count: int) -> float:
        reading = (weights + count * cached) / (DECODE * machine.bandwidth)
        return max(reading, count * per_token / (PREFILL * machine.arithmetic))

    prompt = PREFILL * machine.arithmetic / per_token
    return Speed(prompt, 1 / a_step(1), sequences / a_step(sequences), sequences)


def report(models: Mapping[str, tuple[Facts, Options]], machine: Machine) -> list[str]:
    """What `groundup serve --plan` prints: memory by model, and speed. Raises UserError where they do not fit."""
    found = require(models, machine.free_bytes)
    lines = []
    for name, (facts, options) in models.items():
        one = found[name]
        size = show_count(facts.parameters)
        lines.append(f"{name}: {facts.task}, {size} parameters, {facts.family}, digest {facts.digest[:12]}")
        parts = f"weights {show_bytes(one.weights)}, workspace {show_bytes(one.workspace)}"
        if not facts.token_bytes:
            lines.append(f"  memory   {parts}")
            continue
        tokens = one.cache // facts.token_bytes
        lines.append(f"  memory   {parts}, cache {show_bytes(one.cache)} ({show_count(tokens)} tokens)")
        context = _context(facts, options)
        sequences = max(1, min(options.max_sequences, 2 * tokens // context))
        rate = speed(facts, options, machine, sequences)
        lines.append(
            f"  speed    about {rate.alone:.3g} tokens/s for one client, {rate.together:.3g} for {rate.sequences} "
            f"together (texts of {context // 2} tokens); prompts {rate.prompt:.3g} tokens/s"
        )
    total = sum(one.total for one in found.values()) + PROCESS
    lines.append(
        f"in all {show_bytes(total)} of {show_bytes(machine.free_bytes)} free; "
        f"memory is read at {machine.bandwidth / 1e9:.3g} GB/s, {machine.arithmetic / 1e9:.3g} GFLOP/s"
    )
    return lines


def _context(facts: Facts, options: Options) -> int:
    return min(options.context or facts.context, facts.context)


def _workspace(facts: Facts, options: Options) -> int:
    """Bytes that a step needs beside weights and cache: scores over the vocabulary in several copies (drawing sorts
    them), and what a layer holds of its tokens at the same time, some sixteen times their width."""
    if facts.row_numbers:
        together = max(1, options.max_batch_tokens // cost_of(facts.row_numbers))
        return WIDTH * MAPS * facts.row_numbers * min(options.max_batch_rows, together)
    rows = options.max_sequences if facts.kind == "generate" else 0
    tokens = options.step_tokens if facts.kind == "generate" else options.max_batch_tokens
    return WIDTH * (4 * rows * facts.vocab_size + 16 * tokens * facts.width)


# ---------------------------------------------------------------------------------------- the machine


def measure(threads: int) -> Machine:
    """The machine's free memory, bandwidth and arithmetic for so many threads; takes about half a second."""
    return Machine(free_memory(), _bandwidth(threads), _arithmetic() * min(1.0, threads / usable_cores()))


def engine_threads(replicas: int = 1) -> int:
    """Compute threads of one engine of several, unless told: its share of all usable cores.

    The front leaves them alone: of 24 s with 32 clients on two cores it took 0.7, and two threads gave 1.4 to 1.5
    times the tokens of one, for models of 30 and of 134 million parameters.
    """
    return max(1, usable_cores() // replicas)


def _bandwidth(threads: int) -> float:
    # Each thread reads memory of its own; the largest of many numbers costs no arithmetic to speak of.
    parts = [np.ones(PROBE_BYTES // 4 // threads + 1, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return sum(part.nbytes for part in parts) / _best(lambda: list(pool.map(np.max, parts)))


def _arithmetic() -> float:
    """Of all usable cores: numpy's BLAS has threads of its own."""
    size = 768
    square = np.ones((size, size), np.float32)
    return 2 * size**3 / _best(lambda: square @ square)


def _best(work: Callable[[], object], *, seconds: float = 0.2) -> float:
    """The shortest time that some work took, done over and over for a while."""
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return best
