"""Memory of this process: what is resident now, and the most that was.

`getrusage` gives no such peak: on Linux a new program begins with the peak of the one that started it, so that a small
child of a large process seems as large as that. The kernel's own count of the program, VmHWM, begins at its start, and
can be set back.
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from pathlib import Path

_PROCESS = Path("/proc/self")


def resident_mib() -> float | None:
    """Resident memory in MiB; None where the system does not tell (Linux does)."""
    return _told("VmRSS")


def peak_mib() -> float | None:
    """Most resident memory in MiB since `forget_peak`, or the program's start; None where the system does not tell."""
    if (told := _told("VmHWM")) is not None:
        return told
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Let `peak_mib` begin anew, after what is no longer used was freed; where the system lets it (Linux does)."""
    gc.collect()
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def _told(what: str) -> float | None:
    try:
        status = (_PROCESS / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
    return None if found is None else int(found[1]) / 2**10
