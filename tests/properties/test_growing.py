"""Rows that grow where they lie hold what rows that are copied would hold, and give memory back."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.nn.growing import ON_LINUX, GrowingRows

CPU = torch.device("cpu")
sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@given(sizes, st.integers(0, 6), st.sampled_from([(3,), (700,), (5, 1024)]))
def test_rows_stay_and_new_ones_are_zero(counts: list[int], reserve: int, row: tuple[int, ...]) -> None:
    rows = GrowingRows((2, counts[0], *row), torch.float32, CPU, reserve=reserve)
    copied = torch.zeros(2, counts[0], *row)
    for number, count in enumerate(counts, 1):
        rows.resize(count)
        kept = min(count, copied.shape[1])
        copied = torch.cat([copied[:, :kept], torch.zeros(2, count - kept, *row)], 1)
        assert torch.equal(rows.tensor, copied)
        rows.tensor.fill_(number)
        copied.fill_(number)


@pytest.mark.skipif(not ON_LINUX, reason="growing is copying elsewhere")
def test_reserved_rows_take_no_memory_until_they_are_written_and_none_after_they_are_lost() -> None:
    process, page = psutil.Process(os.getpid()), 1 << 20
    rows = GrowingRows((2, 0, page), torch.uint8, CPU, reserve=64)
    before = process.memory_info().rss
    rows.resize(64)
    first = rows.tensor.data_ptr()
    assert process.memory_info().rss - before < 8 * page
    rows.tensor.fill_(1)
    assert process.memory_info().rss - before > 120 * page
    rows.resize(1)
    assert process.memory_info().rss - before < 10 * page
    rows.resize(64)
    assert rows.tensor.data_ptr() == first, "nothing was copied"
    assert rows.tensor[:, 0].all() and not rows.tensor[:, 1:].any()


LIMITED = """
import psutil, resource, torch
from groundup.nn.growing import GrowingRows
most = psutil.Process().memory_info().vms + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
rows = GrowingRows((1, 0, 1 << 20), torch.uint8, torch.device("cpu"), reserve=4096)
rows.resize(2)
rows.tensor.fill_(7)
rows.resize(3)
assert rows.tensor[:, :2].eq(7).all() and not rows.tensor[:, 2:].any()
"""


@pytest.mark.skipif(not ON_LINUX, reason="growing is copying elsewhere")
def test_where_addresses_are_counted_growing_is_copying() -> None:
    found = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
