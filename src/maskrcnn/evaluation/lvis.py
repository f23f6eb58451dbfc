"""LVIS's rules for data whose images are each searched for some of the classes only (Gupta et al. 2019,
arXiv 1908.03195).

An image is searched for the classes of its objects and for its `neg_category_ids`, of which it has none; detections
of other classes say nothing and do not count. Of its `not_exhaustive_category_ids` not every object is annotated: what
is found beyond those that are costs nothing. COCO has a rule for that, the crowd, so that such a class gets a crowd as
large as the image, and COCO's matching gives the numbers of LVIS's own program (tests compare them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskrcnn.data.coco_arrays import find_id
from maskrcnn.errors import UserError, shown
from maskrcnn.masks.rle import rle_area

MAX_DETECTIONS = 300  # of all classes together in an image
FREQUENCIES = (
    "r",
    "c",
    "f",
)  # rare: classes of fewer than 10 training images; common: fewer than 100; frequent
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True, slots=True)
class Federated:
    """Searched classes of a data set in LVIS's form, all by COCO numbers from 1.

    searched: for each image the classes whose detections count; unfinished: those of which objects may lack a mark;
    frequency: of each class "r", "c" or "f".
    """

    searched: tuple[frozenset[int], ...]
    unfinished: tuple[frozenset[int], ...]
    frequency: tuple[str, ...]

    def classes(self, frequency: str) -> list[int]:
        """Index, from 0, of each class of this frequency."""
        return [k for k, f in enumerate(self.frequency) if f == frequency]


def is_federated(content: Mapping[str, Any]) -> bool:
    """Return True for a COCO dict in LVIS's form, which says what an image was searched for."""
    return any(_LISTS[0] in i for i in content["images"]) and any(
        "frequency" in c for c in content["categories"]
    )


def read_federated(
    content: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    image_number: Mapping[Any, int],
    category_number: Mapping[Any, int],
    name: str,
) -> Federated:
    """Read what each image was searched for.

    annotations: of known images and classes; image_number, category_number: from ids to 1, 2, ...; name: for messages.

    Raises:
        UserError: an image without one of the lists, or a class without a frequency.
    """
    searched = {number: set[int]() for number in image_number.values()}
    unfinished = {number: frozenset[int]() for number in image_number.values()}
    frequency = dict[int, str]()
    for category in content["categories"]:
        given = category.get("frequency")
        if given not in FREQUENCIES:
            where = f"{name}: category {shown(category['id'], 30)}"
            raise UserError(
                f"{where}: expected frequency as one of {', '.join(FREQUENCIES)}, got {shown(repr(given), 60)}."
            )
        frequency[find_id(category_number, category["id"], 0)] = given
    for image in content["images"]:
        negative, partial = (_numbers(image, word, category_number, name) for word in _LISTS)
        searched[image_number[image["id"]]] |= negative
        unfinished[image_number[image["id"]]] = partial
    for a in annotations:
        searched[image_number[a["image_id"]]].add(category_number[a["category_id"]])
    return Federated(
        tuple(frozenset(searched[n]) for n in sorted(searched)),
        tuple(unfinished[n] for n in sorted(unfinished)),
        tuple(frequency[n] for n in sorted(frequency)),
    )


def unfinished_regions(
    federated: Federated,
    sizes: Sequence[tuple[int, int] | None],
    image_ids: Sequence[Any],
    category_ids: Sequence[Any],
    name: str,
) -> list[dict[str, Any]]:
    """Make the crowds, COCO annotations without an id, that excuse what is found of unfinished classes.

    sizes: (H, W) of the images; image_ids, category_ids: in the order of their numbers.

    Raises:
        UserError: an image without height and width.
    """
    regions = []
    for number, (classes, size) in enumerate(zip(federated.unfinished, sizes, strict=True), start=1):
        if classes and size is None:
            image = shown(image_ids[number - 1], 30)
            raise UserError(
                f"{name}: image {image}: expected height and width, which LVIS's rules need, got none."
            )
        for k in sorted(classes & federated.searched[number - 1]):
            assert size is not None
            height, width = size
            regions.append(
                {
                    "image_id": image_ids[number - 1],
                    "category_id": category_ids[k - 1],
                    "iscrowd": 1,
                    "area": height * width,
                    # Boxes of results may reach beyond the image.
                    "bbox": [-width, -height, 3 * width, 3 * height],
                    "segmentation": {"size": [height, width], "counts": [0, height * width]},
                }
            )
    return regions


def counted(
    results: Sequence[dict[str, Any]], federated: Federated, limit: int = MAX_DETECTIONS
) -> list[dict[str, Any]]:
    """Keep the best `limit` results of each image, and of these the ones of classes that it was searched for.

    Empty boxes and masks are left out, as LVIS's own program does: they would lie in no crowd.
    """
    of_image = dict[int, list[dict[str, Any]]]()
    for entry in results:
        of_image.setdefault(entry["image_id"], []).append(entry)
    kept = list[dict[str, Any]]()
    for image, entries in of_image.items():
        best = sorted(entries, key=lambda e: -e["score"])[:limit]
        searched = federated.searched[image - 1]
        kept += [e for e in best if e["category_id"] in searched and not _is_empty(e)]
    return kept


def _is_empty(entry: Mapping[str, Any]) -> bool:
    if "bbox" in entry:
        return entry["bbox"][2] * entry["bbox"][3] == 0
    return rle_area(entry["segmentation"]) == 0


def _numbers(
    image: Mapping[str, Any], word: str, category_number: Mapping[Any, int], name: str
) -> frozenset[int]:
    """Numbers of the known classes that an image lists."""
    given = image.get(word)
    if not isinstance(given, list) or not all(isinstance(k, (int, str)) for k in given):
        got = shown(repr(given), 60)
        raise UserError(
            f"{name}: image {shown(image['id'], 30)}: expected a list {word!r} of classes, got {got}."
        )
    return frozenset(number for k in given if (number := find_id(category_number, k, 0)))
