"""Between the passes: which documents go where, decided from their records alone.

Splits are assigned first, then duplicates are found over everything at once. Of several alike
documents the one in the test split is kept, else the one in validation, else the first, so that one
pass removes duplicates and leaks alike and never touches the test because of the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.corpus_clean import EXAMPLES, RECORD, Job
from groundup.data.splits import SPLITS, TEST, Codes, assign
from groundup.errors import StageFailed
from groundup.text.duplicate_clusters import Ids, Likeness, candidates, duplicates, spread, verified
from groundup.text.duplicates import SLOTS, Hashes, bands_for

KEPT, EXACT, NEAR, LEAK = range(4)
REASONS = {EXACT: "exact duplicate", NEAR: "near-duplicate", LEAK: "repeats a document of another split"}


@dataclass
class Selection:
    """What becomes of each cleaned document."""

    splits: Codes
    fate: NDArray[np.int8]
    """KEPT, or why it is dropped."""
    leaks: dict[str, int] = field(default_factory=dict)
    """Repeats between splits found: exact, near."""
    examples: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Fate → (document, the kept document it repeats)."""


@dataclass
class Records:
    """The records of all blocks on disk, mapped into memory."""

    documents: NDArray[Any]
    slots: NDArray[np.uint8] | None
    starts: NDArray[np.int64]
    """Number of each block's first document, with the total at the end."""


def gather(job: Job, rows_before: list[int], documents: list[int]) -> Records:
    """The records of all blocks in two files, ids counted over all sources.

    `rows_before` and `documents` are, for each block, the rows before it and the documents it kept.
    """
    paths = job.folder / "records", job.folder / "slots"
    with paths[0].open("wb") as records, paths[1].open("wb") as slots:
        for block, before in enumerate(rows_before):
            with np.load(job.paths(block)[1]) as stored:
                own = stored["records"]
                own["id"] += before
                own.tofile(records)
                stored["slots"].tofile(slots)
    starts = np.concatenate([[0], np.cumsum(documents, dtype=np.int64)])
    total = int(starts[-1])
    mapped = np.memmap(paths[0], RECORD, "r+", shape=(total,)) if total else np.empty(0, RECORD)
    signed = np.memmap(paths[1], np.uint8, "r", shape=(total, SLOTS)) if total and job.threshold is not None else None
    return Records(mapped, signed, starts)


def select(job: Job, records: Records, advance: Callable[[str, float], None]) -> Selection:
    """Splits, duplicates and leaks of all documents.

    Raises DataError if a split stays empty, StageFailed if there are leaks and `leaks: stop`.
    """
    documents = records.documents
    codes = assign(
        job.split,
        job.seed,
        texts=documents["exact"][:, 0],
        groups=documents["group"],
        times=documents["time"],
        sizes=documents["bytes"],
        fixed=documents["fixed"],
        strata=documents["stratum"],
    )
    selection = Selection(codes, np.zeros(len(codes), np.int8))
    if not (job.clean.exact_duplicates or job.threshold is not None or (codes != codes[0]).any()):
        return selection
    advance("finding duplicates", 0.0)
    likeness = Likeness(documents["exact"], records.slots)
    paths = spread(_keys(job, records), _entries(job, len(codes)), job.folder / "keys")
    threshold = job.threshold if job.threshold is not None else 1.0
    pairs = verified(candidates(paths), likeness, threshold)
    advance("finding duplicates", 0.7)
    _drop(job, selection, pairs, likeness, threshold, documents["distinct"])
    advance("finding duplicates", 1.0)
    return selection


def _entries(job: Job, documents: int) -> int:
    return documents * (1 + (bands_for(job.threshold).count if job.threshold is not None else 0))


def _keys(job: Job, records: Records) -> Iterator[tuple[Ids, Hashes]]:
    """Each block's documents with the key of their exact text, then with those of their bands."""
    for block in range(len(records.starts) - 1):
        own = np.arange(records.starts[block], records.starts[block + 1])
        yield own, records.documents["exact"][own][:, :1]
        if records.slots is not None:
            signed = records.slots[own].any(axis=1)
            with np.load(job.paths(block)[1]) as stored:
                yield own[signed], stored["bands"][signed]


class Apart(Likeness):
    """Likeness of documents within a split only where nothing tells them apart; between splits, of texts.

    Two questions on one passage are no duplicates, but a passage in two splits is a leak.
    """

    def __init__(self, texts: Likeness, distinct: Hashes, codes: Codes) -> None:
        """`distinct` and `codes`: (documents,), the hash of what tells each apart, and its split."""
        super().__init__(texts.exact, texts.slots)
        self.distinct, self.codes = distinct, codes

    def estimate(self, left: Ids, right: Ids) -> NDArray[np.float64]:
        """Similarity in [0, 1] of what counts between two documents."""
        counts = (self.distinct[left] == self.distinct[right]) | (self.codes[left] != self.codes[right])
        return np.where(counts, super().estimate(left, right), 0.0)


def _drop(job: Job, selection: Selection, pairs: Ids, likeness: Likeness, threshold: float, distinct: Hashes) -> None:
    """Settle the fate of every document that repeats another."""
    codes = selection.splits
    likeness = Apart(likeness, distinct, codes)
    found = duplicates(pairs, TEST - codes.astype(np.int64), likeness, threshold)
    across = codes[found[:, 0]] != codes[found[:, 1]]
    leaking = found[across]
    equal = likeness.equal(leaking[:, 0], leaking[:, 1])
    selection.leaks = {"exact": int(equal.sum()), "near": int((~equal).sum())}
    _note(selection, LEAK, leaking)
    if len(leaking) and job.split.leaks == "stop":
        what = f"{len(leaking)} documents repeat one in another split ({selection.leaks})"
        raise StageFailed(what, fix="group what belongs together (`split: {by: group, …}`), or `leaks: remove`")
    if job.split.leaks == "remove":
        selection.fate[leaking[:, 0]] = LEAK
        within = found[~across]
    else:
        # What repeats a document of another split stays, so repeats within each split are sought anew.
        same = pairs[codes[pairs[:, 0]] == codes[pairs[:, 1]]]
        within = duplicates(same, np.zeros(len(codes), np.int64), likeness, threshold)
    equal = likeness.equal(within[:, 0], within[:, 1])
    if job.clean.exact_duplicates:
        selection.fate[within[equal, 0]] = EXACT
        _note(selection, EXACT, within[equal])
    if job.clean.near_duplicates is not None:
        selection.fate[within[~equal, 0]] = NEAR
        _note(selection, NEAR, within[~equal])


def _note(selection: Selection, fate: int, pairs: Ids) -> None:
    first = pairs[np.argsort(pairs[:, 0])][:EXAMPLES]
    selection.examples[fate] = [(int(document), int(kept)) for document, kept in first]


def counts(selection: Selection) -> dict[str, int]:
    """How many documents were dropped for each reason."""
    return {
        name: int((selection.fate == code).sum()) for code, name in REASONS.items() if (selection.fate == code).any()
    }


def split_counts(selection: Selection) -> dict[str, int]:
    """How many documents each split keeps; splits without any are left out."""
    kept = np.bincount(selection.splits[selection.fate == KEPT], minlength=len(SPLITS))
    return {name: int(kept[code]) for code, name in enumerate(SPLITS) if kept[code]}


def clear(folder: Path) -> None:
    """Remove the sorted keys, which nothing needs any more."""
    for path in (folder / "keys").glob("*"):
        path.unlink()
