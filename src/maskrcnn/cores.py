"""Cores whose time this process can have, a container's quota included, of which neither Python nor PyTorch knows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """Count the cores that this process may run on, or fewer where its container's share of time is less."""
    return core_limit() or _allowed()


def core_limit(root: Path = Path("/")) -> int | None:
    """Count the cores that a container's share of time is good for, rounded up; None where the process may not run on
    more. root: where the system's own files are.
    """
    quota = min(_quotas(root), default=None)
    return None if quota is None or quota > _allowed() - 1 else math.ceil(quota)


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each control group above this process allows it."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container its own group may be the top of what it sees, whatever the path says.
        own = Path(path.lstrip("/"))
        for above in (own, *own.parents):
            quota = _quota(root / "sys/fs/cgroup" / ("cpu" if controllers else "") / above)
            if quota is not None:
                yield quota


def _quota(group: Path) -> float | None:
    """Cores that a control group allows, of cgroups 2 or 1; None for any number."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"
            continue
    return None
