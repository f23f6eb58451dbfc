from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.charts import Curve, in_page, line_chart, ticks
from maskrcnn.errors import UserError
from maskrcnn.report import Panel, Scores, data_uri, write_report

NUMBERS = {"bbox": {"AP": 0.4125, "AP50": 0.7, "APs": -1.0}, "segm": {"AP": 0.375, "AP50": 0.65, "APs": -1.0}}


class Page(HTMLParser):
    """Parser that checks that tags are balanced, and gathers the text and the attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def picture(value: int) -> np.ndarray:
    return np.full((24, 32, 3), value, np.uint8)


def write_log(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    config = {"model": {"name": "small", "num_classes": 2}, "optim": {"lr": 0.02}, "train": {"seed": 3}}
    entries: list[dict[str, Any]] = [
        {"kind": "config", "iteration": 0, "config": config, "parameters": 1_230_000}
    ]
    for i in range(20, 101, 20):
        losses = {"loss_cls": 2.0 / i, "loss_mask": 1.0 / i}
        entry = {
            "losses": losses,
            "loss": 3.0 / i,
            "lr": 0.02,
            "images_per_second": 41.0,
            "seconds": i * 0.95,
        }
        entries.append({"kind": "train", "iteration": i} | entry)
    entries.append(
        {"kind": "eval", "iteration": 50, "bbox": {"AP": 0.3}, "segm": {"AP": 0.25}, "seconds": 47.0}
    )
    entries.append({"kind": "event", "iteration": 60, "message": "resumed"})
    entries.append({"kind": "eval", "iteration": 100, **NUMBERS, "seconds": 95.0})
    entries.append({"kind": "event", "iteration": 108, "message": "stopped after 108 iterations"})
    return write_log(tmp_path / "log.jsonl", entries)


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path, log: Path) -> None:
    scores = Scores(
        NUMBERS,
        {"a<b>": {"bbox": 0.5, "segm": 0.25}, "cat": {"bbox": math.nan}},
        [Curve("cat", [0, 1], [1, 0.5])],
    )
    panels = [Panel(picture(40), picture(200), "image 7 & more")]
    path = write_report(
        tmp_path / "report.html",
        log,
        scores,
        panels,
        title="A <run>",
        lead="Two classes.",
        times={"training": 95.0},
    )
    page = Page(path.read_text())
    text = " ".join(page.text)
    for expected in (
        "A <run>",
        "Two classes.",
        "0.412",
        "0.375",
        "a<b>",
        "image 7 & more",
        "108 steps",
        "1.23 M",
        "1 min 35 s",
    ):
        assert expected in text
    for section in ("Scores", "Pictures", "Curves", "Classes", "Time", "Settings"):
        assert section in page.text
    assert "–" in text  # APs has nothing to score
    for tag, name, value in page.attributes:
        assert tag not in ("script", "link", "iframe")
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64,")
    assert "http" not in path.read_text()
    assert "url(" not in path.read_text()


def test_embedded_pictures_are_the_given_ones() -> None:
    header, data = data_uri(picture(77)).split(",")
    assert header == "data:image/jpeg;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert decoded.shape == (24, 32, 3)
    assert abs(decoded.astype(int) - 77).max() <= 2


def test_what_is_missing_leaves_its_section_out(tmp_path: Path) -> None:
    """A run killed before its first line, evaluated for boxes alone."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"kind": "conf')
    page = Page(write_report(tmp_path / "r.html", log, Scores({"bbox": NUMBERS["bbox"]}, {})).read_text())
    assert "Scores" in page.text
    assert "Box" in page.text
    assert "Mask" not in page.text
    for section in ("Pictures", "Curves", "Classes", "Time", "Settings"):
        assert section not in page.text


def test_a_loss_that_was_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    entries = [
        {"kind": "train", "iteration": i, "losses": {"loss_cls": value}, "loss": value, "lr": 1, "seconds": i}
        for i, value in ((1, 1.0), (2, None), (3, 0.5))
    ]
    text = write_report(
        tmp_path / "r.html", write_log(tmp_path / "l.jsonl", entries), Scores(NUMBERS, {})
    ).read_text()
    assert "nan" not in text
    Page(text)


def test_lines_are_drawn_to_scale() -> None:
    svg = in_page(line_chart([Curve("up", [0, 5, 10], [0, 0.25, 1])], "steps", y_max=1.0))
    points = [tuple(map(float, p.split(","))) for p in svg.split('points="')[1].split('"')[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert (y0 - y1) == pytest.approx(0.25 * (y0 - y2), abs=0.1)


@pytest.mark.parametrize(
    "curve", [Curve("none", [], []), Curve("one", [3.0], [0.0]), Curve("nan", [1.0], [math.nan])]
)
def test_charts_of_almost_nothing(curve: Curve) -> None:
    Page(in_page(line_chart([curve], "steps")))


@pytest.mark.parametrize("largest", [0.0, 1e-4, 0.37, 1.0, 7, 999, 90_000])
def test_ticks_are_round_and_reach_the_largest(largest: float) -> None:
    values = ticks(largest)
    assert values[0] == 0
    assert values[-1] >= largest * 0.999
    assert 2 <= len(values) <= 7


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, log: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write_report(tmp_path / "file" / "r.html", log, Scores(NUMBERS, {}))
