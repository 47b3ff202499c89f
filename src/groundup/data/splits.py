"""Which documents are for training, which for validation and which for the final test.

At random, whole documents are drawn by a hash of their text and the seed, so equal texts always go to
the same side. By group, whole groups (an author, a folder) go to one side, and shares are of bytes,
since groups differ in size. By time, the latest documents are the test and those before them the
validation, which is how a model meets the future. What users did (`kind: interactions`) is divided before rows are
made of it, by the last event of each user or by the time of all (`data/source_events.py`): its rows say their split.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from groundup.config import Section
from groundup.errors import DataError
from groundup.text.duplicates import Hashes, mix
from groundup.units import Share

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
SPLIT = "split"
"""The column by which rows say their split where a source has divided them."""
Codes = NDArray[np.int8]


class Split(Section):
    """How documents are divided."""

    validation: Share = 0.0
    """Share kept aside to watch training."""
    test: Share = 0.0
    """Share kept aside for the final evaluation."""
    by: Literal["random", "group", "time", "last"] = "random"
    """`random` documents, whole groups, or the latest documents last. In `interactions`: by `last`, the last event
    of each user is for the test and the one before for the validation; by `time`, the latest events of all."""
    group: str | None = None
    """What documents have in common: a column's name, or `folder` for the first folder below the fixed
    part of the glob (files lying at its top are groups of their own). Needed for `by: group`."""
    hold_out: dict[Literal["validation", "test"], list[str]] = Field(default={})
    """Groups that are held out by their names, such as `{test: [george]}`; the others are divided by the shares
    above, and are all for training without any. For `by: group`."""
    time: str | None = None
    """The column that holds the time (ISO dates, 20240131, or numbers). Needed for `by: time`."""
    stratify: str | None = None
    """A column, such as the label, whose values are to have the same shares in every split (`by: random`)."""
    leaks: Literal["remove", "report", "stop"] = "remove"
    """What to do about a document that repeats one in another split: `remove` it from the training (or
    validation) side and never from the test, only `report` it, or `stop`."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.validation + self.test > 0.9:
            raise ValueError(
                f"validation and test together take {self.validation + self.test:.0%}; leave 10% to train on"
            )
        if self.by == "group" and self.group is None:
            raise ValueError("`by: group` needs `group`: a column's name, or `folder`")
        if self.by == "time" and self.time is None:
            raise ValueError("`by: time` needs `time`: the name of the column that holds it")
        if self.by == "last" and self.validation + self.test > 0:
            raise ValueError("`by: last` holds out one event a user for each: leave out `validation` and `test`")
        if self.hold_out and self.by != "group":
            raise ValueError(f"`hold_out` names groups, and `by: {self.by}` has none: set `by: group`")
        twice = {*self.hold_out.get("validation", ())} & {*self.hold_out.get("test", ())}
        if twice:
            raise ValueError(f"`hold_out` puts {sorted(twice)[0]!r} into the validation and into the test")
        if self.stratify is not None and self.by != "random":
            raise ValueError(f"`stratify` divides each label at random, which `by: {self.by}` does not")
        return self

    @property
    def group_column(self) -> str | None:
        """The column that groups documents, or None for folders and for no groups."""
        return None if self.group in (None, "folder") else self.group

    def code_of(self, group: str | None) -> int:
        """The split that a group was put into by its name, or -1."""
        return next((SPLITS.index(split) for split, names in self.hold_out.items() if group in names), -1)

    @property
    def columns(self) -> list[str]:
        """Columns of the sources that dividing them needs."""
        return [name for name in (self.group_column, self.time, self.stratify) if name is not None]


def assign(
    split: Split,
    seed: int,
    *,
    texts: Hashes,
    groups: Hashes,
    times: NDArray[np.float64],
    sizes: NDArray[np.int64],
    fixed: Codes,
    strata: Hashes | None = None,
) -> Codes:
    """The split of every document: 0 train, 1 validation, 2 test.

    All arrays are (documents,): hashes of texts and of groups, times in seconds, sizes in bytes, the
    split a source prescribes, or -1, and hashes of the values of `stratify`. Raises DataError if a split
    that was asked for stays empty.
    """
    codes = np.where(fixed >= 0, fixed, TRAIN).astype(np.int8)
    free = np.flatnonzero(fixed < 0)
    match split.by:
        case "time":
            codes[free] = by_time(split, times[free])
        case "group":
            codes[free] = _by_share(split, mix(groups[free] ^ _salt(seed)), sizes[free])
        case "random":
            # Equal texts count once, wherever their copies go later.
            keys = mix(texts[free] ^ _salt(seed))
            if split.stratify is None or strata is None:
                codes[free] = _by_share(split, keys, None)
            else:
                codes[free] = _by_stratum(split, keys, strata[free])
    _check(split, codes, fixed)
    return codes


def _salt(seed: int) -> np.uint64:
    return np.uint64(mix(np.array([seed & (2**64 - 1)], np.uint64))[0])


def _by_share(split: Split, keys: Hashes, sizes: NDArray[np.int64] | None) -> Codes:
    """Units (equal keys) taken in the order of their keys until each share is filled."""
    units, place = np.unique(keys, return_inverse=True)
    weights = np.ones(len(units)) if sizes is None else np.bincount(place, sizes, len(units)).astype(np.float64)
    codes = np.zeros(len(units), np.int8)
    for code, share in ((TEST, split.test), (VALIDATION, split.validation)):
        if share:
            free = np.flatnonzero(codes == TRAIN)
            codes[free[_fill(weights[free], share * weights.sum())]] = code
    return codes[place]


def _by_stratum(split: Split, keys: Hashes, strata: Hashes) -> Codes:
    """`_by_share` for each stratum, rounded so that the splits have their sizes over all strata.

    A stratum gives a split its share of documents, down or up to a whole one; what is missing over all
    comes from the strata that lost most by rounding. Equal texts count once, with the first one's stratum.
    """
    units, first, place = np.unique(keys, return_index=True, return_inverse=True)
    names, own = np.unique(strata[first], return_inverse=True)
    sizes = np.bincount(own, minlength=len(names))
    codes = np.zeros(len(units), np.int8)
    for code, share in ((TEST, split.test), (VALIDATION, split.validation)):
        wanted = sizes * share
        takes = np.floor(wanted).astype(np.int64)
        spare = round(len(units) * share) - int(takes.sum())
        takes[np.argsort(takes - wanted, kind="stable")[: max(0, spare)]] += 1
        for stratum in np.flatnonzero(takes):
            free = np.flatnonzero((own == stratum) & (codes == TRAIN))
            codes[free[: min(takes[stratum], len(free) - 1)]] = code
    return codes[place]


def _fill(weights: NDArray[np.float64], target: float) -> NDArray[np.int64]:
    """Which units to take, in order, to come close to a total weight; at least one if two remain.

    A unit that would overshoot by more than a quarter of the target is passed over.
    """
    if len(weights) < 2:
        return np.empty(0, np.int64)
    taken: list[int] = []
    total = 0.0
    if weights.min() == weights.max():
        return np.arange(min(len(weights) - 1, max(1, round(target / weights[0]))))
    for unit, weight in enumerate(weights.tolist()):
        if total >= target * 0.95 or len(taken) == len(weights) - 1:
            break
        if total + weight <= target * 1.25:
            taken.append(unit)
            total += weight
    return np.array(taken or [int(weights.argmin())], np.int64)


def by_time(split: Split, times: NDArray[np.float64]) -> Codes:
    """The split of what happened at these times: the latest is the test. What is of one moment stays together."""
    codes = np.zeros(len(times), np.int8)
    if len(times) == 0:
        return codes
    ordered = np.sort(times)
    for code, share in ((VALIDATION, split.test + split.validation), (TEST, split.test)):
        if share and (code == TEST or split.validation):
            cut = ordered[min(len(ordered) - 1, round(len(ordered) * (1 - share)))]
            codes[times >= cut] = code
    return codes


def _check(split: Split, codes: Codes, fixed: Codes) -> None:
    counts = np.bincount(codes, minlength=3)
    wanted = {TRAIN: True, VALIDATION: split.validation > 0, TEST: split.test > 0}
    absent = [(name, named) for name, named in split.hold_out.items() if not counts[SPLITS.index(name)]]
    if absent:
        what = f"no document belongs to {', '.join(map(repr, absent[0][1]))}, held out for the {absent[0][0]}"
        raise DataError(what, where="split.hold_out", fix=f"name values of {split.group!r} as they are in the data")
    for code, name in enumerate(SPLITS):
        if wanted[code] and not counts[code] and not (fixed == code).any() and (code != TRAIN or (fixed < 0).any()):
            what = (
                f"no document is left for the {name} split: {len(codes)} documents are too few or too alike to divide"
            )
            fix = "give more documents, cut text finer (`document: paragraph` or `line`), or ask for fewer splits"
            raise DataError(what, fix=fix)


def parse_time(value: Any) -> float | None:
    """Seconds since 1970 from a number, a date object, or text such as 2024-01-31, 2024/1/31 10:00 or 20240131.

    A plain number stands for itself: only its order matters. None if there is no time in it.
    """
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if np.isfinite(value) else None
    text = str(value).strip()
    for reading in (text, text.replace("/", "-").replace(".", "-")):
        moment = _read_time(reading)
        if moment is not None:
            return moment
    try:
        return float(text)
    except ValueError:
        return None


def _read_time(text: str) -> float | None:
    parts = text.replace("T", " ").split(" ", 1)
    day = parts[0].split("-")
    if len(day) == 3 and all(piece.isdecimal() for piece in day):
        text = " ".join(["{:0>4}-{:0>2}-{:0>2}".format(*day), *parts[1:]])
    elif not (text.isdecimal() and len(text) == 8):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
