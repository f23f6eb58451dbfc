"""Tests in a process of their own, where what other tests have loaded could be in the way."""

from __future__ import annotations

import subprocess
import sys


def run_alone(module: str, call: str) -> None:
    """Evaluate a call of a test module's function in a new process; its failure is the test's."""
    code = f"from {module} import *; {call}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
