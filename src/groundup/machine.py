"""What this process may use of the machine it runs on: all of it, or what its container is given."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much processor time a container gets (version 2): microseconds of each period, or max."""
MEMORY_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
"""Where it says how much memory a container may use, uses, and uses for what (version 2 and 1)."""


def usable_cores() -> int:
    """The number of cores this process may use: those it may run on, and no more than its quota of time fills."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # no such system, or "max": no limit
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


def free_memory() -> int:
    """Bytes that this process and its children may still take: of the machine, and of the container it is in."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used, stat in MEMORY_LIMITS:
        try:
            most = int(limit.read_text())
            taken = int(used.read_text())
            # The page cache counts as used, but gives way.
            rows = dict(line.split() for line in stat.read_text().splitlines())
            taken -= int(rows.get("inactive_file", 0)) + int(rows.get("active_file", 0))
        except (OSError, ValueError):
            continue
        free = min(free, most - taken)
    return max(0, free)
