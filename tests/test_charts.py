"""Charts as files of their own, and side by side."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

from maskrcnn.charts import Curve, as_file, bar_chart, line_chart, side_by_side, titled

SVG = "{http://www.w3.org/2000/svg}"


def test_a_file_brings_colours_for_light_and_dark() -> None:
    root = ET.fromstring(as_file(line_chart([Curve("a < b", [0, 1], [0, 2])], "steps & more", marks=True)))
    style = root.findtext(f"{SVG}style") or ""
    assert "prefers-color-scheme:dark" in style
    assert all(style.count(f"--c{i}:") == 2 for i in range(8))
    assert "steps & more" in [e.text for e in root.iter(f"{SVG}text")]
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_bars_are_as_long_as_their_values() -> None:
    root = ET.fromstring(as_file(bar_chart({"one": {"s": 1.0, "t": 4.0}, "two": {"s": 2.0}}, ["s", "t"])))
    bars = [float(e.get("width", "0")) for e in root.iter(f"{SVG}rect") if e.get("height") == "9"]
    assert bars[0] * 4 == bars[1] == bars[2] * 2


def test_panels_with_titles_and_legends_do_not_overlap() -> None:
    chart = line_chart([Curve("a", [0, 1], [0, math.nan])], "x", width=200, height=100)
    panel = titled(chart, "title", ["a", "b"])
    assert panel.height >= chart.height + 20 + 2 * 16
    both = side_by_side([panel, panel])
    assert both.width >= 2 * panel.width
    assert both.height == panel.height
    ET.fromstring(as_file(both))
    ET.fromstring(as_file(side_by_side([])))
