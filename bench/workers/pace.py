"""The worker's side of the protocol: a training loop calls `step` after each step and sleeps there.

A loop that somebody else wrote (transformers' Trainer) can be paced this way as well as one's own: the
call returns only when the harness has asked for another step. Nothing here is timed but the steps.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:  # some rivals compute with something else, and are to have their memory and threads to themselves
    import torch


class Pace:
    """Answers the harness: `steps` with seconds, losses and peak memory; ends when its input does.

    `answers` are further commands, each with what it answers; none of them is timed.
    """

    def __init__(
        self, job: dict[str, Any], began: float, answers: Mapping[str, Callable[[], dict[str, Any]]] | None = None
    ) -> None:
        self.cuda = job["device"] == "cuda"
        self.began = began
        self.answers = answers or {}
        self.left = 0
        self.losses: list[torch.Tensor | float] = []
        self.tokens = 0
        self.since = 0.0

    def ready(self, **facts: Any) -> None:
        """Say that the model stands, and wait for the first command."""
        if "torch" in sys.modules:
            facts = {"torch": sys.modules["torch"].__version__} | facts
        self._answer(ready=True, seconds=time.perf_counter() - self.began, **facts)
        self._wait()

    def step(self, loss: torch.Tensor | float, tokens: int = 0, steps: int = 1) -> None:
        """Count one finished step with its mean loss per label, and its tokens where steps differ in them.

        A rival that tells of whole epochs only counts the `steps` of one, with their mean loss.
        """
        self.losses.append(loss)
        self.tokens += tokens
        self.left -= steps
        if self.left <= 0:
            self._synchronize()
            seconds = time.perf_counter() - self.since
            losses = [float(each) for each in self.losses]
            self._answer(seconds=seconds, losses=losses, tokens=self.tokens, peak_bytes=self._peak())
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            self._end()
        command = json.loads(line)
        if command["do"] in self.answers:
            self._answer(**self.answers[command["do"]]())
            return self._wait()
        assert command["do"] == "steps", f"unknown command {command!r}"
        self.left, self.losses, self.tokens = command["count"], [], 0
        self._synchronize()
        self.since = time.perf_counter()

    def _synchronize(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def _peak(self) -> int:
        if self.cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @staticmethod
    def _end() -> NoReturn:
        """Leave at once: no library gets to save, log or tidy up."""
        sys.stdout.flush()
        os._exit(0)

    @staticmethod
    def _answer(**facts: Any) -> None:
        print("@" + json.dumps(facts), flush=True)


def read_job(path: str) -> dict[str, Any]:
    """The job that all rivals share: sizes, optimizer, device, data and first weights."""
    import torch

    job: dict[str, Any] = json.loads(Path(path).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    if job["device"] == "cuda":
        torch.set_float32_matmul_precision("high")
    return job


def dtype_of(job: dict[str, Any]) -> torch.dtype:
    """The precision the products are computed in."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[job["precision"]]


class Batches:
    """The rows of every step, as (rows, context + 1) int64 tensors, in the order all rivals share."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.tokens = np.load(job["tokens"], mmap_mode="r")
        self.order = np.load(job["order"], mmap_mode="r")
        self.rows, self.context, self.device = job["batch_rows"], job["context"], job["device"]

    def __len__(self) -> int:
        return len(self.order)

    def row(self, position: int) -> torch.Tensor:
        """The row at a position of the order: (context + 1,) int64."""
        import torch

        start = int(self.order[position % len(self.order)]) * self.context
        return torch.from_numpy(self.tokens[start : start + self.context + 1].astype(np.int64))

    def step(self, number: int) -> torch.Tensor:
        """The rows of step `number`, on the device: (rows, context + 1) int64."""
        import torch

        start = number * self.rows
        batch = torch.stack([self.row(position) for position in range(start, start + self.rows)])
        return batch.to(self.device)
