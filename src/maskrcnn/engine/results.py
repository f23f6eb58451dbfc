"""COCO results and the data set they are scored against: read, checked and brought to one form.

A file that somebody else wrote is a user's input: every entry is looked at, and what is wrong is told with
the entry's number. Ids are renumbered in their own order, so that ids that are text, or 0 (which pycocotools
takes for "no match"), score like any others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.ops.masks import InstanceMasks
from maskrcnn.ops.rle import Runs, read_runs, write_counts

KINDS = ("bbox", "segm", "keypoints")
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
RLES_AT_A_TIME = 2000


@dataclass(slots=True)
class Truth:
    """A COCO data set as scoring needs it.

    images, annotations: its own dicts; image_number, category_number: their ids to 1, 2, ... by id;
    class_names: by that number; sizes: (H, W) by image number - 1, None where the data does not tell.
    """

    name: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    image_number: dict[Any, int]
    category_number: dict[Any, int]
    class_names: tuple[str, ...]
    sizes: list[tuple[int, int] | None]
    stems: dict[str, list[int]] = field(repr=False)

    def holds(self, kind: str) -> bool:
        """Whether any object has what `kind` compares."""
        return any(a.get(FIELDS[kind]) for a in self.annotations)

    def for_scoring(self, kind: str) -> dict[str, Any]:
        """A COCO dict with numbers for ids and only what scoring `kind` reads.

        Raises:
            UserError: an object has no mask where masks are compared, or a broken one.
        """
        wanted = (
            ("bbox", "keypoints", "num_keypoints", "iscrowd") if kind == "keypoints" else ("bbox", "iscrowd")
        )
        objects = []
        for number, a in enumerate(self.annotations, start=1):
            entry = {k: a[k] for k in wanted if k in a}
            entry |= {"id": number, "image_id": self.image_number[a["image_id"]]}
            entry["category_id"] = self.category_number[a["category_id"]]
            entry.setdefault("iscrowd", 0)
            entry["area"] = a["area"] if a.get("area") is not None else self._area(a)
            if kind == "segm":
                entry["segmentation"] = a.get("segmentation")
            objects.append(entry)
        if kind == "segm":
            self._check_masks(objects)
        images = [
            {"id": n} | ({"height": size[0], "width": size[1]} if size else {})
            for n, size in enumerate(self.sizes, start=1)
        ]
        categories = [{"id": n, "name": c} for n, c in enumerate(self.class_names, start=1)]
        return {"info": {}, "images": images, "annotations": objects, "categories": categories}

    def _where(self, i: int) -> str:
        return f"{self.name}: annotation {self.annotations[i].get('id', i)}"

    def _area(self, annotation: Mapping[str, Any]) -> float:
        size = self.sizes[self.image_number[annotation["image_id"]] - 1]
        if annotation.get("segmentation") and size:
            return float(InstanceMasks.from_coco([annotation["segmentation"]], size).areas()[0])
        x, y, w, h = annotation["bbox"]
        return w * h

    def _check_masks(self, objects: list[dict[str, Any]]) -> None:
        rles = {}
        for i, entry in enumerate(objects):
            segmentation, size = entry["segmentation"], self.sizes[entry["image_id"] - 1]
            if not segmentation:
                raise UserError(
                    f"{self._where(i)}: expected a mask, got none. Score boxes alone: --kinds bbox."
                )
            if size is None:
                raise UserError(f"{self._where(i)}: its image has no height and width, which masks need.")
            if isinstance(segmentation, Mapping):
                _check_rle(segmentation, size, self._where(i))
                rles[i] = segmentation
            elif not all(len(p) >= 6 for p in segmentation):
                kept = [p for p in segmentation if len(p) >= 6]
                if not kept:
                    raise UserError(f"{self._where(i)}: expected polygons of 3 points or more, got fewer.")
                entry["segmentation"] = kept
        for i, rle in _compressed(rles, self._where).items():
            objects[i]["segmentation"] = rle


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: no such file, nothing in it, or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: expected {what}, got {got}.")
    content = path.read_bytes()
    if not content.strip():
        raise UserError(f"{path}: expected {what}, got an empty file.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected {what}, got no JSON: {e}.") from None


def load_truth(data: str | Path | Mapping[str, Any]) -> Truth:
    """A COCO data set from its file or as a dict. Objects of unknown images or classes do not count.

    Raises:
        UserError: not a COCO data set.
    """
    name = "data" if isinstance(data, Mapping) else str(data)
    content = data if isinstance(data, Mapping) else read_json(data, "a COCO data set")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise UserError(f"{name}: expected a COCO data set, got no list {key!r} in it.")
    for key, needed in (
        ("images", ["id"]),
        ("categories", ["id"]),
        ("annotations", ["image_id", "category_id"]),
    ):
        for i, entry in enumerate(content[key]):
            for word in needed:
                if not isinstance(entry, Mapping) or not isinstance(entry.get(word), (int, float, str)):
                    raise UserError(f"{name}: {key} entry {i}: expected {word!r}, got none.")
    images = {image["id"]: image for image in content["images"]}
    categories = {c["id"]: str(c.get("name", c["id"])) for c in content["categories"]}
    image_number = {key: n for n, key in enumerate(_sorted_ids(images), start=1)}
    category_number = {key: n for n, key in enumerate(_sorted_ids(categories), start=1)}
    annotations = [
        a
        for a in content["annotations"]
        if a["image_id"] in image_number and a["category_id"] in category_number
    ]
    for a in annotations:
        if not is_box(a.get("bbox")):
            got = a.get("bbox")
            raise UserError(
                f"{name}: annotation {a.get('id')}: expected bbox as x, y, width, height, got {got}."
            )
    stems: dict[str, list[int]] = {}
    for key, number in image_number.items():
        stems.setdefault(Path(str(images[key].get("file_name", ""))).stem, []).append(number)
    return Truth(
        name,
        [images[key] for key in image_number],
        annotations,
        image_number,
        category_number,
        tuple(categories[key] for key in category_number),
        [_size(images[key]) for key in image_number],
        stems,
    )


def check_results(results: Any, truth: Truth, kinds: Sequence[str], name: str) -> list[dict[str, Any]]:
    """The results with numbers for ids and only the fields of `kinds`; RLE compressed.

    Raises:
        UserError: naming the first entry that cannot be scored.
    """
    checked: list[dict[str, Any]] = []
    rles: dict[int, Mapping[str, Any]] = {}

    def where(i: int) -> str:
        return f"{name}: entry {i}"

    num_values = 3 * _num_keypoints(truth) if "keypoints" in kinds else 0
    for i, given in enumerate(results):
        if not isinstance(given, Mapping):
            raise UserError(
                f"{where(i)}: expected an object with image_id, category_id, score, got {_short(given)}."
            )
        for word in ("image_id", "category_id", "score", *(FIELDS[k] for k in kinds)):
            if word not in given:
                raise UserError(f"{where(i)}: expected {word!r}, got none.")
        image = _image_number(given["image_id"], truth, where(i))
        entry = {"image_id": image, "category_id": _category(given["category_id"], truth, where(i))}
        if not _is_number(given["score"]):
            raise UserError(f"{where(i)}: expected a finite number as score, got {_short(given['score'])}.")
        entry["score"] = given["score"]
        if "bbox" in given and ("bbox" in kinds or "keypoints" in kinds):
            if not is_box(given["bbox"]):
                got = _short(given["bbox"])
                raise UserError(f"{where(i)}: expected bbox as x, y, width, height, got {got}.")
            entry["bbox"] = given["bbox"]
        if "segm" in kinds:
            size = truth.sizes[image - 1]
            if size is None:
                raise UserError(
                    f"{truth.name}: image {given['image_id']} has no height and width, which masks need."
                )
            _check_rle(given["segmentation"], size, where(i))
            rles[i] = given["segmentation"]
        if "keypoints" in kinds:
            points = given["keypoints"]
            if not isinstance(points, list) or len(points) != num_values or not all(map(_is_number, points)):
                raise UserError(
                    f"{where(i)}: expected keypoints as {num_values} numbers, got {_short(points)}."
                )
            entry["keypoints"] = points
        checked.append(entry)
    for i, rle in _compressed(rles, where).items():
        checked[i]["segmentation"] = rle
    return checked


def is_box(value: Any) -> bool:
    """Whether it is x, y, width, height."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(map(_is_number, value))
        and min(value[2:]) >= 0
    )


def _sorted_ids(ids: Mapping[Any, Any]) -> list[Any]:
    try:
        return sorted(ids)
    except TypeError:  # numbers and text
        return sorted(ids, key=str)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    size = image.get("height"), image.get("width")
    return (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None


def _num_keypoints(truth: Truth) -> int:
    return next((len(a["keypoints"]) // 3 for a in truth.annotations if a.get("keypoints")), 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _image_number(given: Any, truth: Truth, where: str) -> int:
    """By id; text also by the stem of the file's name, which `maskrcnn predict` writes, or as a number."""
    if isinstance(given, (int, float, str)) and given in truth.image_number:
        return truth.image_number[given]
    if isinstance(given, str):
        numbers = truth.stems.get(given, [])
        if len(numbers) > 1:
            raise UserError(
                f"{where}: image_id {given!r} is the name of {len(numbers)} images of {truth.name}."
            )
        if numbers:
            return numbers[0]
        if given.isdecimal() and int(given) in truth.image_number:
            return truth.image_number[int(given)]
    raise UserError(f"{where}: image_id {_short(given)} is not in {truth.name}.")


def _category(given: Any, truth: Truth, where: str) -> int:
    if isinstance(given, (int, float, str)) and given in truth.category_number:
        return truth.category_number[given]
    known = ", ".join(str(c) for c in list(truth.category_number)[:8])
    more = ", ..." if len(truth.category_number) > 8 else ""
    raise UserError(f"{where}: category_id {_short(given)} is not in {truth.name}, which has {known}{more}.")


def _check_rle(rle: Any, size: tuple[int, int], where: str) -> None:
    """The form alone: `read_runs` looks into the counts."""
    counts = rle.get("counts") if isinstance(rle, Mapping) else None
    well = isinstance(counts, (str, bytes)) or (
        isinstance(counts, list) and all(isinstance(c, int) and 0 <= c < 1 << 40 for c in counts)
    )
    if not well or "size" not in rle:
        raise UserError(f"{where}: expected segmentation as RLE with size and counts, got {_short(rle)}.")
    if not isinstance(rle["size"], (list, tuple)) or list(rle["size"]) != list(size):
        got = _short(rle["size"])
        raise UserError(
            f"{where}: expected a mask of the image's size {list(size)} (height, width), got {got}."
        )


def _compressed(rles: Mapping[int, Mapping[str, Any]], where: Any) -> dict[int, dict[str, Any]]:
    """The same masks, looked through, with compressed text as counts."""
    names, out = list(rles), {}
    for begin in range(0, len(names), RLES_AT_A_TIME):
        part = names[begin : begin + RLES_AT_A_TIME]
        try:
            runs = read_runs([rles[i] for i in part])
        except ValueError as e:
            number, text = str(e).removeprefix("mask ").split(":", 1)
            raise UserError(f"{where(part[int(number)])}: expected a mask as RLE, got{text}.") from None
        for k, i in enumerate(part):
            rle = rles[i]
            counts = rle["counts"]
            if isinstance(counts, list):
                mine = runs.owner == k
                one = Runs(runs.starts[mine], runs.ends[mine], np.zeros(int(mine.sum()), np.int64), 1)
                counts = write_counts(one, rle["size"][0] * rle["size"][1])[0]
            out[i] = {"size": list(rle["size"]), "counts": counts}
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
