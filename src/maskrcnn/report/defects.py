"""HTML page about the defects of a data set: each kind of finding with its rule, its list, and the worst drawn.

A picture shows the mask as labelled in blue and the box as given in red, cut out around them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskrcnn.data.coco import CocoData
from maskrcnn.data.coco_arrays import POLYGONS, RLE
from maskrcnn.data.quality.defects import ADVICE, Group, Report
from maskrcnn.errors import UserError
from maskrcnn.images.read import read_image
from maskrcnn.masks import rle_decode
from maskrcnn.report.page import cards_of, figures, section, write_page

SIDE = 420  # pixels of the longest side of a picture
_LEAST = 48  # pixels of the image that a cut-out shows
_MASK, _BOX = (30, 110, 240), (225, 40, 40)


@dataclass(slots=True)
class Chapter:
    """Findings in one part of a data set: a title and reports, defects first."""

    title: str
    reports: Sequence[Report]


def write_defects_page(
    path: str | Path,
    title: str,
    lead: str,
    chapters: Sequence[Chapter],
    *,
    limit: int = 20,
    pictures: int = 6,
) -> Path:
    """Write the page of these chapters: of each kind `limit` findings are listed and `pictures` drawn.

    Raises:
        UserError: the file cannot be written.
    """
    found = sum(len(r) for c in chapters for r in c.reports)
    defects = sum(n for c in chapters for r in c.reports for k, n in r.counts.items() if k not in ADVICE)
    cards = cards_of([(f"{defects:,}", "defects"), (f"{found - defects:,}", "things worth a look")])
    sections = [
        _kind(chapter.title, report, kind, limit, pictures)
        for chapter in chapters
        for report in chapter.reports
        for kind in report.counts
    ]
    return write_page(
        path, title, lead, cards, sections or [section("Nothing found", "<p>All is sound.</p>")]
    )


def _kind(where: str, report: Report, kind: str, limit: int, pictures: int) -> str:
    findings = [f for f in report.findings() if f.kind == kind]
    chip = "worth a look" if kind in ADVICE else "defect"
    style = "chip" if kind in ADVICE else "chip bad"
    items = "".join(f"<li>{html.escape(f.line)}</li>" for f in findings[: limit or None])
    rest = len(findings) - limit if limit else 0
    more = f"<li>... and {rest:,} more</li>" if rest > 0 else ""
    head = f'<p><span class="{style}">{chip}</span> {html.escape(findings[0].rule)}</p>'
    drawn = figures(worst(report, kind, pictures))
    name = f"{where}: {kind.replace('_', ' ')} ({len(findings):,})"
    return section(name, f'{head}{drawn}<ul class="found">{items}{more}</ul>')


def worst(report: Report, kind: str, count: int) -> list[tuple[np.ndarray, str]]:
    """Draw the first `count` findings of a kind whose images can be read: pictures with captions."""
    drawn: list[tuple[np.ndarray, str]] = []
    for group in (g for g in report.groups if g.kind == kind):
        for k in _order(report.data, group).tolist():
            if len(drawn) == count:
                return drawn
            picture = _draw(report.data, int(group.images[k]), int(group.annotations[k]))
            if picture is not None:
                message = group.message.format(*(v[k] for v in group.values))
                drawn.append((picture, f"{_name(report.data, int(group.images[k]))}: {message}"))
    return drawn


def _order(data: CocoData, group: Group) -> np.ndarray:
    """Order in which a group's findings are drawn: advice as it comes, the worst first; defects by size, since large
    objects tell the most.
    """
    index = group.annotations
    if group.kind in ADVICE or (index < 0).any():
        return np.arange(len(group))
    boxes = data.arrays["boxes"][index].astype(float)
    areas = np.nan_to_num((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1), nan=0.0, posinf=0.0)
    return np.argsort(-areas, kind="stable")


def _name(data: CocoData, row: int) -> str:
    first, last = data.arrays["name_offsets"][row : row + 2]
    return data.arrays["names"][first:last].tobytes().decode(errors="replace")


def _draw(data: CocoData, row: int, j: int) -> np.ndarray | None:
    """Draw the part of image `row` around annotation j, or all of it with all its objects where j is -1."""
    if row < 0 or not _name(data, row):
        return None
    try:
        image = read_image(data.images_dir / _name(data, row))
    except UserError:
        return None
    first, last = data.arrays["object_offsets"][row : row + 2]
    index = np.array([j]) if j >= 0 else data.arrays["object_order"][first:last]
    window = _window(data, j, image.shape[:2]) if j >= 0 else (0, 0, image.shape[1], image.shape[0])
    return _cut_out(data, image, index, window, boxes=j >= 0)


def _window(data: CocoData, j: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Window x0, y0, x1, y1 around an annotation's box and mask, with a margin, inside the image."""
    points = [data.arrays["boxes"][j].reshape(2, 2)]
    points += [np.asarray(ring, float).reshape(-1, 2) for ring in _rings(data, j)]
    if (bitmap := _bitmap(data, j)) is not None and bitmap.any():
        rows, columns = np.nonzero(bitmap)
        points.append(np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]))
    corners = np.concatenate(points).astype(float)
    limits = np.array([size[1], size[0]], float)
    corners = corners[np.isfinite(corners).all(1)].clip(0, limits)
    if not len(corners):
        return 0, 0, size[1], size[0]
    middle, half = (corners.min(0) + corners.max(0)) / 2, np.ptp(corners, axis=0).max() * 0.75
    half = max(half, _LEAST / 2)
    low, high = (middle - half).clip(0, limits), (middle + half).clip(0, limits)
    return int(low[0]), int(low[1]), max(int(high[0]), int(low[0]) + 1), max(int(high[1]), int(low[1]) + 1)


def _cut_out(
    data: CocoData, image: np.ndarray, index: np.ndarray, window: tuple[int, int, int, int], *, boxes: bool
) -> np.ndarray:
    from PIL import Image, ImageDraw

    x0, y0, x1, y1 = window
    scale = SIDE / max(x1 - x0, y1 - y0)
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    resample = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    base = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1])).resize(size, resample).convert("RGBA")
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    for j in index.tolist():
        if (bitmap := _bitmap(data, j)) is not None:
            crop = Image.fromarray(np.ascontiguousarray(bitmap[y0:y1, x0:x1]) * np.uint8(255))
            if 0 not in crop.size:
                layer.paste((*_MASK, 110), (0, 0), crop.resize(size, Image.Resampling.NEAREST))
        for ring in _rings(data, j):
            xy = (np.asarray(ring, float).reshape(-1, 2) - (x0, y0)) * scale
            points = [(float(x), float(y)) for x, y in xy if np.isfinite((x, y)).all()]
            if len(points) >= 2:
                draw.polygon(points, fill=(*_MASK, 90), outline=(*_MASK, 255), width=2)
        box = data.arrays["boxes"][j]
        if boxes and np.isfinite(box).all():
            bx0, by0, bx1, by1 = ((box.astype(float) - (x0, y0, x0, y0)) * scale).tolist()
            draw.rectangle(
                (min(bx0, bx1), min(by0, by1), max(bx0, bx1), max(by0, by1)), outline=(*_BOX, 255), width=2
            )
    return np.asarray(Image.alpha_composite(base, layer).convert("RGB"))


def _rings(data: CocoData, j: int) -> list[np.ndarray]:
    """Polygons of annotation j, broken ones too."""
    a = data.arrays
    if a["mask_kind"][j] != POLYGONS:
        return []
    ends = a["ring_offsets"][a["rings_of"][j] : a["rings_of"][j + 1] + 1]
    rings = [a["points"][ends[k] : ends[k + 1]] for k in range(len(ends) - 1)]
    return [ring[: len(ring) // 2 * 2] for ring in rings]


def _bitmap(data: CocoData, j: int) -> np.ndarray | None:
    """Bitmap of annotation j, or None if it is no sound RLE."""
    if data.arrays["mask_kind"][j] != RLE:
        return None
    try:
        return rle_decode(data.segmentations(np.array([j]))[0])  # pyright: ignore (an RLE is a dict)
    except ValueError:
        return None
