"""Fine-tune a pretrained model on labelled rows: all of its weights, or an adapter beside frozen ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import Field

from groundup.artifact import Artifact, Draft, Input
from groundup.checkpoints import hugging_face
from groundup.config import Mistake
from groundup.forecast import Forecast, Known
from groundup.stages import _labelled
from groundup.stages._labelled import Start
from groundup.stages._training import model_facts, tokenizer_digest
from groundup.text.tokenizers import Tokenizer
from groundup.training.measure import Measured, Planned, measure
from groundup.training.settings import LabelledTrainingSection

READS = {"data": "corpus", "more": "corpus", "from": "model"}
WRITES = "model"
VERSION = 1


class Config(LabelledTrainingSection):
    """Train pretrained weights on labelled rows."""

    data: str
    """The rows to learn from: a `prepare` stage. Its train split, unless another is named."""
    more: str | None = None
    """Further rows to mix in: rows that a model labelled (`label`), or old ones that are not to be forgotten."""
    from_: str = Field(alias="from")
    """The weights to start from: a stage, an artefact, a Hugging Face model directory or a GGUF file."""


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write a model as a Hugging Face directory, with its tokenizer, card and logs."""
    base = inputs["from"].artifact
    base.verify()
    _labelled.run(config, inputs, out, _start(config, base))


def _start(config: Config, base: Artifact) -> Start:
    tokenizer = Tokenizer.find(base.path)
    return Start(
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest(base) if tokenizer is not None else None,
        context=getattr(hugging_face.read_model(base.path)[1], "context", 1),  # an image is one place
        network=lambda task: hugging_face.load(
            base.path,
            task.head,
            labels=getattr(task, "labels", None) or None,
            outputs=getattr(task, "outputs", None),
            seed=config.seed,
        ),
        generation=hugging_face.read_generation(base.path),
        base=base,
    )


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Rates, columns and lengths that do not fit the data, the model or each other."""
    return _labelled.check(config, inputs)


def forecast(config: Config, inputs: Mapping[str, Known], effort: str) -> Forecast:
    """The forecast of a run, once there are rows and a model to look at."""
    base = inputs["from"].artifact
    if base is None:
        return _labelled.forecast(config, inputs, None, None)
    measured = partial(_measured, config, base) if effort == "measured" else None
    return _labelled.forecast(config, inputs, _start(config, base), measured)


def _measured(config: Config, base: Artifact, rows: list[dict[str, Any]]) -> Measured:
    return measure(planned, config, rows, base)


def planned(config: Config, rows: list[dict[str, Any]], base: Artifact) -> Planned:
    """The run as it would begin, on a few rows; called in a process of its own."""
    return _labelled.planned(config, rows, _start(config, base))


def facts(artifact: Artifact) -> dict[str, Any]:
    """What later stages may know of a finished model."""
    return model_facts(artifact)
