"""COCO data sets in memory: compact, and shared by all processes of a machine.

`read_coco` parses a JSON once into flat arrays (`coco_arrays`) that are memory-mapped (`shared_arrays`), so that
the loader's workers and the processes of one training run keep one copy together. Labels are 0..K-1 in the order
of the category ids, as detectron2 counts them. Nothing here opens an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskrcnn.data import coco_arrays
from maskrcnn.data.coco_arrays import POLYGONS, RLE
from maskrcnn.data.file_names import fitting
from maskrcnn.data.shared_arrays import Patch, SharedArrays, load_or_make
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.masks import InstanceMasks
    from maskrcnn.structures import GroundTruth

# Below this, spawned workers copy the arrays: a few megabytes each, against a file in the user's cache.
SHARE_FROM_BYTES = 4 << 20


def read_coco(json_path: str | Path, images_dir: str | Path | None = None) -> CocoData:
    """Read a COCO JSON. `images_dir` is where its file names start; by default, the JSON's own folder.

    The second time, and in other processes, the arrays come from a cache file that is keyed by the JSON's path,
    size and time of change. Defects inside annotations do not stop the reading: `data.quality.check` lists them.

    Raises:
        UserError: the file is missing, is not JSON, or does not have COCO's layout.
    """
    path = Path(json_path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: expected a COCO JSON file, got {got}. Give the path of the JSON.")
    arrays = load_or_make(path, coco_arrays.VERSION, lambda: coco_arrays.parse(path), SHARE_FROM_BYTES)
    return CocoData(arrays, path, Path(images_dir) if images_dir else path.parent)


class CocoData:
    """Data set of n images with their objects, in the pictures' own pixels. Cheap to send to another process.

    Image numbers i = 0..n-1 are positions in this set, not COCO ids.

    arrays: the flat arrays of `coco_arrays`; rows: (n,) which of their images are in this set, or None for all;
    masks: whether objects are learnt with their masks. If not, those without one are learnt too.
    num_keypoints: of each object, 0 if there are none in the data; keypoint_names, skeleton: what the data says
    of them, if anything; notes: findings of the reader, as kinds and sentences: what it did not read.
    """

    def __init__(
        self,
        arrays: SharedArrays,
        json_path: Path,
        images_dir: Path,
        rows: np.ndarray | None = None,
        masks: bool = True,
        notes: tuple[tuple[str, str], ...] = (),
        fits: dict[int, Path] | None = None,
    ) -> None:
        self.arrays, self.json_path, self.images_dir, self.masks = arrays, json_path, images_dir, masks
        self.class_names: tuple[str, ...] = tuple(arrays.meta["class_names"])
        self.category_ids: tuple[int, ...] = tuple(arrays.meta["category_ids"])
        self.num_keypoints: int = arrays.meta["num_keypoints"]
        self.keypoint_names: tuple[str, ...] = tuple(arrays.meta["keypoint_names"])
        self.skeleton: tuple[tuple[int, int], ...] = tuple((a, b) for a, b in arrays.meta["skeleton"])
        self._rows, self.notes = rows, notes
        if fits is not None:
            self.fits = fits

    def __reduce__(self) -> tuple[Any, ...]:
        return CocoData, tuple(self._fields().values())

    def _fields(self) -> dict[str, Any]:
        """Arguments that make a copy of this set."""
        return {
            "arrays": self.arrays,
            "json_path": self.json_path,
            "images_dir": self.images_dir,
            "rows": self._rows,
            "masks": self.masks,
            "notes": self.notes,
            "fits": self.__dict__.get("fits"),  # where they were looked for
        }

    def _with(self, **changes: Any) -> CocoData:
        return CocoData(**{**self._fields(), **changes})

    def __len__(self) -> int:
        return self.num_images

    @property
    def num_images(self) -> int:
        return len(self.arrays["image_ids"] if self._rows is None else self._rows)

    @property
    def rows(self) -> np.ndarray:
        """Positions of this set's images in `arrays`, (n,)."""
        return np.arange(self.num_images) if self._rows is None else self._rows

    @cached_property
    def image_ids(self) -> np.ndarray:
        """COCO's ids of the images, (n,): int64, or text where the JSON has text."""
        return self._of_images("image_ids")

    @cached_property
    def sizes(self) -> np.ndarray:
        """Sizes of the images as the JSON says, (n, 2) int32, (H, W)."""
        return self._of_images("sizes")

    @cached_property
    def num_objects(self) -> np.ndarray:
        """Number of objects to learn from in each image, (n,) int64: those that `ground_truth` returns."""
        return self._per_image(np.flatnonzero(self.learnt))

    @cached_property
    def num_visible_keypoints(self) -> np.ndarray:
        """Number of visible key points of each image's objects to learn from, (n,) int64."""
        index = np.flatnonzero(self.learnt & self.arrays["keep_keypoints"])
        return self._per_image(index, (self.points(index)[..., 2] > 0).sum(1))

    def classes_of_images(self) -> np.ndarray:
        """Pairs (image, class) of the objects to learn from, each once, (p, 2) int64."""
        index = np.flatnonzero(self.learnt)
        place = np.full(len(self.arrays["image_ids"]), -1)
        place[self.rows] = np.arange(self.num_images)
        pairs = np.stack([place[self.arrays["image"][index]], self.arrays["labels"][index]], axis=1)
        return np.unique(pairs[pairs[:, 0] >= 0], axis=0)

    @property
    def learnt(self) -> np.ndarray:
        """Mask of the annotations that `ground_truth` returns, (m,) bool."""
        return self._sound(slice(None)) & ~self.arrays["crowd"]

    def file_name(self, i: int) -> str:
        return self._name(self._row(i))

    def _name(self, row: int) -> str:
        first, last = self.arrays["name_offsets"][row : row + 2]
        return self.arrays["names"][first:last].tobytes().decode(errors="surrogateescape")

    def names_digest(self) -> str:
        """Hexadecimal digest of the images' names in their order, which tells other pictures from these."""
        names = hashlib.sha256()
        for i in range(self.num_images):
            names.update(self.file_name(i).encode(errors="surrogateescape") + b"\0")
        return names.hexdigest()

    def image_path(self, i: int) -> Path:
        """The image's file: that of its name, or else the one that fits the name (`file_names`)."""
        return self.fit(i) or self.images_dir / self.file_name(i)

    def fit(self, i: int) -> Path | None:
        """File that stands for the image's name, where that is no file."""
        is_file = os.path.isfile(self.images_dir / self.file_name(i))
        return None if is_file else self.fits.get(self._row(i))

    @cached_property
    def fits(self) -> dict[int, Path]:
        """Files that stand for names that are no files, by the image's position in the arrays."""
        names = [self._name(row) for row in range(len(self.arrays["image_ids"]))]
        return fitting(names, self.images_dir)

    def annotations(self, i: int, *, crowd: bool = False) -> np.ndarray:
        """The objects of image i, or its crowd regions, as positions in `arrays`; only sound ones."""
        row = self._row(i)
        first, last = self.arrays["object_offsets"][row : row + 2]
        index = self.arrays["object_order"][first:last]
        return index[self._sound(index) & (self.arrays["crowd"][index] == crowd)]

    def ground_truth(self, i: int) -> GroundTruth:
        """Ground truth of image i: its objects without crowd regions, in the picture's own pixels."""
        return self._truth(i, self.annotations(i))

    def crowd(self, i: int) -> GroundTruth:
        """Crowd regions of image i, as ground truth in the picture's own pixels."""
        return self._truth(i, self.annotations(i, crowd=True))

    def segmentations(self, index: np.ndarray) -> list[list[np.ndarray] | dict[str, Any]]:
        """COCO's form of each annotation's mask: a list of rings (x, y, x, y, ... float64), or compressed RLE.

        Points are kept as float32 and given as float64 rounded to a thousandth of a pixel, which is what the JSON
        says where it says no more. So polygons fill the very pixels that the COCO API fills: its rounding is at
        tenths of a pixel, where many of COCO's coordinates lie.
        """
        return [self._segmentation(int(j)) for j in index]

    def keypoints(self, i: int) -> np.ndarray:
        """Key points of the objects of image i, (N, P, 3) float32 x, y, visibility, at pixel centres (COCO's plus
        0.5).
        """
        return self.points(self.annotations(i))

    def points(self, index: np.ndarray) -> np.ndarray:
        """Key points of these annotations, (N, P, 3) float32 x, y, visibility, at pixel centres; zeros where the JSON
        has none, or broken ones.
        """
        a = self.arrays
        points = np.zeros((len(index), self.num_keypoints, 3), np.float32)
        sound = a["keep_keypoints"][index]
        places = a["keypoint_offsets"][index[sound], None] + np.arange(3 * self.num_keypoints)
        points[sound] = a["keypoints"][places].reshape(len(places), self.num_keypoints, 3)
        points[..., :2] += 0.5
        return points

    def subset(self, images: Sequence[int] | np.ndarray) -> CocoData:
        """Select these images, by position or as a mask, in this order."""
        rows = self.rows[np.asarray(images)]
        return self._with(rows=rows)

    def without_masks(self) -> CocoData:
        """Copy of the set for models without masks: every object counts that has a box."""
        return self._with(masks=False)

    def patched(self, patches: tuple[Patch, ...]) -> CocoData:
        """Copy of the set with some rows of the arrays replaced."""
        return self._with(arrays=self.arrays.patched(patches))

    def _sound(self, index: np.ndarray | slice) -> np.ndarray:
        keep = self.arrays["keep"][index]
        return keep & np.isin(self.arrays["mask_kind"][index], (POLYGONS, RLE)) if self.masks else keep

    def _per_image(self, index: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Count these annotations of each image, (n,) int64, or sum their weights."""
        counts = np.bincount(self.arrays["image"][index], weights, len(self.arrays["image_ids"]))
        counts = counts.astype(np.int64)
        return counts if self._rows is None else counts[self._rows]

    def _row(self, i: int) -> int:
        return i if self._rows is None else int(self._rows[i])

    def _of_images(self, name: str) -> np.ndarray:
        return self.arrays[name] if self._rows is None else self.arrays[name][self._rows]

    def _truth(self, i: int, index: np.ndarray) -> GroundTruth:
        from maskrcnn.structures import GroundTruth

        return GroundTruth(
            boxes=torch.from_numpy(self.arrays["boxes"][index]),
            labels=torch.from_numpy(self.arrays["labels"][index].astype(np.int64)),
            masks=self._masks(i, index) if self.masks else None,
            image_id=self.image_ids[i].item(),
            keypoints=torch.from_numpy(self.points(index)) if self.num_keypoints else None,
        )

    def _masks(self, i: int, index: np.ndarray) -> InstanceMasks:
        from maskrcnn.masks import InstanceMasks

        height, width = self.sizes[i].tolist()
        polygons: list[np.ndarray] = []
        counts, rles = [0], {}
        for k, segmentation in enumerate(self.segmentations(index)):
            if isinstance(segmentation, dict):
                rles[k] = segmentation
            else:
                polygons += segmentation
            counts.append(len(polygons))
        points = np.concatenate(polygons) if polygons else np.zeros(0)
        starts = np.cumsum([0, *(len(p) // 2 for p in polygons)], dtype=np.int64)
        return InstanceMasks.from_arrays(
            (height, width), points.reshape(-1, 2), starts, np.array(counts, np.int64), rles
        )

    def _segmentation(self, j: int) -> list[np.ndarray] | dict[str, Any]:
        a = self.arrays
        if a["mask_kind"][j] == RLE:
            first, last = a["rle_offsets"][j : j + 2]
            return {"size": a["rle_sizes"][j].tolist(), "counts": a["rle"][first:last].tobytes().decode()}
        assert a["mask_kind"][j] == POLYGONS
        first, last = a["rings_of"][j : j + 2]
        ends, keep = a["ring_offsets"][first : last + 1], a["keep_rings"][first:last]
        return [a["points"][ends[k] : ends[k + 1]].astype(np.float64).round(3) for k in np.flatnonzero(keep)]
