"""HTML page about a data set: its pictures with their objects drawn, its classes, how many objects there are and how
large they are; and a contact sheet of the drawn pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from maskrcnn.data.coco import CocoData
from maskrcnn.data.transforms import resize
from maskrcnn.errors import UserError
from maskrcnn.images.read import read_image
from maskrcnn.report.page import bar_table, cards_of, figures, section, write_page

PAGE_SIDE = 900  # pixels of the longest side of a picture on the page
CELL = (300, 240)  # width and height of a picture on the contact sheet
_COUNT_EDGES = (0, 1, 2, 3, 6, 11, 21, 51, 101)
_SIDE_EDGES = (0, 8, 16, 32, 64, 128, 256, 512)

Pictures = list[tuple[np.ndarray, str]]


def write_dataset_page(
    path: str | Path, title: str, parts: Mapping[str, CocoData], pictures: Mapping[str, Pictures]
) -> Path:
    """Write the page of the parts of a data set ("train", "val"), with the pictures of each.

    Raises:
        UserError: the file cannot be written.
    """
    sections = []
    for part, data in parts.items():
        where = f"{part}: " if len(parts) > 1 else ""
        shown = len(pictures[part])
        note = f"{shown} of {data.num_images:,}, evenly spread." if shown < data.num_images else ""
        sections += [
            section(f"{where}pictures".capitalize(), figures(pictures[part]), note),
            section(f"{where}classes".capitalize(), bar_table(class_counts(data)), "Objects of each class."),
            section(f"{where}objects".capitalize(), _histograms(data)),
        ]
    return write_page(path, title, _lead(parts), _cards(parts), sections)


def example_pictures(data: CocoData, limit: int) -> Pictures:
    """Draw at most `limit` pictures, evenly spread over the set, each with its objects and a caption."""
    count = min(limit, data.num_images)
    chosen = np.unique(np.linspace(0, data.num_images - 1, count).round().astype(int)) if count else ()
    return [(_drawn(data, int(i)), _caption(data, int(i))) for i in chosen]


def contact_sheet(pictures: Pictures) -> np.ndarray:
    """Arrange pictures in a grid, each with its caption, (H, W, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max(1, min(6, round((1.4 * len(pictures)) ** 0.5)))
    rows = -(-len(pictures) // columns)
    width, height, gap, text = *CELL, 10, 20
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, max(1, rows) * (height + text + gap) + gap), (250, 250, 249)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, (picture, caption) in enumerate(pictures):
        row, column = divmod(k, columns)
        x, y = gap + column * (width + gap), gap + row * (height + text + gap)
        image = Image.fromarray(picture)
        scale = min(width / image.width, height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(image, (x + (width - size[0]) // 2, y + height - size[1]))
        while font.getlength(caption) > width and len(caption) > 4:
            caption = caption[:-5] + "…"
        draw.text((x + width / 2, y + height + 4), caption, fill=(70, 72, 80), font=font, anchor="ma")
    return np.asarray(sheet)


def class_counts(data: CocoData) -> list[tuple[str, int]]:
    """Count the objects of each class: names and numbers, most first."""
    labels = _labels(data)
    counts = np.bincount(labels, minlength=len(data.class_names))
    order = np.argsort(-counts, kind="stable")
    return [(data.class_names[k], int(counts[k])) for k in order]


def _objects(data: CocoData) -> np.ndarray:
    """Indices of the set's objects in its arrays."""
    parts = [data.annotations(i) for i in range(data.num_images)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _labels(data: CocoData) -> np.ndarray:
    return data.arrays["labels"][_objects(data)].astype(np.int64)


def _drawn(data: CocoData, i: int) -> np.ndarray:
    """Draw a picture with its objects, at most `PAGE_SIDE` long; grey with a cross if its file cannot be read."""
    try:
        image = read_image(data.image_path(i))
    except UserError:
        return _no_picture(tuple(data.sizes[i].tolist()))
    truth = data.ground_truth(i)
    if max(image.shape[:2]) > PAGE_SIDE:
        scale = PAGE_SIDE / max(image.shape[:2])
        size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
        small, truth = resize(torch.from_numpy(image).permute(2, 0, 1), truth, size)
        image = small.permute(1, 2, 0).contiguous().numpy()
    names = (
        data.class_names if len(data.class_names) > 1 else ("",)
    )  # the one name on every object says nothing
    return truth.draw(image, names, data.skeleton)


def _no_picture(size: tuple[int, int]) -> np.ndarray:
    from PIL import Image, ImageDraw

    height, width = (240, 320) if 0 in size else size
    scale = 320 / max(height, width)
    image = Image.new("RGB", (max(2, round(width * scale)), max(2, round(height * scale))), (205, 205, 208))
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, *image.size), fill=(160, 60, 60), width=3)
    draw.line((0, image.size[1], image.size[0], 0), fill=(160, 60, 60), width=3)
    return np.asarray(image)


def _caption(data: CocoData, i: int) -> str:
    height, width = data.sizes[i].tolist()
    count, crowds = int(data.num_objects[i]), len(data.annotations(i, crowd=True))
    crowd = f" + {crowds} crowd region{'s' * (crowds != 1)}" if crowds else ""
    return f"{data.file_name(i)} · {width} x {height} · {count} object{'s' * (count != 1)}{crowd}"


def _lead(parts: Mapping[str, CocoData]) -> str:
    where = ", ".join(str(d.json_path) for d in parts.values())
    return f"From {where}."


def _cards(parts: Mapping[str, CocoData]) -> str:
    cards = []
    for part, data in parts.items():
        of = f" ({part})" if len(parts) > 1 else ""
        count = int(data.num_objects.sum())
        empty = int((data.num_objects == 0).sum())
        cards += [
            (f"{data.num_images:,}", f"images{of}"),
            (f"{count:,}", f"objects{of}"),
            (f"{count / max(1, data.num_images):.1f}", f"objects an image{of}"),
        ]
        if empty:
            cards.append((f"{empty:,}", f"without objects{of}"))
    first = next(iter(parts.values()))
    classes = len(first.class_names)
    cards.insert(0, (str(classes), "class" if classes == 1 else "classes"))
    return cards_of(cards)


def _histograms(data: CocoData) -> str:
    objects = _objects(data)
    boxes = data.arrays["boxes"][objects].astype(float)
    sides = np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1))
    tables = (
        ("objects in an image", _binned(data.num_objects, _COUNT_EDGES)),
        (
            "side of an object, pixels (root of the box's area)",
            _binned(sides[np.isfinite(sides)], _SIDE_EDGES),
        ),
        (
            "longest side of an image, pixels",
            _longest_sides(data.sizes.max(1) if data.num_images else np.zeros(0)),
        ),
    )
    charts = "".join(
        f"<figure><figcaption>{name}</figcaption>{bar_table(rows)}</figure>" for name, rows in tables
    )
    return f'<div class="charts three">{charts}</div>'


def _binned(values: np.ndarray, edges: tuple[int, ...]) -> list[tuple[str, int]]:
    """Histogram of values: a row for each range from an edge to below the next, without the empty ones at the end."""
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    last = int(np.flatnonzero(counts).max(initial=0))
    whole = all(float(v).is_integer() for v in values[:1000])
    rows = []
    for k in range(last + 1):
        low, high = edges[k], edges[k + 1] if k + 1 < len(edges) else None
        if high is None:
            name = f"from {low}"
        elif whole and high - low == 1:
            name = str(low)
        else:
            name = f"{low} to {high - 1}" if whole else f"{low} to {high}"
        rows.append((name, int(counts[k])))
    return rows


def _longest_sides(sides: np.ndarray) -> list[tuple[str, int]]:
    """Histogram of lengths: a row for each if there are few, else bins of a width that is round."""
    values, counts = np.unique(sides, return_counts=True)
    if len(values) <= 8:
        return [(str(int(v)), int(c)) for v, c in zip(values, counts, strict=True)]
    step = next(s for s in (50, 100, 200, 500, 1000, 2000, 10**9) if np.ptp(sides) / s <= 8)
    low = int(sides.min() // step)
    binned = np.bincount((sides // step).astype(int) - low)
    return [(f"{(low + k) * step} to {(low + k + 1) * step - 1}", int(c)) for k, c in enumerate(binned)]


__all__ = ["class_counts", "contact_sheet", "example_pictures", "write_dataset_page"]
