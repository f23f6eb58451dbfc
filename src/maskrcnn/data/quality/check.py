"""Checks of a data set before training; `defects` holds the rule for each kind of finding.

The checks are array arithmetic (seconds for a million objects); image files are decoded, in threads, the first time
they are met (`pictures`).
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np

from maskrcnn.config import InputConfig
from maskrcnn.data.coco import CocoData
from maskrcnn.data.coco_arrays import NO_MASK, POLYGONS, RLE, UNREADABLE
from maskrcnn.data.file_names import near
from maskrcnn.data.mask_extents import SOUND, box_overlap, measure_rings, measure_rles, merge_rings
from maskrcnn.data.pictures import look_at
from maskrcnn.data.quality.defects import Report

_ROUNDING = 1.0  # pixels that a box may reach outside the image, or differ from its mask, without a finding
_HINTS = 3  # missing images for which the nearest file is looked for: each takes a walk through the folder
_PAIRS = "one point only: a list of pairs is no polygon; write x, y, x, y, ... in one list"
_RING_PROBLEM = (
    "",
    "an odd count of numbers",
    "fewer than 3 points",
    "a value that is no finite number",
    "no area",
    "a point more than a million pixels away",
)


def checked(
    data: CocoData,
    on_error: Literal["repair", "refuse"] = "repair",
    *,
    images: bool = True,
    input: InputConfig | None = None,
) -> tuple[CocoData, Report]:
    """Check a data set and repair its defects by `RULES`: the set, and the findings. `images`: look at the files too.

    Raises:
        UserError: a defect that has no repair; any defect, with on_error "refuse"; or nothing is left to learn from.
    """
    report = check(data, images=images, input=input)
    return report.usable(on_error), report


def check(
    data: CocoData, *, images: bool = True, num_threads: int = 8, input: InputConfig | None = None
) -> Report:
    """Find all defects of the data set: in its whole JSON, and in the files of its images unless `images` is False.

    input: whose bands, if any, the files are to have.
    """
    report = Report(data)
    if not len(data.arrays["image_ids"]):
        report.add("no_images", -1, -1, "the labels list no images")
    elif not len(data.arrays["ids"]):
        report.add("no_annotations", -1, -1, "the labels have no annotations")
    for kind, text in data.notes:
        report.add(kind, -1, -1, "{}", [text])
    _check_classes(report)
    _check_entries(report)
    if images:
        _check_files(report, num_threads, input)
    _check_references(report)
    extents = _check_masks(report) if data.masks else data.arrays["boxes"]
    _check_boxes(report, extents)
    if data.num_keypoints:
        _check_keypoints(report)
    return report


def _check_classes(report: Report) -> None:
    """Classes that nothing or no one can learn, two of one name, and crowds as no COCO set has them."""
    data, a = report.data, report.data.arrays
    if not data.class_names and len(a["image_ids"]):
        report.add("no_classes", -1, -1, "it has no categories")
    for name, count in Counter(data.class_names).items():
        if count > 1:
            ids = [i for i, n in zip(data.category_ids, data.class_names, strict=True) if n == name]
            report.add("class_twice", -1, -1, "{}", [f"{name!r} is the name of the categories {ids}"])
    known = a["labels"] >= 0
    num = len(data.class_names)
    crowds = np.bincount(a["labels"][known & a["crowd"]], minlength=num)
    others = np.bincount(a["labels"][known & ~a["crowd"]], minlength=num)
    for k in np.flatnonzero(crowds > others).tolist():
        texts = [f"{data.class_names[k]!r} has {crowds[k]} crowd regions (iscrowd 1) and {others[k]} objects"]
        report.add("crowds_only", -1, -1, "{}", texts)
    index = a["odd_crowds"]
    taken = np.where(a["crowd"][index], "a crowd", "no crowd")
    message = "its iscrowd is {}, not 0 or 1: taken for {}"
    report.add_objects("crowd_odd", index, message, a["odd_crowd_texts"], taken)


def _check_entries(report: Report) -> None:
    """Images that are listed twice, by id or by file."""
    a = report.data.arrays
    ids, offsets = a["image_ids"], a["name_offsets"]
    blob = a["names"].tobytes()
    ends = zip(offsets[:-1].tolist(), offsets[1:].tolist())
    names = [blob[first:last].decode(errors="replace") for first, last in ends]
    has_objects = np.diff(a["object_offsets"]) > 0
    by_id = {}
    by_name: dict[str, int] = {}
    for i, (identity, name) in enumerate(zip(ids.tolist(), names)):
        first = by_id.setdefault(identity, i)
        if first != i:
            same = names[first] == name
            kind = "duplicate_image" if same else "duplicate_image_id"
            message = "listed twice" if same else "its id stands for {} and for {}"
            report.add(kind, i, -1, message, [names[first]], [name])
            report.left_out.add(i)
        elif name and (first := by_name.setdefault(name, i)) != i:
            kind = "split_image" if has_objects[i] and has_objects[first] else "duplicate_image"
            report.add(kind, i, -1, "{} is the file of image {} too", [name], [ids[first]])
            later = first if has_objects[i] else i
            report.left_out.add(later)
            by_name[name] = first if later == i else i


def _check_files(report: Report, num_threads: int, input: InputConfig | None) -> None:
    data, sizes = report.data, report.data.arrays["sizes"]
    report.brightest = np.full(len(sizes), 255, np.uint8)
    filled: list[tuple[int, tuple[int, int]]] = []
    told = 0
    pictures = look_at(data, num_threads, input)
    for i, (row, picture) in enumerate(zip(data.rows.tolist(), pictures, strict=True)):
        if isinstance(picture, str):
            kind = "image_missing" if picture.startswith("no file") else "image_unreadable"
            if kind == "image_missing" and told < _HINTS:
                told += 1
                picture = f"{picture}.{near(data.file_name(i), [data.images_dir])}".rstrip(".")
            report.add(kind, row, -1, "{}", [picture])
            report.left_out.add(row)
            continue
        if fit := data.fit(i):
            report.add("name_differs", row, -1, "{}", [f"no file {data.file_name(i)!r}, but {fit} fits"])
        size, expected = picture.size, tuple(sizes[row].tolist())
        report.brightest[row] = picture.brightest
        if 0 in expected:
            report.add("size_absent", row, -1, "the labels have no height and width; the file has {}", [size])
            filled.append((row, size))
        elif size != expected:
            turned = " (turned by its EXIF orientation?)" if size == expected[::-1] else ""
            message = f"the labels say (H, W) {expected}, the file has {size}{turned}"
            report.add("size_differs", row, -1, "{}", [message])
            report.left_out.add(row)
    if filled:
        index, values = zip(*filled)
        report.patches.append(("sizes", np.array(index), np.array(values, np.int32)))


def _check_references(report: Report) -> None:
    """Annotations of images and categories that do not exist, and ids that are used twice."""
    a = report.data.arrays
    lost = np.flatnonzero(a["image"] < 0)
    report.add_objects("unknown_image", lost, "its image_id {} is not among the images", a["lost_images"])
    lost = np.flatnonzero(a["labels"] < 0)
    report.add_objects("unknown_category", lost, "its {} is not among the categories", a["lost_categories"])
    given = np.flatnonzero(a["ids"] >= 0)
    _, first, which = np.unique(a["ids"][given], return_index=True, return_inverse=True)
    if len(first) == len(given):
        return
    first_of = given[first[which]]  # the first annotation with the same id
    again, first_of = given[given != first_of], first_of[given != first_of]
    same = (a["image"][again] == a["image"][first_of]) & (a["labels"][again] == a["labels"][first_of])
    same &= (a["boxes"][again] == a["boxes"][first_of]).all(1)
    report.add_objects("duplicate_annotation", again[same], "listed twice")
    report.drop(again[same])
    other = again[~same]
    report.add_objects("duplicate_annotation_id", other, "another annotation has this id")
    if len(other):
        largest = int(a["ids"].max())
        count = 1 + np.arange(2 * len(a["ids"]))
        fresh = largest + count if largest < 1 << 62 else np.setdiff1d(count, a["ids"])
        fresh = fresh[: len(other)]
        report.patches.append(("ids", other, fresh))


def _check_masks(report: Report) -> np.ndarray:
    """Findings on masks; (m, 4) float32 boxes around the sound ones, empty where there is none."""
    a = report.data.arrays
    known = a["image"] >= 0
    for kind, code, message in (
        ("mask_absent", NO_MASK, "it has no segmentation"),
        (
            "mask_unreadable",
            UNREADABLE,
            "its segmentation is neither a list of polygons nor an RLE that adds up",
        ),
    ):
        index = np.flatnonzero(known & (a["mask_kind"] == code))
        report.add_objects(kind, index, message)
    problem, ring_extents = measure_rings(a["points"], a["ring_offsets"])
    extents = merge_rings(ring_extents, a["rings_of"])
    broken = np.flatnonzero(problem != SOUND)
    if len(broken):
        owner = np.searchsorted(a["rings_of"], broken, side="right") - 1
        number = broken - a["rings_of"][owner]
        single = np.diff(a["ring_offsets"])[broken] == 2
        why = [_PAIRS if one else _RING_PROBLEM[p] for p, one in zip(problem[broken], single, strict=True)]
        report.add_objects("polygon_broken", owner, "its polygon {} has {}", number, why)
        report.patches.append(("keep_rings", broken, np.zeros(len(broken), bool)))
        report.drop(np.unique(owner[extents[owner, 0] == np.inf]))
    _check_rles(report, extents)
    return extents


def _check_rles(report: Report, extents: np.ndarray) -> None:
    a = report.data.arrays
    problems = measure_rles(a, extents)
    index = np.flatnonzero((a["mask_kind"] == RLE) & (a["image"] >= 0))
    sizes = a["sizes"][a["image"][index]]
    wrong = (sizes > 0).all(1) & (a["rle_sizes"][index] != sizes).any(1)
    for j, size in zip(index[wrong].tolist(), sizes[wrong].tolist()):
        if j not in problems:
            problems[j] = f"its RLE is for a picture of {a['rle_sizes'][j].tolist()}, the image is {size}"
    if problems:
        index = np.array(sorted(problems))
        report.add_objects("rle_broken", index, "{}", [problems[j] for j in index.tolist()])
        report.drop(index)
        extents[index] = (np.inf, np.inf, -np.inf, -np.inf)


def _check_boxes(report: Report, extents: np.ndarray) -> None:
    """Check boxes against the image and against the mask's (`extents`; where masks are not needed, the boxes
    themselves), for objects without another defect only.
    """
    a = report.data.arrays
    kind = a["mask_kind"]
    alive = a["keep"].copy()
    for name, index, values in report.patches:
        if name == "keep":
            alive[index] = values
    if report.data.masks:
        alive &= (kind == POLYGONS) | (kind == RLE)
    alive = np.flatnonzero(alive)
    sizes = _known_sizes(report)[a["image"][alive]].astype(np.float32)
    limits = np.where(sizes > 0, sizes, np.inf)[:, [1, 0, 1, 0]]  # x, y, x, y
    given, mask = a["boxes"][alive], np.clip(extents[alive], 0, limits)
    boxes = np.clip(given, 0, limits)
    absent = ~np.isfinite(given).all(1)
    empty = ~absent & (boxes[:, 2:] <= boxes[:, :2]).any(1)
    hollow = (mask[:, 2:] <= mask[:, :2]).any(1)
    missing = absent & np.isnan(mask).any(1)
    gone = empty | hollow | missing
    outside = ~absent & ~gone & (np.abs(boxes - given) > _ROUNDING).any(1)
    differs = (
        ~absent & ~gone & (np.abs(boxes - mask) > 2 * _ROUNDING).any(1) & (box_overlap(boxes, mask) < 0.5)
    )

    at, where = alive[absent & ~gone], "its bbox is missing, or not four finite numbers"
    report.add_objects("box_absent", at, where)
    report.add_objects("box_missing", alive[missing], where)
    shape = [_xywh(b) for b in given[outside]]
    pixels = [f"{w:.0f} x {h:.0f}" for h, w in sizes[outside]]
    report.add_objects(
        "box_outside", alive[outside], "its bbox {} reaches outside the image of {}", shape, pixels
    )
    shape, around = [_xywh(b) for b in given[differs]], [_xywh(b) for b in mask[differs]]
    report.add_objects(
        "box_differs", alive[differs], "its bbox {} is not around its mask, which has {}", shape, around
    )
    text = [f"its bbox {_xywh(b)} has no area in the image" for b in given[empty]]
    report.add_objects("zero_area", alive[empty], "{}", text)
    report.add_objects("zero_area", alive[hollow & ~empty], "its mask has no area in the image")
    report.drop(alive[gone])

    boxes[absent | differs] = mask[absent | differs]
    changed = ~gone & (boxes != given).any(1)
    if changed.any():
        report.patches.append(("boxes", alive[changed], boxes[changed]))


def _check_keypoints(report: Report) -> None:
    data, a = report.data, report.data.arrays
    lengths, known = np.diff(a["keypoint_offsets"]), a["image"] >= 0
    index = np.flatnonzero(known & (lengths > 0) & ~a["keep_keypoints"])
    expected = f"it has {{}} numbers for the {data.num_keypoints} key points, not {3 * data.num_keypoints}"
    report.add_objects("keypoints_broken", index, expected, lengths[index])

    index = np.flatnonzero(known & a["keep_keypoints"])
    points = data.points(index)
    infinite = ~np.isfinite(points).all((1, 2))
    report.add_objects("keypoints_broken", index[infinite], "its key points have a number that is not finite")
    if infinite.any():
        report.patches.append(("keep_keypoints", index[infinite], np.zeros(infinite.sum(), bool)))
    index, points = index[~infinite], points[~infinite]

    odd = ~np.isin(points[..., 2], (0, 1, 2))
    _drop_points(
        report, "keypoint_visibility", index, odd, "has visibility {}, not 0, 1 or 2", points[odd][:, 2]
    )
    sizes = _known_sizes(report)[a["image"][index]]
    limits = np.where(sizes > 0, sizes, np.inf)[:, None, ::-1]  # x, y
    outside = ((points[..., :2] < -_ROUNDING) | (points[..., :2] > limits + _ROUNDING)).any(2)
    outside &= np.isin(points[..., 2], (1, 2))
    at = [f"({x:g}, {y:g})" for x, y in points[outside][:, :2] - 0.5]
    _drop_points(report, "keypoint_outside", index, outside, "at {} is not in the image", at)

    visible, said = (points[..., 2] > 0).sum(1), a["num_keypoints"][index]
    differs = (said >= 0) & (said != visible)
    report.add_objects(
        "keypoint_count",
        index[differs],
        "its num_keypoints is {}, but {} are visible",
        said[differs],
        visible[differs],
    )


def _drop_points(
    report: Report, kind: str, index: np.ndarray, which: np.ndarray, message: str, values: object
) -> None:
    """Make the points `which` (N, P) of the annotations `index` (N,) invisible, and tell."""
    row, number = np.nonzero(which)
    if len(row):
        report.add_objects(kind, index[row], f"its key point {{}} {message}", number + 1, values)
        place = report.data.arrays["keypoint_offsets"][index[row]] + 3 * number + 2
        report.patches.append(("keypoints", place, np.zeros(len(place), np.float32)))


def _known_sizes(report: Report) -> np.ndarray:
    """Sizes of the images (n, 2) as the JSON has them, with the files' where it has none."""
    sizes = report.data.arrays["sizes"]
    for name, index, values in report.patches:
        if name == "sizes":
            sizes = sizes.copy()
            sizes[index] = values
    return sizes


def _xywh(box: np.ndarray) -> str:
    x0, y0, x1, y1 = box.tolist()
    return f"[{x0:g}, {y0:g}, {x1 - x0:g}, {y1 - y0:g}]"
