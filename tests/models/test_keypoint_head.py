"""The key-point branch: its parts against detectron2's (`units.npz`) and by hand, its loss, the model with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn import presets
from maskrcnn.config import KeypointHeadConfig, MaskHeadConfig, ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.build import build_model
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.heatmaps import decode_heatmaps, has_point_inside, heatmap_cells
from maskrcnn.structures import GroundTruth
from tests.references import read_npz


@pytest.fixture(scope="module")
def units(shared: Path) -> dict[str, Tensor]:
    units = read_npz(shared / "reference" / "detectron2" / "units.npz")
    return {key[4:]: torch.from_numpy(value) for key, value in units.items() if key.startswith("kpt/")}


class TestHeatmaps:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 2e-5)])
    def test_are_decoded_as_by_the_original(
        self, units: dict[str, Tensor], dtype: torch.dtype, tolerance: float
    ) -> None:
        # In float64 what is left is the original's own float32.
        found = decode_heatmaps(units["heatmaps"].to(dtype), units["rois"].to(dtype))
        expected = units["out_x_y_logit_score"][..., [0, 1, 3]]
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=tolerance)

    def test_cells_are_the_originals(self, units: dict[str, Tensor]) -> None:
        cells, counts = heatmap_cells(units["gt"], units["rois"], 56)
        assert (counts == units["gt_valid"].bool()).all()
        assert (cells[counts] == units["gt_label"][counts]).all()

    def test_a_peak_comes_back_where_it_was(self) -> None:
        box = torch.tensor([[10.0, 20.0, 66.0, 132.0]])  # a cell is 1 x 2 pixels
        point = torch.tensor([[[30.5, 61.0, 2.0]]])
        cell, _ = heatmap_cells(point, box, 56)
        logits = torch.full((1, 1, 56 * 56), -20.0)
        logits[0, 0, cell] = 5.0
        found = decode_heatmaps(logits.view(1, 1, 56, 56), box)[0, 0]
        assert (found[:2] - point[0, 0, :2]).abs().max() <= 0.5
        assert 0 < found[2] < 1

    @pytest.mark.parametrize("side", [0.0, 0.3, 1.0, 700.5])
    def test_of_boxes_of_any_size_are_decoded_inside_them(self, side: float) -> None:
        box = torch.tensor([[5.0, 7.0, 5.0 + side, 7.0 + side]])
        points = decode_heatmaps(torch.randn(1, 3, 56, 56), box)
        assert points.isfinite().all()
        # A box under a pixel counts as one of a pixel.
        assert ((points[..., :2] >= box[0, :2]) & (points[..., :2] <= box[0, :2] + max(side, 1))).all()

    def test_as_steep_as_an_untrained_networks_have_finite_scores(self) -> None:
        points = decode_heatmaps(1e4 * torch.randn(1, 17, 56, 56), torch.tensor([[0.0, 0.0, 300.0, 200.0]]))
        assert points.isfinite().all()

    def test_of_no_boxes(self) -> None:
        assert decode_heatmaps(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 3)

    def test_cells_by_hand(self) -> None:
        box = torch.tensor([[0.0, 0.0, 8.0, 4.0]])
        points = [(0, 0, 1), (7.9, 3.9, 2), (8, 4, 1), (8.1, 2, 2), (4, -0.1, 2), (4, 2, 0)]
        cells, counts = heatmap_cells(torch.tensor([points]).float(), box, 4)
        assert counts.tolist() == [[True, True, True, False, False, False]]
        assert cells[0, :3].tolist() == [0, 15, 15]  # the right and lower edges are the last cells

    def test_rois_take_part_with_a_visible_point_inside(self) -> None:
        boxes = torch.tensor([[0.0, 0.0, 8.0, 4.0]]).repeat(4, 1)
        points = torch.tensor([[[8.0, 4.0, 1]], [[8.1, 4, 2]], [[4, 2, 0]], [[4, 2, 2]]])
        assert has_point_inside(boxes, points).tolist() == [True, False, False, True]


def target(keypoints: Tensor) -> GroundTruth:
    n = len(keypoints)
    return GroundTruth(torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64), keypoints=keypoints)


def rois(*of_images: tuple[list[list[float]], list[int]]) -> SampledRoIs:
    """Make objects' RoIs of every image's boxes and the objects that they are of."""
    made = RoIs.of([torch.tensor(boxes).reshape(-1, 4) for boxes, _ in of_images])
    objects = torch.tensor([i for _, index in of_images for i in index], dtype=torch.int64)
    labels = made.spread(torch.ones_like(objects)) - 1
    return SampledRoIs(made.boxes, labels, made.spread(objects), made.boxes)


class TestLoss:
    @pytest.fixture
    def head(self) -> KeypointHead:
        torch.manual_seed(0)
        return KeypointHead(4, KeypointHeadConfig(num_keypoints=2, num_convs=1, conv_channels=8))

    @pytest.fixture
    def features(self) -> RoIFeatures:
        return RoIFeatures([torch.randn(2, 4, 16, 16)], (4,))

    def test_is_the_mean_over_visible_points_inside(self, head: KeypointHead, features: RoIFeatures) -> None:
        keypoints = torch.tensor([[[10.0, 12, 2], [50, 50, 2]], [[3, 3, 1], [4, 9, 0]]])
        boxes = [[0.0, 0, 32, 28], [2, 1, 60, 60], [20, 20, 60, 60]]
        # The first RoI of the first image has its point 0 inside; the second both; the third point 1.
        foreground = rois((boxes, [0, 0, 0]), (boxes[:1], [1]))
        loss = head.loss(features, foreground, [target(keypoints), target(keypoints)])["loss_keypoint"]
        logits = head(features, features.rois(foreground.boxes, foreground.valid)).flatten(2)
        expected = []
        for roi, point, x, y, (x0, y0, x1, y1) in (
            (0, 0, 10, 12, boxes[0]),
            (1, 0, 10, 12, boxes[1]),
            (1, 1, 50, 50, boxes[1]),
            (2, 1, 50, 50, boxes[2]),
            (3, 0, 3, 3, boxes[0]),
        ):
            cell = int((y - y0) / (y1 - y0) * 56) * 56 + int((x - x0) / (x1 - x0) * 56)
            expected.append(F.cross_entropy(logits[roi, point][None], torch.tensor([cell])))
        assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)

    @pytest.mark.parametrize("boxes", [[], [[0.0, 0, 32, 28]]])
    def test_without_points_is_zero_and_reaches_every_parameter(
        self, head: KeypointHead, features: RoIFeatures, boxes: list[list[float]]
    ) -> None:
        foreground = rois((boxes, [0] * len(boxes)), ([], []))
        unseen = target(torch.tensor([[[10.0, 12, 0], [90, 90, 2]]]))
        loss = head.loss(features, foreground, [unseen, unseen])["loss_keypoint"]
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())

    def test_of_a_new_head_is_that_of_guessing(self, features: RoIFeatures) -> None:
        head = KeypointHead(4, KeypointHeadConfig(num_keypoints=2, num_convs=0))
        torch.nn.init.zeros_(head.deconv.weight)
        points = target(torch.tensor([[[10.0, 12, 2], [12, 9, 2]]]))
        loss = head.loss(features, rois(([[0.0, 0, 32, 28]], [0]), ([], [])), [points, points])
        assert loss["loss_keypoint"].item() == pytest.approx(math.log(56 * 56), rel=1e-6)


class TestModel:
    def test_can_have_masks_and_key_points(self) -> None:
        config = presets.get("keypoint_rcnn_R_50_FPN_3x", tiny=True).model
        config.mask_head = MaskHeadConfig(conv_channels=16)
        config.box_head.score_threshold = 0.0
        torch.manual_seed(0)
        model = build_model(config).eval()
        picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
        found = model.predict(picture)
        assert found.keypoints is not None
        assert found.masks is not None
        assert found.keypoints.shape == (len(found), 17, 3)
        assert len(found) > 0
        inside = (found.keypoints[..., :2] >= found.boxes[:, None, :2] - 1) & (
            found.keypoints[..., :2] <= found.boxes[:, None, 2:] + 1
        )
        assert inside.all()
        entry = found.to_coco()[0]
        assert len(entry["keypoints"]) == 51
        assert entry["keypoints"][0] == pytest.approx(found.keypoints[0, 0, 0].item() - 0.5)
        assert found[:1].skeleton == found.skeleton == config.keypoint_head.skeleton  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("setting", "value", "message"),
        [
            ("num_keypoints", 0, "num_keypoints: expected at least 1, got 0"),
            ("names", ("nose",), "names: expected one a key point, 17, or none, got 1"),
            ("flip_pairs", ((1, 17),), r"flip_pairs: expected numbers of the 17 key points, from 0, got \[1, 17\]"),
            ("skeleton", ((-1, 2),), r"skeleton: expected numbers of the 17 key points, from 0, got \[-1, 2\]"),
        ],
    )  # fmt: skip
    def test_refuses_settings_that_contradict_each_other(
        self, setting: str, value: object, message: str
    ) -> None:
        config = ModelConfig(name="", keypoint_head=KeypointHeadConfig())
        setattr(config.keypoint_head, setting, value)
        with pytest.raises(UserError, match=f"model.keypoint_head.{message}"):
            build_model(config)
