"""What a process may use: a container's share counts, not the machine around it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from groundup import machine


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max 100000", 64), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 64), ("unreadable", 64)],
)
def test_a_quota_of_time_limits_the_cores(
    quota: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    assert machine.usable_cores() == usable


def test_without_a_container_every_core_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "missing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.usable_cores() == 5


def test_memory_is_what_the_container_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, stat = (tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(machine, "MEMORY_LIMITS", ((limit, used, stat),))
    limit.write_text("1000000\n")
    used.write_text("900000\n")
    stat.write_text("anon 500000\ninactive_file 300000\nactive_file 50000\n")
    assert machine.free_memory() == 1_000_000 - (900_000 - 350_000), "the page cache gives way"
    used.write_text("1500000\n")
    assert machine.free_memory() == 0, "never below nothing"
    limit.write_text("max\n")
    free = machine.free_memory()
    assert 0 < free <= psutil.virtual_memory().total
