"""groundup as its `train` stage puts it together for images: corpus, shards, task, network, loader and loop.

Only the reporter is the benchmark's: the loop tells it of each finished step, and it paces the loop. With --loader
the batches are made and nothing is trained; --augment changes images as the recipes for them do, --mix more than that.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_rows import ImageJob
from pace import Pace

AUGMENT: dict[str, dict[str, Any]] = {
    "--augment": {"augment": {"crop": 2, "flip": 0.5}},
    "--mix": {"augment": {"crop": 2, "flip": 0.5, "randaugment": {}, "erase": {}}, "mixup": 0.2, "cutmix": 1.0},
}


class Paced:
    """A reporter that hands every step to the harness."""

    def __init__(self, pace: Pace, batch_rows: int) -> None:
        self.pace, self.batch_rows = pace, batch_rows

    def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
        if doing == "training":
            self.pace.step(figures["loss"], self.batch_rows)

    def start(self, *args: Any, **kwargs: Any) -> None:
        pass

    note = finish = start


def section_of(job: ImageJob):
    """The section of a recipe that asks for this job."""
    from groundup.config import parse
    from groundup.stages.train import Config

    given = job.job
    changes = next((change for flag, change in AUGMENT.items() if flag in sys.argv), {})
    section, mistakes = parse(
        Config,
        {
            "data": "shared",
            # Pixels from 0 to 1, as everybody's here are.
            "task": {"name": "image_classification", "normalise": {"means": [0], "deviations": [1]}, **changes},
            "model": given["model"],
            "seed": given["seed"],
            "batch_rows": job.batch_rows,
            "steps": (given["epochs"] + 1) * job.steps,
            "optimizer": {"name": "adam", "lr": given["lr"]},
            "schedule": {"name": "constant", "warmup": 0},
            "grad_clip": None,
            "save_every": "1000d",
            "device": "cpu",
            "precision": "fp32",
            "compile": False,
        },
    )
    assert section is not None, mistakes
    return section


def assembly_of(job: ImageJob):
    """The job as the stage puts it together, and what it chose by itself."""
    from groundup.artifact import Artifact, Store
    from groundup.data.corpus import Corpus
    from groundup.data.shards import open_or_build
    from groundup.stages import _labelled, train
    from groundup.training import choices as choosing
    from groundup.training.assembly import Material
    from groundup.training.labelled import LabelledAssembly

    corpus, section = Corpus(Artifact(Path(job.job["corpus"]))), section_of(job)
    start = train._start(section, None)
    task, plain = _labelled.tasks_of(_labelled.settled(section, corpus.documents("train")), start, 1)
    shards = open_or_build(Store(Path(job.job["store"])), corpus, "train", task.encoding, task.encode)
    assembly = LabelledAssembly(
        section,
        Material(None, shards),
        choosing.begin(section),
        task=task,
        plain_task=plain,
        start=lambda: _labelled.prepared(section, start, task),
        is_pretrained=False,
    )
    return section, assembly, assembly.settle()


def main() -> None:
    began = time.perf_counter()
    job = ImageJob(sys.argv[1])
    import groundup
    from groundup.training.log import Log
    from groundup.training.loop import train
    from groundup.training.objective import forward, shares

    section, assembly, choices = assembly_of(job)
    work = assembly.job()
    assert (work.loader.micro_batch(0, 0)[1] == job.order(0)[: job.batch_rows]).all(), "the rivals got another order"

    @torch.no_grad()
    def first_loss() -> float:
        batch = work.loader.micro_batch(0, 0)[0]
        return float(
            forward(work.network, work.objective, choices.arithmetic)(
                batch, shares([{"loss": len(batch["label"])}], "cpu")
            )[0]
        )

    @torch.no_grad()
    def scores(images: np.ndarray) -> np.ndarray:
        work.network.eval()
        found = work.network({"pixel_values": torch.from_numpy(images)[:, None]}).logits
        work.network.train()
        return found.numpy()

    pace = Pace(job.job, began, {"accuracy": lambda: job.accuracy(scores)})
    pace.ready(
        parameters=sum(p.numel() for p in work.network.parameters()),
        version=f"groundup {groundup.__version__}, torch {torch.__version__}",
        first_loss=first_loss(),
        products=choices.matmul,
    )
    if "--loader" in sys.argv:
        for step in range(work.steps):
            work.loader.micro_batch(step, 0)
            pace.step(0.0, job.batch_rows)
    own = Path(job.job["scratch"]) / str(id(pace))
    log = Log(own / "log", [], name="bench")
    train(work, section, choices, state=own / "state", reporter=Paced(pace, job.batch_rows), log=log)


if __name__ == "__main__":
    main()
