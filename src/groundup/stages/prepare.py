"""Raw files become a clean corpus: read, normalised, filtered, deduplicated, redacted and split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from groundup.artifact import Artifact, Draft, Input
from groundup.config import Mistake, StageSection
from groundup.data import corpus_forecast
from groundup.data.corpus_build import Settings, build, files_of
from groundup.data.corpus_clean import Clean
from groundup.data.source_files import find_files
from groundup.data.sources import Source
from groundup.data.splits import Split
from groundup.forecast import Forecast, Known
from groundup.units import PositiveCount, Share

READS: dict[str, str] = {}
WRITES = "corpus"
PARTS = ("train", "validation", "test")
VERSION = 2


def _count_or_auto(value: Any) -> int | None:
    if value in ("auto", None):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is neither a number of processes nor auto")
    return value


class Decontaminate(Source):
    """Evaluation files whose texts must not occur in the corpus."""

    words: PositiveCount = 13
    """Words in a row that a document may not share with an evaluation text."""
    characters: PositiveCount = 40
    """The same for scripts without spaces, in characters."""


class Config(StageSection):
    """Which files to read and what to do with them."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"workers"})

    source: Annotated[
        Annotated[Source, Tag("Source")] | Annotated[list[Source], Tag("list[Source]"), Field(min_length=1)],
        Discriminator(lambda value: "list[Source]" if isinstance(value, list) else "Source"),
    ]
    """Where documents come from: one source or a list of them."""
    clean: Clean = Clean()
    """What is done to each document, and which documents are left out."""
    split: Split = Split()
    """How documents are divided into train, validation and test."""
    decontaminate: Decontaminate | None = None
    """Evaluation files; documents that contain their texts are left out."""
    bad_rows: Share = 0.01
    """Share of unreadable rows (broken encoding or JSON, missing field) above which the stage stops."""
    workers: Annotated[
        int | None,
        BeforeValidator(_count_or_auto),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
    ] = None
    """Processes to use, or `auto` for one a core. The corpus does not depend on it."""


def settings(config: Config) -> Settings:
    """What the section asks for, as the corpus builder takes it."""
    evaluation = config.decontaminate
    return Settings(
        config.source if isinstance(config.source, list) else [config.source],
        config.clean,
        config.split,
        config.bad_rows,
        config.seed,
        evaluation,
        words=evaluation.words if evaluation else 13,
        characters=evaluation.characters if evaluation else 40,
        processes=config.workers,
    )


def sources(config: Config) -> list[Path]:
    """The files the stage would read, sorted; their digests are part of its key.

    Raises DataError for a path without matches and for a folder that cannot be read.
    """
    asked = settings(config)
    found = {Path(file.path) for file in files_of(asked)}
    found |= {Path(file.path) for source in asked.sources for table in source.tables for file in find_files(table)}
    if config.decontaminate is not None:
        found |= {Path(file.path) for file in find_files(config.decontaminate)}
    return sorted(found)


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Everything wrong with the sources that can be told without reading them whole."""
    single = not isinstance(config.source, list)
    mistakes: list[Mistake] = []
    for index, source in enumerate(settings(config).sources):
        path = ("source",) if single else ("source", index)
        mistakes += corpus_forecast.check_source(source, settings(config), path)
    if config.decontaminate is not None:
        mistakes += corpus_forecast.check_source(config.decontaminate, None, ("decontaminate",))
    return mistakes or corpus_forecast.check_labels(settings(config))


def forecast(config: Config, inputs: Mapping[str, Known], effort: Any = None) -> Forecast:
    """What the stage will take and yield, from a sample of each source."""
    return corpus_forecast.forecast(settings(config))


def facts(artifact: Artifact) -> dict[str, Any]:
    """What is known of a finished corpus: documents and bytes per split, the longest document, samples."""
    return corpus_forecast.facts(artifact)


def run(config: Config, inputs: Mapping[str, Input], out: Draft) -> None:
    """Write the corpus. See `groundup.data.corpus` for what is in it."""
    build(settings(config), out)
