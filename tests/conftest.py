"""Shared fixtures. Real data and reference outputs lie beside the checkout; tests that need them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.parity import parity, pytest_addoption, pytest_configure  # noqa: F401 (pytest finds them here)

# Two cores and several workers: more threads only fight. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and reference outputs."""
    folder = Path(os.environ.get("MASKRCNN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference outputs at {folder}; set MASKRCNN_SHARED to their folder")
    return folder
