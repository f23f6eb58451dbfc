"""The COCO data set that results are scored against, read and brought to one form.

Ids are renumbered in their own order, so that ids that are text, or 0 (which pycocotools takes for "no
match"), score like any others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.coco_arrays import category_id, category_name, file_name, find_id, is_crowd
from maskrcnn.data.label_text import json_fault
from maskrcnn.data.mask_extents import FARTHEST
from maskrcnn.errors import UserError, shown
from maskrcnn.evaluation.lvis import Federated, is_federated, read_federated, unfinished_regions
from maskrcnn.masks import InstanceMasks
from maskrcnn.masks.rle import Runs, read_runs, write_counts

FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
KINDS = tuple(FIELDS)
RLES_AT_A_TIME = 2000

Where = Callable[[int], str]


@dataclass(slots=True)
class Truth:
    """COCO data set in the form that scoring needs.

    name: for messages; annotations: COCO's, each with a bbox, of known images and classes;
    image_number, category_number: from ids to 1, 2, ... in the order of the ids;
    class_names: by number - 1; sizes: (H, W) by number - 1, None where the data does not tell;
    stems: from the file names without folder and ending to the numbers of the images;
    federated: what each image was searched for, of data in LVIS's form.
    """

    name: str
    annotations: list[dict[str, Any]]
    image_number: dict[Any, int]
    category_number: dict[Any, int]
    class_names: tuple[str, ...]
    sizes: list[tuple[int, int] | None]
    stems: dict[str, list[int]] = field(repr=False)
    federated: Federated | None = field(default=None, repr=False)

    @property
    def num_keypoints(self) -> int:
        """Key points of an object, 0 if there are none in the data."""
        held = (a["keypoints"] for a in self.annotations if isinstance(a.get("keypoints"), list))
        return next((len(points) // 3 for points in held if points), 0)

    def holds(self, kind: str) -> bool:
        """Return True if any object has what `kind` compares."""
        return any(a.get(FIELDS[kind]) for a in self.annotations)

    def where(self, i: int) -> str:
        """The place of annotation i for a message."""
        return f"{self.name}: annotation {shown(self.annotations[i].get('id', i), 30)}"

    def for_scoring(self, kind: str, num_keypoints: int = 0) -> dict[str, Any]:
        """Make a COCO dict with numbers for ids and only the fields that scoring `kind` reads.

        num_keypoints: of an object, where the data has none: such objects are not looked for.

        Raises:
            UserError: an object has no mask where masks are compared, or a broken one; or broken key points.
        """
        kept, objects = {"bbox", "iscrowd"}, []
        num_keypoints = self.num_keypoints or num_keypoints
        for number, a in enumerate(self.annotations, start=1):
            entry = {k: v for k, v in a.items() if k in kept}
            entry |= {"id": number, "image_id": self.image_number[a["image_id"]]}
            entry["category_id"] = self.category_number[a["category_id"]]
            entry["iscrowd"] = int(is_crowd(entry.get("iscrowd")))
            if kind == "keypoints":
                entry |= self._keypoints(number - 1, num_keypoints)
            entry["area"] = a["area"] if is_number(a.get("area")) else self._area(number - 1)
            objects.append(entry)
        if kind == "segm":
            for entry, mask in zip(objects, self._masks(), strict=True):
                entry["segmentation"] = mask
        images: list[dict[str, Any]] = [{"id": n} for n in range(1, len(self.sizes) + 1)]
        for image, size in zip(images, self.sizes, strict=True):
            if size:
                image["height"], image["width"] = size
        categories = [{"id": n, "name": c} for n, c in enumerate(self.class_names, start=1)]
        return {"info": {}, "images": images, "annotations": objects, "categories": categories}

    def _keypoints(self, i: int, num_keypoints: int) -> dict[str, Any]:
        """Key points of annotation i and how many are visible; none visible where it has none."""
        a, expected = self.annotations[i], 3 * num_keypoints
        points = a.get("keypoints") or [0] * expected
        if not isinstance(points, list) or len(points) != expected or not all(map(is_number, points)):
            raise UserError(
                f"{self.where(i)}: expected keypoints as {expected} numbers, as others have, got {short(points)}."
            )
        visible = sum(v > 0 for v in points[2::3])
        given = a.get("num_keypoints")
        good = type(given) is int and 0 <= given <= num_keypoints
        return {"keypoints": points, "num_keypoints": given if good else visible}

    def drawn(self, i: int) -> InstanceMasks | None:
        """The mask of annotation i, if it has one."""
        mask, size = self._mask_and_size(i)
        if not mask or size is None:
            return None
        if isinstance(mask, Mapping):
            check_rle(mask, size, self.where(i))
            mask = compressed({i: mask}, self.where)[i]
        else:
            mask = _rings(mask)
        return InstanceMasks.from_coco([mask], size)

    def _mask_and_size(self, i: int) -> tuple[Any, tuple[int, int] | None]:
        a = self.annotations[i]
        return a.get("segmentation"), self.sizes[self.image_number[a["image_id"]] - 1]

    def _area(self, i: int) -> float:
        """Area of the object's mask, or of its box: COCO's `area` is not everywhere."""
        mask, box = self.drawn(i), self.annotations[i]["bbox"]
        return box[2] * box[3] if mask is None else float(mask.areas()[0])

    def _masks(self) -> list[Any]:
        """List each object's polygons, or its RLE, whose counts are checked."""
        masks: list[Any] = []
        rles: dict[int, Mapping[str, Any]] = {}
        for i in range(len(self.annotations)):
            mask, size = self._mask_and_size(i)
            if not mask:
                raise UserError(
                    f"{self.where(i)}: expected a mask, got none. Score boxes alone: --kinds bbox."
                )
            if size is None:
                raise UserError(f"{self.where(i)}: expected height and width of its image, got none.")
            if isinstance(mask, Mapping):
                check_rle(mask, size, self.where(i))
                rles[i] = mask
            else:
                mask = _rings(mask)
                if not mask:
                    raise UserError(f"{self.where(i)}: expected polygons of 3 points or more, got none.")
            masks.append(mask)
        for i, rle in compressed(rles, self.where).items():
            masks[i] = rle
        return masks


def load_truth(data: str | Path | Mapping[str, Any]) -> Truth:
    """A COCO data set from its file or as a dict. Objects of unknown images or classes do not count.

    Raises:
        UserError: not a COCO data set, or an object without a box.
    """
    name = "data" if isinstance(data, Mapping) else str(data)
    content = data if isinstance(data, Mapping) else read_json(data, "a COCO data set")
    _check_layout(content, name)
    images = {image["id"]: image for image in content["images"]}
    numbers = [category_id(c["id"]) for c in content["categories"]]
    names = {
        c["id"] if number is None else number: category_name(c)
        for c, number in zip(content["categories"], numbers, strict=True)
    }
    image_number = _numbered(images)
    category_number = _numbered(names)
    stems: dict[str, list[int]] = {}
    for key, number in image_number.items():
        stems.setdefault(Path(file_name(images[key])).stem, []).append(number)
    truth = Truth(
        name,
        list(_of_known(content["annotations"], images, names)),
        image_number,
        category_number,
        tuple(names[key] for key in category_number),
        [_size(images[key]) for key in image_number],
        stems,
    )
    truth.annotations = [_with_box(a, truth, i) for i, a in enumerate(truth.annotations)]
    if is_federated(content):
        truth.federated = read_federated(content, truth.annotations, image_number, category_number, name)
        truth.annotations += unfinished_regions(
            truth.federated, truth.sizes, list(image_number), list(category_number), name
        )
    return truth


def _of_known(
    annotations: list[dict[str, Any]], images: Mapping[Any, Any], categories: Mapping[Any, Any]
) -> Iterator[dict[str, Any]]:
    """The annotations of known images and categories, each with the ids that these have themselves."""
    image_ids, category_ids = ({i: i for i in known} for known in (images, categories))
    for a in annotations:
        image, category = (
            find_id(image_ids, a["image_id"], None),
            find_id(category_ids, a["category_id"], None),
        )
        if image is not None and category is not None:
            yield {**a, "image_id": image, "category_id": category}


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: no such file, nothing in it, or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: expected {what}, got {got}.")
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot read: {(e.strerror or str(e)).lower()}.") from None
    if not content.strip():
        raise UserError(f"{path}: expected {what}, got an empty file.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected {what}, got no JSON: {json_fault(e)}.") from None


def is_number(value: Any) -> bool:
    """Return True for a finite number such that sums of its square are finite too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100


def is_box(value: Any) -> bool:
    """Return True for a list of four numbers: x, y, width, height."""
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(map(is_number, value)):
        return False
    return value[2] >= 0 and value[3] >= 0


def check_rle(rle: Any, size: tuple[int, int], where: str) -> None:
    """Check the form of an RLE; `compressed` looks into the counts.

    Raises:
        UserError: not an RLE, or not of this size.
    """
    counts = rle.get("counts") if isinstance(rle, Mapping) else None
    good = isinstance(counts, (str, bytes)) or (isinstance(counts, list) and all(map(_is_count, counts)))
    if not good or "size" not in rle:
        raise UserError(f"{where}: expected segmentation as RLE with size and counts, got {short(rle)}.")
    if not isinstance(rle["size"], (list, tuple)) or list(rle["size"]) != list(size):
        got = short(rle["size"])
        raise UserError(
            f"{where}: expected a mask of the image's size {short(list(size))} (height, width), got {got}."
        )


def compressed(rles: Mapping[int, Mapping[str, Any]], where: Where) -> dict[int, dict[str, Any]]:
    """Check the counts of RLE masks, and compress those that are not text.

    Raises:
        UserError: counts that are not those of a mask of their size.
    """
    names = list(rles)
    out: dict[int, dict[str, Any]] = {}
    for begin in range(0, len(names), RLES_AT_A_TIME):
        part = names[begin : begin + RLES_AT_A_TIME]
        try:
            runs = read_runs([rles[i] for i in part])
        except ValueError as e:
            number, text = str(e).removeprefix("mask ").split(":", 1)
            raise UserError(f"{where(part[int(number)])}: expected a mask as RLE, got{text}.") from None
        for k, i in enumerate(part):
            size, counts = list(rles[i]["size"]), rles[i]["counts"]
            if isinstance(counts, list):
                mine = runs.owner == k
                one = Runs(runs.starts[mine], runs.ends[mine], np.zeros(int(mine.sum()), np.int64), 1)
                counts = write_counts(one, size[0] * size[1])[0]
            out[i] = {"size": size, "counts": counts}
    return out


def short(value: Any) -> str:
    """Shorten a value for a message."""
    return shown(repr(value), 60)


def _check_layout(content: Any, name: str) -> None:
    needed = {"images": ("id",), "categories": ("id",), "annotations": ("image_id", "category_id")}
    for key, words in needed.items():
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise UserError(f"{name}: expected a COCO data set, got no list {key!r} in it.")
        for i, entry in enumerate(content[key]):
            for word in words:
                if not isinstance(entry, Mapping) or not isinstance(entry.get(word), (int, float, str)):
                    raise UserError(f"{name}: {key} entry {i}: expected {word!r}, got none.")


def _with_box(annotation: dict[str, Any], truth: Truth, i: int) -> dict[str, Any]:
    """The annotation, with its mask's box if it has none."""
    if is_box(annotation.get("bbox")):
        return annotation
    mask = truth.drawn(i) if annotation.get("bbox") is None else None
    if mask is None:
        got = short(annotation.get("bbox"))
        raise UserError(f"{truth.where(i)}: expected bbox as x, y, width, height, got {got}.")
    x0, y0, x1, y1 = mask.tight_boxes()[0].tolist()
    return {**annotation, "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _rings(mask: Any) -> list[list[float]]:
    """Keep valid polygons: three points or more, an even count of numbers, none farther than any picture reaches."""
    if not isinstance(mask, list):
        return []
    lists = [p for p in mask if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    return [p for p in lists if all(is_number(v) and abs(v) <= FARTHEST for v in p)]


def _numbered(ids: Mapping[Any, Any]) -> dict[Any, int]:
    try:
        ordered = sorted(ids)
    except TypeError:  # numbers and text
        ordered = sorted(ids, key=str)
    return {key: n for n, key in enumerate(ordered, start=1)}


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 40
