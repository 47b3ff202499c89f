"""Tokens that each key has used this day and this month, kept across restarts.

Figures are read and added to in memory, so a request never waits for a disk; a thread writes what was added
to an SQLite file every two seconds, and reads there what other servers that share the file have added. A
server that is killed forgets two seconds of use; a full disk costs nothing but a warning.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from groundup.errors import UserError

FLUSH_EVERY_S = 2.0
BUSY_S = 5.0
_SCHEMA = """create table if not exists used (
    period text not null, key text not null, tokens integer not null, primary key (period, key)) without rowid"""
_ADD = "insert into used values (?, ?, ?) on conflict (period, key) do update set tokens = tokens + excluded.tokens"


def day_of(now: float) -> str:
    """The day of a moment (seconds since 1970) in UTC, `2026-11-22`."""
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def month_of(now: float) -> str:
    """The month of a moment in UTC, `2026-11`."""
    return time.strftime("%Y-%m", time.gmtime(now))


class Usage:
    """Tokens used by key and period. Without a path they are forgotten when the process ends.

    Raises UserError if the file cannot be opened. `close` writes what is still to be written.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
        complain: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self._clock, self._complain = path, clock, complain or (lambda text: None)
        self._lock = threading.Lock()
        self._known: Counter[tuple[str, str]] = Counter()
        self._writing: Counter[tuple[str, str]] = Counter()
        self._added: Counter[tuple[str, str]] = Counter()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if path is not None:
            self._open()
            self._thread = threading.Thread(target=self._write_often, name="usage", daemon=True)
            self._thread.start()

    def used(self, period: str, key: str) -> int:
        """Tokens that a key has used in a day or a month."""
        entry = (period, key)
        with self._lock:
            return self._known[entry] + self._writing[entry] + self._added[entry]

    def add(self, key: str, tokens: int) -> None:
        """Count tokens for this day and this month."""
        now = self._clock()
        with self._lock:
            for period in (day_of(now), month_of(now)):
                self._added[period, key] += tokens

    def flush(self) -> None:
        """Write what was added, and read what others added. Complains if the file cannot be written."""
        if self.path is None:
            return
        now = self._clock()
        with self._lock:
            self._writing, self._added = self._added, Counter()
        try:
            with closing(self._connect()) as database, database:
                database.executemany(_ADD, [(*entry, tokens) for entry, tokens in self._writing.items()])
                rows = database.execute("select * from used where period in (?, ?)", (day_of(now), month_of(now)))
                known = Counter({(period, key): tokens for period, key, tokens in rows})
        except sqlite3.Error as error:
            with self._lock:
                self._added.update(self._writing)
                self._writing = Counter()
            self._complain(f"the use of keys cannot be written to {self.path} ({error}); it is kept in memory")
            return
        with self._lock:
            self._known, self._writing = known, Counter()

    def close(self) -> None:
        """Stop the thread and write what is left."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _open(self) -> None:
        assert self.path is not None, "only a file is opened"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            with closing(self._connect()) as database, database:
                database.execute(_SCHEMA)
                # Days of the month before last and earlier serve nobody; months are kept for the bills.
                last = day_of(self._clock() - 62 * 86400)
                database.execute("delete from used where length(period) = 10 and period < ?", (last,))
                rows = database.execute("select * from used").fetchall()
        except (OSError, sqlite3.Error) as error:
            fix = "give the server a folder it may write, or move the file away"
            raise UserError(f"the use of keys cannot be kept ({error})", where=str(self.path), fix=fix) from error
        self._known = Counter({(period, key): tokens for period, key, tokens in rows})

    def _connect(self) -> sqlite3.Connection:
        # No write-ahead log: it would need two more files and shared memory, which network disks lack.
        return sqlite3.connect(str(self.path), timeout=BUSY_S)

    def _write_often(self) -> None:
        while not self._ended.wait(FLUSH_EVERY_S):
            self.flush()


def read(path: Path, now: float) -> dict[str, tuple[int, int]]:
    """Tokens used today and this month by each key, from the file of a server that may be running."""
    if not path.is_file():
        return {}
    found: dict[str, list[int]] = {}
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as database:
            for place, period in enumerate((day_of(now), month_of(now))):
                for key, tokens in database.execute("select key, tokens from used where period = ?", (period,)):
                    found.setdefault(key, [0, 0])[place] = tokens
    except sqlite3.Error as error:
        raise UserError(f"the use of keys cannot be read ({error})", where=str(path)) from error
    return {key: (today, month) for key, (today, month) in found.items()}
