"""Details in which MMDetection's heads differ, by hand where the references cannot tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maskrcnn import presets
from maskrcnn.masks import InstanceMasks
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.build import build_model
from maskrcnn.models.places import of_image
from maskrcnn.models.rpn import RPN
from maskrcnn.ops.roi_align import roi_align
from maskrcnn.structures import GroundTruth
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.mmdetection import from_mmdetection, is_mmdetection, to_mmdetection
from tests.models.tiny import proposals

NAME = "mask_rcnn_internimage_t_fpn_1x_coco"


def truth(*boxes: list[float]) -> GroundTruth:
    return GroundTruth(torch.tensor(boxes), torch.arange(len(boxes)))


def test_anchors_on_padding_learn_nothing() -> None:
    """An image of 40 x 50 pads to 64 x 64 by itself, though its batch is 64 x 128 large."""
    model = presets.get(NAME).model
    rpn = RPN(4, (4, 8, 16, 32, 64), model.rpn, model.rules)
    features = [torch.zeros(1, 4, 64 // s, 128 // s) for s in rpn.strides]
    anchors = torch.cat(rpn.anchors(features))
    labels = rpn.match(anchors, torch.tensor([40, 50]), truth([5.0, 5, 45, 35])).labels
    x = (anchors[:, 0] + anchors[:, 2]) / 2
    assert (labels[x > 63] == -1).all()
    assert (labels[x < 63] == 0).any()
    assert (labels == 1).any()
    rpn.rules.ignore_padding = False
    assert (rpn.match(anchors, torch.tensor([40, 50]), truth([5.0, 5, 45, 35])).labels[x > 63] == 0).all()


def test_the_normaliser_counts_the_anchors_that_there_were() -> None:
    model = presets.get(NAME).model
    config, rules = model.rpn, model.rules
    rpn = RPN(4, (4, 8, 16, 32, 64), config, rules)
    features = [torch.randn(1, 4, max(1, 64 // s), max(1, 64 // s)) for s in rpn.strides]
    config.num_samples = 10_000  # more than the 1,000 anchors
    target = truth([5.0, 5, 45, 35])
    _, sampled = rpn.loss(features, torch.tensor([[64, 64]]), [target])
    rules.normalize_by = "num_samples"
    _, wanted = rpn.loss(features, torch.tensor([[64, 64]]), [target])
    labels = rpn.match(torch.cat(rpn.anchors(features)), torch.tensor([64, 64]), target).labels
    factor = 10_000 / int((labels >= 0).sum())
    for key in sampled:
        torch.testing.assert_close(sampled[key], wanted[key] * factor)


def test_objects_join_the_rois_as_their_own() -> None:
    """Even where two have one box: each is taught as itself, not both as the first."""
    model = build_model(presets.get(NAME, tiny=True).model)
    target = truth([10.0, 10, 50, 50], [10.0, 10, 50, 50])
    none = proposals(torch.zeros(0, 4))
    rois = model.box_head.sample(none, [target])
    assert sorted(rois.labels[0].tolist()) == [0, 1]
    model.box_head.rules.best_reassigns = False  # pyright: ignore[reportAttributeAccessIssue]
    rois = model.box_head.sample(none, [target])
    assert rois.labels[0].tolist() == [0, 0]


def test_overlap_is_measured_in_the_picture() -> None:
    """Two boxes beside each other and one below: a picture that is resized unevenly does not change overlaps, so the
    result is the same to the last box however the sizes are rounded."""
    model = build_model(presets.get(NAME, tiny=True).model).eval()
    head = model.box_head
    assert isinstance(head, BoxHead)
    boxes = torch.tensor([[0.0, 0, 40, 40], [10.0, 0, 50, 40], [0.0, 50, 40, 90]])
    scores = torch.zeros(3, 81)
    scores[:, 7] = torch.tensor([0.9, 0.8, 0.7])
    deltas = torch.zeros(3, 80, 4)
    for original in ((100, 100), (37, 250)):
        sizes = torch.tensor([[100, 100]]), None, torch.tensor([original])
        found = of_image(head.detect(boxes[None], scores[None], deltas[None], *sizes), 0)
        assert found.proposal_index.tolist() == [0, 2]
        assert torch.equal(found.boxes, boxes[[0, 2]])  # in the network's pixels all the same


def test_polygons_are_filled_before_they_are_read() -> None:
    """A thin triangle that covers the centres of no pixel inside the RoI: as a polygon drawn in the RoI's frame it
    shows, as pixels it is what RoIAlign makes of the picture's own mask."""
    polygons = [[[3.0, 3, 27, 5, 20, 28]], [[1.0, 1, 9, 1, 9, 9], [20.0, 20, 30, 20, 30, 30]], []]
    masks = InstanceMasks.from_coco(polygons, (40, 36))
    whole = masks.to_bitmaps((40, 36))
    filled = masks.filled()
    assert np.array_equal(filled.to_bitmaps((40, 36)), whole)
    boxes = torch.tensor([[2.2, 1.7, 25.0, 27.3], [0.0, 0.0, 31.0, 31.0], [2.0, 2.0, 9.0, 9.0]])
    index = torch.tensor([0, 1, 2])
    rois = torch.cat([index[:, None].float(), boxes], dim=1)
    expected = roi_align(torch.from_numpy(whole)[:, None].float(), rois, 14, 1.0, 0, True)[:, 0] >= 0.5
    assert torch.equal(filled.rasterize(boxes, index, 14), expected)
    assert not torch.equal(masks.rasterize(boxes, index, 14), expected)


def test_polygons_over_the_edge_are_cut_there() -> None:
    masks = InstanceMasks.from_coco(
        [[[-5.0, -5, 10, -5, 10, 10, -5, 10]], [[30.0, 30, 60, 30, 60, 60]]], (40, 36)
    )
    assert np.array_equal(masks.filled().to_bitmaps((40, 36)), masks.to_bitmaps((40, 36)))


def test_filled_masks_follow_the_picture() -> None:
    masks = (
        InstanceMasks.from_coco([[[3.0, 3, 27, 5, 20, 28]]], (40, 36)).resized(2, 2).flipped_horizontal(72)
    )
    boxes, index = torch.tensor([[20.0, 4.0, 68.0, 60.0]]), torch.tensor([0])
    picture = torch.from_numpy(masks.filled().to_bitmaps((80, 72)))[:, None].float()
    expected = roi_align(picture, torch.cat([torch.zeros(1, 1), boxes], 1), 28, 1.0, 0, True)[:, 0] >= 0.5
    assert (masks.filled().rasterize(boxes, index, 28) != expected).float().mean() < 0.03


def test_a_container_of_the_runner_is_read(tmp_path: Path) -> None:
    """state_dict beside meta and the optimiser, names with `module.` in front, counters of batch norms."""
    config = presets.get("mask_rcnn_deit_adapter_tiny_fpn_1x_coco", tiny=True).model
    model, other = build_model(config), build_model(config)
    state = {f"module.{to_mmdetection(n)}": value for n, value in model.state_dict().items()}
    path = tmp_path / "epoch_12.pth"
    torch.save(
        {"meta": {"epoch": 12, "CLASSES": ("a",)}, "state_dict": state, "optimizer": {"state": {}}}, path
    )
    file = read_weights(path)
    assert file.kind == "mmdetection"
    assert file.num_classes == 80
    assert load_weights(other, file) == []
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, other.state_dict()[name]), name


def test_names_go_there_and_back() -> None:
    for name, top_down in ((NAME, True), ("mask_rcnn_deit_adapter_small_3x_coco", False)):
        with torch.device("meta"):
            model = build_model(presets.get(name, tiny=True).model)
        theirs = [to_mmdetection(n, pyramid=top_down) for n in model.state_dict()]
        assert [from_mmdetection(n) for n in theirs] == list(model.state_dict())
        assert all(n.startswith(("backbone.", "neck.", "rpn_head.", "roi_head.")) for n in theirs)
        assert is_mmdetection(theirs)
        assert not is_mmdetection(model.state_dict())
