"""Masks: detectron2's targets and paste bit for bit, COCO's RLE, and transforms that only move a map."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from maskrcnn.masks import InstanceMasks, PredictedMasks, rle_area, rle_decode, rle_encode
from maskrcnn.masks.rle import read_runs

BITMAPS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)
)
POLYGON = [[1.0, 2.0, 9.5, 1.5, 8.0, 7.25, 3.0, 6.0]]
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def units(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "reference/detectron2/units.npz"))


@pytest.fixture(scope="module")
def pasted(units: dict[str, np.ndarray]) -> PredictedMasks:
    height, width = units["paste/hw"].tolist()
    probs, boxes = torch.from_numpy(units["paste/masks"]), torch.from_numpy(units["paste/boxes"])
    return PredictedMasks(probs, boxes, (height, width))


def unpacked(packed: np.ndarray, *shape: int) -> np.ndarray:
    return np.unpackbits(packed.ravel())[: np.prod(shape)].reshape(shape).astype(bool)


def blobs(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """Bitmaps (n, height, width) of rectangles with holes, some at the picture's border, some empty."""
    masks = np.zeros((n, height, width), np.uint8)
    for mask in masks:
        y, x = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[y[0] : y[1], x[0] : x[1]] = rng.random((y[1] - y[0], x[1] - x[0])) < 0.8
    return masks


def random_boxes(rng: np.random.Generator, n: int, height: int, width: int) -> Tensor:
    """Boxes inside, across and outside the picture; some without extent."""
    start = rng.uniform(-3, [width, height], (n, 2))
    extent = rng.uniform(0, [width, height], (n, 2)) * (rng.random((n, 1)) > 0.1)
    return torch.from_numpy(np.concatenate([start, start + extent], 1).astype(np.float32))


class TestRLE:
    @given(BITMAPS)
    def test_is_that_of_pycocotools(self, bitmap: np.ndarray) -> None:
        expected = coco_mask.encode(np.asfortranarray(bitmap))
        assert rle_encode(bitmap) == {"size": list(bitmap.shape), "counts": expected["counts"].decode()}  # pyright: ignore[reportAttributeAccessIssue]
        for counts in (expected["counts"], expected["counts"].decode()):  # pyright: ignore[reportAttributeAccessIssue]
            rle = {"size": list(bitmap.shape), "counts": counts}
            np.testing.assert_array_equal(rle_decode(rle), bitmap)
            assert rle_area(rle) == bitmap.sum()

    def test_reads_uncompressed_counts(self) -> None:
        assert rle_decode({"size": [2, 3], "counts": [1, 2, 1, 2]}).tolist() == [[0, 1, 1], [1, 0, 1]]

    def test_of_a_large_mask_has_long_counts(self) -> None:
        bitmap = np.zeros((3000, 2000), np.uint8)
        bitmap[10:2990, 5:1990] = 1
        bitmap[:, 700:900] = 1
        assert rle_encode(bitmap)["counts"] == coco_mask.encode(np.asfortranarray(bitmap))["counts"].decode()  # pyright: ignore[reportAttributeAccessIssue]

    @pytest.mark.parametrize(
        "broken",
        [
            {"size": [4, 4], "counts": "0"},  # too few pixels
            {"size": [4, 4], "counts": ""},
            {"size": [4, 4], "counts": "\x7f!"},  # no such characters
            {"size": [4, 4], "counts": "\udc80é"},
            {"size": [4, 4], "counts": "@ooooooooooooooooo"},  # cut off in the middle of a number
            {"size": [4, 4], "counts": [20, -4]},
            {"size": [4, 4], "counts": [17]},
        ],
    )
    def test_that_is_malformed_is_named(self, broken: dict) -> None:
        good = rle_encode(np.ones((4, 4)))
        with pytest.raises(ValueError, match=r"^mask 1: "):
            read_runs([good, broken, good])

    @given(SEEDS)
    @settings(max_examples=30)
    def test_text_noise_is_refused_or_read_but_never_breaks(self, seed: int) -> None:
        text = np.random.default_rng(seed).integers(40, 120, 12).astype(np.uint8).tobytes()
        with contextlib.suppress(ValueError):  # anything else is a bug
            assert rle_decode({"size": [50, 40], "counts": text}).sum() <= 2000


class TestTargets:
    """Claims about `rasterize`: detectron2's results, and its definition where there is no reference."""

    @pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
    def test_polygons_are_detectron2s(
        self, units: dict[str, np.ndarray], library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        masks = InstanceMasks.from_coco(json.loads(str(units["masktarget/polygons_json"])), (90, 120))
        found = masks.rasterize(torch.from_numpy(units["masktarget/rois"]), torch.arange(3), 28)
        np.testing.assert_array_equal(found, unpacked(units["masktarget/polygon28"], 3, 28, 28))

    def test_bitmaps_are_detectron2s(self, units: dict[str, np.ndarray]) -> None:
        masks = InstanceMasks.from_bitmaps(unpacked(units["masktarget/bitmask_full"], 3, 90, 120))
        found = masks.rasterize(torch.from_numpy(units["masktarget/rois"]), torch.arange(3), 28)
        np.testing.assert_array_equal(found, unpacked(units["masktarget/bitmask28"], 3, 28, 28))

    @pytest.mark.parametrize("image", [0, 1])
    def test_of_a_training_step_are_detectron2s(self, shared: Path, image: int) -> None:
        case = np.load(shared / "reference/detectron2/train__mask_rcnn_R_50_FPN_3x.npz")
        polygons = json.loads(str(case[f"gt_img{image}_polygons_json"]))
        rois = torch.from_numpy(case[f"trainA/mask_target_img{image}_boxes"])
        index = box_iou(rois, torch.from_numpy(case[f"gt_img{image}_boxes"])).argmax(1)
        found = InstanceMasks.from_coco(polygons, (800, 1216)).rasterize(rois, index, 28)
        expected = unpacked(case[f"trainA/mask_target_img{image}_packed"], len(rois), 28, 28)
        np.testing.assert_array_equal(found, expected)

    def test_boxes_are_detectron2s(self, units: dict[str, np.ndarray]) -> None:
        polygons = InstanceMasks.from_coco(json.loads(str(units["masktarget/polygons_json"])), (90, 120))
        bitmaps = InstanceMasks.from_bitmaps(unpacked(units["masktarget/bitmask_full"], 3, 90, 120))
        np.testing.assert_array_equal(polygons.tight_boxes(), units["masktarget/boxes_from_polygons"])
        np.testing.assert_array_equal(bitmaps.tight_boxes(), units["masktarget/boxes_from_bitmasks"])

    @given(SEEDS, st.sampled_from([7, 28]))
    @settings(max_examples=40, deadline=None)
    def test_bitmaps_are_roi_align_of_the_whole_picture(self, seed: int, size: int) -> None:
        rng = np.random.default_rng(seed)
        height, width = rng.integers(1, 60, 2).tolist()
        bitmaps = blobs(rng, 4, height, width)
        boxes, index = random_boxes(rng, 12, height, width), torch.from_numpy(rng.integers(0, 4, 12))
        pictures = torch.from_numpy(bitmaps[index, None]).float()
        means = roi_align(pictures, list(boxes[:, None]), size, 1.0, 0, aligned=True)[:, 0]
        found = InstanceMasks.from_bitmaps(bitmaps).rasterize(boxes, index, size)
        clear = (means - 0.5).abs() > 1e-4  # nearer, the order of float32 sums decides
        assert torch.equal(found[clear], (means >= 0.5)[clear])
        assert clear.float().mean() > 0.5

    def test_polygons_and_bitmaps_of_one_image(self) -> None:
        polygons = InstanceMasks.from_coco([POLYGON], (10, 12))
        rle = rle_encode(polygons.to_bitmaps((10, 12))[0])
        mixed = InstanceMasks.from_coco([POLYGON, rle, [], [POLYGON[0], [0, 0, 1, 1]]], (10, 12))
        boxes = torch.tensor([[1.0, 1.0, 10.0, 8.0]]).expand(5, 4)
        found = mixed.rasterize(boxes, torch.tensor([1, 0, 2, 3, 0]), 14)
        assert torch.equal(found[1], polygons.rasterize(boxes[:1], torch.tensor([0]), 14)[0])
        assert torch.equal(found[1], found[4])
        assert torch.equal(found[1], found[3])  # two points are no polygon
        assert not found[2].any()
        assert (found[0] != found[1]).float().mean() < 0.15  # the same shape, drawn on pixels
        assert mixed.to_bitmaps((10, 12))[:2].sum((1, 2)).tolist() == [rle_area(rle)] * 2

    @given(SEEDS, st.sampled_from(["as they are", "mirrored", "turned", "enlarged"]))
    @settings(max_examples=40, deadline=None)
    def test_at_points_is_grid_sample_of_the_whole_picture(self, seed: int, how: str) -> None:
        rng = np.random.default_rng(seed)
        height, width = rng.integers(1, 40, 2).tolist()
        bitmaps = blobs(rng, 4, height, width)
        masks, pictures = InstanceMasks.from_bitmaps(bitmaps), torch.from_numpy(bitmaps).float()
        points = torch.from_numpy(rng.uniform(-3, [width + 3, height + 3], (9, 6, 2)))
        index = torch.from_numpy(rng.integers(-1, 4, 9))
        where = 2 * points / torch.tensor([width, height]) - 1
        read = F.grid_sample(pictures[index][:, None].double(), where[:, None], align_corners=False)[:, 0, 0]
        expected = torch.where(index[:, None] >= 0, read, 0).float()
        if how == "mirrored":
            masks, points[..., 0] = masks.flipped_horizontal(width), width - points[..., 0]
        if how == "turned":  # counterclockwise: x goes up
            masks = masks.rotated90(height, width)
            points = torch.stack([points[..., 1], width - points[..., 0]], dim=2)
        if how == "enlarged":
            masks, points = masks.resized(2.5, 1.5), points * torch.tensor([2.5, 1.5])
        torch.testing.assert_close(masks.at_points(points, index), expected, atol=1e-5, rtol=0)

    def test_at_points_polygons_are_filled_first(self) -> None:
        drawn = InstanceMasks.from_coco([[], POLYGON], (10, 12))
        painted = InstanceMasks.from_bitmaps(drawn.to_bitmaps((10, 12)))
        points, index = torch.rand(2, 50, 2) * 12, torch.tensor([0, 1])
        found = drawn.at_points(points, index)
        assert torch.equal(found, painted.at_points(points, index))
        assert not found[0].any()
        assert found[1].unique().numel() > 10  # between pixels it is neither 0 nor 1
        nothing = InstanceMasks.from_coco([], (10, 12)).at_points(points, torch.tensor([-1, -1]))
        assert torch.equal(nothing, torch.zeros(2, 50))

    def test_none(self) -> None:
        empty = InstanceMasks.from_coco([], (10, 12))
        assert len(empty) == 0
        assert empty.tight_boxes().shape == empty.tight_boxes((0, 0, 5, 5)).shape == (0, 4)
        assert empty.to_bitmaps((10, 12)).shape == (0, 10, 12)
        nothing = torch.zeros(0, dtype=torch.int64)
        assert empty.rasterize(torch.zeros(0, 4), nothing, 28).shape == (0, 28, 28)
        one = InstanceMasks.from_coco([POLYGON], (10, 12))
        assert one.rasterize(torch.zeros(0, 4), nothing, 28).dtype == torch.bool
        assert len(one.select([])) == 0

    def test_bad_rle_is_named_by_its_mask(self) -> None:
        with pytest.raises(ValueError, match=r"^mask 1: "):
            InstanceMasks.from_coco([POLYGON, {"size": [3, 3], "counts": [4]}], (10, 12))


class TestTransforms:
    """Claims that each transform of masks gives the transform of their full bitmaps."""

    @given(SEEDS, st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_are_those_of_the_picture(self, seed: int, drawn: bool) -> None:
        rng = np.random.default_rng(seed)
        height, width = rng.integers(4, 40, 2).tolist()
        if drawn:  # vertices on the pixel grid, where mirrored fills agree up to the outline
            corners = rng.integers(0, [width, height], (3, 2, 2))
            rings = [[a, b, c, b, c, d, a, d] for (a, b), (c, d) in corners.tolist() if a != c and b != d]
            masks = InstanceMasks.from_coco([[r] for r in rings], (height, width))
        else:
            masks = InstanceMasks.from_bitmaps(blobs(rng, 3, height, width))
        bitmaps = masks.to_bitmaps((height, width))
        for step in rng.integers(0, 6, 4):
            height, width = bitmaps.shape[1:]
            if step == 0:
                masks, bitmaps = masks.flipped_horizontal(width), bitmaps[:, :, ::-1]
            elif step == 1:
                masks, bitmaps = masks.flipped_vertical(height), bitmaps[:, ::-1]
            elif step == 2:
                turns = int(rng.integers(0, 4))
                masks = masks.rotated90(height, width, turns)
                bitmaps = np.rot90(bitmaps, turns, axes=(1, 2))
            elif step == 3 and min(height, width) > 3:
                masks, bitmaps = masks.shifted(-1, -2), bitmaps[:, 2:, 1:]
            elif step == 4:
                masks, bitmaps = masks.resized(2, 3), bitmaps.repeat(3, 1).repeat(2, 2)
            elif step == 5 and len(masks):
                order = rng.permutation(len(masks))
                masks, bitmaps = masks.select(order), bitmaps[order]
        found = pickle.loads(pickle.dumps(masks)).to_bitmaps(bitmaps.shape[1:])
        np.testing.assert_array_equal(found, bitmaps)

    @given(SEEDS)
    @settings(max_examples=40, deadline=None)
    def test_boxes_in_a_window_are_those_of_the_cut_bitmap(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        bitmaps = blobs(rng, 3, 20, 30)
        x, y = np.sort(rng.integers(0, 31, 2)).tolist(), np.sort(rng.integers(0, 21, 2)).tolist()
        masks = InstanceMasks.from_bitmaps(bitmaps).flipped_horizontal(30).resized(2, 2)
        window = (2 * x[0], 2 * y[0], 2 * x[1], 2 * y[1])
        for found, bitmap in zip(masks.tight_boxes(window).numpy(), bitmaps[:, :, ::-1], strict=True):
            rows, columns = np.nonzero(bitmap[y[0] : y[1], x[0] : x[1]])
            expected = np.zeros(4)
            if len(rows):
                expected[:2] = columns.min() + x[0], rows.min() + y[0]
                expected[2:] = columns.max() + x[0] + 1, rows.max() + y[0] + 1
            np.testing.assert_array_equal(found, 2 * expected)

    @given(SEEDS)
    @settings(max_examples=40, deadline=None)
    def test_boxes_of_polygons_in_a_window_hold_what_is_inside(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ring = rng.uniform(-10, 40, (int(rng.integers(3, 8)), 2))
        x, y = np.sort(rng.uniform(0, 30, 2)), np.sort(rng.uniform(0, 30, 2))
        masks = InstanceMasks.from_coco([[ring.ravel().tolist()]], (30, 30))
        box = masks.tight_boxes((x[0], y[0], x[1], y[1]))[0].numpy()
        grid = np.stack(np.meshgrid(np.linspace(*x, 120), np.linspace(*y, 120)), -1).reshape(-1, 2)  # pyright: ignore[reportCallIssue]
        inside = np.zeros(len(grid), bool)
        for a, b in zip(ring, np.roll(ring, -1, 0), strict=True):
            with np.errstate(divide="ignore"):
                at = a[0] + (grid[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
            inside ^= ((a[1] > grid[:, 1]) != (b[1] > grid[:, 1])) & (at > grid[:, 0])
        if not inside.any():  # a sliver may lie between the points of the grid
            return
        low, high = grid[inside].min(0), grid[inside].max(0)
        assert (box[:2] <= low + 1e-4).all()
        assert (box[2:] >= high - 1e-4).all()
        assert (box >= np.array([x[0], y[0]] * 2) - 1e-4).all()
        assert (box <= np.array([x[1], y[1]] * 2) + 1e-4).all()

    def test_box_of_a_cut_triangle(self) -> None:
        triangle = InstanceMasks.from_coco([[[0, 0, 10, 0, 0, 10]]], (20, 20))
        assert triangle.tight_boxes((2, 4, 20, 20)).tolist() == [[2, 4, 6, 8]]
        assert triangle.tight_boxes((6, 6, 20, 20)).tolist() == [[0, 0, 0, 0]]
        assert triangle.tight_boxes((1, 1, 3, 3)).tolist() == [[1, 1, 3, 3]]  # no edge inside

    def test_areas(self) -> None:
        masks = InstanceMasks.from_coco(
            [[[0, 0, 10, 0, 0, 10]], {"size": [4, 5], "counts": [3, 7, 10]}], (20, 20)
        )
        assert masks.areas().tolist() == [50, 7]
        assert masks.resized(2, 3).rotated90(60, 40).areas().tolist() == [300, 42]

    def test_targets_follow_the_map_without_resampling(self) -> None:
        rng = np.random.default_rng(0)
        masks = InstanceMasks.from_bitmaps(blobs(rng, 3, 30, 40))
        boxes, index = torch.tensor([[4.0, 3.0, 25.0, 22.0]] * 3), torch.arange(3)
        target = masks.rasterize(boxes, index, 14)
        assert torch.equal(masks.resized(4, 4).rasterize(4 * boxes, index, 14), target)
        flipped = torch.tensor([[15.0, 3.0, 36.0, 22.0]] * 3)
        assert torch.equal(masks.flipped_horizontal(40).rasterize(flipped, index, 14).flip(2), target)
        turned = torch.tensor([[3.0, 15.0, 22.0, 36.0]] * 3)
        assert torch.equal(masks.rotated90(30, 40).rasterize(turned, index, 14), target.rot90(1, (1, 2)))


class TestPaste:
    def test_is_detectron2s(self, units: dict[str, np.ndarray], pasted: PredictedMasks) -> None:
        expected = unpacked(units["paste/out_packed"], *pasted.shape)
        np.testing.assert_array_equal(np.asarray(pasted), expected)
        np.testing.assert_array_equal(pasted.areas(), units["paste/out_areas"])

    def test_rle_is_that_of_the_full_mask(
        self, pasted: PredictedMasks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for strip in (1 << 18, 100):
            monkeypatch.setattr("maskrcnn.masks.paste.STRIP_PIXELS", strip)
            for mask, rle in zip(np.asarray(pasted), pasted.to_rle(), strict=True):
                expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                assert rle == {"size": expected["size"], "counts": expected["counts"].decode()}  # pyright: ignore[reportAttributeAccessIssue]

    @given(SEEDS)
    @settings(max_examples=40, deadline=None)
    def test_rle_of_any_boxes(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        height, width = rng.integers(1, 50, 2).tolist()
        probs = torch.from_numpy(rng.random((5, 7, 7), np.float32).round(1))  # many at the threshold
        masks = PredictedMasks(probs, random_boxes(rng, 5, height, width), (height, width))
        for mask, rle in zip(masks.numpy(), masks.to_rle(), strict=True):
            np.testing.assert_array_equal(rle_decode(rle), mask)

    def test_large_crops_are_interpolated_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pieces change no pixel; probabilities that are all at the threshold are inside but for the rounding."""
        rng = np.random.default_rng(0)
        probs = torch.from_numpy(np.stack([rng.random((28, 28)), rng.random((28, 28)).round(1)])).float()
        boxes = torch.tensor([[-40.3, 10.2, 500.9, 300.0], [3, 3, 290, 600]])
        masks = PredictedMasks(probs, boxes, (330, 450))
        whole = np.asarray(masks)
        for product in (1, 1 << 40):
            monkeypatch.setattr("maskrcnn.masks.paste.PRODUCT", product)
            assert (np.asarray(masks) != whole).sum() <= 2  # where a sum's order decides
        y, x = np.mgrid[20:300, 60:400] + 0.5
        grid = np.stack([(x + 40.3) / 541.2 * 2 - 1, (y - 10.2) / 289.8 * 2 - 1], 2)[None].astype(np.float32)
        sampled = F.grid_sample(probs[:1, None], torch.from_numpy(grid), align_corners=False)[0, 0]
        sure = (sampled - 0.5).abs().numpy() > 1e-4
        np.testing.assert_array_equal(whole[0, 20:300, 60:400][sure], (sampled >= 0.5).numpy()[sure])

    def test_looks_like_an_array(self, pasted: PredictedMasks) -> None:
        whole = np.asarray(pasted)
        assert whole.dtype == bool
        assert pasted.shape == whole.shape
        assert torch.as_tensor(np.asarray(pasted)).dtype == torch.bool
        np.testing.assert_array_equal(np.stack(list(pasted)), whole)
        order = torch.tensor([3, 1])
        for index in (
            order,
            order.tolist(),
            slice(2, 9, 3),
            whole.any((1, 2)),
            torch.from_numpy(whole.any((1, 2))),
        ):
            chosen = index.tolist() if isinstance(index, Tensor) else index
            np.testing.assert_array_equal(np.asarray(pasted[index]), whole[chosen])  # pyright: ignore[reportArgumentType, reportCallIssue]
        np.testing.assert_array_equal(pasted[-2], whole[-2])
        with pytest.raises(IndexError, match=f"numbers below {len(whole)}, got {len(whole)}"):
            pasted[len(whole)]
        assert len(pasted[[]]) == 0
        assert np.asarray(pasted[[]]).shape == (0, *pasted.image_size)
        assert pasted[[]].to_rle() == []
        crop, (x, y) = pasted.crop(0)
        np.testing.assert_array_equal(whole[0, y : y + crop.shape[0], x : x + crop.shape[1]], crop)
        assert crop.sum() == whole[0].sum()

    def test_half_precision_on_the_way_in(self) -> None:
        masks = PredictedMasks(
            torch.full((1, 28, 28), 0.9, dtype=torch.bfloat16), torch.tensor([[2.0, 2, 8, 8]]), (9, 9)
        )
        assert masks.areas().tolist() == [36]

    def test_boxes_that_are_none(self) -> None:
        boxes = torch.tensor([[5.0, 5, 5, 9], [float("nan")] * 4, [50, 50, 60, 60], [-9, -9, -4, -4]])
        masks = PredictedMasks(torch.ones(4, 28, 28), boxes, (20, 30))
        assert masks.areas().tolist() == [0] * 4
        assert [rle_area(r) for r in masks.to_rle()] == [0] * 4
