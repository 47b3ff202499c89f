"""A corpus whose rows got their labels from a model: the rows it was sure of, as training rows for the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.artifact import Draft
from groundup.data.corpus import SUMMARY
from groundup.errors import DataError

BATCH_ROWS = 4096
FIXED = ("text", "id", "source")


def write(out: Draft, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, pa.DataType]) -> Counter[str]:
    """Write rows as the train split of a corpus; returns how many there are of each label.

    `columns` gives, beside `text`, `id` and `source`, the type of every further column; each row has
    them all. Raises DataError if there is no row.
    """
    schema = pa.schema([("text", pa.large_string()), ("id", pa.int64()), ("source", pa.string()), *columns.items()])
    name = "train/00000.parquet"
    counts: Counter[str] = Counter()
    documents = size = longest = 0
    held: list[Mapping[str, Any]] = []
    with pq.ParquetWriter(out.path(name), schema, compression="zstd") as writer:

        def flush() -> None:
            if held:
                writer.write_table(pa.Table.from_pylist([dict(row) for row in held], schema))
                held.clear()

        for row in rows:
            length = len(str(row["text"]).encode())
            documents, size, longest = documents + 1, size + length, max(longest, length)
            counts.update([str(row["label"])])
            held.append(row)
            if len(held) == BATCH_ROWS:
                flush()
        flush()
    if not documents:
        raise DataError("the model is sure of no row", fix="lower `confidence`, or give more unlabelled rows")
    sizes = {"documents": documents, "bytes": size, "longest_document_bytes": longest}
    split = sizes | {"files": [{"name": name, "rows": documents}]}
    out.write_json(SUMMARY, {"splits": {"train": split}, "columns": [*FIXED, *columns]})
    return counts
