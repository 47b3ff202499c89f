"""What a run leaves to read: `metrics.jsonl`, `train.log`, and the sinks of other tools.

`metrics.jsonl` holds one JSON object a line, in order of steps. On resume the lines after the state's
step are cut, so that no step is missing or there twice.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from groundup.artifact import write_whole
from groundup.errors import MissingExtra, UserError

SinkName = Literal["tensorboard", "mlflow"]
METRICS, TEXT = "metrics.jsonl", "train.log"
SHOWN_EVERY_S = 0.2
"""How long figures may wait before who follows the file sees them: asking the system to write takes its time."""


class Sink(Protocol):
    """Where figures go besides the files."""

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Record the figures of a step."""

    def close(self) -> None:
        """Flush and finish."""


class Log:
    """The log of one run, kept in its state folder until the run ends."""

    def __init__(self, folder: Path, sinks: list[SinkName], *, name: str) -> None:
        self.folder, self.name, self.wanted = folder, name, sinks
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics = (folder / METRICS).open("a", encoding="utf-8")
        self.text = (folder / TEXT).open("a", encoding="utf-8")
        self.sinks: list[Sink] = []
        self.shown = 0.0

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Add one line to `metrics.jsonl`. Steps are counted from 1: after the first update it is 1."""
        self.metrics.write(json.dumps({"step": step} | figures) + "\n")
        if (now := time.monotonic()) - self.shown >= SHOWN_EVERY_S:
            self.metrics.flush()
            self.shown = now
        for sink in list(self.sinks):
            try:
                sink.write(step, figures)
            except Exception as error:  # another tool's trouble must not end a training run
                self.sinks.remove(sink)
                self.say(f"a sink is given up, training goes on: {type(sink).__name__}: {error}")

    def say(self, text: str) -> None:
        """Add a line with the time to `train.log`."""
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self.text.flush()
        self.metrics.flush()

    def flush(self) -> None:
        """Put what was written where a kill cannot lose it; called before every state."""
        for file in (self.metrics, self.text):
            file.flush()
            os.fsync(file.fileno())

    def begin(self, step: int, evaluated: int) -> None:
        """Go on after a step: what was logged of later ones is cut, and the sinks are opened there.

        Raises UserError for a sink that cannot be opened, with what it says.
        """
        self.cut(step, evaluated)
        self.sinks = [self._opened(sink, step) for sink in self.wanted]

    def _opened(self, name: SinkName, step: int) -> Sink:
        try:
            return SINKS[name](self.folder, step, self.name)
        except UserError:
            raise
        except Exception as error:
            fix = f"follow what it says, or take {name!r} out of `sinks`"
            raise UserError(f"the sink {name!r} cannot be opened: {error}", where="sinks", fix=fix) from error

    def cut(self, step: int, evaluated: int) -> None:
        """Forget the figures of steps after `step`, and validations of steps after `evaluated`."""
        self.metrics.close()
        path = self.folder / METRICS
        kept = [line for line in _lines(path) if _is_until(json.loads(line), step, evaluated)]
        write_whole(path, "".join(f"{line}\n" for line in kept))
        self.metrics = path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Flush and close files and sinks."""
        for sink in self.sinks:
            sink.close()
        self.metrics.close()
        self.text.close()

    def publish(self, target: Path) -> None:
        """Copy what was logged into an artefact's `log/` folder."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / path.name)


class TensorBoard:
    """Event files in `log/tensorboard`, followed while they grow by `tensorboard --logdir`."""

    def __init__(self, folder: Path, from_step: int, name: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tracking", needed_for="the sink 'tensorboard'") from error
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=from_step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Record the figures of a step."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and finish."""
        self.writer.close()


class MlFlow:
    """An MLflow run in the experiment `groundup`; MLFLOW_TRACKING_URI says where.

    The id of the run is kept beside the state, so a resumed run goes on in the same one.
    """

    def __init__(self, folder: Path, from_step: int, name: str) -> None:
        try:
            from mlflow.tracking import MlflowClient  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise MissingExtra("mlflow", "tracking", needed_for="the sink 'mlflow'") from error
        self.client = MlflowClient()
        known = folder / "mlflow-run"
        if not known.exists():
            experiment = self.client.get_experiment_by_name("groundup")
            number = experiment.experiment_id if experiment else self.client.create_experiment("groundup")
            known.write_text(self.client.create_run(number, run_name=name).info.run_id, encoding="utf-8")
        self.run_id = known.read_text(encoding="utf-8")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Record the figures of a step."""
        for name, value in figures.items():
            self.client.log_metric(self.run_id, name, value, step=step, synchronous=False)

    def close(self) -> None:
        """Flush and finish."""
        self.client.set_terminated(self.run_id)


SINKS: dict[SinkName, type[TensorBoard] | type[MlFlow]] = {"tensorboard": TensorBoard, "mlflow": MlFlow}


def require(sinks: list[SinkName]) -> None:
    """Raise MissingExtra for a sink whose package is not installed, before anything is trained."""
    from importlib.util import find_spec

    for sink in sinks:
        if find_spec(sink) is None:
            raise MissingExtra(sink, "tracking", needed_for=f"the sink {sink!r}")


def _is_until(line: dict[str, Any], step: int, evaluated: int) -> bool:
    return bool(line["step"] <= (evaluated if "validation_loss" in line else step))


def _lines(path: Path) -> list[str]:
    """The lines that are whole JSON objects; a kill can leave half a line at the end."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if isinstance(json.loads(line)["step"], int):
                found.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return found
