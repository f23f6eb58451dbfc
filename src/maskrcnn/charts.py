"""Charts as SVG, drawn without a plotting library: lines over axes, bars, with a legend.

Inside a page they take its colours (`--c0` to `--c7`, `--line`, `--dim`); as files of their own they bring these along,
for light and for dark surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {
    "light": "--paper:#fff;--dim:#555;--line:#ddd;--c0:#2563eb;--c1:#e8590c;--c2:#0f9d76;--c3:#b83280;--c4:#8b6c00;"
    "--c5:#6d4bd8;--c6:#0b8aa8;--c7:#c92a2a",
    "dark": "--paper:#16181d;--dim:#aaa;--line:#333;--c0:#74a3ff;--c1:#ff9f5c;--c2:#4fd1a8;--c3:#f08bc3;--c4:#e2c044;"
    "--c5:#b39cff;--c6:#5cc8e0;--c7:#ff8080",
}
_STYLE = (
    f"svg{{{COLOURS['light']}}}@media(prefers-color-scheme:dark){{svg{{{COLOURS['dark']}}}}}"
    ".paper{fill:var(--paper)}text{fill:var(--dim);font:11px sans-serif}.grid{stroke:var(--line)}"
    "polyline{fill:none;stroke-width:1.5}"
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 38


@dataclass(slots=True)
class Curve:
    """Named line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(slots=True)
class Drawing:
    """Part of an SVG with its width and height."""

    content: str
    width: float
    height: float


def in_page(drawing: Drawing) -> str:
    """SVG of a drawing for a page that has the colours."""
    return f'<svg viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img">{drawing.content}</svg>'


def as_file(drawing: Drawing) -> str:
    """SVG of a drawing that stands for itself."""
    width, height = math.ceil(drawing.width), math.ceil(drawing.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%"/>{drawing.content}</svg>\n'
    )


def side_by_side(drawings: Sequence[Drawing], gap: float = 24) -> Drawing:
    """Put drawings next to each other."""
    parts, x = [], 0.0
    for drawing in drawings:
        parts.append(f'<g transform="translate({x:g},0)">{drawing.content}</g>')
        x += drawing.width + gap
    return Drawing("".join(parts), max(1.0, x - gap), max((d.height for d in drawings), default=1.0))


def titled(drawing: Drawing, title: str, legend: Sequence[str] = (), x_title: str = "") -> Drawing:
    """Put a title above a drawing, and below it a line for each colour of the legend."""
    parts = [f'<text x="{_LEFT}" y="16" style="font-size:13px">{escape(title)}</text>']
    parts.append(f'<g transform="translate(0,20)">{drawing.content}</g>')
    y = drawing.height + 30
    for i, name in enumerate(legend):
        parts.append(f'<path d="M{_LEFT} {y:g}h14" style="stroke:var(--c{i % 8});stroke-width:3"/>')
        parts.append(f'<text x="{_LEFT + 20}" y="{y + 4:g}">{escape(name)}</text>')
        y += 16
    return Drawing("".join(parts), drawing.width, y)


def line_chart(
    curves: Sequence[Curve],
    x_title: str,
    *,
    y_title: str = "",
    y_max: float | None = None,
    x_max: float | None = None,
    marks: bool = False,
    width: int = 480,
    height: int = 270,
) -> Drawing:
    """Draw lines over axes from 0; points that are not finite are left out. `marks`: dots with their values."""
    points = [
        [(x, y) for x, y in zip(c.x, c.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for c in curves
    ]
    x_ticks = ticks(x_max or max((x for line in points for x, _ in line), default=1.0))
    y_ticks = ticks(y_max or max((y for line in points for _, y in line), default=1.0))
    right = x_max or max([x for line in points for x, _ in line] + [x_ticks[1]])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / right * (width - _LEFT - _RIGHT),
            height - _BOTTOM - y / y_ticks[-1] * (height - _TOP - _BOTTOM),
        )

    parts = []
    for value in y_ticks:
        _, y = place(0, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, _ = place(value, 0)
        if value <= right * 1.001:
            parts.append(
                f'<text x="{x:.1f}" y="{height - _BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
            )
    middle = (_LEFT + width - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 4}" text-anchor="middle">{escape(x_title)}</text>')
    if y_title:
        turned = f"translate(12 {(height - _BOTTOM + _TOP) / 2:g}) rotate(-90)"
        parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(y_title)}</text>')
    for i, (curve, line) in reversed(list(enumerate(zip(curves, points, strict=True)))):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line)
        if path:
            parts.append(f'<polyline style="stroke:var(--c{i % 8})" points="{path}"/>')
        for x, y in line if marks else []:
            cx, cy = place(x, y)
            label = f"{escape(curve.name)} {y:.3f} at {x:.4g} {escape(x_title)}"
            dot = f'cx="{cx:.1f}" cy="{cy:.1f}" r="3.5" style="fill:var(--c{i % 8})"'
            parts.append(f"<circle {dot}><title>{label}</title></circle>")
    return Drawing("".join(parts), width, height)


def bar_chart(rows: Mapping[str, Mapping[str, float]], series: Sequence[str], *, width: int = 420) -> Drawing:
    """Draw a row of horizontal bars for each name, a bar for each of the series that it has a value of."""
    bar, left, head = 11, 340, 18 * len(series) + 12
    step = bar * len(series) + 8
    longest = max((value for row in rows.values() for value in row.values()), default=1.0)
    parts = []
    for i, name in enumerate(series):
        parts.append(
            f'<rect x="{left}" y="{8 + 18 * i}" width="12" height="12" style="fill:var(--c{i % 8})"/>'
        )
        parts.append(f'<text x="{left + 18}" y="{18 + 18 * i}">{escape(name)}</text>')
    for k, (name, row) in enumerate(rows.items()):
        top = head + step * k
        parts.append(
            f'<text x="{left - 8}" y="{top + (step - 8) / 2 + 4:g}" text-anchor="end">{escape(name)}</text>'
        )
        for i, one in enumerate(series):
            if (value := row.get(one)) is not None:
                length, y = width * value / longest, top + bar * i
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" style="fill:var(--c{i % 8})"/>'
                    f'<text x="{left + length + 4:.1f}" y="{y + 8}" style="font-size:9px">{value:.3g}</text>'
                )
    return Drawing("".join(parts), left + width + 70, head + step * len(rows) + 8)


def grouped_bars(
    groups: Mapping[str, Sequence[tuple[int, float]]], legend: Mapping[int, str], *, width: int = 420
) -> Drawing:
    """Draw horizontal bars in groups under a name: of each group its (colour, value) alone, so that nothing is empty.

    legend: the colours' names.
    """
    bar, left, head = 14, 380, 30
    longest = max((value for bars in groups.values() for _, value in bars), default=1.0)
    parts, x, y = [], left, head
    for colour, name in legend.items():
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" style="fill:var(--c{colour % 8})"/>')
        parts.append(f'<text x="{x + 18}" y="18">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    for name, bars in groups.items():
        middle = y + bar * len(bars) / 2
        parts.append(f'<text x="{left - 8}" y="{middle + 3:g}" text-anchor="end">{escape(name)}</text>')
        for colour, value in bars:
            length = width * value / longest
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" style="fill:var(--c{colour % 8})"/>'
                f'<text x="{left + length + 5:.1f}" y="{y + 10}">{value:.3g}</text>'
            )
            y += bar
        y += 7
    return Drawing("".join(parts), left + width + 50, y)


def ticks(largest: float) -> list[float]:
    """Round numbers from 0 to at least `largest`, four to seven of them."""
    if not largest > 0:
        return [0.0, 1.0]
    raw = largest / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(largest / step - 1e-6) + 1)]
