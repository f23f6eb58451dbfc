"""Oddities of a data set that are no defects: training takes it as it is. `defects.ADVICE` has the kinds.

Findings of a kind come with the most striking first.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from maskrcnn.data.coco import CocoData
from maskrcnn.data.coco_arrays import POLYGONS, RLE
from maskrcnn.data.mask_extents import box_overlap, measure_rings, measure_rles, merge_rings
from maskrcnn.data.quality.defects import Report
from maskrcnn.masks.rle import Runs, read_runs

MAX_DETECTIONS = 100  # COCO's
TWICE = 0.95  # IoU of two boxes that are taken for the same
LOOSE = 0.9  # IoU of a box and the box around its mask below which it is worth a look
DARK = 32  # of 255: a picture without a brighter pixel; 12 bits in 16 give at most 16
_AT_A_TIME = 1 << 12  # RLEs
_MOST_IN_PAIRS = 2000  # objects of an image that are compared two by two

T = TypeVar("T")


def advise(
    data: CocoData, *, images: bool = True, brightest: np.ndarray | None = None, num_threads: int = 8
) -> Report:
    """Find the oddities of one part; `images`: in its files too. `data` as `check` leaves it: repaired.

    brightest: the `Report.brightest` of `check`.
    """
    report = Report(data)
    _ids(report)
    _counts(report)
    objects = _objects(data)
    _boxes(report, objects)
    _polygon_holes(report, objects)
    _bitmap_holes(report, objects)
    if brightest is not None:
        _dark(report, brightest)
    if images:
        _files(report, num_threads)
    return report


def compare(train: CocoData, val: CocoData, *, images: bool = True, num_threads: int = 8) -> Report:
    """Find the oddities of two parts together, as findings about `val`."""
    report = Report(val)
    of_train, of_val = _by_class(train), _by_class(val)
    for kind, names, there, here in (
        ("class_not_in_val", of_train, "training", of_val),
        ("class_not_in_train", of_val, "validation", of_train),
    ):
        missing = [
            n for n in sorted(names, key=names.__getitem__, reverse=True) if names[n] and not here.get(n)
        ]
        _add_texts(
            report,
            kind,
            [f"{n!r} has {names[n]:,} objects in {there}, none in the other part" for n in missing],
        )
    if images:
        known = _by_content([train, val], num_threads)
        pairs = [
            (places[0][1], i) for places in known for part, i in places if part == 1 and places[0][0] == 0
        ]
        rows = np.array([val.rows[i] for _, i in pairs], np.int64)
        names = [f"{val.file_name(i)} is {train.file_name(k)} of training" for k, i in pairs]
        report.add("in_both_parts", rows, -np.ones(len(rows), np.int64), "{}", names)
    return report


def _by_class(data: CocoData) -> dict[str, int]:
    counts = np.bincount(data.arrays["labels"][_objects(data)], minlength=len(data.class_names))
    return dict(zip(data.class_names, counts.tolist(), strict=True))


def _ids(report: Report) -> None:
    data = report.data
    if 0 in data.category_ids and data.category_ids != tuple(range(len(data.category_ids))):
        name = data.class_names[data.category_ids.index(0)]
        _add_texts(report, "category_id_0", [f"{name!r} has id 0, while ids do not simply count from 0"])
    elif 0 in data.category_ids:
        _add_texts(report, "category_id_0", [f"ids count from 0: {data.class_names[0]!r} has id 0"])
    report.add_objects("annotation_id_0", np.flatnonzero(data.arrays["ids"] == 0), "its id is 0")


def _counts(report: Report) -> None:
    data = report.data
    absent = [f"{name!r} has no object" for name, count in _by_class(data).items() if not count]
    _add_texts(report, "class_without_objects", absent)
    many = np.flatnonzero(data.num_objects > MAX_DETECTIONS)
    many = many[np.argsort(-data.num_objects[many], kind="stable")]
    nothing = -np.ones(len(many), np.int64)
    report.add("many_objects", data.rows[many], nothing, "it has {} objects", data.num_objects[many])


def _objects(data: CocoData) -> np.ndarray:
    """The objects of the set as positions in the arrays."""
    parts = [data.annotations(i) for i in range(data.num_images)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _boxes(report: Report, objects: np.ndarray) -> None:
    a = report.data.arrays
    boxes = a["boxes"][objects]
    sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
    small = np.flatnonzero(sides < 2)
    small = small[np.argsort(sides[small], kind="stable")]
    texts = [
        f"its box is {w:.3g} x {h:.3g} pixels" for w, h in (boxes[small, 2:] - boxes[small, :2]).tolist()
    ]
    report.add_objects("one_pixel", objects[small], "{}", texts)

    _, rings = measure_rings(a["points"], a["ring_offsets"])
    around = merge_rings(rings, a["rings_of"])
    measure_rles(a, around)
    limits = np.where(a["sizes"] > 0, a["sizes"], np.inf)[a["image"][objects]][:, [1, 0, 1, 0]]
    masks = np.clip(around[objects], 0, limits)
    overlap = box_overlap(boxes, masks)
    loose = (overlap < LOOSE) & (np.abs(boxes - masks) > 2).any(1) & (masks[:, 2:] > masks[:, :2]).all(1)
    index = np.flatnonzero(loose)
    index = index[np.argsort(overlap[index], kind="stable")]
    texts = [f"IoU {overlap[k]:.2f} of its box and the box around its mask" for k in index.tolist()]
    report.add_objects("box_loose", objects[index], "{}", texts)
    _twice(report)


def _twice(report: Report) -> None:
    """Objects of one class in one image with nearly the same box; the later one is named."""
    data, a = report.data, report.data.arrays
    found = []
    for i in range(data.num_images):
        index = data.annotations(i)
        if not 1 < len(index) <= _MOST_IN_PAIRS:
            continue
        boxes, labels = a["boxes"][index], a["labels"][index]
        overlap = box_overlap(boxes[:, None], boxes[None])
        first, second = np.nonzero(np.triu((overlap > TWICE) & (labels[:, None] == labels[None]), 1))
        found += [
            (overlap[p, q], int(index[q]), a["ids"][index[p]])
            for p, q in zip(first.tolist(), second.tolist())
        ]
    found.sort(key=lambda entry: -entry[0])
    texts = [f"IoU {overlap:.3f} with the box of annotation {other}" for overlap, _, other in found]
    report.add_objects("drawn_twice", np.array([j for _, j, _ in found], np.int64), "{}", texts)


def _polygon_holes(report: Report, objects: np.ndarray) -> None:
    """Objects with a ring all of whose corners lie in another ring of the same object."""
    a = report.data.arrays
    _, extents = measure_rings(a["points"], a["ring_offsets"])
    several = objects[(a["mask_kind"][objects] == POLYGONS) & (np.diff(a["rings_of"])[objects] > 1)]
    found = []
    for j in several.tolist():
        rings = range(a["rings_of"][j], a["rings_of"][j + 1])
        boxes = extents[rings.start : rings.stop]
        inside = (boxes[:, None, :2] >= boxes[None, :, :2]).all(2) & (
            boxes[:, None, 2:] <= boxes[None, :, 2:]
        ).all(2)
        for p, q in zip(*(k.tolist() for k in np.nonzero(inside & ~np.eye(len(boxes), dtype=bool)))):
            inner, outer = (_ring(a, rings.start + k) for k in (p, q))
            if _contains(outer, inner).all():
                area = float(np.prod(boxes[p, 2:] - boxes[p, :2]))
                found.append((area, j, f"its polygon {p} lies in its polygon {q}"))
                break
    found.sort(key=lambda entry: -entry[0])
    report.add_objects(
        "hole_filled", np.array([j for _, j, _ in found], np.int64), "{}", [t for *_, t in found]
    )


def _ring(arrays: Mapping[str, np.ndarray], k: int) -> np.ndarray:
    first, last = arrays["ring_offsets"][k : k + 2]
    return arrays["points"][first:last].reshape(-1, 2).astype(np.float64)


def _contains(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Mask of the points (P,) inside the ring: an odd number of its edges lies to their right."""
    x0, y0 = ring.T
    x1, y1 = np.roll(ring, -1, axis=0).T
    px, py = points[:, :1], points[:, 1:]
    spans = (y0 > py) != (y1 > py)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x0 + (py - y0) * (x1 - x0) / (y1 - y0)
    return (spans & (px < crossing)).sum(1) % 2 == 1


def _bitmap_holes(report: Report, objects: np.ndarray) -> None:
    """Bitmaps whose Euler number says that they have a hole: fewer parts than holes and one."""
    a = report.data.arrays
    index = objects[a["mask_kind"][objects] == RLE]
    holes = np.zeros(len(index), np.int64)
    for first in range(0, len(index), _AT_A_TIME):
        part = index[first : first + _AT_A_TIME]
        offsets, text = a["rle_offsets"], a["rle"]
        rles = [
            {"size": a["rle_sizes"][j].tolist(), "counts": text[offsets[j] : offsets[j + 1]].tobytes()}
            for j in part.tolist()
        ]
        numbers = euler_numbers(read_runs(rles), a["rle_sizes"][part, 0])
        holes[first : first + _AT_A_TIME] = np.maximum(0, 1 - numbers)
    found = np.flatnonzero(holes)
    found = found[np.argsort(-holes[found], kind="stable")]
    texts = [f"its mask has {n} hole{'s' * (n != 1)} or more" for n in holes[found].tolist()]
    report.add_objects("mask_with_hole", index[found], "{}", texts)


def euler_numbers(runs: Runs, heights: np.ndarray) -> np.ndarray:
    """Euler number of each mask, (N,): its parts less its holes, pixels joined by corners too.

    Each column's runs are nodes, joined where runs of neighbouring columns touch. A loop of that graph is a hole,
    so that nodes less edges is the number wanted.
    """
    height = heights[runs.owner]
    # A run over the end of a column is one piece a column.
    first, last = runs.starts // height, (runs.ends - 1) // height
    pieces = last - first + 1
    owner = np.repeat(runs.owner, pieces)
    column = np.repeat(first, pieces) + np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    tall = np.repeat(height, pieces)
    top = np.maximum(np.repeat(runs.starts, pieces) - column * tall, 0)
    bottom = np.minimum(np.repeat(runs.ends, pieces) - column * tall, tall)  # exclusive
    stride = int(heights.max(initial=0)) + 2
    base = (
        owner * (int(column.max(initial=0)) + 2) + column
    ) * stride  # keys that rise with owner, column and row
    starts, ends = base + top, base + bottom
    before = base - stride  # the same rows one column to the left
    # Neighbours of piece k: those that begin at or before its end and end at or after its begin, corners included.
    low = np.searchsorted(ends, before + top, side="left")
    high = np.searchsorted(starts, before + bottom, side="right")
    same = _in_column(low, high, before, starts)
    edges = np.bincount(owner, same, minlength=runs.num_masks)
    return (np.bincount(owner, minlength=runs.num_masks) - edges).astype(np.int64)


def _in_column(low: np.ndarray, high: np.ndarray, before: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Count the pieces low..high - 1 that lie in the column that begins at `before`: keys of others are less."""
    first = np.searchsorted(starts, before, side="left")
    return np.maximum(high - np.maximum(low, first), 0)


def _dark(report: Report, brightest: np.ndarray) -> None:
    """Pictures whose values are all low, as when 12 bits are kept in 16."""
    rows = report.data.rows
    rows = rows[brightest[rows] < DARK]
    nothing = -np.ones(len(rows), np.int64)
    report.add("nearly_black", rows, nothing, "its largest value is {} of 255", brightest[rows])


def _files(report: Report, num_threads: int) -> None:
    from maskrcnn.images.read import image_orientation

    data = report.data
    paths = [data.image_path(i) for i in range(data.num_images)]
    turned = [i for i, o in enumerate(_in_threads(image_orientation, paths, num_threads)) if o != 1]
    rows = data.rows[np.array(turned, np.int64)]
    report.add("exif_turned", rows, -np.ones(len(rows), np.int64), "{}", [data.file_name(i) for i in turned])
    again = [(places[0][1], i) for places in _by_content([data], num_threads) for _, i in places[1:]]
    rows = data.rows[np.array([i for _, i in again], np.int64)]
    texts = [f"{data.file_name(i)} is the same file as {data.file_name(k)}" for k, i in again]
    report.add("same_picture", rows, -np.ones(len(rows), np.int64), "{}", texts)


def _by_content(sets: list[CocoData], num_threads: int) -> list[list[tuple[int, int]]]:
    """Places (set, image) of files with the same bytes, where there are several; only sizes that recur are read."""
    places = [(k, i, d.image_path(i)) for k, d in enumerate(sets) for i in range(d.num_images)]
    sizes: dict[int, list[tuple[int, int, Path]]] = defaultdict(list)
    for place in places:
        if place[2].is_file():
            sizes[place[2].stat().st_size].append(place)
    again = [place for group in sizes.values() if len(group) > 1 for place in group]
    same: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for (k, i, _), digest in zip(again, _in_threads(_digest, [p for *_, p in again], num_threads)):
        same[digest].append((k, i))
    return [group for group in same.values() if len(group) > 1]


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _in_threads(function: Callable[[Path], T], paths: Iterable[Path], num_threads: int) -> list[T]:
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, paths))


def _add_texts(report: Report, kind: str, texts: list[str]) -> None:
    """Findings about no image in particular."""
    nowhere = -np.ones(len(texts), np.int64)
    report.add(kind, nowhere, nowhere, "{}", texts)
