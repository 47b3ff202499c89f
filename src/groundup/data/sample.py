"""A few documents, and a tokenizer to cut them with, to look at before the real ones are made."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.corpus import Corpus, size_of
from groundup.errors import DataError
from groundup.forecast import Known
from groundup.text import vocabulary
from groundup.text.tokenizers import Tokenizer

MOST_BYTES = 4 << 20
"""Text that is looked at; of a larger split, this much of it."""
VOCABULARY = 1024
"""The vocabulary of a tokenizer that only stands in for one still to be trained."""


class Documents:
    """Encoded documents held in memory, readable like shards."""

    def __init__(
        self, documents: Iterable[str | Mapping[str, Any]], encode: Callable[[Mapping[str, Any]], dict[str, Any]]
    ) -> None:
        """`documents` are texts, or whole rows with a `text` among their columns."""
        rows = [{"text": d, "id": i} if isinstance(d, str) else d for i, d in enumerate(documents)]
        start = time.process_time()
        encoded = [encode(row) for row in rows]
        self.documents = len(encoded)
        self.bytes: NDArray[Any] = np.array([len(str(row.get("text", "")).encode()) for row in rows], dtype=np.int64)
        self.encode_s = time.process_time() - start
        """CPU time that encoding took."""
        self._columns = {name: [found[name] for found in encoded] for name in (encoded[0] if encoded else ())}

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._columns)

    @property
    def tokens(self) -> int:
        """The length of all `input_ids` together; of what is no tokens, the number of documents."""
        return sum(map(len, self._columns["input_ids"])) if "input_ids" in self._columns else self.documents

    def column(self, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """All values of a column end to end, and where each document begins."""
        values = self._columns[name]
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values), offsets
        flat = [item for value in values for item in value]
        is_real = any(isinstance(item, float) for item in flat)
        return np.array(flat, dtype=np.float64 if is_real else np.int64), offsets


def texts_of(data: Known) -> tuple[list[str], bool]:
    """Documents of the split, up to MOST_BYTES, and whether these are all."""
    part = data.part or "train"
    if data.artifact is None:
        return [str(text) for text in data.facts.get("sample", [])], False
    corpus = Corpus(data.artifact)
    found, size = [], 0
    for document in corpus.documents(part):
        found.append(str(document["text"]))
        size += len(found[-1].encode())
        if size > MOST_BYTES:
            break
    return found, len(found) == corpus.rows(part)


def rows_of(data: Known, most: int = 4096) -> tuple[list[dict[str, Any]], bool]:
    """Rows of the split with all their columns, up to `most` and MOST_BYTES, and whether these are all."""
    if data.artifact is None:
        return list(data.facts.get("examples", [])), False
    corpus = Corpus(data.artifact)
    found: list[dict[str, Any]] = []
    size = 0
    for document in itertools.islice(corpus.documents(data.part or "train"), most):
        found.append(document)
        size += size_of(document)
        if size > MOST_BYTES:
            break
    return found, len(found) == corpus.rows(data.part or "train")


def stand_in(kind: str, texts: list[str], folder: Path, size: int = VOCABULARY) -> None:
    """Train a small tokenizer of a kind, as long as the real one is still to be made."""
    while True:
        try:
            engine, _ = vocabulary.learn(vocabulary.Wish(kind, size, min_frequency=1), lambda: texts)
            break
        except DataError:
            if size <= vocabulary.smallest(kind):
                raise
            size = max(vocabulary.smallest(kind), size // 2)
    engine.save(str(folder / "tokenizer.json"))


def enough(texts: list[str], context: int, tokenizer: Tokenizer) -> list[str]:
    """The texts, repeated until they fill a few rows: a small sample stands for more of its kind."""
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts[:200]))
    return texts * max(1, -(-4 * context // max(1, tokens)))


def cut(texts: list[str], tokens: int, tokenizer: Tokenizer) -> list[str]:
    """As many of the texts as hold so many tokens, over and over if they are short."""
    found: list[str] = []
    for text in itertools.cycle(texts):
        found.append(text[: 8 * tokens])
        tokens -= max(1, len(tokenizer.encode(found[-1])))
        if tokens <= 0 and len(found) > 1:
            return found
    return found
