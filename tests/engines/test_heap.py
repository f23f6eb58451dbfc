"""Freed memory stays with the process that asked for it, and with no other."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Resident MiB after 256 MiB were filled and freed, beyond those before.
LEFT = """
from maskrcnn.engines.heap import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) // 256

{call}
before = resident()
x = b'x' * 2**28
del x
print(resident() - before)
"""


def left(call: str) -> int:
    done = subprocess.run([sys.executable, "-c", LEFT.format(call=call)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_freed_memory_is_kept_when_asked_for() -> None:
    assert left("assert keep_freed_memory()") >= 240
    assert left("") < 100


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskrcnn.engines.heap import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
