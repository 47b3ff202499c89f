"""What the benchmark of small networks on images found, as Markdown."""

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
    flagged = "".join(f" **{name} strayed: {why}.**" for name, why in found["strayed"].items())
    busy = " **The machine was not idle.**" if found["busy"] else ""
    versions = ", ".join(dict.fromkeys(part for e in rivals.values() for part in e["facts"]["version"].split(", ")))
    return "\n".join(
        [
            f"## {job['name']}: fp32 on cpu",
            "",
            f"MNIST: {job['what']}. Batches of {job['batch_rows']}, Adam at a constant rate of {job['lr']:g}; "
            f"{found['rounds']} rounds of an epoch each after a first one that is not timed; at most "
            f"{found['threads']} threads, seed {found['seed']}.{busy}{flagged}",
            "",
            harness.markdown(_training(rivals) if job["trains"] else _loading(rivals)),
            "",
            f"`{found['command']}`; {found['date']}; {found['machine']}; {versions}.",
            "",
        ]
    )


def _training(rivals: dict[str, Any]) -> list[list[str]]:
    """Rows of a table of who trains how fast."""
    ours = next(iter(rivals.values()))
    rows = [["", "images/s", "groundup is faster by [95 %]", "accuracy", "last loss", "peak memory", "start, s"]]
    for name, each in rivals.items():
        speed = "–" if each is ours else harness.show_ratio(harness.ratio(ours["images_s"], each["images_s"]))
        facts, rate = each["facts"], statistics.median(each["images_s"])
        began = f"{facts['seconds'] + facts['first_epoch_s']:.0f}"
        learnt = [f"{facts['accuracy']:.2%}", f"{each['last_loss']:.4f}"]
        rows.append([name, f"{rate:,.0f}", speed, *learnt, harness.gib(each["peak_bytes"]), began])
    return rows


def _loading(rivals: dict[str, Any]) -> list[list[str]]:
    """Rows of a table of who makes batches how fast, and what share of a training step that is."""
    rows = [["", "images/s", "share of the time of training"]]
    for name, each in rivals.items():
        change = next((other for other in rivals if other.startswith("training,") and "alone, aug" in name), "training")
        share = "–"
        if "alone" in name and change in rivals:
            share = f"{1 / harness.ratio(each['images_s'], rivals[change]['images_s'])[0]:.1%}"
        rows.append([name, f"{statistics.median(each['images_s']):,.0f}", share])
    return rows


def write(jobs: Sequence[str], strayed: float) -> None:
    """Write the page of all jobs, from the figures kept beside it."""
    kept = [RESULTS / f"vision-cpu-{name}.json" for name in jobs]
    parts = [json.loads(path.read_text()) for path in kept if path.is_file()]
    head = f"""# Speed of small networks

Written by `bench/vision.py`; the rules are in [the benches' README](../README.md). Ratios are geometric means over
rounds with 95 % intervals. All begin with the same weights and learn from the same pixels, from 0 to 1; groundup and
plain PyTorch see them in the same order, the others in orders of their own. Accuracy is that on the 10,000 test images
after the last round. Another loss of the first batch, or an accuracy that is more than {strayed:g} standard errors from
groundup's, and it is no comparison. Start is loading and the first epoch.

Batches are made in the thread that trains, so the share of the time that goes into them is what a faster loader could
save: the jobs `loader-mlp` and `loader-cnn` tell it.

"""
    (RESULTS / "vision-cpu.md").write_text(head + "\n".join(section(part) for part in parts))
