"""Documents as token ids on disk: encoded once, then read as plain memory, however large.

A task's `encode` turns each document into lists of numbers, whole ones as a rule. They are laid end to end in one
file a column, with a second file of offsets, and are an artefact of kind `shards` of their own: the
key is the corpus, the split and whatever decides the encoding, so a change of the learning rate finds
them in the store. Reading maps the files and copies nothing.

Encoding is spread over processes and streamed: memory holds a few batches, whatever the size of the
corpus, and the files are the same bytes for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from groundup.artifact import Artifact, Draft, Store, digest_data
from groundup.data.workers import ordered_map
from groundup.errors import ArtifactError, DataError, Interrupted
from groundup.progress import Reporter, interrupt_requested

if TYPE_CHECKING:
    from groundup.data.corpus import Corpus

VERSION = 1
BATCH_BYTES = 1 << 20
"""Text handed to a process at once: enough that passing it costs little, little enough to spread."""
SMALL_BYTES = 4 << 20
"""A corpus below this is encoded here: starting processes would take longer."""
Encode = Callable[[dict[str, Any]], dict[str, Any]]
Array = NDArray[Any]
DTYPES = ("uint16", "uint32", "int32", "int64")
KEPT = ("uint8", "int16", "float32")
"""Types of arrays (pixels, samples, features) that are stored as they come; plain lists go by their values."""
REAL = "float64"
"""The type of a column in which a document gave a number that is not whole."""


class Shards:
    """Encoded documents, opened for reading. Cheap to open and to send to another process."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.index: dict[str, Any] = artifact.json("index.json")

    def __getstate__(self) -> dict[str, Any]:
        return {"artifact": self.artifact, "index": self.index}

    @property
    def documents(self) -> int:
        """How many documents there are, in the order of the corpus."""
        return int(self.index["documents"])

    @property
    def columns(self) -> list[str]:
        """The names of the columns; `input_ids` is one where a document is tokens."""
        return list(self.index["columns"])

    @property
    def tokens(self) -> int:
        """The length of all `input_ids` together; of what is no tokens, the number of documents."""
        return int(self.index["columns"].get("input_ids", {"length": self.documents})["length"])

    @cached_property
    def bytes(self) -> NDArray[np.int64]:
        """(documents,) int64: the length of each document's source text in UTF-8."""
        return self._map("bytes.bin", "int64", self.documents)

    def column(self, name: str) -> tuple[Array, NDArray[np.int64]]:
        """A column as (all values end to end, offsets); both are mapped, not read.

        Document i holds `values[offsets[i]:offsets[i + 1]]`; offsets is (documents + 1,) int64.
        Raises ArtifactError for a name that is no column.
        """
        entry = self.index["columns"].get(name)
        if entry is None:
            known = ", ".join(self.columns)
            raise ArtifactError(
                f"the shards have no column {name!r}", where=str(self.artifact.path), fix=f"columns: {known}"
            )
        values = self._map(f"{name}.bin", entry["dtype"], entry["length"])
        return values, self._map(f"{entry['offsets']}.offsets.bin", "int64", self.documents + 1)

    def document(self, position: int, name: str = "input_ids") -> Array:
        """The values of one document, as a view of the mapped file."""
        values, offsets = self._opened(name)
        return values[offsets[position] : offsets[position + 1]]

    def _opened(self, name: str) -> tuple[Array, NDArray[np.int64]]:
        if not hasattr(self, "_open"):
            self._open: dict[str, tuple[Array, NDArray[np.int64]]] = {}
        if name not in self._open:
            self._open[name] = self.column(name)
        return self._open[name]

    def _map(self, name: str, dtype: str, length: int) -> Array:
        if length == 0:
            return np.empty(0, dtype=dtype)
        return np.memmap(self.artifact.file(name), dtype=_little(dtype), mode="r", shape=(length,))


def shards_key(corpus_digest: str, split: str, task_key: dict[str, Any]) -> str:
    """The store's key of the shards of one split of a corpus under one encoding."""
    described = {"kind": "shards", "version": VERSION, "corpus": corpus_digest, "split": split, "task": task_key}
    return digest_data(described)


def open_or_build(
    store: Store,
    corpus: Corpus,
    split: str,
    task_key: dict[str, Any],
    encode: Encode,
    reporter: Reporter | None = None,
    processes: int = 1,
) -> Shards:
    """The shards of a split under an encoding, from the store, or encoded now and kept there.

    `task_key` is plain data with everything that decides what `encode` returns: the tokenizer's
    digest, the task's name, version and settings. `encode(document)` returns equally named lists of
    numbers, or arrays, for every document; it must be picklable, as it is sent to
    the processes. Raises Interrupted when the user asks to stop (nothing half-written stays), and
    whatever `encode` raises.
    """
    key = shards_key(corpus.artifact.digest, split, task_key)
    found = store.find(key)
    if found is None:
        parent = {"kind": "corpus", "digest": corpus.artifact.digest, "part": split}
        described = {"stage": "shards", "section": {"split": split, **task_key}, "parents": {"corpus": parent}}
        with store.draft("shards", key, reporter=reporter, **described) as draft:
            _build(draft, corpus, split, encode, processes)
        found = store.find(key)
        assert found is not None, "a finished draft is in the store"
    return Shards(found)


def _build(draft: Draft, corpus: Corpus, split: str, encode: Encode, processes: int) -> None:
    total = corpus.bytes(split)
    workers = 1 if total < SMALL_BYTES else max(1, processes)
    batches = _batches(corpus.documents(split))
    done = 0
    with _Writer(draft) as writer:
        for columns, lengths in ordered_map(_EncodeBatch(encode), batches, workers):
            writer.add(columns, lengths)
            done += int(lengths.sum())
            draft.reporter.advance(f"encoding {split}", done, total, tokens=writer.tokens)
            if interrupt_requested():
                raise Interrupted(f"stopped while encoding {split}", fix="run again: encoding starts afresh")
        draft.write_json("index.json", writer.index())
    draft.tokens = writer.tokens
    draft.metrics |= {"documents": writer.documents, "tokens": writer.tokens, "bytes": done}


def _batches(documents: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Documents in groups of about BATCH_BYTES characters of text."""
    batch: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += 64 + sum(len(value) for value in document.values() if isinstance(value, str | bytes))
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _EncodeBatch:
    """The work of a process: documents in; each column end to end with its lengths out."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __call__(self, documents: Sequence[dict[str, Any]]) -> tuple[dict[str, tuple[Array, Array]], Array]:
        rows = [self.encode(document) for document in documents]
        for row, document in zip(rows, documents, strict=True):
            _check_row(row, rows[0], document)
        columns = {}
        for name in rows[0]:
            values = np.concatenate([_as_array(row[name]) for row in rows])
            columns[name] = values, np.array([len(row[name]) for row in rows], dtype=np.int64)
        return columns, np.array([len(document["text"].encode("utf-8")) for document in documents], dtype=np.int64)


def _as_array(values: Sequence[int] | Sequence[float] | Array) -> Array:
    if isinstance(values, np.ndarray) and values.dtype.name in KEPT:
        return values
    is_real = len(values) > 0 and isinstance(values[0], float)
    return np.asarray(values, dtype=np.float64 if is_real else np.int64)


def _check_row(row: dict[str, Any], first: dict[str, Any], document: dict[str, Any]) -> None:
    if not row or row.keys() != first.keys():
        what = f"encode gave the columns {sorted(row)}, and {sorted(first)} for another document"
        fix = "a task's encode returns the same columns for every document"
        raise DataError(what, where=str(document.get("source", "")), fix=fix)


class _Writer:
    """Appends batches to one file a column, each in the narrowest type that holds its values so far.

    A type only ever grows: whole numbers to wider ones, any of them to real numbers.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.stack = ExitStack()
        self.files: dict[str, IO[bytes]] = {}
        self.dtypes: dict[str, str] = {}
        self.lengths: dict[str, int] = {}
        self.aligned: set[str] = set()
        self.documents = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def tokens(self) -> int:
        """The length of `input_ids` so far; of what is no tokens, the number of documents."""
        return self.lengths.get("input_ids", self.documents)

    @property
    def first(self) -> str:
        """The column by which it is told whether the others are as long."""
        return "input_ids" if "input_ids" in self.dtypes else next(iter(self.dtypes))

    def add(self, columns: dict[str, tuple[Array, Array]], sizes: Array) -> None:
        """Append the documents of a batch; `sizes` are the bytes of their texts."""
        if not self.dtypes:
            self._begin(columns)
            self.dtypes |= {n: v.dtype.name for n, (v, _) in columns.items() if v.dtype.name in KEPT}
        shared = columns[self.first][1]
        for name, (values, lengths) in columns.items():
            self._widen(name, values)
            self.files[name].write(values.astype(_little(self.dtypes[name])).tobytes())
            ends = self.lengths[name] + np.cumsum(lengths)
            self.files[f"{name}.offsets"].write(ends.astype("<i8").tobytes())
            self.lengths[name] += len(values)
            if not np.array_equal(lengths, shared):
                self.aligned.discard(name)
        self.files["bytes"].write(sizes.astype("<i8").tobytes())
        self.documents += len(sizes)

    def index(self) -> dict[str, Any]:
        """The content of index.json, after closing the files and dropping offsets that are repeated."""
        if not self.dtypes:
            self._begin({"input_ids": (np.empty(0), np.empty(0))})
        self.stack.close()
        columns = {}
        for name in self.dtypes:
            source = self.first if name in self.aligned else name
            if source != name:
                self._path(f"{name}.offsets").unlink()
            columns[name] = {"dtype": self.dtypes[name], "length": self.lengths[name], "offsets": source}
        return {"documents": self.documents, "columns": columns}

    def _begin(self, columns: Iterable[str]) -> None:
        for name in columns:
            self.dtypes[name], self.lengths[name] = DTYPES[0], 0
            self._open(name)
            self._open(f"{name}.offsets").write(np.zeros(1, "<i8").tobytes())
        self.aligned = set(self.dtypes)
        self._open("bytes")

    def _open(self, name: str, mode: str = "wb") -> IO[bytes]:
        self.files[name] = self.stack.enter_context(self._path(name).open(mode))
        return self.files[name]

    def _path(self, name: str) -> Path:
        return self.draft.path(f"{name}.bin")

    def _widen(self, name: str, values: Array) -> None:
        """Rewrite a column in a wider type when the new values need one; rare, and a stream."""
        old = self.dtypes[name]
        if not len(values) or old in (REAL, values.dtype.name):
            return
        if values.dtype.kind == "f":
            new = REAL
        elif _holds(old, int(values.min()), int(values.max())):
            return
        else:
            seen = np.iinfo(old)
            low, high = min(int(values.min()), seen.min), max(int(values.max()), seen.max)
            new = next(dtype for dtype in DTYPES if _holds(dtype, low, high))
        self.files[name].close()
        path = self._path(name)
        narrow = path.rename(path.with_suffix(".narrow"))
        with narrow.open("rb") as source, path.open("wb") as target:
            while block := source.read(1 << 22):
                target.write(np.frombuffer(block, _little(old)).astype(_little(new)).tobytes())
        narrow.unlink()
        self.dtypes[name] = new
        self._open(name, "ab")


def _holds(dtype: str, low: int, high: int) -> bool:
    info = np.iinfo(dtype)
    return bool(info.min <= low and high <= info.max)


def _little(dtype: str) -> np.dtype[Any]:
    """The type in the byte order of the files, whatever the machine's own."""
    return np.dtype(dtype).newbyteorder("<")
