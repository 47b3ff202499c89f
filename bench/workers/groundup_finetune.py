"""groundup as its `finetune` stage puts it together: labelled rows, task, adapter, loader and loop.

Only the reporter is the benchmark's: the loop tells it of each finished step, and it paces the loop.
With --padded, batches are padded as they are where a device cannot do without.
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
from row_file import RowFile, Shards


class Paced:
    """A reporter that hands every step to the harness, with the tokens of its rows."""

    def __init__(self, pace: Pace, tokens: np.ndarray) -> None:
        self.pace, self.tokens, self.done = pace, tokens, 0

    def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
        if doing == "training":
            self.done += 1
            self.pace.step(figures["loss"], int(self.tokens[self.done - 1]))

    def start(self, *args: Any, **kwargs: Any) -> None:
        pass

    note = finish = start


def section_of(job: dict[str, Any]):
    """The section of a recipe that asks for this job."""
    from groundup.adapters import lora
    from groundup.stages.finetune import Config
    from groundup.training.optimizers import AdamW
    from groundup.training.schedules import Linear

    chosen = {key: job["optimizer"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    return Config(
        data="shared",
        **{"from": job["weights"]},
        task=task_of(job),
        seed=job["seed"],
        batch_rows=job["batch_rows"],
        # One more than there will be, so that the rate falls by the same line as the Trainer's.
        steps=job["total_steps"] + 1,
        max_length=job["context"],
        optimizer=AdamW(**chosen),
        schedule=Linear(warmup=0),
        grad_clip=job["optimizer"]["grad_clip"],
        adapter=lora.Config(**job["adapter"]) if job["adapter"] else None,
        packing="--padded" not in sys.argv,
        save_every="1000d",
        device=job["device"],
        precision=job["precision"],
        compile=False,
        threads=job["threads"],
    )


def task_of(job: dict[str, Any]):
    """The task's section."""
    from groundup.tasks import chat, text_classification

    if job["kind"] == "chat":
        return chat.Config()
    return text_classification.Config(kind="one", labels=tuple(job["labels"]))


@torch.no_grad()
def first_loss(work: Any, choices: Any) -> float:
    """The loss of the first batch before training, without dropout: what all sides must agree on."""
    from groundup.training.objective import forward, shares

    batch = work.loader.micro_batch(0, 0)[0]
    work.network.eval()
    run = forward(work.network, work.objective, choices.arithmetic)
    loss, _ = run(batch, shares([work.objective.counts(batch)], choices.device))
    work.network.train()
    return float(loss)


def main() -> None:
    began = time.perf_counter()
    job = read_job(sys.argv[1])
    import groundup
    from groundup.checkpoints import hugging_face
    from groundup.stages import _labelled
    from groundup.text.tokenizers import Tokenizer
    from groundup.training import choices as choosing
    from groundup.training.arithmetic import faster_library
    from groundup.training.assembly import Material
    from groundup.training.labelled import LabelledAssembly
    from groundup.training.log import Log
    from groundup.training.loop import train

    weights, rows = Path(job["weights"]), RowFile.read(job["rows"])
    section = section_of(job)
    # What `auto` does in a run that is long enough to measure for.
    matmul, why = faster_library()
    choices = dataclasses.replace(choosing.begin(section), precision=section.precision, matmul=matmul)
    start = _labelled.Start(
        tokenizer=Tokenizer.load(weights),
        tokenizer_digest="shared",
        context=hugging_face.read_model(weights)[1].context,
        network=lambda task: hugging_face.load(
            weights, task.head, labels=task.labels or None, outputs=task.outputs, seed=job["seed"]
        ),
    )
    task, plain = _labelled.tasks_of(section.task, start, job["context"])
    assembly = LabelledAssembly(
        section,
        Material(start.tokenizer, Shards(rows)),
        choices,
        task=task,
        plain_task=plain,
        start=lambda: _labelled.prepared(section, start, task),
    )
    work = assembly.job()
    order = np.load(job["order"]).reshape(-1, job["batch_rows"])
    assert (np.sort(work.loader.micro_batch(0, 0)[1]) == np.sort(order[0])).all(), "the rivals got another order"
    own = Path(job["scratch"]) / ("padded" if "--padded" in sys.argv else "end-to-end")
    pace, log = Pace(job, began), Log(own / "log", [], name="bench")
    pace.ready(
        parameters=sum(p.numel() for p in work.network.parameters()),
        version=groundup.__version__,
        first_loss=first_loss(work, choices),
        products=f"{matmul} ({why})",
    )
    reporter = Paced(pace, rows.lengths[order].sum(1))
    train(work, section, choices, state=own / "state", reporter=reporter, log=log)


if __name__ == "__main__":
    main()
