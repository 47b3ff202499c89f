"""Put a language model to published tests from local files: MMLU, CMMLU, ARC, TruthfulQA, GSM8K, HumanEval."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from groundup.artifact import Artifact, Draft, Input
from groundup.config import Mistake, Section, StageSection
from groundup.errors import UserError, nearest
from groundup.evaluation import report
from groundup.evaluation.suites import code, known, page, running
from groundup.forecast import Forecast, Known
from groundup.places import expand
from groundup.runtimes import torch as torch_runtime
from groundup.serving.decoding import Continuation
from groundup.serving.sampler import Sampling
from groundup.serving.start import beginning
from groundup.text.tokenizers import Tokenizer
from groundup.units import Count, PositiveCount

READS = {"of": "model"}
WRITES = "report"
VERSION = 1
PERMISSION = "GROUNDUP_RUN_GENERATED_CODE"
"""Set by the command line's flag; a recipe alone can never permit it."""


class Suite(Section):
    """One published test and its files."""

    name: str
    """mmlu, cmmlu, arc, truthfulqa_mc1, truthfulqa_mc2, gsm8k or humaneval."""
    path: str
    """Its questions: a file, or a folder or archive as the test is published."""
    examples: str | None = None
    """The file that examples are taken from, for tests that keep them apart (GSM8K's training questions)."""
    shots: Count | None = None
    """Examples before each question; as the test is usually published unless given."""
    limit: PositiveCount | None = None
    """Ask only so many questions, evenly spread; all unless given."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in known.SUITES:
            raise ValueError(f"no suite named {value!r}; {nearest(value, known.SUITES)}")
        return value


class Config(StageSection):
    """Ask a language model the questions of published tests."""

    of: str
    """The model to ask: a stage, an artefact, a Hugging Face model directory or a GGUF file."""
    suites: Annotated[list[Suite], Field(min_length=1)]
    """The tests, with their files."""
    bootstrap: Annotated[PositiveCount, Field(ge=100, le=100_000)] = 1000
    """How many times the questions are drawn again for the intervals."""
    batch_tokens: PositiveCount = 8192
    """Tokens of a forward pass."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda or mps."""


def sources(config: Config) -> list[Path]:
    """The files of all suites that are there; `check` and the run itself name those that are not."""
    found: set[Path] = set()
    for suite in config.suites:
        for text in filter(None, (suite.path, suite.examples)):
            place = Path(expand(text))
            found |= {place} if place.is_file() else {each for each in place.rglob("*") if each.is_file()}
    return sorted(found)


def run(config: Config, inputs: dict[str, Input], out: Draft) -> None:
    """Write report.html, report.md, report.json, and a file of what was said for each suite."""
    artifact = inputs["of"].artifact
    artifact.verify()
    model = _model(config, artifact)
    results = []
    for suite in config.suites:
        found, lines = running.run(
            suite.name,
            Path(expand(suite.path)),
            model,
            examples=Path(expand(suite.examples)) if suite.examples else None,
            shots=suite.shots,
            limit=suite.limit,
            seed=config.seed,
            resamples=config.bootstrap,
            run_generated_code=os.environ.get(PERMISSION) == "1",
            reporter=out.reporter,
        )
        results.append(found)
        out.path(f"said/{suite.name}.jsonl").write_text(lines, encoding="utf-8")
    data = page.collect(results, _described(artifact, out), seed=config.seed)
    report.write(data, out.path)
    out.metrics |= {one["suite"]: one["scores"][one["main_metric"]]["estimate"] for one in results}
    out.metrics["headline"] = page.headline(data)


def _model(config: Config, artifact: Artifact) -> running.Model:
    runtime = torch_runtime.load(artifact, device=config.device)
    tokenizer = Tokenizer.load(artifact.path)
    if not runtime.causal:
        raise UserError("the model does not read from left to right, so it gives choices no likelihood", where="of")
    start = beginning(artifact.path, tokenizer)

    def write(prompt: str, stops: Sequence[str], most: int) -> str:
        settings = Sampling(temperature=0.0, max_new_tokens=most, stop=tuple(stops))
        return Continuation(runtime, tokenizer, prompt, settings, start_ids=start.before(prompt)).finish().text

    return running.Model(
        tokenizer.encode, runtime.forward, start.before, runtime.context, write, batch_tokens=config.batch_tokens
    )


def _described(artifact: Artifact, out: Draft) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": f"{manifest.get('recipe', 'model')} / {manifest.get('stage', '')}".rstrip(" /"),
        "digest": artifact.digest,
        "family": artifact.json("config.json")["model_type"],
        "parameters": artifact.metrics.get("parameters", 0),
        "licences": dict(out.licences),
    }


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Files that are missing, and programs that nobody allowed to run."""
    found = []
    for place, suite in enumerate(config.suites):
        for key, text in (("path", suite.path), ("examples", suite.examples)):
            if text and not Path(expand(text)).exists():
                found.append(Mistake(("suites", place, key), f"no file at {text!r}", "check the path"))
        if known.SUITES[suite.name].way == "program" and os.environ.get(PERMISSION) != "1":
            what = f"{suite.name} runs programs that the model writes"
            found.append(Mistake(("suites", place), what, f"run with {code.FLAG} if you accept that, or leave it out"))
    return found


def forecast(config: Config, inputs: Mapping[str, Known], effort: str) -> Forecast:
    """Which tests are asked for."""
    found = Forecast()
    found.lines = [("suites", ", ".join(suite.name for suite in config.suites))]
    return found
