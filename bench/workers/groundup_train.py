"""groundup as its `pretrain` stage puts it together: loader, task, optimizer and loop; nothing rewritten.

Only the reporter is the benchmark's: the loop tells it of each finished step, and it paces the loop.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
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


def section_of(job: dict[str, Any], model: Any):
    """The section of a recipe that asks for this job."""
    from groundup.stages.pretrain import Config
    from groundup.tasks import language_modeling
    from groundup.training.optimizers import AdamW
    from groundup.training.schedules import Constant

    chosen = {key: job["optimizer"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    return Config(
        data="shared",
        tokenizer="shared",
        task=language_modeling.Config(),
        model=model,
        seed=job["seed"],
        batch_tokens=job["batch_rows"] * job["context"],
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
    from groundup.checkpoints import hugging_face
    from groundup.training import choices as choosing
    from groundup.training.arithmetic import Arithmetic, faster_library
    from groundup.training.assembly import Assembly, Material
    from groundup.training.log import Log
    from groundup.training.loop import train

    start = hugging_face.load(Path(job["weights"]), head="language")
    section = section_of(job, start.config)
    choices = dataclasses.replace(choosing.begin(section), precision=section.precision, compile=section.compile)
    if choices.arithmetic == Arithmetic("cpu"):
        choices = dataclasses.replace(choices, matmul=faster_library()[0])
    material = Material(Specials(), TokenFile(job["tokens"]), vocab_size=job["vocab_size"])
    assembly = Assembly(section, material, choices, planned_steps=10**6)
    assembly.network.load_state_dict(start.state_dict())
    work = assembly.job()
    expected = np.load(job["order"])[: job["batch_rows"]]
    assert (work.loader.micro_batch(0, 0)[1] == expected).all(), "the rivals were given another order of rows"
    scratch = Path(job["scratch"])
    pace = Pace(job, began)
    log = Log(scratch / "log", [], name="bench")
    pace.ready(parameters=sum(p.numel() for p in assembly.network.parameters()), version=groundup.__version__)
    train(work, section, choices, state=scratch / "state", reporter=Paced(pace), log=log)


if __name__ == "__main__":
    main()
