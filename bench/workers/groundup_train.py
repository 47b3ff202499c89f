"""groundup's own training loop, `training/loop.py`, with its loader, task and optimizer: nothing rewritten.

Only the reporter is the benchmark's: the loop tells it of each finished step, and it paces the loop.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pace import Pace, read_job


class Paced:
    """A reporter that hands every step to the harness."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
        if doing == "training":
            self.pace.step(figures["loss"])

    def start(self, *args: Any, **kwargs: Any) -> None:
        pass

    note = finish = start


class TokenFile:
    """The shared tokens as the one document of a split."""

    def __init__(self, path: str) -> None:
        self.flat = np.load(path, mmap_mode="r")
        self.documents = 1
        self.bytes = np.array([4 * len(self.flat)])

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.flat, np.array([0, len(self.flat)], np.int64)


@dataclasses.dataclass(frozen=True)
class Specials:
    """The special tokens a task asks its tokenizer for; rows of the token file hold none of them."""

    eos_id: int = 0
    bos_id: int | None = None
    pad_id: int = 0


def settings_of(job: dict[str, Any]):
    from groundup.training.optimizers import AdamW
    from groundup.training.schedules import Constant
    from groundup.training.settings import TrainingSection

    chosen = {key: job["optimizer"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    return TrainingSection(
        seed=job["seed"],
        optimizer=AdamW(**chosen),
        schedule=Constant(warmup=0),
        grad_clip=job["optimizer"]["grad_clip"],
        save_every="1000d",
        device=job["device"],
        precision=job["precision"],
        compile="--compile" in sys.argv,
        threads=job["threads"],
    )


def main() -> None:
    began = time.perf_counter()
    job = read_job(sys.argv[1])
    import groundup
    from groundup import catalog
    from groundup.checkpoints import hugging_face
    from groundup.data.loader import Loader
    from groundup.tasks import language_modeling
    from groundup.training import choices as choosing
    from groundup.training.log import Log
    from groundup.training.loop import Job, train
    from groundup.training.objective import Objective

    settings = settings_of(job)
    choices = dataclasses.replace(choosing.begin(settings), precision=settings.precision, compile=settings.compile)
    network = hugging_face.load(Path(job["weights"]), head="language").to(job["device"])
    model = catalog.load("models", network.config.name)
    task = language_modeling.Task(language_modeling.Config(), Specials(), job["context"])
    loader = Loader(
        task.rows(TokenFile(job["tokens"]), job["seed"]), task.collate, job["seed"], job["batch_rows"], workers=1
    )
    expected = np.load(job["order"])[: job["batch_rows"]]
    assert (loader.micro_batch(0, 0)[1] == expected).all(), "the rivals were given another order of rows"
    tokens = job["batch_rows"] * job["context"]
    work = Job(
        network=network,
        objective=Objective(
            loss=task.loss, held_out=task.loss, counts=lambda batch: {"loss": int((batch["labels"] >= 0).sum())}
        ),
        loader=loader,
        steps=10**6,
        batch_tokens=tokens,
        flops_per_step=3 * model.flops_per_token(network.config, job["context"]) * tokens,
    )
    scratch = Path(job["scratch"])
    pace = Pace(job, began)
    log = Log(scratch / "log", [], name="bench")
    pace.ready(parameters=sum(p.numel() for p in network.parameters()), version=groundup.__version__)
    train(work, settings, choices, state=scratch / "state", reporter=Paced(pace), log=log)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
