"""Train a model on labelled rows from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import SerializeAsAny

from groundup import catalog
from groundup.artifact import Artifact, Draft, Input
from groundup.config import FromFolder, Mistake, Named
from groundup.forecast import Forecast, Known
from groundup.nn.network import Network, create
from groundup.nn.shape import filled
from groundup.stages import _labelled
from groundup.stages._labelled import Start
from groundup.stages._training import model_facts
from groundup.text.tokenizers import Tokenizer
from groundup.training.measure import Measured, Planned, measure
from groundup.training.settings import LabelledTrainingSection

READS = {"data": "corpus", "more": "corpus", "tokenizer": "tokenizer"}
WRITES = "model"
VERSION = 1
RATE = 5e-4
"""The peak rate at which Transformers of a few layers learn from random weights."""


class Config(LabelledTrainingSection):
    """Train random weights on labelled rows."""

    data: str
    """The rows to learn from: a `prepare` stage. Its train split, unless another is named."""
    more: str | None = None
    """Further rows to mix in: rows that a model labelled (`label`), or old ones that are not to be forgotten."""
    tokenizer: str | None = None
    """What cuts the text: a `tokenize` stage. Not needed for what is no text."""
    model: Annotated[SerializeAsAny[Named], FromFolder("models")]
    """The model and its sizes; its vocabulary follows from the tokenizer, the size of its input from the data."""

    @classmethod
    def usual_rate(cls) -> float:
        """The learning rate unless the recipe gives one."""
        return RATE


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write a model as a Hugging Face directory, with its tokenizer, card and logs."""
    tokens = inputs["tokenizer"].artifact if "tokenizer" in inputs else None
    _labelled.run(config, inputs, out, _start(config, tokens))


def _start(config: Config, tokens: Artifact | None) -> Start:
    tokenizer = Tokenizer.load(tokens.path) if tokens is not None else None
    section: Any = config.model

    def network(task: Any) -> Network:
        if tokenizer is not None:
            known = {"vocab_size": task.tokenizer.vocab_size, "pad_id": task.tokenizer.pad_id}
        else:
            known = task.known
        model: Any = catalog.load("models", section.name)
        return create(model, filled(section, known), task.head, outputs=task.outputs, seed=config.seed)

    return Start(tokenizer, tokens.digest if tokens is not None else None, int(getattr(section, "context", 1)), network)


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Rates, columns and lengths that do not fit the data, the model or each other."""
    return _labelled.check(config, inputs)


def forecast(config: Config, inputs: Mapping[str, Known], effort: str) -> Forecast:
    """The forecast of a run, once there are rows and a tokenizer to look at."""
    tokens = inputs["tokenizer"].artifact if "tokenizer" in inputs else None
    if tokens is None and "tokenizer" in inputs:
        return _labelled.forecast(config, inputs, None, None)
    measured = partial(_measured, config, tokens) if effort == "measured" else None
    return _labelled.forecast(config, inputs, _start(config, tokens), measured)


def _measured(config: Config, tokens: Artifact | None, rows: list[dict[str, Any]]) -> Measured:
    return measure(planned, config, rows, tokens)


def planned(config: Config, rows: list[dict[str, Any]], tokens: Artifact | None) -> Planned:
    """The run as it would begin, on a few rows; called in a process of its own."""
    return _labelled.planned(config, rows, _start(config, tokens))


def facts(artifact: Artifact) -> dict[str, Any]:
    """What later stages may know of a finished model."""
    return model_facts(artifact)
