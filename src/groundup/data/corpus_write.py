"""The second pass: cleaned documents written to their splits in a random order.

Documents were divided over buckets at random as they were cleaned. A bucket is small enough to be held
in memory, so ordering each by a hash of the document's id and the seed shuffles the whole corpus. Each
bucket gives one file for each split it has documents of.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from groundup.data.corpus import NESTED
from groundup.data.corpus_clean import RECORD, Job
from groundup.data.splits import SPLITS
from groundup.text.duplicates import mix

ROW_GROUP_BYTES = 1 << 20
"""Text in one row group: what reading a single document has to unpack."""


@dataclass(frozen=True)
class Origin:
    """Where the rows of a block are from."""

    names: tuple[str, ...]
    """Names of its files."""
    line: int
    """Lines of the file before the block."""


@dataclass(frozen=True)
class Plan:
    """Everything a process needs to know to write a bucket."""

    job: Job
    origins: list[Origin]
    starts: NDArray[np.int64]
    """Number of each block's first document, with the total at the end."""
    types: dict[str, str]
    """Kept column → null, bool, int, float, string, bytes or json."""
    target: Path

    def choices(self) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Split and fate of every document, as stored by `store_choices`."""
        path = self.job.folder / "choices.npy"
        both = np.load(path, mmap_mode="r")
        return both[0], both[1]


def store_choices(job: Job, splits: NDArray[np.int8], fate: NDArray[np.int8]) -> None:
    """Write what was decided to where the processes that write buckets look for it."""
    np.save(job.folder / "choices.npy", np.stack([splits, fate]))


def settle_types(seen: Sequence[dict[str, list[str]]]) -> dict[str, str]:
    """The type of each kept column that all its values fit."""
    kinds: dict[str, set[str]] = {}
    for block in seen:
        for name, types in block.items():
            kinds.setdefault(name, set()).update(types)
    return {name: _join(types - {"null"}) for name, types in kinds.items()}


def _join(types: set[str]) -> str:
    if not types:
        return "null"
    if types == {"int", "float"}:
        return "float"
    if len(types) == 1:
        return types.pop()
    return "json" if "json" in types else "string"


def write_bucket(plan: Plan, bucket: int) -> dict[str, dict[str, int]]:
    """Write a bucket's documents, by split, to `SPLIT-BUCKET.parquet` below the target.

    Returns for each split the number of documents, their bytes and the longest one's bytes.
    """
    splits, fate = plan.choices()
    tables = []
    for block in range(len(plan.origins)):
        batch = _read_bucket(plan, block, bucket)
        number = plan.starts[block] + batch["number"].to_numpy()
        kept = fate[number] == 0
        if kept.any():
            tables.append(_finished(plan, block, batch.filter(pa.array(kept)), number[kept], splits))
    if not tables:
        return {}
    table = pa.concat_tables(tables)
    ids = table["id"].to_numpy().astype(np.uint64)
    salt = mix(np.array([plan.job.seed & (2**64 - 1)], np.uint64))
    order = np.argsort(mix(ids ^ salt))
    table = table.take(pa.array(order))
    code = table["split"].to_numpy()
    written = {}
    for index in np.unique(code):
        part = table.filter(pa.array(code == index)).drop_columns(["split"])
        written[SPLITS[index]] = _write(plan.target / f"{SPLITS[index]}-{bucket}.parquet", part)
    return written


def _read_bucket(plan: Plan, block: int, bucket: int) -> pa.RecordBatch:
    with pa.memory_map(str(plan.job.paths(block)[0])) as source, pa.ipc.open_file(source) as reader:
        return reader.get_batch(bucket)


def _finished(
    plan: Plan, block: int, batch: pa.RecordBatch, number: NDArray[np.int64], splits: NDArray[np.int8]
) -> pa.Table:
    """A block's part of a bucket with the columns of the corpus, and `split`."""
    origin = plan.origins[block]
    lines = (batch["line"].to_numpy() + origin.line).tolist()
    files = batch["file"].to_pylist()
    columns: dict[str, Any] = {
        "text": batch["text"].cast(pa.string()),
        "id": pa.array(_ids(plan, number), pa.int64()),
        "source": pa.array([f"{origin.names[f]}:{line}" for f, line in zip(files, lines, strict=True)], pa.string()),
    }
    if "group" in batch.schema.names:
        columns["group"] = batch["group"]
    fields = []
    for name, kind in plan.types.items():
        columns[name], metadata = _typed(batch[f"kept:{name}"], kind)
        fields.append((name, metadata))
    columns["split"] = pa.array(splits[number])
    table = pa.table(columns)
    for name, metadata in fields:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name).with_metadata(metadata), table[name])
    return table


def _ids(plan: Plan, number: NDArray[np.int64]) -> NDArray[np.int64]:
    records = np.memmap(plan.job.folder / "records", RECORD, "r", shape=(int(plan.starts[-1]),))
    return np.asarray(records["id"][number])


def _typed(column: pa.Array, kind: str) -> tuple[pa.Array, dict[bytes, bytes] | None]:
    """A kept column in its final type; lists and mappings stay JSON and are marked."""
    if kind == "json":
        return column, {NESTED: b"1"}
    values = [None if text is None else json.loads(text) for text in column.to_pylist()]
    if kind == "bytes":
        return pa.array([value and base64.b64decode(value) for value in values], pa.binary()), None
    types = {"null": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}
    if kind == "string":
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(values, types[kind]), None


def _write(path: Path, table: pa.Table) -> dict[str, int]:
    sizes = pc.binary_length(table["text"]).to_numpy()
    total, held = int(sizes.sum()), int(sizes.sum()) + _binary_bytes(table)
    rows = max(1, min(4096, round(ROW_GROUP_BYTES * len(sizes) / max(1, held))))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=rows, use_dictionary=_repeating(table))
    return {"documents": len(sizes), "bytes": total, "longest_document_bytes": int(sizes.max())}


def _binary_bytes(table: pa.Table) -> int:
    """Bytes of pictures and recordings."""
    names = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    return sum(int(pc.sum(pc.binary_length(table[name])).as_py() or 0) for name in names)


def _repeating(table: pa.Table) -> list[str]:
    """Columns whose values recur, so that a dictionary pays."""
    return [
        field.name
        for field in table.schema
        if field.name not in ("text", "id", "source") and not pa.types.is_binary(field.type)
    ]


def collect(target: Path, written: Sequence[dict[str, dict[str, int]]]) -> dict[str, Any]:
    """Give the written files their final names, `SPLIT/00000.parquet …`; returns each split's summary."""
    splits: dict[str, Any] = {}
    for split in SPLITS:
        parts = [(bucket, counts[split]) for bucket, counts in enumerate(written) if split in counts]
        if not parts:
            continue
        (target / split).mkdir(exist_ok=True)
        files = []
        for place, (bucket, counts) in enumerate(parts):
            name = f"{split}/{place:05d}.parquet"
            (target / f"{split}-{bucket}.parquet").rename(target / name)
            files.append({"name": name, "rows": counts["documents"]})
        splits[split] = {
            "documents": sum(counts["documents"] for _, counts in parts),
            "bytes": sum(counts["bytes"] for _, counts in parts),
            "longest_document_bytes": max(counts["longest_document_bytes"] for _, counts in parts),
            "files": files,
        }
    return splits


def read_document(plan: Plan, number: int) -> tuple[str, str]:
    """The source and the text of a cleaned document, for an example in the ledger."""
    block = int(np.searchsorted(plan.starts, number, side="right")) - 1
    own = number - int(plan.starts[block])
    origin = plan.origins[block]
    for bucket in range(plan.job.buckets):
        batch = _read_bucket(plan, block, bucket)
        places = np.flatnonzero(batch["number"].to_numpy() == own)
        if len(places):
            row = batch.slice(int(places[0]), 1).to_pylist()[0]
            return f"{origin.names[row['file']]}:{origin.line + row['line']}", str(row["text"])
    raise AssertionError(f"document {number} is in no bucket of its block")
