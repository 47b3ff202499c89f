"""Opening what is served, in the engine process: from a path to something that generates or answers.

Order matters: every byte is checked first, then whether the model fits into memory, and only then are weights read.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from groundup.errors import UserError
from groundup.evaluation import answering
from groundup.machine import free_memory
from groundup.runtimes import torch as torch_runtime
from groundup.runtimes.torch import TorchRuntime
from groundup.serving import fit, models
from groundup.serving.answerers import Answerer, Pooling, Recommender, SentenceEncoder, TaskAnswerer
from groundup.serving.batcher import Batcher, Limits
from groundup.serving.generating import Generating
from groundup.serving.models import Checked, Facts, Options
from groundup.serving.unpacking import Unpacker
from groundup.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model that is served, and what does its work."""

    name: str
    facts: Facts
    work: Generating | Batcher


def open_model(
    name: str, path: str, options: Options, *, promised_bytes: int = 0, unpacker: Unpacker | None = None
) -> Opened:
    """Check and open the model at a path.

    `promised_bytes` of the memory that is free now are others', who will take them as their caches fill. Files in
    rows are read by the `unpacker`, and without one while everything else waits. Raises
    UserError for a model that cannot be served or does not fit into memory, and ArtifactError for one that is damaged
    or not signed as asked.
    """
    checked = models.check(path, public_key=options.public_key)
    facts = models.facts_of(checked)
    # The engine process is there already: its own size is no longer to be found.
    room = fit.require({name: (facts, options)}, free_memory() + fit.PROCESS - promised_bytes)[name]
    runtime = torch_runtime.load(
        checked.folder, max_tokens=options.context, max_sequences=options.max_sequences, device=options.device
    )
    runtime.pack(options.precision)
    facts = dataclasses.replace(facts, context=min(facts.context, runtime.max_tokens))
    if facts.kind != "generate":
        return Opened(name, facts, Batcher(_answerer(checked, facts, options, runtime, unpacker), _limits(options)))
    if not runtime.causal:
        fix = "serve a model that continues texts, one tuned for a labelled task, or a sentence encoder"
        raise UserError("the model reads a whole text at once and cannot continue one", where=path, fix=fix)
    return Opened(name, facts, Generating(name, runtime, facts, options, cache_bytes=room.cache))


def _answerer(
    checked: Checked, facts: Facts, options: Options, runtime: TorchRuntime, unpacker: Unpacker | None
) -> Answerer:
    if facts.kind == "embed":
        tokenizer = Tokenizer.load(checked.folder)
        return SentenceEncoder(runtime, tokenizer, Pooling.of(checked.folder), column=facts.columns["text"])
    section = models.task_of(checked, json.loads((checked.folder / "config.json").read_text(encoding="utf-8")))
    assert section is not None, "a model that answers rows has a task"
    kind = Recommender if facts.evaluation == "recommending" else TaskAnswerer
    return kind(
        answering.open_task(section, checked.folder, Tokenizer.find(checked.folder), runtime),
        runtime,
        temperature=answering.temperature_of(checked.folder),
        batch_tokens=options.max_batch_tokens,
        media=facts.media,
        unpacker=unpacker,
    )


def _limits(options: Options) -> Limits:
    return Limits(
        max_rows=options.max_batch_rows,
        max_tokens=options.max_batch_tokens,
        max_wait_s=options.max_wait_ms / 1000,
        max_waiting_rows=16 * options.max_waiting,
        max_waiting_tokens=options.max_waiting_tokens,
    )
