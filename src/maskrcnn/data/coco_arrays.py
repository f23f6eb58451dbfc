"""Flat arrays of a COCO JSON, which `maskrcnn.data.coco` maps and `maskrcnn.data.quality.check` checks.

Legend: n images, m annotations (in the file's order), r polygon rings, c categories.

image_ids (n,) int64 or text        sizes (n, 2) int32 (H, W), 0 where the JSON has none
names, name_offsets (n + 1,)        file names, UTF-8
object_order, object_offsets (n+1,) annotations of image i: object_order[object_offsets[i]:object_offsets[i + 1]]
ids (m,) int64, -1 if absent        image (m,) int32, -1 if no such image; labels (m,) int32, -1 if no such category
boxes (m, 4) float32 x0 y0 x1 y1    NaN if absent
area (m,) float32, NaN if absent    crowd (m,) bool
odd_crowds (k,) int64               annotations whose iscrowd is neither 0, 1 nor a boolean; odd_crowd_texts: what it is
mask_kind (m,) uint8                see the constants
rings_of (m + 1,)                   rings of polygon annotation j: rings_of[j]:rings_of[j + 1]
points, ring_offsets (r + 1,)       x, y, x, y, ... float32; offsets count numbers, since a broken ring may be odd
rle, rle_offsets (m + 1,)           compressed counts, ASCII; rle_sizes (m, 2) int32
keypoints, keypoint_offsets (m + 1,) x, y, visibility float32; one NaN for what is no list of numbers
num_keypoints (m,) int32            as the JSON counts the visible ones, -1 if absent
keep_keypoints (m,) bool            as many as they should be; the checks clear more
keep (m,) bool                      its image and category exist; the checks clear more
keep_rings (r,) bool
lost_images, lost_categories        what the annotations with image or label -1 asked for, as text, in their order
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from maskrcnn.data.json_stream import JsonStream, array_of
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import read_runs, write_counts

VERSION = 6  # of what is below; a cache made by another version is made anew
NO_MASK, POLYGONS, RLE, UNREADABLE = range(4)
_LONGEST_ID = 1000  # characters: each takes as much room as the longest
_NAN4 = (float("nan"),) * 4
_WHOLE = re.compile(r"-?[0-9]{1,18}")  # an id as text

T = TypeVar("T")


def parse(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the JSON once: the arrays of the legend, and {"class_names", "category_ids",
    "keypoint_names", "skeleton", "num_keypoints"}; see `_keypoints_of`.

    Raises:
        UserError: not JSON, not COCO's layout, or ids that nothing can be made of.
    """
    stream = JsonStream(path, ("images", "annotations", "categories"))
    result = collect(path, stream)
    for member in ("images", "categories"):
        if member not in stream.seen:
            found = ", ".join(stream.seen[:8]) or "nothing"
            raise UserError(
                f"{path}: expected a COCO JSON with images, annotations and categories, got {found}."
            )
    return result


def collect(path: Path, elements: Iterable[tuple[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and `meta` of (member, element) pairs, in any order, as a COCO JSON would hold them.

    `path` is for messages.
    The member "notes" holds findings of the reader: pairs of a kind of `defects.RULES` and a sentence.
    """
    images, annotations, categories, notes = _Images(path), _Annotations(path), [], []
    takers: dict[str, Callable[[Any], None]] = {
        "images": images.add,
        "annotations": annotations.add,
        "categories": categories.append,
        "notes": notes.append,
    }
    for member, element in elements:
        takers[member](element)
    category_ids, names = _categories(path, categories)
    arrays = images.arrays() | annotations.arrays(images.rows, category_ids)
    meta: dict[str, Any] = {"class_names": names, "category_ids": category_ids, "notes": notes}
    meta |= _keypoints_of(categories, arrays["keypoint_offsets"])
    lengths = np.diff(arrays["keypoint_offsets"])
    arrays["keep_keypoints"] = (lengths == 3 * meta["num_keypoints"]) & (lengths > 0)
    return arrays, meta


class _Images:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: list[int | str] = []
        self.rows: dict[int | str, int] = {}  # of the first image with this id
        self.sizes, self.names, self.name_offsets = array("i"), bytearray(), array("q", [0])

    def add(self, image: Any) -> None:
        where = f"{self.path}: images[{len(self.ids)}]"
        if not isinstance(image, dict):
            raise UserError(f"{where}: expected an object, got {type(image).__name__}.")
        identity = _identity(image.get("id"))
        if identity is None:
            raise UserError(
                f"{where}: expected an id that is a whole number or text, got {image.get('id')!r}."
            )
        if isinstance(identity, str) and len(identity) > _LONGEST_ID:
            raise UserError(
                f"{where}: expected an id of at most {_LONGEST_ID} characters, got {len(identity)}."
            )
        if self.ids and type(identity) is not type(self.ids[0]):
            raise UserError(
                f"{where}: its id {identity!r} is text among numbers, or a number among texts. Use one."
            )
        self.rows.setdefault(identity, len(self.ids))
        self.ids.append(identity)
        self.names += _name_bytes(file_name(image))
        self.name_offsets.append(len(self.names))
        self.sizes.extend([_length(image.get("height")), _length(image.get("width"))])

    def arrays(self) -> dict[str, np.ndarray]:
        try:
            ids = np.array(self.ids, None if self.ids and isinstance(self.ids[0], str) else np.int64)
        except OverflowError:
            raise UserError(
                f"{self.path}: an image id does not fit in 64 bits. Use a smaller one, or text."
            ) from None
        return {
            "image_ids": ids,
            "sizes": _numpy(self.sizes, np.int32).reshape(-1, 2),
            "names": np.frombuffer(bytes(self.names), np.uint8),
            "name_offsets": _numpy(self.name_offsets, np.int64),
        }


class _Annotations:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[Any] = []
        self.categories: list[Any] = []
        self.unnumbered: dict[int, str] = {}  # names of classes that are none of the data set's
        self.ids, self.boxes, self.area = array("q"), array("d"), array("f")
        self.crowd, self.mask_kind = array("B"), array("B")
        self.odd_crowds: dict[int, str] = {}
        self.points, self.ring_offsets, self.rings_of = array("f"), array("q", [0]), array("q", [0])
        self.rle, self.rle_offsets, self.rle_sizes = bytearray(), array("q", [0]), array("i")
        self.keypoints, self.keypoint_offsets = array("f"), array("q", [0])
        self.num_keypoints = array("i")

    def add(self, a: Any) -> None:
        if not isinstance(a, dict):
            where = f"{self.path}: annotations[{len(self.ids)}]"
            raise UserError(f"{where}: expected an object, got {type(a).__name__}.")
        identity = _identity(a.get("id"))
        self.ids.append(identity if isinstance(identity, int) and 0 <= identity < 1 << 63 else -1)
        self.images.append(_identity(a.get("image_id")))
        self.categories.append(_identity(a.get("category_id")))
        if self.categories[-1] is None and "category" in a:
            self.unnumbered[len(self.categories) - 1] = f"class {str(a['category'])[:40]!r}"
        box, area = a.get("bbox"), a.get("area")
        if not (isinstance(box, list) and len(box) == 4 and _extend(self.boxes, box)):
            self.boxes.extend(_NAN4)
        if not _extend(self.area, [area]):
            self.area.append(float("nan"))
        crowd = a.get("iscrowd", 0)
        if not (crowd is None or (isinstance(crowd, int | float) and crowd in (0, 1))):
            self.odd_crowds[len(self.crowd)] = repr(crowd)[:40]
        self.crowd.append(is_crowd(crowd))
        self.mask_kind.append(self._mask(a.get("segmentation")))
        self.rings_of.append(len(self.ring_offsets) - 1)
        self.rle_offsets.append(len(self.rle))
        if (points := a.get("keypoints")) and not _extend(self.keypoints, points):
            self.keypoints.append(float("nan"))
        if not _extend(self.num_keypoints, [a.get("num_keypoints")]):
            self.num_keypoints.append(-1)
        self.keypoint_offsets.append(len(self.keypoints))

    def _mask(self, segmentation: Any) -> int:
        self.rle_sizes.extend((0, 0))
        if not segmentation:
            return NO_MASK
        if isinstance(segmentation, list):
            rings = [segmentation] if isinstance(segmentation[0], int | float) else segmentation
            num_rings, num_points = len(self.ring_offsets), len(self.points)
            for ring in rings:
                if not _extend(self.points, ring):
                    del self.points[num_points:], self.ring_offsets[num_rings:]
                    return UNREADABLE
                self.ring_offsets.append(len(self.points))
            return POLYGONS
        return self._add_rle(segmentation)

    def _add_rle(self, segmentation: Any) -> int:
        try:
            height, width = (int(v) for v in segmentation["size"])
            counts = segmentation["counts"]
            if isinstance(counts, list):
                rle = {"size": (height, width), "counts": counts}
                counts = write_counts(read_runs([rle]), height * width)[0]
            self.rle += counts.encode("ascii")
            self.rle_sizes[-2:] = array("i", (height, width))
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return UNREADABLE
        return RLE

    def arrays(self, rows: dict[int | str, int], category_ids: list[int]) -> dict[str, np.ndarray]:
        label_of = {c: k for k, c in enumerate(category_ids)}
        boxes = _numpy(self.boxes, np.float64).reshape(-1, 4)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite in float32 is a defect
            boxes[:, 2:] += boxes[:, :2]
            boxes = boxes.astype(np.float32)
        image = np.array([find_id(rows, i, -1) for i in self.images], np.int32)
        labels = np.array([find_id(label_of, c, -1) for c in self.categories], np.int32)
        kind = _numpy(self.mask_kind, np.uint8)
        order = np.argsort(image, kind="stable").astype(np.int32)[np.count_nonzero(image < 0) :]
        counts = np.bincount(image[image >= 0], minlength=1 + max(rows.values(), default=-1))
        return {
            "ids": _numpy(self.ids, np.int64),
            "image": image,
            "labels": labels,
            "boxes": boxes,
            "area": _numpy(self.area, np.float32),
            "crowd": _numpy(self.crowd, np.uint8).astype(bool),
            "odd_crowds": np.array(list(self.odd_crowds), np.int64),
            "odd_crowd_texts": _texts(self.odd_crowds.values()),
            "mask_kind": kind,
            "rings_of": _numpy(self.rings_of, np.int64),
            "points": _numpy(self.points, np.float32),
            "ring_offsets": _numpy(self.ring_offsets, np.int64),
            "rle": np.frombuffer(bytes(self.rle), np.uint8),
            "rle_offsets": _numpy(self.rle_offsets, np.int64),
            "rle_sizes": _numpy(self.rle_sizes, np.int32).reshape(-1, 2),
            "keypoints": _numpy(self.keypoints, np.float32),
            "keypoint_offsets": _numpy(self.keypoint_offsets, np.int64),
            "num_keypoints": _numpy(self.num_keypoints, np.int32),
            "keep": (image >= 0) & (labels >= 0),
            "keep_rings": np.ones(len(self.ring_offsets) - 1, bool),
            "object_order": order,
            "object_offsets": np.concatenate([[0], np.cumsum(counts)]),
            "lost_images": _texts(i for i, row in zip(self.images, image) if row < 0),
            "lost_categories": _texts(
                self.unnumbered.get(k, f"category_id {c}")
                for k, (c, label) in enumerate(zip(self.categories, labels))
                if label < 0
            ),
        }


def read_categories(path: Path) -> tuple[list[int], list[str]]:
    """Ids and names of a COCO JSON's categories, without a look at the images and annotations where that can be.

    Raises:
        UserError: not JSON, not COCO's layout, or ids that nothing can be made of.
    """
    found = array_of(path, "categories")
    if found is None:
        stream = JsonStream(path, ("categories",))
        found = [category for _, category in stream]
        if "categories" not in stream.seen:
            raise UserError(f"{path}: expected a COCO JSON with categories, got none.")
    return _categories(path, found)


def _categories(path: Path, categories: list[Any]) -> tuple[list[int], list[str]]:
    """Ids in ascending order, as labels 0..K-1 count them, and their names."""
    names: dict[int, str] = {}
    for k, category in enumerate(categories):
        identity = category_id(category.get("id")) if isinstance(category, dict) else None
        if identity is None:
            got = repr(category)[:60]
            raise UserError(
                f"{path}: categories[{k}]: expected an object with a whole number as id, got {got}."
            )
        if identity in names:
            raise UserError(
                f"{path}: categories[{k}]: id {identity} is taken by {names[identity]!r}. Renumber one."
            )
        names[identity] = category_name(category)
    ids = sorted(names)
    return ids, [names[i] for i in ids]


def _keypoints_of(categories: list[Any], offsets: np.ndarray) -> dict[str, Any]:
    """Read the data set's kind of key points: their number, names and skeleton (pairs of points, from 0).

    As the category with the most of them says; without names in any category, as most annotations have.
    """
    named = [c for c in categories if isinstance(c.get("keypoints"), list)]
    category = max(named, key=lambda c: len(c["keypoints"]), default={})
    names = [str(name) for name in category.get("keypoints", ())]
    lengths = np.diff(offsets)
    lengths = lengths[lengths > 1] // 3
    count = len(names) or (int(np.bincount(lengths).argmax()) if len(lengths) else 0)
    joined = category.get("skeleton")
    pairs = [p for p in joined if isinstance(p, list) and len(p) == 2] if isinstance(joined, list) else []
    numbers = range(1, count + 1)
    skeleton = [(a - 1, b - 1) for a, b in pairs if a in numbers and b in numbers]
    return {"num_keypoints": count, "keypoint_names": names, "skeleton": skeleton}


def find_id(known: Mapping[Any, T], value: Any, absent: T) -> T:
    """The entry of an id: a number is found by its digits as text, and text by the number that it writes."""
    if value in known:
        return known[value]
    if isinstance(value, str) and (number := _number(value)) is not None:
        return known.get(number, absent)
    return absent if isinstance(value, str) or value is None else known.get(str(value), absent)


def category_id(value: Any) -> int | None:
    """A category's id as a number, which text may write; None for what is none."""
    identity = _identity(value)
    return _number(identity) if isinstance(identity, str) else identity


def category_name(category: Mapping[str, Any]) -> str:
    """Name of a COCO category on one line; its id where it has none."""
    name = category.get("name")
    text = " ".join(_encodable(name).split()) if isinstance(name, str) else ""
    return text or str(name if isinstance(name, int | float) else category.get("id"))


def file_name(image: Mapping[str, Any]) -> str:
    """File name of a COCO image; LVIS v1 has none, but the address of COCO's picture, which ends in folder and name."""
    name, address = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(address, str):
        return "/".join(address.split("/")[-2:])
    return str(name) if isinstance(name, str | int) else ""


def is_crowd(value: Any) -> bool:
    """An annotation's iscrowd, which some tools write as text; what says neither yes nor no is no."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "1.0", "true", "yes")
    return isinstance(value, int | float) and value == 1


def _number(text: str) -> int | None:
    return int(text) if _WHOLE.fullmatch(text) else None


def _identity(value: Any) -> int | str | None:
    """An id as it is compared: 1.0 is 1; None for what cannot be one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return _encodable(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which nothing can print."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _name_bytes(name: str) -> bytes:
    """A file's name as it lies on the disk, where it need not be UTF-8."""
    try:
        return name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return name.encode(errors="replace")


def _length(value: Any) -> int:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 31
    return int(value) if good else 0


def _extend(target: array, values: Any) -> bool:
    """Append a list of numbers; False, and nothing appended, if it is not one."""
    try:
        target.fromlist(values)
    except (TypeError, OverflowError):
        return False
    return True


def _numpy(values: array, dtype: Any) -> np.ndarray:
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)


def _texts(values: Iterable[Any]) -> np.ndarray:
    listed = [str(v)[:60] for v in values]
    return np.array(listed) if listed else np.zeros(0, "<U1")
