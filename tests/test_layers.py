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


def test_no_two_modules_import_each_other() -> None:
    """Type-checking imports count too: a reader follows them."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("maskrcnn", cache_dir=None)
    modules = [m for m in graph.modules if m != "maskrcnn"]  # which offers what others define
    for package in [m for m in modules if any(n.startswith(m + ".") for n in modules)]:
        for child in graph.find_modules_directly_imported_by(package):
            graph.remove_import(importer=package, imported=child)  # its `__init__` offers its files' names
    imports = {m: {n for n in graph.find_modules_directly_imported_by(m) if n != "maskrcnn"} for m in modules}
    circles = [
        sorted(circle)
        for circle in strongly_connected(imports)
        if len(circle) > 1 or circle & imports[min(circle)]
    ]
    assert circles == []


def strongly_connected(imports: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach each other."""

    def reached(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            for module in imports[todo.pop()] - found:
                found.add(module)
                todo.append(module)
        return found

    reach = {m: reached(m) for m in imports}
    groups = {frozenset({m} | {n for n in reach[m] if m in reach[n]}) for m in imports}
    return [set(group) for group in groups]


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
