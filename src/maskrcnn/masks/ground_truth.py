"""Ground-truth masks of one image, kept as they were drawn: polygons stay polygons, bitmaps their own box.

What resize, crop, flip and quarter turns do to a picture is remembered as one axis-aligned affine map, so
no vertex is moved and no bitmap resampled until a mask is rasterised in its RoI. Rasterising follows
detectron2: polygons are shifted and scaled into the RoI's frame and filled as the COCO API fills them;
bitmaps are read by RoIAlign (aligned, adaptive sampling) and are foreground at 0.5 or above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.masks import coco_api
from maskrcnn.masks.bitmap_roi import rasterize_bitmaps
from maskrcnn.masks.polygon_box import clipped_extents
from maskrcnn.masks.store import MaskStore, fill_one, offsets, ranges, read_bitmaps
from maskrcnn.ops.bitmaps import crop_bitmaps, read_bits
from maskrcnn.ops.boxes import numbers
from maskrcnn.ops.polygons import edges_of, fill_polygons
from maskrcnn.ops.sampling import use_triton
from maskrcnn.ops.transfer import to_device

Window = tuple[float, float, float, float]


@dataclass(slots=True, frozen=True, eq=False)
class InstanceMasks:
    """Ground-truth masks, N of them: `order` chooses them from `store`, `matrix` (2, 3) maps stored to current
    pixels.
    """

    store: MaskStore
    order: np.ndarray
    matrix: np.ndarray

    @classmethod
    def from_coco(cls, segmentations: Sequence[Any], size: tuple[int, int]) -> InstanceMasks:
        """Read COCO `segmentation` fields: lists of polygons [x, y, x, y, ...], or RLE (any of its forms).

        Polygons of fewer than three points are left out. ValueError("mask i: ...") for a broken RLE.
        """
        polygons: list[np.ndarray] = []
        counts = np.zeros(len(segmentations), np.int64)
        rles: dict[int, Mapping[str, Any]] = {}
        for i, segmentation in enumerate(segmentations):
            if isinstance(segmentation, Mapping):
                rles[i] = segmentation
                continue
            kept = [np.asarray(p, np.float64) for p in segmentation or () if len(p) >= 6]
            polygons += [p[: len(p) // 2 * 2].reshape(-1, 2) for p in kept]
            counts[i] = len(kept)
        points = np.concatenate(polygons) if polygons else np.zeros((0, 2))
        return cls.from_arrays(
            size,
            points,
            offsets(np.array([len(p) for p in polygons], np.int64)),
            offsets(counts),
            rles,
        )

    @classmethod
    def from_arrays(
        cls,
        size: tuple[int, int],
        points: np.ndarray,
        polygon_starts: np.ndarray,
        mask_starts: np.ndarray,
        rles: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> InstanceMasks:
        """Make masks of flat polygons (see MaskStore), kept as they are; `rles` holds the masks that are RLE."""
        n = len(mask_starts) - 1
        bits, bit_starts, crops = read_bitmaps(rles or {}, n)
        store = MaskStore(size, points, polygon_starts, mask_starts, bits, bit_starts, crops)
        return cls(store, np.arange(n), np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))

    @classmethod
    def from_bitmaps(cls, bitmaps: np.ndarray) -> InstanceMasks:
        """Make masks of (N, H, W) bitmaps; anything not zero is foreground."""
        from maskrcnn.masks.rle import rle_encode

        empty = offsets(np.zeros(len(bitmaps), np.int64))
        rles = {i: rle_encode(b) for i, b in enumerate(bitmaps)}
        return cls.from_arrays(bitmaps.shape[1:], np.zeros((0, 2)), np.zeros(1, np.int64), empty, rles)

    def __len__(self) -> int:
        return len(self.order)

    def select(self, index: Any) -> InstanceMasks:
        """Select the masks at `index` (integers, booleans or a slice, as array, list or tensor)."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index.astype(np.int64) if index.size == 0 else index
        return replace(self, order=self.order[index])

    def resized(self, sx: float, sy: float) -> InstanceMasks:
        """Scale the masks with their picture, by `sx` across and `sy` down."""
        return self._mapped([[sx, 0.0], [0.0, sy]], [0.0, 0.0])

    def shifted(self, dx: float, dy: float) -> InstanceMasks:
        """Move the masks by (dx, dy): a crop at (x, y) is shifted(-x, -y)."""
        return self._mapped([[1.0, 0.0], [0.0, 1.0]], [dx, dy])

    def flipped_horizontal(self, width: float) -> InstanceMasks:
        """Mirror the masks left to right with their picture, which is `width` wide."""
        return self._mapped([[-1.0, 0.0], [0.0, 1.0]], [width, 0.0])

    def flipped_vertical(self, height: float) -> InstanceMasks:
        """Mirror the masks top to bottom with their picture, which is `height` high."""
        return self._mapped([[1.0, 0.0], [0.0, -1.0]], [0.0, height])

    def rotated90(self, height: float, width: float, turns: int = 1) -> InstanceMasks:
        """Rotate the masks with their (height, width) picture by `turns` quarter turns, counterclockwise as
        `np.rot90`.
        """
        match turns % 4:
            case 1:
                return self._mapped([[0.0, 1.0], [-1.0, 0.0]], [0.0, width])
            case 2:
                return self._mapped([[-1.0, 0.0], [0.0, -1.0]], [width, height])
            case 3:
                return self._mapped([[0.0, -1.0], [1.0, 0.0]], [height, 0.0])
        return self

    def filled(self) -> InstanceMasks:
        """Rasterise polygons in their stored pixels, as the COCO API fills them; all masks of the result have
        bitmaps.
        """
        s = self.store
        bits, crops = [], np.zeros((len(self), 4), np.int64)
        for k, i in enumerate(self.order.tolist()):
            bitmap, crop = s.bitmap(i), s.crops[i]
            if crop[2] == 0:
                first, last = s.mask_starts[i], s.mask_starts[i + 1]
                bitmap, crop = fill_one(s, range(first, last))
            bits.append(bitmap.ravel())
            crops[k] = crop
        nothing = np.zeros(len(self) + 1, np.int64)
        flat = np.concatenate([np.zeros(0, np.uint8), *bits])
        lengths = crops[:, 2] * crops[:, 3]
        store = MaskStore(s.size, s.points[:0], nothing[:1], nothing, flat, offsets(lengths), crops)
        return replace(self, store=store, order=np.arange(len(self)))

    def tight_boxes(self, window: Window | None = None) -> Tensor:
        """Tight boxes of the masks' parts inside `window`, (N, 4) float32; zeros for a mask that has none."""
        boxes = np.zeros((len(self), 4))
        points, polygon_starts, owner = self._polygons()
        if len(points):
            extents = clipped_extents(points, polygon_starts, window)
            some = extents[:, 2] > extents[:, 0]
            low, high = np.full((len(self), 2), np.inf), np.full((len(self), 2), -np.inf)
            np.minimum.at(low, owner[some], extents[some, :2])
            np.maximum.at(high, owner[some], extents[some, 2:])
            found = (high > low).all(1)
            boxes[found] = np.concatenate([low, high], axis=1)[found]
        for i in np.flatnonzero(self._is_bitmap()).tolist():
            boxes[i] = self._bitmap_box(i, window)
        return torch.from_numpy(boxes.astype(np.float32))

    def areas(self) -> np.ndarray:
        """Area of each mask in current pixels, (N,) float64: of the polygons, or of the foreground pixels."""
        points, polygon_starts, owner = self._polygons()
        areas = np.zeros(len(self))
        for i, a, b in zip(owner, polygon_starts[:-1], polygon_starts[1:], strict=True):
            x, y = (points[a:b] - points[a]).T
            areas[i] += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        scale = abs(np.linalg.det(self.matrix[:, :2]))
        for i in np.flatnonzero(self._is_bitmap()).tolist():
            areas[i] = scale * int(self.store.bitmap(self.order[i]).sum(dtype=np.int64))
        return areas

    def to_bitmaps(self, size: tuple[int, int]) -> np.ndarray:
        """Rasterise the masks in current pixels, (N, H, W) uint8 of 0 and 1: polygons as COCO fills them, bitmaps by
        nearest pixel.
        """
        out = np.zeros((len(self), *size), np.uint8)
        points, polygon_starts, owner = self._polygons()
        if len(points):
            _fill_polygons(points, polygon_starts, owner, size, out)
        for i in np.flatnonzero(self._is_bitmap()).tolist():
            self._resample(i, out[i])
        return out

    def rasterize(self, boxes: Tensor, index: Tensor, size: int, filled: bool = False) -> Tensor:
        """Rasterise mask `index[r]` within `boxes[r]` (current pixels): (R, size, size) bool, on boxes' device.

        A negative index gives no mask. filled: as COCO fills it in its stored pixels before (see `filled`).

        On a GPU the boxes and the answer stay there: kernels fill polygons and read bitmaps (`ops.polygons_triton`,
        `ops.bitmaps_triton`).
        """
        if not len(self):  # on a GPU the operator below would wait for it
            return torch.zeros(len(boxes), size, size, dtype=torch.bool, device=boxes.device)
        if use_triton(boxes):
            return (self.filled() if filled else self)._rasterized_there(boxes.detach(), index, size)
        s = self.store
        arrays = (
            s.points,
            s.polygon_starts,
            s.mask_starts,
            s.bits,
            s.bit_starts,
            s.crops,
            self.order,
            self.matrix,
        )
        return _rasterize([torch.from_numpy(a) for a in arrays], list(s.size), boxes, index, size, filled)

    def at_points(self, points: Tensor, index: Tensor) -> Tensor:
        """Read mask `index[r]` bilinearly at points (R, P, 2), x and y in current pixels: (R, P) float32 of 0 to 1.

        A negative index gives 0, and so does what lies outside of the mask's picture. Polygons are filled as by
        `filled` before. On a GPU the points and the answer stay there.
        """
        s = self.store
        stored = (s.points, s.polygon_starts, s.mask_starts, s.bits, s.bit_starts, s.crops)
        arrays = [torch.from_numpy(a) for a in (*stored, self.order, self.matrix)]
        return _at_points(arrays, list(s.size), points.detach(), index)

    def _rasterized_there(self, boxes: Tensor, index: Tensor, size: int) -> Tensor:
        """Rasterise on the boxes' device, which the host does not wait for."""
        bitmap, found = self._is_bitmap(), None
        if not bitmap.all():
            edges = (to_device(tensor, boxes.device) for tensor in edges_of(*self._polygons(), len(self)))
            found = fill_polygons(*edges, boxes, index, size)
        if bitmap.any():
            s = self.store
            bits, starts = s.bits, s.bit_starts[self.order]
            stored = (torch.from_numpy(a) for a in (bits, starts, s.crops[self.order].astype(np.int32)))
            there = (to_device(tensor, boxes.device) for tensor in stored)
            inverse = np.linalg.inv(self.matrix[:, :2])
            corners = (
                boxes.double().view(-1, 2, 2) - numbers(self.matrix[:, 2].tolist(), boxes.double())
            ) @ (to_device(torch.from_numpy(inverse.T.copy()), boxes.device))
            swapped = self._is_swapped()
            read = crop_bitmaps(*there, list(s.size), corners.view(-1, 4).float(), index, size, swapped)
            read = read & (boxes[:, 2:] > boxes[:, :2]).all(1)[:, None, None]
            found = read if found is None else found | read
        assert found is not None
        return found

    def _rasterized(self, rois: np.ndarray, chosen: np.ndarray, size: int) -> np.ndarray:
        out = np.zeros((len(rois), size, size), np.uint8)
        bitmap = self._is_bitmap()[chosen] if len(self) else np.zeros(0, bool)
        drawn = np.flatnonzero(~bitmap)
        if len(drawn):
            masks = np.zeros((len(drawn), size, size), np.uint8)
            points, polygon_starts, owner = self.select(chosen[drawn])._polygons()
            if len(points):
                spread = np.repeat(owner, np.diff(polygon_starts))
                framed = _into_roi_frame(points, rois[drawn], spread, size)
                _fill_polygons(framed, polygon_starts, owner, (size, size), masks)
            out[drawn] = masks
        stored = np.flatnonzero(bitmap)
        if len(stored):
            out[stored] = self._rasterize_bitmaps(rois[stored], chosen[stored], size)
        return out.view(bool)

    def _mapped(self, linear: list[list[float]], shift: list[float]) -> InstanceMasks:
        matrix = np.array(linear) @ self.matrix
        matrix[:, 2] += shift
        return replace(self, matrix=matrix)

    def _is_bitmap(self) -> np.ndarray:
        return self.store.crops[self.order, 2] > 0

    def _is_swapped(self) -> bool:
        return self.matrix[0, 0] == 0.0

    def _to_stored(self, points: np.ndarray) -> np.ndarray:
        return (points - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T

    def _polygons(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Polygons in current pixels: vertices (V, 2), (P + 1,) starts of polygons, (P,) the mask of each."""
        s = self.store
        first, last = s.mask_starts[self.order], s.mask_starts[self.order + 1]
        chosen = ranges(first, last)
        begin, end = s.polygon_starts[chosen], s.polygon_starts[chosen + 1]
        owner = np.repeat(np.arange(len(self)), last - first)
        points = s.points[ranges(begin, end)].astype(np.float64)
        if self._is_swapped():
            points = points[:, ::-1]
        scale = self.matrix[:, :2].sum(1)
        return points * scale + self.matrix[:, 2], offsets(end - begin), owner

    def _rasterize_bitmaps(self, rois: np.ndarray, chosen: np.ndarray, size: int) -> np.ndarray:
        corners = self._to_stored(rois.astype(np.float64).reshape(-1, 2, 2)).reshape(-1, 4)
        degenerate = (rois[:, 2:] <= rois[:, :2]).any(1)
        out = rasterize_bitmaps(self.store, self.order[chosen], corners.astype(np.float32), size)
        out[degenerate] = 0
        return out.transpose(0, 2, 1) if self._is_swapped() else out

    def _bitmap_box(self, i: int, window: Window | None) -> np.ndarray:
        """Box of bitmap i in current pixels, or of the part of it in `window`."""
        bitmap = self.store.bitmap(self.order[i])
        x, y, w, h = self.store.crops[self.order[i]]
        lo, hi = np.array([x, y]), np.array([x + w, y + h])
        if window is None:
            return self._box_from_stored(lo, hi)
        bounds = self._to_stored(np.array(window, np.float64).reshape(2, 2))
        first = np.maximum(np.floor(bounds.min(0) + 1e-6).astype(int), lo)
        last = np.minimum(np.ceil(bounds.max(0) - 1e-6).astype(int), hi)
        if (last <= first).any():
            return np.zeros(4)
        part = bitmap[first[0] - x : last[0] - x, first[1] - y : last[1] - y]
        columns, rows = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        if not len(columns):
            return np.zeros(4)
        lo = first + np.array([columns[0], rows[0]])
        hi = first + np.array([columns[-1] + 1, rows[-1] + 1])
        box = self._box_from_stored(lo, hi)
        box[:2] = np.maximum(box[:2], window[:2])
        box[2:] = np.minimum(box[2:], window[2:])
        return box

    def _box_from_stored(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        corners = np.array([lo, hi], np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.concatenate([corners.min(0), corners.max(0)])

    def _resample(self, i: int, out: np.ndarray) -> None:
        """Write bitmap i to `out` (H, W): each pixel takes the stored pixel under its centre."""
        bitmap = self.store.bitmap(self.order[i])
        height, width = out.shape
        centres = np.arange(max(out.shape)) + 0.5
        swapped = self._is_swapped()
        x_of, y_of = (centres[:height], centres[:width]) if swapped else (centres[:width], centres[:height])
        inverse = np.linalg.inv(self.matrix[:, :2]).sum(1)
        shift = self.matrix[::-1, 2] if swapped else self.matrix[:, 2]
        x, y, w, h = self.store.crops[self.order[i]]
        xs = np.floor((x_of - shift[0]) * inverse[0] + 1e-9).astype(np.int64) - x
        ys = np.floor((y_of - shift[1]) * inverse[1] + 1e-9).astype(np.int64) - y
        in_x, in_y = np.flatnonzero((xs >= 0) & (xs < w)), np.flatnonzero((ys >= 0) & (ys < h))
        part = bitmap[np.ix_(xs[in_x], ys[in_y])]
        if swapped:
            out[np.ix_(in_x, in_y)] = part
        else:
            out[np.ix_(in_y, in_x)] = part.T


@torch.library.custom_op("maskrcnn::rasterize", mutates_args=())
def _rasterize(
    arrays: list[Tensor], picture: list[int], boxes: Tensor, index: Tensor, size: int, filled: bool
) -> Tensor:
    """`InstanceMasks.rasterize` as an operator, which a compiler takes as it is."""
    *stored, order, matrix = (a.numpy() for a in arrays)
    masks = InstanceMasks(MaskStore((picture[0], picture[1]), *stored), order, matrix)
    out = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    there = (index >= 0).nonzero()[:, 0].cpu()
    chosen, rois = index.cpu()[there], boxes.detach().float().cpu()[there]
    if filled:
        used, chosen = chosen.unique(return_inverse=True)
        masks = masks.select(used).filled()
    out[there] = torch.from_numpy(masks._rasterized(rois.numpy(), chosen.numpy().astype(np.int64), size))
    return out.to(boxes.device)


@_rasterize.register_fake
def _(arrays, picture, boxes, index, size, filled):
    return boxes.new_empty((boxes.shape[0], size, size), dtype=torch.bool)


@torch.library.custom_op("maskrcnn::masks_at_points", mutates_args=())
def _at_points(arrays: list[Tensor], picture: list[int], points: Tensor, index: Tensor) -> Tensor:
    """`InstanceMasks.at_points` as an operator, which a compiler takes as it is."""
    *stored, order, matrix = (a.numpy() for a in arrays)
    if not len(order):
        return points.new_zeros(points.shape[:2], dtype=torch.float32)
    masks = InstanceMasks(MaskStore((picture[0], picture[1]), *stored), order, matrix).filled()
    inverse = torch.from_numpy(np.linalg.inv(matrix[:, :2]).T.copy())
    tensors = (torch.from_numpy(a) for a in (masks.store.bits, masks.store.bit_starts, masks.store.crops))
    bits, starts, crops, inverse = (to_device(t, points.device) for t in (*tensors, inverse))
    places = points.double() - numbers(matrix[:, 2].tolist(), points.double())
    return read_bits(bits, starts, crops, places @ inverse, index)


@_at_points.register_fake
def _(arrays, picture, points, index):
    return points.new_empty(points.shape[:2], dtype=torch.float32)


def _into_roi_frame(points: np.ndarray, rois: np.ndarray, owner: np.ndarray, size: int) -> np.ndarray:
    """Shift and scale each RoI's polygons as if the RoI were a picture of size x size; ratios in float32, as in
    detectron2.
    """
    sides = np.maximum(rois[:, 2:] - rois[:, :2], np.float32(0.1))
    return (points - rois[owner, :2]) * (np.float32(size) / sides)[owner]


def _fill_polygons(
    points: np.ndarray, starts: np.ndarray, owner: np.ndarray, size: tuple[int, int], out: np.ndarray
) -> None:
    """Set out[owner[p]] (N, H, W) to 1 where polygon p is, as the COCO API fills it."""
    flat = points.ravel()
    polygons = [flat[2 * a : 2 * b] for a, b in zip(starts[:-1].tolist(), starts[1:].tolist())]
    step = max(1, (1 << 24) // (size[0] * size[1]))  # decoded masks at a time
    for begin in range(0, len(polygons), step):
        masks = coco_api.fill_polygons(polygons[begin : begin + step], size)
        mine = owner[begin : begin + step]
        firsts = np.flatnonzero(np.concatenate([[True], mine[1:] != mine[:-1]]))
        out[mine[firsts]] |= np.maximum.reduceat(masks, firsts) if len(firsts) < len(mine) else masks
