"""torchvision's detectors: the same weights give the same detections here, and go back as they came."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, resnet50
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn import zoo
from maskrcnn.backbones.layers import FrozenBatchNorm
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.masks import PredictedMasks, whole_pixel_boxes
from maskrcnn.models.places import RoIs, of_image
from maskrcnn.models.predictor import Predictor
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.torchvision import from_torchvision, to_torchvision
from tests.models.tiny import proposals as as_proposals
from tests.parity import Parity

NAMES = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn")
# Factors on the class scores for which random weights find a few dozen objects.
SCALES = {"maskrcnn_resnet50_fpn": 9.0, "maskrcnn_resnet50_fpn_v2": 8.0, "keypointrcnn_resnet50_fpn": 3.0}
SIZES = (256, 400)  # shortest and longest side: P6 has an odd share of the padded width


@cache
def theirs(name: str) -> Any:
    """Make torchvision's model with random weights and statistics, at a small input size."""
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=None).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif key.endswith("running_mean"):
                value.normal_(std=0.1)
        for block in model.backbone.fpn.layer_blocks:  # features of a size that trained ones have
            block[-1].weight.mul_(0.02)
        model.rpn.head.cls_logits.weight.mul_(20)
        model.rpn.head.bbox_pred.weight.mul_(5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(SCALES[name])
    model.transform.min_size, model.transform.max_size = SIZES[:1], SIZES[1]
    return model


def ours(path: Path, name: str) -> Predictor:
    model = zoo.restore(name, path)
    model.config.input.min_size, model.config.input.max_size = SIZES
    return model.eval()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (15, 21, 3)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).permute(2, 0, 1)[None], (300, 431), mode="bicubic"
    )
    return np.ascontiguousarray(smooth[0].permute(1, 2, 0).clamp(0, 255).numpy().astype(np.uint8))


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def as_theirs(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1) / 255


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_same_detections(name: str, picture: np.ndarray, tmp_path: Path, parity: Parity) -> None:
    torch.save(theirs(name).state_dict(), tmp_path / "a.pth")
    model = ours(tmp_path / "a.pth", name)
    with torch.no_grad():
        want = theirs(name)([as_theirs(picture)])[0]
    found = model.predict(picture)
    assert len(want["scores"]) == len(found)
    assert len(found) > 0
    # By class and place: where scores are nearly equal, their order is not ours to keep.
    distance = (found.boxes[:, None] - want["boxes"]).abs().amax(2)
    distance[found.labels[:, None] != want["labels"] - 1] = torch.inf
    nearest, match = distance.min(1)
    assert len(match.unique()) == len(found)
    case = "torchvision, 256x367, fp32"
    parity(name, case, "final boxes", nearest.max().item(), 0.02, "px")
    parity(name, case, "scores", difference(found.scores, want["scores"][match]), 5e-4)
    if found.masks is not None:
        masks, pasted = found.masks.numpy(), want["masks"][match, 0].numpy() >= 0.5
        parity(name, case, "mask pixels", (masks != pasted).sum() / pasted.sum(), 1e-4, "of all")
    if found.keypoints is not None:
        places = difference(found.keypoints[..., :2], want["keypoints"][match, :, :2])
        parity(name, case, "final key points", places, 0.05, "px")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_stage_is_exact(name: str, picture: np.ndarray, parity: Parity) -> None:
    """In float64, each stage on torchvision's own input to it."""
    their = theirs(name).double()
    try:
        model: Any = zoo.build(name).double().eval()
        model.load_state_dict(from_torchvision(their.state_dict()), strict=False)

        def exact(stage: str, ours: Tensor, want: Tensor) -> None:
            parity(name, "torchvision, 256x367, fp64", stage, difference(ours, want), 1e-9)

        images, _ = their.transform([as_theirs(picture).double()])
        size: tuple[int, int] = tuple(images.image_sizes[0])
        assert resize_size(300, 431, *SIZES, resize="torchvision") == size
        resized = torch.from_numpy(resize_image(picture, size, "torchvision")).permute(2, 0, 1)
        batch = model.preprocess([resized])
        torch.testing.assert_close(batch.pixels, images.tensors, atol=3e-4, rtol=0)  # resized in float32
        levels = their.backbone(images.tensors)
        maps = model.backbone(images.tensors)
        for level, want in zip(maps, levels.values(), strict=True):
            exact("features", level, want)
        proposals = their.rpn(images, levels)[0]
        exact("proposals", of_image(model.rpn(maps, torch.tensor([size])), 0).boxes, proposals[0])
        features, heads = model.roi_features(maps), their.roi_heads
        pooled = heads.box_roi_pool(levels, proposals, images.image_sizes)
        exact("RoI features", features.pool(RoIs.of(proposals), 7), pooled)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        our_logits, our_deltas = model.box_head.predict_rois(features, RoIs.of(proposals))
        exact("class logits", our_logits, logits.roll(-1, 1))
        exact("box deltas", our_deltas.flatten(1), deltas[:, 4:])
        boxes, scores, labels = heads.postprocess_detections(logits, deltas, proposals, images.image_sizes)
        detections = model.box_head(features, as_proposals(*proposals), torch.tensor([size]))
        found = of_image(detections, 0)
        exact("boxes", found.boxes, boxes[0])
        exact("scores", found.scores, scores[0])
        assert torch.equal(found.labels, labels[0] - 1)
    finally:
        their.float()


def test_pasted_masks_are_torchvisions() -> None:
    torch.manual_seed(0)
    corners = torch.rand(60, 2, 2) * torch.tensor([140.0, 110.0])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[:5, 2:] = boxes[:5, :2] + 0.3  # thinner than a pixel
    boxes[5:10, :2] = 0
    probs = torch.rand(60, 28, 28)
    pasted = paste_masks_in_image(probs[:, None], boxes, (110, 140))[:, 0]
    found = torch.from_numpy(PredictedMasks(probs, whole_pixel_boxes(boxes, 28), (110, 140)).numpy())
    sure = (pasted - 0.5).abs() > 1e-4  # the rest is a matter of rounding
    assert torch.equal(found[sure], pasted[sure] >= 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_back_as_they_came(name: str) -> None:
    state = theirs(name).state_dict()
    back = to_torchvision(from_torchvision(state))
    assert back.keys() == state.keys()
    for key, value in state.items():
        if key.endswith(("bbox_pred.weight", "bbox_pred.bias")) and "box_predictor" in key:
            back[key][:4] = value[:4]  # the background's, which nothing reads
        elif "mask_fcn_logits" in key:
            back[key][:1] = value[:1]
        torch.testing.assert_close(back[key], value, atol=1e-6, rtol=0, msg=key)
    getattr(detection, name)(weights=None, weights_backbone=None).load_state_dict(back)


def test_files_of_before_2022(tmp_path: Path) -> None:
    """The names of the published files, which torchvision's own loading renames."""
    state = dict(theirs("maskrcnn_resnet50_fpn").state_dict())
    old = {}
    for key, value in state.items():
        for kind in ("inner_blocks", "layer_blocks"):
            for k in range(4):
                key = key.replace(f"{kind}.{k}.0.", f"{kind}.{k}.")
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for k in range(4):
            key = key.replace(f"mask_head.{k}.0.", f"mask_head.mask_fcn{k + 1}.")
        old[key] = value
    assert old.keys() != state.keys()
    new, want = from_torchvision(old), from_torchvision(state)
    assert new.keys() == want.keys()
    assert all(torch.equal(new[k], want[k]) for k in want)


def test_published_norms_have_no_epsilon() -> None:
    """The published files are of frozen normalisations, which torchvision computes with epsilon 0."""
    model = theirs("maskrcnn_resnet50_fpn").backbone.body

    frozen = FrozenBatchNorm2d(64)
    frozen.load_state_dict(model.bn1.state_dict())
    overwrite_eps(nn.Sequential(frozen), 0.0)
    published = {
        k: v for k, v in theirs("maskrcnn_resnet50_fpn").state_dict().items() if "num_batches" not in k
    }
    norm = zoo.build("maskrcnn_resnet50_fpn").backbone.get_submodule("body.stem.conv.norm")
    values = from_torchvision(published)
    norm.load_state_dict({k: values[f"backbone.body.stem.conv.norm.{k}"] for k in norm.state_dict()})
    x = torch.randn(2, 64, 3, 3)
    torch.testing.assert_close(norm(x), frozen(x))


def test_a_classifier_is_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = resnet50(weights=None).eval()
    torch.save(classifier.state_dict(), tmp_path / "a.pth")
    model = zoo.build("mask_rcnn_R_50_FPN_3x")
    notes = load_weights(model, tmp_path / "a.pth")
    assert any("fc.weight" in note for note in notes)
    assert any("made for strides in the 3x3" in note for note in notes)
    assert read_weights(tmp_path / "a.pth").kind == "backbone"
    body = zoo.build("maskrcnn_resnet50_fpn")
    assert not any("made for" in note for note in load_weights(body, tmp_path / "a.pth"))
    body = body.backbone.get_submodule("body").eval()
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm):
            module.eps = 1e-5
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        c = classifier
        want = c.layer4(c.layer3(c.layer2(c.layer1(c.maxpool(c.relu(c.bn1(c.conv1(x))))))))
        torch.testing.assert_close(body(x)["res5"], want, atol=1e-4, rtol=1e-4)
