"""Tables of events (who did what when) made into rows: a user with a history and what came next, or an event.

The whole table is read before the first row is made, as users lie scattered over it: each event is kept as four
numbers, and names once. What each event is for is decided here and not by `splits.assign`, as one user has rows
in several splits, and what is a target in one is part of the history in the next:

- `by: last`: the last event of every user is a target of the test, the one before of the validation, the rest
  is for training. Users with fewer than three events are only trained on.
- `by: time`: the latest share of all events is the test, the share before them the validation, whoever did them.
  Only this keeps the future from the past: by `last` one user's training events may be later than another's test.

A history holds what came before its target and nothing else; a user's first event has no history and is
therefore no target, but the beginning of one.

Axes: E events.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data.event_columns import Described
from groundup.data.source_blocks import cut, no_column
from groundup.data.source_files import PACKED, SourceFile, find_files
from groundup.data.source_made import LEFT_OUT, Made
from groundup.data.source_rows import count_lines, read_rows
from groundup.data.sources import KINDS, Source, as_text
from groundup.data.splits import SPLITS, TEST, TRAIN, VALIDATION, Codes, Split, by_time, parse_time
from groundup.errors import DataError

FEWEST = 3
"""Events a user needs to be validated and tested by the last ones."""
TABLES = frozenset({"csv", "tsv", "jsonl", "parquet"})
"""Kinds of files that hold one event a row; a suffix that tells none of them is taken for tabs."""
_BLOCK_BYTES = 8 << 20
Ints = NDArray[np.int64]
Row = dict[str, Any]


def made(files: Sequence[SourceFile], source: Source, split: Split) -> list[Made]:
    """Every row of the events of all files, and then the events that are left out, each with its reason.

    Raises DataError for files that cannot be read, columns that are not there, and a split that does not fit.
    """
    if split.by not in ("last", "time") and split.validation + split.test > 0:
        what = f"events cannot be divided `by: {split.by}`: what a user did next is the question"
        raise DataError(what, where="split", fix="set `by: last`, or `by: time`")
    if split.by == "time" and split.time != "time":
        what = f"rows of events have no column {split.time!r} that holds their time"
        raise DataError(what, where="split.time", fix="set it to `time`, whatever the file calls it")
    table, bad = _read(files, source)
    if not len(table.user):
        return bad
    order = np.lexsort((table.place, table.time, table.user))
    table = table.take(order)
    table, left_out = _repeats(table, source)
    if source.row == "user":
        table, alone = _alone(table)
        left_out += alone
    codes = divided(split, table.user, table.time)
    about = _About.of(source, table)
    rows = _users(table, codes, about) if source.row == "user" else _events(table, codes, about, source)
    ranked = sorted(rows, key=lambda one: SPLITS.index(str(one.row["split"])) if isinstance(one.row, dict) else 0)
    return [*ranked, *left_out, *bad]


def divided(split: Split, user_E: Ints, time_E: NDArray[np.float64]) -> Codes:
    """The split of every event, in the order of users and times: 0 train, 1 validation, 2 test."""
    codes = np.full(len(user_E), TRAIN, np.int8)
    if split.by == "time":
        return by_time(split, time_E)
    if split.by == "last":
        _, first, counts = np.unique(user_E, return_index=True, return_counts=True)
        last = first + counts - 1
        enough = counts >= FEWEST
        codes[last[enough]] = TEST
        codes[last[enough] - 1] = VALIDATION
    return codes


@dataclass
class _Events:
    """Events as numbers; the names of users and items by their numbers."""

    users: list[str]
    items: list[str]
    user: Ints
    item: Ints
    time: NDArray[np.float64]
    value: NDArray[np.float64]
    place: Ints
    """Where each stands: its line, counted over all files."""

    def take(self, rows: NDArray[Any]) -> _Events:
        """Some of the events, by number or by a mask."""
        columns = {name: getattr(self, name)[rows] for name in ("user", "item", "time", "value", "place")}
        return replace(self, **columns)


@dataclass
class _Numbered:
    """Names as numbers, in the order in which they are met."""

    numbers: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> int:
        """The number of a name."""
        return self.numbers.setdefault(name, len(self.numbers))


def _read(files: Sequence[SourceFile], source: Source) -> tuple[_Events, list[Made]]:
    """The events of all files that can be read and that count, and the others with their reasons."""
    wanted = [name for name in (source.user, source.item, source.time, source.value) if name is not None]
    users, items, bad = _Numbered(), _Numbered(), list[Made]()
    whole, real = [array("q") for _ in range(3)], [array("d") for _ in range(2)]
    for place, cells, reason in _rows(files, source, wanted):
        found = reason or _event(cells, source)
        if isinstance(found, str):
            bad.append(Made(place, None, found))
            continue
        user, item, moment, value = found
        for column, number in zip(whole, (users.of(user), items.of(item), place), strict=True):
            column.append(number)
        real[0].append(moment)
        real[1].append(value)
    user_E, item_E, place_E = (np.array(column, np.int64) for column in whole)
    time_E, value_E = (np.array(column, np.float64) for column in real)
    return _Events(list(users.numbers), list(items.numbers), user_E, item_E, time_E, value_E, place_E), bad


def _event(cells: Sequence[Any], source: Source) -> tuple[str, str, float, float] | str:
    """User, item, moment and value of an event, or the reason why it does not count."""
    user, item, when, *rest = cells
    for name, cell in ((source.user, user), (source.item, item)):
        if cell is None or as_text(cell).strip() == "":
            return f"no value in {name!r}"
    moment = parse_time(when)
    if moment is None:
        return f"no time in {source.time!r} ({as_text(when)[:40]})"
    value = 1.0
    if rest:
        number = _number(rest[0])
        if number is None:
            return f"no number in {source.value!r} ({as_text(rest[0])[:40]})"
        value = number
    if source.at_least is not None and value < source.at_least:
        return f"{LEFT_OUT}an event of a value below {source.at_least:g}"
    return as_text(user).strip(), as_text(item).strip(), moment, value


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _rows(
    files: Sequence[SourceFile], source: Source, wanted: Sequence[str]
) -> Iterator[tuple[int, Sequence[Any], str]]:
    """Each row of the files as (its line over all files, the wanted cells, what is wrong with it)."""
    before = 0
    for file in files:
        inner = _inner(source, file)
        line: int | None = None
        for block in cut([inner], [replace(file, kind=inner.kind, source=0)], _BLOCK_BYTES, wanted):
            missing = next((name for name in wanted if block.header and name not in block.header), None)
            if missing is not None:
                raise _lacking(missing, file.name, block.header)
            line = block.lead if line is None else line
            for row in read_rows(block, inner, wanted):
                yield before + line + row.line, row.extra, row.bad
            line += count_lines(block, inner)
        before += line or 0


def _lacking(name: str, file: str, known: Sequence[str]) -> DataError:
    found = no_column(name, file, known)
    fix = found.fix.partition(";")[0] + "; set `user`, `item` and `time` to what the file calls them"
    return DataError(found.what, fix=fix)


def _inner(source: Source, file: SourceFile) -> Any:
    """How the rows of a file of events are read: as those of any table, without a text."""
    stem, suffix = os.path.splitext((file.member or file.path).lower())
    inner = os.path.splitext(stem)[1] if suffix in PACKED else suffix
    kind = KINDS.get(inner, "tsv")
    options: dict[str, Any] = {name: getattr(source, name) for name in ("columns", "quotes", "encoding")}
    if kind in ("csv", "tsv", "text"):
        options |= {"separator": source.separator, "skip_lines": source.skip_lines}
    return Source(kind=kind if kind in TABLES else "tsv", paths=source.paths, text_field=[], **options)


def _repeats(table: _Events, source: Source) -> tuple[_Events, list[Made]]:
    """Events without those that repeat an earlier one of the same user; with `keep`, without copies alone."""
    keys = [table.user, table.item] + ([table.time] if source.repeats == "keep" else [])
    _, first = np.unique(np.stack(keys, axis=1), axis=0, return_index=True)
    kept = np.zeros(len(table.user), bool)
    kept[first] = True  # events are in the order of time, so the first of equals is the earliest
    places = table.place[~kept].tolist()
    return table.take(kept), [Made(place, None, f"{LEFT_OUT}an event that repeats an earlier one") for place in places]


def _alone(table: _Events) -> tuple[_Events, list[Made]]:
    """Events without those of users who did nothing else."""
    counts = np.bincount(table.user, minlength=len(table.users))
    kept = counts[table.user] > 1
    places = table.place[~kept].tolist()
    return table.take(kept), [Made(place, None, f"{LEFT_OUT}a user with a single event") for place in places]


@dataclass(frozen=True)
class _About:
    """What further tables say: by column, the value of each item, and of each user, by number."""

    items: dict[str, list[Any]]
    users: dict[str, list[Any]]

    @classmethod
    def of(cls, source: Source, table: _Events) -> _About:
        """The values that the source's further tables have."""
        both = ((source.about_items, table.items), (source.about_users, table.users))
        items, users = (_values(described, names) if described else {} for described, names in both)
        return cls(items, users)


def _values(described: Described, names: Sequence[str]) -> dict[str, list[Any]]:
    """For each column its value for each name; None for names that the table lacks."""
    asked = Source(
        kind="interactions", paths=[described.path], user=described.key, item=described.key, time=described.key,
        separator=described.separator, row="event",
    )  # fmt: skip
    wanted = [described.key, *described.columns.values()]
    found: dict[str, Sequence[Any]] = {}
    for _, cells, bad in _rows(find_files(asked), asked, wanted):
        if not bad and cells[0] is not None:
            found.setdefault(as_text(cells[0]).strip(), cells[1:])
    columns: dict[str, list[Any]] = {}
    for place, name in enumerate(described.columns):
        mark = described.lists.get(name)
        values = (found[one][place] if one in found else None for one in names)
        columns[name] = [value if mark is None else _parts(value, mark) for value in values]
    return columns


def _parts(value: Any, mark: str) -> list[str]:
    """The values of a cell that holds several."""
    if isinstance(value, list):
        return [as_text(one) for one in value]
    return [part.strip() for part in as_text(value or "").split(mark) if part.strip()]


def _users(table: _Events, codes: Codes, about: _About) -> Iterator[Made]:
    """Up to three rows a user, one a split: the history before it, and what came in it."""
    _, first, counts = np.unique(table.user, return_index=True, return_counts=True)
    for start, stop in zip(first.tolist(), (first + counts).tolist(), strict=True):
        ends = [start + int(np.searchsorted(codes[start:stop], code, side="right")) for code in range(len(SPLITS))]
        if ends[TRAIN] > start:
            yield _user_row(table, "train", (start, ends[TRAIN], ends[TRAIN]), about)
        for code in (VALIDATION, TEST):
            known = max(ends[code - 1], start + 1)  # a first event is the beginning of a history
            if ends[code] > known:
                yield _user_row(table, SPLITS[code], (start, known, ends[code]), about)


def _user_row(table: _Events, split: str, span: tuple[int, int, int], about: _About) -> Made:
    """The row of a user whose history is [start, known) and whose targets are [known, stop)."""
    start, known, stop = span
    user, items = int(table.user[start]), table.item[start:stop].tolist()
    names, times = [table.items[item] for item in items], _plain(table.time[start:stop])
    there = known - start
    row: Row = {"user": table.users[user], "items": names[:there], "times": times[:there]}
    row |= {"targets": names[there:], "target_times": times[there:], "time": times[-1]}
    row |= {name: [values[item] for item in items] for name, values in about.items.items()}
    row |= {name: values[user] for name, values in about.users.items()}
    return Made(int(table.place[stop - 1]), _told_apart(row | {"split": split}))


def _events(table: _Events, codes: Codes, about: _About, source: Source) -> Iterator[Made]:
    """A row an event."""
    times, values = _plain(table.time), _plain(table.value)
    for event in range(len(times)):
        user, item = int(table.user[event]), int(table.item[event])
        row: Row = {"user": table.users[user], "item": table.items[item], "time": times[event]}
        row |= {"value": values[event]} if source.value else {}
        row |= {name: found[item] for name, found in about.items.items()}
        row |= {name: found[user] for name, found in about.users.items()}
        yield Made(int(table.place[event]), _told_apart(row | {"split": SPLITS[codes[event]]}))


def _plain(numbers: NDArray[np.float64]) -> list[Any]:
    """Numbers as whole ones where all of them are."""
    whole = numbers.astype(np.int64)
    found: list[Any] = (whole if (whole == numbers).all() else numbers).tolist()
    return found


def _told_apart(row: Row) -> Row:
    """The row with a text of its own: a digest of all that it holds, so that only copies have the same."""
    content = json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
    return row | {"text": hashlib.sha256(content).hexdigest()}
