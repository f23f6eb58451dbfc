"""Tests in a process of their own, where what other tests have loaded could be in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_alone(module: str, call: str) -> None:
    """Evaluate a call of a test module's function in a new process; its failure is the test's."""
    code = f"from {module} import *; {call}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_interpreted(code: str) -> list[str]:
    """Run code whose Triton kernels Triton interprets on the CPU, which is decided when they are defined; what it
    printed, up to the last line, `done`.
    """
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    assert lines[-1:] == ["done"], ran.stderr[-3000:]
    return lines[:-1]
