"""What the fine-tuning benchmark found, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import harness
from harness import RESULTS


def section(found: dict[str, Any]) -> str:
    """The result on one job as a piece of Markdown."""
    job, rivals = found["job"], found["rivals"]
    ours = next(iter(rivals.values()))
    rows = [["", "samples/s", "groundup is faster by [95 %]", "peak memory", "start, s", "loss", "differs by"]]
    for name, each in rivals.items():
        speed = "–" if each is ours else harness.show_ratio(harness.ratio(ours["samples_s"], each["samples_s"]))
        began = f"{each['facts']['seconds'] + each['facts']['first_steps_s']:.0f}"
        curve = "–" if each is ours else _shown(**each["curve"])
        rate = f"{statistics.median(each['samples_s']):,.1f}"
        rows.append([name, rate, speed, harness.gib(each["peak_bytes"]), began, f"{each['last_loss']:.4f}", curve])
    flagged = "".join(f" **{name} strayed: {why}.**" for name, why in found["strayed"].items())
    busy = " **The machine was not idle.**" if found["busy"] else ""
    torch_versions = ", ".join(dict.fromkeys(each["facts"]["torch"] for each in rivals.values()))
    versions = ", ".join(dict.fromkeys(f"{n.split(',')[0]} {e['facts']['version']}" for n, e in rivals.items()))
    adapter = f"LoRA of rank {job['adapter']['rank']} on all layers; " if job["adapter"] else "All weights; "
    return "\n".join(
        [
            f"## {job['name']}: {job['model']}, fp32 on cpu",
            "",
            f"{adapter}{job['what']}. {found['rows']:,} rows of {found['mean_length']:.1f} tokens on average and "
            f"{found['longest']} at most; batches of {job['batch_rows']} in random order would be "
            f"{found['padding']:.0%} padding. {found['rounds']} rounds of {found['steps']} steps each, "
            f"{found['threads']} threads, seed {found['seed']}. groundup multiplies with "
            f"{ours['facts']['products']}.{busy}{flagged}",
            "",
            harness.markdown(rows),
            "",
            f"`{found['command']}`; {found['date']}; {found['machine']}; torch {torch_versions}; {versions}.",
            "",
        ]
    )


def _shown(difference: float, error: float | None) -> str:
    return f"{difference:+.4f}" if error is None else f"{difference:+.4f} ± {error:.4f}"


def write(jobs: Sequence[str], strayed: float) -> None:
    """Write the page of all jobs, from the figures kept beside it."""
    kept = [RESULTS / f"finetune-cpu-{name}.json" for name in jobs]
    parts = [json.loads(path.read_text()) for path in kept if path.is_file()]
    head = (
        "# Fine-tuning speed\n\nWritten by `bench/finetune.py`; the rules are in [the benches' README](../README.md). "
        "Ratios are geometric means over rounds with 95 % intervals. samples/s are real tokens a second over the mean "
        "length of a row, because a Trainer that groups by length sees other rows in a turn. Start is loading and the "
        "first steps; loss is the mean of the last round. `differs by` is the mean loss of a round beside groundup's, "
        f"in the round where it is most of its standard error: more than {strayed:g} of them (without dropout: 1 % in "
        "the last round), or another loss of the first batch, and it is no comparison. Only the latter is asked of a "
        "Trainer that groups by length.\n\n"
    )
    (RESULTS / "finetune-cpu.md").write_text(head + "\n".join(section(part) for part in parts))
