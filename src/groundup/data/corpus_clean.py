"""The first pass over the sources: each block read, cleaned and set aside, in any process.

A cleaned block is three files: its documents (Arrow, already divided over the buckets of the final
shuffle), a fixed-size record for each document by which duplicates and splits are decided without the
texts, and a summary for the ledger, written last. A block whose summary exists is done, so an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from groundup.artifact import write_whole
from groundup.data.corpus_treat import Treatment
from groundup.data.source_blocks import Block
from groundup.data.source_made import LEFT_OUT
from groundup.data.source_rows import Row, count_lines, read_rows
from groundup.data.sources import Source
from groundup.data.splits import SPLIT, SPLITS, Split, parse_time
from groundup.text.contamination import is_contaminated
from groundup.text.duplicates import (
    SLOTS,
    Hashes,
    band_hashes,
    bands_for,
    exact_hash,
    fewest_shingles,
    mix,
    shingles,
    signatures,
)
from groundup.text.filters import Filters, reason_to_drop
from groundup.text.identifiers import Identifier
from groundup.text.normalise import Normalise
from groundup.units import parse_share

RECORD = np.dtype(
    [
        ("exact", "<u8", (2,)),
        ("group", "<u8"),
        ("time", "<f8"),
        ("id", "<i8"),
        ("bytes", "<i8"),
        ("fixed", "<i1"),
        ("stratum", "<u8"),
        ("distinct", "<u8"),
    ]
)
"""What is known of a document without its text: hash, group, time, row, size, prescribed split, stratum,
and the hash of what tells it apart from others of the same text."""
EXAMPLES = 3
"""Examples kept for each reason."""
EXCERPT = 80
"""Characters of an example."""
_COMPARED = 1 << 20
"""Characters of a document by which near-duplicates are told; longer ones are compared up to there."""
_TOGETHER = 1 << 18
"""Characters whose n-grams are held at a time."""


def _share_or_off(value: Any) -> float | None:
    return None if value in (None, False, "off", "none") else parse_share(value)


class Clean(Normalise, Filters):
    """What is done to each document, and which documents are left out."""

    redact: list[Identifier] = Field(default=[])
    """Personal identifiers to replace by placeholders: `email`, `phone` (international and Chinese),
    `id_number` (Chinese, with its check digit), `card_number` (with its check digit). In the text and in
    every string of the kept columns alike."""
    exact_duplicates: bool = True
    """Keep only one of several equal texts."""
    near_duplicates: Annotated[
        float | None,
        BeforeValidator(_share_or_off),
        WithJsonSchema({"anyOf": [{"type": ["number", "string", "null"]}], "examples": [0.8, "off"]}),
    ] = None
    """Keep only one of texts whose sets of character n-grams are at least this similar (Jaccard), for
    example 0.8; `off` by default."""
    ngram: Annotated[int, Field(ge=2, le=32)] = 5
    """Length of the character n-grams by which near-duplicates are told."""

    @field_validator("redact", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("near_duplicates")
    @classmethod
    def _is_sensible(cls, value: float | None) -> float | None:
        if value is not None and value < 0.3:
            raise ValueError(f"{value} would call unrelated texts near-duplicates; use 0.7 to 0.9, or off")
        return value


@dataclass(frozen=True)
class Job:
    """Everything a process needs to know to clean a block."""

    sources: list[Source]
    clean: Clean
    split: Split
    seed: int
    folder: Path
    """Where cleaned blocks are set aside."""
    buckets: int
    threshold: float | None
    """Similarity from which texts are near-duplicates; None if nobody asks for them."""
    evaluation: Path | None = None
    """Index of evaluation texts (`contamination.index_of`), as a NumPy file."""
    words: int = 13
    characters: int = 40

    @cached_property
    def kept(self) -> list[str]:
        """Columns carried into the corpus, of all sources."""
        return list(dict.fromkeys(name for source in self.sources for name in (*source.kept, *source.add)))

    def wanted(self, source: int) -> list[str]:
        """Columns to read from a source beside its text, by their names in the corpus."""
        read = self.sources[source]
        own_split = [SPLIT] if read.says_split else []
        return list(dict.fromkeys((*read.kept, *read.add, *self.split.columns, *read.apart, *own_split)))

    @cached_property
    def treatment(self) -> Treatment:
        """What is done to texts and to strings in kept columns."""
        return Treatment(self.clean, self.clean.redact)

    @cached_property
    def index(self) -> Hashes | None:
        """The index of evaluation texts, mapped into memory."""
        return None if self.evaluation is None else np.load(self.evaluation, mmap_mode="r")

    def paths(self, block: int) -> tuple[Path, Path, Path]:
        """Documents, records and summary of a cleaned block."""
        stem = self.folder / f"{block:06d}"
        return stem.with_suffix(".arrow"), stem.with_suffix(".npz"), stem.with_suffix(".json")


@dataclass
class Summary:
    """What happened to the rows of a block; adds up to the ledger."""

    rows: int = 0
    lines: int = 0
    documents: int = 0
    bytes: int = 0
    read_bytes: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    """Reason → (file of the block, line in the block, excerpt)."""
    types: dict[str, list[str]] = field(default_factory=dict)
    """Kept column → kinds of values seen in it."""

    def note(self, reason: str, row: Row, excerpt: str) -> None:
        """Keep a row as an example of a reason, if few have been kept."""
        held = self.examples.setdefault(reason, [])
        if len(held) < EXAMPLES:
            held.append((row.file, row.line, excerpt))


@dataclass
class Cleaned:
    """The documents of a block that passed."""

    texts: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    """Position of each among the rows of the block."""
    kept: list[tuple[Any, ...]] = field(default_factory=list)
    """Values of the job's kept columns, clean."""


def clean_block(job: Job, block: Block) -> dict[str, Any]:
    """Clean a block and set it aside; its summary as plain data. Does nothing for a block already done."""
    _, _, finished = job.paths(block.index)
    if not finished.exists():
        summary, cleaned = clean_rows(job, block)
        records, slots = describe(job, block, cleaned)
        _set_aside(job, block, cleaned, records, slots, summary)
        write_whole(finished, json.dumps(vars(summary)))
    return dict(json.loads(finished.read_text(encoding="utf-8")))


def clean_rows(job: Job, block: Block) -> tuple[Summary, Cleaned]:
    """The rows of a block that pass all filters, and what happened to the others."""
    summary, cleaned = Summary(), Cleaned()
    source = job.sources[block.source]
    wanted = job.wanted(block.source)
    for row in read_rows(block, source, wanted):
        summary.rows += 1
        reason = row.bad or _missing(job, row, wanted)
        if reason:
            # A row that could not be read cannot be redacted either, so it is not quoted; a detail may be a value.
            kind, _, detail = reason.partition(" (")
            is_wanted = kind.startswith(LEFT_OUT)
            kind = kind.removeprefix(LEFT_OUT)
            (summary.dropped if is_wanted else summary.bad)[kind] += 1
            excerpt_ = job.treatment.redacted(detail.removesuffix(")"))[0]
            summary.note(f"{'dropped' if is_wanted else 'bad'}: {kind}", row, excerpt_)
            continue
        found: Counter[str] = Counter()
        kept = [job.treatment.value(value, found) for value in _kept(job, row, wanted)]
        hidden = next(
            (name for name, value in zip(job.kept, kept, strict=True) if job.treatment.runs_over(value)), None
        )
        if hidden is not None:
            kind = f"an identifier runs over several items of {hidden!r}"
            summary.bad[kind] += 1
            summary.note(f"bad: {kind}", row, "")
            continue
        text = _clean_text(job, row, summary)
        reason = _reason(job, text)
        if reason:
            summary.dropped[reason] += 1
            summary.note(f"dropped: {reason}", row, excerpt(text))
            continue
        summary.redacted.update({f"{kind} (kept columns)": count for kind, count in found.items()})
        cleaned.kept.append(tuple([job.treatment.moved(value, row.text, text) for value in kept]))
        cleaned.texts.append(text)
        cleaned.rows.append(row)
        cleaned.ids.append(summary.rows - 1)
    summary.lines = count_lines(block, source)
    summary.documents, summary.read_bytes = len(cleaned.texts), block.size
    return summary, cleaned


def _missing(job: Job, row: Row, wanted: list[str]) -> str:
    """Why a row without its group or time cannot be used; empty if it has both."""
    split = job.split
    if split.by == "time" and split.time and parse_time(row.extra[wanted.index(split.time)]) is None:
        return f"no time in {split.time!r}"
    if split.group_column and row.extra[wanted.index(split.group_column)] is None:
        return f"no value in {split.group_column!r}"
    return ""


def _kept(job: Job, row: Row, wanted: list[str]) -> list[Any]:
    """The values of the job's kept columns as the row has them; None for those of other sources."""
    own = dict(zip(wanted, row.extra, strict=False))
    return [own.get(name) for name in job.kept]


def _clean_text(job: Job, row: Row, summary: Summary) -> str:
    text, changed, found = job.treatment.text(row.text)
    summary.changed.update(changed)
    if found:
        summary.redacted.update(found)
        summary.changed["redacted"] += 1
        place = min(text.find(f"<{kind.upper()}>") for kind in found)
        summary.note("changed: redacted", row, excerpt(text, place))
    return text


def _reason(job: Job, text: str) -> str:
    reason = reason_to_drop(text, job.clean)
    if not reason and job.index is not None and is_contaminated(text, job.index, job.words, job.characters):
        return "contains evaluation data"
    return reason


def excerpt(text: str, place: int = 0) -> str:
    """A short piece of a text around a place, on one line."""
    start = max(0, place - EXCERPT // 2)
    piece = " ".join(text[start : start + EXCERPT * 2].split())[:EXCERPT]
    return piece + ("…" if len(text) > start + EXCERPT else "")


def describe(job: Job, block: Block, cleaned: Cleaned) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """The records of documents (see RECORD; `id` counts rows of the block) and their signatures.

    A document too short to compare has a signature of zeros; without near-duplicates there are none.
    """
    records = np.zeros(len(cleaned.texts), RECORD)
    wanted = job.wanted(block.source)
    for number, (text, row) in enumerate(zip(cleaned.texts, cleaned.rows, strict=True)):
        records["exact"][number] = exact_hash(text)
        records["bytes"][number] = len(text) if text.isascii() else len(text.encode())
        group = group_of(job, block, row, wanted)
        records["group"][number] = exact_hash(group)[0] if group is not None else 0
        own = dict(zip(wanted, row.extra, strict=False))
        apart = [own.get(name) for name in job.sources[block.source].apart]
        records["distinct"][number] = exact_hash(_as_json(apart))[0] if apart else 0
        if job.split.stratify is not None:
            records["stratum"][number] = exact_hash(_as_json(own.get(job.split.stratify)))[0]
        if job.split.by == "time" and job.split.time:
            records["time"][number] = parse_time(row.extra[wanted.index(job.split.time)])
    records["id"] = cleaned.ids
    source = job.sources[block.source]
    records["fixed"] = -1 if source.split is None else SPLITS.index(source.split)
    if job.split.hold_out and source.split is None:
        records["fixed"] = [job.split.code_of(group_of(job, block, row, wanted)) for row in cleaned.rows]
    if source.says_split:
        place = wanted.index(SPLIT)
        records["fixed"] = [SPLITS.index(row.extra[place]) for row in cleaned.rows]
    if job.threshold is None:
        return records, np.empty((0, SLOTS), np.uint32)
    return records, _signatures(cleaned.texts, job.clean.ngram, fewest_shingles(job.threshold, job.clean.ngram))


def group_of(job: Job, block: Block, row: Row, wanted: list[str]) -> str | None:
    """The name of a document's group, or None if documents are not grouped."""
    if job.split.group is None:
        return None
    if job.split.group == "folder":
        return block.files[row.file].folder
    return str(row.extra[wanted.index(job.split.group)])


def _signatures(texts: list[str], n: int, fewest: int) -> NDArray[np.uint32]:
    parts = [np.empty((0, SLOTS), np.uint32)]
    for together in _packed(texts):
        hashes, offsets = shingles(together, n)
        slots = signatures(hashes, offsets)
        slots[np.diff(offsets.astype(np.int64)) < fewest] = 0
        parts.append(slots)
    return np.concatenate(parts)


def _packed(texts: list[str]) -> Iterator[list[str]]:
    """Texts in consecutive lists of about _TOGETHER characters, each cut to what is compared."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text[:_COMPARED])
        size += len(held[-1])
        if size >= _TOGETHER:
            yield held
            held, size = [], 0
    if held:
        yield held


def _set_aside(
    job: Job, block: Block, cleaned: Cleaned, records: NDArray[Any], slots: NDArray[np.uint32], summary: Summary
) -> None:
    documents, described, _ = job.paths(block.index)
    bands: Hashes = np.empty((0, 0), np.uint64)
    if job.threshold is not None:
        bands = band_hashes(slots, bands_for(job.threshold))
    with described.open("wb") as file:
        np.savez(file, records=records, slots=slots.astype(np.uint8), bands=bands)
    summary.bytes = int(records["bytes"].sum())
    table = _table(job, block, cleaned, summary)
    keys = mix(records["exact"][:, 0] ^ mix(np.arange(len(records), dtype=np.uint64) + np.uint64(block.index << 20)))
    bucket = (keys % np.uint64(job.buckets)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(job.buckets + 1))
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.OSFile(str(documents), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for start, end in pairwise(bounds.tolist()):
            writer.write_batch(table.take(pa.array(order[start:end])))


def _table(job: Job, block: Block, cleaned: Cleaned, summary: Summary) -> pa.RecordBatch:
    """The documents as columns; kept columns as JSON, whose types are settled when all are known."""
    wanted = job.wanted(block.source)
    columns: dict[str, pa.Array] = {
        "text": pa.array(cleaned.texts, pa.large_string()),
        "number": pa.array(np.arange(len(cleaned.texts), dtype=np.int32)),
        "line": pa.array([row.line for row in cleaned.rows], pa.int64()),
        "file": pa.array([row.file for row in cleaned.rows], pa.int32()),
    }
    if job.split.group is not None:
        groups = [group_of(job, block, row, wanted) for row in cleaned.rows]
        columns["group"] = pa.array([g and job.treatment.redacted(g)[0] for g in groups], pa.string())
    for place, name in enumerate(job.kept):
        values = [kept[place] for kept in cleaned.kept]
        summary.types[name] = sorted({_type(value) for value in values})
        columns[f"kept:{name}"] = pa.array([None if v is None else _as_json(v) for v in values], pa.string())
    return pa.RecordBatch.from_pydict(columns)


def _type(value: Any) -> str:
    known = {type(None): "null", bool: "bool", int: "int", float: "float", str: "string", list: "json", dict: "json"}
    return known.get(type(value), "bytes" if isinstance(value, bytes) else "string")


def _as_json(value: Any) -> str:
    """A value as JSON; a picture or a recording, which is bytes, in base 64."""
    if isinstance(value, bytes):
        return json.dumps(base64.b64encode(value).decode("ascii"))
    return json.dumps(value, ensure_ascii=False, default=str)
