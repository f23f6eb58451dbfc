"""Kinds of defects of a data set with their rules, and the report of those that were found.

`RULES` says what is done about each kind, and which have no repair and stop the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from maskrcnn.data.coco import CocoData
from maskrcnn.data.shared_arrays import Patch
from maskrcnn.errors import UserError, one_line

REFUSED = "refused"
RULES: dict[str, str] = {
    "no_images": REFUSED,
    "no_annotations": REFUSED,
    "not_read": "left out",
    "duplicate_image_id": REFUSED,  # two files under one id: whose the objects are cannot be known
    "split_image": REFUSED,  # one file under two ids, each with objects: each lacks the other's
    "duplicate_image": "the later entry is left out",
    "name_differs": "the one file that fits is taken",
    "image_missing": "the image is left out",
    "image_unreadable": "the image is left out",
    "size_absent": "the size is taken from the file",
    "size_differs": "the image is left out",
    "no_classes": REFUSED,
    "class_twice": "kept as two classes",
    "crowds_only": "kept as crowd regions, which nothing learns",
    "crowd_odd": "taken for what its text says, else for no crowd",
    "unknown_image": "the annotation is left out",
    "unknown_category": "the annotation is left out",
    "duplicate_annotation": "the later one is left out",
    "duplicate_annotation_id": "the later one gets a new id",
    "mask_absent": "the object is left out",
    "mask_unreadable": "the object is left out",
    "polygon_broken": "the polygon is left out, and the object with its last polygon",
    "rle_broken": "the object is left out",
    "box_absent": "the box is taken from the mask",
    "box_missing": "the object is left out",  # there is no mask to take it from
    "box_differs": "the box is taken from the mask",
    "box_outside": "the box is clipped to the image",
    "zero_area": "the object is left out",
    "keypoints_broken": "the object's key points are left out",
    "keypoint_visibility": "the key point is left out",
    "keypoint_outside": "the key point is left out",
    "keypoint_count": "the visible key points are counted",
}

# What training takes as it is, and a person may want to know (`maskrcnn.data.quality.advice` looks for it).
ADVICE: dict[str, str] = {
    "in_both_parts": "kept; validation on pictures that were learnt from flatters",
    "same_picture": "kept; it counts as often as it is there",
    "nearly_black": "kept; stretch its values if they are fewer bits than its file can hold",
    "exif_turned": "the picture is turned upright; labels drawn on the unturned one do not fit it",
    "class_without_objects": "kept as a class that nothing teaches",
    "class_not_in_val": "kept; its AP cannot be told",
    "class_not_in_train": "kept; it cannot be found",
    "many_objects": "kept; COCO's limit of 100 detections hides some: evaluate with --max-detections",
    "drawn_twice": "kept; two objects of one class on the same place",
    "box_loose": "the box is kept as it is",
    "one_pixel": "kept; too small to be found, even enlarged",
    "hole_filled": "a polygon inside another of its object adds nothing: the hole is filled, as in COCO",
    "mask_with_hole": "kept with its holes",
    "category_id_0": "kept; some tools take 0 for the background",
    "annotation_id_0": "kept and scored; pycocotools never counts it as found",
}


class Finding(NamedTuple):
    kind: str
    image_id: int | str | None
    annotation_id: int | None
    message: str
    rule: str

    @property
    def line(self) -> str:
        """Describe the finding with its place, in one line of at most 300 characters."""
        image = "" if self.image_id is None else f"image {self.image_id}"
        annotation = "" if self.annotation_id is None else f"annotation {self.annotation_id}"
        place = ", ".join(p for p in (image, annotation) if p)
        return one_line(f"{place}: {self.message}" if place else self.message)


@dataclass(slots=True)
class Group:
    """The findings of one kind, kept as arrays: a data set can have as many as it has objects.

    images: (k,) positions in the arrays, -1 for none; annotations: likewise; values: of the message's fields.
    """

    kind: str
    images: np.ndarray
    annotations: np.ndarray
    message: str
    values: tuple[np.ndarray | list[str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(slots=True)
class Report:
    """All findings, and the repairs that their rules ask for."""

    data: CocoData
    groups: list[Group] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    left_out: set[int] = field(default_factory=set)  # images, as positions in the arrays
    brightest: np.ndarray | None = None  # largest value of each image, 0 to 255, if its file was looked at

    def __len__(self) -> int:
        return sum(len(g) for g in self.groups)

    @property
    def counts(self) -> dict[str, int]:
        """Findings of each kind that was found."""
        counts: dict[str, int] = {}
        for group in self.groups:
            counts[group.kind] = counts.get(group.kind, 0) + len(group)
        return counts

    @property
    def refused(self) -> bool:
        """True if something was found that has no repair."""
        return any(rule_of(g.kind) == REFUSED for g in self.groups)

    def findings(self, *, only_refused: bool = False) -> Iterator[Finding]:
        arrays = self.data.arrays
        for g in self.groups:
            if only_refused and rule_of(g.kind) != REFUSED:
                continue
            for k in range(len(g)):
                image, annotation = int(g.images[k]), int(g.annotations[k])
                image_id = arrays["image_ids"][image].item() if image >= 0 else None
                annotation_id = int(arrays["ids"][annotation]) if annotation >= 0 else None
                message = g.message.format(*(v[k] for v in g.values))
                if annotation_id == -1:
                    annotation_id, message = None, f"annotations[{annotation}], without an id: {message}"
                yield Finding(g.kind, image_id, annotation_id, message, rule_of(g.kind))

    def summary(self) -> str:
        """One line: how many of each kind."""
        return ", ".join(f"{n} {kind}" for kind, n in self.counts.items()) or "no defects"

    def lines(self, limit: int | None = None) -> Iterator[str]:
        """One line for each kind with its rule, each followed by at most `limit` findings."""
        shown: dict[str, int] = {}
        for f in self.findings():
            shown[f.kind] = n = shown.get(f.kind, 0) + 1
            if n == 1:
                yield f"{f.kind}: {self.counts[f.kind]} ({f.rule})"
            if limit is None or n <= limit:
                yield f"  {f.line}"
            elif n == limit + 1:
                yield f"  ... and {self.counts[f.kind] - limit:,} more"

    def repaired(self) -> CocoData:
        """The data set after the repairs; the images that are left out are gone from it."""
        data = self.data.patched(tuple(self.patches))
        if not self.left_out:
            return data
        return data.subset(~np.isin(data.rows, list(self.left_out)))

    def usable(self, on_error: Literal["repair", "refuse"] = "repair") -> CocoData:
        """Return the repaired set, or raise a UserError as `checked` says."""
        if self.refused or (on_error == "refuse" and len(self)):
            raise self._error(only_refused=on_error == "repair")
        repaired = self.repaired()
        if repaired.num_objects.any():
            return repaired
        path = self.data.json_path
        if not len(self):
            raise UserError(f"{path}: expected objects to learn from, got crowd regions only.")
        raise UserError(
            f"{path}: no object to learn from is left after the checks: {self.summary()}; the first is "
            f"{next(self.findings()).line}."
        )

    def _error(self, *, only_refused: bool) -> UserError:
        """The findings as one line."""
        found = sum(1 for _ in self.findings(only_refused=only_refused))
        first = next(self.findings(only_refused=only_refused))
        return UserError(
            f"{self.data.json_path}: expected a sound data set, got {found} defect{'s' * (found > 1)}; the first is "
            f"{first.kind}: {first.line}. List all with `maskrcnn doctor --limit 0`."
        )

    def add(self, kind: str, images: object, annotations: object, message: str, *values: object) -> None:
        image, annotation = np.atleast_1d(np.asarray(images)), np.atleast_1d(np.asarray(annotations))
        if len(image) and len(annotation):
            image, annotation = np.broadcast_arrays(image, annotation)
            self.groups.append(Group(kind, image, annotation, message, values))  # pyright: ignore

    def add_objects(self, kind: str, index: np.ndarray, message: str, *values: object) -> None:
        self.add(kind, self.data.arrays["image"][index], index, message, *values)

    def drop(self, index: np.ndarray) -> None:
        if len(index):
            self.patches.append(("keep", index, np.zeros(len(index), bool)))


def rule_of(kind: str) -> str:
    """Rule for findings of this kind: how they are dealt with."""
    return RULES.get(kind) or ADVICE[kind]
