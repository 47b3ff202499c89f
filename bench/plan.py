"""Does `plan` tell the truth? Its predictions beside what then happened.

For the quickstart's pretraining, and for a model of twice the width, `groundup plan` predicts peak
memory and CPU time; then the stage runs in a process of its own whose peak resident set and CPU time
the operating system counts. Targets: memory within 10 %, CPU time within 20 %.

    python bench/plan.py [--recipe recipes/quickstart.yaml] [--stage base] [--rounds 1] [--set KEY=VALUE …]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench/results/plan.md"


@dataclass(frozen=True)
class Outcome:
    """A prediction and what happened."""

    name: str
    predicted: dict[str, float]
    measured: dict[str, float]

    def off(self, key: str) -> float:
        """How far the prediction was off, as a share of what happened."""
        return self.predicted[key] / self.measured[key] - 1


def groundup(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "groundup", *arguments]


def predict(recipe: Path, stage: str, overrides: list[str]) -> dict[str, float]:
    command = groundup("plan", str(recipe), "--json", "--quiet", *overrides)
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    forecast: dict[str, Any] = made["stages"][stage]
    return {"peak_bytes": forecast["peak_bytes"], "cpu_s": forecast["cpu_s"], "seconds": forecast["seconds"]}


def measure(recipe: Path, stage: str, overrides: list[str]) -> dict[str, float]:
    """Run one stage whose inputs are fresh; the operating system's account of its process."""
    process = subprocess.Popen(groundup("run", str(recipe), stage, "--quiet", *overrides))
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"the run failed with status {status}")
    manifest = json.loads(Path("runs/quickstart", stage, "manifest.json").read_text(encoding="utf-8"))
    return {"peak_bytes": _peak(usage), "cpu_s": usage.ru_utime + usage.ru_stime, "seconds": manifest["wall_s"]}


def _peak(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compare(name: str, recipe: Path, stage: str, overrides: list[str]) -> Outcome:
    """Plan, run, and set the two beside each other."""
    flags = [word for override in overrides for word in ("--set", override)]
    # `evaluate` and `pretrain` read these; they must not be part of what is measured.
    subprocess.run(groundup("run", str(recipe), "words", "--quiet", *flags), check=True)
    predicted = predict(recipe, stage, flags)
    return Outcome(name, predicted, measure(recipe, stage, flags))


def table(outcomes: list[Outcome]) -> str:
    lines = [
        "| model | figure | predicted | measured | off |",
        "|---|---|---:|---:|---:|",
    ]
    for outcome in outcomes:
        for key, label, scale, unit in (
            ("peak_bytes", "peak memory", 2**20, "MiB"),
            ("cpu_s", "CPU time", 1, "s"),
            ("seconds", "wall time", 1, "s"),
        ):
            predicted, measured = outcome.predicted[key] / scale, outcome.measured[key] / scale
            values = f"{predicted:.0f} {unit} | {measured:.0f} {unit} | {outcome.off(key):+.1%}"
            lines.append(f"| {outcome.name} | {label} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--stage", default="base")
    parser.add_argument("--wide-tokens", default="500k", help="tokens for the wide model, to bound its time")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    recipe = options.recipe.resolve()
    wide = [
        f"stages.{options.stage}.pretrain.model.d_model=512",
        f"stages.{options.stage}.pretrain.model.n_heads=8",
        f"stages.{options.stage}.pretrain.tokens={options.wide_tokens}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outcomes = [
            compare("quickstart", recipe, options.stage, options.overrides),
            compare("twice the width", recipe, options.stage, [*options.overrides, *wide]),
        ]
        os.chdir(ROOT)
    head = f"# plan's predictions against what happened\n\n{date.today()}, `python bench/plan.py`, two cores."
    text = f"{head}\n\n{table(outcomes)}\n"
    print(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
