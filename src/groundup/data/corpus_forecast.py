"""What can be told of a corpus before it is made: mistakes in its sources, and what it will amount to.

The forecast cleans a sample, 8 MB of all sources together but at least 1 MB of each, by the same code as the stage and
scales the result up by the sizes of the files. Of a finished corpus the same facts are read instead.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.artifact import Artifact
from groundup.config import Mistake
from groundup.data import source_media
from groundup.data.corpus import Corpus, size_of
from groundup.data.corpus_build import Settings, block_bytes, files_of, make_job, processes_for
from groundup.data.corpus_clean import Cleaned, Job, clean_rows, describe
from groundup.data.corpus_select import Apart
from groundup.data.encodings import is_binary
from groundup.data.source_blocks import Block, cut, is_document
from groundup.data.source_files import SourceFile, find_files
from groundup.data.source_media import READERS
from groundup.data.source_rows import Row, read_rows
from groundup.data.sources import DIGESTED, TOGETHER, Source
from groundup.data.splits import SPLITS, Split
from groundup.errors import DataError
from groundup.forecast import Forecast
from groundup.text.duplicate_clusters import PART_ENTRIES, Likeness, candidates, duplicates, spread, verified
from groundup.text.duplicates import band_hashes, bands_for
from groundup.units import show_bytes, show_count, show_seconds

SAMPLE_BYTES = 8 << 20
"""Of all sources together, so that the wait for a plan hardly grows with their number."""
_LEAST_BYTES = 1 << 20
"""Of a source, however many there are."""
_SAMPLE_TEXTS = 1 << 20
"""Bytes of sample texts passed on to later stages."""
_PICTURE_BYTES = 16
"""Bytes of a picture or a recording that count as one of text."""
_SAMPLE_FILES = 2048
"""Files of a sample where each must be decoded."""
_PROBED_FILES = 2000
_PROBED_ROWS = 50
_START_S = 1.0
"""Seconds for processes to start and import what they need."""
_PROCESS_BYTES = 120 << 20
"""Memory of a process with its libraries; this and the next two from bench/prepare.py at 0.2 and 2 GB."""
_RECORD_BYTES = 180
"""Memory of a document's record and signature while duplicates are sought."""
_ENTRY_BYTES = 48
"""Memory of a key while keys are sorted."""

Path_ = tuple[str | int, ...]


def check_source(source: Source, settings: Settings | None, path: Path_) -> list[Mistake]:
    """Mistakes of one source: files missing, unreadable, binary or of another kind, columns missing."""
    try:
        files = find_files(source)
    except DataError as error:
        return [Mistake((*path, "paths"), error.what, error.fix)]
    mistakes = []
    for file in files[:_PROBED_FILES]:
        found = _check_file(file, source)
        if found is not None:
            mistakes.append(Mistake((*path, "paths"), *found))
        if len(mistakes) == 5:
            break
    return mistakes or _check_rows(source, files, settings, path)


def _check_file(file: SourceFile, source: Source) -> tuple[str, str] | None:
    """What is wrong with a file and what to do, told from its first bytes; None if nothing."""
    if not os.access(file.path, os.R_OK):
        return f"no right to read {file.name!r}", f"chmod u+r {file.name}, or add it to `exclude`"
    if file.kind in DIGESTED or file.kind == "parquet" or source.encoding != "auto":
        return None
    try:
        with file.open() as stream:
            head = stream.read(4096)
    except (DataError, OSError, EOFError) as error:
        return f"cannot read {file.name!r} ({error})", "fetch the file again, or add it to `exclude`"
    if is_binary(head):
        return f"{file.name!r} is a binary file, not text", "add it to `exclude`, or name the kind it is"
    return None


def _check_rows(source: Source, files: list[SourceFile], settings: Settings | None, path: Path_) -> list[Mistake]:
    """Mistakes that show in the first block: a column that is missing, rows that cannot be read."""
    wanted = [*source.kept, *source.apart]
    if settings is not None:
        wanted += settings.split.columns
    wanted = [name for name in dict.fromkeys(wanted) if name not in source.add]
    if wanted and files[0].kind == "text":
        what = f"{files[0].name!r} is plain text, which has no column {wanted[0]!r}"
        return [
            Mistake((*path, "keep" if source.keep else "paths"), what, "use `group: folder`, or JSONL, CSV or Parquet")
        ]
    try:
        blocks = cut([source], _probed(source, files), 1 << 16, wanted, settings.split if settings else None)
        rows = (row for block in blocks for row in read_rows(block, source, wanted))
        first: list[Row] = []
        for row in islice(rows, _PROBED_ROWS):
            first.append(row)
            if not row.bad:
                break
        if first and first[-1].bad:
            key, also = ("paths", "") if source.kind in DIGESTED else ("text_field", "`text_field`, `encoding` and ")
            what = f"no row of {files[0].name!r} can be read: {first[0].bad}"
            return [Mistake((*path, key), what, f"check {also}`kind`")]
    except DataError as error:
        return [Mistake((*path, _key_at_fault(error)), error.what, error.fix)]
    return []


def _probed(source: Source, files: list[SourceFile]) -> list[SourceFile]:
    """The files whose first rows are looked at: where each is a row, several, since one may well be broken."""
    if source.kind in TOGETHER:
        return files
    return files[: _PROBED_ROWS if files[0].kind in READERS else 1]


def check_labels(settings: Settings) -> list[Mistake]:
    """What can be told of labels before anything is read: folders of one split that another has not."""
    try:
        source_media.check_labels(settings.sources, files_of(settings))
    except DataError as error:
        return [Mistake(("source",), error.what, error.fix)]
    return []


def _key_at_fault(error: DataError) -> str:
    return "text_field" if "no column" in error.what and "text_field" in error.fix else "paths"


@dataclass
class _Sampled:
    """What cleaning a sample of one source showed."""

    read_bytes: int = 0
    total_bytes: int = 0
    rows: int = 0
    documents: int = 0
    bytes: int = 0
    decoded: int = 0
    """Bytes of pictures and recordings among the kept columns."""
    longest: int = 0
    cpu_s: float = 0.0
    whole: bool = False
    """Whether the sample is all there is."""
    passed: int = 0
    held: int = 0
    """What the examples weigh; of those that passed, every `stride`-th is one."""
    stride: int = 1
    examples: list[dict[str, Any]] = field(default_factory=list)
    records: list[NDArray[Any]] = field(default_factory=list)
    slots: list[NDArray[np.uint32]] = field(default_factory=list)
    split: str | None = None
    shares: dict[str, float] = field(default_factory=dict)
    """Of rows that say their split, the share of each."""

    @property
    def scale(self) -> float:
        """By how much the sample is smaller than the source."""
        return 1.0 if self.whole else self.total_bytes / max(1, self.read_bytes)


def forecast(settings: Settings) -> Forecast:
    """Documents, bytes, time, memory and disk of a preparation, estimated from samples."""
    files = files_of(settings)
    with tempfile.TemporaryDirectory() as folder:
        total = sum(file.expected_bytes() for file in files)
        job = make_job(settings, Path(folder), total)
        sampled = [_sample(job, settings, files, index) for index in range(len(settings.sources))]
    processes = processes_for(settings, total)
    found = _facts(settings, sampled)
    cpu_s = sum(one.cpu_s * one.scale for one in sampled) * 1.3 + 0.2
    seconds = cpu_s / processes + (_START_S if processes > 1 else 0.0)
    held = sum(found["bytes"].values()) + sum(one.decoded * one.scale for one in sampled)
    return Forecast(
        facts=found,
        lines=_lines(settings, files, found, sampled, processes, seconds),
        seconds=seconds,
        cpu_s=cpu_s,
        peak_bytes=_peak(job, processes, total, sum(found["documents"].values())),
        disk_bytes=int(held * 1.1),
        warnings=_warnings(sampled),
        estimated=True,
    )


def _peak(job: Job, processes: int, total: int, documents: int) -> int:
    """Memory of all processes together, at the fullest moment."""
    keys = documents * (1 + (bands_for(job.threshold).count if job.threshold is not None else 0))
    choosing = documents * _RECORD_BYTES + min(PART_ENTRIES, keys) * _ENTRY_BYTES
    return (processes + (processes > 1)) * _PROCESS_BYTES + processes * 8 * block_bytes(total) + choosing


def _sample(job: Job, settings: Settings, files: list[SourceFile], index: int) -> _Sampled:
    source = settings.sources[index]
    own = [file for file in files if file.source == index]
    sampled = _Sampled(total_bytes=sum(file.size for file in own), split=source.split)
    if own and own[0].kind == "text" and is_document(own[0], source):
        sampled.longest = max(file.expected_bytes() for file in own)
    share = max(_LEAST_BYTES, SAMPLE_BYTES // len(settings.sources))
    chosen = _choose(own, share)
    for block in cut(settings.sources, chosen, 1 << 20, settings.split.columns, settings.split):
        if sampled.read_bytes >= share:
            break
        began = time.process_time()
        summary, cleaned = clean_rows(job, block)
        records, slots = describe(job, block, cleaned)
        sampled.cpu_s += time.process_time() - began
        sampled.read_bytes += summary.read_bytes
        sampled.rows += summary.rows
        sampled.decoded += sum(len(value) for kept in cleaned.kept for value in kept if isinstance(value, bytes))
        sampled.records.append(records)
        sampled.slots.append(slots)
        _keep_examples(sampled, job, block, cleaned, _SAMPLE_TEXTS // len(settings.sources))
    else:
        sampled.whole = len(chosen) == len(own)
    _count(sampled, job)
    return sampled


def _keep_examples(sampled: _Sampled, job: Job, block: Block, cleaned: Cleaned, limit: int) -> None:
    """Note whole rows as a corpus gives them, up to so many bytes, from all over the sample.

    Rows often come label by label, so that the first ones alone would all be of one kind.
    """
    for text, row, kept in zip(cleaned.texts, cleaned.rows, cleaned.kept, strict=True):
        sampled.passed += 1
        if (sampled.passed - 1) % sampled.stride:
            continue
        place = {"id": sampled.passed - 1, "source": f"{block.files[row.file].name}:{row.line}"}
        sampled.examples.append({"text": text, **place, **dict(zip(job.kept, kept, strict=True))})
        sampled.held += _weight(sampled.examples[-1])
        while sampled.held > limit and len(sampled.examples) > 1:
            sampled.examples, sampled.stride = sampled.examples[::2], 2 * sampled.stride
            sampled.held = sum(map(_weight, sampled.examples))


def _weight(example: Mapping[str, Any]) -> int:
    """Bytes of an example; those of pictures and recordings count less, since each says less than one of text."""
    text = len(str(example["text"]).encode())
    return text + (size_of(example) - text) // _PICTURE_BYTES


def _count(sampled: _Sampled, job: Job) -> None:
    """Count the documents of the sample that would stay: duplicates within it are left out."""
    if not sampled.records:
        return
    records = np.concatenate(sampled.records)
    stay = np.ones(len(records), bool)
    if len(records) and (job.clean.exact_duplicates or job.clean.near_duplicates is not None):
        stay[_repeats(records, np.concatenate(sampled.slots), job)] = False
    sampled.documents = int(stay.sum())
    if len(records) and sampled.split is None and (records["fixed"] >= 0).all():
        counts = np.bincount(records["fixed"], minlength=len(SPLITS)) / len(records)
        sampled.shares = dict(zip(SPLITS, counts.tolist(), strict=True))
    sampled.bytes = int(records["bytes"][stay].sum())
    sampled.longest = max(sampled.longest, int(records["bytes"].max(initial=0)))


def _repeats(records: NDArray[Any], slots: NDArray[np.uint32], job: Job) -> NDArray[np.int64]:
    """Documents of the sample that repeat an earlier one."""
    near = job.clean.near_duplicates
    ids = np.arange(len(records))
    likeness = Likeness(records["exact"], slots.astype(np.uint8) if near is not None else None)
    codes = np.zeros(len(records), np.int8)
    keys = [(ids, records["exact"][:, :1])]
    if near is not None:
        signed = slots.any(axis=1)
        keys.append((ids[signed], band_hashes(slots[signed], bands_for(near))))
    paths = spread(keys, sum(key.size for _, key in keys), job.folder / f"keys-{len(records)}")
    pairs = verified(candidates(paths), likeness, near or 1.0)
    apart = Apart(likeness, records["distinct"], codes)
    return duplicates(pairs, np.zeros(len(records), np.int64), apart, near or 1.0)[:, 0]


def _choose(files: list[SourceFile], share: int) -> list[SourceFile]:
    """The files to take a sample of `share` bytes from: of many small ones, an even choice.

    Where each is a row, they come in the order of a checksum of their names: folders are often labels, and the first
    of them alone would be a sample of one label.
    """
    if files and files[0].kind in READERS:
        files = sorted(files, key=lambda file: zlib.crc32(file.name.encode()))
    total = sum(file.size for file in files)
    most = _SAMPLE_FILES if files and files[0].kind in READERS else len(files)
    stride = max(1, -(-total // share), -(-len(files) // max(1, most)))
    return files[::stride] if len(files) > 64 else files


def _facts(settings: Settings, sampled: Sequence[_Sampled]) -> dict[str, Any]:
    documents = dict.fromkeys(SPLITS, 0.0)
    size = dict.fromkeys(SPLITS, 0.0)
    shares = _shares(settings.split, [example for one in sampled for example in one.examples])
    for one in sampled:
        for name, share in (one.shares or ({one.split: 1.0} if one.split else shares)).items():
            documents[name] += one.documents * one.scale * share
            size[name] += one.bytes * one.scale * share
    return {
        "documents": {name: round(count) for name, count in documents.items() if round(count)},
        "bytes": {name: round(count) for name, count in size.items() if round(count)},
        "longest_document_bytes": max((one.longest for one in sampled), default=0),
        "sample": [example["text"] for one in sampled for example in one.examples],
        "examples": [example for one in sampled for example in one.examples],
        "licences": {", ".join(s.paths): s.licence or "not stated" for s in settings.sources},
    }


def _shares(split: Split, examples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The share of each split; of groups held out by their names, that of the sample, which may have none of them."""
    shares = {"validation": split.validation, "test": split.test}
    groups = [str(example.get(split.group_column or "")) for example in examples]
    for name, named in split.hold_out.items():
        shares[name] += max(1, sum(group in named for group in groups)) / max(10, len(groups))
    return {"train": max(0.0, 1 - sum(shares.values())), **shares}


def _lines(
    settings: Settings,
    files: list[SourceFile],
    found: dict[str, Any],
    sampled: Sequence[_Sampled],
    processes: int,
    seconds: float,
) -> list[tuple[str, str]]:
    splits = ", ".join(f"{name} {show_count(count)}" for name, count in found["documents"].items())
    return [
        ("files", f"{len(files)} ({show_bytes(sum(file.size for file in files))})"),
        ("documents", f"{splits or 'none'} (estimated)"),
        *_sizes(settings, found, sampled),
        ("licences", ", ".join(sorted(set(found["licences"].values())))),
        ("processes", str(processes)),
        ("time", show_seconds(seconds)),
    ]


def _sizes(settings: Settings, found: dict[str, Any], sampled: Sequence[_Sampled]) -> list[tuple[str, str]]:
    """How much there is to learn from, as far as it is text, and as far as it is pictures or recordings."""
    decoded = sum(one.decoded * one.scale for one in sampled)
    lines = [("decoded", f"{show_bytes(round(decoded))} (estimated)")] if decoded else []
    if all(source.kind in DIGESTED for source in settings.sources):
        return lines
    text = ("text", f"{show_bytes(sum(found['bytes'].values()))} (estimated)")
    return [text, ("longest document", show_bytes(found["longest_document_bytes"])), *lines]


def _warnings(sampled: Sequence[_Sampled]) -> list[str]:
    warnings = []
    for one in sampled:
        if one.rows and one.documents < one.rows / 2:
            warnings.append(f"only {one.documents} of {one.rows} rows in the sample pass the filters of `clean`")
    return warnings


def facts(artifact: Artifact) -> dict[str, Any]:
    """The facts of a finished corpus, in the form that `forecast` estimates."""
    corpus = Corpus(artifact)
    examples: list[dict[str, Any]] = []
    size = 0
    for example in corpus.documents(corpus.splits[0]) if corpus.splits else ():
        if size >= _SAMPLE_TEXTS:
            break
        examples.append(example)
        size += _weight(example)
    return {
        "documents": {split: corpus.rows(split) for split in corpus.splits},
        "bytes": {split: corpus.bytes(split) for split in corpus.splits},
        "longest_document_bytes": max((corpus.longest(split) for split in corpus.splits), default=0),
        "sample": [example["text"] for example in examples],
        "examples": examples,
        "licences": dict(artifact.manifest["licences"]),
    }
