"""Training small networks on images, side by side: groundup, plain PyTorch with a DataLoader, Keras, scikit-learn.

    .venv-bench/bin/python bench/vision.py --data ../shared/data            all three jobs: half an hour and more
    .venv-bench/bin/python bench/vision.py --job mlp --rounds 9

`mlp` and `cnn` train on MNIST's 60,000 images of 28x28 pixels, a turn an epoch; whoever is compared must have learnt
as well at the end. `loader` sets how fast batches are made beside how fast they are used up. Keras needs
.venv-keras, which `make bench` makes. The table goes to standard output and, with the raw figures, to
bench/results/.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import vision_page
from harness import CACHE, RESULTS, ROOT, BenchError, Rival, Turns, Worker, say

HERE, KERAS = Path(sys.executable), ROOT / ".venv-keras" / "bin" / "python"
OURS = "groundup_images.py"
GROUNDUP = Rival("groundup", HERE, OURS)
DATALOADER = Rival("DataLoader", HERE, "torch_images.py")
ALONE = Rival("DataLoader, one thread", HERE, "torch_images.py", ("--one-thread",))
FUSED = Rival("DataLoader, fused Adam", HERE, "torch_images.py", ("--fused",))
INDEXED = Rival("no DataLoader, fused Adam", HERE, "torch_images.py", ("--indexed", "--fused"))
KERAS_TORCH = Rival("Keras on torch", KERAS, "keras_images.py", ("--backend", "torch"))
KERAS_TENSORFLOW = Rival("Keras on TensorFlow", KERAS, "keras_images.py", ("--backend", "tensorflow"))
SKLEARN = Rival("MLPClassifier", HERE, "sklearn_images.py")
LOADING = (
    Rival("training", HERE, OURS),
    Rival("loader alone", HERE, OURS, ("--loader",)),
    Rival("training, augmented", HERE, OURS, ("--augment",)),
    Rival("loader alone, augmented", HERE, OURS, ("--loader", "--augment")),
    Rival("loader alone, RandAugment, erasing, mixup and cutmix", HERE, OURS, ("--loader", "--mix")),
    Rival("DataLoader alone", HERE, "torch_images.py", ("--loader",)),
)
COMPARABLE = 1e-3
"""How far losses of the first batch may be from groundup's, relatively."""
STRAYED = 4.0
"""Standard errors by which accuracies may differ: each is a share of the same 10,000 test images."""


@dataclass(frozen=True)
class Job:
    """What is trained, and by whom. A turn is an epoch."""

    name: str
    model: dict[str, Any]
    batch_rows: int
    rounds: int
    """Epochs that are timed; one more comes before them."""
    rivals: tuple[Rival, ...]
    what: str
    lr: float = 1e-3

    @property
    def trains(self) -> bool:
        """Whether rivals are compared by what they learn; where loaders are, nobody learns anything."""
        return not self.name.startswith("loader")


MLP = {"name": "mlp", "widths": [100, 50]}
CNN = {"name": "cnn"}
JOBS = {
    job.name: job
    for job in (
        Job("mlp", MLP, 32, 9, (GROUNDUP, DATALOADER, ALONE, FUSED, INDEXED, KERAS_TORCH, KERAS_TENSORFLOW, SKLEARN),
            "784 pixels, layers of 100 and 50 units, ten classes"),
        Job("cnn", CNN, 128, 5, (GROUNDUP, DATALOADER, KERAS_TORCH, KERAS_TENSORFLOW),
            "convolutions 32 and 64 of 3x3, each with a pool, a layer of 128 units, ten classes"),
        Job("loader-mlp", MLP, 32, 5, (*LOADING[:2], LOADING[-1]), "batches of 32 for the `mlp`"),
        Job("loader-cnn", CNN, 128, 5, LOADING, "batches of 128 for the `cnn`; augmented: moved and mirrored"),
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
        if options.save:
            (RESULTS / f"vision-cpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
            vision_page.write(list(JOBS), STRAYED)
        print(vision_page.section(found))
        failures += [f"{name}: {rival} ({why})" for rival, why in found["strayed"].items()]
    if failures:
        sys.exit(f"error: not the same work: {'; '.join(failures)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*JOBS, "loader"]
    parser.add_argument("--job", action="append", choices=names, help="may be repeated; all unless given")
    parser.add_argument("--rounds", type=int, help="epochs that are timed, instead of the job's own number")
    parser.add_argument("--threads", type=int, default=harness.psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", type=Path, default=_data(), help="the folder that holds mnist/train-images…")
    parser.add_argument("--rivals", nargs="*", help="parts of names; all unless given")
    parser.add_argument("--rows", type=int, help="use so many training images only, to see whether it runs")
    parser.add_argument("--even-if-busy", action="store_true", help="do not wait for idle cores; the table says so")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print the table only")
    options = parser.parse_args()
    wanted = options.job or list(JOBS)
    options.job = [name for name in JOBS if name in wanted or (name.startswith("loader") and "loader" in wanted)]
    if not (options.data / "mnist" / FILES["images"]).is_file():
        parser.error(f"{options.data} has no mnist/{FILES['images']}: --data names the folder")
    return options


def _data() -> Path:
    return Path(os.environ.get("GROUNDUP_TEST_DATA", ROOT.parent / "shared" / "data"))


FILES = {
    "images": "train-images-idx3-ubyte.gz",
    "labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}


def compare(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one job, as plain data."""
    rounds = options.rounds or job.rounds
    rivals = [r for r in job.rivals if not options.rivals or any(part in r.name for part in options.rivals)]
    missing = [rival.name for rival in rivals if not rival.is_installed()]
    if missing:
        say(f"left out, because .venv-keras is not there (`make bench` makes it): {', '.join(missing)}")
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as folder:
        path = prepare(job, options, Path(folder), epochs=rounds + 1)
        steps = -(-len(np.load(path.parent / "labels.npy")) // job.batch_rows)
        facts: dict[str, dict[str, Any]] = {}
        try:
            for rival in rivals:
                if rival.is_installed():
                    workers.append(Worker(rival, path, options.threads))
                    facts[rival.name] = start(workers[-1], steps)
            turns = harness.take_turns(
                workers,
                rounds=rounds,
                steps=steps,
                rate=lambda answer: answer["tokens"] / answer["seconds"],
                unit="images/s",
                before=(lambda: None) if options.even_if_busy else harness.wait_until_idle,
            )
            for worker in workers:
                facts[worker.rival.name] |= worker.ask("accuracy") if job.trains else {}
        finally:
            for worker in workers:
                worker.close()
    return _found(job, options, rounds, turns, facts)


def prepare(job: Job, options: argparse.Namespace, folder: Path, *, epochs: int) -> Path:
    """Write what all rivals share, and the job that names it: pixels, labels, their order, the first weights."""
    from groundup.data.order import Order

    corpus = corpus_of(options)
    shared = {
        "model": job.model,
        "batch_rows": job.batch_rows,
        "lr": job.lr,
        "epochs": epochs,
        "device": "cpu",
        "threads": options.threads,
        "seed": options.seed,
        "corpus": str(corpus.artifact.path),
        "store": str(CACHE / "store"),
        "scratch": str(folder / "scratch"),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(shared))
    images, labels = _rows_as_groundup_has_them(path, folder)
    np.save(
        folder / "order.npy",
        np.stack([Order(len(labels), options.seed).span(e * len(labels), len(labels))[1] for e in range(epochs)]),
    )
    for name in ("test_images", "test_labels"):
        np.save(folder / f"{name}.npy", idx(options.data / "mnist" / FILES[name]))
    say(f"{len(images):,} images of {images.shape[1]} x {images.shape[2]}, {job.batch_rows} a step")
    return path


def corpus_of(options: argparse.Namespace):
    """The training images as `prepare` makes a corpus of them, kept from run to run."""
    import groundup
    from groundup.data.corpus import Corpus

    folder = CACHE / "vision"
    folder.mkdir(parents=True, exist_ok=True)
    mnist = options.data.resolve() / "mnist"
    paths = [str(mnist / FILES[name]) for name in ("images", "labels")]
    if options.rows:
        paths = [str(_cut(Path(path), options.rows, folder)) for path in paths]
    source = {"kind": "idx", "paths": paths, "licence": "CC BY-SA 3.0"}
    section = {"source": source, "clean": {"exact_duplicates": False}, "split": {"validation": 0, "test": 0}}
    recipe = {"groundup": 1, "name": "bench-vision", "stages": {"digits": {"prepare": section}}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    before, os.environ["GROUNDUP_STORE"] = os.environ.get("GROUNDUP_STORE"), str(CACHE / "store")
    here = Path.cwd()
    try:
        os.chdir(folder)
        return Corpus(groundup.run("recipe.yaml")["digits"])
    finally:
        os.chdir(here)
        os.environ.pop("GROUNDUP_STORE") if before is None else os.environ.update(GROUNDUP_STORE=before)


def _rows_as_groundup_has_them(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the rows in the order of groundup's shards, and its first weights; returns images and labels."""
    sys.path.insert(0, str(ROOT / "bench" / "workers"))
    import groundup_images
    from image_rows import ImageJob

    np.save(folder / "labels.npy", np.zeros(1, np.int64))
    _, assembly, _ = groundup_images.assembly_of(ImageJob(str(path)))
    columns = assembly.rows.columns
    images, labels = np.asarray(columns["pixel_values"])[:, 0], np.asarray(columns["label"], np.int64)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "weights.npz", *(p.detach().numpy() for p in assembly.network.parameters()))
    return images, labels


def idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file: images (N, 28, 28) or labels (N,)."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _cut(path: Path, rows: int, folder: Path) -> Path:
    """A copy of an IDX file with its first rows only."""
    found = idx(path)[:rows]
    header = bytes([0, 0, 8, found.ndim]) + np.array(found.shape, ">u4").tobytes()
    (folder / path.name).write_bytes(gzip.compress(header + found.tobytes()))
    return folder / path.name


def start(worker: Worker, steps: int) -> dict[str, Any]:
    """Facts of a rival that has loaded and done its first epoch, with the seconds both took."""
    ready = worker.answer()
    first = worker.ask("steps", count=steps)
    facts = f"{ready['parameters']:,} parameters, first loss {ready['first_loss']:.6f}"
    say(f"ready: {worker.rival.name}, {facts}, first epoch in {first['seconds']:.1f} s")
    return {**ready, "first_epoch_s": first["seconds"]}


def _found(
    job: Job, options: argparse.Namespace, rounds: int, turns: dict[str, Turns], facts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "job": {"name": job.name, "batch_rows": job.batch_rows, "what": job.what, "lr": job.lr, "trains": job.trains},
        "command": " ".join(["bench/vision.py", *sys.argv[1:]]),
        "seed": options.seed,
        "threads": options.threads,
        "rounds": rounds,
        "busy": options.even_if_busy,
        "machine": harness.machine(),
        "date": datetime.date.today().isoformat(),
        "rivals": {
            name: {
                "images_s": each.rates,
                "last_loss": each.last_loss,
                "peak_bytes": each.peak_bytes,
                "facts": facts[name],
            }
            for name, each in turns.items()
        },
        "strayed": strayed(facts) if job.trains else {},
    }


def strayed(facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Rivals that did other work than groundup, or did it worse or better than chance allows, and how that shows."""
    found = {}
    ours = next(iter(facts.values()))
    for name, each in facts.items():
        apart = each["accuracy"] - ours["accuracy"]
        error = math.sqrt(sum(one["accuracy"] * (1 - one["accuracy"]) / one["images"] for one in (each, ours)))
        if abs(each["first_loss"] / ours["first_loss"] - 1) > COMPARABLE:
            found[name] = f"the loss of the first batch is {each['first_loss']:.5f}, not {ours['first_loss']:.5f}"
        elif each["parameters"] != ours["parameters"]:
            found[name] = f"{each['parameters']:,} parameters, not {ours['parameters']:,}"
        elif abs(apart) > STRAYED * error:
            found[name] = f"the accuracy differs by {100 * apart:+.2f} points, {abs(apart) / error:.1f} standard errors"
    return found


if __name__ == "__main__":
    main()
