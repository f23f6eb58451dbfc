"""Check of COCO results, which others may have written: every entry is looked at, faults are told with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn.data.coco_arrays import find_id
from maskrcnn.errors import UserError, shown
from maskrcnn.evaluation.truth import FIELDS, Truth, check_rle, compressed, is_box, is_number, short


def check_results(
    results: Sequence[Any], truth: Truth, kinds: Sequence[str], name: str, num_keypoints: int = 0
) -> list[dict[str, Any]]:
    """Check the results; they come back with numbers for ids (see Truth) and only the fields of `kinds`; RLE
    compressed.

    num_keypoints: that each has.

    Raises:
        UserError: naming the first entry that cannot be scored.
    """

    def where(i: int) -> str:
        return f"{name}: entry {i}"

    # Key points' area is that of their boxes, where there are any.
    boxes = all(isinstance(r, Mapping) and r.get("bbox") for r in results)
    num_values = 3 * num_keypoints
    checked = [_check_ids(given, truth, kinds, where(i)) for i, given in enumerate(results)]
    rles: dict[int, Mapping[str, Any]] = {}
    for i, (given, entry) in enumerate(zip(results, checked, strict=True)):
        if "bbox" in kinds or ("keypoints" in kinds and boxes):
            if not is_box(given["bbox"]):
                raise UserError(
                    f"{where(i)}: expected bbox as x, y, width, height, got {short(given['bbox'])}."
                )
            entry["bbox"] = given["bbox"]
        if "segm" in kinds:
            check_rle(given["segmentation"], _size(entry["image_id"], truth), where(i))
            rles[i] = given["segmentation"]
        if "keypoints" in kinds:
            points = given["keypoints"]
            if not isinstance(points, list) or len(points) != num_values or not all(map(is_number, points)):
                raise UserError(
                    f"{where(i)}: expected keypoints as {num_values} numbers, got {short(points)}."
                )
            entry["keypoints"] = points
    for i, rle in compressed(rles, where).items():
        checked[i]["segmentation"] = rle
    return checked


def points_of(results: Sequence[Any]) -> int:
    """Count the key points of the first result that has any; 0 if none has."""
    held = (
        r["keypoints"] for r in results if isinstance(r, Mapping) and isinstance(r.get("keypoints"), list)
    )
    return next((len(points) // 3 for points in held if points), 0)


def _check_ids(given: Any, truth: Truth, kinds: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(
            f"{where}: expected an object with image_id, category_id and score, got {short(given)}."
        )
    for word in ("image_id", "category_id", "score", *(FIELDS[k] for k in kinds)):
        if word not in given:
            raise UserError(f"{where}: expected {word!r}, got none.")
    if not is_number(given["score"]):
        raise UserError(f"{where}: expected a finite number as score, got {short(given['score'])}.")
    return {
        "image_id": _image(given["image_id"], truth, where),
        "category_id": _category(given["category_id"], truth, where),
        "score": given["score"],
    }


def _image(given: Any, truth: Truth, where: str) -> int:
    """Find an image's number by its id; text also as the stem of a file's name, which `maskrcnn predict` writes, or
    as a number.
    """
    if isinstance(given, (int, float, str)) and given in truth.image_number:
        return truth.image_number[given]
    if isinstance(given, str):
        numbers = truth.stems.get(given, [])
        if len(numbers) > 1:
            raise UserError(
                f"{where}: image_id {short(given)} is the name of {len(numbers)} images of {truth.name}."
            )
        if numbers:
            return numbers[0]
        if given.isdecimal() and len(given) < 20 and int(given) in truth.image_number:
            return truth.image_number[int(given)]
    raise UserError(f"{where}: image_id {short(given)} is not in {truth.name}.")


def _category(given: Any, truth: Truth, where: str) -> int:
    if isinstance(given, (int, float, str)) and (number := find_id(truth.category_number, given, None)):
        return number
    known = shown(", ".join(map(str, list(truth.category_number)[:8])))
    more = ", ..." if len(truth.category_number) > 8 else ""
    raise UserError(f"{where}: category_id {short(given)} is not in {truth.name}, which has {known}{more}.")


def _size(image: int, truth: Truth) -> tuple[int, int]:
    size = truth.sizes[image - 1]
    if size is None:
        raise UserError(
            f"{truth.name}: expected height and width of every image, which masks need, got none."
        )
    return size
