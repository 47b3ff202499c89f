"""The texts that classical rivals read: as much of a corpus as they may, and the tests' documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from groundup.data.corpus import Corpus

VALIDATION_BYTES = 1_000_000
"""Enough to choose an order by; more would only take time."""
HELD_BACK = 20
"""Without a validation split, every so many-th training document serves as one."""


@dataclass(frozen=True)
class Texts:
    """Documents to train on, to choose by and to score, and how much of the training text was left out."""

    train: list[str]
    validation: list[str]
    test: list[str]
    all_train_bytes: int
    """UTF-8 bytes of the whole train split, read or not."""

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training documents that were read."""
        return size(self.train)

    def first(self, limit: float) -> list[str]:
        """The first training documents, whole, until their bytes reach `limit`."""
        chosen, read = [], 0
        for text in self.train:
            if read >= limit:
                break
            chosen.append(text)
            read += len(text.encode())
        return chosen


def size(texts: Sequence[str]) -> int:
    """UTF-8 bytes of texts."""
    return sum(len(text.encode()) for text in texts)


def read(corpus: Corpus, split: str, documents: Sequence[int], *, limit: int) -> Texts:
    """The texts of a corpus: at most `limit` bytes of its train split, and the given documents of `split`.

    Where there is no validation split, every twentieth training document is set aside as one.
    """
    has_train = "train" in corpus.splits
    train = _until(corpus, "train", limit) if has_train else []
    validation = _until(corpus, "validation", VALIDATION_BYTES) if "validation" in corpus.splits else []
    if not validation and len(train) > 1:
        step = min(HELD_BACK, len(train))
        validation = train[step - 1 :: step]
        train = [text for place, text in enumerate(train) if place % step != step - 1]
    wanted = set(documents)
    test = [str(d["text"]) for place, d in enumerate(corpus.documents(split)) if place in wanted]
    return Texts(train, validation, test, corpus.bytes("train") if has_train else 0)


def _until(corpus: Corpus, split: str, limit: int) -> list[str]:
    texts: list[str] = []
    left = limit
    for document in corpus.documents(split):
        text = str(document["text"])
        left -= len(text.encode())
        if left < 0 and texts:
            break
        texts.append(text)
    return texts
