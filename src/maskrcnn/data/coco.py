"""COCO data sets in memory: compact, and shared by all processes of a machine.

`read_coco` parses a JSON once into flat arrays (`coco_arrays`) that are memory-mapped (`shared_arrays`), so that
the loader's workers and the processes of one training run keep one copy together. Labels are 0..K-1 in the order
of the category ids, as detectron2 counts them. Nothing here opens an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskrcnn.data import coco_arrays
from maskrcnn.data.coco_arrays import POLYGONS, RLE
from maskrcnn.data.shared_arrays import Patch, SharedArrays, load_or_make
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.ops.masks import InstanceMasks
    from maskrcnn.structures import GroundTruth

# Below this, spawned workers copy the arrays: a few megabytes each, against a file in the user's cache.
SHARE_FROM_BYTES = 4 << 20


def read_coco(json_path: str | Path, images_dir: str | Path | None = None) -> CocoData:
    """Read a COCO JSON. `images_dir` is where its file names start; by default, the JSON's own folder.

    The second time, and in other processes, the arrays come from a cache file that is keyed by the JSON's path,
    size and time of change. Defects inside annotations do not stop the reading: `maskrcnn.data.check` lists them.

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
    """n images with their objects, in the pictures' own pixels. Cheap to send to another process.

    Image numbers i = 0..n-1 are positions in this set, not COCO ids.

    arrays: the flat arrays of `coco_arrays`; rows: (n,) which of their images are in this set, or None for all.
    """

    def __init__(
        self, arrays: SharedArrays, json_path: Path, images_dir: Path, rows: np.ndarray | None = None
    ) -> None:
        self.arrays, self.json_path, self.images_dir = arrays, json_path, images_dir
        self.class_names: tuple[str, ...] = tuple(arrays.meta["class_names"])
        self.category_ids: tuple[int, ...] = tuple(arrays.meta["category_ids"])
        self._rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        return CocoData, (self.arrays, self.json_path, self.images_dir, self._rows)

    def __len__(self) -> int:
        return self.num_images

    @property
    def num_images(self) -> int:
        return len(self.arrays["image_ids"] if self._rows is None else self._rows)

    @property
    def rows(self) -> np.ndarray:
        """(n,) the images of this set as positions in `arrays`."""
        return np.arange(self.num_images) if self._rows is None else self._rows

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(n,) COCO's ids: int64, or text where the JSON has text."""
        return self._of_images("image_ids")

    @cached_property
    def sizes(self) -> np.ndarray:
        """(n, 2) int32, (H, W) as the JSON says."""
        return self._of_images("sizes")

    @cached_property
    def num_objects(self) -> np.ndarray:
        """(n,) int64, objects to learn from in each image: what `ground_truth` returns."""
        learnt = self.arrays["keep"] & ~self.arrays["crowd"]
        counts = np.bincount(self.arrays["image"][learnt], minlength=len(self.arrays["image_ids"]))
        return counts if self._rows is None else counts[self._rows]

    def file_name(self, i: int) -> str:
        row = self._row(i)
        first, last = self.arrays["name_offsets"][row : row + 2]
        return self.arrays["names"][first:last].tobytes().decode()

    def image_path(self, i: int) -> Path:
        return self.images_dir / self.file_name(i)

    def annotations(self, i: int, *, crowd: bool = False) -> np.ndarray:
        """The objects of image i, or its crowd regions, as positions in `arrays`; only sound ones."""
        row = self._row(i)
        first, last = self.arrays["object_offsets"][row : row + 2]
        index = self.arrays["object_order"][first:last]
        return index[self.arrays["keep"][index] & (self.arrays["crowd"][index] == crowd)]

    def ground_truth(self, i: int) -> GroundTruth:
        """What image i teaches: its objects without crowd regions, in the picture's own pixels."""
        return self._truth(i, self.annotations(i))

    def crowd(self, i: int) -> GroundTruth:
        """The crowd regions of image i, in the same form."""
        return self._truth(i, self.annotations(i, crowd=True))

    def segmentations(self, index: np.ndarray) -> list[list[np.ndarray] | dict[str, Any]]:
        """COCO's form of each annotation's mask: a list of rings (x, y, x, y, ... float64), or compressed RLE.

        Points are kept as float32 and given as float64 rounded to a thousandth of a pixel, which is what the JSON
        says where it says no more. So polygons fill the very pixels that the COCO API fills: its rounding is at
        tenths of a pixel, where many of COCO's coordinates lie.
        """
        return [self._segmentation(int(j)) for j in index]

    def keypoints(self, i: int) -> np.ndarray:
        """(N, P, 3) float32 x, y, visibility of the objects of image i, at pixel centres (COCO's plus 0.5)."""
        index, offsets = self.annotations(i), self.arrays["keypoint_offsets"]
        parts = [self.arrays["keypoints"][offsets[j] : offsets[j + 1]].reshape(-1, 3) for j in index]
        num_points = max((len(p) for p in parts), default=0)
        points = np.zeros((len(index), num_points, 3), np.float32)
        for k, part in enumerate(parts):
            points[k, : len(part)] = part
        points[..., :2] += 0.5
        return points

    def subset(self, images: Sequence[int] | np.ndarray) -> CocoData:
        """The set of these images, by position or as a mask, in this order."""
        return CocoData(self.arrays, self.json_path, self.images_dir, self.rows[np.asarray(images)])

    def patched(self, patches: tuple[Patch, ...]) -> CocoData:
        """The same set with some rows of the arrays replaced."""
        return CocoData(self.arrays.patched(patches), self.json_path, self.images_dir, self._rows)

    def _row(self, i: int) -> int:
        return i if self._rows is None else int(self._rows[i])

    def _of_images(self, name: str) -> np.ndarray:
        return self.arrays[name] if self._rows is None else self.arrays[name][self._rows]

    def _truth(self, i: int, index: np.ndarray) -> GroundTruth:
        from maskrcnn.structures import GroundTruth

        return GroundTruth(
            boxes=torch.from_numpy(self.arrays["boxes"][index]),
            labels=torch.from_numpy(self.arrays["labels"][index].astype(np.int64)),
            masks=self._masks(i, index),
            image_id=self.image_ids[i].item(),
        )

    def _masks(self, i: int, index: np.ndarray) -> InstanceMasks:
        from maskrcnn.ops.masks import InstanceMasks

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
