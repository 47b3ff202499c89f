"""Putting a suite to a model: ask, score, and keep what was said.

The model comes as plain functions, so that any runtime, or a service, can be asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.errors import DataError, Interrupted, UserError
from groundup.evaluation.metrics.additive import Additive
from groundup.evaluation.suites import arithmetic, code, known
from groundup.evaluation.suites.likelihood import Encode, Forward, log_likelihoods
from groundup.progress import Reporter, interrupt_requested

Write = Callable[[str, Sequence[str], int], str]
"""From a prompt, the texts it ends at and the most new tokens, to what the model writes greedily."""


@dataclass(frozen=True)
class Model:
    """What a suite asks of a model."""

    encode: Encode
    forward: Forward
    start: Callable[[str], Sequence[int]]
    """The tokens that a text with this prompt begins with."""
    context: int
    write: Write | None = None
    """Needed by suites whose answers are written."""
    batch_tokens: int = 8192


def run(
    name: str,
    path: Path,
    model: Model,
    *,
    examples: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    run_generated_code: bool = False,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Any], str]:
    """The result of a suite (see `known.result`) and a line of JSON for each question with what was said.

    path, examples: the suite's files. shots: examples before each question, as usually published unless
    given. limit: ask only so many, evenly spread. Raises UserError for an unknown suite, for a model that
    does not write where writing is asked for, and for programs unless `run_generated_code`; DataError for
    files that cannot be read; Interrupted.
    """
    suite = known.suite(name)
    if suite.way != "choices" and model.write is None:
        raise UserError(f"{name} has the model write, and this one only reads", fix="give a causal language model")
    if suite.way == "program" and not run_generated_code:
        fix = f"add {code.FLAG} if you accept that programs written by the model run on this machine"
        raise UserError(f"{name} runs programs that the model writes", fix=fix)
    shots = suite.shots if shots is None else shots
    everything = suite.read(path, examples, shots)
    if not everything:
        raise DataError("the suite has no questions", where=str(path))
    asked = known.spread(everything, limit)
    reporter = reporter or Reporter()
    ways = {"choices": _choose, "text": _write, "program": _program}
    scores, said = ways[suite.way](name, asked, model, reporter)
    found = known.result(name, asked, scores, shots=shots, of=len(everything), seed=seed, resamples=resamples)
    lines = [json.dumps({"id": one.id} | line, ensure_ascii=False) for one, line in zip(asked, said, strict=True)]
    return found, "\n".join(lines) + "\n"


Said = tuple[dict[str, Additive], list[dict[str, Any]]]


def _choose(name: str, asked: Sequence[Any], model: Model, reporter: Reporter) -> Said:
    found = log_likelihoods(
        [(question.prompt, question.continuations) for question in asked],
        model.encode,
        model.forward,
        start=model.start,
        context=model.context,
        batch_tokens=model.batch_tokens,
        reporter=reporter,
    )
    nats = [[one.nats for one in row] for row in found]
    said = [
        {"right": list(question.right), "nats": [round(value, 4) for value in row]}
        for question, row in zip(asked, nats, strict=True)
    ]
    return known.choice_scores(name, asked, nats), said


def _write(name: str, asked: Sequence[Any], model: Model, reporter: Reporter) -> Said:
    texts = _texts(name, asked, model, reporter)
    scores = arithmetic.scores(asked, texts)
    said = [{"right": arithmetic.normalise(one.answer), "text": text} for one, text in zip(asked, texts, strict=True)]
    return scores, said


def _program(name: str, asked: Sequence[Any], model: Model, reporter: Reporter) -> Said:
    texts = [code.ended(text) for text in _texts(name, asked, model, reporter)]
    outcomes = [code.run(one.program(text), allowed=True) for one, text in zip(asked, texts, strict=True)]
    rate = code.pass_rate(outcomes)
    said = [{"outcome": outcome, "text": text} for outcome, text in zip(outcomes, texts, strict=True)]
    return {rate.name: rate}, said


def _texts(name: str, asked: Sequence[Any], model: Model, reporter: Reporter) -> list[str]:
    suite = known.suite(name)
    assert model.write is not None, "run checks that the model writes"
    texts = []
    for number, one in enumerate(asked):
        texts.append(model.write(one.prompt, suite.stops, suite.max_new_tokens))
        reporter.advance("writing", number + 1, len(asked))
        if interrupt_requested():
            raise Interrupted("stopped while writing", fix="run again: it starts afresh")
    return texts
