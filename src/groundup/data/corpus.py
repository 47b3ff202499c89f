"""A prepared corpus: documents in splits, read from Parquet without loading them whole.

`SPLIT/00000.parquet …` hold the columns `text`, `id` (position in the order of the sources), `source`
("path:row"), `group` if documents were grouped, and the columns the recipe asked to keep. The order
within a split is already shuffled. `corpus.json` holds what there is to know without opening them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.artifact import Artifact
from groundup.data.splits import SPLITS
from groundup.errors import ArtifactError, UserError, nearest

SUMMARY = "corpus.json"
NESTED = b"groundup.json"
"""Mark in a column's metadata: its strings are JSON, because its values are lists or mappings."""


class Corpus:
    """The documents of a corpus artefact, by split."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError if the artefact is no corpus."""
        if artifact.kind != "corpus":
            raise ArtifactError(f"expected a corpus, found a {artifact.kind}", where=str(artifact.path))
        self.artifact = artifact

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `corpus.json` holds: for each split documents, bytes, the longest document, files."""
        return dict(self.artifact.json(SUMMARY))

    @property
    def splits(self) -> list[str]:
        """The splits that hold documents, in the order train, validation, test."""
        return [split for split in SPLITS if split in self.summary["splits"]]

    def rows(self, split: str) -> int:
        """Documents in a split."""
        return int(self._split(split)["documents"])

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of all texts of a split."""
        return int(self._split(split)["bytes"])

    def longest(self, split: str) -> int:
        """UTF-8 bytes of the longest text of a split."""
        return int(self._split(split)["longest_document_bytes"])

    @property
    def columns(self) -> list[str]:
        """Names of the columns, `text` first."""
        return list(self.summary["columns"])

    def read(
        self, split: str, columns: Sequence[str] | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The split's rows in order, in batches of at most `batch_rows`; all columns by default.

        Columns with lists or mappings come as JSON text here; `documents` decodes them.
        """
        for file in self._files(split):
            with pq.ParquetFile(file, pre_buffer=False) as opened:
                yield from opened.iter_batches(batch_size=batch_rows, columns=list(columns) if columns else None)

    def documents(self, split: str) -> Iterator[dict[str, Any]]:
        """The split's documents in order, each a mapping from column to value."""
        for batch in self.read(split):
            nested = _nested(batch.schema)
            for document in batch.to_pylist():
                yield _decoded(document, nested)

    def document(self, split: str, index: int) -> dict[str, Any]:
        """One document by its place in the split. Raises IndexError outside it."""
        if not 0 <= index < self.rows(split):
            raise IndexError(f"the {split} split has {self.rows(split)} documents; there is no number {index}")
        starts = [0, *accumulate(int(file["rows"]) for file in self._split(split)["files"])]
        number = bisect_right(starts, index) - 1
        with pq.ParquetFile(self._files(split)[number]) as opened:
            return _one(opened, index - starts[number])

    def _split(self, split: str) -> dict[str, Any]:
        splits = self.summary["splits"]
        if split not in splits:
            fix = nearest(split, splits) + "; `split` of the prepare stage makes more"
            raise UserError(f"the corpus has no split {split!r}", where=str(self.artifact.path), fix=fix)
        return dict(splits[split])

    def _files(self, split: str) -> list[str]:
        return [str(self.artifact.file(file["name"])) for file in self._split(split)["files"]]


def size_of(document: Mapping[str, Any]) -> int:
    """Bytes of a document: of its text in UTF-8, and of the pictures and recordings among its columns."""
    held = sum(len(value) for value in document.values() if isinstance(value, bytes))
    return held + len(str(document.get("text", "")).encode())


def _one(opened: pq.ParquetFile, index: int) -> dict[str, Any]:
    """A row of a file, reading only the row group it lies in."""
    group = 0
    while index >= (rows := opened.metadata.row_group(group).num_rows):
        index -= rows
        group += 1
    table = opened.read_row_group(group).slice(index, 1)
    return _decoded(table.to_pylist()[0], _nested(table.schema))


def _nested(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if field.metadata and NESTED in field.metadata]


def _decoded(document: dict[str, Any], nested: list[str]) -> dict[str, Any]:
    for name in nested:
        if document[name] is not None:
            document[name] = json.loads(document[name])
    return document
