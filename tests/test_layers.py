"""Imports go downward only, as pyproject.toml lays the floors."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms that no other room builds on are free of the order: the entry points and the version.
OUTSIDE = {"__init__", "__main__", "version"}


def test_imports_go_downward_only() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_has_a_floor() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {room.strip().removeprefix("maskrcnn.") for layer in layers for room in layer.split(":")}
    rooms = {
        p.stem
        for p in (ROOT / "src/maskrcnn").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert rooms - OUTSIDE == placed
