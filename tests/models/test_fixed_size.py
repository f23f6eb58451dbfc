"""The fixed-size form: no shape depends on data, so that a model can be traced, and it says what the free form says."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from maskrcnn.export.graph import Graph
from maskrcnn.models import box_head
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.structures import GroundTruth, ImageBatch
from tests.models.tiny import objects, pictures, tiny

FPN = "mask_rcnn_R_50_FPN_1x"
NAMES = (
    FPN,
    "mask_rcnn_R_50_FPN_3x_gn",
    "cascade_mask_rcnn_R_50_FPN_1x",
    "keypoint_rcnn_R_50_FPN_1x",
    "mask_rcnn_R_50_C4_1x",
    "mask_rcnn_R_50_DC5_1x",
    "pointrend_rcnn_R_50_FPN_1x_coco",
    f"{FPN} federated",
    "cascade_mask_rcnn_R_50_FPN_1x federated",
)
SIZES = [(61, 90), (80, 96)]


def made(name: str, depth: int | None = None) -> MaskRCNN:
    """Tiny model of a preset; with sigmoid scores and a federated loss of three of four labels where `name` says so."""
    model = tiny(name.removesuffix(" federated"), depth)
    if name.endswith(" federated"):
        head = model.config.box_head
        head.scores, head.federated_classes, head.class_image_counts = "sigmoid", 3, (2, 1, 1)
    return model


def fixed(name: str, depth: int | None = None) -> MaskRCNN:
    model = made(name, depth)
    model.fixed_size = True
    return model


def learnt(model: MaskRCNN) -> tuple[ImageBatch, list[GroundTruth]]:
    """Batch of two pictures with two objects and one."""
    boxes = [[20.0, 30, 50, 50], [10, 20, 80, 60]]
    return model.preprocess(pictures(*SIZES)), [
        objects(boxes, SIZES[0]),
        objects(boxes[:1], SIZES[1], seed=1),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_shape_depends_on_data(name: str) -> None:
    """A training step with its gradients, and inference on fake tensors of the CPU and of a GPU: no operator asks for
    a value, as `nonzero` would.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = fixed(name).train()
        losses = model(*learnt(model))
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        for device in ("cpu", "cuda"):
            with torch.device(device):
                graph = Graph(made(name).eval())
                found = graph(torch.rand(2, 3, 96, 128), torch.tensor([[96, 128], [80, 100]]))
            assert {x.device.type for x in found.values()} == {device}
            assert found["boxes"].shape == (2, 100, 4)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_free_form_says(name: str) -> None:
    free = made(name)
    model = copy.deepcopy(free)
    model.fixed_size = True
    batch, targets = learnt(free)
    wanted, losses = free(batch, targets), model(batch, targets)
    for loss, value in wanted.items():
        torch.testing.assert_close(losses[loss], value, rtol=1e-5, atol=1e-6)
    for one in (wanted, losses):
        torch.stack(list(one.values())).sum().backward()
    for (name, a), b in zip(free.named_parameters(), model.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(
                b.grad, a.grad, rtol=1e-3, atol=1e-3 * float(a.grad.std() + 1e-5), msg=name
            )
        assert (a.grad is None) == (b.grad is None)
    for one, other in zip(free.eval().detect(batch, 0.0), model.eval().detect(batch, 0.0), strict=True):
        torch.testing.assert_close(other.boxes, one.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(other.scores, one.scores, rtol=0, atol=1e-5)
        assert torch.equal(other.labels, one.labels)
        if one.masks is not None:
            assert other.masks is not None
            torch.testing.assert_close(other.masks.probs, one.masks.probs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [FPN, f"{FPN} federated"])
def test_it_compiles_without_a_break(name: str) -> None:
    """Inference and the losses, each as one graph (`fullgraph=True`)."""
    model = fixed(name, depth=18).eval()
    images, sizes = torch.rand(2, 3, 96, 128) * 255, torch.tensor([[96, 128], [80, 100]])
    graph = Graph(model)
    with torch.no_grad():
        wanted = graph(images, sizes)
        found = torch.compile(graph, backend="eager", fullgraph=True)(images, sizes)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    model.train()
    batch, targets = learnt(model)

    def step() -> Tensor:
        return torch.stack(list(model(batch, targets).values())).sum()

    torch.testing.assert_close(torch.compile(step, backend="eager", fullgraph=True)(), step())


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(box_head, "MAX_CANDIDATES", 7)
    monkeypatch.setattr("maskrcnn.models.mask_rcnn.MAX_CANDIDATES", 7)
    model = fixed(FPN).eval()
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        found = model.detect(learnt(model)[0], 0.0)
    assert max(len(f) for f in found) <= 7
    assert "boxes of one picture are above the score threshold: the best 7 count" in caplog.text


def test_a_place_without_extent_pools_zeros_whatever_a_runtime_makes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenVINO divides by a RoI's extent: not a number in empty places spoilt the ranges of 8 bits."""
    model = fixed(FPN)
    batch, _ = learnt(model)
    features = model.roi_features(model.backbone(batch.pixels))
    align = features._align

    def divides(i: int, rois: Tensor, size: int) -> Tensor:
        none = (rois[:, 3:] <= rois[:, 1:3]).any(1)
        return torch.where(none[:, None, None, None], torch.nan, align(i, rois, size))

    monkeypatch.setattr(features, "_align", divides)
    boxes = torch.tensor([[[20.0, 30, 50, 50], [0, 0, 0, 0]], [[5, 5, 60, 60], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, False], [True, False]])
    pooled = features.pool(features.rois(boxes, valid), 7)
    assert pooled.isfinite().all()
    assert pooled[0].any()
    assert not pooled[1].any()
