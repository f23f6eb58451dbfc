"""Differences from the originals: recorded where they are asserted, written as a table by `make parity`.

A test asks for the fixture `parity` and calls it with each difference that it would assert; one that is not within
its bound fails the test. With `--parity FILE` the differences of a run that passed are written as a Markdown table,
one row a model and case, one column a stage. (A part of conftest.py, kept apart to be read by itself.)
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from maskrcnn.files import write_atomic


class Difference(NamedTuple):
    """Largest difference of a stage from the original's, in `unit`s, and the bound that we allow."""

    model: str
    case: str  # image and precision, or the training case
    stage: str
    value: float
    bound: float
    unit: str


class Parity(Protocol):
    def __call__(
        self, model: str, case: str, stage: str, value: float, bound: float, unit: str = ""
    ) -> None: ...


@pytest.fixture
def parity(record_property: Callable[[str, object], None]) -> Parity:
    """Record the largest difference of a stage, and fail where it is beyond its bound (or not a number)."""

    def check(model: str, case: str, stage: str, value: float, bound: float, unit: str = "") -> None:
        record_property("parity", list(Difference(model, case, stage, float(value), float(bound), unit)))
        assert value <= bound, (
            f"{model}, {case}: {stage} differs by {value:.3g} {unit}, more than {bound:.3g}"
        )

    return check


_FOUND = pytest.StashKey[list[Difference]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", metavar="FILE", help="write the differences from the originals as a table")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FOUND] = []
    config.pluginmanager.register(_Collector(config), "parity collector")


class _Collector:
    """Plugin that collects the differences from the test reports of every worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            found = (Difference(*value) for name, value in report.user_properties if name == "parity")  # pyright: ignore[reportGeneralTypeIssues]
            self.config.stash[_FOUND] += found

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        path = self.config.getoption("--parity")
        if path and exitstatus == 0 and "PYTEST_XDIST_WORKER" not in os.environ:
            write_atomic(Path(path), table(self.config.stash[_FOUND]))


def table(found: list[Difference]) -> str:
    """Markdown: a section for inference and one for training, in each a table for each original's images, whose
    columns are the stages that it tells of; in each cell the worst.
    """
    rows: dict[tuple[str, str], dict[str, Difference]] = defaultdict(dict)
    for d in found:
        worst = rows[d.model, d.case].get(d.stage)
        if worst is None or d.value > worst.value:
            rows[d.model, d.case][d.stage] = d
    sections: dict[tuple[str, str], dict[tuple[str, str], dict[str, Difference]]] = {}
    for (model, case), row in sorted(rows.items()):
        kind = "training" if any("loss" in stage for stage in row) else "inference"
        sections.setdefault((kind, re.split("[, ]", case)[0]), {})[model, case] = row
    lines = [
        "# The originals' numbers, and ours",
        "",
        "Written by `make parity`: the largest difference of each stage from what the original implementation",
        "computed with the same weights and image, and in brackets what the tests allow. Rows ending in `fp64` ran",
        "in float64 on both sides, where only the rounding of the stored reference is left; in float32 the",
        "original's own distance from its float64 run is of the same size. Detections are matched one to one,",
        "by class and box. Boxes, proposals and key points are in",
        "pixels, features, backbone, neck and layers in units of their own spread, mask areas in pixels.",
    ]
    for (kind, images), section in sorted(sections.items()):
        stages = list(dict.fromkeys(stage for row in section.values() for stage in row))
        units = {d.stage: d.unit for row in section.values() for d in row.values()}
        heads = [f"{s} ({units[s]})" if units[s] else s for s in stages]
        lines += ["", f"## {kind.capitalize()}: {images}", "", "| model | case | " + " | ".join(heads) + " |"]
        lines += ["|---|---|" + "---:|" * len(stages)]
        for (model, case), row in section.items():
            cells = [f"{row[s].value:.2g} ({row[s].bound:.2g})" if s in row else "" for s in stages]
            lines.append(f"| {model} | {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
