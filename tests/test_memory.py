"""The memory of a process is its own: not its parent's, and not what it had before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn.memory import forget_peak, peak_mib, resident_mib

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells it")
CHILD = """
import resource
from maskrcnn.memory import peak_mib
print(peak_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_a_child_has_a_peak_of_its_own() -> None:
    held = b"x" * 2**29
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    own, with_parents = map(float, done.stdout.split())
    assert own < 256  # no PyTorch in it
    assert with_parents > 512
    assert len(held) == 2**29


def test_a_peak_is_since_it_was_forgotten() -> None:
    forget_peak()
    before = peak_mib()
    resident = resident_mib()
    assert before is not None
    assert resident is not None
    assert abs(before - resident) < 16
    held = b"x" * 2**28
    del held
    assert 200 < (peak_mib() or 0) - before < 400
    forget_peak()
    assert abs((peak_mib() or 0) - before) < 64


def test_elsewhere_the_system_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("maskrcnn.memory._PROCESS", tmp_path)
    assert resident_mib() is None
    forget_peak()  # nothing to write to: nothing happens
    assert (peak_mib() or 0) > 10
