"""A corpus made from sources: cleaned block by block, chosen, written.

Three passes. The first reads and cleans in parallel and sets every block aside on disk; the second
decides from small records what is kept and where it goes; the third writes the splits, in parallel
again. No pass holds more than a few blocks, and the result does not depend on the number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from groundup.artifact import Draft, digest_data, write_whole
from groundup.config import dump
from groundup.data import corpus_ledger, corpus_select, corpus_write
from groundup.data.corpus import SUMMARY
from groundup.data.corpus_clean import RECORD, Clean, Job, clean_block, excerpt
from groundup.data.corpus_ledger import Ledger
from groundup.data.corpus_write import Origin, Plan
from groundup.data.source_blocks import Block, cut
from groundup.data.source_files import SourceFile, find_files
from groundup.data.source_media import check_labels
from groundup.data.source_rows import read_rows
from groundup.data.sources import DIGESTED, Source
from groundup.data.splits import Split
from groundup.data.workers import ordered_map
from groundup.errors import Interrupted
from groundup.machine import usable_cores
from groundup.progress import Reporter, interrupt_requested
from groundup.text.contamination import index_of

T = TypeVar("T")
R = TypeVar("R")
_BUCKET_BYTES = 32 << 20
_ALONE_BYTES = 12 << 20
"""Below this much text, starting processes would take longer than the work."""


@dataclass(frozen=True)
class Settings:
    """What a preparation is asked to do; the stage's section without what concerns only the stage."""

    sources: list[Source]
    clean: Clean
    split: Split
    bad_rows: float
    seed: int
    decontaminate: Source | None = None
    words: int = 13
    characters: int = 40
    processes: int | None = None


@dataclass
class _Pass:
    """What the first pass leaves for the others."""

    ledger: Ledger = field(default_factory=Ledger)
    origins: list[Origin] = field(default_factory=list)
    rows_before: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    types: list[dict[str, list[str]]] = field(default_factory=list)


def files_of(settings: Settings) -> list[SourceFile]:
    """The files of all sources, in order. Raises DataError as `find_files` does."""
    return [file for index, source in enumerate(settings.sources) for file in find_files(source, index)]


def near_threshold(clean: Clean, split: Split, sources: list[Source]) -> float | None:
    """From which similarity texts are near-duplicates; None if neither cleaning nor splitting asks.

    The check for leaks looks for near-copies even where they are allowed within a split. Rows without a text
    (tables, pictures, sounds) are compared exactly unless cleaning asks: the names of columns alone make them alike.
    """
    if clean.near_duplicates is not None:
        return clean.near_duplicates
    if not any(source.text_field and source.kind not in DIGESTED for source in sources):
        return None
    divided = split.validation + split.test > 0 or bool(split.hold_out) or len({source.split for source in sources}) > 1
    return 0.8 if divided else None


def block_bytes(total: int) -> int:
    """Bytes of a block: few for a small corpus, more for one of many gigabytes, by its size alone."""
    return min(32 << 20, max(4 << 20, total // 1024))


def processes_for(settings: Settings, total: int) -> int:
    """How many processes to use; one where starting more would not pay."""
    if settings.processes is not None:
        return settings.processes
    return 1 if total < _ALONE_BYTES else usable_cores()


def build(settings: Settings, out: Draft) -> None:
    """Write the corpus into a draft: splits, `corpus.json`, `ledger.json`, `report.md`.

    Raises DataError for sources that are unreadable, empty or too broken, and Interrupted if asked to
    stop; cleaned blocks stay in the draft's state and are not cleaned again.
    """
    files = files_of(settings)
    check_labels(settings.sources, files)
    total = sum(file.expected_bytes() for file in files)
    processes = processes_for(settings, total)
    out.choices["processes"] = processes
    job = make_job(settings, _state(out, settings, files), total)
    first = _clean(settings, job, files, processes, out.reporter, total)
    first.ledger.check(settings.bad_rows)
    records = corpus_select.gather(job, first.rows_before, first.documents)
    selection = corpus_select.select(job, records, lambda doing, share: out.reporter.advance(doing, share, 1.0))
    corpus_select.clear(job.folder)
    corpus_write.store_choices(job, selection.splits, selection.fate)
    plan = Plan(job, first.origins, records.starts, corpus_write.settle_types(first.types), out.folder)
    written = list(_in_parallel(partial(corpus_write.write_bucket, plan), range(job.buckets), processes, out.reporter))
    splits = corpus_write.collect(out.folder, written)
    _account(settings, first.ledger, selection, plan)
    _describe(settings, first.ledger, selection, splits, plan, out)


def make_job(settings: Settings, folder: Path, total: int) -> Job:
    """The job for the processes; reads the evaluation files if there are any."""
    job = Job(
        settings.sources,
        settings.clean,
        settings.split,
        settings.seed,
        folder,
        buckets=min(1024, max(1, -(-total // _BUCKET_BYTES))),
        threshold=near_threshold(settings.clean, settings.split, settings.sources),
        words=settings.words,
        characters=settings.characters,
    )
    if settings.decontaminate is None:
        return job
    np.save(folder / "evaluation.npy", evaluation_index(settings.decontaminate, settings.words, settings.characters))
    return replace(job, evaluation=folder / "evaluation.npy")


def evaluation_index(source: Source, words: int, characters: int) -> Any:
    """Hashes by which the evaluation texts of a source are recognised."""
    blocks = cut([source], find_files(source), 1 << 20)
    rows = (row.text for block in blocks for row in read_rows(block, source, ()) if not row.bad)
    return index_of(rows, words, characters)


def _state(out: Draft, settings: Settings, files: list[SourceFile]) -> Path:
    """The folder of cleaned blocks, emptied if it is of other files or another recipe."""
    folder = out.state / "blocks"
    sections = [dump(section) for section in (settings.clean, settings.split, *settings.sources)]
    if settings.decontaminate is not None:
        sections.append(dump(settings.decontaminate))
    sizes = [[file.name, file.size, Path(file.path).stat().st_mtime_ns] for file in files]
    layout = [list(map(str, RECORD.descr))]
    identity = digest_data([sections, sizes, settings.seed, settings.words, settings.characters, layout])
    mark = folder / "of"
    if not mark.is_file() or mark.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_whole(mark, identity)
    return folder


def _clean(
    settings: Settings, job: Job, files: list[SourceFile], processes: int, reporter: Reporter, total: int
) -> _Pass:
    done = _Pass()
    held: list[Block] = []
    stored, read, line, before = sum(file.size for file in files), 0, 0, ""
    blocks = _remembered(cut(settings.sources, files, block_bytes(total), job.split.columns, job.split), held)
    with _closing(ordered_map(partial(clean_block, job), blocks, processes)) as summaries:
        for summary in summaries:
            block = held.pop(0)
            here = f"{block.source}:{block.files[0].name}"
            line = line if here == before else block.lead
            _add(done, summary, block, line)
            line, before = line + summary["lines"], here
            read += summary["read_bytes"]
            reporter.advance("cleaning", read, stored, rows=done.ledger.rows)
            _stop_if_asked()
    return done


def _remembered(blocks: Iterable[Block], held: list[Block]) -> Iterator[Block]:
    """Blocks on their way to the processes, noted without their data until their summaries are back."""
    for block in blocks:
        held.append(replace(block, data=None))
        yield block


def _add(done: _Pass, summary: dict[str, Any], block: Block, line: int) -> None:
    names = tuple(file.name for file in block.files)
    done.rows_before.append(done.ledger.rows)
    done.ledger.add(summary, block.source, names, line)
    done.origins.append(Origin(names, line))
    done.documents.append(summary["documents"])
    done.types.append(summary["types"])


def _in_parallel(function: Callable[[T], R], items: Iterable[T], processes: int, reporter: Reporter) -> Iterator[R]:
    every = list(items)
    with _closing(ordered_map(function, every, min(processes, len(every)))) as results:
        for number, result in enumerate(results, 1):
            reporter.advance("writing", number, len(every))
            _stop_if_asked()
            yield result


def _closing(results: Iterator[R]) -> closing[Generator[R, None, None]]:
    """Ends the processes behind the results when the block is left early."""
    return closing(cast(Generator[R, None, None], results))


def _stop_if_asked() -> None:
    if interrupt_requested():
        raise Interrupted("stopped while preparing", fix="run the recipe again: what is cleaned is kept")


def _account(settings: Settings, ledger: Ledger, selection: corpus_select.Selection, plan: Plan) -> None:
    """Enter the duplicates and leaks into the ledger, with examples."""
    ledger.dropped.update(corpus_select.counts(selection))
    for fate, pairs in selection.examples.items():
        for document, kept in pairs:
            source, text = corpus_write.read_document(plan, document)
            of, _ = corpus_write.read_document(plan, kept)
            reason = corpus_select.REASONS[fate]
            ledger.example(f"dropped: {reason}", {"source": source, "excerpt": excerpt(text), "of": of})


def _describe(
    settings: Settings,
    ledger: Ledger,
    selection: corpus_select.Selection,
    splits: dict[str, Any],
    plan: Plan,
    out: Draft,
) -> None:
    leaks: dict[str, Any] = {"exact": 0, "near": 0, **selection.leaks}
    leaks |= {"checked": len(splits) > 1, "action": settings.split.leaks, "similarity": plan.job.threshold}
    data = corpus_ledger.as_data(ledger, splits, leaks, settings.sources)
    out.write_json("ledger.json", data)
    out.path("report.md").write_text(corpus_ledger.as_markdown(data), encoding="utf-8")
    columns = ["text", "id", "source", *(["group"] if settings.split.group else []), *plan.types]
    out.write_json(SUMMARY, {"splits": splits, "columns": columns})
    out.licences |= {", ".join(source.paths): source.licence or "not stated" for source in settings.sources}
    out.metrics |= {
        "rows": ledger.rows,
        "documents": {name: split["documents"] for name, split in splits.items()},
        "bytes": {name: split["bytes"] for name, split in splits.items()},
        "bad": ledger.bad_rows,
        "dropped": dict(ledger.dropped),
        "redacted": dict(ledger.redacted),
        "leaks": leaks,
    }
